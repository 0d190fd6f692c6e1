//! Foreign programs on the same hooks, and the packets that a capture on the host
//! sees.

use std::collections::BTreeSet;

use crate::engine::coexist::{AUTO, check_both_ports, check_redirected};
use crate::lab::capture::Capture;
use crate::lab::foreign::{Foreign, NEXT, OK, PASS};
use crate::lab::message::TAKEN_BY_DISPATCHER;
use crate::lab::program::{Redirector, attached, has_tcx};
use crate::lab::{Family, Lab};
use crate::peer::conn::{Conn, PROTOS, Proto};
use crate::peer::echo::EchoServer;
use crate::{Cell, ENGINES, Tests, skip};

pub fn add(tests: &mut Tests) {
    for position in ["native", "generic", "native-netlink", "generic-netlink"] {
        let name = format!("foreign_xdp_dispatcher_{position}");
        tests.add(name, &["python3"], move || foreign_xdp(position));
    }
    tests.add_for(&["xdp"], "foreign_xdp_comes_later", &["python3"], |cell| {
        foreign_xdp_comes_later(cell);
    });
    for engine in ["tc", "xdp"] {
        for position in ["first", "last"] {
            for (when, start) in [("older", Start::Before), ("later", Start::After)] {
                let name = format!("{engine}/foreign_tcx_{when}_{position}");
                tests.add(name, &["python3"], move || {
                    foreign_tcx(engine, position, start);
                });
            }
        }
    }
    for engine in ["tc", "tc-clsact", "xdp"] {
        for pref in ["1", "10"] {
            for (what, verdict) in [("next", NEXT), ("final", OK)] {
                let name = format!("{engine}/foreign_clsact_{what}_at_{pref}");
                tests.add(name, &["python3"], move || {
                    foreign_clsact(engine, pref, verdict);
                });
            }
        }
    }
    tests.add_for(&ENGINES, "sniffer", &[], sniffer);
    tests.add("xdp-generic/lro_comes_back", &[], lro_comes_back);
}

/// The engine `auto` steps aside and says for whom, also for a program that
/// runs others, and however it was attached.
fn foreign_xdp(position: &'static str) {
    let lab = Lab::new(&AUTO);
    let server = EchoServer::start(&lab.host, 8080);
    let name = "xdp_dispatcher";
    let foreign = Foreign::attach(&lab.host, ("xdp", position), "h0", (name, PASS));
    let before = attached(&lab.host);
    assert_eq!(before, ["h0 xdp xdp_dispatcher"]);
    let redirector = Redirector::of(&AUTO, &lab, &["80:8080/both"]);
    let plan = redirector.process.err();
    assert!(plan.contains(TAKEN_BY_DISPATCHER), "{plan}");
    let both = attached(&lab.host);
    assert_eq!(both[0], before[0]);
    assert_eq!(both.len(), 3, "{both:?}");
    let seen = foreign.packets(80);
    check_both_ports(&lab, &server);
    assert!(
        foreign.packets(80) > seen,
        "it comes first and sees the wire"
    );
    redirector.finish(&lab);
    assert_eq!(attached(&lab.host), before);
    let seen = foreign.packets(8080);
    Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(8080)).echo(b"directly");
    assert!(foreign.packets(8080) > seen, "it still runs");
}

/// The kernel refuses an XDP program that would replace ours.
fn foreign_xdp_comes_later(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    let programs = attached(&lab.host);
    for position in ["native", "generic", "native-netlink", "generic-netlink"] {
        assert!(
            Foreign::is_refused(&lab.host, ("xdp", position), "h0"),
            "{position}"
        );
    }
    assert!(
        !lab.host
            .succeeds(&["ip", "link", "set", "h0", "xdp", "off"])
    );
    assert_eq!(attached(&lab.host), programs);
    check_both_ports(&lab, &server);
    redirector.finish(&lab);
}

/// The start of a foreign program, in relation to the start of portredir.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Before,
    After,
}

