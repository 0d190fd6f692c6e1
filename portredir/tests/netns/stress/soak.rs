//! Mixed traffic while rules, interfaces and programs change all the time: not one
//! wrong byte, no connection reset, no request without an answer, nothing left.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lab::extent::{self, allow};
use crate::lab::namespace::Namespace;
use crate::lab::process::{note, wait_for, wait_within};
use crate::lab::program::attached;
use crate::lab::usage::Usage;
use crate::lab::{Family, Lab, add_addrs};
use crate::lifecycle::host::Host;
use crate::peer::conn::{Conn, Proto};
use crate::peer::http::http_server;
use crate::peer::udp::{UdpClient, UdpServer};
use crate::stress::workers::Workers;
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    for engine in ["tc", "xdp"] {
        let name = format!("soak/{engine}");
        tests.add(name, &["python3"], move || soak(engine));
    }
    tests.add("soak/rules_and_interfaces", &[], rules_and_interfaces);
    tests.add("soak/one_client_port", &[], one_client_port);
}

/// The rules that stay. By port 90 now one server is reached, now the other.
const RULES: [&str; 3] = ["80:8080/both", "82:8000", "90:8080/both"];

/// How long an answer may take where everybody else uses the same processors.
pub const PATIENCE: Duration = Duration::from_secs(10);

fn soak(engine: &'static str) {
    let time = extent::soak();
    allow(time + Duration::from_secs(150));
    let lab = Lab::new(&Cell {
        engine,
        is_offloaded: true,
        family: Family::V4,
    });
    let _web = http_server(&lab.host, 8000);
    let _echoes = [8080, 9090].map(|port| EchoServer::start(&lab.host, port));
    let _udp_servers = [8080, 9090].map(|port| UdpServer::start(&lab.host, port));
    let host = Host::of(&lab);
    let mut up = vec!["up", "--iface", "h*", "--engine", engine];
    up.extend(RULES);
    host.run(&up);
    let hooks = attached(&lab.host);
    let resets = resets(&lab);
    let stop = AtomicBool::default();
    let rounds = std::thread::scope(|scope| {
        let mut workers = Workers::start(scope, &lab, &stop);
        // The workers stop also on a panic, or the scope would never end.
        let stop = Stop(&stop);
        let rounds = changes(&lab, &host, (engine, time), &mut workers);
        drop(stop);
        workers.end();
        rounds
    });
    assert_eq!(attached(&lab.host), hooks);
    let status = host.status();
    let drops = status["drops"].as_object().expect("drops");
    note(&format!("{rounds} rounds of changes, {time:?}"));
    assert!(drops.values().all(|count| *count == 0), "drops: {drops:?}");
    assert_eq!(self::resets(&lab), resets, "connections reset");
    // A RST for a segment that is repeated after the end means nothing.
    let sent = [&lab.client, &lab.host].map(|namespace| namespace.tcp_counter("OutRsts"));
    note(&format!("RST that client and host sent: {sent:?}"));
    lab.check_checksums();
    host.down();
}

/// Rules and interfaces come, are used, and go, one like the other: nothing is left
/// of any.
fn rules_and_interfaces() {
    let lab = Lab::new(&Cell {
        engine: "auto",
        is_offloaded: true,
        family: Family::V4,
    });
    let _echo = EchoServer::start(&lab.host, 8080);
    let _udp_server = UdpServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.run(&["up", "--iface", "h*", "80:8080/both"]);
    // The watcher process stays the same one.
    let watcher = host.status()["pid"].as_u64().expect("a pid");
    let watcher = u32::try_from(watcher).expect("a pid");
    let mut before = None;
    for round in 0..8 {
        let port = 1000 + round;
        let rule = format!("{port}:8080/both");
        host.run(&["add", &rule]);
        // TCP alone: a UDP flow would be kept for some time after its rule.
        for to in Family::BOTH.map(|family| family.host(port)) {
            Conn::to(&lab.client, Proto::Tcp, 0, to).echo(b"by a new rule");
        }
        if round % 2 == 0 {
            come_and_go(&lab);
        }
        host.run(&["rm", &rule]);
        let usage = settled(&lab, watcher);
        match &before {
            // An address that this host had keeps its number in a map, 80 bytes, until the
            // numbers run out: flows that dialled it still have to be answered by it.
            Some(before) => usage.check_within(before, 2 * 80, &format!("round {round}")),
            // All one-time allocations have been made by now.
            None if round == 3 => before = Some(usage),
            None => {}
        }
    }
    host.down();
}

