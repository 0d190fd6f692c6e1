//! What outlives the command that made it: `up`, `add`, `rm`, `apply`, `down`
//! and what they find of each other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::{Family, Lab, add_addrs};
use crate::load::{Many, serve_http};
use crate::process::{DEADLINE, Process, note, slow, wait_for};
use crate::redirector::{PROGRAM, attached, copy_for_everybody};
use crate::serve::Echo;
use crate::talk::{Conn, PROTOS, Proto, is_refused};
use crate::{Cell, ENGINES, Tests, skip};

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "up_and_down", &[], up_and_down);
    tests.add_for(&["tc", "tc-clsact", "xdp"], "up_again", &[], up_again);
    tests.add_for(
        &["tc", "tc-clsact", "xdp"],
        "follower_killed",
        &[],
        follower_killed,
    );
    for part in 0..KILL_PARTS {
        tests.add(format!("kill/{part}"), &[], move || kill(part));
    }
    tests.add("kill_at_calls".to_owned(), &["strace"], kill_at_calls);
    for engine in ["tc", "xdp"] {
        tests.add(
            format!("{engine}/change_under_load"),
            &["curl", "python3", "iperf3"],
            move || change_under_load(engine),
        );
    }
    type Test = (&'static str, fn());
    const TESTS: [Test; 17] = [
        ("changes_keep_flows", changes_keep_flows),
        ("conditions", conditions),
        ("two_writers", two_writers),
        ("confirm", confirm),
        ("damaged", damaged),
        ("foreground_is_visible", foreground_is_visible),
        ("follower", follower),
        ("service", service),
        ("files", files),
        ("lock_out", lock_out),
        ("hide_target", hide_target),
        ("if_listening", if_listening),
        ("fewest_capabilities", fewest_capabilities),
        ("many_rules", many_rules),
        ("group", group),
        ("bpffs_is_mounted", bpffs_is_mounted),
        ("forged_control", forged_control),
    ];
    for (name, test) in TESTS {
        tests.add(format!("outlive/{name}"), &[], test);
    }
}

const CELL: Cell = Cell {
    engine: "auto",
    is_offloaded: true,
    family: Family::V4,
};

/// The commands on the host of a lab; takes everything down when dropped.
pub struct Host<'a> {
    lab: &'a Lab,
    before: Vec<String>,
}

impl<'a> Host<'a> {
    pub fn of(lab: &'a Lab) -> Self {
        Self {
            lab,
            before: state(lab),
        }
    }

    /// Starts a command.
    pub fn start(&self, args: &[&str]) -> Process {
        let mut all = vec![PROGRAM];
        all.extend(args);
        self.lab.host.start(&all)
    }

    /// Runs a command that has to come to a good end; what it printed.
    pub fn run(&self, args: &[&str]) -> String {
        let mut process = self.start(args);
        let status = process.wait();
        assert!(status.success(), "{args:?}: {status} {}", process.err());
        process.out()
    }

    /// Runs a command that has to fail by this exit code; what it said.
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let mut process = self.start(args);
        let status = process.wait();
        let error = process.err();
        assert_eq!(status.code(), Some(code), "{args:?}: {error}");
        error
    }

    /// `up` on the link to the client.
    pub fn up(&self, args: &[&str]) -> String {
        let mut all = vec!["up", "--iface", "h0"];
        all.extend(args);
        self.run(&all)
    }

    pub fn rules(&self) -> Vec<String> {
        self.run(&["rules"]).lines().map(str::to_owned).collect()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.run(&["status", "--json"])).expect("JSON")
    }

    /// Ends it, and looks that all is as it was.
    pub fn down(self) {
        self.run(&["down", "--drain-timeout", "0"]);
        assert_eq!(state(self.lab), self.before);
        assert!(!self.pins().exists(), "{:?} is left", self.pins());
        self.fails(3, &["status"]);
    }

    fn kill_follower(&self) {
        let pid = self.status()["pid"].as_u64().expect("a pid").to_string();
        self.lab.host.run(&["kill", "-9", &pid]);
        wait_for("nobody to follow", || {
            self.status()["role"].is_null().then_some(())
        });
    }

    /// The directory of its pins.
    pub fn pins(&self) -> PathBuf {
        let cookie = self
            .lab
            .host
            .enter(portredir::sys::netns::netns_cookie)
            .expect("a cookie");
        Path::new("/sys/fs/bpf/portredir").join(cookie.to_string())
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut down = self.start(&["down", "--force"]);
            down.wait();
            note(&format!("down --force: {}", down.err()));
        }
    }
}

/// All that attaching may change, on both ends of the link.
fn state(lab: &Lab) -> Vec<String> {
    let mut state = attached(&lab.host);
    for (at, interface) in [(&lab.host, "h0"), (&lab.client, "c0")] {
        state.push(at.run(&["ip", "-details", "link", "show", interface]));
        state.push(at.run(&["ethtool", "-k", interface]));
        state.push(at.run(&["tc", "qdisc", "show", "dev", interface]));
    }
    state
}

/// Whether somebody answers at a port.
fn answers(lab: &Lab, proto: Proto, port: u16) -> bool {
    !is_refused(&lab.client, proto, Family::V4.host(port))
}

