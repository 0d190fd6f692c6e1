//! Packets that are redirected and restored, and packets that no rule names.

use portredir_common::flow::{Flow, FlowTable};
use portredir_common::kernel::Socket;
use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;
use portredir_common::wire::frame::Link;

use super::builder::{
    ACK, CLIENT_PORT, FIN, PSH, RST, SYN, URG, other4, other6, syn4, syn6, tcp4, tcp6, udp4,
};
use super::flows::{KINDS, Kind};
use super::mock::Tables;
use super::{CHAINED, Case, Hook, TWO_TO_ONE, key4, seen, seen_from};

pub fn cases() -> Vec<Case> {
    let mut cases = both_ways();
    cases.extend(no_rule());
    cases.extend(direct());
    cases.extend(flags());
    cases.extend(rules());
    cases
}

/// A hit and its reply, for each protocol, on devices with and without an
/// Ethernet header.
fn both_ways() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        for (link, device) in [(Link::Ethernet, ""), (Link::Ip, " on an IP device")] {
            let name = |what| format!("{}{device}: {what}", kind.name);
            let packet = |port| kind.packet(port).on(link);
            let reply = |port| kind.reply(port).on(link);
            let (key, flow) = (kind.key(8080), seen(80, 0));

            cases.push(
                Case::ingress(name("first packet"), &packet(80))
                    .redirected(&packet(8080))
                    .leaves(Tables::default().flow(kind.new_table(), key, flow)),
            );
            cases.push(
                Case::ingress(name("packet of a known flow"), &packet(80))
                    .flow(kind.table(), key, flow)
                    .redirected(&packet(8080))
                    .leaves_state(),
            );
            cases.push(
                Case::egress(name("reply"), &reply(8080))
                    .flow(kind.table(), key, flow)
                    .restored(&reply(80))
                    .leaves_state(),
            );
            cases.push(
                Case::egress(name("reply of a new flow"), &reply(8080))
                    .flow(kind.new_table(), key, flow)
                    .restored(&reply(80)),
            );
            cases.push(
                Case::egress(name("reply of no flow"), &reply(8080))
                    .flow(kind.table(), kind.key_from(CLIENT_PORT + 1, 8080), flow)
                    .unchanged(Reason::Direct)
                    .leaves_state(),
            );
            // The sender of an old packet may answer the dialled port itself.
            cases.push(
                Case::egress(name("packet from the dialled port"), &reply(80))
                    .flow(kind.table(), key, flow)
                    .unchanged(Reason::NoRule),
            );
        }
    }
    cases
}

fn no_rule() -> Vec<Case> {
    let arp = [
        &[0xff; 6][..],
        &[
            2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2,
        ],
        &[198, 51, 100, 7, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1],
    ]
    .concat();
    let mut cases = vec![
        Case::raw(Hook::Ingress, "arp: in", &arp),
        Case::raw(Hook::Egress, "arp: out", &arp),
        // 802.3 with a length where Ethernet II has a type.
        Case::raw(
            Hook::Ingress,
            "802.3 frame",
            &[&[1, 128, 194, 0, 0, 0][..], &[2; 6], &[0, 38], &[66; 60]].concat(),
        ),
        Case::ingress("igmp", &other4(2, &[0x16, 0, 9, 4, 224, 0, 0, 251])),
        Case::ingress("gre v6", &other6(47, &[0; 40])),
        Case::ingress(
            "sctp to 80",
            &other4(132, &[0x9c, 0x40, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8]),
        ),
        Case::ingress(
            "udp lite to 80",
            &other4(136, &[0x9c, 0x40, 0, 80, 0, 8, 0, 0]),
        ),
        // The ICMP of the other version of IP.
        Case::ingress("icmp in ipv6", &other6(1, &[3; 64])),
        Case::ingress("icmpv6 in ipv4", &other4(58, &[1; 64])),
        Case::ingress("version 4 header in an ipv6 frame", &tcp4(80)).edit(|frame| {
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        }),
        Case::ingress("version 6 header in an ipv4 frame", &tcp6(80)).edit(|frame| {
            frame[12..14].copy_from_slice(&[8, 0]);
        }),
        Case::ingress("version 5 on an IP device", &tcp4(80).on(Link::Ip)).edit(|packet| {
            packet[0] = 0x55;
        }),
    ];
    cases.extend(KINDS.into_iter().flat_map(other_ports));
    cases
}

