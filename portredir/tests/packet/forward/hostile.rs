//! Forged packets of clients and of targets, and what their senders gain, as
//! `docs/SECURITY.md` says.

use portredir_common::verdict::Reason;

use super::{FIRST, TARGETS, TO_F, from_own, to};
use crate::packet::builder::{ACK, CLIENT_PORT, RST};
use crate::packet::flows::Kind;
use crate::packet::scenario::Scenario;

pub fn scenarios(kind: Kind) -> Vec<Scenario> {
    let mut scenarios = vec![another_target(kind)];
    if kind.is_tcp() {
        scenarios.extend([guessed_number(kind), forged_reset(kind)]);
    }
    scenarios
}

/// A target answers a client of another target of the same rule.
fn another_target(kind: Kind) -> Scenario {
    let name = format!("forward {}: another target answers", kind.name);
    let other = kind.packet(8080).to(kind.g()).reply();
    Scenario::new(name, TARGETS, TO_F)
        .opens(kind, 80, kind.f())
        .leaves(other)
        .unchanged(Reason::NoRule)
        .goes_on(kind, (CLIENT_PORT, 80), kind.f())
        // A datagram of a target may begin a flow of its own.
        .live(if kind.is_tcp() { 1 } else { 2 })
}

/// A guess that has the right 10 bits makes an entry, which the reset of the target ends.
fn guessed_number(kind: Kind) -> Scenario {
    let first = kind.first(80);
    let answer = kind.answer(kind.f());
    let guess = |number| kind.next(80).numbers(0x0102_0305, number);
    let wrong = guess(FIRST + 1 + 0x200);
    let right = guess(FIRST + 1 + 0x400);
    let reset = kind.packet(8080).to(kind.f()).reply().flags(RST);
    let name = format!("forward {}: a guessed number", kind.name);
    Scenario::new(name, TARGETS, TO_F)
        .arrives(first.clone())
        .redirected(to(kind.f(), first))
        .begins()
        .leaves(answer.clone())
        .restored(from_own(kind, 80, answer))
        .arrives(wrong.clone())
        .redirected(to(kind.f(), wrong))
        .live(0)
        .arrives(right.clone())
        .redirected(to(kind.f(), right))
        .live(1)
        .leaves(reset.clone())
        .restored(from_own(kind, 80, reset))
        .live(0)
}

/// A reset with the client's address is for the target to judge: the connection goes on.
fn forged_reset(kind: Kind) -> Scenario {
    let name = format!("forward {}: a forged reset", kind.name);
    let reset = kind.packet(80).flags(RST | ACK);
    Scenario::new(name, TARGETS, TO_F)
        .opens(kind, 80, kind.f())
        .arrives(reset.clone())
        .redirected(to(kind.f(), reset))
        .goes_on(kind, (CLIENT_PORT, 80), kind.f())
}
