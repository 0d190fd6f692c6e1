//! One flow from its first packet to the last, and what becomes of its client port.

use std::net::IpAddr;

use portredir_common::verdict::Reason;

use super::{FIRST, TARGETS, TO_F, TWO_PORTS, from_own, to};
use crate::packet::builder::{ACK, CLIENT_PORT, FIN, PSH, Packet, RST, SYN, syn4};
use crate::packet::flows::Kind;
use crate::packet::scenario::{GIVEN, Plan, Scenario, To};

pub fn scenarios(kind: Kind) -> Vec<Scenario> {
    let mut scenarios = vec![
        Scenario::new(format!("forward {}: a flow", kind.name), TARGETS, TO_F)
            .opens(kind, 80, kind.f())
            .live(1)
            .goes_on(kind, (CLIENT_PORT, 80), kind.f())
            .live(1),
        collision(kind),
        beside_a_direct_flow(kind),
        no_flow(kind),
        options(kind),
    ];
    if kind.is_ipv4 {
        scenarios.push(two_addresses(kind));
    }
    if kind.is_tcp() {
        scenarios.extend([handshake(kind), end(kind), refusal(kind), stray(kind)]);
        scenarios.extend(resets(kind));
        scenarios.extend(after_the_end(kind));
        scenarios.push(node_port(kind));
    } else if kind.is_ipv4 {
        scenarios.push(no_checksum(kind));
    }
    scenarios
}

/// One client port to two ports that lead to one target.
fn collision(kind: Kind) -> Scenario {
    second_flow(kind, "two ports", (kind.packet(81).dst, 81))
}

/// One client port to one port of two addresses of this host.
fn two_addresses(kind: Kind) -> Scenario {
    second_flow(kind, "two addresses", (IpAddr::from([192, 0, 2, 2]), 80))
}

/// A client begins a second flow to the same target from the same port, by this address and
/// port.
fn second_flow(kind: Kind, to_two: &str, (addr, port): (IpAddr, u16)) -> Scenario {
    let name = format!("forward {}: one client port to {to_two}", kind.name);
    let second = kind.first(port).to(addr);
    let given = to(kind.f(), second.clone()).src_port(GIVEN);
    let answer = kind.answer(kind.f()).dst_port(GIVEN);
    let restored = answer.clone().from(addr, port).dst_port(CLIENT_PORT);
    let next = kind.next(port).to(addr);
    Scenario::new(name, TWO_PORTS, TO_F)
        .opens(kind, 80, kind.f())
        .arrives(second)
        .redirected(given)
        .begins()
        .leaves(answer)
        .restored(restored)
        .arrives(next.clone())
        .redirected(to(kind.f(), next).src_port(GIVEN))
        .live(2)
        .goes_on(kind, (CLIENT_PORT, 80), kind.f())
        .live(2)
}

/// A client that talks to the target itself, and to a port that leads there.
fn beside_a_direct_flow(kind: Kind) -> Scenario {
    let name = format!("forward {}: beside a direct flow", kind.name);
    let direct = kind.answer(kind.f());
    let second = kind.first(80);
    let answer = kind.answer(kind.f()).dst_port(GIVEN);
    let restored = from_own(kind, 80, answer.clone()).dst_port(CLIENT_PORT);
    Scenario::new(name, TARGETS, TO_F)
        .leaves(direct.clone())
        .unchanged(Reason::NoRule)
        .arrives(second.clone())
        .redirected(to(kind.f(), second).src_port(GIVEN))
        .begins()
        .leaves(answer)
        .restored(restored)
        .leaves(direct)
        .unchanged(Reason::Direct)
}

/// A packet of a target that no client of ours has asked for.
fn no_flow(kind: Kind) -> Scenario {
    let name = format!("forward {}: a packet of a target without a flow", kind.name);
    let packet = kind.packet(8080).to(kind.f()).reply();
    let other = packet.clone().src_port(8081);
    Scenario::new(name, TARGETS, TO_F)
        .leaves(packet)
        .unchanged(Reason::NoRule)
        .leaves(other)
        .unchanged(Reason::NoRule)
}

