//! TCP connections that would have one pair of ports behind the redirect.

use portredir_common::flow::FlowTable;
use portredir_common::kernel::Socket;
use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;

use super::builder::{ACK, Packet};
use super::flows::{KINDS, Kind};
use super::mock::Tables;
use super::tcp::{syn, with_rule};
use super::{Case, TWO_TO_ONE, seen};

pub fn cases() -> Vec<Case> {
    KINDS
        .into_iter()
        .filter(|kind| kind.protocol == Protocol::Tcp)
        .flat_map(|kind| {
            [
                redirected_collisions(kind),
                stray_acks(kind),
                direct_collisions(kind),
            ]
        })
        .flatten()
        .collect()
}

fn name(kind: Kind, what: &str) -> String {
    format!("{} collision: {what}", kind.name)
}

/// A packet to `dst_port` of a flow that gets a port: the packet that comes of `packet`, and
/// the state that comes of `before`.
fn given(
    kind: Kind,
    before: Tables,
    (dst_port, rule): (u16, u16),
    packet: Packet,
) -> impl Fn(u16) -> (Packet, Tables) + Send + Sync {
    move |port| {
        let flow = with_rule(seen(dst_port, 0), rule);
        let tables = before
            .clone()
            .flow(FlowTable::Syn, kind.key_from(port, 8080), flow)
            .remap(kind.key(dst_port), port);
        (packet.clone().src_port(port), tables)
    }
}

/// A client port that is taken when a redirected connection begins.
fn redirected_collisions(kind: Kind) -> Vec<Case> {
    let key = kind.key(8080);
    let held = |table| Tables::default().flow(table, key, seen(80, 0));
    let through_another_port = |what, table| {
        Case::ingress(name(kind, what), &syn(kind, 81))
            .rules(TWO_TO_ONE)
            .flow(table, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .remapped(
                Reason::Redirected,
                given(kind, held(table), (81, 1), syn(kind, 8080)),
            )
    };
    vec![
        Case::ingress(name(kind, "with a direct connection"), &syn(kind, 80))
            .socket(key, Socket::Connection)
            .remapped(
                Reason::Redirected,
                given(kind, Tables::default(), (80, 0), syn(kind, 8080)),
            ),
        through_another_port("with a connection through another port", FlowTable::Tcp),
        through_another_port("with a connection that is being set up", FlowTable::Syn),
        Case::ingress(
            name(kind, "with a direct connection that is over"),
            &syn(kind, 80),
        )
        .flow(FlowTable::Tcp, key, seen(8080, 0))
        .redirected(&syn(kind, 8080))
        .begins_flow()
        .leaves(held(FlowTable::Syn)),
    ]
}

/// A stray ACK beside a flow that holds its client port. It is not of a connection that
/// lost its entry: that one is known by another port, and keeps it.
fn stray_acks(kind: Kind) -> Vec<Case> {
    let key = kind.key(8080);
    let stray = |what, table, dst_port| {
        let before = Tables::default().flow(table, key, seen(dst_port, 0));
        let packet = kind.packet(8080).flags(ACK);
        Case::ingress(name(kind, what), &kind.packet(81).flags(ACK))
            .rules(TWO_TO_ONE)
            .flow(table, key, seen(dst_port, 0))
            .socket(key, Socket::Connection)
            .remapped(Reason::Redirected, given(kind, before, (81, 1), packet))
    };
    vec![
        stray(
            "stray ACK beside an established flow -> remapped",
            FlowTable::Tcp,
            80,
        ),
        stray(
            "stray ACK beside an unconfirmed flow -> remapped",
            FlowTable::Syn,
            80,
        ),
        // Somebody forged it, to have the connection's replies renamed.
        stray(
            "stray ACK beside a direct connection -> remapped",
            FlowTable::Tcp,
            8080,
        ),
    ]
}

/// A client port that is taken when a direct connection begins.
fn direct_collisions(kind: Kind) -> Vec<Case> {
    let key = kind.key(8080);
    let case = |what, table| {
        let held = Tables::default().flow(table, key, seen(80, 0));
        Case::ingress(name(kind, what), &syn(kind, 8080))
            .flow(table, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .remapped(
                Reason::DirectRemapped,
                given(kind, held, (8080, 0), syn(kind, 8080)),
            )
    };
    vec![
        case("direct, with a redirected connection", FlowTable::Tcp),
        case("direct, with one that is being set up", FlowTable::Syn),
        // The kernel itself judges a SYN for a connection without an entry.
        Case::ingress(name(kind, "direct, with itself"), &syn(kind, 8080))
            .socket(key, Socket::Connection)
            .unchanged(Reason::Direct)
            .leaves_state(),
        Case::ingress(name(kind, "direct, with itself, noted"), &syn(kind, 8080))
            .flow(FlowTable::Tcp, key, seen(8080, 0))
            .socket(key, Socket::Connection)
            .unchanged(Reason::Direct)
            .leaves_state(),
    ]
}
