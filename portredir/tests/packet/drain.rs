//! While the program waits for its end, known flows go on and new ones go to
//! the dialled port itself.

use portredir_common::flow::FlowTable;
use portredir_common::kernel::Socket;
use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;

use super::builder::{ACK, CLIENT_PORT, FIN, Packet, RST};
use super::error::IcmpError;
use super::flows::{KINDS, Kind};
use super::mock::Tables;
use super::tcp::{syn, with_rule};
use super::{CHAINED, Case, TWO_TO_ONE, seen};

/// A client port that was given on a collision.
const GIVEN: u16 = 50_123;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        cases.extend(new_flows(kind));
        cases.extend(known_flows(kind));
        cases.extend(direct_traffic(kind));
        let of_protocol = match kind.protocol {
            Protocol::Tcp => vec![known_tcp(kind), new_tcp(kind), remapped_tcp(kind)],
            Protocol::Udp => vec![udp(kind)],
        };
        cases.extend(of_protocol.into_iter().flatten());
    }
    cases.into_iter().map(Case::draining).collect()
}

fn name(kind: Kind, what: &str) -> String {
    format!("{} drain: {what}", kind.name)
}

/// A packet that begins a flow.
fn first(kind: Kind, port: u16) -> Packet {
    match kind.protocol {
        Protocol::Tcp => syn(kind, port),
        Protocol::Udp => kind.packet(port),
    }
}

/// A packet of a flow that goes on to the target.
fn known(kind: Kind, packet: &Packet, what: &str) -> Case {
    Case::ingress(name(kind, what), packet).redirected(&packet.clone().dst_port(8080))
}

/// Flows that would begin now.
fn new_flows(kind: Kind) -> Vec<Case> {
    let name = |what| name(kind, what);
    let key = kind.key(8080);
    vec![
        Case::ingress(name("a new flow"), &first(kind, 80))
            .unchanged(Reason::Draining)
            .leaves_state(),
        Case::ingress(name("a new flow beside a direct one"), &first(kind, 80))
            .flow(FlowTable::Udp, key, seen(8080, 0))
            .socket_if(kind, Socket::Connection)
            .unchanged(Reason::Draining)
            .leaves_state(),
        Case::ingress(
            name("a new flow beside one by another port"),
            &first(kind, 80),
        )
        .rules(TWO_TO_ONE)
        .flow(kind.table(), key, with_rule(seen(81, 0), 1))
        .socket_if(kind, Socket::Connection)
        .unchanged(Reason::Draining)
        .leaves_state(),
        Case::ingress(
            name("not for this host"),
            &first(kind, 80).to(elsewhere(kind)),
        )
        .unchanged(Reason::NotLocal)
        .leaves_state(),
        // A target of one rule that another one dials.
        Case::ingress(name("a new flow of two rules"), &first(kind, 8080))
            .rules(CHAINED)
            .unchanged(Reason::Direct),
    ]
}

/// Flows that began before, and errors about them.
fn known_flows(kind: Kind) -> Vec<Case> {
    let name = |what| name(kind, what);
    let (key, dialled) = (kind.key(8080), kind.key(80));
    let given = kind.key_from(GIVEN, 8080);
    let icmp = if kind.is_ipv4 { 3 } else { 1 };
    // A router quotes a reply as the client would have got it.
    let error = IcmpError::new(icmp, 1, kind.reply(80));
    let translated = error.clone().ports(8080, CLIENT_PORT).packet();
    vec![
        known(kind, &kind.packet(80), "a known flow goes on")
            .flow(kind.table(), key, seen(80, 60))
            .socket_if(kind, Socket::Connection)
            .continues_flow()
            .leaves(Tables::default().flow(kind.table(), key, seen(80, 0))),
        Case::ingress(name("a remapped flow goes on"), &kind.packet(80))
            .flow(kind.table(), given, seen(80, 0))
            .remap(dialled, GIVEN)
            .redirected(&kind.packet(8080).src_port(GIVEN))
            .continues_flow()
            .leaves_state(),
        Case::egress(name("a reply"), &kind.reply(8080))
            .flow(kind.table(), key, seen(80, 0))
            .restored(&kind.reply(80)),
        Case::ingress(name("a router's error"), &error.packet())
            .flow(kind.table(), key, seen(80, 0))
            .becomes(Reason::IcmpTranslated, &translated)
            .leaves_state(),
        Case::ingress(name("a router's error about nothing"), &error.packet())
            .unchanged(Reason::IcmpForeign)
            .leaves_state(),
    ]
}

/// Traffic that no rule redirected before.
fn direct_traffic(kind: Kind) -> Vec<Case> {
    let name = |what| name(kind, what);
    vec![
        Case::egress(name("a direct reply"), &kind.reply(8080)).unchanged(Reason::Direct),
        Case::ingress(name("direct traffic"), &kind.packet(8080)).unchanged(Reason::Direct),
        Case::ingress(name("a direct flow begins"), &first(kind, 8080)).unchanged(Reason::Direct),
        Case::ingress(name("other traffic"), &first(kind, 9090)).unchanged(Reason::NoRule),
    ]
}

