//! TCP connections that would have one pair of ports behind the redirect.

use portredir_common::flow::FlowTable;
use portredir_common::kernel::Socket;
use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;

use super::flows::{KINDS, Kind};
use super::host::Tables;
use super::packet::{ACK, PSH, Packet};
use super::tcp::{syn, with_rule};
use super::{Case, TWO_TO_ONE, seen};

/// A client port that was given on a collision.
const REMAPPED: u16 = 50_123;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS
        .into_iter()
        .filter(|kind| kind.protocol == Protocol::Tcp)
    {
        cases.extend(redirected_collisions(kind));
        cases.extend(direct_collisions(kind));
        cases.extend(remapped(kind));
    }
    cases
}

/// A client port that is taken when a redirected connection begins.
fn redirected_collisions(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} collision: {what}", kind.name);
    let key = kind.key(8080);
    let expected = move |before: Tables, dialled: u16, rule| {
        move |port| {
            let tables = before
                .clone()
                .flow(
                    FlowTable::Syn,
                    kind.key_from(port, 8080),
                    with_rule(seen(dialled, 0), rule),
                )
                .remap(kind.key(dialled), port);
            (syn(kind, 8080).src_port(port), tables)
        }
    };
    let held = Tables::default().flow(FlowTable::Tcp, key, seen(80, 0));
    let stray = move |before: Tables| {
        move |port| {
            let tables = before
                .clone()
                .flow(
                    FlowTable::Syn,
                    kind.key_from(port, 8080),
                    with_rule(seen(81, 0), 1),
                )
                .remap(kind.key(81), port);
            (kind.packet(8080).src_port(port).flags(ACK), tables)
        }
    };
    let begun = Tables::default().flow(FlowTable::Syn, key, seen(80, 0));
    vec![
        Case::ingress(name("with a direct connection"), &syn(kind, 80))
            .socket(key, Socket::Connection)
            .remapped(Reason::Redirected, expected(Tables::default(), 80, 0)),
        Case::ingress(
            name("with a connection through another port"),
            &syn(kind, 81),
        )
        .rules(TWO_TO_ONE)
        .flow(FlowTable::Tcp, key, seen(80, 0))
        .socket(key, Socket::Connection)
        .remapped(Reason::Redirected, expected(held.clone(), 81, 1)),
        Case::ingress(
            name("with a connection that is being set up"),
            &syn(kind, 81),
        )
        .rules(TWO_TO_ONE)
        .flow(FlowTable::Syn, key, seen(80, 0))
        .socket(key, Socket::Connection)
        .remapped(Reason::Redirected, expected(begun.clone(), 81, 1)),
        // Not a connection that lost its entry: that one is known by another
        // port, and keeps it.
        Case::ingress(
            name("a stray ack, beside a connection"),
            &kind.packet(81).flags(ACK),
        )
        .rules(TWO_TO_ONE)
        .flow(FlowTable::Tcp, key, seen(80, 0))
        .socket(key, Socket::Connection)
        .remapped(Reason::Redirected, stray(held)),
        Case::ingress(
            name("a stray ack, beside one being set up"),
            &kind.packet(81).flags(ACK),
        )
        .rules(TWO_TO_ONE)
        .flow(FlowTable::Syn, key, seen(80, 0))
        .socket(key, Socket::Connection)
        .remapped(Reason::Redirected, stray(begun.clone())),
        // Somebody forged it, to have the connection's replies renamed.
        Case::ingress(
            name("a stray ack, beside a direct connection"),
            &kind.packet(81).flags(ACK),
        )
        .rules(TWO_TO_ONE)
        .flow(FlowTable::Tcp, key, seen(8080, 0))
        .socket(key, Socket::Connection)
        .remapped(
            Reason::Redirected,
            stray(Tables::default().flow(FlowTable::Tcp, key, seen(8080, 0))),
        ),
        Case::ingress(
            name("with a direct connection that is over"),
            &syn(kind, 80),
        )
        .flow(FlowTable::Tcp, key, seen(8080, 0))
        .redirected(&syn(kind, 8080))
        .begins(true)
        .leaves(begun),
    ]
}

/// A client port that is taken when a direct connection begins.
fn direct_collisions(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} collision: {what}", kind.name);
    let key = kind.key(8080);
    let expected = move |before: Tables| {
        move |port| {
            let tables = before
                .clone()
                .flow(FlowTable::Syn, kind.key_from(port, 8080), seen(8080, 0))
                .remap(key, port);
            (syn(kind, 8080).src_port(port), tables)
        }
    };
    let held = |table| Tables::default().flow(table, key, seen(80, 0));
    let case = |what, table| {
        Case::ingress(name(what), &syn(kind, 8080))
            .flow(table, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .remapped(Reason::DirectRemapped, expected(held(table)))
    };
    vec![
        case("direct, with a redirected connection", FlowTable::Tcp),
        case("direct, with one that is being set up", FlowTable::Syn),
        // The kernel itself judges a SYN for a connection without an entry.
        Case::ingress(name("direct, with itself"), &syn(kind, 8080))
            .socket(key, Socket::Connection)
            .unchanged(Reason::Direct)
            .leaves_state(),
        Case::ingress(name("direct, with itself, noted"), &syn(kind, 8080))
            .flow(FlowTable::Tcp, key, seen(8080, 0))
            .socket(key, Socket::Connection)
            .unchanged(Reason::Direct)
            .leaves_state(),
    ]
}

