//! Floods beside forwarded flows, with tables of the smallest size: no socket of this host
//! heals what is lost, and the flows continue.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::rules::Rule;
use super::site::Site;
use super::subject::{Layout, Place, Subject, Variant};
use super::target::{addr_words, target, wait_until};
use crate::Tests;
use crate::conformance::client::{Conversation, greeting};
use crate::conformance::site::Offload;
use crate::lab::Family;
use crate::lab::extent::allow;
use crate::lab::process::{note, wait_within};
use crate::lab::program::link_state;
use crate::lifecycle::host::Host;
use crate::peer::conn::{Conn, Proto, is_refused, uninterrupted};
use crate::peer::pair::{Acceptor, End, TcpPair};
use crate::peer::raw::{Flood, Segment, add_spoofed_networks, spoofed_addr, tcp, udp};

pub fn add(tests: &mut Tests) {
    type Test = (&'static str, fn(&'static str));
    const TESTS: [Test; 3] = [("syn", syn), ("udp", spray), ("port_reuse", port_reuse)];
    for (name, test) in TESTS {
        for engine in ["auto", "tc"] {
            let name = format!("forward/flood/{name}/{engine}");
            tests.add(name, &[], move || test(engine));
        }
    }
}

/// The port of the servers that a test accepts the connections of itself.
const ACCEPTED: u16 = 9100;

/// Where a flood goes: the addresses of the host, and those of F, by IP version.
type To = [[IpAddr; 2]; 2];

fn site(engine: &'static str) -> Site {
    let (layout, offload) = (Layout::Bridge(true), Offload::On);
    let site = Site::idle(Subject::Engine(engine), Variant { layout, offload });
    add_spoofed_networks(&site.lab.host);
    site
}

/// Redirects 80 and 81 to F and G, and 82 and 83 to the port of [`ACCEPTED`] on F.
fn up(site: &Site, host: &Host<'_>, engine: &str) {
    let mut rules = Vec::new();
    for family in Family::BOTH {
        let both = [Place::F, Place::G].map(|place| target(site, family, place));
        let accepted = [SocketAddr::new(site.addr(Place::F, family), ACCEPTED)];
        for (port, targets) in [
            (80, &both[..]),
            (81, &both),
            (82, &accepted),
            (83, &accepted),
        ] {
            let rule = Rule::new(site.own(family, port), targets);
            rules.push(rule.with("check none").words());
        }
    }
    let mut args = vec!["up", "--iface", "all", "--engine", engine];
    args.extend(["--max-tcp-flows", "1024", "--max-udp-flows", "1024"]);
    args.extend(rules.iter().map(String::as_str));
    host.run(&args);
}

/// Flows that have begun before a flood.
struct Flows {
    /// Connections with traffic all the time.
    busy: Vec<Conversation>,
    /// Connections without any.
    silent: Vec<Conversation>,
    /// Idle connections of which the server speaks first.
    pairs: Vec<TcpPair>,
    udp: Vec<Conversation>,
}

impl Flows {
    /// Begins flows to F and G, and drains F: from then on nothing but their entries leads
    /// flows of F there.
    fn open(site: &Site, host: &Host<'_>, acceptor: &Acceptor) -> Self {
        let mut flows = Self {
            busy: Vec::new(),
            silent: Vec::new(),
            pairs: Vec::new(),
            udp: Vec::new(),
        };
        for family in Family::BOTH {
            let to = site.own(family, 80);
            let begin = |proto| {
                let begun = Conversation::begin(&site.lab.client, proto, site.port(), to);
                begun.unwrap_or_else(|error| panic!("{proto:?} to {to}: {error}"))
            };
            flows.busy.extend((0..30).map(|_| begin(Proto::Tcp)));
            flows.silent.extend((0..30).map(|_| begin(Proto::Tcp)));
            flows.udp.extend((0..20).map(|_| begin(Proto::Udp)));
            let to = site.own(family, 82);
            let pair = |_| TcpPair::new(&site.lab.client, acceptor, site.port(), to);
            flows.pairs.extend((0..10).map(pair));
            let f = target(site, family, Place::F);
            host.run(&["drain", &format!("{}:8080", addr_words(f.ip()))]);
            wait_until(site, f, "drained");
        }
        for all in [&flows.busy, &flows.silent, &flows.udp] {
            let of_f = all.iter().filter(|flow| flow.name == "F").count();
            assert!(of_f > 5, "{of_f} of {} flows to F", all.len());
        }
        flows
    }

