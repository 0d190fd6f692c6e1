//! IP options, extension headers, VLAN tags, and lengths that lie.

use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;

use super::builder::{
    ETHERNET, Packet, authentication_header, options_header, other4, other6, routing_header, tcp4,
    tcp6, udp4, udp6,
};
use super::flows::{KINDS, Kind};
use super::{Case, seen};

const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;

const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;

pub fn cases() -> Vec<Case> {
    let mut cases = options();
    cases.extend(extensions());
    cases.extend(extensions_that_hide());
    cases.extend(tags());
    cases.extend(lengths());
    cases
}

/// A packet that is redirected, and its reply that is restored.
fn both_ways(cases: &mut Vec<Case>, name: &str, kind: Kind, dress: impl Fn(Packet) -> Packet) {
    cases.push(
        Case::ingress(format!("{}: {name}", kind.name), &dress(kind.packet(80)))
            .redirected(&dress(kind.packet(8080))),
    );
    cases.push(
        Case::egress(
            format!("{}: reply, {name}", kind.name),
            &dress(kind.reply(8080)),
        )
        .flow(kind.table(), kind.key(8080), seen(80, 0))
        .restored(&dress(kind.reply(80))),
    );
}

fn options() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS.into_iter().filter(|kind| kind.is_ipv4) {
        for words in 1..=10 {
            let name = format!("header of {} words", words + 5);
            both_ways(&mut cases, &name, kind, |packet| packet.ip_options(words));
        }
        for words in 0..5 {
            let name = format!("{}: header of {words} words", kind.name);
            cases.push(Case::ingress(name, &kind.packet(80)).edit(|frame| {
                frame[ETHERNET] = 0x40 | words;
            }));
        }
        // The last bytes of the destination address stand where the ports would
        // be behind a header of four words: 513.
        cases.push(
            Case::ingress(
                format!("{}: header of 4 words, address for ports", kind.name),
                &kind.packet(80),
            )
            .rules(&["513:8080/both"])
            .edit(|frame| frame[ETHERNET] = 0x44),
        );
        cases.push(
            Case::ingress(
                format!("{}: header longer than the packet", kind.name),
                &kind.packet(80),
            )
            .edit(|frame| frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&[0, 16]))
            .unchanged(Reason::Malformed),
        );
    }
    cases
}

fn extensions() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS.into_iter().filter(|kind| !kind.is_ipv4) {
        let mut case = |name: &str, chain: &[(u8, Vec<u8>)]| {
            both_ways(&mut cases, name, kind, |packet| {
                chain.iter().cloned().fold(packet, Packet::extension)
            });
        };
        case("hop-by-hop", &[options_header(HOP_BY_HOP, 1)]);
        case("destination options", &[options_header(DESTINATION, 3)]);
        case("routing, no segments left", &[routing_header(0)]);
        case("the longest options", &[options_header(DESTINATION, 255)]);
        case(
            "the usual order",
            &[
                options_header(HOP_BY_HOP, 1),
                options_header(DESTINATION, 2),
                routing_header(0),
                options_header(DESTINATION, 1),
            ],
        );
        for count in 2..=6 {
            let chain = vec![options_header(DESTINATION, 1); count];
            case(&format!("{count} extension headers"), &chain);
        }
    }
    cases
}

fn extensions_that_hide() -> Vec<Case> {
    let mut cases = Vec::new();
    let chains = [
        ("routing, segments left", vec![routing_header(1)]),
        ("authentication", vec![authentication_header()]),
        (
            "authentication behind options",
            vec![options_header(HOP_BY_HOP, 1), authentication_header()],
        ),
        (
            "7 extension headers",
            vec![options_header(DESTINATION, 1); 7],
        ),
        (
            "9 extension headers",
            vec![options_header(DESTINATION, 1); 9],
        ),
    ];
    for kind in KINDS.into_iter().filter(|kind| !kind.is_ipv4) {
        for (name, chain) in &chains {
            let dress = |packet| chain.iter().cloned().fold(packet, Packet::extension);
            cases.push(
                Case::ingress(format!("{}: {name}", kind.name), &dress(kind.packet(80)))
                    .unchanged(Reason::ExtensionHeader)
                    .leaves_state(),
            );
            cases.push(
                Case::egress(
                    format!("{}: reply, {name}", kind.name),
                    &dress(kind.reply(8080)),
                )
                .flow(kind.table(), kind.key(8080), seen(80, 0))
                .unchanged(Reason::ExtensionHeader),
            );
        }
        cases.push(
            Case::ingress(
                format!("{}: extension header that is cut off", kind.name),
                &kind.packet(80).extension(options_header(DESTINATION, 2)),
            )
            .edit(|frame| frame.truncate(ETHERNET + 40 + 7))
            .unchanged(Reason::Malformed),
        );
        cases.push(
            Case::ingress(
                format!("{}: extension header longer than the packet", kind.name),
                &kind.packet(80).extension(options_header(DESTINATION, 2)),
            )
            .edit(|frame| frame[ETHERNET + 41] = 200)
            .unchanged(Reason::Malformed),
        );
        cases.push(jumbogram(kind));
    }
    cases.extend(no_ports());
    cases
}

/// A packet whose length is in an option (RFC 2675).
fn jumbogram(kind: Kind) -> Case {
    Case::ingress(
        format!("{}: jumbogram", kind.name),
        &kind
            .packet(80)
            .extension((HOP_BY_HOP, vec![0, 0, 0xc2, 4, 0, 1, 0, 0])),
    )
    .edit(|frame| frame[ETHERNET + 4..ETHERNET + 6].fill(0))
    .unchanged(Reason::Malformed)
}