/// Talks by a port, and looks who was talked to.
fn reaches(lab: &Lab, port: u16, server: &Echo) {
    for proto in PROTOS {
        let message = format!("{proto:?} by {port}");
        let mut conn = Conn::to(&lab.client, proto, 0, Family::V4.host(port));
        conn.echo(message.as_bytes());
        server.peer(proto, message.as_bytes());
    }
}

fn up_and_down(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = Echo::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.fails(3, &["rules"]);
    assert!(host.run(&["down"]).is_empty());
    let printed = host.up(&["--engine", cell.engine, "80:8080/both"]);
    assert_eq!(printed, "+ 80:8080/both\n");
    reaches(&lab, 80, &server);
    assert_eq!(host.rules(), ["80:8080/both"]);
    assert_eq!(host.run(&["add", "81:8080/both"]), "+ 81:8080/both\n");
    assert_eq!(host.run(&["add", "81:8080/both"]), "");
    reaches(&lab, 81, &server);
    assert_eq!(host.run(&["rm", "80:8080/both"]), "- 80:8080/both\n");
    assert_eq!(host.run(&["rm", "80:8080/both"]), "");
    assert!(!answers(&lab, Proto::Tcp, 80) && !answers(&lab, Proto::Udp, 80));
    reaches(&lab, 81, &server);
    let status = host.status();
    assert_eq!(status["role"], "follower");
    assert_eq!(status["interfaces"][0]["name"], "h0");
    assert!(status["rules"][0]["packets"].as_u64() > Some(0));
    assert_eq!(host.run(&["down", "--dry-run"]), "- 81:8080/both\n");
    let error = host.fails(1, &["--iface", "h0", "82:8080"]);
    assert!(error.contains("portredir down"), "{error}");
    reaches(&lab, 81, &server);
    host.down();
    assert!(!answers(&lab, Proto::Tcp, 81));
}

/// The same, and another version, on what is there.
fn up_again(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = Echo::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["--engine", cell.engine, "80:8080/both"]);
    let first = attached(&lab.host);
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    conn.echo(b"before");
    let follower = host.status()["pid"].clone();
    assert_eq!(
        host.up(&["--engine", cell.engine, "80:8080/both", "81:8080"]),
        "+ 81:8080\n"
    );
    assert_eq!(host.status()["pid"], follower);
    conn.echo(b"after the same program");
    // Another file is another version: it follows from now on.
    let other = copy_for_everybody(&lab.dir.0);
    let args = [
        &other,
        "up",
        "--iface",
        "h0",
        "--engine",
        cell.engine,
        "80:8080/both",
    ];
    lab.host.run(&args);
    assert_ne!(host.status()["pid"], follower);
    assert_eq!(attached(&lab.host), first);
    conn.echo(b"after another program");
    server.peer(Proto::Tcp, b"after another program");
    reaches(&lab, 80, &server);
    let report = &host.status()["rules"][0];
    assert!(report["flows"].as_u64() >= Some(3), "{report}");
    host.down();
}

fn changes_keep_flows() {
    let lab = Lab::new(&CELL);
    let [first, second, third] = [8080, 9090, 7070].map(|port| Echo::start(&lab.host, port));
    let host = Host::of(&lab);
    host.up(&["80:8080/both", "90:8080/both"]);
    let dial = |port| PROTOS.map(|proto| Conn::to(&lab.client, proto, 0, Family::V4.host(port)));
    let talk = |conns: &mut [Conn], server: &Echo, when: &str| {
        for (conn, proto) in conns.iter_mut().zip(PROTOS) {
            let message = format!("{proto:?} {when}");
            conn.echo(message.as_bytes());
            server.peer(proto, message.as_bytes());
        }
    };
    let mut of_first = dial(80);
    talk(&mut of_first, &first, "at first");
    let file = lab.dir.0.join("rules.toml");
    let apply = |text: &str, args: &[&str]| {
        fs::write(&file, text).expect("write a file");
        let mut all = vec!["apply", "-f", file.to_str().expect("text")];
        all.extend(args);
        host.run(&all)
    };
    let changed = "rules = ['80:9090/both', '90:8080/both']";
    let diff = "- 80:8080/both\n+ 80:9090/both\n";
    assert_eq!(apply(changed, &["--dry-run"]), diff);
    talk(&mut dial(80), &first, "before the change");
    assert_eq!(apply(changed, &[]), diff);
    let mut of_second = dial(80);
    for round in 0..3 {
        talk(&mut of_first, &first, &format!("after a change, {round}"));
        talk(&mut of_second, &second, &format!("new, {round}"));
    }
    apply("rules = ['80:7070/both', '90:8080/both']", &[]);
    let mut of_third = dial(80);
    talk(&mut of_first, &first, "after two changes");
    talk(&mut of_second, &second, "after one change");
    talk(&mut of_third, &third, "new");
    apply("rules = ['90:8080/both']", &[]);
    for (conns, server) in [
        (&mut of_first, &first),
        (&mut of_second, &second),
        (&mut of_third, &third),
    ] {
        talk(conns, server, "without a rule");
    }
    assert!(!answers(&lab, Proto::Tcp, 80));
    // Options that need more than this are not changed by the way.
    fs::write(&file, "iface = 'lo'\nrules = []").expect("write a file");
    let error = host.fails(1, &["apply", "-f", file.to_str().expect("text")]);
    assert!(error.contains("`iface` cannot be changed"), "{error}");
    // A server that is gone keeps no datagrams.
    drop(third);
    let mut udp = Conn::to(
        &lab.client,
        Proto::Udp,
        of_third[1].local().port() + 1,
        Family::V4.host(90),
    );
    udp.echo(b"by another rule");
    host.down();
}

