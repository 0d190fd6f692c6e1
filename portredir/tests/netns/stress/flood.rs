//! Floods, and tables at their limit: established connections continue, with the
//! right bytes, and no memory grows.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;

use crate::lab::extent::{self, allow};
use crate::lab::process::note;
use crate::lab::program::Redirector;
use crate::lab::usage::Usage;
use crate::lab::{Family, Lab};
use crate::peer::pair::{Acceptor, End, TcpPair};
use crate::peer::raw::{Flood, RawSender, Segment, add_spoofed_networks, spoofed_addr, tcp, udp};
use crate::peer::udp::{UdpClient, UdpServer};
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    type Test = (&'static str, &'static [&'static str], fn(&Cell));
    const ALL: &[&str] = &["xdp", "tc", "socket"];
    const REWRITING: &[&str] = &["xdp", "tc"];
    const TESTS: [Test; 9] = [
        ("syn", ALL, syn),
        ("udp", REWRITING, spray),
        ("more_connections_than_entries", ALL, more_connections),
        ("silent_connections", ALL, silent_connections),
        ("more_udp_flows_than_entries", REWRITING, more_udp_flows),
        ("every_port_is_taken", REWRITING, every_port_is_taken),
        ("collided_connections", REWRITING, collided_connections),
        ("port_reuse", ALL, port_reuse),
        ("flows", ALL, flows),
    ];
    for (name, engines, test) in TESTS {
        for &engine in engines {
            let cell = Cell {
                engine,
                is_offloaded: true,
                family: Family::V4,
            };
            tests.add(format!("flood/{name}/{engine}"), &[], move || test(&cell));
        }
    }
}

/// The smallest number of entries.
const LEAST: usize = 1024;
const SMALLEST: [&str; 4] = ["--max-tcp-flows", "1024", "--max-udp-flows", "1024"];

/// How long all of many conversations may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn start(cell: &Cell, lab: &Lab, args: &[&str]) -> Redirector {
    // Engine `socket` has no UDP.
    let rules: &[&str] = match cell.engine {
        "socket" => &["80:8080", "81:8080"],
        _ => &["80:8080/both", "81:8080/both"],
    };
    Redirector::beside(cell, lab, &[args, rules].concat())
}

fn drops(report: &Value) -> String {
    let drops = report["drops"].as_object().expect("drops");
    let counts = drops.iter().filter(|(_, count)| **count != 0);
    counts
        .map(|(name, count)| format!("{name} {count} "))
        .collect()
}

/// A number of connections, a fifth of them direct, half of each family. Each has
/// a client port of its own, from `first` on.
fn open(lab: &Lab, acceptor: &Acceptor, first: u16, count: usize) -> impl Iterator<Item = TcpPair> {
    (first..).take(count).map(move |from| {
        let port = [80, 80, 80, 81, 8080][usize::from(from) / 2 % 5];
        let to = Family::BOTH[usize::from(from) % 2].host(port);
        TcpPair::new(&lab.client, acceptor, from, to)
    })
}

/// A forged segment, to a destination port or to the target port.
fn stray(number: u32) -> (IpAddr, Vec<u8>) {
    let family = Family::BOTH[number as usize % 2];
    let random = number.wrapping_mul(0x9e37_79b9);
    let port = 1024 + u16::try_from(number / 2 % 60_000).expect("a port");
    let from = SocketAddr::new(spoofed_addr(family, number / 2 % 0x1_ffff), port);
    // A pair of SYN, first to the target, is a collision once the target has an
    // open request.
    let (segment, to) = match number / 2 % 8 {
        0 => (Segment::Ack, 80),
        1 => (Segment::RstAck, 80),
        2 => (Segment::FinAck, 81),
        3 => (Segment::Syn, 8080),
        _ => (Segment::Syn, 80),
    };
    let to = family.host(to);
    (to.ip(), tcp(from, to, segment, (random, !random)))
}