/// Packets of flows that have another client port already.
fn remapped(kind: Kind) -> Vec<Case> {
    let name = |what: &str| format!("{} remapped: {what}", kind.name);
    let key = kind.key(8080);
    let remapped = kind.key_from(REMAPPED, 8080);
    let ack = |port| kind.packet(port).flags(ACK);
    let data = |port| kind.packet(port).flags(ACK | PSH);
    let redirected = Tables::default()
        .flow(FlowTable::Tcp, remapped, seen(80, 0))
        .remap(kind.key(80), REMAPPED);
    let direct = Tables::default()
        .flow(FlowTable::Tcp, key, seen(80, 0))
        .flow(FlowTable::Tcp, remapped, seen(8080, 0))
        .remap(key, REMAPPED);
    let before = |case: Case, tables: &Tables| Case {
        before: tables.clone(),
        ..case
    };
    let to_server = |packet: Packet| packet.src_port(REMAPPED);
    let from_server = |port| kind.reply(port).dst_port(REMAPPED);
    let mut cases = vec![
        Case::ingress(name("redirected"), &ack(80))
            .redirected(&to_server(ack(8080)))
            .leaves_state(),
        Case::ingress(name("redirected, repeated syn"), &syn(kind, 80))
            .socket(key, Socket::Connection)
            .redirected(&to_server(syn(kind, 8080)))
            .leaves_state(),
        Case::egress(name("reply to redirected"), &from_server(8080))
            .restored(&kind.reply(80))
            .leaves_state(),
        Case::egress(
            name("reply to the direct connection beside it"),
            &kind.reply(8080),
        )
        .unchanged(Reason::Direct),
        Case::ingress(name("the direct connection beside it"), &ack(8080))
            .unchanged(Reason::Direct)
            .leaves_state(),
    ];
    for case in &mut cases {
        case.before.clone_from(&redirected);
        if case.after.is_some() {
            case.after = Some(redirected.clone());
        }
    }
    cases.push(
        before(Case::ingress(name("direct"), &ack(8080)), &direct)
            .becomes(Reason::DirectRemapped, &to_server(ack(8080)))
            .leaves_state(),
    );
    cases.push(
        before(
            Case::ingress(name("direct, repeated syn"), &syn(kind, 8080)),
            &direct,
        )
        .socket(key, Socket::Connection)
        .becomes(Reason::DirectRemapped, &to_server(syn(kind, 8080)))
        .leaves_state(),
    );
    cases.push(
        before(
            Case::egress(name("reply to direct"), &from_server(8080)),
            &direct,
        )
        .restored(&kind.reply(8080))
        .leaves_state(),
    );
    cases.push(
        before(
            Case::ingress(name("the redirected connection beside it"), &ack(80)),
            &direct,
        )
        .redirected(&ack(8080))
        .leaves_state(),
    );
    let begun = Tables::default()
        .flow(FlowTable::Syn, remapped, seen(80, 0))
        .remap(kind.key(80), REMAPPED);
    cases.push(
        Case::ingress(name("the entry was lost"), &ack(80))
            .remap(kind.key(80), REMAPPED)
            .socket(key, Socket::Connection)
            .socket(remapped, Socket::Connection)
            .redirected(&to_server(ack(8080)))
            .leaves(redirected.clone()),
    );
    cases.push(
        Case::ingress(name("the entry was lost, and the connection"), &ack(80))
            .remap(kind.key(80), REMAPPED)
            .socket(key, Socket::Connection)
            .redirected(&to_server(ack(8080)))
            .leaves(begun.clone()),
    );
    cases.push(
        before(
            Case::ingress(name("begun, repeated syn"), &syn(kind, 80)),
            &begun,
        )
        .socket(key, Socket::Connection)
        .socket(remapped, Socket::Connection)
        .redirected(&to_server(syn(kind, 8080)))
        .leaves_state(),
    );
    cases.push(
        before(Case::ingress(name("begun, data"), &data(80)), &begun)
            .socket(key, Socket::Connection)
            .socket(remapped, Socket::Connection)
            .redirected(&to_server(data(8080)))
            .leaves(redirected.flow(FlowTable::Syn, remapped, seen(80, 0))),
    );
    cases.push(
        before(
            Case::egress(name("begun, reply"), &from_server(8080)),
            &begun,
        )
        .restored(&kind.reply(80))
        .leaves_state(),
    );
    // Of the connection with that port only its own packets may say that it is
    // theirs; a SYN could as well be beside one that the client began there.
    let held = direct.tcp[&key];
    let lost = |what: &str, packet: &Packet| {
        Case::ingress(name(what), packet)
            .flow(FlowTable::Tcp, key, held)
            .remap(key, REMAPPED)
            .socket(key, Socket::Connection)
    };
    cases.push(
        lost("the entry of a direct flow was lost", &ack(8080))
            .socket(remapped, Socket::Connection)
            .becomes(Reason::DirectRemapped, &to_server(ack(8080)))
            .leaves(direct),
    );
    cases.push(
        lost("a direct syn, nobody has that port", &syn(kind, 8080))
            .becomes(Reason::DirectRemapped, &to_server(syn(kind, 8080)))
            .leaves(
                Tables::default()
                    .flow(FlowTable::Tcp, key, held)
                    .flow(FlowTable::Syn, remapped, seen(8080, 0))
                    .remap(key, REMAPPED),
            ),
    );
    cases.push(
        lost("a direct syn, somebody has that port", &syn(kind, 8080))
            .socket(remapped, Socket::Connection)
            .remapped(Reason::DirectRemapped, move |port| {
                let tables = Tables::default()
                    .flow(FlowTable::Tcp, key, held)
                    .flow(FlowTable::Syn, kind.key_from(port, 8080), seen(8080, 0))
                    .remap(key, port);
                (syn(kind, 8080).src_port(port), tables)
            }),
    );
    cases
}
