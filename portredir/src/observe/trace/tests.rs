//! Records that are made by hand, and what is said of them.

use std::io::Cursor;
use std::time::Duration;

use etherparse::{Icmpv4Type, PacketBuilder, icmpv4};
use jiff::Timestamp;
use portredir_common::map::trace::{
    Record, TRACE_WORDS, TraceBytes, TraceHead, TraceHook, TracedPacket, TracedSocket,
};
use portredir_common::net::{Addr, Port, Protocol};
use portredir_common::verdict::Reason;

use super::filter::Filter;
use super::pcap::Capture;
use super::{Context, Line};
use crate::rule::Rule;

const RULES: [&str; 4] = [
    "80:8080/both",
    "81:8081 from 192.0.2.0/24",
    "203.0.113.9:82:8082 on eth0,wg*",
    "82:8083 from 2001:db8::/32",
];

fn context() -> Context {
    let rules = (0..).zip(RULES.map(|rule| rule.parse::<Rule>().expect("a rule")));
    Context {
        rules: rules.collect(),
        clock: (
            Duration::from_secs(1000),
            Timestamp::from_second(1_700_000_000).expect("a time"),
        ),
    }
}

fn words(bytes: &[u8]) -> TraceBytes {
    let mut words = [0; TRACE_WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(4)) {
        let mut four = [0; 4];
        four[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_ne_bytes(four);
    }
    words
}

fn record(before: &[u8], after: &[u8], (hook, reason, rule): (TraceHook, Reason, u32)) -> Record {
    let len = u32::try_from(before.len()).expect("short");
    Record::Packet(TracedPacket {
        head: TraceHead {
            at_ns: 1_000_000_001_999,
            ifindex: 2,
            reason: reason as u32,
            hook: hook as u32,
            rule,
            ..TraceHead::default()
        },
        len,
        captured: len.min(128),
        is_ethernet: 1,
        segments: 1,
        before: words(before),
        after: words(after),
    })
}

/// A SYN from 198.51.100.7:5000 to a port of 192.0.2.1.
fn syn(port: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4([198, 51, 100, 7], [192, 0, 2, 1], 64)
        .tcp(5000, port, 1, 1000)
        .syn();
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &[]).expect("a packet");
    bytes
}

fn line(record: &Record) -> Line {
    context()
        .line(record, Some("eth0".to_owned()))
        .expect("a line")
}

fn text(line: &Line) -> String {
    let text = line.to_string();
    // The time is that of this host's zone.
    text.split_once(' ').expect("a time").1.to_owned()
}

const REDIRECTED: (TraceHook, Reason, u32) =
    (TraceHook::Ingress, Reason::Redirected, TraceHead::RULE);

#[test]
fn a_redirected_packet_shows_both_ports() {
    let line = line(&record(&syn(80), &syn(8080), REDIRECTED));
    assert_eq!(
        text(&line),
        "eth0 ingress tcp S 198.51.100.7:5000 -> 192.0.2.1:80=>8080 pass redirected 80:8080/both"
    );
    assert_eq!(line.time.to_string(), "2023-11-14T22:13:20.000001Z");
    let json = serde_json::to_value(&line).expect("JSON");
    assert_eq!(json["before"]["dst"], "192.0.2.1:80");
    assert_eq!(json["after"]["dst"], "192.0.2.1:8080");
    assert_eq!(json["failed"], serde_json::json!([]));
}

#[test]
fn a_condition_that_does_not_hold_is_named() {
    let no_match = (TraceHook::Xdp, Reason::NoMatch, 0);
    let to_81 = line(&record(&syn(81), &syn(81), no_match));
    assert_eq!(
        text(&to_81),
        "eth0 xdp tcp S 198.51.100.7:5000 -> 192.0.2.1:81 pass no_match \
         81:8081 from 192.0.2.0/24 (from)"
    );
    let to_82 = record(&syn(82), &syn(82), no_match);
    let failed = |interface: &str| {
        let line = context().line(&to_82, Some(interface.to_owned()));
        let failed = line.expect("a line").failed.into_iter();
        failed.map(|failed| failed.condition).collect::<Vec<_>>()
    };
    assert_eq!(failed("eth0"), ["address", "from"]);
    let on: Rule = "83:8083 on eth0,wg*".parse().expect("a rule");
    let context = Context {
        rules: vec![(0, on)],
        ..context()
    };
    let to_83 = record(&syn(83), &syn(83), no_match);
    for (interface, conditions) in [("eth1", &["on"][..]), ("wg7", &[])] {
        let line = context
            .line(&to_83, Some(interface.to_owned()))
            .expect("a line");
        let failed: Vec<_> = line.failed.iter().map(|failed| failed.condition).collect();
        assert_eq!(failed, conditions, "{interface}");
    }
}

#[test]
fn an_icmp_error_is_about_what_it_quotes() {
    let quote = |port: u16| {
        let inner = PacketBuilder::ipv4([192, 0, 2, 1], [198, 51, 100, 7], 64).udp(port, 5000);
        let mut payload = Vec::new();
        inner.write(&mut payload, b"quoted").expect("a packet");
        let unreachable = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
        let outer = PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([198, 51, 100, 1], [192, 0, 2, 1], 64)
            .icmpv4(unreachable);
        let mut bytes = Vec::new();
        outer.write(&mut bytes, &payload).expect("a packet");
        bytes
    };
    let what = (TraceHook::Ingress, Reason::IcmpTranslated, 0);
    let line = line(&record(&quote(80), &quote(8080), what));
    assert_eq!(
        text(&line),
        "eth0 ingress icmp about 192.0.2.1:80=>8080 -> 198.51.100.7:5000 pass icmp_translated"
    );
}

