//! Flows that this host, or a host behind it, begins at a port that a rule names: the
//! answers are not for the target.

use portredir_common::flow::{Flow, FlowTable};
use portredir_common::kernel::Socket;
use portredir_common::net::Protocol;
use portredir_common::verdict::Reason;

use super::builder::{ACK, FIN, PSH, RST, SYN};
use super::flows::{KINDS, Kind};
use super::mock::Tables;
use super::tcp::syn;
use super::{Case, Iface, seen};

/// Ages around `UDP_IDLE`, which is 120 s.
const BUSY_S: u64 = 118;
const IDLE_S: u64 = 122;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        match kind.protocol {
            Protocol::Tcp => {
                cases.extend(tcp(kind));
                cases.extend(tcp_answers(kind));
            }
            Protocol::Udp => cases.extend(udp(kind)),
        }
        cases.extend(hidden(kind));
    }
    cases
}

/// A flow that began here, last seen `age_s` ago.
fn own(kind: Kind, port: u16, age_s: u64) -> Flow {
    Flow::own(&kind.key(port), seen(port, age_s).seen)
}

/// The state with one flow that began here.
fn one(kind: Kind, table: FlowTable, age_s: u64) -> Tables {
    Tables::default().own_flow(table, kind.key(80), own(kind, 80, age_s))
}

fn udp(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} own flow: {what}", kind.name);
    let (asked, stolen) = (kind.key(80), kind.key(8080));
    let table = FlowTable::Udp;
    let answer = |what, age_s| {
        Case::ingress(name(what), &kind.packet(80)).own_flow(table, asked, own(kind, 80, age_s))
    };
    let question = |what| Case::egress(name(what), &kind.reply(80)).unchanged(Reason::NoRule);
    vec![
        question("a question -> is noted").leaves(one(kind, table, 0)),
        question("one more question -> the note is renewed")
            .own_flow(table, asked, own(kind, 80, 60))
            .leaves(one(kind, table, 0)),
        question("a question after a stolen answer -> the stolen flow ends")
            .flow(table, stolen, seen(80, 3))
            .leaves(one(kind, table, 0)),
        question("a reply that was rewritten before -> is a reply")
            .flow(table, stolen, seen(80, 0))
            .leaves_state(),
        question("a question beside the flow of another rule -> that flow goes on")
            .flow(table, stolen, seen(81, 0))
            .leaves(one(kind, table, 0).flow(table, stolen, seen(81, 0))),
        answer("an answer -> passes untouched", 60)
            .unchanged(Reason::ForeignFlow)
            .leaves(one(kind, table, 0)),
        answer("an answer after long -> passes untouched", BUSY_S)
            .unchanged(Reason::ForeignFlow)
            .leaves(one(kind, table, 0)),
        answer("a packet after too long -> begins a flow", IDLE_S)
            .redirected(&kind.packet(8080))
            .leaves(one(kind, table, IDLE_S).flow(table, stolen, seen(80, 0))),
        Case::ingress(
            name("a packet from another port -> begins a flow"),
            &kind.packet(80).src_port(41_000),
        )
        .own_flow(table, asked, own(kind, 80, 0))
        .redirected(&kind.packet(8080).src_port(41_000)),
        answer("a client whose flow has begun -> is redirected", 0)
            .flow(table, stolen, seen(80, 0))
            .redirected(&kind.packet(8080)),
    ]
}

fn tcp(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} own flow: {what}", kind.name);
    let stolen = kind.key(8080);
    let leaves = |what, flags| {
        let packet = kind.reply(80).flags(flags);
        Case::egress(name(what), &packet).unchanged(Reason::NoRule)
    };
    let noted = || one(kind, FlowTable::Syn, 0);
    vec![
        leaves("a SYN leaves -> is noted", SYN).leaves(noted()),
        leaves("a segment leaves -> is noted", ACK).leaves(noted()),
        leaves("a SYN-ACK leaves -> is an answer", SYN | ACK).leaves_state(),
        leaves("a reset leaves -> is an answer", RST).leaves_state(),
        leaves("a reply that was rewritten before -> is a reply", ACK)
            .flow(FlowTable::Tcp, stolen, seen(80, 0))
            .leaves_state(),
        leaves(
            "a segment leaves beside the flow of another rule -> is noted",
            ACK,
        )
        .flow(FlowTable::Tcp, stolen, seen(81, 0))
        .leaves(noted().flow(FlowTable::Tcp, stolen, seen(81, 0))),
    ]
}