/// Headers that are longer than most.
fn options(kind: Kind) -> Scenario {
    let name = format!("forward {}: longer headers", kind.name);
    let dress = |packet: Packet| {
        if kind.is_ipv4 {
            packet.ip_options(10).tags(&[0x8100])
        } else {
            let options = crate::packet::builder::options_header(60, 2);
            packet.extension(options).tags(&[0x88a8, 0x8100])
        }
    };
    let first = dress(kind.first(80));
    let answer = dress(kind.answer(kind.f()));
    Scenario::new(name, TARGETS, TO_F)
        .arrives(first.clone())
        .redirected(to(kind.f(), first))
        .begins()
        .leaves(answer.clone())
        .restored(from_own(kind, 80, answer))
}

/// The segment that acknowledges the answer makes a connection, and no other does.
fn handshake(kind: Kind) -> Scenario {
    let first = kind.first(80);
    let answer = kind.answer(kind.f());
    let ack = |number| kind.next(80).numbers(0x0102_0305, number);
    let mut scenario = Scenario::new(
        format!("forward {}: the handshake", kind.name),
        TARGETS,
        TO_F,
    )
    .arrives(first.clone())
    .redirected(to(kind.f(), first.clone()))
    .begins()
    .arrives(ack(FIRST + 1))
    .redirected(to(kind.f(), ack(FIRST + 1)))
    .live(0)
    .leaves(answer.clone())
    .restored(from_own(kind, 80, answer));
    for number in [FIRST, FIRST + 2, FIRST - 0x200] {
        scenario = scenario
            .arrives(ack(number))
            .redirected(to(kind.f(), ack(number)))
            .live(0);
    }
    let reset = ack(FIRST + 1).flags(RST | ACK);
    scenario
        .arrives(first.clone())
        .redirected(to(kind.f(), first))
        .arrives(reset.clone())
        .redirected(to(kind.f(), reset))
        .live(0)
        .arrives(ack(FIRST + 1))
        .redirected(to(kind.f(), ack(FIRST + 1)))
        .live(1)
}

fn segment(kind: Kind, flags: u8) -> Packet {
    kind.packet(80).flags(flags)
}

fn reply(kind: Kind, flags: u8) -> Packet {
    kind.packet(8080).to(kind.f()).reply().flags(flags)
}

/// Both ends end the connection, and the client port is used again.
fn end(kind: Kind) -> Scenario {
    let [fin, ack] = [FIN | ACK, ACK].map(|flags| segment(kind, flags));
    let fin_back = reply(kind, FIN | PSH | ACK);
    Scenario::new(format!("forward {}: the end", kind.name), TARGETS, TO_F)
        .opens(kind, 80, kind.f())
        .arrives(fin.clone())
        .redirected(to(kind.f(), fin))
        .live(1)
        .goes_on(kind, (CLIENT_PORT, 80), kind.f())
        .live(1)
        .leaves(fin_back.clone())
        .restored(from_own(kind, 80, fin_back))
        .live(0)
        .arrives(ack.clone())
        .redirected(to(kind.f(), ack))
        .live(0)
        .opens(kind, 80, kind.f())
        .live(1)
}

/// A connection from a client port whose last one, to another port of the same target, has
/// ended: its replies are not taken for those of the last one. Nor are they when the client
/// connects to the target itself.
fn after_the_end(kind: Kind) -> [Scenario; 2] {
    let ended = |what| {
        let name = format!("forward {}: after the end {what}", kind.name);
        let fin = segment(kind, FIN | ACK);
        let fin_back = reply(kind, FIN | ACK);
        Scenario::new(name, TWO_PORTS, TO_F)
            .opens(kind, 80, kind.f())
            .arrives(fin.clone())
            .redirected(to(kind.f(), fin))
            .leaves(fin_back.clone())
            .restored(from_own(kind, 80, fin_back))
            .live(0)
    };
    [
        ended("to another port")
            .opens(kind, 81, kind.f())
            .goes_on(kind, (CLIENT_PORT, 81), kind.f())
            .live(1),
        ended("to the target itself")
            .leaves(kind.answer(kind.f()))
            .unchanged(Reason::NoRule)
            .leaves(reply(kind, ACK))
            .unchanged(Reason::Direct),
    ]
}