/// Two forged SYN of one client port, to the target port and to a destination port.
fn colliding(number: u32) -> (IpAddr, Vec<u8>) {
    let (client, turn) = (number / 3, number % 3);
    let family = Family::BOTH[client as usize % 2];
    let port = 1024 + u16::try_from(client / 2 % 60_000).expect("a port");
    let from = SocketAddr::new(spoofed_addr(family, client / 2 % 0x1_ffff), port);
    let (segment, to) = match turn {
        0 => (Segment::Syn, 8080),
        1 => (Segment::Syn, 80),
        // The RST frees the request, so that the next one can be made.
        _ => (Segment::Rst, 8080),
    };
    let seq = client.wrapping_mul(0x9e37_79b9);
    let seq = if turn == 2 { seq.wrapping_add(1) } else { seq };
    let to = family.host(to);
    (to.ip(), tcp(from, to, segment, (seq, 0)))
}

/// A flood of forged SYN, at least ten times as many as the flow table has entries:
/// established connections continue, be they idle or not.
fn syn(cell: &Cell) {
    allow(Duration::from_secs(120));
    let lab = Lab::new(cell);
    add_spoofed_networks(&lab.host);
    let acceptor = Acceptor::start(&lab.host, 8080);
    let redirector = start(cell, &lab, &SMALLEST);
    let mut busy: Vec<_> = open(&lab, &acceptor, 11_000, 100).collect();
    busy.iter_mut()
        .for_each(|pair| pair.exchange(100, "at first"));
    // All one-time allocations have been made by now.
    let before = Usage::of(redirector.process.id());
    let floods = [("stray", stray as fn(u32) -> _), ("colliding", colliding)];
    for ((name, make), first) in floods.into_iter().zip([10_000, 12_000]) {
        let mut silent: Vec<_> = open(&lab, &acceptor, first, 100).collect();
        // At full speed the flood would leave no processor for others.
        let flood = Flood::start(&lab.client, Duration::from_millis(5), make);
        let (mut rounds, mut accepted, mut well) = (0, 0, 0);
        while flood.sent() < 16 * LEAST || rounds < 5 {
            for pair in &mut busy {
                pair.exchange(700, "in the flood");
            }
            let to = Family::BOTH[rounds % 2].host([80, 8080][rounds / 2 % 2]);
            if let Ok(mut pair) = TcpPair::open(&lab.client, &acceptor, 0, to) {
                accepted += 1;
                pair.set_patience(Duration::from_secs(2));
                let exchange = pair.try_push(300).and_then(|()| pair.try_pull(300));
                well += usize::from(exchange.is_ok());
                // What the server did not hear of must not end it: by a cookie that
                // would begin another.
                pair.close(End::Reset);
            }
            rounds += 1;
        }
        // The connections that were idle all the time: now the server sends.
        for pair in &mut silent {
            pair.exchange(300, "silent, in the flood");
        }
        let sent = flood.end();
        assert!(
            well * 2 > rounds,
            "{well} of {rounds} that came in the flood"
        );
        note(&format!(
            "{name}: {sent} packets; 200 connections in {rounds} rounds; of {rounds} that came \
             meanwhile {accepted} were accepted and {well} went well"
        ));
        for pair in silent.iter_mut().chain(&mut busy) {
            pair.exchange(300, "after the flood");
        }
    }
    Usage::of(redirector.process.id()).check_against(&before, "the flood");
    note(&drops(&redirector.stop()));
    lab.check_checksums();
}