/// A packet to the dialled port itself, of a flow that does not begin.
fn refused(kind: Kind, packet: &Packet, what: &str) -> Case {
    Case::ingress(name(kind, what), packet).unchanged(Reason::Draining)
}

/// Connections that began before.
fn known_tcp(kind: Kind) -> Vec<Case> {
    let key = kind.key(8080);
    let segment = |flags| kind.packet(80).flags(flags);
    let known = |packet: &Packet, what| known(kind, packet, what);
    vec![
        known(&syn(kind, 80), "a repeated syn")
            .flow(FlowTable::Syn, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .continues_flow()
            .leaves_state(),
        known(&segment(ACK), "the ack of one that is begun")
            .flow(FlowTable::Syn, key, seen(80, 0))
            .leaves_state(),
        known(&segment(FIN | ACK), "the end in TIME_WAIT")
            .flow(FlowTable::Tcp, key, seen(80, 0))
            .socket(key, Socket::TimeWait)
            .leaves_state(),
        known(&segment(RST), "a reset")
            .flow(FlowTable::Tcp, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .leaves_state(),
        known(&segment(ACK), "a lost entry comes back")
            .socket(key, Socket::Connection)
            .leaves(Tables::default().flow(FlowTable::Tcp, key, seen(80, 0))),
    ]
}

/// Segments of connections that are over, that would begin, or of nobody.
fn new_tcp(kind: Kind) -> Vec<Case> {
    let name = |what| name(kind, what);
    let (key, dialled) = (kind.key(8080), kind.key(80));
    let segment = |flags| kind.packet(80).flags(flags);
    let new = |packet: &Packet, what| refused(kind, packet, what);
    vec![
        // What follows this SYN must not be taken for the old connection.
        new(&syn(kind, 80), "a syn where one is over")
            .flow(FlowTable::Tcp, key, seen(80, 60))
            .flow(FlowTable::Syn, key, seen(80, 60))
            .leaves(Tables::default()),
        new(&syn(kind, 80), "a syn in TIME_WAIT")
            .flow(FlowTable::Tcp, key, seen(80, 60))
            .socket(key, Socket::TimeWait)
            .leaves(Tables::default()),
        // The stack answers, from the port that was dialled: with a reset, or
        // as a server there that sent a SYN cookie.
        new(&segment(ACK), "an ack of nobody").leaves_state(),
        new(&segment(ACK), "an ack to a server there")
            .socket(dialled, Socket::Connection)
            .leaves_state(),
        Case::ingress(name("an ack to servers on both ports"), &segment(ACK))
            .socket(dialled, Socket::Connection)
            .socket(key, Socket::Connection)
            .unchanged(Reason::ForeignFlow)
            .leaves_state(),
    ]
}

/// Connections that were given another client port before.
fn remapped_tcp(kind: Kind) -> Vec<Case> {
    let name = |what| name(kind, what);
    let dialled = kind.key(80);
    let given = kind.key_from(GIVEN, 8080);
    let segment = |flags| kind.packet(80).flags(flags);
    let new = |packet: &Packet, what| refused(kind, packet, what);
    vec![
        new(&syn(kind, 80), "a syn where a remapped one is over")
            .flow(FlowTable::Tcp, given, seen(80, 0))
            .remap(dialled, GIVEN)
            .leaves(Tables::default().remap(dialled, GIVEN)),
        new(&segment(ACK), "an ack after that")
            .remap(dialled, GIVEN)
            .leaves_state(),
        Case::ingress(name("a repeated syn of a remapped one"), &syn(kind, 80))
            .flow(FlowTable::Tcp, given, seen(80, 0))
            .remap(dialled, GIVEN)
            .socket(given, Socket::Connection)
            .redirected(&syn(kind, 8080).src_port(GIVEN))
            .leaves_state(),
        Case::ingress(name("a lost entry of a remapped one"), &segment(ACK))
            .remap(dialled, GIVEN)
            .socket(given, Socket::Connection)
            .redirected(&kind.packet(8080).src_port(GIVEN).flags(ACK))
            .leaves(
                Tables::default()
                    .flow(FlowTable::Tcp, given, seen(80, 0))
                    .remap(dialled, GIVEN),
            ),
    ]
}

fn udp(kind: Kind) -> Vec<Case> {
    let name = |what| name(kind, what);
    let (key, dialled) = (kind.key(8080), kind.key(80));
    vec![
        Case::ingress(name("a flow that was idle"), &kind.packet(80))
            .flow(FlowTable::Udp, key, seen(80, 130))
            .unchanged(Reason::Draining)
            .leaves_state(),
        // To which target it went is not known any more.
        Case::ingress(name("a lost entry of a remapped one"), &kind.packet(80))
            .remap(dialled, GIVEN)
            .unchanged(Reason::Draining)
            .leaves_state(),
    ]
}

fn elsewhere(kind: Kind) -> std::net::IpAddr {
    if kind.is_ipv4 {
        [192, 0, 2, 99].into()
    } else {
        [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99].into()
    }
}

impl Case {
    /// A socket of the flow to 8080, where the protocol has such: for TCP.
    pub fn socket_if(self, kind: Kind, socket: Socket) -> Self {
        match kind.protocol {
            Protocol::Tcp => self.socket(kind.key(8080), socket),
            Protocol::Udp => self,
        }
    }
}
