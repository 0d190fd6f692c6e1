//! ICMP messages that stay as they are: about nothing of ours, too short, or no
//! errors at all.

use std::net::IpAddr;

use portredir_common::flow::FlowTable;
use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;

use super::builder::{Body, CLIENT_PORT, MoreFragments, Packet};
use super::error::IcmpError;
use super::flows::{KINDS, Kind};
use super::icmp::{about_reply, about_request};
use super::{Case, key, seen, seen_from};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        cases.extend(foreign(kind));
        cases.extend(cut(kind));
        cases.extend(in_fragments(kind));
    }
    cases.extend(no_errors());
    cases
}

/// Errors that quote no flow of ours.
fn foreign(kind: Kind) -> Vec<Case> {
    [other_flows(kind), other_hosts(kind), outgoing_foreign(kind)]
        .into_iter()
        .flatten()
        .map(|case| case.unchanged(Reason::IcmpForeign).leaves_state())
        .chain(direct_datagram(kind))
        .collect()
}

/// An error about a reply of this host.
fn in_about(kind: Kind, about: Packet) -> Packet {
    IcmpError {
        about,
        ..about_reply(kind)
    }
    .packet()
}

/// Errors that come in, about other flows of this host.
fn other_flows(kind: Kind) -> Vec<Case> {
    let mut cases = Vec::new();
    let name = |what: &str| format!("icmp about {}: {what}", kind.name);
    let mut foreign = |case: Case| cases.push(case);
    let about = |packet: Packet| in_about(kind, packet);
    let reply = || kind.reply(80);

    foreign(Case::ingress(name("in, no flow"), &about(reply())));
    foreign(
        Case::ingress(
            name("in, another client port"),
            &about(reply().dst_port(40_001)),
        )
        .flow(kind.table(), kind.key(8080), seen(80, 0)),
    );
    foreign(
        Case::ingress(
            name("in, another destination port"),
            &about(reply().src_port(81)),
        )
        .rules(super::TWO_TO_ONE)
        .flow(kind.table(), kind.key(8080), seen(80, 0)),
    );
    foreign(
        Case::ingress(
            name("in, the client's port behind a collision"),
            &about(reply()),
        )
        .flow(
            kind.table(),
            kind.key(8080),
            seen_from(CLIENT_PORT + 1, 80, 0),
        ),
    );
    foreign(
        Case::ingress(name("in, another port"), &about(reply().src_port(443))).flow(
            kind.table(),
            kind.key(8080),
            seen(80, 0),
        ),
    );
    // The quoted port is not the one that the client of the flow connected to.
    foreign(
        Case::ingress(name("in, direct"), &about(reply().src_port(8080))).flow(
            kind.table(),
            kind.key(8080),
            seen(80, 0),
        ),
    );
    cases
}

/// Forwarded errors that come in: about, or to, another host.
fn other_hosts(kind: Kind) -> Vec<Case> {
    let mut cases = Vec::new();
    let name = |what: &str| format!("icmp about {}: {what}", kind.name);
    let mut foreign = |case: Case| cases.push(case);
    let about = |packet: Packet| in_about(kind, packet);
    let reply = || kind.reply(80);
    let other = kind.packet(0).src;
    foreign(
        Case::ingress(name("in, about another host"), &{
            let mut packet = about(reply().from(other, 80));
            packet.dst = reply().src;
            packet
        })
        .flow(kind.table(), kind.key(8080), seen(80, 0)),
    );
    // The address was this host's until a moment ago.
    let gone = if kind.is_ipv4 {
        IpAddr::from([192, 0, 2, 9])
    } else {
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9])
    };
    let stale = key(kind.protocol, (other, CLIENT_PORT), (gone, 8080));
    foreign(
        Case::ingress(name("in, about an address that is gone"), &{
            let mut packet = about(reply().from(gone, 80));
            packet.dst = reply().src;
            packet
        })
        .flow(kind.table(), stale, seen(80, 0)),
    );
    foreign(
        Case::ingress(name("in, to another host"), &{
            let mut packet = about(reply());
            packet.dst = other;
            packet
        })
        .flow(kind.table(), kind.key(8080), seen(80, 0)),
    );
    cases
}

/// Errors that go out.
fn outgoing_foreign(kind: Kind) -> Vec<Case> {
    let mut cases = Vec::new();
    let name = |what: &str| format!("icmp about {}: {what}", kind.name);
    let mut foreign = |case: Case| cases.push(case);
    let request = about_request(kind);
    let about = |packet: Packet| {
        IcmpError {
            about: packet,
            ..request.clone()
        }
        .packet()
    };
    foreign(Case::egress(
        name("out, no flow"),
        &about(kind.packet(8080)),
    ));
    foreign(
        Case::egress(name("out, another port"), &about(kind.packet(80))).flow(
            kind.table(),
            kind.key(8080),
            seen(80, 0),
        ),
    );
    foreign(
        Case::egress(
            name("out, another client"),
            &about(kind.packet(8080).src_port(40_001)),
        )
        .flow(kind.table(), kind.key(8080), seen(80, 0)),
    );
    cases
}