/// TCX programs before and behind ours see each packet; behind ours also those
/// that end the chain are welcome.
fn foreign_tcx(engine: &'static str, position: &str, foreign_start: Start) {
    let is_later = foreign_start == Start::After;
    let cell = Cell { engine, ..AUTO };
    let lab = Lab::new(&cell);
    if !lab.host.enter(has_tcx) {
        skip("needs TCX, Linux 6.6");
    }
    let server = EchoServer::start(&lab.host, 8080);
    let attach = |position, verdict| {
        ["ingress", "egress"]
            .map(|hook| Foreign::attach(&lab.host, (hook, position), "h0", ("foreign", verdict)))
    };
    // Ours ask to be first, so only a later program can run before them.
    let is_before = is_later && position == "first";
    let start = || Redirector::of(&cell, &lab, &["80:8080/both"]);
    let (redirector, foreign) = if is_later {
        let redirector = start();
        (redirector, attach(position, NEXT))
    } else {
        let foreign = attach(position, NEXT);
        (start(), foreign)
    };
    check_both_ports(&lab, &server);
    let [ingress, egress] = &foreign;
    let before = [ingress.packets(80), egress.packets(80)];
    let before_target = [ingress.packets(8080), egress.packets(8080)];
    check_redirected(&lab);
    let grew = |old: u64, new: u64| new > old;
    // XDP rewrites before all TC programs. With TC, packets have the target
    // port behind ours on the way in, and the destination port of the client on the way out.
    let is_wire = is_before && engine == "tc";
    assert_eq!(grew(before[0], ingress.packets(80)), is_wire);
    assert_eq!(grew(before_target[0], ingress.packets(8080)), !is_wire);
    assert_eq!(grew(before[1], egress.packets(80)), !is_before);
    assert_eq!(grew(before_target[1], egress.packets(8080)), is_before);
    if !is_before {
        let last = attach("last", OK);
        check_both_ports(&lab, &server);
        drop(last);
    }
    redirector.finish(&lab);
    let seen = ingress.packets(8080);
    Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(8080)).echo(b"directly");
    assert!(ingress.packets(8080) > seen, "it still runs");
}

/// Filters of others, which may end the chain, run behind ours.
fn foreign_clsact(engine: &'static str, pref: &str, verdict: i8) {
    let cell = Cell { engine, ..AUTO };
    let lab = Lab::new(&cell);
    let server = EchoServer::start(&lab.host, 8080);
    lab.host.run(&["tc", "qdisc", "add", "dev", "h0", "clsact"]);
    let [ingress, egress] = ["ingress", "egress"]
        .map(|hook| Foreign::attach(&lab.host, (hook, pref), "h0", ("foreign", verdict)));
    let before = attached(&lab.host);
    let redirector = Redirector::of(&cell, &lab, &["80:8080/both"]);
    check_both_ports(&lab, &server);
    let seen = [ingress.packets(8080), egress.packets(80)];
    check_redirected(&lab);
    assert!(ingress.packets(8080) > seen[0], "its ingress filter runs");
    assert!(egress.packets(80) > seen[1], "its egress filter runs");
    redirector.finish(&lab);
    assert_eq!(attached(&lab.host), before);
    let seen = ingress.packets(8080);
    Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(8080)).echo(b"directly");
    assert!(ingress.packets(8080) > seen, "it still runs");
}

/// tcpdump on the host: the wire with TC; with XDP the target port on the way
/// in, as XDP comes before it.
fn sniffer(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    let inside = Capture::start(&lab.host, "h0", "tcp or udp");
    let outside = Capture::start(&lab.client, "c0", "tcp or udp");
    for proto in PROTOS {
        Conn::to(&lab.client, proto, 0, Family::V4.host(80)).echo(b"seen");
    }
    // The last one is a datagram from the host.
    for capture in [&inside, &outside] {
        capture.wait_for("the answer", |frame| {
            (frame[23] == 17 && ports(frame).0 == 80).then_some(())
        });
    }
    let here = |capture: &Capture| {
        let client = Family::V4.addr(1, 2).to_string();
        let is_from_client = |frame: &[u8]| {
            let source: [u8; 4] = frame[26..30].try_into().expect("an address");
            std::net::Ipv4Addr::from(source).to_string() == client
        };
        let frames = capture.frames();
        let (to, from): (Vec<_>, Vec<_>) = frames.iter().partition(|frame| is_from_client(frame));
        let to: BTreeSet<_> = to.iter().map(|frame| ports(frame).1).collect();
        let from: BTreeSet<_> = from.iter().map(|frame| ports(frame).0).collect();
        (to, from)
    };
    let only = |port| BTreeSet::from([port]);
    let port_in = if cell.engine.starts_with("xdp") {
        8080
    } else {
        80
    };
    assert_eq!(here(&inside), (only(port_in), only(80)), "on the host");
    assert_eq!(here(&outside), (only(80), only(80)), "on the wire");
    redirector.finish(&lab);
}

/// Source and destination port of IPv4 without options.
fn ports(frame: &[u8]) -> (u16, u16) {
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (port(34), port(36))
}

/// Generic XDP takes the host's LRO; it comes back. Needs a device that has it.
fn lro_comes_back() {
    let lab = Lab::new(&AUTO);
    lab.host
        .ip("link add link h0 name mv0 type macvlan\nlink set mv0 up");
    lab.host.succeeds(&["ethtool", "-K", "mv0", "lro", "on"]);
    let lro = || {
        let features = lab.host.run(&["ethtool", "-k", "mv0"]);
        let line = features.lines().find(|line| line.starts_with("large-rec"));
        line.expect("a line about LRO").to_owned()
    };
    let before = lro();
    if !before.contains(": on") {
        skip("needs a device with LRO or hardware GRO; no virtual one here has them");
    }
    let args = ["--iface", "mv0", "--engine", "xdp-generic", "80:8080"];
    let redirector = Redirector::start(&lab.host, &args);
    assert!(lro().contains(": off"), "{}", lro());
    redirector.stop();
    assert_eq!(lro(), before);
}
