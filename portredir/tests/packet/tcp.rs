//! TCP flow state: sockets are the truth, tables only remember.

use portredir_common::flow::{Flow, FlowTable};
use portredir_common::kernel::Socket;
use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;

use super::builder::{ACK, FIN, PSH, Packet, RST, SYN};
use super::flows::{KINDS, Kind};
use super::mock::Tables;
use super::{Case, TWO_TO_ONE, seen};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS
        .into_iter()
        .filter(|kind| kind.protocol == Protocol::Tcp)
    {
        cases.extend(begun(kind));
        cases.extend(established(kind));
        cases.extend(unknown(kind));
        cases.extend(stale(kind));
    }
    cases
}

pub fn syn(kind: Kind, port: u16) -> Packet {
    kind.packet(port).flags(SYN).payload(&[])
}

pub fn with_rule(flow: Flow, rule: u16) -> Flow {
    Flow { rule, ..flow }
}

/// From the SYN to the table of flows that have a socket.
fn begun(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} state: {what}", kind.name);
    let key = kind.key(8080);
    let begun = Tables::default().flow(FlowTable::Syn, key, seen(80, 0));
    let promoted = begun.clone().flow(FlowTable::Tcp, key, seen(80, 0));
    let segment = |flags| kind.packet(80).flags(flags);
    let redirected = |name, flags| {
        Case::ingress(name, &segment(flags)).redirected(&kind.packet(8080).flags(flags))
    };
    vec![
        redirected(name("a syn goes to SYN"), SYN)
            .begins_flow()
            .leaves(begun.clone()),
        redirected(name("a repeated syn without a socket stays there"), SYN)
            .flow(FlowTable::Syn, key, seen(80, 0))
            .leaves_state(),
        redirected(name("data without a socket stays there"), ACK | PSH)
            .flow(FlowTable::Syn, key, seen(80, 0))
            .leaves_state(),
        redirected(name("data with a socket goes to TCP"), ACK | PSH)
            .flow(FlowTable::Syn, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .leaves(promoted),
        // The socket may be a request for a connection, which anybody can make.
        redirected(name("an ack with a socket stays there"), ACK)
            .flow(FlowTable::Syn, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .leaves_state(),
        redirected(name("a repeated syn with a socket stays there"), SYN)
            .flow(FlowTable::Syn, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .leaves_state(),
        redirected(name("a socket in TIME_WAIT does not confirm"), ACK | PSH)
            .flow(FlowTable::Syn, key, seen(80, 0))
            .socket(key, Socket::TimeWait)
            .leaves_state(),
    ]
}

/// Packets of flows that a server has accepted.
fn established(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} state: {what}", kind.name);
    let key = kind.key(8080);
    let begun = Tables::default().flow(FlowTable::Syn, key, seen(80, 0));
    let segment = |flags| kind.packet(80).flags(flags);
    let redirected = |name, flags| {
        Case::ingress(name, &segment(flags)).redirected(&kind.packet(8080).flags(flags))
    };
    vec![
        redirected(name("a known flow is refreshed"), ACK | PSH)
            .flow(FlowTable::Tcp, key, seen(80, 60))
            .leaves(Tables::default().flow(FlowTable::Tcp, key, seen(80, 0))),
        redirected(name("a repeated syn of a known flow"), SYN)
            .flow(FlowTable::Tcp, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .continues_flow()
            .leaves_state(),
        redirected(name("a new syn of a flow that is over"), SYN)
            .flow(FlowTable::Tcp, key, seen(80, 60))
            .begins_flow()
            .leaves(Tables::default().flow(FlowTable::Tcp, key, seen(80, 0))),
        redirected(name("a known flow ends"), FIN | ACK)
            .flow(FlowTable::Tcp, key, seen(80, 0))
            .socket(key, Socket::Connection)
            .leaves_state(),
        redirected(name("a reset ends nothing"), RST)
            .flow(FlowTable::Tcp, key, seen(80, 0))
            .leaves_state(),
        redirected(name("a known flow in TIME_WAIT"), FIN | ACK)
            .flow(FlowTable::Tcp, key, seen(80, 0))
            .socket(key, Socket::TimeWait)
            .leaves_state(),
        redirected(name("a new syn in TIME_WAIT"), SYN)
            .flow(FlowTable::Tcp, key, seen(80, 0))
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
            .leaves(in_table(FlowTable::Tcp)),
        // A SYN with a reset begins nothing, so it cannot collide either.
        Case::ingress(
            name("a syn with a reset"),
            &kind.packet(80).flags(SYN | RST),
        )
        .socket(key, Socket::Connection)
        .redirected(&kind.packet(8080).flags(SYN | RST))
        .continues_flow()
        .leaves(in_table(FlowTable::Tcp)),
        Case::ingress(
            name("the reset of nobody's connection is restored"),
            &ack(80),
        )
        .redirected(&ack(8080))
        .leaves(in_table(FlowTable::Syn)),
        Case::ingress(name("the last ack in TIME_WAIT"), &ack(80))
            .socket(key, Socket::TimeWait)
            .redirected(&ack(8080))
            .leaves(in_table(FlowTable::Syn)),
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
        // The answer to an earlier SYN may have been lost.
        Case::ingress(
            name("a SYN of what a server there has begun"),
            &syn(kind, 80),
        )
        .socket(dialled, Socket::Connection)
        .unchanged(Reason::ForeignFlow)
        .leaves_state(),
        Case::ingress(
            name("a SYN after what a server there has ended"),
            &syn(kind, 80),
        )
        .socket(dialled, Socket::TimeWait)
        .redirected(&syn(kind, 8080))
        .leaves(in_table(FlowTable::Syn)),
    ]
}

/// Entries of connections that are gone.
fn stale(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} stale: {what}", kind.name);
    let key = kind.key(8080);
    let flow_81 = with_rule(seen(81, 0), 1);
    vec![
        Case::ingress(name("a direct syn takes over"), &syn(kind, 8080))
            .flow(FlowTable::Tcp, key, seen(80, 60))
            .unchanged(Reason::Direct)
            .leaves(Tables::default()),
        Case::ingress(
            name("a direct syn takes over from one just begun"),
            &syn(kind, 8080),
        )
        .flow(FlowTable::Syn, key, seen(80, 60))
        .flow(FlowTable::Tcp, key, seen(80, 60))
        .unchanged(Reason::Direct)
        .leaves(Tables::default()),
        Case::ingress(
            name("a direct syn takes over in TIME_WAIT"),
            &syn(kind, 8080),
        )
        .flow(FlowTable::Tcp, key, seen(80, 60))
        .socket(key, Socket::TimeWait)
        .unchanged(Reason::Direct)
        .leaves(Tables::default()),
        // The reset that it draws has to come from the port it went to.
        Case::ingress(
            name("an ack to another port, without a socket"),
            &kind.packet(81).flags(ACK),
        )
        .rules(TWO_TO_ONE)
        .flow(FlowTable::Tcp, key, seen(80, 60))
        .redirected(&kind.packet(8080).flags(ACK))
        .leaves(Tables::default().flow(FlowTable::Syn, key, flow_81)),
        Case::ingress(
            name("a direct ack changes nothing"),
            &kind.packet(8080).flags(ACK),
        )
        .flow(FlowTable::Tcp, key, seen(80, 60))
        .unchanged(Reason::Direct)
        .leaves_state(),
        Case::ingress(name("a syn to another port takes over"), &syn(kind, 81))
            .rules(TWO_TO_ONE)
            .flow(FlowTable::Tcp, key, seen(80, 60))
            .redirected(&syn(kind, 8080))
            .leaves(Tables::default().flow(FlowTable::Syn, key, flow_81)),
        Case::ingress(
            name("a syn to another port takes over from one just begun"),
            &syn(kind, 81),
        )
        .rules(TWO_TO_ONE)
        .flow(FlowTable::Syn, key, seen(80, 0))
        .redirected(&syn(kind, 8080))
        .leaves(Tables::default().flow(FlowTable::Syn, key, flow_81)),
    ]
}
