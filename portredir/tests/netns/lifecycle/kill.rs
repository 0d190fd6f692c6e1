//! Commands that are killed at any moment, and state that is damaged.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::lab::process::{DEADLINE, note, slow, wait_for};
use crate::lab::program::{PROGRAM, attached, link_state};
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host, answers, random};
use crate::peer::conn::{Conn, Proto};
use crate::peer::echo::EchoServer;
use crate::{Cell, Tests, skip};

pub fn add(tests: &mut Tests) {
    tests.add_for(
        &["tc", "tc-clsact", "xdp"],
        "follower_killed",
        &[],
        watcher_killed,
    );
    for part in 0..KILL_PARTS {
        tests.add(format!("kill/{part}"), &[], move || kill(part));
    }
    tests.add("kill_at_calls".to_owned(), &["strace"], kill_at_calls);
    tests.add("late_watcher".to_owned(), &["strace"], late_watcher);
    tests.add("outlive/damaged", &[], damaged);
}

/// The watcher is killed while interfaces come and go: the next watcher finds every
/// interface attached as a whole or not at all.
fn watcher_killed(cell: &Cell) {
    const ROUNDS: u64 = 20;
    let lab = Lab::new(cell);
    let host = Host::of(&lab);
    host.run(&["up", "--iface", "h*", "--engine", cell.engine, "80:8080"]);
    let of_one = attached(&lab.host);
    host.kill_watcher();
    let mut random = random(1);
    let mut there = Vec::new();
    for round in 0..ROUNDS {
        let mut watcher = host.start(&["follow"]);
        wait_for("a watcher", || {
            (!host.status()["role"].is_null()).then_some(())
        });
        let (name, peer) = (format!("h{}", round + 10), format!("p{}", round + 10));
        lab.host
            .ip(&format!("link add {name} type veth peer name {peer}"));
        lab.host.ip(&format!("link set {peer} up"));
        lab.host.ip(&format!("link set {name} up"));
        there.push(name);
        if random(2) == 0 {
            let name = there.remove(usize::try_from(random(there.len() as u64)).expect("few"));
            lab.host.ip(&format!("link del {name}"));
        }
        std::thread::sleep(Duration::from_micros(random(80_000)));
        watcher.kill();
    }
    let mut watcher = host.start(&["follow"]);
    // Every interface has the same hooks as the first one.
    let expected: BTreeSet<_> = there
        .iter()
        .map(String::as_str)
        .chain(["h0"])
        .flat_map(|name| {
            let of_h0 = of_one.iter().filter_map(|line| line.strip_prefix("h0 "));
            of_h0.map(move |hook| format!("{name} {hook}"))
        })
        .collect();
    wait_for("every interface to be attached", || {
        let mut found = attached(&lab.host);
        // The other ends, which nobody selected, have a program for replies alone.
        found.retain(|line| !line.starts_with('p'));
        found.sort();
        // A list, because no hook may be there twice.
        (found.iter().eq(&expected)).then_some(())
    });
    for name in there {
        lab.host.ip(&format!("link del {name}"));
    }
    host.down();
    assert!(watcher.wait().success(), "{}", watcher.err());
}

/// How often a command is killed, in all.
const KILLS: u64 = 500;
const KILL_PARTS: u64 = 10;

/// The rules that run, or `None` where nothing does.
type Running = Option<BTreeSet<String>>;

/// A command that is about to be killed, and what runs if it is not.
struct Command {
    args: Vec<String>,
    then: Running,
}

impl Command {
    fn new(args: &[&str], then: Running) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { args, then }
    }

    /// `up` with one rule.
    fn up() -> Self {
        let rules = BTreeSet::from(["80:8080".to_owned()]);
        Self::new(
            &["up", "--replace", "--iface", "h0", "80:8080"],
            Some(rules),
        )
    }

    /// Chooses a command that fits what runs now; `file` is for rules.
    fn choose(now: &Running, number: u64, kind: u64, file: &Path) -> Self {
        let Some(rules) = now else {
            return Self::up();
        };
        let rule = format!("{}:8080", 1000 + number);
        match kind {
            0 => Self::new(&["down", "--drain-timeout", "0"], None),
            1 => {
                let many = [
                    "80:8080",
                    "2000-4000:3000-5000/both",
                    "81:8080 from 10.9.0.0/16",
                    &rule,
                ];
                fs::write(file, format!("rules = {many:?}")).expect("write a file");
                let then = many.map(str::to_owned).into();
                let args = ["apply", "-f", file.to_str().expect("text")];
                Self::new(&args, Some(then))
            }
            2 => {
                let mut then = rules.clone();
                then.insert(rule.clone());
                Self::new(&["add", &rule], Some(then))
            }
            _ => Self::up(),
        }
    }
}

