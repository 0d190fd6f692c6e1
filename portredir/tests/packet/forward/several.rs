//! Several targets: slots, and what they remember.

use portredir_common::map::targets::Target;
use portredir_common::verdict::Reason;

use super::{MIXED, TARGETS, TO_F, to};
use crate::packet::builder::CLIENT_PORT;
use crate::packet::flows::Kind;
use crate::packet::scenario::{Plan, Scenario, To};

/// F has gone from the slot.
const TO_G: Plan = Plan::new(&[&[To::G, To::F]]);

/// Another client port.
const OTHER: u16 = 41_000;

pub fn scenarios(kind: Kind) -> Vec<Scenario> {
    let mut scenarios = vec![
        drained(kind),
        dead(kind),
        resting(kind),
        mixed(kind),
        no_target_of_the_version(kind),
    ];
    if kind.is_tcp() {
        scenarios.extend([cut(kind), unanswered(kind)]);
    } else {
        scenarios.push(back(kind));
    }
    scenarios
}

fn scenario(kind: Kind, what: &str) -> Scenario {
    Scenario::new(format!("forward {}: {what}", kind.name), TARGETS, TO_F)
}

/// A target that gets no new flows keeps those that it has, however many came after it.
fn drained(kind: Kind) -> Scenario {
    scenario(kind, "a target is drained")
        .opens(kind, 80, kind.f())
        .plan(TO_G)
        .goes_on(kind, (CLIENT_PORT, 80), kind.f())
        .opens_from(kind, (OTHER, 80), kind.g())
        .live(2)
        .plan(Plan::new(&[&[To::G, To::Here, To::Here, To::F]]))
        .goes_on(kind, (CLIENT_PORT, 80), kind.f())
        .goes_on(kind, (OTHER, 80), kind.g())
        .live(2)
}

/// UDP flows leave a target that is dead; connections stay.
fn dead(kind: Kind) -> Scenario {
    let open = scenario(kind, "a target is dead")
        .opens(kind, 80, kind.f())
        .plan(TO_G.f_is(Target::DEAD));
    if kind.is_tcp() {
        open.goes_on(kind, (CLIENT_PORT, 80), kind.f()).live(1)
    } else {
        open.opens(kind, 80, kind.g())
            .goes_on(kind, (CLIENT_PORT, 80), kind.g())
    }
}

/// A connection to a dead target is cut where that is asked for: another target gets its
/// segment, and answers with a reset.
fn cut(kind: Kind) -> Scenario {
    let segment = kind.packet(80);
    scenario(kind, "connections of a dead target are cut")
        .opens(kind, 80, kind.f())
        .plan(TO_G.f_is(Target::DEAD | Target::CUT))
        .arrives(segment.clone())
        .redirected(to(kind.g(), segment))
        .begins()
}

/// A SYN that a target has not answered goes to the present target with its repetition.
fn unanswered(kind: Kind) -> Scenario {
    let syn = kind.first(80);
    scenario(kind, "a target that does not answer is replaced")
        .arrives(syn.clone())
        .redirected(to(kind.f(), syn.clone()))
        .begins()
        .plan(TO_G)
        .arrives(syn.clone())
        .redirected(to(kind.g(), syn))
        .begins()
}

/// Flows that have left a dead target stay away when it is back.
fn back(kind: Kind) -> Scenario {
    scenario(kind, "a target is back")
        .opens(kind, 80, kind.f())
        .plan(TO_G.f_is(Target::DEAD))
        .opens(kind, 80, kind.g())
        .plan(TO_G)
        .goes_on(kind, (CLIENT_PORT, 80), kind.g())
}

/// Without a target the rule rests, or drops; flows that have begun go on.
fn resting(kind: Kind) -> Scenario {
    let new = kind.first(80).src_port(OTHER);
    scenario(kind, "no target is up")
        .opens(kind, 80, kind.f())
        .plan(Plan::new(&[&[To::Rests, To::F]]))
        .goes_on(kind, (CLIENT_PORT, 80), kind.f())
        .arrives(new.clone())
        .unchanged(Reason::NoTarget)
        .plan(Plan::new(&[&[To::Drops, To::F]]))
        .goes_on(kind, (CLIENT_PORT, 80), kind.f())
        .arrives(new)
        .unchanged(Reason::NoTargetDropped)
        .live(1)
}

/// A port of this host as a target, on the address that the client connected to.
fn mixed(kind: Kind) -> Scenario {
    let own = kind.packet(0).dst;
    let name = format!("forward {}: a target on this host", kind.name);
    Scenario::new(name, MIXED, Plan::new(&[&[To::Here]]))
        .opens(kind, 80, own)
        .live(1)
        .plan(Plan::new(&[&[To::F, To::Here]]))
        .goes_on(kind, (CLIENT_PORT, 80), own)
        .opens_from(kind, (OTHER, 80), kind.f())
        .live(2)
}

/// A rule whose targets have the other version of IP is not for these clients.
fn no_target_of_the_version(kind: Kind) -> Scenario {
    let (rules, versions): (&'static [&'static str], &'static [u8]) = if kind.is_ipv4 {
        (&["80:[2001:db8:5::5]:8080/both"], &[6])
    } else {
        (&["80:10.0.0.5:8080/both"], &[4])
    };
    let name = format!("forward {}: targets of the other version", kind.name);
    let plan = Plan { versions, ..TO_F };
    Scenario::new(name, rules, plan)
        .arrives(kind.first(80))
        .unchanged(Reason::NoMatch)
        .live(0)
}