/// Protocols and headers that have no ports, or none in the clear.
fn no_ports() -> Vec<Case> {
    let mut cases = Vec::new();
    let ports = [0x9c, 0x40, 0, 80, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    for (name, protocol) in [
        ("esp", 50),
        ("no next header", 59),
        ("mobility", 135),
        ("hip", 139),
    ] {
        cases.push(Case::ingress(
            format!("v6: {name}"),
            &other6(protocol, &ports),
        ));
    }
    for (name, protocol) in [("esp", 50), ("authentication", 51)] {
        cases.push(Case::ingress(
            format!("v4: {name}"),
            &other4(protocol, &ports),
        ));
    }
    cases
}

fn tags() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        let tags: [(&str, &[u16]); 4] = [
            ("one 802.1Q tag", &[VLAN]),
            ("one 802.1ad tag", &[QINQ]),
            ("802.1Q in 802.1ad", &[QINQ, VLAN]),
            ("802.1Q twice", &[VLAN, VLAN]),
        ];
        for (name, tags) in tags {
            both_ways(&mut cases, name, kind, |packet| packet.tags(tags));
        }
        let tags: [(&str, &[u16]); 3] = [
            ("three tags", &[QINQ, VLAN, VLAN]),
            ("an unknown tag", &[0x9100]),
            ("an unknown tag in a known one", &[VLAN, 0x9200]),
        ];
        for (name, tags) in tags {
            cases.push(Case::ingress(
                format!("{}: {name}", kind.name),
                &kind.packet(80).tags(tags),
            ));
        }
    }
    cases
}

fn lengths() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        let transport = kind.packet(80).transport();
        let malformed = |what: &str, edit: &dyn Fn(&mut Vec<u8>)| malformed(kind, what, edit);
        for padding in [1, 20] {
            let what = format!("{padding} bytes of padding");
            both_ways(&mut cases, &what, kind, |packet| packet.padding(padding));
        }
        both_ways(&mut cases, "no payload", kind, |packet| packet.payload(&[]));
        both_ways(&mut cases, "no payload but padding", kind, |packet| {
            packet.payload(&[]).padding(6)
        });
        // The headers are there, but behind the end that IP gives.
        for len in [0, 1, 4, 7] {
            cases.push(malformed(&format!("ip payload of {len} bytes"), &|frame| {
                set_ip_payload(frame, kind.is_ipv4, len);
            }));
        }
        cases.push(malformed("ip longer than the frame", &|frame| {
            let len = frame.len() - ETHERNET - if kind.is_ipv4 { 20 } else { 40 };
            set_ip_payload(frame, kind.is_ipv4, u16::try_from(len + 1).expect("short"));
        }));
        cases.extend(transport_lengths(kind, transport));
    }
    cases.extend(longest_and_shortest());
    cases
}

/// Lengths in the transport header that contradict those of IP.
fn transport_lengths(kind: Kind, transport: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    let malformed = |what: &str, edit: &dyn Fn(&mut Vec<u8>)| malformed(kind, what, edit);
    match kind.protocol {
        Protocol::Udp => {
            for len in [0_u16, 1, 7, 35, 0x2200, 0xffff] {
                cases.push(malformed(&format!("udp length {len}"), &|frame| {
                    frame[transport + 4..transport + 6].copy_from_slice(&len.to_be_bytes());
                }));
            }
        }
        Protocol::Tcp => {
            for words in [0, 1, 4, 12, 15] {
                cases.push(malformed(
                    &format!("tcp header of {words} words"),
                    &|frame| {
                        frame[transport + 12] = words << 4;
                    },
                ));
            }
            cases.push(malformed("tcp header cut by ip", &|frame| {
                set_ip_payload(frame, kind.is_ipv4, 19);
            }));
        }
    }
    cases
}

/// A packet whose headers contradict each other.
fn malformed(kind: Kind, what: &str, edit: &dyn Fn(&mut Vec<u8>)) -> Case {
    Case::ingress(format!("{}: {what}", kind.name), &kind.packet(80))
        .edit(edit)
        .unchanged(Reason::Malformed)
        .leaves_state()
}

/// The longest TCP header and the shortest datagram.
fn longest_and_shortest() -> Vec<Case> {
    let mut cases = Vec::new();
    // A datagram may be shorter than the packet it comes in: the bytes behind it
    // are not part of it.
    for (name, udp) in [("v4", udp4 as fn(u16) -> Packet), ("v6", udp6)] {
        let short = |frame: &mut Vec<u8>| {
            let transport = udp(0).transport();
            frame[transport + 4..transport + 6].copy_from_slice(&[0, 8]);
        };
        cases.push(
            Case::ingress(format!("udp {name}: length 8 in a longer packet"), &udp(80))
                .redirected(&udp(8080))
                .edit(short),
        );
    }
    for (name, tcp) in [("v4", tcp4 as fn(u16) -> Packet), ("v6", tcp6)] {
        let longest = |packet: Packet| packet.payload(&[]).tcp_options(&[1; 40]);
        cases.push(
            Case::ingress(
                format!("tcp {name}: header of 15 words and no more"),
                &longest(tcp(80)),
            )
            .redirected(&longest(tcp(8080))),
        );
    }
    cases
}

/// Sets the length that the IP header of a frame gives to what follows it.
fn set_ip_payload(frame: &mut [u8], is_ipv4: bool, len: u16) {
    let (at, value) = if is_ipv4 {
        (ETHERNET + 2, 20 + len)
    } else {
        (ETHERNET + 4, len)
    };
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