/// How many commands were killed before their end, and what ran after those that
/// had something to change.
#[derive(Default)]
struct Tally {
    killed: u32,
    was_old: u32,
    was_new: u32,
}

impl Tally {
    /// Checks that commands were killed at early and at late moments.
    fn check(&self) {
        let Self {
            killed,
            was_old,
            was_new,
        } = *self;
        let text = format!("{killed} killed, {was_old} old, {was_new} new");
        note(&text);
        assert!(killed > 10 && was_old > 5 && was_new > 5, "{text}");
    }
}

/// Kills commands at random moments: afterwards the rules run that ran before, or
/// those that were asked for, and other connections do not notice.
fn kill(part: u64) {
    DEADLINE.set(Some(Instant::now() + slow(Duration::from_secs(240))));
    let mut random = random(part);
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let file = lab.dir.0.join("rules.toml");
    let mut connections = Connections::new(&lab, &server);
    let mut now: Running = None;
    let longest = time_of_up(&host);
    let mut tally = Tally::default();
    for number in 0..KILLS / KILL_PARTS {
        let command = Command::choose(&now, number, random(4), &file);
        // A first `up` takes longer than a change.
        let limit = if now.is_none() {
            longest * 3 / 2
        } else {
            longest * 2 / 3
        };
        let delay = Duration::from_micros(random(limit));
        tally.killed += u32::from(start_and_kill(&host, &command.args, delay));
        let found = running(&host, &command);
        let Command { args, then } = command;
        assert!(
            found == now || found == then,
            "{args:?} in round {number}: {found:?}, not {now:?} or {then:?}"
        );
        if now != then {
            tally.was_new += u32::from(found == then);
            tally.was_old += u32::from(found != then);
        }
        connections.check(number, &found, &format!("{args:?}: {found:?}"));
        now = found;
    }
    tally.check();
    drop(connections);
    host.down();
}

/// Connections that outlive the commands: one past all rules, and one by a rule
/// that no command but `down` removes.
struct Connections<'a> {
    lab: &'a Lab,
    server: &'a EchoServer,
    direct: Conn,
    kept: Option<Conn>,
}

impl<'a> Connections<'a> {
    fn new(lab: &'a Lab, server: &'a EchoServer) -> Self {
        Self {
            lab,
            server,
            direct: Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(8080)),
            kept: None,
        }
    }

    /// Checks that both go on, and that port 80 answers exactly when it is
    /// redirected.
    fn check(&mut self, round: u64, found: &Running, what: &str) {
        let is_redirected = found.is_some();
        self.direct
            .echo(format!("directly, round {round}").as_bytes());
        let is_redirecting = answers(self.lab, Proto::Tcp, 80);
        assert_eq!(is_redirecting, is_redirected, "{what} in round {round}");
        if !is_redirected {
            self.kept = None;
            return;
        }
        let to = Family::V4.host(80);
        let new = || Conn::to(&self.lab.client, Proto::Tcp, 0, to);
        let conn = self.kept.get_or_insert_with(new);
        let message = format!("by port 80, round {round}");
        conn.echo(message.as_bytes());
        self.server.peer(Proto::Tcp, message.as_bytes());
    }
}

/// How many microseconds `up` takes on this machine.
fn time_of_up(host: &Host<'_>) -> u64 {
    let start = Instant::now();
    host.up(&["80:8080"]);
    let longest = u64::try_from(start.elapsed().as_micros()).expect("soon");
    host.run(&["down", "--drain-timeout", "0"]);
    longest
}

/// Starts a command and kills it after some time; whether it was still running.
fn start_and_kill(host: &Host<'_>, args: &[String], delay: Duration) -> bool {
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut command = host.start(&args);
    std::thread::sleep(delay);
    let is_running = command.try_wait().is_none();
    command.kill_if_running();
    is_running
}

