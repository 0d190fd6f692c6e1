//! Changes of targets that are killed at their system calls: the next command finds the
//! targets from before or the new ones, new flows go there, and open flows go on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::rules::Rule;
use super::site::Site;
use super::subject::{Layout, Place, Subject, Variant};
use super::target::{addr_words, reaches, target};
use crate::conformance::client::Conversation;
use crate::conformance::site::Offload;
use crate::lab::Family;
use crate::lab::extent::allow;
use crate::lab::process::note;
use crate::lab::program::PROGRAM;
use crate::lifecycle::host::Host;
use crate::peer::conn::{PROTOS, Proto};
use crate::{Tests, skip};

pub fn add(tests: &mut Tests) {
    for (name, kind, family) in [
        ("add", Kind::Add, Family::V4),
        ("replace", Kind::Replace, Family::V6),
        ("drain", Kind::Drain, Family::V4),
        ("undrain", Kind::Undrain, Family::V6),
    ] {
        let name = format!("forward/kill_at_calls/{name}");
        tests.add(name, &["strace"], move || kill_at_calls(kind, family));
    }
}

/// A change of targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A rule with two targets comes.
    Add,
    /// One of two targets of a rule gives way to another one.
    Replace,
    /// A target gets no new flows.
    Drain,
    /// A drained target gets new flows again.
    Undrain,
}

/// The words of a command.
type Words = Vec<String>;

/// A command that is killed, and what is around it.
struct Change {
    /// The command that runs before the first time.
    first: Option<Words>,
    command: Words,
    /// Puts back what the command has done.
    undo: Words,
    /// The port whose new flows tell whether it was done.
    port: u16,
    /// The servers of these flows before and after.
    servers: [BTreeSet<&'static str>; 2],
}

/// The name of the server where nobody listens.
const NOBODY: &str = "nobody";

impl Change {
    fn new(kind: Kind, site: &Site, family: Family) -> Self {
        let f = target(site, family, Place::F);
        let g = target(site, family, Place::G);
        let rule = |targets: &[SocketAddr]| {
            let rule = Rule::new(site.own(family, 81), targets);
            rule.with("check none").words()
        };
        let old = rule(&[f, g]);
        let new = rule(&[g, SocketAddr::new(f.ip(), 9000)]);
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let drain = |command| words(&[command, &format!("{}:8080", addr_words(f.ip()))]);
        let both = BTreeSet::from(["F", "G"]);
        match kind {
            Kind::Add => Self {
                first: None,
                command: words(&["add", &old]),
                undo: words(&["rm", &old]),
                port: 81,
                servers: [BTreeSet::from([NOBODY]), both],
            },
            Kind::Replace => Self {
                first: Some(words(&["add", &old])),
                command: words(&["replace", &old, &new]),
                undo: words(&["replace", &new, &old]),
                port: 81,
                servers: [both, BTreeSet::from(["G", "F 9000"])],
            },
            Kind::Drain => Self {
                first: None,
                command: drain("drain"),
                undo: drain("undrain"),
                port: 80,
                servers: [both, BTreeSet::from(["G"])],
            },
            Kind::Undrain => Self {
                first: Some(drain("drain")),
                command: drain("undrain"),
                undo: drain("drain"),
                port: 80,
                servers: [BTreeSet::from(["G"]), both],
            },
        }
    }
}

/// The rules that run, and the state of each of their targets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    rules: BTreeSet<String>,
    targets: BTreeMap<(String, String), String>,
}

impl State {
    /// The state that the next commands find.
    fn read(host: &Host<'_>) -> Self {
        let rules: BTreeSet<_> = host.rules().into_iter().collect();
        let pinned = host.run(&["down", "--dry-run"]);
        let pinned = pinned.lines().filter_map(|line| line.strip_prefix("- "));
        let pinned: BTreeSet<_> = pinned.map(str::to_owned).collect();
        assert_eq!(
            rules, pinned,
            "the watcher's rules, and those that are pinned"
        );
        let shown = host.run(&["targets", "--json"]);
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        let text = |target: &Value, key: &str| target[key].as_str().expect("text").to_owned();
        let targets = shown["targets"].as_array().expect("targets").iter();
        // A removed one is there until its flows have ended, whenever that is noticed.
        let targets = targets.filter(|target| target["state"] != "removed");
        let targets = targets.map(|target| {
            let name = (text(target, "listen"), text(target, "target"));
            (name, text(target, "state"))
        });
        Self {
            rules,
            targets: targets.collect(),
        }
    }
}