/// Each condition of a rule, on real interfaces.
fn conditions() {
    let lab = Lab::new(&CELL);
    let servers = [8080, 8081, 8082, 8083].map(|port| Echo::start(&lab.host, port));
    lab.host.ip("addr add 10.9.1.7/24 dev h0");
    lab.client.ip("addr add 10.9.1.9/24 dev c0");
    let host = Host::of(&lab);
    host.run(&[
        "up",
        "80:8080/both",
        "80:8081/both",
        "from",
        "10.9.1.9",
        "10.9.1.7:80:8082/both",
        "81:8083/both",
        "on",
        "h*",
        "82:8083/both",
        "on",
        "lo",
        "1000-1003:8080-8083/both",
    ]);
    reaches(&lab, 80, &servers[0]);
    for (i, server) in servers.iter().enumerate() {
        reaches(&lab, 1000 + u16::try_from(i).expect("few"), server);
    }
    reaches(&lab, 81, &servers[3]);
    assert!(!answers(&lab, Proto::Tcp, 82));
    let mut second = Conn::to(
        &lab.client,
        Proto::Tcp,
        0,
        "10.9.1.7:80".parse().expect("addr"),
    );
    second.echo(b"the second address");
    servers[2].peer(Proto::Tcp, b"the second address");
    // A client on this host comes in by lo.
    let mut local = Conn::to(&lab.host, Proto::Tcp, 0, Family::V4.host(82));
    local.echo(b"by lo");
    servers[3].peer(Proto::Tcp, b"by lo");
    assert!(is_refused(&lab.host, Proto::Tcp, Family::V4.host(81)));
    lab.client.sysctl("ipv4/conf/all/promote_secondaries", "1");
    lab.client.ip("addr del 10.9.1.2/24 dev c0");
    reaches(&lab, 80, &servers[1]);
    // An interface that comes later is one of `h*`.
    lab.host.ip("link add h7 type veth peer name c7");
    let to = format!("link set c7 netns {}", lab.client.name);
    lab.host.ip(&to);
    add_addrs(&lab.host, "h7", (7, 1));
    add_addrs(&lab.client, "c7", (7, 2));
    let seven = "10.9.7.1:81".parse().expect("addr");
    wait_for("the new interface", || {
        (!is_refused(&lab.client, Proto::Tcp, seven)).then_some(())
    });
    host.run(&["down"]);
    assert!(!host.pins().exists());
}

/// Nothing of what anybody was told is lost.
fn two_writers() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    let mut expected: BTreeSet<_> = ["80:8080".to_owned()].into();
    let mut writers = Vec::new();
    for number in 0..12 {
        let rule = format!("{}:8080", 1000 + number);
        writers.push((host.start(&["add", &rule]), rule));
    }
    for (mut writer, rule) in writers {
        let status = writer.wait();
        if status.success() {
            expected.insert(rule);
        } else {
            let error = writer.err();
            assert!(
                error.contains("another portredir command is at work"),
                "{error}"
            );
        }
    }
    let rules: BTreeSet<_> = host.rules().into_iter().collect();
    assert_eq!(rules, expected);
    assert!(rules.len() > 6, "{rules:?}");
    host.down();
}

fn confirm() {
    let lab = Lab::new(&CELL);
    let _server = Echo::start(&lab.host, 8080);
    let host = Host::of(&lab);
    // Taken back to nothing.
    host.up(&["--confirm", "1s", "80:8080"]);
    assert!(answers(&lab, Proto::Tcp, 80));
    wait_for("the end", || (!host.pins().exists()).then_some(()));
    assert_eq!(state(&lab), host.before);
    host.up(&["80:8080"]);
    host.fails(1, &["confirm"]);
    // Kept.
    host.run(&["add", "--confirm", "2", "81:8080"]);
    assert!(host.status()["confirm_within"].as_u64() <= Some(2));
    let error = host.fails(1, &["add", "82:8080"]);
    assert!(error.contains("waits to be confirmed"), "{error}");
    host.run(&["confirm"]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(host.rules(), ["80:8080", "81:8080"]);
    // Taken back, also when who has to do it is not the first.
    host.run(&["rm", "--confirm", "2s", "80:8080"]);
    host.kill_follower();
    let mut follower = host.start(&["follow"]);
    wait_for("the old rules", || {
        (host.rules() == ["80:8080", "81:8080"]).then_some(())
    });
    host.down();
    assert!(follower.wait().success());
}

fn damaged() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["--engine", "tc-clsact", "80:8080"]);
    host.kill_follower();
    let state = host.pins().join("STATE");
    fs::remove_file(&state).expect("remove a pin");
    // As if it had never been finished.
    host.fails(3, &["rules"]);
    host.run(&["down", "--force"]);
    assert_eq!(super::outlive::state(&lab), host.before);
    host.up(&["80:8080"]);
    for name in ["HOT", "LOCAL", "if2-egress"] {
        let _ = fs::remove_file(host.pins().join(name));
    }
    host.run(&["down", "--force"]);
    host.run(&["down", "--force"]);
    host.down();
}

