//! TCP connections whose client was given another port: after a collision, by state.

use portredir_common::flow::{FlowKey, FlowTable};
use portredir_common::kernel::Socket;
use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;

use super::builder::{ACK, PSH, Packet};
use super::flows::{KINDS, Kind};
use super::mock::Tables;
use super::tcp::syn;
use super::{Case, seen};

/// A client port that was given on a collision.
const REMAPPED: u16 = 50_123;

pub fn cases() -> Vec<Case> {
    KINDS
        .into_iter()
        .filter(|kind| kind.protocol == Protocol::Tcp)
        .map(|kind| Given {
            kind,
            key: kind.key(8080),
            remapped: kind.key_from(REMAPPED, 8080),
        })
        .flat_map(|given| {
            [
                given.redirected(),
                given.direct(),
                given.unconfirmed(),
                given.redirected_lost(),
                given.direct_lost(),
            ]
        })
        .flatten()
        .collect()
}

/// A client that was given a port.
#[derive(Clone, Copy)]
struct Given {
    kind: Kind,
    /// The flow that holds the client's own port.
    key: FlowKey,
    /// The flow under the given port.
    remapped: FlowKey,
}

impl Given {
    fn name(self, what: &str) -> String {
        format!("{} remapped: {what}", self.kind.name)
    }

    fn ack(self, port: u16) -> Packet {
        self.kind.packet(port).flags(ACK)
    }

    fn data(self, port: u16) -> Packet {
        self.kind.packet(port).flags(ACK | PSH)
    }

    /// A packet that comes in, in the state `before`.
    fn ingress(self, what: &str, packet: &Packet, before: &Tables) -> Case {
        Case {
            before: before.clone(),
            ..Case::ingress(self.name(what), packet)
        }
    }

    /// A packet that goes out, in the state `before`.
    fn egress(self, what: &str, packet: &Packet, before: &Tables) -> Case {
        Case {
            before: before.clone(),
            ..Case::egress(self.name(what), packet)
        }
    }

    fn server_reply(self, port: u16) -> Packet {
        self.kind.reply(port).dst_port(REMAPPED)
    }

    /// A redirected connection has the given port.
    fn redirected_state(self) -> Tables {
        Tables::default()
            .flow(FlowTable::Tcp, self.remapped, seen(80, 0))
            .remap(self.kind.key(80), REMAPPED)
    }

    /// A direct connection has the given port, beside a redirected one.
    fn direct_state(self) -> Tables {
        Tables::default()
            .flow(FlowTable::Tcp, self.key, seen(80, 0))
            .flow(FlowTable::Tcp, self.remapped, seen(8080, 0))
            .remap(self.key, REMAPPED)
    }

    /// No server has accepted the redirected connection yet.
    fn unconfirmed_state(self) -> Tables {
        Tables::default()
            .flow(FlowTable::Syn, self.remapped, seen(80, 0))
            .remap(self.kind.key(80), REMAPPED)
    }

    fn redirected(self) -> Vec<Case> {
        let Self { kind, key, .. } = self;
        let before = &self.redirected_state();
        vec![
            self.ingress("redirected", &self.ack(80), before)
                .redirected(&to_server(self.ack(8080)))
                .leaves_state(),
            self.ingress("redirected, repeated syn", &syn(kind, 80), before)
                .socket(key, Socket::Connection)
                .redirected(&to_server(syn(kind, 8080)))
                .leaves_state(),
            self.egress("reply to redirected", &self.server_reply(8080), before)
                .restored(&kind.reply(80))
                .leaves_state(),
            self.egress(
                "reply to the direct connection beside it",
                &kind.reply(8080),
                before,
            )
            .unchanged(Reason::Direct),
            self.ingress("the direct connection beside it", &self.ack(8080), before)
                .unchanged(Reason::Direct)
                .leaves_state(),
        ]
    }

