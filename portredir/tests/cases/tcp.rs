//! TCP flow state: sockets are the truth, tables only remember.

use portredir_common::abi::{Flow, Protocol};
use portredir_common::flow::{Socket, Table};
use portredir_common::verdict::Reason;

use super::flows::{KINDS, Kind};
use super::host::Tables;
use super::packet::{ACK, FIN, PSH, Packet, RST, SYN};
use super::{Case, TWO_TO_ONE, seen};

/// A client port that was given on a collision.
const REMAPPED: u16 = 50_123;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS
        .into_iter()
        .filter(|kind| kind.protocol == Protocol::Tcp)
    {
        cases.extend(begun(kind));
        cases.extend(unknown(kind));
        cases.extend(stale(kind));
        cases.extend(redirected_collisions(kind));
        cases.extend(direct_collisions(kind));
        cases.extend(remapped(kind));
    }
    cases
}

fn syn(kind: Kind, port: u16) -> Packet {
    kind.packet(port).flags(SYN).payload(&[])
}

fn with_rule(flow: Flow, rule: u16) -> Flow {
    Flow { rule, ..flow }
}

/// From the SYN to the table of flows that have a socket.
fn begun(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} state: {what}", kind.name);
    let key = kind.key(8080);
    let begun = Tables::default().flow(Table::Syn, key, seen(80, 0));
    let promoted = begun.clone().flow(Table::Tcp, key, seen(80, 0));
    let segment = |flags| kind.packet(80).flags(flags);
    let redirected = |name, flags| {
        Case::ingress(name, &segment(flags)).redirected(&kind.packet(8080).flags(flags))
    };
    vec![
        redirected(name("a syn goes to SYN"), SYN).leaves(begun.clone()),
        redirected(name("a repeated syn without a socket stays there"), SYN)
            .flow(Table::Syn, key, seen(80, 0))
            .leaves_state(),
        redirected(name("an ack without a socket stays there"), ACK)
            .flow(Table::Syn, key, seen(80, 0))
            .leaves_state(),
        redirected(name("an ack with a socket goes to TCP"), ACK)
            .flow(Table::Syn, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .leaves(promoted.clone()),
        redirected(name("a repeated syn with a socket goes to TCP"), SYN)
            .flow(Table::Syn, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .leaves(promoted),
        redirected(name("a socket in TIME_WAIT does not confirm"), ACK)
            .flow(Table::Syn, key, seen(80, 0))
            .socket(key, Socket::TimeWait)
            .leaves_state(),
        redirected(name("a known flow is refreshed"), ACK | PSH)
            .flow(Table::Tcp, key, seen(80, 60))
            .leaves(Tables::default().flow(Table::Tcp, key, seen(80, 0))),
        redirected(name("a known flow ends"), FIN | ACK)
            .flow(Table::Tcp, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .leaves_state(),
        redirected(name("a reset ends nothing"), RST)
            .flow(Table::Tcp, key, seen(80, 0))
            .leaves_state(),
        redirected(name("a known flow in TIME_WAIT"), FIN | ACK)
            .flow(Table::Tcp, key, seen(80, 0))
            .socket(key, Socket::TimeWait)
            .leaves_state(),
        redirected(name("a new syn in TIME_WAIT"), SYN)
            .flow(Table::Tcp, key, seen(80, 0))
            .socket(key, Socket::TimeWait)
            .leaves_state(),
        redirected(name("a new syn in TIME_WAIT, entry lost"), SYN)
            .socket(key, Socket::TimeWait)
            .leaves(begun),
    ]
}

/// In the middle of a connection that has no entry.
fn unknown(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} lost: {what}", kind.name);
    let (key, dialled) = (kind.key(8080), kind.key(80));
    let ack = |port| kind.packet(port).flags(ACK);
    let in_table = |table| Tables::default().flow(table, key, seen(80, 0));
    vec![
        Case::ingress(name("the next packet puts the entry back"), &ack(80))
            .socket(key, Socket::Connection)
            .redirected(&ack(8080))
            .leaves(in_table(Table::Tcp)),
        Case::ingress(
            name("the reset of nobody's connection is restored"),
            &ack(80),
        )
        .redirected(&ack(8080))
        .leaves(in_table(Table::Syn)),
        Case::ingress(name("the last ack in TIME_WAIT"), &ack(80))
            .socket(key, Socket::TimeWait)
            .redirected(&ack(8080))
            .leaves(in_table(Table::Syn)),
        Case::ingress(name("a server on the dialled port"), &ack(80))
            .socket(dialled, Socket::Connection)
            .unchanged(Reason::ForeignFlow)
            .leaves_state(),
        Case::ingress(name("a server on the dialled port, in TIME_WAIT"), &ack(80))
            .socket(dialled, Socket::TimeWait)
            .unchanged(Reason::ForeignFlow)
            .leaves_state(),
        Case::ingress(name("servers on both ports"), &ack(80))
            .socket(dialled, Socket::Connection)
            .socket(key, Socket::Connection)
            .unchanged(Reason::ForeignFlow)
            .leaves_state(),
        // Only what is under way belongs to the server there.
        Case::ingress(
            name("a new connection beside a server there"),
            &syn(kind, 80),
        )
        .socket(dialled, Socket::Connection)
        .redirected(&syn(kind, 8080))
        .leaves(in_table(Table::Syn)),
    ]
}

/// Entries of connections that are gone.
fn stale(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} stale: {what}", kind.name);
    let key = kind.key(8080);
    let flow_81 = with_rule(seen(81, 0), 1);
    vec![
        Case::ingress(name("a direct syn takes over"), &syn(kind, 8080))
            .flow(Table::Tcp, key, seen(80, 60))
            .unchanged(Reason::Direct)
            .leaves(Tables::default()),
        Case::ingress(
            name("a direct syn takes over from one just begun"),
            &syn(kind, 8080),
        )
        .flow(Table::Syn, key, seen(80, 60))
        .flow(Table::Tcp, key, seen(80, 60))
        .unchanged(Reason::Direct)
        .leaves(Tables::default()),
        Case::ingress(
            name("a direct syn takes over in TIME_WAIT"),
            &syn(kind, 8080),
        )
        .flow(Table::Tcp, key, seen(80, 60))
        .socket(key, Socket::TimeWait)
        .unchanged(Reason::Direct)
        .leaves(Tables::default()),
        // The reset that it draws has to come from the port it went to.
        Case::ingress(
            name("an ack to another port, without a socket"),
            &kind.packet(81).flags(ACK),
        )
        .rules(TWO_TO_ONE)
        .flow(Table::Tcp, key, seen(80, 60))
        .redirected(&kind.packet(8080).flags(ACK))
        .leaves(Tables::default().flow(Table::Syn, key, flow_81)),
        Case::ingress(
            name("a direct ack changes nothing"),
            &kind.packet(8080).flags(ACK),
        )
        .flow(Table::Tcp, key, seen(80, 60))
        .unchanged(Reason::Direct)
        .leaves_state(),
        Case::ingress(name("a syn to another port takes over"), &syn(kind, 81))
            .rules(TWO_TO_ONE)
            .flow(Table::Tcp, key, seen(80, 60))
            .redirected(&syn(kind, 8080))
            .leaves(Tables::default().flow(Table::Syn, key, flow_81)),
        Case::ingress(
            name("a syn to another port takes over from one just begun"),
            &syn(kind, 81),
        )
        .rules(TWO_TO_ONE)
        .flow(Table::Syn, key, seen(80, 0))
        .redirected(&syn(kind, 8080))
        .leaves(Tables::default().flow(Table::Syn, key, flow_81)),
    ]
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
                    Table::Tcp,
                    kind.key_from(port, 8080),
                    with_rule(seen(dialled, 0), rule),
                )
                .remap(kind.key(dialled), port);
            (syn(kind, 8080).src_port(port), tables)
        }
    };
    let held = Tables::default().flow(Table::Tcp, key, seen(80, 0));
    let begun = Tables::default().flow(Table::Syn, key, seen(80, 0));
    vec![
        Case::ingress(name("with a direct connection"), &syn(kind, 80))
            .socket(key, Socket::Connection)
            .remapped(Reason::Redirected, expected(Tables::default(), 80, 0)),
        Case::ingress(
            name("with a connection through another port"),
            &syn(kind, 81),
        )
        .rules(TWO_TO_ONE)
        .flow(Table::Tcp, key, seen(80, 0))
        .socket(key, Socket::Connection)
        .remapped(Reason::Redirected, expected(held, 81, 1)),
        Case::ingress(
            name("with a connection that is being set up"),
            &syn(kind, 81),
        )
        .rules(TWO_TO_ONE)
        .flow(Table::Syn, key, seen(80, 0))
        .socket(key, Socket::Connection)
        .remapped(Reason::Redirected, expected(begun, 81, 1)),
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
                .flow(Table::Tcp, kind.key_from(port, 8080), seen(8080, 0))
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
        case("direct, with a redirected connection", Table::Tcp),
        case("direct, with one that is being set up", Table::Syn),
        // The kernel itself judges a SYN for a connection without an entry.
        Case::ingress(name("direct, with itself"), &syn(kind, 8080))
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
    let redirected = Tables::default()
        .flow(Table::Tcp, remapped, seen(80, 0))
        .remap(kind.key(80), REMAPPED);
    let direct = Tables::default()
        .flow(Table::Tcp, key, seen(80, 0))
        .flow(Table::Tcp, remapped, seen(8080, 0))
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
    cases.push(
        Case::ingress(name("the entry was lost"), &ack(80))
            .remap(kind.key(80), REMAPPED)
            .socket(key, Socket::Connection)
            .redirected(&to_server(ack(8080)))
            .leaves(redirected),
    );
    for (what, packet) in [("ack", ack(8080)), ("syn", syn(kind, 8080))] {
        let name = name(&format!("the entry of a direct {what} was lost"));
        let held = direct.tcp[&key];
        cases.push(
            Case::ingress(name, &packet)
                .flow(Table::Tcp, key, held)
                .remap(key, REMAPPED)
                .socket(key, Socket::Connection)
                .socket(remapped, Socket::Connection)
                .becomes(Reason::DirectRemapped, &to_server(packet.clone()))
                .leaves(direct.clone()),
        );
    }
    cases
}