/// A system call of a command: its name, and how many of this name there were with it.
type Call = (String, usize);

/// The calls to kill a command at, of what strace wrote: every one from the first that
/// changes a map to the last one, and some before and after. Of look-ups that follow each
/// other there are the first and the last.
fn calls(trace: &str) -> Vec<Call> {
    let mut counts = BTreeMap::new();
    let mut all = Vec::new();
    for line in trace.lines() {
        let Some((name, rest)) = line.split_once('(') else {
            continue;
        };
        let count: &mut usize = counts.entry(name).or_default();
        *count += 1;
        let is = |command: &str| name == "bpf" && rest.starts_with(command);
        let changes = is("BPF_MAP_UPDATE") || is("BPF_MAP_DELETE");
        all.push(((name, *count), is("BPF_MAP_LOOKUP"), changes));
    }
    let first = all.iter().position(|(_, _, changes)| *changes);
    let last = all.iter().rposition(|(_, _, changes)| *changes);
    let (first, last) = first.zip(last).expect("a call that changes a map");
    let is_look_up = |at: usize| all.get(at).is_some_and(|(_, is_look_up, _)| *is_look_up);
    let is_wanted = |at: usize| match at {
        _ if at < first => at.is_multiple_of(400) || at + 1 == first,
        _ if at <= last => !(is_look_up(at - 1) && is_look_up(at) && is_look_up(at + 1)),
        _ => at.is_multiple_of(40) || ["connect", "sendto", "write"].contains(&all[at].0.0),
    };
    let wanted = (0..all.len()).filter(|at| is_wanted(*at));
    wanted
        .map(|at| {
            let (name, number) = all[at].0;
            (name.to_owned(), number)
        })
        .collect()
}

/// Runs a command under strace, which may kill it. What the command starts itself is not
/// followed.
fn trace(site: &Site, what: &[&str], command: &Words) -> String {
    let out = site.lab.dir.0.join("trace");
    let out = out.to_str().expect("text");
    let strace = ["strace", "-qq", "-o", out];
    let words = command.iter().map(String::as_str);
    let args: Vec<_> = strace.iter().chain(what).copied().collect();
    let args: Vec<_> = args.into_iter().chain([PROGRAM]).chain(words).collect();
    site.lab.host.start(&args).wait();
    fs::read_to_string(out).expect("what strace wrote")
}

fn run(host: &Host<'_>, command: &Words) {
    let words: Vec<_> = command.iter().map(String::as_str).collect();
    host.run(&words);
}

/// The number of new connections after each kill.
const NEW: usize = 6;