    /// Uses those that are not idle; returns how many questions were repeated.
    fn use_busy(&mut self, when: &str) -> usize {
        check(&mut self.busy, when);
        let asked = self.udp.iter().map(|flow| asks(flow, when) - 1);
        asked.sum()
    }

    /// Uses all of them; returns how many questions were repeated.
    fn use_all(&mut self, when: &str) -> usize {
        check(&mut self.silent, when);
        for pair in &mut self.pairs {
            pair.exchange(300, when);
        }
        self.use_busy(when)
    }

    fn end(self) {
        for flow in self.busy.into_iter().chain(self.silent) {
            flow.conn.reset();
        }
        for pair in self.pairs {
            pair.close(End::Reset);
        }
    }
}

/// Connections echo.
fn check(flows: &mut [Conversation], when: &str) {
    for flow in flows {
        let echoes = flow.echoes(b"the flood goes on");
        assert!(
            matches!(echoes, Ok(true)),
            "{when}: {}: {echoes:?}",
            flow.name
        );
    }
}

/// A UDP flow gets an answer, and from nobody but its server; how often it had to ask.
fn asks(flow: &Conversation, when: &str) -> usize {
    const TRIES: usize = 40;
    let Conn::Udp(socket) = &flow.conn else {
        panic!("not UDP")
    };
    let patience = Some(Duration::from_millis(250));
    socket.set_read_timeout(patience).expect("a timeout");
    for tries in 1..=TRIES {
        socket.send(b"who?").expect("send");
        let mut buffer = [0; 512];
        match uninterrupted(|| socket.recv(&mut buffer)) {
            Ok(len) => {
                let (name, ..) = greeting(&buffer[..len]).expect("a greeting");
                assert_eq!(name, flow.name, "{when}: a UDP flow");
                return tries;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{when}: {}: {error}", flow.name),
        }
    }
    panic!("{when}: {} does not answer", flow.name)
}

/// A forged segment to a rule's port, or to the target itself.
fn stray(to: To, number: u32) -> (IpAddr, Vec<u8>) {
    let of = number as usize % 2;
    let random = number.wrapping_mul(0x9e37_79b9);
    let port = 1024 + u16::try_from(number / 2 % 60_000).expect("a port");
    let from = SocketAddr::new(spoofed_addr(Family::BOTH[of], number / 2 % 0x1_ffff), port);
    let [host, f] = to[of];
    let (segment, addr, port) = match number / 2 % 16 {
        0 => (Segment::Ack, host, 80),
        1 => (Segment::RstAck, host, 80),
        2 => (Segment::FinAck, host, 81),
        // A pair of SYN, first to the target, is a collision.
        3 => (Segment::Syn, f, 8080),
        4..8 => (Segment::Syn, host, 82),
        _ => (Segment::Syn, host, 80),
    };
    (
        addr,
        tcp(
            from,
            SocketAddr::new(addr, port),
            segment,
            (random, !random),
        ),
    )
}

/// A datagram to a rule's port, or to the target itself.
fn datagram(to: To, number: u32) -> (IpAddr, Vec<u8>) {
    let of = number as usize % 2;
    let port = u16::try_from(number / 2 % 65_535).expect("a port") + 1;
    let from = SocketAddr::new(spoofed_addr(Family::BOTH[of], number / 2 % 0x1_ffff), port);
    let [host, f] = to[of];
    // The same sender at two ports of one target is a collision.
    let (addr, port) = [(host, 80), (host, 81), (f, 8080)][number as usize / 2 % 3];
    (addr, udp(from, SocketAddr::new(addr, port), b"x"))
}

/// Flows live through a flood of so many packets, and then `down` waits for them.
fn survive(engine: &'static str, count: usize, make: fn(To, u32) -> (IpAddr, Vec<u8>)) {
    allow(Duration::from_secs(150));
    let site = site(engine);
    let acceptor = Acceptor::start(&site.f, ACCEPTED);
    let host = Host::of(&site.lab);
    up(&site, &host, engine);
    let mut flows = Flows::open(&site, &host, &acceptor);
    // A UDP flow of which a packet was seen in the last second alone is as new as those of
    // the flood; a clock tick of the flow table takes 1.07 s.
    for _ in 0..2 {
        flows.use_all("at first");
        std::thread::sleep(Duration::from_millis(1100));
    }
    flows.use_all("at first");
    let to =
        Family::BOTH.map(|family| [Place::Host, Place::F].map(|place| site.addr(place, family)));
    let pause = Duration::from_micros(300);
    let flood = Flood::start(&site.lab.client, pause, move |number| make(to, number));
    let (mut rounds, mut repeated) = (0, 0);
    while flood.sent() < count || rounds < 3 {
        repeated += flows.use_busy("in the flood");
        rounds += 1;
    }
    let sent = flood.end();
    note(&format!(
        "{sent} packets, {rounds} rounds, {repeated} questions repeated"
    ));
    // Those that are still in the queue of the server come first.
    flows.use_all("after the flood");
    assert_eq!(
        flows.use_all("later"),
        0,
        "questions repeated after the flood"
    );
    drain(&site, &host, flows);
    for at in [&site.lab.client, &site.lab.host, &site.f, &site.g] {
        crate::lab::checksum::check(at);
    }
}

/// `down` waits while flows go on, and ends when they have ended.
fn drain(site: &Site, host: &Host<'_>, mut flows: Flows) {
    let mut down = host.start(&["down", "--drain-timeout", "60"]);
    down.wait_for_words("waiting");
    for round in 0..5 {
        std::thread::sleep(Duration::from_millis(100));
        flows.use_all(&format!("in round {round} of the drain"));
    }
    let status = down.try_wait();
    assert!(status.is_none(), "down did not wait: {}", down.err());
    for family in Family::BOTH {
        let to = site.own(family, 80);
        assert!(is_refused(&site.lab.client, Proto::Tcp, to), "{to}");
    }
    flows.end();
    let soon = Duration::from_secs(5);
    let status = wait_within(soon, "the end of down", || down.try_wait());
    assert_eq!(status.code(), Some(0), "{}", down.err());
    assert_eq!(link_state(&site.lab), host.before);
    assert!(!host.pins().exists(), "{:?} is left", host.pins());
}

fn syn(engine: &'static str) {
    survive(engine, 600_000, stray);
}

fn spray(engine: &'static str) {
    survive(engine, 200_000, datagram);
}

/// One client port after the other, each used again at once: whatever the connection before
/// has left, the next is another one.
fn port_reuse(engine: &'static str) {
    allow(Duration::from_secs(120));
    let site = site(engine);
    let acceptor = Acceptor::start(&site.f, ACCEPTED);
    let host = Host::of(&site.lab);
    up(&site, &host, engine);
    for family in Family::BOTH {
        let f = SocketAddr::new(site.addr(Place::F, family), ACCEPTED);
        let all = [site.own(family, 82), site.own(family, 83), f];
        let pairs = all
            .iter()
            .flat_map(|first| all.map(|second| [*first, second]));
        for ([first, second], end) in
            pairs.flat_map(|pair| [End::Server, End::Reset, End::Client].map(|end| (pair, end)))
        {
            if end == End::Client && first == second {
                // The client's own socket is in TIME_WAIT.
                continue;
            }
            let from = site.port();
            let turns = if end == End::Client { 2 } else { 4 };
            for (turn, to) in [first, second, first, second]
                .into_iter()
                .take(turns)
                .enumerate()
            {
                let mut pair = TcpPair::new(&site.lab.client, &acceptor, from, to);
                let when = format!("turn {turn} of {first} and {second} ended by {end:?}");
                pair.exchange(100, &when);
                pair.close(end);
                // A timestamp tells the next connection from the one before.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    host.down();
    site.lab.check_checksums();
}