fn tcp_answers(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} own flow: {what}", kind.name);
    let (asked, stolen) = (kind.key(80), kind.key(8080));
    let answer = |what, flags, table| {
        let packet = kind.packet(80).flags(flags);
        Case::ingress(name(what), &packet)
            .own_flow(table, asked, own(kind, 80, 60))
            .unchanged(Reason::ForeignFlow)
    };
    let renewed = || one(kind, FlowTable::Tcp, 0);
    let (syn_ack, data) = (
        kind.packet(80).flags(SYN | ACK),
        kind.packet(8080).flags(ACK),
    );
    vec![
        Case::ingress(name("a SYN-ACK of nobody -> passes untouched"), &syn_ack)
            .unchanged(Reason::ForeignFlow)
            .leaves_state(),
        answer("a SYN-ACK -> passes untouched", SYN | ACK, FlowTable::Syn).leaves_state(),
        answer("data -> makes it a connection", PSH | ACK, FlowTable::Syn)
            .leaves(renewed().own_flow(FlowTable::Syn, asked, own(kind, 80, 60))),
        answer("data of a connection -> renews it", ACK, FlowTable::Tcp).leaves(renewed()),
        answer("the end -> passes untouched", FIN | ACK, FlowTable::Tcp).leaves(renewed()),
        answer("a reset -> passes untouched", RST, FlowTable::Tcp).leaves(renewed()),
        Case::ingress(name("a SYN from there -> is redirected"), &syn(kind, 80))
            .own_flow(FlowTable::Tcp, asked, own(kind, 80, 0))
            .redirected(&syn(kind, 8080)),
        answer(
            "data with a connection to the target -> is redirected",
            ACK,
            FlowTable::Tcp,
        )
        .socket(stolen, Socket::Connection)
        .redirected(&data),
    ]
}

/// Servers on a hidden port talk to others too.
fn hidden(kind: Kind) -> Vec<Case> {
    let name = |what| format!("{} own flow of a hidden port: {what}", kind.name);
    let hiding = |case: Case| case.hiding().iface(Iface::Other);
    let key = kind.key(8080);
    let table = kind.new_table();
    let own_flow = own(kind, 8080, 60);
    let refusal = |what| hiding(Case::egress(name(what), &kind.reply(8080)));
    let mut cases = vec![
        refusal("a refusal that was rewritten before -> is a reply")
            .flow(table, kind.key(0), seen(8080, 0))
            .unchanged(Reason::Direct)
            .leaves_state(),
        hiding(Case::egress(
            name("a question -> is noted"),
            &kind.reply(8080),
        ))
        .unchanged(Reason::Direct)
        .leaves(Tables::default().own_flow(table, key, own(kind, 8080, 0))),
        hiding(Case::egress(
            name("a refusal -> is from the hidden port"),
            &kind.reply(0),
        ))
        .flow(table, kind.key(0), seen(8080, 0))
        .restored(&kind.reply(8080)),
    ];
    if kind.protocol == Protocol::Udp {
        let packet = kind.packet(8080);
        cases.push(
            hiding(Case::ingress(name("an answer -> passes"), &packet))
                .own_flow(table, key, own_flow)
                .unchanged(Reason::Direct),
        );
        cases.push(
            hiding(Case::ingress(
                name("a stranger -> meets a closed port"),
                &packet,
            ))
            .becomes(Reason::Hidden, &kind.packet(0))
            .leaves(Tables::default().flow(table, kind.key(0), seen(8080, 0))),
        );
    } else {
        cases.push(
            hiding(Case::ingress(
                name("a stranger -> meets a closed port"),
                &syn(kind, 8080),
            ))
            .becomes(Reason::Hidden, &syn(kind, 0))
            .leaves(Tables::default().flow(table, kind.key(0), seen(8080, 0))),
        );
    }
    cases
}