/// The servers of new connections.
fn servers(site: &Site, family: Family, port: u16) -> BTreeSet<String> {
    let to = site.own(family, port);
    let server = |_| match Conversation::begin(&site.lab.client, Proto::Tcp, 0, to) {
        Ok(flow) => {
            flow.conn.reset();
            flow.name
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => NOBODY.to_owned(),
        Err(error) => panic!("to {to}: {error}"),
    };
    (0..NEW).map(server).collect()
}

/// Flows to F and to G, by TCP and UDP.
fn open(site: &Site, family: Family) -> Vec<Conversation> {
    let to = site.own(family, 80);
    let mut open = Vec::new();
    for proto in PROTOS {
        let begin = |_| {
            let begun = Conversation::begin(&site.lab.client, proto, 0, to);
            begun.unwrap_or_else(|error| panic!("{proto:?} to {to}: {error}"))
        };
        // Each target is one by chance, but for one time in a million.
        let (mut of_f, mut of_g): (Vec<_>, Vec<_>) =
            (0..20).map(begin).partition(|flow| flow.name == "F");
        let both = of_f.pop().zip(of_g.pop());
        let (f, g) = both.expect("flows to both targets");
        open.extend([f, g]);
    }
    open
}

fn check_open(flows: &mut [Conversation], when: &str) {
    for flow in flows {
        let is_udp = matches!(flow.conn, crate::peer::conn::Conn::Udp(_));
        if is_udp {
            assert_eq!(reaches(flow), flow.name, "{when}: a UDP flow");
        } else {
            let echoes = flow.echoes(b"still there?");
            assert!(
                matches!(echoes, Ok(true)),
                "{when}: {}: {echoes:?}",
                flow.name
            );
        }
    }
}

fn kill_at_calls(kind: Kind, family: Family) {
    allow(Duration::from_secs(240));
    let (layout, offload) = (Layout::Bridge(true), Offload::On);
    let site = Site::idle(Subject::Engine("auto"), Variant { layout, offload });
    let has_ptrace = ["strace", "-o", "/dev/null", "true"];
    if !site.lab.host.succeeds(&has_ptrace) {
        skip("needs ptrace(2)");
    }
    let host = Host::of(&site.lab);
    let targets = [Place::F, Place::G].map(|place| target(&site, family, place));
    let rule = Rule::new(site.own(family, 80), &targets).with("check none");
    host.run(&["up", "--iface", "all", &rule.words()]);
    let flows = open(&site, family);
    let change = Change::new(kind, &site, family);
    if let Some(first) = &change.first {
        run(&host, first);
    }
    let before = State::read(&host);
    let calls = calls(&trace(&site, &[], &change.command));
    let after = State::read(&host);
    assert_ne!(before, after, "{kind:?}");
    run(&host, &change.undo);
    assert_eq!(State::read(&host), before, "after {:?}", change.undo);
    let mut kills = Kills {
        site: &site,
        host: &host,
        family,
        change,
        states: [before, after],
        flows,
        killed: 0,
        was: [0; 2],
        seen: [BTreeSet::new(), BTreeSet::new()],
    };
    for call in &calls {
        kills.kill_at(call);
    }
    kills.check();
    host.down();
}

/// A command that is killed again and again.
struct Kills<'a> {
    site: &'a Site,
    host: &'a Host<'a>,
    family: Family,
    change: Change,
    /// The states before and after the command.
    states: [State; 2],
    /// Flows that began before.
    flows: Vec<Conversation>,
    /// The number of commands that did not come to their end.
    killed: usize,
    /// How often each state was found.
    was: [usize; 2],
    /// The servers of new flows in each state.
    seen: [BTreeSet<String>; 2],
}

impl Kills<'_> {
    /// Kills the command at a call, and looks at what it leaves.
    fn kill_at(&mut self, (call, number): &Call) {
        let what = format!("inject={call}:signal=SIGKILL:when={number}");
        let trace = trace(self.site, &["-e", &what], &self.change.command);
        self.killed += usize::from(trace.contains("killed by SIGKILL"));
        let when = format!("killed at {call} {number} of {:?}", self.change.command);
        let found = State::read(self.host);
        let state = self.states.iter().position(|state| *state == found);
        let state = state.unwrap_or_else(|| panic!("{when}: {found:?}"));
        self.was[state] += 1;
        let reached = servers(self.site, self.family, self.change.port);
        let possible = &self.change.servers[state];
        let is_possible = reached.iter().all(|name| possible.contains(name.as_str()));
        assert!(is_possible, "{when}: {reached:?}, not {possible:?}");
        self.seen[state].extend(reached);
        check_open(&mut self.flows, &when);
        if state == 1 {
            run(self.host, &self.change.undo);
        }
    }

    /// Checks that there were early and late kills, and that all servers were reached.
    fn check(&self) {
        let Self { killed, was, .. } = self;
        let text = format!("{killed} killed, {was:?} old and new");
        note(&text);
        assert!(*killed > 40 && was.iter().all(|count| *count > 5), "{text}");
        for (seen, possible) in self.seen.iter().zip(&self.change.servers) {
            assert!(
                seen.iter().eq(possible),
                "{seen:?}, not all of {possible:?}"
            );
        }
    }
}