/// Reads what runs after a command was killed; the next command, which is this
/// one, clears up.
fn running(host: &Host<'_>, killed: &Command) -> Running {
    let mut read = host.start(&["rules"]);
    let status = read.wait();
    match status.code() {
        Some(0) => Some(read.out().lines().map(str::to_owned).collect()),
        Some(3) => None,
        _ => panic!("{:?}: {}", killed.args, read.err()),
    }
}

/// A watcher that has opened the maps, and listens after `down` has looked for it, ends.
fn late_watcher() {
    let lab = Lab::new(&CELL);
    if !lab.host.succeeds(&["strace", "-o", "/dev/null", "true"]) {
        skip("needs ptrace(2)");
    }
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    host.kill_watcher();
    let trace = lab.dir.0.join("trace");
    let path = trace.to_str().expect("text");
    let strace = ["strace", "-f", "-qq", "-o", path, "-e", "trace=listen"];
    let delay = ["-e", "inject=listen:delay_enter=3s", PROGRAM, "watch"];
    let mut watcher = lab.host.start(&[&strace[..], &delay].concat());
    wait_for("the watcher to listen", || {
        let said = fs::read_to_string(&trace).unwrap_or_default();
        said.contains("listen(").then_some(())
    });
    let pins = host.pins();
    host.down();
    let status = watcher.wait();
    assert!(status.success(), "{status}: {}", watcher.err());
    assert!(!pins.exists(), "nothing is pinned again");
}

/// Kills commands at the system calls around the switch: the one who follows
/// tells of the rules that are valid.
fn kill_at_calls() {
    DEADLINE.set(Some(Instant::now() + slow(Duration::from_secs(240))));
    // The number of calls to kill at, counted from the end of the command.
    const LAST: [(&str, usize); 4] = [("connect", 2), ("sendto", 3), ("bpf", 12), ("write", 2)];
    let lab = Lab::new(&CELL);
    if !lab.host.succeeds(&["strace", "-o", "/dev/null", "true"]) {
        skip("needs ptrace(2)");
    }
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    let trace = lab.dir.0.join("trace");
    let run = |args: &[&str], what: &str| {
        let trace = trace.to_str().expect("text");
        let strace = ["strace", "-f", "-qq", "-o", trace, "-e", what, PROGRAM];
        lab.host.start(&[&strace[..], args].concat()).wait();
        fs::read_to_string(trace).expect("what strace wrote")
    };
    let pinned = || {
        let rules = host.run(&["down", "--dry-run"]);
        let rules = rules.lines().filter_map(|line| line.strip_prefix("- "));
        rules.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let (mut killed, mut was_new) = (0, 0);
    let mut port = 1000;
    for command in [
        &["add"][..],
        &["up", "--replace", "--iface", "h0", "80:8080"],
    ] {
        for (call, last) in LAST {
            let mut next = |what: &str| {
                port += 1;
                let rule = format!("{port}:8080");
                run(&[command, &[&rule]].concat(), what)
            };
            let count = next(&format!("trace={call}")).lines().count();
            for number in (1..=count).rev().take(last) {
                let before = pinned();
                let trace = next(&format!("inject={call}:signal=SIGKILL:when={number}"));
                killed += u32::from(trace.contains("killed by SIGKILL"));
                let (watcher, pinned) = (host.rules().into_iter().collect(), pinned());
                was_new += u32::from(pinned != before);
                assert_eq!(pinned, watcher, "killed at {call} {number} of {command:?}");
            }
        }
    }
    note(&format!("{killed} killed, {was_new} new"));
    assert!(killed > 25 && was_new > 5, "{killed} killed, {was_new} new");
    host.down();
}

fn damaged() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["--engine", "tc-clsact", "80:8080"]);
    host.kill_watcher();
    let state = host.pins().join("STATE");
    fs::remove_file(&state).expect("remove a pin");
    // Without it the state looks unfinished.
    host.fails(3, &["rules"]);
    host.run(&["down", "--force"]);
    assert_eq!(link_state(&lab), host.before);
    host.up(&["80:8080"]);
    for name in ["HOT", "LOCAL", "if2-egress"] {
        let _ = fs::remove_file(host.pins().join(name));
    }
    host.run(&["down", "--force"]);
    host.run(&["down", "--force"]);
    host.down();
}
