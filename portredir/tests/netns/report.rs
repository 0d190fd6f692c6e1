//! The reports that portredir prints about redirected packets.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::capture::Capture;
use crate::lab::process::wait_for;
use crate::lab::program::{PROGRAM, Redirector};
use crate::lab::{Family, Far, Lab};
use crate::peer::conn::{Conn, PROTOS, Proto, is_refused};
use crate::peer::echo::EchoServer;
use crate::{Cell, ENGINES, Tests};

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "counters", &[], counters);
    tests.add_for(&["auto"], "counters_as_text", &[], counters_as_text);
    let with_gro = ["tc", "tc-clsact"];
    tests.add_for(&with_gro, "both_directions", &["tcpdump"], both_directions);
    tests.add_for(&ENGINES, "outcomes", &["nft"], outcomes);
    tests.add_for(&["auto", "socket"], "no_packets_seen", &[], no_packets_seen);
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
        assert_eq!(hits["packets_out"], packets, "{hits}");
        assert_eq!(hits["bytes_out"], packets * frame, "{hits}");
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
        let hits = format!("{packets} packet{s} {bytes} bytes");
        let hits = format!("in {hits}, out {hits}, {packets} flow{s}");
        redirector
            .process
            .wait_for_words(&format!("{rule:<17} {hits} (+"));
    };
    // The counters of the second rule show that time has passed for the first.
    (1..=2).for_each(|packets| say(9, packets));
    (1..=6).for_each(|packets| say(7777, packets));
    redirector.process.signal(Signal::SIGINT);
    assert!(redirector.process.wait().success());
    let out = redirector.process.out();
    let lines: Vec<_> = out.lines().collect();
    let summary = [
        "RULE          IN-PKTS IN-BYTES OUT-PKTS OUT-BYTES FLOWS ACCEPTED REFUSED",
        "9:7778/udp          2      284        2       284     2        -       0",
        "  h0                2      284        2       284     2",
        "7777:7778/udp       6      852        6       852     6        -       0",
        "  h0                6      852        6       852     6",
        "passed: restored 8",
    ];
    assert!(lines.ends_with(&summary), "{out}");
    // A packet and its reply may fall into two intervals.
    let changes = lines.len() - summary.len();
    assert!((8..=16).contains(&changes), "{out}");
}

/// The bytes of a download, and what tcpdump counts of it in both directions.
fn both_directions(cell: &Cell) {
    const LEN: usize = 20_000_000;
    let lab = Lab::new(cell);
    let listener = lab.host.listen(("0.0.0.0", 8080));
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(&vec![7; LEN]).expect("send");
    });
    let redirector = Redirector::of(cell, &lab, &["80:8080"]);
    let capture = Capture::of_headers(&lab.host, "h0", "tcp port 80");
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    let received = conn.receive(LEN).expect("the download");
    assert!(received.len() == LEN && received.iter().all(|byte| *byte == 7));
    server.join().expect("the server");
    // Until the last segment of either side.
    conn.reset();
    wait_for("quiet", || {
        let before = capture.kept().len();
        std::thread::sleep(Duration::from_millis(200));
        (capture.kept().len() == before).then_some(())
    });
    let report = redirector.finish(&lab);
    let rule = &report["rules"][0];
    let is_reply = |frame: &[u8]| frame[34..36] == 80_u16.to_be_bytes();
    let sum = |replies: bool| -> u64 {
        let kept = capture.kept().into_iter();
        kept.filter(|(frame, _)| is_reply(frame) == replies)
            .map(|(_, len)| len)
            .sum()
    };
    assert_eq!(rule["bytes"], sum(false), "{rule}");
    // tcpdump sees what leaves after it was cut into segments, each with headers.
    let replies = capture
        .kept()
        .into_iter()
        .filter(|(frame, _)| is_reply(frame));
    assert_eq!(rule["packets_out"], replies.count(), "{rule}");
    let bytes = rule["bytes_out"].as_u64().expect("a number");
    assert!((LEN as u64..=sum(true)).contains(&bytes), "{rule}");
    assert_eq!(rule["accepted"], 1, "{rule}");
}

/// Connections that are accepted, refused and left without an answer, each where they
/// belong.
fn outcomes(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 8080);
    let drop = "add table inet f; add chain inet f i { type filter hook input priority 0; }; \
                add rule inet f i tcp dport 8082 drop";
    lab.host.run(&["nft", drop]);
    let rules = [
        "80:8080",
        "81:8081",
        "82:8082",
        "53:5353/udp",
        "7:8080/both",
    ];
    let redirector = Redirector::of(cell, &lab, &rules);
    for family in Family::BOTH {
        for _ in 0..3 {
            let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, family.host(80));
            conn.echo(b"accepted");
        }
        for _ in 0..2 {
            assert!(is_refused(&lab.client, Proto::Tcp, family.host(81)));
        }
        assert!(is_refused(&lab.client, Proto::Udp, family.host(53)));
        let limit = Duration::from_millis(100);
        let dropped = (0, family.host(82));
        assert!(Conn::connect_within(limit, &lab.client, Proto::Tcp, dropped).is_err());
        for proto in PROTOS {
            Conn::to(&lab.client, proto, 0, family.host(7)).echo(b"both");
        }
    }
    let report = redirector.stop();
    let found = report["rules"].as_array().expect("rules").iter();
    let found: Vec<_> = found
        .map(|rule| ["flows", "accepted", "refused", "unanswered"].map(|key| rule[key].as_u64()))
        .collect();
    let expected = [
        [Some(6), Some(6), Some(0), Some(0)],
        [Some(4), Some(0), Some(4), Some(0)],
        [Some(2), Some(0), Some(0), Some(2)],
        [Some(2), None, Some(2), None],
        [Some(4), Some(2), Some(0), None],
    ];
    assert_eq!(found, expected, "{report}");
    lab.check_checksums();
}

/// Where the engine sees no packets, reports have no number of them: null, or a dash.
fn no_packets_seen(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 8080);
    let args = ["--iface", "all", "--engine", cell.engine, "80:8080"];
    let redirector = Redirector::start(&lab.host, &args);
    for at in [&lab.host, &lab.client] {
        Conn::to(at, Proto::Tcp, 0, Family::V4.host(80)).echo(b"hello");
    }
    let report = redirector.finish(&lab);
    let rule = &report["rules"][0];
    assert_eq!(rule["flows"], 2, "{rule}");
    let keys = ["packets", "bytes", "packets_out", "bytes_out"];
    let is_seen = |hits: &Value| keys.map(|key| hits[key].is_u64());
    let sees_client = cell.engine == "auto";
    assert_eq!(is_seen(&rule["interfaces"]["lo"]), [false; 4], "{rule}");
    assert_eq!(
        is_seen(&rule["interfaces"]["h0"]),
        [sees_client; 4],
        "{rule}"
    );
    assert_eq!(is_seen(rule), [sees_client; 4], "{rule}");
    let accepted = sees_client.then_some(1);
    assert_eq!(rule["accepted"].as_u64(), accepted, "{rule}");
    assert_eq!(
        rule["unanswered"].as_u64(),
        sees_client.then_some(0),
        "{rule}"
    );
}