/// Datagrams from all addresses and ports: established connections continue, and
/// every client gets the answer to its own request.
fn spray(cell: &Cell) {
    allow(Duration::from_secs(120));
    let lab = Lab::new(cell);
    add_spoofed_networks(&lab.host);
    let acceptor = Acceptor::start(&lab.host, 8080);
    let _udp_server = UdpServer::start(&lab.host, 8080);
    let redirector = start(cell, &lab, &SMALLEST);
    let mut pairs: Vec<_> = open(&lab, &acceptor, 10_000, 100).collect();
    let mut udp_clients: Vec<_> = (0..40)
        .map(|number| {
            let to = Family::BOTH[number % 2].host([80, 81, 8080][number % 3]);
            UdpClient::new(&lab.client, 0, to, &format!("asker {number}"))
        })
        .collect();
    let patience = Duration::from_millis(250);
    let request_all = |udp_clients: &mut [UdpClient]| {
        let tries = udp_clients.iter_mut().map(|udp_client| {
            let tries = udp_client.request(40, patience);
            tries.unwrap_or_else(|error| panic!("{}: {error}", udp_client.local()))
        });
        tries.map(|tries| tries - 1).sum::<usize>()
    };
    request_all(&mut udp_clients);
    pairs
        .iter_mut()
        .for_each(|pair| pair.exchange(100, "at first"));
    let before = Usage::of(redirector.process.id());
    let flood = Flood::start(&lab.client, Duration::from_micros(500), |number| {
        let family = Family::BOTH[number as usize % 2];
        let port = u16::try_from(number / 2 % 65_535).expect("a port") + 1;
        let from = SocketAddr::new(spoofed_addr(family, number / 2 % 0x1_ffff), port);
        // The same sender at two ports of one target is a collision.
        let to = family.host([80, 81, 8080][number as usize / 2 % 3]);
        (to.ip(), udp(from, to, b"x"))
    });
    let (mut rounds, mut repeated) = (0, 0);
    while flood.sent() < 10 * LEAST || rounds < 3 {
        repeated += request_all(&mut udp_clients);
        for pair in &mut pairs {
            pair.exchange(700, "in the flood");
        }
        rounds += 1;
    }
    let sent = flood.end();
    note(&format!(
        "{sent} datagrams; 40 askers in {rounds} rounds, {repeated} questions repeated"
    ));
    assert_eq!(
        request_all(&mut udp_clients),
        0,
        "questions repeated after the flood"
    );
    Usage::of(redirector.process.id()).check_against(&before, "the flood");
    note(&drops(&redirector.stop()));
    lab.check_checksums();
}

/// Twice as many connections at a time as the flow table has entries: the first
/// segment after an eviction arrives, from either end.
fn more_connections(cell: &Cell) {
    allow(Duration::from_secs(120));
    let lab = Lab::new(cell);
    let acceptor = Acceptor::start(&lab.host, 8080);
    let redirector = start(cell, &lab, &SMALLEST);
    let mut pairs = Vec::new();
    for mut pair in open(&lab, &acceptor, 10_000, 2 * LEAST) {
        // The server has greeted, as those of SSH do, or has heard something.
        let begun = match pairs.len() / 2 % 2 {
            0 => pair.try_push(64),
            _ => pair.try_pull(64),
        };
        begun.unwrap_or_else(|error| panic!("{}: {error}", pair.local));
        pairs.push(pair);
    }
    let broken = TcpPair::broken(&mut pairs, PATIENCE);
    assert!(broken.is_empty(), "{broken:?}");
    for pair in pairs.iter_mut().rev() {
        let pulled = pair.try_pull(64);
        pulled.unwrap_or_else(|error| panic!("{}: the client begins: {error}", pair.local));
    }
    drop(pairs);
    redirector.finish(&lab);
}

/// Idle connections lose their entries before either end has sent data; then the
/// server sends first.
fn silent_connections(cell: &Cell) {
    let lab = Lab::new(cell);
    let acceptor = Acceptor::start(&lab.host, 8080);
    let redirector = start(cell, &lab, &SMALLEST);
    let mut pairs: Vec<_> = open(&lab, &acceptor, 10_000, 2 * LEAST).collect();
    let broken = TcpPair::broken(&mut pairs, PATIENCE);
    redirector.finish(&lab);
    assert!(broken.is_empty(), "{broken:?}");
}

