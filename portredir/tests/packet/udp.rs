//! UDP flow state: no sockets to ask, so direct flows have entries too.

use portredir_common::flow::{Flow, FlowTable};
use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;

use super::builder::CLIENT_PORT;
use super::flows::{KINDS, Kind};
use super::mock::Tables;
use super::{Case, TWO_TO_ONE, seen};

/// A client port that was given on a collision.
const REMAPPED: u16 = 50_123;

/// Ages around `UDP_IDLE`, which is 120 s.
const BUSY_S: u64 = 118;
const IDLE_S: u64 = 122;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS
        .into_iter()
        .filter(|kind| kind.protocol == Protocol::Udp)
    {
        cases.extend(known(kind));
        cases.extend(collisions(kind));
        cases.extend(idle(kind));
        cases.extend(remapped(kind));
        cases.extend(remapped_and_lost(kind));
        cases.push(remapped_to_own_port(kind));
    }
    cases
}

fn one(kind: Kind, flow: Flow) -> Tables {
    Tables::default().flow(FlowTable::Udp, kind.key(8080), flow)
}

fn known(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} state: {what}", kind.name);
    let key = kind.key(8080);
    vec![
        Case::ingress(name("a known flow is refreshed"), &kind.packet(80))
            .flow(FlowTable::Udp, key, seen(80, 60))
            .redirected(&kind.packet(8080))
            .continues_flow()
            .leaves(one(kind, seen(80, 0))),
        Case::ingress(name("a known flow was idle"), &kind.packet(80))
            .flow(FlowTable::Udp, key, seen(80, IDLE_S))
            .redirected(&kind.packet(8080))
            .leaves(one(kind, seen(80, 0))),
        Case::ingress(name("a direct flow is refreshed"), &kind.packet(8080))
            .flow(FlowTable::Udp, key, seen(8080, 60))
            .unchanged(Reason::Direct)
            .leaves(one(kind, seen(8080, 0))),
        Case::egress(name("a reply refreshes the flow"), &kind.reply(8080))
            .flow(FlowTable::Udp, key, seen(80, 60))
            .restored(&kind.reply(80))
            .leaves(one(kind, seen(80, 0))),
        Case::egress(name("a reply to an idle flow"), &kind.reply(8080))
            .flow(FlowTable::Udp, key, seen(80, IDLE_S))
            .restored(&kind.reply(80))
            .leaves(one(kind, seen(80, 0))),
        Case::egress(name("a direct reply refreshes the flow"), &kind.reply(8080))
            .flow(FlowTable::Udp, key, seen(8080, 60))
            .unchanged(Reason::Direct)
            .leaves(one(kind, seen(8080, 0))),
        Case::ingress(
            name("another client of one address"),
            &kind.packet(80).src_port(41_000),
        )
        .flow(FlowTable::Udp, key, seen(80, 0))
        .redirected(&kind.packet(8080).src_port(41_000))
        .begins_flow(),
    ]
}

fn collisions(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} collision: {what}", kind.name);
    let key = kind.key(8080);
    let expected = move |holder: Flow, dialled: u16, rule| {
        move |port| {
            let flow = Flow {
                rule,
                ..seen(dialled, 0)
            };
            let tables = one(kind, holder)
                .flow(FlowTable::Udp, kind.key_from(port, 8080), flow)
                .remap(kind.key(dialled), port);
            (kind.packet(8080).src_port(port), tables)
        }
    };
    vec![
        Case::ingress(name("with a direct flow"), &kind.packet(80))
            .flow(FlowTable::Udp, key, seen(8080, 0))
            .remapped(Reason::Redirected, expected(seen(8080, 0), 80, 0)),
        Case::ingress(name("with a flow through another port"), &kind.packet(81))
            .rules(TWO_TO_ONE)
            .flow(FlowTable::Udp, key, seen(80, 0))
            .remapped(Reason::Redirected, expected(seen(80, 0), 81, 1)),
        Case::ingress(name("direct, with a redirected flow"), &kind.packet(8080))
            .flow(FlowTable::Udp, key, seen(80, 0))
            .remapped(Reason::DirectRemapped, expected(seen(80, 0), 8080, 0)),
        Case::ingress(name("with a flow that is nearly idle"), &kind.packet(80))
            .flow(FlowTable::Udp, key, seen(8080, BUSY_S))
            .remapped(Reason::Redirected, expected(seen(8080, BUSY_S), 80, 0)),
    ]
}