/// Packets to and from ports that no rule names.
fn other_ports(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{}: {what}", kind.name);
    vec![
        Case::ingress(name("to another port"), &kind.packet(443)),
        Case::ingress(
            name("from 80 to another port"),
            &kind.packet(443).src_port(80),
        ),
        Case::egress(name("out from another port"), &kind.reply(443)),
        Case::egress(name("out to 80"), &kind.reply(443).dst_port(80)),
        Case::egress(name("out to 8080"), &kind.reply(443).dst_port(8080)),
        // The bytes of the port, in the other order.
        Case::ingress(name("to port 20480"), &kind.packet(80_u16.swap_bytes())),
    ]
}

/// Traffic of the target itself.
fn direct() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        let name = |what| format!("{}: {what}", kind.name);
        // UDP has no sockets that could tell whose the client port is.
        let after = match kind.protocol {
            Protocol::Tcp => Tables::default(),
            Protocol::Udp => Tables::default().flow(FlowTable::Udp, kind.key(8080), seen(8080, 0)),
        };
        cases.push(
            Case::ingress(name("direct"), &kind.packet(8080))
                .unchanged(Reason::Direct)
                .leaves(after.clone()),
        );
        let mut reply = Case::egress(name("direct reply"), &kind.reply(8080));
        reply.before = after;
        cases.push(reply.unchanged(Reason::Direct).leaves_state());
        // A client of this host that happens to use the port.
        cases.push(
            Case::egress(
                name("out from the target port to 80"),
                &kind.reply(8080).dst_port(80),
            )
            .unchanged(Reason::Direct),
        );
    }
    for (name, syn) in [("v4", syn4(8080)), ("v6", syn6(8080))] {
        cases.push(
            Case::ingress(format!("direct syn {name}"), &syn)
                .unchanged(Reason::Direct)
                .leaves_state(),
        );
    }
    cases
}

/// Every kind of segment is redirected; only a plain SYN begins a flow.
fn flags() -> Vec<Case> {
    let sets = [
        ("syn", SYN),
        ("ack", ACK),
        ("rst", RST),
        ("rst ack", RST | ACK),
        ("fin ack", FIN | ACK),
        ("syn rst", SYN | RST),
        ("syn fin", SYN | FIN),
        ("xmas", FIN | PSH | URG),
        ("null", 0),
    ];
    let reply = |name, flags| {
        Case::egress(
            format!("flags: reply {name}"),
            &tcp4(80).reply().src_port(8080).flags(flags),
        )
        .flow(
            FlowTable::Syn,
            key4(Protocol::Tcp, CLIENT_PORT, 8080),
            seen(80, 0),
        )
        .restored(&tcp4(80).reply().flags(flags))
    };
    let mut cases = Vec::new();
    cases.push(
        Case::ingress("flags: syn ack", &tcp4(80).flags(SYN | ACK))
            .unchanged(Reason::ForeignFlow)
            .leaves_state(),
    );
    for (name, flags) in sets {
        cases.push(
            Case::ingress(format!("flags: {name}"), &tcp4(80).flags(flags))
                .redirected(&tcp4(8080).flags(flags))
                .leaves(Tables::default().flow(
                    FlowTable::Syn,
                    key4(Protocol::Tcp, CLIENT_PORT, 8080),
                    seen(80, 0),
                )),
        );
        cases.push(reply(name, flags));
    }
    cases.push(reply("syn ack", SYN | ACK));
    for (name, syn) in [("v4", syn4 as fn(u16) -> _), ("v6", syn6)] {
        cases.push(
            Case::ingress(format!("syn with options: {name}"), &syn(80)).redirected(&syn(8080)),
        );
    }
    cases
}

/// Lists of rules, and ports that are both source and destination.
fn rules() -> Vec<Case> {
    let mut cases: Vec<_> = KINDS
        .into_iter()
        .flat_map(|kind| [chained(kind), two_to_one(kind), client_ports(kind)])
        .flatten()
        .collect();
    cases.extend(one_protocol());
    cases
}

fn with_rule(flow: Flow, rule: u16) -> Flow {
    Flow { rule, ..flow }
}