fn foreground_is_visible() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let mut run = host.start(&["--iface", "h0", "80:8080", "81:8081/udp"]);
    run.wait_for_words("redirecting");
    assert_eq!(host.rules(), ["80:8080", "81:8081/udp"]);
    assert_eq!(host.status()["role"], "foreground");
    for args in [&["add", "82:8080"][..], &["up", "82:8080"]] {
        let error = host.fails(1, args);
        assert!(error.contains(&format!("process {}", run.id())), "{error}");
    }
    host.run(&["save", lab.dir.0.join("saved.toml").to_str().expect("text")]);
    let nobody = lab.host.start(&[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--",
        &copy_for_everybody(&lab.dir.0),
        "status",
    ]);
    let mut nobody = nobody;
    assert_eq!(nobody.wait().code(), Some(4), "{}", nobody.err());
    host.run(&["down"]);
    assert!(run.wait().success());
    host.down();
}

/// What follows interfaces may die; the rest goes on, and another can follow.
fn follower() {
    let lab = Lab::new(&CELL);
    let server = Echo::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.run(&["up", "80:8080/both"]);
    let pid = || host.status()["pid"].as_u64().expect("a pid").to_string();
    lab.host.run(&["kill", "-9", &pid()]);
    reaches(&lab, 80, &server);
    wait_for("nobody to follow", || {
        host.status()["role"].is_null().then_some(())
    });
    // What comes now is found by the next.
    lab.host.ip("addr add 10.9.1.77/24 dev h0");
    let new = "10.9.1.77:80".parse().expect("addr");
    assert!(is_refused(&lab.client, Proto::Tcp, new));
    let mut second = host.start(&["follow"]);
    wait_for("the new address", || {
        (!is_refused(&lab.client, Proto::Tcp, new)).then_some(())
    });
    let mut third = host.start(&["follow"]);
    assert_eq!(third.wait().code(), Some(1), "{}", third.err());
    second.signal(Signal::SIGTERM);
    assert!(second.wait().success());
    reaches(&lab, 80, &server);
    lab.host.ip("addr del 10.9.1.77/24 dev h0");
    host.down();
}

/// Killed while interfaces come and go: whoever follows next finds every one of
/// them attached as a whole or not at all.
fn follower_killed(cell: &Cell) {
    const ROUNDS: u64 = 20;
    let lab = Lab::new(cell);
    let host = Host::of(&lab);
    host.run(&["up", "--iface", "h*", "--engine", cell.engine, "80:8080"]);
    let of_one = attached(&lab.host);
    host.kill_follower();
    let mut random = random(1);
    let mut there = Vec::new();
    for round in 0..ROUNDS {
        let mut follower = host.start(&["follow"]);
        wait_for("somebody to follow", || {
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
        follower.kill();
    }
    let mut follower = host.start(&["follow"]);
    // What each has is what the first one has.
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
        found.sort();
        // A list: nothing may be there twice.
        (found.iter().eq(&expected)).then_some(())
    });
    for name in there {
        lab.host.ip(&format!("link del {name}"));
    }
    host.down();
    assert!(follower.wait().success(), "{}", follower.err());
}

/// As many rules as are promised, of all kinds, and ranges of every port.
fn many_rules() {
    let lab = Lab::new(&CELL);
    let servers = [8080, 8081].map(|port| Echo::start(&lab.host, port));
    let host = Host::of(&lab);
    let file = lab.dir.0.join("rules.toml");
    let mut rules: Vec<String> = (0..10_000)
        .map(|i| {
            let (port, target) = (10_000 + i, 8080 + i % 2);
            match i % 5 {
                0 | 1 => format!("{port}:{target}/both"),
                2 => format!("10.9.1.1:{port}:{target}/both"),
                3 => format!("{port}:{target}/both from 10.9.1.0/24"),
                _ => format!("{port}:{target}/both on h0"),
            }
        })
        .collect();
    let write = |rules: &[String]| {
        fs::write(&file, format!("iface = 'h0'\nrules = {rules:?}\n")).expect("write a file");
    };
    write(&rules);
    let file_name = file.to_str().expect("text").to_owned();
    let start = Instant::now();
    host.run(&["up", "--force", "--config", &file_name]);
    note(&format!("10 000 rules: {:?}", start.elapsed()));
    let look = |rules: &[String]| {
        assert_eq!(host.rules(), rules);
        for i in [0, 1, 2, 3, 4, 4999, 5002, 9998, 9999] {
            reaches(&lab, 10_000 + i, &servers[usize::from(i % 2)]);
        }
        assert!(!answers(&lab, Proto::Tcp, 9999) && !answers(&lab, Proto::Tcp, 20_000));
    };
    look(&rules);
    // One more, one less, and each of them counts by itself.
    let start = Instant::now();
    host.run(&["add", "20000:8080"]);
    note(&format!("one more: {:?}", start.elapsed()));
    assert!(answers(&lab, Proto::Tcp, 20_000));
    host.run(&["rm", "20000:8080"]);
    look(&rules);
    let report = &host.status()["rules"];
    let hits = |i: usize| report[i]["packets"].as_u64().expect("a number");
    assert!(hits(4999) > 0 && hits(5002) > 0 && hits(9999) > 0);
    assert_eq!(hits(5000), 0);
    // All ports, to one of them, and each to the one before.
    rules = vec!["1-8079:8080".into(), "8082-65535:8081".into()];
    write(&rules);
    host.run(&["apply", "--force", "-f", &file_name]);
    for (port, server) in [(1, 0), (8079, 0), (8082, 1), (65_535, 1)] {
        let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(port));
        conn.echo(port.to_string().as_bytes());
        servers[server].peer(Proto::Tcp, port.to_string().as_bytes());
    }
    rules = vec!["2-65535:1-65534/both".into()];
    write(&rules);
    host.run(&["apply", "--force", "-f", &file_name]);
    reaches(&lab, 8081, &servers[0]);
    reaches(&lab, 8082, &servers[1]);
    host.down();
}

