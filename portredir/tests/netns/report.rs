//! The reports that portredir prints about redirected packets.

use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::lab::program::{PROGRAM, Redirector};
use crate::lab::{Family, Far, Lab};
use crate::peer::conn::{Conn, Proto};
use crate::peer::echo::EchoServer;
use crate::{Cell, ENGINES, Tests};

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "counters", &[], counters);
    tests.add_for(&["auto"], "counters_as_text", &[], counters_as_text);
}

/// Every packet is counted, once, where it came in.
fn counters(cell: &Cell) {
    let lab = Lab::with_far(cell, Far::BehindHost);
    let _server = EchoServer::start(&lab.host, 7778);
    let redirector = Redirector::of(cell, &lab, &["7777:7778/udp", "80:8080"]);
    let message = [7; 100];
    for (at, net, flows, packets) in [(&lab.client, 1, 3, 40), (lab.far(), 2, 2, 25)] {
        let to = SocketAddr::new(Family::V4.addr(net, 1), 7777);
        for _ in 0..flows {
            let mut conn = Conn::to(at, Proto::Udp, 0, to);
            (0..packets).for_each(|_| conn.echo(&message));
        }
    }
    let report = redirector.finish(&lab);
    let rule = &report["rules"][0];
    assert_eq!(rule["rule"], "7777:7778/udp");
    let frame = 14 + 20 + 8 + message.len();
    for (hits, flows, packets) in [
        (rule, 5, 170),
        (&rule["interfaces"]["h0"], 3, 120),
        (&rule["interfaces"]["h1"], 2, 50),
    ] {
        assert_eq!(hits["packets"], packets, "{hits}");
        assert_eq!(hits["flows"], flows, "{hits}");
        assert_eq!(hits["bytes"], packets * frame, "{hits}");
        assert!(hits["last_hit"].is_string(), "{hits}");
    }
    assert_eq!(report["rules"][1]["packets"], 0);
    assert!(report["rules"][1]["last_hit"].is_null());
    assert_eq!(report["passes"]["restored"], 170);
}

/// A line for each change, nothing in between, a summary at the end.
fn counters_as_text(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 7778);
    let args = [
        "--iface",
        "h0",
        "--interval",
        "0.1",
        "9:7778/udp",
        "7777:7778/udp",
    ];
    let process = lab.host.start(&[&[PROGRAM], &args[..]].concat());
    let mut redirector = Redirector::wait_until_redirecting(process);
    let mut say = |port, packets| {
        Conn::to(&lab.client, Proto::Udp, 0, Family::V4.host(port)).echo(&[7; 100]);
        let rule = format!("{port}:7778/udp");
        let bytes = packets * 142;
        let s = if packets == 1 { "" } else { "s" };
        let hits = format!("{packets} packet{s} in, {bytes} bytes in, {packets} flow{s}");
        let line = format!("{rule:<17} {hits} (+1 packet)\n");
        redirector.process.wait_for_words(&line);
    };
    // The counters of the second rule show that time has passed for the first.
    (1..=2).for_each(|packets| say(9, packets));
    (1..=6).for_each(|packets| say(7777, packets));
    redirector.process.signal(Signal::SIGINT);
    assert!(redirector.process.wait().success());
    let out = redirector.process.out();
    let lines: Vec<_> = out.lines().collect();
    let summary = [
        "9:7778/udp        2 packets in, 284 bytes in, 2 flows",
        "  h0              2 packets in, 284 bytes in, 2 flows",
        "7777:7778/udp     6 packets in, 852 bytes in, 6 flows",
        "  h0              6 packets in, 852 bytes in, 6 flows",
        "passed: restored 8",
    ];
    assert!(lines.ends_with(&summary), "{out}");
    assert_eq!(lines.len(), 8 + summary.len(), "{out}");
}
