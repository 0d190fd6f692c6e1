//! Mixed traffic while rules, interfaces and programs change all the time: not one
//! wrong byte, no connection reset, no question without an answer, nothing left.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::lab::extent::{self, allow};
use crate::lab::namespace::Namespace;
use crate::lab::process::{note, wait_for, wait_within};
use crate::lab::program::attached;
use crate::lab::usage::Usage;
use crate::lab::{Family, Lab, add_addrs};
use crate::lifecycle::host::Host;
use crate::peer::conn::{Conn, Proto};
use crate::peer::echo;
use crate::peer::udp::{Answerer, Asker};
use crate::{Cell, Tests, message};

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
const PATIENCE: Duration = Duration::from_secs(10);

fn soak(engine: &'static str) {
    let time = extent::soak();
    allow(time + Duration::from_secs(150));
    let lab = Lab::new(&Cell {
        engine,
        is_offloaded: true,
        family: Family::V4,
    });
    let _web = echo::http(&lab.host, 8000);
    let _echoes = [8080, 9090].map(|port| Echo::start(&lab.host, port));
    let _answerers = [8080, 9090].map(|port| Answerer::start(&lab.host, port));
    let host = Host::of(&lab);
    let mut up = vec!["up", "--iface", "h*", "--engine", engine];
    up.extend(RULES);
    host.run(&up);
    let hooks = attached(&lab.host);
    let resets = resets(&lab);
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let mut workers = Workers::start(scope, &lab, &stop);
        // Also when something is wrong, or the scope would never end.
        let stop = Stop(&stop);
        let rounds = changes(&lab, &host, engine, time, &mut workers);
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
    // One for what is repeated after the end says nothing.
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
    let _echo = Echo::start(&lab.host, 8080);
    let _answerer = Answerer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.run(&["up", "--iface", "h*", "80:8080/both"]);
    // It stays the same.
    let follower = host.status()["pid"].as_u64().expect("a pid");
    let follower = u32::try_from(follower).expect("a pid");
    let mut before = None;
    for round in 0..8 {
        let port = 1000 + round;
        let rule = format!("{port}:8080/both");
        host.run(&["add", &rule]);
        // By TCP alone: a UDP flow would be kept for some time after its rule.
        for to in Family::BOTH.map(|family| family.host(port)) {
            Conn::to(&lab.client, Proto::Tcp, 0, to).echo(b"by a new rule");
        }
        if round % 2 == 0 {
            come_and_go(&lab);
        }
        host.run(&["rm", &rule]);
        let usage = settled(&lab, follower);
        match &before {
            Some(before) => usage.check_against(before, &format!("round {round}")),
            // By now all is there that is there once.
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
    let _echoes = [8080, 9090].map(|port| Echo::start(&lab.host, port));
    let host = Host::of(&lab);
    host.up(&["80:8080", "90:8080"]);
    let dial = |port| Conn::dial(&lab.client, Proto::Tcp, 41_000, Family::V4.host(port));
    // For it the earlier target is remembered.
    let mut older = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(90));
    older.echo(b"before the change");
    let mut first = dial(80).expect("a connection");
    first.echo(b"before the change");
    host.run(&["rm", "90:8080"]);
    host.run(&["add", "90:9090"]);
    first.echo(b"after the change");
    let second = dial(90).and_then(|mut second| {
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
    engine: &str,
    time: Duration,
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
    let follower = || u32::try_from(host.status()["pid"].as_u64().expect("a pid")).expect("a pid");
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
            // Other programs in the same places.
            let mut up = vec!["up", "--iface", "h*", "--engine", engine];
            up.extend(RULES);
            host.run(&up);
        }
        workers.look();
        round += 1;
        if round == 4 {
            // By now all is there that is there once.
            before = Some((settled(lab, follower()), pins()));
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let (usage, names) = before.expect("some rounds");
    // Flows of earlier rules may count for them, some at one moment, some at another.
    settled(lab, follower()).check_within(&usage, 4096, "all changes");
    assert_eq!(pins(), names);
    round
}

/// What the process that follows interfaces holds, once it has seen them go.
fn settled(lab: &Lab, follower: u32) -> Usage {
    wait_for("the other interface to be forgotten", || {
        let is_other = |hook: &String| hook.starts_with("h7 ");
        (!attached(&lab.host).iter().any(is_other)).then_some(())
    });
    std::thread::sleep(Duration::from_millis(300));
    Usage::of(follower)
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
        // Refused until it is followed. Long, as others may keep these processors busy.
        let way = format!("a way to {to}");
        let mut conn = wait_within(Duration::from_secs(60), &way, || {
            Conn::dial(&lab.client, Proto::Tcp, 0, to).ok()
        });
        conn.echo(&[7; 3000]);
    }
    let mut asker = Asker::new(&lab.client, 0, fresh[0], "by a new way");
    asker.ask(1, PATIENCE).expect("an answer");
    lab.host.ip("addr del 10.9.1.77/24 dev h0\nlink del h7");
}

/// Connections that were reset, on both hosts.
fn resets(lab: &Lab) -> [u64; 2] {
    [&lab.client, &lab.host].map(|namespace| namespace.tcp_counter("EstabResets"))
}

/// Says back what it hears, as long as it is said.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(namespace: &Namespace, port: u16) -> Self {
        let any = (Ipv6Addr::UNSPECIFIED, port);
        let listener = namespace.enter(|| TcpListener::bind(any)).expect("listen");
        listener.set_nonblocking(true).expect("nonblocking");
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok((stream, _)) = listener.accept() else {
                        std::thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    stream.set_nonblocking(false).expect("blocking");
                    // It ends with its connection; the client finds what is wrong.
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

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is done again and again, and how often it was done.
struct Worker<'a> {
    name: &'static str,
    count: Arc<AtomicU64>,
    thread: ScopedJoinHandle<'a, ()>,
}

struct Workers<'a>(Vec<Worker<'a>>);

impl<'a> Workers<'a> {
    fn start<'env>(scope: &'a Scope<'a, 'env>, lab: &'env Lab, stop: &'env AtomicBool) -> Self {
        type Work = fn(&Lab, &AtomicBool, &AtomicU64);
        const WORK: [(&str, Work); 6] = [
            ("HTTP requests", keep_alive),
            ("short connections", short),
            ("questions", ask),
            ("questions by new sockets", ask_anew),
            ("chunks of 64 KiB both ways", bulk),
            ("words after a silence", rarely),
        ];
        let workers = WORK.map(|(name, work)| {
            let count = Arc::new(AtomicU64::new(0));
            let thread = {
                let count = Arc::clone(&count);
                scope.spawn(move || work(lab, stop, &count))
            };
            Worker {
                name,
                count,
                thread,
            }
        });
        Self(workers.into())
    }

    /// Fails as soon as one has.
    fn look(&mut self) {
        if let Some(i) = self.0.iter().position(|worker| worker.thread.is_finished()) {
            self.0.swap_remove(i).end();
            panic!("a worker has ended");
        }
    }

    fn end(self) {
        self.0.into_iter().for_each(Worker::end);
    }
}