/// Twice as many UDP flows as entries: each datagram of a client is answered.
fn more_udp_flows(cell: &Cell) {
    let lab = Lab::new(cell);
    let _udp_server = UdpServer::start(&lab.host, 8080);
    let redirector = start(cell, &lab, &SMALLEST);
    let mut udp_clients: Vec<_> = (0..2 * LEAST)
        .map(|number| {
            let to = Family::BOTH[number % 2].host([80, 81, 8080][number % 3]);
            UdpClient::new(&lab.client, 0, to, &format!("asker {number}"))
        })
        .collect();
    for round in 0..3 {
        for udp_client in &mut udp_clients {
            // An answer is not lost, but may be late on a busy machine.
            let asked = udp_client.request(1, Duration::from_secs(8));
            asked.unwrap_or_else(|error| panic!("{}, round {round}: {error}", udp_client.local()));
        }
    }
    redirector.finish(&lab);
}

/// A client that uses every port it has for direct flows: where a redirected one
/// would become one of them, it is refused and counted; others do not notice.
fn every_port_is_taken(cell: &Cell) {
    let lab = Lab::new(cell);
    lab.client.ip("addr add 10.9.1.3/24 dev c0");
    let _udp_server = UdpServer::start(&lab.host, 8080);
    let acceptor = Acceptor::start(&lab.host, 8080);
    let redirector = start(cell, &lab, &["--max-udp-flows", "262144"]);
    let [first, second] = [[10, 9, 1, 2], [10, 9, 1, 3]].map(IpAddr::from);
    let to = |port| Family::V4.host(port);
    let sender = RawSender::new(&lab.client);
    let ports: Vec<_> = (1..=u16::MAX).collect();
    // Twice, should one be lost, and with time to receive them.
    for some in ports.chunks(64).chain(ports.chunks(64)) {
        let packets = some
            .iter()
            .map(|&port| udp(SocketAddr::new(first, port), to(8080), b"x"));
        let packets: Vec<_> = packets.collect();
        sender.send(to(8080).ip(), &packets);
        std::thread::sleep(Duration::from_micros(200));
    }
    const PORT: u16 = 30_000;
    // The server may still have its queue full of what came before.
    let (tries, patience) = (16, Duration::from_secs(1));
    let mut direct = UdpClient::new(&lab.client, PORT, to(8080), "direct");
    direct.request(tries, patience).expect("an answer");
    let mut refused = UdpClient::new(&lab.client, PORT, to(80), "refused");
    let asked = refused.request(3, Duration::from_millis(100));
    assert!(asked.is_err(), "a port was free");
    direct.request(tries, patience).expect("an answer");
    // With another address, or with TCP, the same port makes another flow.
    let mut other = UdpClient::at(&lab.client, SocketAddr::new(second, PORT), to(80), "other");
    other.request(tries, patience).expect("an answer");
    TcpPair::new(&lab.client, &acceptor, PORT, to(80)).exchange(100, "by TCP");
    let report = redirector.stop();
    assert_eq!(report["drops"]["no_free_port"], 3, "{report}");
    lab.check_checksums();
}

/// Connections that were given another client port keep it, however many others
/// are given one.
fn collided_connections(cell: &Cell) {
    allow(Duration::from_secs(120));
    let lab = Lab::new(cell);
    add_spoofed_networks(&lab.host);
    let acceptor = Acceptor::start(&lab.host, 8080);
    let redirector = start(cell, &lab, &[]);
    let mut pairs = Vec::new();
    for number in 0..20 {
        let family = Family::BOTH[usize::from(number) % 2];
        for port in [8080, 80] {
            let to = family.host(port);
            let mut pair = TcpPair::new(&lab.client, &acceptor, 41_000 + number, to);
            pair.exchange(100, "at first");
            let is_changed = pair.peer.port() != pair.local.port();
            // With the socket engine they are two flows anyway.
            assert_eq!(is_changed, port == 80, "{}", pair.peer);
            pairs.push(pair);
        }
    }
    // More than there are places for such ports, and each is used again.
    let flood = Flood::start(&lab.client, Duration::from_micros(100), |number| {
        let client = number / 3 % 60_000;
        let from = SocketAddr::new(spoofed_addr(Family::V4, client), 5000);
        let to = Family::V4.host([8080, 80, 80][number as usize % 3]);
        (to.ip(), udp(from, to, b"x"))
    });
    while flood.sent() < 120_000 {
        std::thread::sleep(Duration::from_millis(5));
    }
    note(&format!("{} datagrams", flood.end()));
    let broken = TcpPair::broken(&mut pairs, PATIENCE);
    let report = redirector.stop();
    note(&format!("{} {}", drops(&report), report["passes"]));
    lab.check_checksums();
    assert!(broken.is_empty(), "{broken:?}");
}