/// A reset by either end, after which the client begins anew.
fn resets(kind: Kind) -> [Scenario; 2] {
    let name = |who: &str| format!("forward {}: a reset by the {who}", kind.name);
    let open = |name| Scenario::new(name, TARGETS, TO_F).opens(kind, 80, kind.f());
    let (reset, back) = (segment(kind, RST), reply(kind, RST | ACK));
    let again = |scenario: Scenario| scenario.live(0).opens(kind, 80, kind.f()).live(1);
    [
        again(
            open(name("client"))
                .arrives(reset.clone())
                .redirected(to(kind.f(), reset)),
        ),
        again(
            open(name("target"))
                .leaves(back.clone())
                .restored(from_own(kind, 80, back)),
        ),
    ]
}

/// The target refuses the connection, and takes the next one from the same port.
fn refusal(kind: Kind) -> Scenario {
    let first = kind.first(80);
    let refusal = reply(kind, RST | ACK).payload(&[]);
    Scenario::new(format!("forward {}: a refusal", kind.name), TARGETS, TO_F)
        .arrives(first.clone())
        .redirected(to(kind.f(), first))
        .begins()
        .leaves(refusal.clone())
        .restored(from_own(kind, 80, refusal))
        .refuses()
        .live(0)
        .opens(kind, 80, kind.f())
        .live(1)
}

/// Segments that begin nothing, as in netfilter, and one that does.
fn stray(kind: Kind) -> Scenario {
    let name = format!("forward {}: stray segments", kind.name);
    let mut scenario = Scenario::new(name, TARGETS, TO_F);
    for flags in [RST, RST | ACK, SYN | ACK, FIN, PSH] {
        scenario = scenario
            .arrives(segment(kind, flags))
            .unchanged(Reason::ForeignFlow);
    }
    let ack = segment(kind, ACK);
    scenario
        .arrives(ack.clone())
        .redirected(to(kind.f(), ack))
        .begins()
        .live(0)
}

/// Datagrams without a checksum stay without one.
fn no_checksum(kind: Kind) -> Scenario {
    let (request, answer) = (kind.packet(80), kind.answer(kind.f()));
    let name = format!("forward {}: no checksum", kind.name);
    Scenario::new(name, TARGETS, TO_F)
        .arrives(request.clone())
        .redirected(to(kind.f(), request))
        .unsummed()
        .begins()
        .leaves(answer.clone())
        .restored(from_own(kind, 80, answer))
        .unsummed()
}

/// A rule to a port of this host that somebody's DNAT leads on to another host.
fn node_port(kind: Kind) -> Scenario {
    let own = kind.packet(0).dst;
    let name = format!(
        "forward {}: the server of an own port is elsewhere",
        kind.name
    );
    let first = if kind.is_ipv4 {
        syn4(80)
    } else {
        kind.first(80)
    };
    let answer = kind.answer(own);
    let ack = |number| kind.next(80).numbers(0x0102_0305, number);
    let fin = segment(kind, FIN | ACK);
    let fin_back = reply(kind, FIN | ACK).from(own, 8080);
    debug_assert_eq!(answer.src_port, 8080);
    Scenario::new(name, &["80:8080/both"], Plan::new(&[&[To::Rests]]))
        .arrives(first.clone())
        .redirected(to(own, first))
        .begins()
        .leaves(answer.clone())
        .restored(answer.src_port(80))
        .live(0)
        .arrives(ack(FIRST + 2))
        .redirected(to(own, ack(FIRST + 2)))
        .live(0)
        .arrives(ack(FIRST + 1))
        .redirected(to(own, ack(FIRST + 1)))
        .live(1)
        .goes_on(kind, (CLIENT_PORT, 80), own)
        .live(1)
        .arrives(fin.clone())
        .redirected(to(own, fin))
        .live(1)
        .leaves(fin_back.clone())
        .restored(fin_back.src_port(80))
        .live(0)
}