impl Worker<'_> {
    fn end(self) {
        let Self {
            name,
            count,
            thread,
        } = self;
        if let Err(panic) = thread.join() {
            let what = message(&*panic).unwrap_or("?");
            panic!("{name}: {what}");
        }
        let count = count.load(Ordering::Relaxed);
        note(&format!("{count} {name}"));
        assert!(count > 0, "no {name}");
    }
}

fn is_over(stop: &AtomicBool) -> bool {
    stop.load(Ordering::Relaxed)
}

/// Connects, from a port of its own where it is not zero.
fn tcp(lab: &Lab, from: u16, to: SocketAddr) -> TcpStream {
    let Conn::Tcp(stream) = Conn::to(&lab.client, Proto::Tcp, from, to) else {
        panic!("TCP was asked for")
    };
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Bytes of a stream, from a place on.
fn bytes(place: usize, len: usize) -> Vec<u8> {
    let byte = |place: usize| {
        (place as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_be_bytes()[0]
    };
    (place..place + len).map(byte).collect()
}

fn keep_alive(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) {
    let body = bytes(0, 20_000);
    let mut turn = 0;
    while !is_over(stop) {
        let to = Family::BOTH[turn % 2].host(82);
        turn += 1;
        let mut stream = BufReader::new(tcp(lab, 0, to));
        for request in 0..50 {
            let (head, content): (_, &[u8]) = match request {
                0 => (
                    format!(
                        "PUT / HTTP/1.1\r\nHost: lab\r\nContent-Length: {}",
                        body.len()
                    ),
                    &body,
                ),
                _ => ("GET / HTTP/1.1\r\nHost: lab".into(), b""),
            };
            let answer = request_once(&mut stream, &head, content);
            let answer =
                answer.unwrap_or_else(|error| panic!("request {request} to {to}: {error}"));
            let expected: &[u8] = if request == 0 { b"" } else { &body };
            assert!(answer == expected, "other bytes in answer {request}");
            count.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
            if is_over(stop) {
                break;
            }
        }
    }
}

fn request_once(stream: &mut BufReader<TcpStream>, head: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut request = format!("{head}\r\n\r\n").into_bytes();
    request.extend(body);
    stream.get_mut().write_all(&request)?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    assert!(line.starts_with("HTTP/1.1 200"), "{line:?}");
    let mut len = 0;
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line)?;
        if let Some(value) = line.strip_prefix("Content-Length:") {
            len = value.trim().parse().expect("a length");
        }
    }
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn short(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) {
    let ways = [80, 90, 8080, 80, 90].map(|port| Family::BOTH.map(|family| family.host(port)));
    for to in ways.as_flattened().iter().cycle() {
        if is_over(stop) {
            break;
        }
        let place = count.fetch_add(1, Ordering::Relaxed);
        let words = bytes(usize::try_from(place).expect("a place") * 100, 700);
        // It takes longer than TIME_WAIT until they are used again.
        let from = 12_000 + u16::try_from(place % 20_000).expect("a port");
        let mut stream = tcp(lab, from, *to);
        let mut heard = vec![0; words.len()];
        let talk = stream
            .write_all(&words)
            .and_then(|()| stream.read_exact(&mut heard));
        talk.unwrap_or_else(|error| panic!("a short connection to {to}: {error}"));
        assert!(heard == words, "other bytes from {to}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The ways to ask, by old and by new sockets.
fn askers(lab: &Lab) -> Vec<Asker> {
    let ways = [80, 90, 8080].map(|port| Family::BOTH.map(|family| family.host(port)));
    let asker = |to: &SocketAddr| Asker::new(&lab.client, 0, *to, &format!("asks {to}"));
    ways.as_flattened().iter().map(asker).collect()
}

fn ask_all(askers: &mut [Asker], count: &AtomicU64) {
    for asker in askers {
        if let Err(error) = asker.ask(1, PATIENCE) {
            panic!("a question of {}: {error}", asker.local());
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn ask(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) {
    let mut askers = askers(lab);
    while !is_over(stop) {
        ask_all(&mut askers, count);
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ask_anew(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) {
    while !is_over(stop) {
        ask_all(&mut askers(lab), count);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Two streams, each on its way in both directions at a time.
fn bulk(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) {
    const CHUNK: usize = 65_536;
    let mut streams = [(11_000, Family::V4, 80), (11_001, Family::V6, 90)]
        .map(|(from, family, port)| tcp(lab, from, family.host(port)));
    for round in 0.. {
        if is_over(stop) {
            break;
        }
        let chunk = bytes(round * CHUNK, CHUNK);
        for stream in &mut streams {
            let written = stream.write_all(&chunk);
            written.unwrap_or_else(|error| panic!("send chunk {round}: {error}"));
        }
        for stream in &mut streams {
            let mut heard = vec![0; CHUNK];
            let read = stream.read_exact(&mut heard);
            read.unwrap_or_else(|error| panic!("receive chunk {round}: {error}"));
            assert!(heard == chunk, "other bytes in chunk {round}");
            count.fetch_add(1, Ordering::Relaxed);
        }
        // Others use these processors as well.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Connections that say little, and are there all the time.
fn rarely(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) {
    let ways = [80, 90, 8080].map(|port| Family::BOTH.map(|family| family.host(port)));
    let ends = (10_000..).zip(ways.as_flattened());
    let mut streams: Vec<_> = ends.map(|(from, to)| tcp(lab, from, *to)).collect();
    while !is_over(stop) {
        for stream in &mut streams {
            let words = count.fetch_add(1, Ordering::Relaxed).to_be_bytes();
            let mut heard = [0; 8];
            let talk = stream
                .write_all(&words)
                .and_then(|()| stream.read_exact(&mut heard));
            talk.unwrap_or_else(|error| panic!("after a silence: {error}"));
            assert_eq!(heard, words);
        }
        std::thread::sleep(Duration::from_secs(2));
    }
}