/// Members of the group read without being root.
fn group() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let etc = lab.dir.0.join("etc");
    fs::create_dir(&etc).expect("a directory");
    let write = |name: &str, text: &str| fs::write(etc.join(name), text).expect("write a file");
    write(
        "passwd",
        "root:x:0:0::/:/bin/sh\nmember:x:4001:4001::/:/bin/sh\nother:x:4002:4002::/:/bin/sh\n",
    );
    write("group", "root:x:0:\nportredir:x:4000:member\n");
    write("nsswitch.conf", "passwd: files\ngroup: files\n");
    // The process that answers looks its users up in these.
    let script = "for file in passwd group nsswitch.conf; do \
                  mount --bind $0/$file /etc/$file; done; exec \"$@\"";
    let mut run = lab.host.start(&[
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        etc.to_str().expect("text"),
        PROGRAM,
        "--iface",
        "h0",
        "80:8080",
    ]);
    run.wait_for_words("redirecting");
    let program = copy_for_everybody(&lab.dir.0);
    let ask = |uid: &str, command: &str| {
        let (uid, gid) = (format!("--reuid={uid}"), format!("--regid={uid}"));
        let args = [
            "setpriv",
            &uid,
            &gid,
            "--clear-groups",
            "--",
            &program,
            command,
        ];
        let mut process = lab.host.start(&args);
        (process.wait().code(), process.out(), process.err())
    };
    let (code, out, err) = ask("4001", "rules");
    assert_eq!((code, out.as_str()), (Some(0), "80:8080\n"), "{err}");
    assert_eq!(ask("4001", "status").0, Some(0));
    let (code, out, err) = ask("4002", "rules");
    assert_eq!((code, out.as_str()), (Some(4), ""), "{err}");
    assert!(err.contains("group `portredir`"), "{err}");
    // Reading is all they may.
    let (code, _, err) = ask("4001", "down");
    assert_eq!(code, Some(4), "{err}");
    assert_eq!(host.rules(), ["80:8080"]);
    run.signal(Signal::SIGTERM);
    assert!(run.wait().success());
    host.down();
}

/// Where bpffs is missing, it is mounted, and taken away at the end; not where
/// the mount would not last.
fn bpffs_is_mounted() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let script = "umount -t bpf -a; cp /proc/mounts $1.before; $0 up --iface h0 80:8080 || exit; \
                  grep -c ' /sys/fs/bpf bpf ' /proc/mounts; $0 rules; \
                  $0 down --drain-timeout 0; cp /proc/mounts $1.after";
    let file = lab.dir.0.join("mounts");
    let run = |unshare: &[&str]| {
        let mut args = vec!["unshare", "--mount"];
        args.extend(unshare);
        let file = file.to_str().expect("text");
        args.extend(["sh", "-c", script, PROGRAM, file]);
        let mut process = lab.host.start(&args);
        process.wait();
        (process.out(), process.err())
    };
    let (_, err) = run(&[]);
    assert!(err.contains("mount namespace of its own"), "{err}");
    // The first process is in the same mount namespace, as on a host.
    let (out, err) = run(&["--pid", "--fork", "--mount-proc"]);
    assert_eq!(out, "+ 80:8080\n1\n80:8080\n- 80:8080\n", "{err}");
    let mounts = |when: &str| fs::read_to_string(file.with_extension(when)).expect(when);
    assert_eq!(mounts("before"), mounts("after"));
    assert!(!mounts("before").contains(" bpf "));
    host.down();
}

/// Anybody may take the names by which commands find each other: then they say
/// so, obey nobody, and root gets out.
fn forged_control() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    host.kill_follower();
    let script = "import os, socket, time\n\
                  os.setgid(65534); os.setuid(65534)\n\
                  names = [b'\\0portredir.control', b'\\0portredir']\n\
                  kept = [socket.socket(socket.AF_UNIX) for name in names]\n\
                  for one, name in zip(kept, names): one.bind(name); one.listen()\n\
                  print('ready', flush=True)\n\
                  while True: time.sleep(1)";
    let mut forger = lab.host.start(&["python3", "-c", script]);
    forger.wait_for_words("ready");
    let said = format!("process {} of user 65534", forger.id());
    // What is pinned can be read all the same.
    assert_eq!(host.rules(), ["80:8080"]);
    let error = host.fails(1, &["add", "81:8080"]);
    assert!(error.contains(&said), "{error}");
    host.run(&["down", "--force"]);
    forger.kill();
    host.down();
}