/// Two connections of one client port, by two rules, when one of the rules led to
/// the other's target before.
fn one_client_port() {
    let lab = Lab::new(&Cell {
        engine: "auto",
        is_offloaded: true,
        family: Family::V4,
    });
    let _echoes = [8080, 9090].map(|port| EchoServer::start(&lab.host, port));
    let host = Host::of(&lab);
    host.up(&["80:8080", "90:8080"]);
    let connect = |port| Conn::connect(&lab.client, Proto::Tcp, 41_000, Family::V4.host(port));
    // This connection keeps the earlier target.
    let mut older = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(90));
    older.echo(b"before the change");
    let mut first = connect(80).expect("a connection");
    first.echo(b"before the change");
    host.run(&["rm", "90:8080"]);
    host.run(&["add", "90:9090"]);
    first.echo(b"after the change");
    let second = connect(90).and_then(|mut second| {
        second.send(b"words")?;
        second.receive(5)
    });
    older.echo(b"beside the second");
    let first = first.send(b"words").and_then(|()| first.receive(5));
    drop(older);
    host.down();
    for (which, heard) in [("first", first), ("second", second)] {
        let words = heard.unwrap_or_else(|error| panic!("the {which}: {error}"));
        assert_eq!(words, b"words", "the {which}");
    }
}

/// Tells the workers to end.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A change a second; how many there were.
fn changes(
    lab: &Lab,
    host: &Host<'_>,
    (engine, time): (&str, Duration),
    workers: &mut Workers<'_>,
) -> usize {
    let pins = || -> BTreeSet<_> {
        let names = std::fs::read_dir(host.pins()).expect("the pins");
        names.map(|name| name.expect("a pin").file_name()).collect()
    };
    let file = lab.dir.0.join("rules.toml");
    let apply = |rules: &[&str]| {
        std::fs::write(&file, format!("rules = {rules:?}")).expect("write a file");
        host.run(&["apply", "-f", file.to_str().expect("text")]);
    };
    let watcher = || u32::try_from(host.status()["pid"].as_u64().expect("a pid")).expect("a pid");
    let end = Instant::now() + time;
    let mut round = 0;
    let mut before = None;
    // The last ones begin before the end, and all that they do is undone.
    while Instant::now() < end || round < 5 {
        let next = Instant::now() + Duration::from_secs(1);
        let rule = format!("{}:8080/both", 1000 + round % 500);
        host.run(&["add", &rule]);
        apply(&[RULES[0], RULES[1], "90:9090/both", &rule]);
        come_and_go(lab);
        host.run(&["rm", &rule]);
        apply(&RULES);
        if round % 10 == 9 {
            // `up` replaces the programs in the same places.
            let mut up = vec!["up", "--iface", "h*", "--engine", engine];
            up.extend(RULES);
            host.run(&up);
        }
        workers.look();
        round += 1;
        if round == 4 {
            // All one-time allocations have been made by now.
            before = Some((settled(lab, watcher()), pins()));
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let (usage, names) = before.expect("some rounds");
    // Flows of earlier rules may count for them, some at one moment, some at another.
    settled(lab, watcher()).check_within(&usage, 4096, "all changes");
    assert_eq!(pins(), names);
    round
}

/// The usage of the watcher process, once it has seen the other interface go.
fn settled(lab: &Lab, watcher: u32) -> Usage {
    wait_for("the other interface to be forgotten", || {
        let is_other = |hook: &String| hook.starts_with("h7 ");
        (!attached(&lab.host).iter().any(is_other)).then_some(())
    });
    std::thread::sleep(Duration::from_millis(300));
    Usage::of(watcher)
}

/// An interface and an address come, are used, and go.
fn come_and_go(lab: &Lab) {
    lab.host.ip("link add h7 type veth peer name c7");
    lab.host
        .ip(&format!("link set c7 netns {}", lab.client.name));
    add_addrs(&lab.host, "h7", (7, 1));
    add_addrs(&lab.client, "c7", (7, 2));
    lab.host.ip("addr add 10.9.1.77/24 dev h0");
    let fresh = [[10, 9, 7, 1], [10, 9, 1, 77]].map(|addr| SocketAddr::from((addr, 80)));
    for to in fresh {
        // Refused until the watcher has seen it; the limit is long, as the machine may be busy.
        let way = format!("a way to {to}");
        let mut conn = wait_within(Duration::from_secs(60), &way, || {
            Conn::connect(&lab.client, Proto::Tcp, 0, to).ok()
        });
        conn.echo(&[7; 3000]);
    }
    let mut udp_client = UdpClient::new(&lab.client, 0, fresh[0], "by a new way");
    udp_client.request(1, PATIENCE).expect("an answer");
    lab.host.ip("addr del 10.9.1.77/24 dev h0\nlink del h7");
}

/// Connections that were reset, on both hosts.
fn resets(lab: &Lab) -> [u64; 2] {
    [&lab.client, &lab.host].map(|namespace| namespace.tcp_counter("EstabResets"))
}

/// A TCP echo server with a thread for each connection.
struct EchoServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    fn start(namespace: &Namespace, port: u16) -> Self {
        let any = (Ipv6Addr::UNSPECIFIED, port);
        let listener = namespace.listen(any);
        listener.set_nonblocking(true).expect("nonblocking");
        let stop = Arc::new(AtomicBool::default());
        let thread = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok((stream, _)) = listener.accept() else {
                        std::thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    stream.set_nonblocking(false).expect("blocking");
                    // The thread ends with its connection; the client finds wrong bytes.
                    std::thread::spawn(move || io::copy(&mut &stream, &mut &stream));
                }
            })
        };
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
