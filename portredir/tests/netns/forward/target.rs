//! Several targets of a rule under many flows: drained, killed, started again, all gone.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::rules::Rule;
use super::site::Site;
use super::subject::{Layout, Place, Subject, Variant};
use super::talk::{goes_on, still_talks};
use crate::Tests;
use crate::conformance::client::{Conversation, greeting};
use crate::conformance::server::{Manner, Server};
use crate::conformance::site::Offload;
use crate::lab::Family;
use crate::lab::extent::allow;
use crate::lab::process::{note, slow, wait_for, wait_within};
use crate::lab::program::PROGRAM;
use crate::peer::conn::{Conn, Proto};

pub fn add(tests: &mut Tests) {
    type Test = (&'static str, fn(&mut Site, Family));
    const TESTS: [Test; 9] = [
        ("drain_and_return", drain_and_return),
        ("death_and_return", death_and_return),
        ("death_of_a_port", death_of_a_port),
        ("death_of_a_host", death_of_a_host),
        ("weights", weights),
        ("all_down", all_down),
        ("all_down_with_else", all_down_with_else),
        ("without_a_watcher", without_a_watcher),
        ("forgotten", forgotten),
    ];
    for (name, test) in TESTS {
        for family in Family::BOTH {
            for engine in ["auto", "tc"] {
                let name = format!("forward/targets/{name}/{family:?}/{engine}");
                tests.add(name, &[], move || {
                    allow(Duration::from_secs(120));
                    let layout = Layout::Bridge(true);
                    let offload = Offload::On;
                    let variant = Variant { layout, offload };
                    let mut site = Site::idle(Subject::Engine(engine), variant);
                    test(&mut site, family);
                    site.finish();
                });
            }
        }
    }
}

/// Connections, and as many UDP flows.
const FLOWS: usize = 200;

/// The health check of all rules here, and what it promises.
const CHECK: &str = "check tcp every 200ms";
const EVERY: Duration = Duration::from_millis(200);
const FALL: u32 = 3;

/// A time in which targets without flows are forgotten: every ten seconds some are.
const SWEPT: Duration = Duration::from_secs(40);

pub(super) fn target(site: &Site, family: Family, place: Place) -> SocketAddr {
    SocketAddr::new(site.addr(place, family), 8080)
}

/// Redirects 80 to F and G, and waits until both are up.
pub(super) fn start(site: &mut Site, family: Family, options: &'static str) {
    let targets = [Place::F, Place::G].map(|place| target(site, family, place));
    let rule = Rule::new(site.own(family, 80), &targets).with(options);
    site.up(&[rule]);
    for target in targets {
        wait_until(site, target, "up");
    }
}

/// Waits until a target is in a state, as `targets --json` shows it.
pub(super) fn wait_until(site: &Site, target: SocketAddr, state: &str) {
    wait_for(&format!("{target} to be {state}"), || {
        (state_of(site, target) == state).then_some(())
    });
}

/// The object that `targets --json` prints.
fn targets(site: &Site) -> Value {
    let shown = site.lab.host.run(&[PROGRAM, "targets", "--json"]);
    serde_json::from_str(&shown).expect("JSON")
}

/// The reason why a target is down.
fn why_down(site: &Site, target: SocketAddr) -> String {
    let shown = shown(site, target);
    shown["why"].as_str().expect("a reason").to_owned()
}

fn state_of(site: &Site, target: SocketAddr) -> String {
    let shown = shown(site, target);
    shown["state"].as_str().expect("a state").to_owned()
}

/// A target as `targets --json` shows it.
fn shown(site: &Site, target: SocketAddr) -> Value {
    let shown = targets(site);
    let targets = shown["targets"].as_array().expect("targets");
    let mut targets = targets.iter();
    let found = targets.find(|shown| shown["target"] == target.to_string());
    let found = found.unwrap_or_else(|| panic!("targets --json has no {target}: {shown}"));
    found.clone()
}

/// The words for `drain` and `undrain`.
pub(super) fn addr_words(addr: IpAddr) -> String {
    match addr {
        IpAddr::V4(addr) => addr.to_string(),
        IpAddr::V6(addr) => format!("[{addr}]"),
    }
}

/// Begins a flow. Its client port had none before, whose target it would keep.
pub(super) fn begin(site: &Site, family: Family, proto: Proto) -> Conversation {
    let to = site.own(family, 80);
    let begun = Conversation::begin(&site.lab.client, proto, site.port(), to);
    begun.unwrap_or_else(|error| panic!("{proto:?} to {to}: {error}"))
}

fn many(site: &Site, family: Family, proto: Proto) -> Vec<Conversation> {
    (0..FLOWS).map(|_| begin(site, family, proto)).collect()
}

/// The number of flows of each target.
fn shares(flows: &[Conversation]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for flow in flows {
        *shares.entry(flow.name.as_str()).or_default() += 1;
    }
    shares
}

fn check_shared(flows: &[Conversation], when: &str) {
    let shares = shares(flows);
    for name in ["F", "G"] {
        let count = shares.get(name).copied().unwrap_or(0);
        // Half of 200, and five times the standard deviation.
        assert!((65..=135).contains(&count), "{when}: {shares:?}");
    }
}

/// The server that a UDP flow reaches now.
pub(super) fn reaches(flow: &mut Conversation) -> String {
    let reply = flow.conn.send(b"who?").and_then(|()| flow.conn.receive(0));
    let reply = reply.unwrap_or_else(|error| panic!("a flow to {}: {error}", flow.name));
    greeting(&reply).expect("a greeting").0
}

/// Every connection continues, and every UDP flow reaches the same target.
fn check_kept(tcp: &mut [Conversation], udp: &mut [Conversation], when: &str) {
    for flow in tcp {
        let outcome = goes_on(flow);
        assert_eq!(
            outcome, "continues",
            "{when}: a connection to {}",
            flow.name
        );
    }
    for flow in udp {
        let name = reaches(flow);
        assert_eq!(name, flow.name, "{when}: a UDP flow");
    }
}

fn drain_and_return(site: &mut Site, family: Family) {
    start(site, family, CHECK);
    let f = target(site, family, Place::F);
    let mut tcp = many(site, family, Proto::Tcp);
    let mut udp = many(site, family, Proto::Udp);
    check_shared(&tcp, "at first");
    check_shared(&udp, "at first");
    let words = addr_words(f.ip());
    for round in 0..3 {
        site.lab.host.run(&[PROGRAM, "drain", &words]);
        wait_until(site, f, "drained");
        check_kept(&mut tcp, &mut udp, "while F is drained");
        for proto in [Proto::Tcp, Proto::Udp] {
            let new = many(site, family, proto);
            assert_eq!(
                shares(&new),
                [("G", FLOWS)].into(),
                "new while F is drained"
            );
        }
        site.lab.host.run(&[PROGRAM, "undrain", &words]);
        wait_until(site, f, "up");
        check_kept(&mut tcp, &mut udp, "after F came back");
        for proto in [Proto::Tcp, Proto::Udp] {
            check_shared(&many(site, family, proto), "after F came back");
        }
        note(&format!("round {round}"));
    }
}

/// Ends the servers of F, as when its process is killed, and starts them again.
fn death_and_return(site: &mut Site, family: Family) {
    die_and_return(site, family, CHECK);
}

/// Does so where the check is a datagram, which F's host refuses.
fn death_of_a_port(site: &mut Site, family: Family) {
    // Clients that ask all the time would use up the errors that F's host may send, and the
    // check would get none.
    for key in ["ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"] {
        site.f.sysctl(key, "0");
    }
    site.f.sysctl("ipv4/icmp_msgs_per_sec", "100000");
    site.f.sysctl("ipv4/icmp_msgs_burst", "100000");
    die_and_return(site, family, "check udp every 200ms");
}

fn die_and_return(site: &mut Site, family: Family, check: &'static str) {
    start(site, family, check);
    let f = target(site, family, Place::F);
    let mut tcp = many(site, family, Proto::Tcp);
    let udp = many(site, family, Proto::Udp);
    let (of_f, mut of_g): (Vec<_>, Vec<_>) = udp.into_iter().partition(|flow| flow.name == "F");
    // F is the first that has servers.
    let at = 1;
    drop(site.servers.remove(at));
    let died = Instant::now();
    let waited = answered_again(&of_f, died);
    let limit = slow(EVERY * FALL + Duration::from_millis(100));
    note(&format!("UDP flows of F were answered after {waited:?}"));
    assert!(waited <= limit, "answered after {waited:?}, not {limit:?}");
    wait_until(site, f, "down");
    let why = if check == CHECK {
        "refused"
    } else {
        "port unreachable"
    };
    assert_eq!(why_down(site, f), why);
    for flow in tcp.iter_mut().filter(|flow| flow.name == "G") {
        assert!(still_talks(flow).is_ok(), "a connection to G");
    }
    check_kept(&mut [], &mut of_g, "while F is down");
    let new = many(site, family, Proto::Tcp);
    assert_eq!(shares(&new), [("G", FLOWS)].into(), "new while F is down");
    let server = Server::start(&site.f, "F", 8080, Manner::Echo);
    site.servers.insert(at, server);
    wait_until(site, f, "up");
    // Nothing flips back.
    for mut flow in of_f {
        forget(&flow);
        assert_eq!(reaches(&mut flow), "G", "a flow that has moved");
    }
    check_kept(&mut [], &mut of_g, "after F came back");
    tcp.retain(|flow| flow.name == "G");
    check_kept(&mut tcp, &mut [], "after F came back");
    check_shared(&many(site, family, Proto::Tcp), "after F came back");
}

/// The kernel finds out by itself that nobody has F's address any more: a datagram without an
/// answer says nothing, and the neighbour does.
fn death_of_a_host(site: &mut Site, family: Family) {
    let ip = if family == Family::V4 { "ipv4" } else { "ipv6" };
    for (key, value) in [
        ("base_reachable_time_ms", "500"),
        ("delay_first_probe_time", "1"),
        ("retrans_time_ms", "100"),
    ] {
        let key = format!("{ip}/neigh/br0/{key}");
        site.lab.host.sysctl(&key, value);
    }
    // What is known already has the timer of before.
    site.lab.host.ip("neigh flush dev br0");
    start(site, family, "check udp every 500ms");
    let f = target(site, family, Place::F);
    let mut flows = many(site, family, Proto::Udp);
    site.lab.host.ip("link set port-f down");
    wait_until(site, f, "down");
    assert_eq!(why_down(site, f), "no neighbour");
    for flow in &mut flows {
        assert_eq!(reaches(flow), "G", "while F's host is gone");
    }
    site.lab.host.ip("link set port-f up");
    wait_until(site, f, "up");
    for flow in &mut flows {
        assert_eq!(reaches(flow), "G", "after F's host came back");
    }
    check_shared(&many(site, family, Proto::Udp), "after F's host came back");
}

/// Throws away all replies and errors that came to a UDP flow.
fn forget(flow: &Conversation) {
    let Conn::Udp(socket) = &flow.conn else {
        panic!("not UDP")
    };
    socket.set_nonblocking(true).expect("nonblocking");
    loop {
        match socket.recv(&mut [0; 512]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            _ => {}
        }
    }
    socket.set_nonblocking(false).expect("blocking");
}

/// How long after a moment the last of these flows was answered by G.
fn answered_again(flows: &[Conversation], since: Instant) -> Duration {
    let socket = |flow: &Conversation| {
        let Conn::Udp(socket) = &flow.conn else {
            panic!("not UDP")
        };
        let socket = socket.try_clone().expect("a socket");
        // Of both copies: `forget` sets it back.
        socket.set_nonblocking(true).expect("nonblocking");
        socket
    };
    let mut waiting: Vec<UdpSocket> = flows.iter().map(socket).collect();
    let mut last = Duration::ZERO;
    while !waiting.is_empty() {
        assert!(
            since.elapsed() < slow(Duration::from_secs(10)),
            "{} flows",
            waiting.len()
        );
        for socket in &waiting {
            // The target's host may have refused the one before.
            let _ = socket.send(b"who?");
        }
        std::thread::sleep(Duration::from_millis(5));
        waiting.retain(|socket| {
            let mut buffer = [0; 512];
            let reply = socket.recv(&mut buffer);
            let name = reply.ok().and_then(|len| greeting(&buffer[..len]));
            let is_answered = name.is_some_and(|(name, ..)| name == "G");
            if is_answered {
                last = since.elapsed();
            }
            !is_answered
        });
    }
    last
}

fn weights(site: &mut Site, family: Family) {
    let [f, g] = [Place::F, Place::G].map(|place| target(site, family, place));
    let rule = Rule::new(site.own(family, 80), &[f, g]).weighing(&[3, 1]);
    site.up(&[rule.with("check none")]);
    for proto in [Proto::Tcp, Proto::Udp] {
        let flows = many(site, family, proto);
        let shares = shares(&flows);
        let of_f = shares.get("F").copied().unwrap_or(0);
        // Three quarters of 200, and five times the standard deviation.
        assert!((119..=181).contains(&of_f), "{proto:?}: {shares:?}");
    }
}

/// Ends the servers of F and G.
fn end_both(site: &mut Site, family: Family) {
    drop(site.servers.drain(1..=2));
    for place in [Place::F, Place::G] {
        let target = target(site, family, place);
        wait_until(site, target, "down");
    }
}

/// Then the rule rests: clients reach the port that they meant.
fn all_down(site: &mut Site, family: Family) {
    let host = Server::start(&site.lab.host, "80 itself", 80, Manner::Echo);
    site.servers.push(host);
    start(site, family, CHECK);
    end_both(site, family);
    for proto in [Proto::Tcp, Proto::Udp] {
        assert_eq!(begin(site, family, proto).name, "80 itself");
    }
}

/// Then clients reach what is named for that.
fn all_down_with_else(site: &mut Site, family: Family) {
    let host = Server::start(&site.lab.host, "9090", 9090, Manner::Echo);
    site.servers.push(host);
    start(site, family, "check tcp every 200ms else 9090");
    end_both(site, family);
    for proto in [Proto::Tcp, Proto::Udp] {
        assert_eq!(begin(site, family, proto).name, "9090");
    }
}

/// Then all stays as it was, commands say so, and the next watcher goes on.
fn without_a_watcher(site: &mut Site, family: Family) {
    start(site, family, CHECK);
    let [f, g] = [Place::F, Place::G].map(|place| target(site, family, place));
    // It has found F alive, and has written down when.
    wait_for("a time", || {
        targets(site)["checked_at"].is_string().then_some(())
    });
    assert_eq!(targets(site)["checking"], true);
    let status = site.lab.host.run(&[PROGRAM, "status", "--json"]);
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let pid = status["pid"].as_u64().expect("a pid").to_string();
    site.lab.host.run(&["kill", "-9", &pid]);
    wait_for("nobody to check", || {
        (targets(site)["checking"] == false).then_some(())
    });
    drop(site.servers.remove(1));
    std::thread::sleep(EVERY * (FALL + 2));
    assert_eq!(state_of(site, f), "up", "nobody has looked");
    let since = targets(site)["checked_at"]
        .as_str()
        .map(|at| at[..19].to_owned());
    let said = format!("nobody checks targets since {}", since.expect("a time"));
    for command in ["targets", "status"] {
        let text = site.lab.host.run(&[PROGRAM, command]);
        assert!(text.contains(&said), "{said} in {text}");
    }
    let mut drain = site.lab.host.start(&[PROGRAM, "drain", "192.0.2.9"]);
    assert_eq!(drain.wait().code(), Some(1));
    for words in [
        "no rule has the target 192.0.2.9",
        &f.to_string(),
        &g.to_string(),
    ] {
        assert!(drain.err().contains(words), "{words} in {}", drain.err());
    }
    site.lab.host.run(&[PROGRAM, "drain", &g.to_string()]);
    assert_eq!(state_of(site, g), "drained");
    let mut watch = site.lab.host.start(&[PROGRAM, "watch"]);
    wait_until(site, f, "down");
    assert_eq!(state_of(site, g), "drained");
    watch.signal(Signal::SIGTERM);
    assert!(watch.wait().success());
    assert!(
        watch.err().contains(&format!("target {f} of ")),
        "{}",
        watch.err()
    );
}

/// A target that its rule has no more is there until its flows have ended.
fn forgotten(site: &mut Site, family: Family) {
    start(site, family, CHECK);
    let [f, g] = [Place::F, Place::G].map(|place| target(site, family, place));
    let mut flows = many(site, family, Proto::Tcp);
    let rule = |targets: &[SocketAddr]| Rule::new(site.own(family, 80), targets).with("check tcp");
    let old = Rule::new(site.own(family, 80), &[f, g]).with(CHECK);
    site.replace(&old, &rule(&[g]));
    assert_eq!(state_of(site, f), "removed");
    check_kept(&mut flows, &mut [], "after F was removed");
    drop(flows);
    wait_within(SWEPT, "F to be forgotten", || {
        let shown = targets(site);
        let all = shown["targets"].as_array().expect("targets");
        let is_there = |shown: &Value| shown["target"] == f.to_string();
        (!all.iter().any(is_there)).then_some(())
    });
    site.lab.host.run(&[PROGRAM, "add", "81:8081"]);
    site.remove(&rule(&[g]), &Rule::new(site.own(family, 81), &[g]));
    wait_within(SWEPT, "no targets", || {
        let none = targets(site)["targets"]
            .as_array()
            .expect("targets")
            .is_empty();
        none.then_some(())
    });
}