/// What the unit of systemd starts, stops and reloads; and what is there after
/// the machine was started again.
fn service() {
    let lab = Lab::new(&CELL);
    let server = Echo::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let unit = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../packaging/systemd/portredir.service"
    );
    let unit = fs::read_to_string(unit).expect("the unit");
    let line = |key: &str| {
        let key = format!("{key}=/usr/bin/portredir ");
        let line = unit.lines().find_map(|line| line.strip_prefix(&key));
        let line = line.unwrap_or_else(|| panic!("{key}"));
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let config = lab.dir.0.join("etc");
    fs::create_dir(&config).expect("a directory");
    let write = |text: &str| fs::write(config.join("rules.toml"), text).expect("write a file");
    let notify = lab.dir.0.join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&notify).expect("a socket");
    socket.set_nonblocking(true).expect("a socket");
    let start = |key: &str| {
        let mut args = vec![
            "env".to_owned(),
            format!("PORTREDIR_CONFIG={}", config.display()),
            format!("NOTIFY_SOCKET={}", notify.display()),
            "WATCHDOG_USEC=300000".to_owned(),
            PROGRAM.to_owned(),
        ];
        args.extend(line(key));
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        lab.host.start(&args)
    };
    let told = |words: &str| {
        wait_for(words, || {
            let mut buffer = [0; 256];
            let length = socket.recv(&mut buffer).ok()?;
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            text.contains(words).then_some(())
        });
    };
    write("iface = 'h0'\nrules = ['80:8080/both']\n");
    assert!(start("ExecStartPre").wait().success());
    let mut main = start("ExecStart");
    told("READY=1");
    told("WATCHDOG=1");
    reaches(&lab, 80, &server);
    // Reload: first a file that is wrong.
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    conn.echo(b"before the reload");
    write("rules = ['80:']\n");
    main.signal(Signal::SIGHUP);
    main.wait_for_words("not reloaded");
    assert_eq!(host.rules(), ["80:8080/both"]);
    write("iface = 'h0'\nrules = ['81:8080/both']\n");
    main.signal(Signal::SIGHUP);
    told("RELOADING=1");
    told("READY=1");
    assert_eq!(host.rules(), ["81:8080/both"]);
    conn.echo(b"after the reload");
    reaches(&lab, 81, &server);
    // A crash leaves everything as it is, and the next start finds it.
    main.kill();
    reaches(&lab, 81, &server);
    let mut main = start("ExecStart");
    told("READY=1");
    conn.echo(b"after a crash");
    let mut stop = start("ExecStop");
    drop(conn);
    assert!(stop.wait().success(), "{}", stop.err());
    assert!(main.wait().success(), "{}", main.err());
    assert_eq!(state(&lab), host.before);
    // The machine starts again: nothing is there but the files.
    let mut main = start("ExecStart");
    told("READY=1");
    reaches(&lab, 81, &server);
    host.run(&["down"]);
    assert!(main.wait().success());
    host.down();
}

fn files() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let dir = lab.dir.0.join("etc");
    let [dir, file] =
        [dir.clone(), dir.join("rules.toml")].map(|path| path.to_str().expect("text").to_owned());
    host.up(&[
        "--hide-target",
        "80:8080",
        "443:8443/both",
        "from",
        "10.0.0.0/8",
        "on",
        "h0",
    ]);
    let rules = host.rules();
    host.run(&["save", &file]);
    assert_eq!(host.run(&["check", &dir]), "2 rules are right\n");
    host.run(&["down"]);
    host.run(&["up", "--config", &dir]);
    assert_eq!(host.rules(), rules);
    let settings = &host.status()["settings"];
    assert_eq!(
        (&settings["iface"], &settings["hide-target"]),
        (&"h0".into(), &true.into())
    );
    // What is typed beats the file.
    host.run(&["up", "--config", &dir, "--hide-target=false"]);
    assert_eq!(host.status()["settings"]["hide-target"], false);
    assert_eq!(host.run(&["apply", "-f", &dir]), "+ hide-target\n");
    host.down();
}

fn lock_out() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let error = host.fails(1, &["up", "22:2222"]);
    assert!(error.contains("port 22, where SSH listens"), "{error}");
    assert!(!host.pins().exists());
    host.up(&["80:8080"]);
    let ssh = "SSH_CONNECTION=10.9.1.2 50000 10.9.1.1 2022";
    // As sudo does: those below do not get it.
    let script = format!("env -u SSH_CONNECTION {PROGRAM} add 2022:8080; exit $?");
    let mut shell = lab.host.start(&["env", ssh, "sh", "-c", &script]);
    assert_eq!(shell.wait().code(), Some(1));
    assert!(
        shell.err().contains("the SSH connection"),
        "{}",
        shell.err()
    );
    host.run(&["add", "--force", "22:2222"]);
    assert_eq!(host.rules(), ["80:8080", "22:2222"]);
    host.down();
}

fn hide_target() {
    let lab = Lab::new(&CELL);
    let server = Echo::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let mut older = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(8080));
    older.echo(b"before");
    host.run(&["up", "--hide-target", "80:8080/both"]);
    reaches(&lab, 80, &server);
    older.echo(b"after");
    let start = Instant::now();
    let direct = |proto| Conn::dial(&lab.client, proto, 0, Family::V4.host(8080));
    let mut udp = direct(Proto::Udp).expect("a socket");
    udp.send(b"directly").expect("send");
    assert!(!udp.hears_within(Duration::from_millis(300)));
    // Nobody answers a SYN.
    assert!(
        lab.client
            .run(&["sh", "-c", "curl -s --max-time 1 10.9.1.1:8080; echo $?"])
            .contains("28")
    );
    note(&format!("{:?}", start.elapsed()));
    // Clients on the host itself do reach it.
    let mut local = Conn::to(&lab.host, Proto::Tcp, 0, Family::V4.host(8080));
    local.echo(b"from the host");
    let drops = &host.status()["drops"]["hidden"];
    assert!(drops.as_u64() >= Some(2), "{drops}");
    host.down();
}