fn socket(reason: Reason, port_after: u16) -> Record {
    Record::Socket(TracedSocket {
        head: TraceHead {
            at_ns: 1,
            ifindex: 1,
            reason: reason as u32,
            hook: TraceHook::Connect as u32,
            pid: 812,
            ..TraceHead::default()
        },
        client: Addr::V4_ANY,
        peer: Addr::V4_LOOPBACK,
        client_port: Port::CLOSED,
        port: Port::new(80),
        port_after: Port::new(port_after),
        protocol: Protocol::Tcp as u8,
        version: 4,
        comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
    })
}

#[test]
fn a_local_client_is_named() {
    let line = line(&socket(Reason::Redirected, 8080));
    assert_eq!(
        text(&line),
        "eth0 connect tcp curl[812] -> 127.0.0.1:80=>8080 pass redirected 80:8080/both"
    );
}

#[test]
fn what_is_no_packet_has_no_line() {
    let known = record(&syn(80), &syn(80), REDIRECTED);
    let Record::Packet(packet) = known else {
        panic!("a packet");
    };
    let with = |change: fn(&mut TracedPacket)| {
        let mut packet = packet;
        change(&mut packet);
        context().line(&Record::Packet(packet), None)
    };
    assert!(with(|_| {}).is_some());
    assert!(with(|packet| packet.head.reason = 99).is_none());
    assert!(with(|packet| packet.head.hook = 99).is_none());
    assert!(with(|packet| packet.captured = 10).is_none());
    // Longer than what there is.
    assert!(with(|packet| packet.captured = u32::MAX).is_some());
}

fn filter(words: &[&str]) -> Filter {
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    Filter::parse(&words).expect("a filter")
}

#[test]
fn filters_admit_what_they_say() {
    let redirected = line(&record(&syn(80), &syn(8080), REDIRECTED));
    let unmatched = line(&record(
        &syn(81),
        &syn(81),
        (TraceHook::Xdp, Reason::NoMatch, 0),
    ));
    let dropped = line(&record(
        &syn(81),
        &syn(81),
        (TraceHook::Xdp, Reason::TableFull, 0),
    ));
    for (words, admitted) in [
        (&[][..], [true, true, true]),
        (&["tcp"], [true, true, true]),
        (&["udp"], [false, false, false]),
        (&["drops"], [false, false, true]),
        (&["port", "8080"], [true, false, false]),
        (&["port", "81", "drops"], [false, false, true]),
        (&["from", "198.51.100.0/24"], [true, true, true]),
        (&["from", "198.51.100.8"], [false, false, false]),
        (&["on", "eth0"], [true, true, true]),
        (&["on", "eth1"], [false, false, false]),
        (&["80:8080/both"], [true, false, false]),
        (&["81:8081"], [false, true, true]),
        (&["81:8081 from 192.0.2.0/24"], [false, true, true]),
    ] {
        let filter = filter(words);
        let found = [&redirected, &unmatched, &dropped].map(|line| filter.admits(line));
        assert_eq!(found, admitted, "{words:?}");
    }
}

#[test]
fn words_that_are_no_filter_are_refused() {
    for (words, message) in [
        (
            &["port"][..],
            "`port` needs a value; example: portredir trace port 80",
        ),
        (
            &["port", "0"],
            "`0` is no value for `port`; example: portredir trace port 80",
        ),
        (
            &["from", "x"],
            "`x` is no value for `from`; example: portredir trace from 192.0.2.0/24",
        ),
        (&["tcp", "udp"], "`udp` is given twice"),
        (
            &["dst"],
            "`dst` is neither a rule nor one of tcp, udp, drops, port N, from ADDR, on IFACE",
        ),
    ] {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let error = Filter::parse(&words).expect_err("no filter");
        assert_eq!(error.to_string(), message);
    }
    let rules = context().rules;
    assert!(filter(&["81:8081"]).check(&rules).is_ok());
    let error = filter(&["81:9999"])
        .check(&rules)
        .expect_err("no such rule");
    assert!(error.to_string().starts_with("rule `81:9999` does not run"));
}

/// Blocks are whole, and have their length at both ends.
#[test]
fn a_capture_file_has_both_packets() {
    let mut file = Cursor::new(Vec::new());
    let mut capture = Capture::new(&mut file).expect("a file");
    for after in [8080, 80] {
        let record = record(&syn(80), &syn(after), REDIRECTED);
        let line = line(&record);
        let Record::Packet(packet) = record else {
            panic!("a packet");
        };
        capture.write(&packet, &line).expect("written");
    }
    let bytes = file.into_inner();
    let mut rest = &bytes[..];
    let mut kinds = Vec::new();
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    while !rest.is_empty() {
        let len = usize::try_from(number(&rest[4..8])).expect("short");
        assert_eq!(
            (len % 4, number(&rest[len - 4..len])),
            (0, number(&rest[4..8]))
        );
        kinds.push(number(&rest[..4]));
        rest = &rest[len..];
    }
    // The section, the interface, both packets, and the one that was not changed.
    assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 6, 6]);
    let has = |text: &[u8]| {
        bytes
            .windows(text.len())
            .filter(|part| *part == text)
            .count()
    };
    assert_eq!(
        [has(b"before: "), has(b"after: "), has(b"unchanged: ")],
        [1, 1, 1]
    );
    assert_eq!((has(&syn(8080)), has(&syn(80))), (1, 2));
}