/// A port that is both destination and target port.
fn chained(kind: Kind) -> Vec<Case> {
    let name = |what: &str| format!("{}: {what}", kind.name);
    let (table, key) = (kind.table(), |port| kind.key(port));
    vec![
        Case::ingress(name("80 does not chain to 9090"), &kind.packet(80))
            .rules(CHAINED)
            .redirected(&kind.packet(8080))
            .leaves(Tables::default().flow(kind.new_table(), key(8080), seen(80, 0))),
        Case::ingress(name("8080 goes to 9090"), &kind.packet(8080))
            .rules(CHAINED)
            .redirected(&kind.packet(9090))
            .leaves(Tables::default().flow(
                kind.new_table(),
                key(9090),
                with_rule(seen(8080, 0), 1),
            )),
        Case::egress(name("reply of 8080 goes back to 80"), &kind.reply(8080))
            .rules(CHAINED)
            .flow(table, key(8080), seen(80, 0))
            .restored(&kind.reply(80)),
        Case::egress(
            name("reply of 9090 goes back to 8080 alone"),
            &kind.reply(9090),
        )
        .rules(CHAINED)
        .flow(table, key(8080), seen(80, 0))
        .flow(table, key(9090), with_rule(seen(8080, 0), 1))
        .restored(&kind.reply(8080)),
    ]
}

/// Two ports that lead to one.
fn two_to_one(kind: Kind) -> Vec<Case> {
    let name = |what: &str| format!("{}: {what}", kind.name);
    let (table, key) = (kind.table(), |port| kind.key(port));
    let mut cases = Vec::new();
    for (dialled, rule) in [(80, 0), (81, 1)] {
        let flow = with_rule(seen(dialled, 0), rule);
        cases.push(
            Case::ingress(
                name(&format!("{dialled} of two rules")),
                &kind.packet(dialled),
            )
            .rules(TWO_TO_ONE)
            .redirected(&kind.packet(8080))
            .leaves(Tables::default().flow(kind.new_table(), key(8080), flow)),
        );
        cases.push(
            Case::egress(
                name(&format!("reply to {dialled} of two rules")),
                &kind.reply(8080),
            )
            .rules(TWO_TO_ONE)
            .flow(table, key(8080), flow)
            .restored(&kind.reply(dialled)),
        );
    }
    cases
}

/// Client ports that are also ports of rules, the first and the last one.
fn client_ports(kind: Kind) -> Vec<Case> {
    let name = |what: &str| format!("{}: {what}", kind.name);
    let table = kind.table();
    let mut cases = Vec::new();
    for src_port in [80, 8080, 81, 1, 65535] {
        let from = |packet: super::builder::Packet| packet.src_port(src_port);
        let flow = seen_from(src_port, 80, 0);
        cases.push(
            Case::ingress(
                name(&format!("from port {src_port}")),
                &from(kind.packet(80)),
            )
            .redirected(&from(kind.packet(8080))),
        );
        cases.push(
            Case::egress(
                name(&format!("reply to port {src_port}")),
                &kind.reply(8080).dst_port(src_port),
            )
            .flow(table, kind.key_from(src_port, 8080), flow)
            .restored(&kind.reply(80).dst_port(src_port)),
        );
    }
    cases
}

/// Rules for one protocol, and a client of this host.
fn one_protocol() -> Vec<Case> {
    vec![
        Case::ingress("rule for tcp alone: udp", &udp4(80)).rules(&["80:8080"]),
        Case::ingress("rule for tcp alone: tcp", &tcp4(80))
            .rules(&["80:8080"])
            .redirected(&tcp4(8080)),
        Case::ingress("rule for udp alone: tcp", &tcp4(53)).rules(&["53:5353/udp"]),
        Case::ingress("rule for udp alone: udp", &udp4(53))
            .rules(&["53:5353/udp"])
            .redirected(&udp4(5353)),
        Case::ingress("first and last port", &udp4(1))
            .rules(&["1:65535/udp"])
            .redirected(&udp4(65535)),
        // A connection of this host from port 80, to another host.
        Case::ingress(
            "answer to a client of this host that uses port 80",
            &tcp4(80).flags(SYN | ACK),
        )
        .socket(key4(Protocol::Tcp, CLIENT_PORT, 80), Socket::Connection)
        .unchanged(Reason::ForeignFlow)
        .leaves_state(),
    ]
}