fn if_listening() {
    for engine in ["tc", "xdp", "socket"] {
        let lab = Lab::new(&CELL);
        let own = Echo::start(&lab.host, 80);
        let host = Host::of(&lab);
        let protocols: &[Proto] = if engine == "socket" {
            &[Proto::Tcp]
        } else {
            &PROTOS
        };
        let rule = if engine == "socket" {
            "80:8080"
        } else {
            "80:8080/both"
        };
        let reaches = |server: &Echo, from: &crate::namespace::Namespace, when: &str| {
            for &proto in protocols {
                let message = format!("{engine} {proto:?} {when}");
                let mut conn = Conn::to(from, proto, 0, Family::V4.host(80));
                conn.echo(message.as_bytes());
                server.peer(proto, message.as_bytes());
            }
        };
        host.run(&[
            "up",
            "--iface",
            "all",
            "--engine",
            engine,
            "--if-listening",
            rule,
        ]);
        reaches(&own, &lab.client, "without a server");
        reaches(&own, &lab.host, "without a server");
        let target = Echo::start(&lab.host, 8080);
        wait_for("the server to be known", || {
            let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
            conn.echo(b"who is there?");
            target.has_heard(b"who is there?").then_some(())
        });
        reaches(&target, &lab.client, "with a server");
        reaches(&target, &lab.host, "with a server");
        drop(target);
        reaches(&own, &lab.client, "after the server");
        host.run(&["down", "--drain-timeout", "0"]);
        host.down();
    }
}

/// Root with no more rights than are needed; they are enough for all commands.
fn fewest_capabilities() {
    let lab = Lab::new(&CELL);
    let server = Echo::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let run = |args: &[&str]| {
        let mut all = vec![
            "setpriv",
            "--bounding-set=-all,+bpf,+perfmon,+net_admin",
            "--inh-caps=-all",
            "--no-new-privs",
            "--",
            PROGRAM,
        ];
        all.extend(args);
        let mut process = lab.host.start(&all);
        let status = process.wait();
        assert!(status.success(), "{args:?}: {}", process.err());
    };
    // The directory for pins is there on every machine with systemd.
    host.up(&["81:8080"]);
    host.run(&["down"]);
    run(&["up", "--iface", "all", "80:8080/both"]);
    reaches(&lab, 80, &server);
    run(&["add", "81:8080/both"]);
    run(&["up", "--iface", "all", "81:8080/both"]);
    reaches(&lab, 81, &server);
    let pid = host.status()["pid"].as_u64().expect("a pid");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let caps = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.expect(name).trim(), 16).expect("a mask")
    };
    // CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF
    let needed = 1 << 12 | 1 << 38 | 1 << 39;
    assert_eq!(
        (caps("CapPrm:"), caps("CapEff:"), caps("CapInh:")),
        (needed, needed, 0)
    );
    run(&["down"]);
    host.down();
}

/// Numbers below others (xorshift64); `PORTREDIR_TEST_SEED` gives other ones.
fn random(part: u64) -> impl FnMut(u64) -> u64 {
    let seed = std::env::var("PORTREDIR_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let mut state =
        seed.unwrap_or(0x9e37_79b9_7f4a_7c15_u64) ^ (part + 1).wrapping_mul(0x2545_f491_4f6c_dd1d);
    move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

/// How often a command is killed, in all.
const KILLS: u64 = 500;
const KILL_PARTS: u64 = 10;

/// Kills commands at random moments: what there is afterwards is what there was
/// before, or what was asked for, and who is not concerned does not notice.
fn kill(part: u64) {
    DEADLINE.set(Some(Instant::now() + slow(Duration::from_secs(240))));
    let mut random = random(part);
    let lab = Lab::new(&CELL);
    let server = Echo::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let file = lab.dir.0.join("rules.toml");
    let file_name = file.to_str().expect("text");
    // By a rule that nobody takes away, and past all rules.
    let mut direct = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(8080));
    let mut kept: Option<Conn> = None;
    let mut now: Option<BTreeSet<String>> = None;
    let set = |rules: &[&str]| {
        rules
            .iter()
            .map(|rule| (*rule).to_owned())
            .collect::<BTreeSet<_>>()
    };
    // How long a command takes here.
    let start = Instant::now();
    host.up(&["80:8080"]);
    let longest = u64::try_from(start.elapsed().as_micros()).expect("soon");
    host.run(&["down", "--drain-timeout", "0"]);
    let (mut killed, mut was_old, mut was_new) = (0, 0, 0);
    for number in 0..KILLS / KILL_PARTS {
        let rule = format!("{}:8080", 1000 + number);
        let many = [
            "80:8080",
            "2000-4000:3000-5000/both",
            "81:8080 from 10.9.0.0/16",
            &rule,
        ];
        let (args, then) = match (&now, random(4)) {
            (None, _) => (
                vec!["up", "--iface", "h0", "80:8080"],
                Some(set(&["80:8080"])),
            ),
            (Some(_), 0) => (vec!["down", "--drain-timeout", "0"], None),
            (Some(_), 1) => {
                let text = format!("rules = {many:?}");
                fs::write(&file, text).expect("write a file");
                (vec!["apply", "-f", file_name], Some(set(&many)))
            }
            (Some(rules), 2) => {
                let mut rules = rules.clone();
                rules.insert(rule.clone());
                (vec!["add", &rule], Some(rules))
            }
            (Some(_), _) => (
                vec!["up", "--iface", "h0", "80:8080"],
                Some(set(&["80:8080"])),
            ),
        };
        let mut command = host.start(&args);
        // To begin takes longer than to change.
        let limit = if now.is_none() {
            longest * 3 / 2
        } else {
            longest * 2 / 3
        };
        std::thread::sleep(Duration::from_micros(random(limit)));
        killed += u32::from(command.try_wait().is_none());
        command.kill_if_running();
        // Whoever comes next clears up.
        let mut read = host.start(&["rules"]);
        let status = read.wait();
        let found = match status.code() {
            Some(0) => Some(
                read.out()
                    .lines()
                    .map(str::to_owned)
                    .collect::<BTreeSet<_>>(),
            ),
            Some(3) => None,
            _ => panic!("{args:?}: {}", read.err()),
        };
        assert!(
            found == now || found == then,
            "{args:?} in round {number}: {found:?}, not {now:?} or {then:?}"
        );
        if now != then {
            *(if found == then {
                &mut was_new
            } else {
                &mut was_old
            }) += 1;
        }
        direct.echo(format!("directly, round {number}").as_bytes());
        let is_redirecting = answers(&lab, Proto::Tcp, 80);
        assert_eq!(
            is_redirecting,
            found.is_some(),
            "{args:?} in round {number}: {found:?}"
        );
        if found.is_some() {
            let conn = kept
                .get_or_insert_with(|| Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80)));
            let message = format!("by port 80, round {number}");
            conn.echo(message.as_bytes());
            server.peer(Proto::Tcp, message.as_bytes());
        } else {
            kept = None;
        }
        now = found;
    }
    note(&format!("{killed} killed, {was_old} old, {was_new} new"));
    assert!(
        killed > 10 && was_old > 5 && was_new > 5,
        "{killed} killed, {was_old} old, {was_new} new"
    );
    drop(kept);
    host.down();
}