/// A direct datagram, which has an entry too.
fn direct_datagram(kind: Kind) -> Option<Case> {
    if kind.protocol != Protocol::Udp {
        return None;
    }
    let direct = IcmpError {
        about: kind.reply(8080),
        ..about_reply(kind)
    };
    let name = format!("icmp about {}: in, direct with an entry", kind.name);
    let case = Case::ingress(name, &direct.packet())
        .flow(FlowTable::Udp, kind.key(8080), seen(8080, 0))
        .unchanged(Reason::IcmpTranslated)
        .leaves_state();
    Some(case)
}

/// A message beside a flow, which stays as it is.
fn beside_a_flow(kind: Kind, what: &str, packet: &Packet) -> Case {
    Case::ingress(format!("icmp about {}: {what}", kind.name), packet).flow(
        kind.table(),
        kind.key(8080),
        seen(80, 0),
    )
}

/// Quotes without ports.
fn cut(kind: Kind) -> Vec<Case> {
    let error = about_reply(kind);
    let case = |what: &str, packet: &Packet, reason| {
        let case = beside_a_flow(kind, what, packet);
        case.unchanged(reason).leaves_state()
    };
    let mut cases = Vec::new();
    for quoted in 0..4 {
        cases.push(case(
            &format!("in, quoting {quoted} bytes of the transport header"),
            &error.clone().quoted(quoted).packet(),
            Reason::Malformed,
        ));
    }
    for quoted in [0, 1, 7] {
        let mut packet = error.packet();
        packet.payload.truncate(quoted);
        cases.push(case(
            &format!("in, quoting {quoted} bytes of the IP header"),
            &packet,
            Reason::NoRule,
        ));
    }
    // The rest of the header, up to the ports, is behind the end of the error.
    let mut packet = error.packet();
    packet.payload.truncate(kind.reply(0).ip_header_len());
    let mut padded = case("in, ports in the padding", &packet, Reason::Malformed);
    padded.packet.extend([0, 80, 0x9c, 0x40, 0, 0, 0, 0]);
    cases.push(padded);
    cases
}

/// Errors about later fragments, and errors that are fragments themselves.
fn in_fragments(kind: Kind) -> Vec<Case> {
    let later = |packet: Packet| {
        packet
            .payload(&[0, 80, 0x9c, 0x40].repeat(20))
            .fragment(24, 24, MoreFragments::No)
    };
    let fragment = |about: IcmpError| IcmpError {
        about: later(about.about.clone()),
        ..about
    };
    let error = about_reply(kind);
    // RFC 1122, 3.2.2: never sent in fragments, as it would have to be whole to
    // be checked.
    let len = if kind.is_ipv4 { 32 } else { 56 };
    let first = error.packet().fragment(0, len, MoreFragments::Yes);
    vec![
        beside_a_flow(
            kind,
            "in, about a later fragment",
            &fragment(error).packet(),
        ),
        Case::egress(
            format!("icmp about {}: out, about a later fragment", kind.name),
            &fragment(about_request(kind)).packet(),
        )
        .flow(kind.table(), kind.key(8080), seen(80, 0)),
        beside_a_flow(kind, "in, in fragments", &first),
    ]
}

/// Messages that are no errors, whatever they contain.
fn no_errors() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        let (types, echo): (&[u8], _) = if kind.is_ipv4 {
            (&[0, 5, 8, 9, 10, 13, 14, 15, 40, 255], 8)
        } else {
            (&[0, 5, 100, 127, 128, 129, 133, 135, 136, 137, 255], 128)
        };
        for &message in types {
            let about = IcmpError {
                kind: message,
                code: 0,
                ..about_reply(kind)
            };
            cases.push(
                Case::ingress(
                    format!("icmp type {message} with {}: in", kind.name),
                    &about.packet(),
                )
                .flow(kind.table(), kind.key(8080), seen(80, 0)),
            );
            let about = IcmpError {
                kind: message,
                code: 0,
                ..about_request(kind)
            };
            cases.push(
                Case::egress(
                    format!("icmp type {message} with {}: out", kind.name),
                    &about.packet(),
                )
                .flow(kind.table(), kind.key(8080), seen(80, 0)),
            );
        }
        // An error about a message that is none.
        let ping = Packet {
            body: Body::Icmp {
                kind: echo,
                code: 0,
                rest: [0, 1, 0, 1],
            },
            ..kind.reply(80)
        };
        let about = IcmpError {
            about: ping,
            ..about_reply(kind)
        };
        cases.push(
            Case::ingress(
                format!("icmp about an echo: {}", kind.name),
                &about.packet(),
            )
            .unchanged(Reason::IcmpForeign),
        );
    }
    cases
}