    fn direct(self) -> Vec<Case> {
        let Self { kind, key, .. } = self;
        let before = &self.direct_state();
        vec![
            self.ingress("direct", &self.ack(8080), before)
                .becomes(Reason::DirectRemapped, &to_server(self.ack(8080)))
                .leaves_state(),
            self.ingress("direct, repeated syn", &syn(kind, 8080), before)
                .socket(key, Socket::Connection)
                .becomes(Reason::DirectRemapped, &to_server(syn(kind, 8080)))
                .leaves_state(),
            self.egress("reply to direct", &self.server_reply(8080), before)
                .restored(&kind.reply(8080))
                .leaves_state(),
            self.ingress("the redirected connection beside it", &self.ack(80), before)
                .redirected(&self.ack(8080))
                .leaves_state(),
        ]
    }

    fn unconfirmed(self) -> Vec<Case> {
        let Self {
            kind,
            key,
            remapped,
        } = self;
        let before = &self.unconfirmed_state();
        let confirmed = self.redirected_state();
        vec![
            self.ingress("unconfirmed, repeated syn", &syn(kind, 80), before)
                .socket(key, Socket::Connection)
                .socket(remapped, Socket::Connection)
                .redirected(&to_server(syn(kind, 8080)))
                .leaves_state(),
            self.ingress("unconfirmed, data", &self.data(80), before)
                .socket(key, Socket::Connection)
                .socket(remapped, Socket::Connection)
                .redirected(&to_server(self.data(8080)))
                .leaves(confirmed.flow(FlowTable::Syn, remapped, seen(80, 0))),
            self.egress("unconfirmed, reply", &self.server_reply(8080), before)
                .restored(&kind.reply(80))
                .leaves_state(),
        ]
    }

    fn redirected_lost(self) -> Vec<Case> {
        let lost = |what| {
            Case::ingress(self.name(what), &self.ack(80))
                .remap(self.kind.key(80), REMAPPED)
                .socket(self.key, Socket::Connection)
                .redirected(&to_server(self.ack(8080)))
        };
        vec![
            lost("the entry was lost -> a connection again")
                .socket(self.remapped, Socket::Connection)
                .leaves(self.redirected_state()),
            lost("the entry and the connection were lost -> unconfirmed")
                .leaves(self.unconfirmed_state()),
        ]
    }

    /// The entry of a direct flow was lost. Only packets of the connection with the given
    /// port may say that the port is theirs; a SYN could as well be beside a connection
    /// that the client began there.
    fn direct_lost(self) -> Vec<Case> {
        let Self {
            kind,
            key,
            remapped,
        } = self;
        let held = self.direct_state().tcp[&key];
        let lost = |what, packet: &Packet| {
            Case::ingress(self.name(what), packet)
                .flow(FlowTable::Tcp, key, held)
                .remap(key, REMAPPED)
                .socket(key, Socket::Connection)
        };
        let unconfirmed = move |key_from: FlowKey, port| {
            Tables::default()
                .flow(FlowTable::Tcp, key, held)
                .flow(FlowTable::Syn, key_from, seen(8080, 0))
                .remap(key, port)
        };
        vec![
            lost("the entry of a direct flow was lost", &self.ack(8080))
                .socket(remapped, Socket::Connection)
                .becomes(Reason::DirectRemapped, &to_server(self.ack(8080)))
                .leaves(self.direct_state()),
            lost("a direct syn, nobody has that port", &syn(kind, 8080))
                .becomes(Reason::DirectRemapped, &to_server(syn(kind, 8080)))
                .leaves(unconfirmed(remapped, REMAPPED)),
            lost("a direct syn, somebody has that port", &syn(kind, 8080))
                .socket(remapped, Socket::Connection)
                .remapped(Reason::DirectRemapped, move |port| {
                    let packet = syn(kind, 8080).src_port(port);
                    (packet, unconfirmed(kind.key_from(port, 8080), port))
                }),
        ]
    }
}

/// A packet as the server gets it.
fn to_server(packet: Packet) -> Packet {
    packet.src_port(REMAPPED)
}