/// Kills commands at the system calls around the switch: the one who follows
/// tells of the rules that are valid.
fn kill_at_calls() {
    DEADLINE.set(Some(Instant::now() + slow(Duration::from_secs(240))));
    // How many of each, counted from the end of the command.
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
    for command in [&["add"][..], &["up", "--iface", "h0", "80:8080"]] {
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
                let (follower, pinned) = (host.rules().into_iter().collect(), pinned());
                was_new += u32::from(pinned != before);
                assert_eq!(pinned, follower, "killed at {call} {number} of {command:?}");
            }
        }
    }
    note(&format!("{killed} killed, {was_new} new"));
    assert!(killed > 25 && was_new > 5, "{killed} killed, {was_new} new");
    host.down();
}

/// Bytes of an answer.
const BODY: usize = 20_000;

/// Requests by many connections, and a stream, while programs and rules are
/// replaced again and again.
fn change_under_load(engine: &'static str) {
    DEADLINE.set(Some(Instant::now() + slow(Duration::from_secs(240))));
    let cell = Cell {
        engine,
        is_offloaded: true,
        family: Family::V4,
    };
    let lab = Lab::new(&cell);
    let _servers = [80, 8080, 9090].map(|port| serve_http(&lab.host, port, BODY));
    let mut iperf = lab
        .host
        .start(&["iperf3", "--server", "--port", "5301", "--forceflush"]);
    iperf.wait_for_words("listening");
    let host = Host::of(&lab);
    let other = copy_for_everybody(&lab.dir.0);
    host.up(&["--engine", engine, "80:8080", "5201:5301"]);
    let mut stream = lab.client.start(&[
        "iperf3",
        "--client",
        "10.9.1.1",
        "--port",
        "5201",
        "--time",
        "200",
        "--bitrate",
        "200M",
        "--json",
    ]);
    let clients = Many::start(&lab, 200, Family::V4.host(80), BODY);
    wait_for("answers", || (clients.answers() > 400).then_some(()));
    let file = lab.dir.0.join("rules.toml");
    for round in 0..12 {
        let target = [8080, 9090][round % 2];
        let rules = format!(
            "rules = ['5201:5301', '80:{target}', '{}:8080']",
            1000 + round
        );
        fs::write(&file, rules).expect("write a file");
        host.run(&["apply", "-f", file.to_str().expect("text")]);
        let program = [PROGRAM, &other][round % 2];
        let rule = format!("80:{target}");
        let args = [
            program,
            "up",
            "--iface",
            "h0",
            "--engine",
            engine,
            &rule,
            "5201:5301",
        ];
        lab.host.run(&args);
    }
    let answers = clients.end();
    note(&format!("{answers} answers"));
    assert!(stream.try_wait().is_none(), "{}", stream.out());
    stream.signal(Signal::SIGINT);
    stream.wait();
    let report: Value = serde_json::from_str(&stream.out()).expect("iperf3's report");
    let seconds = report["intervals"].as_array().expect("intervals");
    let silent = seconds
        .iter()
        .filter(|second| second["sum"]["bytes"] == 0)
        .count();
    assert_eq!(silent, 0, "seconds without a byte");
    drop(iperf);
    host.down();
    lab.check_checksums();
}