/// An idle flow no longer defends its client port.
fn idle(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} idle: {what}", kind.name);
    let key = kind.key(8080);
    vec![
        Case::ingress(name("a redirected flow takes over"), &kind.packet(80))
            .flow(FlowTable::Udp, key, seen(8080, IDLE_S))
            .redirected(&kind.packet(8080))
            .begins_flow()
            .leaves(one(kind, seen(80, 0))),
        Case::ingress(name("a direct flow takes over"), &kind.packet(8080))
            .flow(FlowTable::Udp, key, seen(80, IDLE_S))
            .unchanged(Reason::Direct)
            .leaves(one(kind, seen(8080, 0))),
    ]
}

/// The state with a direct flow, and a redirected one that was given another port.
fn redirected_flow_remapped(kind: Kind) -> Tables {
    one(kind, seen(8080, 0))
        .flow(FlowTable::Udp, kind.key_from(REMAPPED, 8080), seen(80, 0))
        .remap(kind.key(80), REMAPPED)
}

/// The state with a redirected flow, and a direct one that was given another port.
fn direct_flow_remapped(kind: Kind) -> Tables {
    one(kind, seen(80, 0))
        .flow(FlowTable::Udp, kind.key_from(REMAPPED, 8080), seen(8080, 0))
        .remap(kind.key(8080), REMAPPED)
}

/// Packets of flows that were given another port, and of those beside them.
fn remapped(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} remapped: {what}", kind.name);
    let redirected = |case| Case {
        before: redirected_flow_remapped(kind),
        ..case
    };
    let direct = |case| Case {
        before: direct_flow_remapped(kind),
        ..case
    };
    let to_server = kind.packet(8080).src_port(REMAPPED);
    let from_server = kind.reply(8080).dst_port(REMAPPED);
    let beside = "reply to the direct flow beside it";
    let cases = vec![
        redirected(Case::ingress(name("redirected"), &kind.packet(80))).redirected(&to_server),
        redirected(Case::egress(name("reply to redirected"), &from_server))
            .restored(&kind.reply(80)),
        redirected(Case::egress(name(beside), &kind.reply(8080))).unchanged(Reason::Direct),
        direct(Case::ingress(name("direct"), &kind.packet(8080)))
            .becomes(Reason::DirectRemapped, &to_server),
        direct(Case::egress(name("reply to direct"), &from_server)).restored(&kind.reply(8080)),
        direct(Case::ingress(
            name("the redirected flow beside it"),
            &kind.packet(80),
        ))
        .redirected(&kind.packet(8080)),
    ];
    cases.into_iter().map(Case::leaves_state).collect()
}

/// Flows that were given another port, whose entries were lost.
fn remapped_and_lost(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} remapped: {what}", kind.name);
    let key = kind.key(8080);
    let to_server = kind.packet(8080).src_port(REMAPPED);
    vec![
        Case::ingress(name("the entry was lost"), &kind.packet(80))
            .flow(FlowTable::Udp, key, seen(8080, 0))
            .remap(kind.key(80), REMAPPED)
            .redirected(&to_server)
            .leaves(redirected_flow_remapped(kind)),
        Case::ingress(
            name("the entries of it and of the flow beside it were lost"),
            &kind.packet(80),
        )
        .remap(kind.key(80), REMAPPED)
        .redirected(&to_server)
        .leaves(
            Tables::default()
                .flow(FlowTable::Udp, kind.key_from(REMAPPED, 8080), seen(80, 0))
                .remap(kind.key(80), REMAPPED),
        ),
        Case::ingress(
            name("the entry of a direct flow was lost"),
            &kind.packet(8080),
        )
        .flow(FlowTable::Udp, key, seen(80, 0))
        .remap(key, REMAPPED)
        .becomes(Reason::DirectRemapped, &to_server)
        .leaves(direct_flow_remapped(kind)),
    ]
}

/// A client that itself uses the port that another of its flows was given.
fn remapped_to_own_port(kind: Kind) -> Case {
    let name = format!("{} remapped: the client uses that port too", kind.name);
    let before = redirected_flow_remapped(kind);
    let case = Case {
        before: before.clone(),
        ..Case::ingress(name, &kind.packet(80).src_port(REMAPPED))
    };
    case.remapped(Reason::Redirected, move |port| {
        let flow = Flow {
            client_port: portredir_common::net::Port::new(REMAPPED),
            ..seen(80, 0)
        };
        let tables = before
            .clone()
            .flow(FlowTable::Udp, kind.key_from(port, 8080), flow)
            .remap(kind.key_from(REMAPPED, 80), port);
        assert_ne!(port, CLIENT_PORT);
        (kind.packet(8080).src_port(port), tables)
    })
}