/// One client port after the other, each used again at once: whatever the one
/// before has left, also in `TIME_WAIT`, the next is another conversation.
fn port_reuse(cell: &Cell) {
    const PORTS: [u16; 3] = [80, 81, 8080];
    allow(Duration::from_secs(120));
    let lab = Lab::new(cell);
    let acceptor = Acceptor::start(&lab.host, 8080);
    let redirector = start(cell, &lab, &SMALLEST);
    let mut from = 42_000;
    for family in Family::BOTH {
        for end in [End::Server, End::Reset, End::Client] {
            for first in PORTS {
                for second in PORTS {
                    if end == End::Client && first == second {
                        // The client's own socket is in TIME_WAIT.
                        continue;
                    }
                    from += 1;
                    for (turn, port) in [first, second, first, second].into_iter().enumerate() {
                        if end == End::Client && turn >= 2 {
                            break;
                        }
                        let mut pair =
                            TcpPair::new(&lab.client, &acceptor, from, family.host(port));
                        let when = format!("turn {turn} of {first} and {second} ended by {end:?}");
                        pair.exchange(100, &when);
                        pair.close(end);
                        // A timestamp tells the next connection from the one before.
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
            }
        }
    }
    redirector.finish(&lab);
}

/// Flow after flow, opened and closed: nothing is left of them.
fn flows(cell: &Cell) {
    let count = extent::flows();
    allow(Duration::from_secs(60) + Duration::from_millis(3) * u32::try_from(count).expect("few"));
    let lab = Lab::new(cell);
    let acceptor = Acceptor::start(&lab.host, 8080);
    let _udp_server = UdpServer::start(&lab.host, 8080);
    let redirector = start(cell, &lab, &SMALLEST);
    let has_udp = cell.engine != "socket";
    let run = |count: usize| {
        let mut redirected = 0;
        for number in 0..count {
            let family = Family::BOTH[number / 2 % 2];
            let port = [80, 81, 80, 81, 8080][number / 4 % 5];
            let to = family.host(port);
            if has_udp && number % 2 == 1 {
                let mut udp_client = UdpClient::new(&lab.client, 0, to, "one question");
                let asked = udp_client.request(1, Duration::from_secs(8));
                asked.unwrap_or_else(|error| panic!("{number}: {}: {error}", udp_client.local()));
            } else {
                redirected += u64::from(port == 80);
                let mut pair = TcpPair::new(&lab.client, &acceptor, 0, to);
                pair.exchange(40, "once");
                let end = [End::Server, End::Reset][number / 2 % 2];
                pair.close(end);
            }
        }
        redirected
    };
    let first = run(2 * LEAST);
    let before = Usage::of(redirector.process.id());
    let redirected = first + run(count);
    Usage::of(redirector.process.id()).check_against(&before, &format!("{count} flows"));
    let report = redirector.finish(&lab);
    let counted = report["rules"][0]["flows"].as_u64().expect("a number");
    note(&format!(
        "{counted} flows counted, {redirected} of them TCP"
    ));
    // UDP flows by a client port that was used before are the same to us, and a SYN
    // that was repeated may count twice.
    let most = redirected * (1 + u64::from(has_udp)) + redirected / 100 + 10;
    assert!((redirected..=most).contains(&counted), "{report}");
}
