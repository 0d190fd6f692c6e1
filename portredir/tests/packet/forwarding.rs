//! Sequences of packets to targets with an address, through the datapath on the host.

use std::collections::{BTreeSet, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use portredir::rule::Rule;
use portredir_common::flow::{Epoch, UDP_IDLE};
use portredir_common::kernel::{Outcome, Socket};
use portredir_common::map::targets::Service;
use portredir_common::net::Addr;
use portredir_common::verdict::Reason;

use crate::packet::builder::Packet;
use crate::packet::flows::{KINDS, Kind};
use crate::packet::forward::scenarios;
use crate::packet::mock::{Hex, Mock};
use crate::packet::scenario::{Event, F, G, Plan, Scenario, Step, To};
use crate::packet::{Hook, Iface, addr, local_addrs};

/// The host of a scenario.
pub fn host(rules: &'static [&'static str], plan: &Plan) -> Mock {
    let mut mock = Mock::new(rules, &local_addrs());
    mock.is_forwarding = true;
    mock.iface = Iface::Other;
    mock.set_plan(plan);
    mock
}

fn run(scenario: &Scenario) {
    let mock = host(scenario.rules, &scenario.plan);
    let mut given = 0;
    for (number, event) in (1..).zip(&scenario.events) {
        match event {
            Event::Plan(plan) => mock.set_plan(plan),
            Event::Live(flows) => {
                let live = mock.forwards.borrow().live();
                assert_eq!(live, *flows, "live flows, event {number}");
            }
            Event::Packet(step) => {
                let result = catch_unwind(AssertUnwindSafe(|| check(&mock, step, &mut given)));
                assert!(result.is_ok(), "event {number}");
            }
        }
    }
}

/// Runs one packet, and panics when anything is not as it should be.
fn check(mock: &Mock, step: &Step, given: &mut u16) {
    for counted in [&mock.hits, &mock.replies] {
        counted.borrow_mut().clear();
    }
    mock.outcomes.borrow_mut().clear();
    let (packet, _) = step.bytes(*given);
    let (reason, out) = mock.run(step.hook, step.packet.link, &packet);
    assert_eq!(reason, step.reason);
    if step.gives() {
        let at = step.packet.transport();
        *given = u16::from_be_bytes([out[at], out[at + 1]]);
        assert!(*given >= 1024 && *given != step.packet.src_port);
    }
    let (_, expected) = step.bytes(*given);
    assert_eq!(Hex(&out), Hex(&expected), "packet");
    let counted = |is_it| {
        if is_it {
            vec![(0, out.len())]
        } else {
            Vec::new()
        }
    };
    let bytes = |hits: &[portredir_common::kernel::Hit]| -> Vec<_> {
        hits.iter().map(|hit| (0, hit.bytes)).collect()
    };
    let hits = mock.hits.borrow();
    assert_eq!(bytes(&hits), counted(reason == Reason::Redirected));
    assert_eq!(hits.iter().any(|hit| hit.begins_flow()), step.is_new, "new");
    let replies = mock.replies.borrow();
    assert_eq!(bytes(&replies), counted(reason == Reason::Restored));
    let outcomes = mock.outcomes.borrow();
    let is_refused = outcomes.iter().any(|(_, one)| *one == Outcome::Refused);
    assert_eq!(is_refused, step.is_refusal, "refused");
}

#[test]
fn sequences() {
    let scenarios = scenarios();
    let names: HashSet<_> = scenarios.iter().map(|one| &one.name).collect();
    assert_eq!(names.len(), scenarios.len(), "two scenarios have one name");
    let is_failed = |scenario: &&Scenario| {
        let result = catch_unwind(AssertUnwindSafe(|| run(scenario)));
        if result.is_err() {
            eprintln!("in `{}`\n", scenario.name);
        }
        result.is_err()
    };
    let failed: Vec<_> = scenarios.iter().filter(is_failed).collect();
    let names: Vec<_> = failed.iter().map(|scenario| &scenario.name).collect();
    assert!(names.is_empty(), "{} failed: {names:#?}", names.len());
}

/// Packets of this host to itself stay on it: local clients are pointed at a target before
/// there is a packet.
#[test]
fn packets_of_this_host_to_itself_stay() {
    for scenario in scenarios() {
        let first = scenario.events.iter().find_map(|event| match event {
            Event::Packet(step) if step.reason == Reason::Redirected => Some(step),
            _ => None,
        });
        let rules = scenario.rules.iter().map(|text| text.parse::<Rule>());
        let is_forward = rules.flatten().any(|rule| rule.forward().is_some());
        let Some(step) = first.filter(|step| is_forward && step.hook == Hook::Ingress) else {
            continue;
        };
        let mut mock = host(scenario.rules, &scenario.plan);
        mock.iface = Iface::Lo;
        let (packet, _) = step.bytes(0);
        let (reason, out) = mock.run(step.hook, step.packet.link, &packet);
        assert_eq!((reason, Hex(&out)), (Reason::NoMatch, Hex(&packet)));
    }
}

/// The target that the first packet of a flow goes to.
fn target_of(mock: &Mock, kind: Kind, client_port: u16) -> Addr {
    let packet: Packet = kind.first(80).src_port(client_port);
    let (reason, out) = mock.run(Hook::Ingress, packet.link, &packet.bytes());
    assert_eq!(reason, Reason::Redirected);
    let targets = [F, G].map(|halves| kind.target(halves));
    let found = targets.into_iter().find(|target| {
        let expected = packet.clone().to(*target).dst_port(8080);
        expected.bytes() == out
    });
    addr(found.expect("a target"))
}

/// Several slots share new flows; with affinity a client has one target for all of them.
#[test]
fn affinity_gives_a_client_one_target() {
    const SLOTS: Plan = Plan::new(&[&[To::F], &[To::G], &[To::F], &[To::G]]);
    const RULES: &[&str] =
        &["80:10.0.0.5:8080,10.0.0.6:8080,[2001:db8:5::5]:8080,[2001:db8:5::6]:8080/both"];
    for kind in KINDS {
        for (flags, number) in [(Service::USED, 2), (Service::USED | Service::AFFINITY, 1)] {
            let mock = host(RULES, &Plan { flags, ..SLOTS });
            let ports = 2000..2064;
            let found: BTreeSet<_> = ports
                .map(|port| target_of(&mock, kind, port).octets())
                .collect();
            assert_eq!(found.len(), number, "{} {flags}", kind.name);
        }
    }
}

/// A UDP flow whose packets have stopped is no reason to give another flow another port.
#[test]
fn an_idle_flow_gives_its_client_port_back() {
    const TWO: &[&str] = &["80:10.0.0.5:8080/udp", "81:10.0.0.5:8080/udp"];
    let kind = KINDS[2];
    let plan = Plan::new(&[&[To::F]]);
    for (age, is_given) in [(UDP_IDLE - 1, true), (UDP_IDLE, false)] {
        let mut mock = host(TWO, &plan);
        target_of(&mock, kind, 40_000);
        mock.now_ns += u64::from(age) * Epoch::UNIT_NS;
        let packet = kind.first(81);
        let (_, out) = mock.run(Hook::Ingress, packet.link, &packet.bytes());
        let kept = packet.to(kind.target(F)).dst_port(8080).bytes();
        assert_eq!(out != kept, is_given, "after {age}");
    }
}

/// A server on the destination port keeps the connections that it has.
#[test]
fn a_connection_of_this_host_is_left_alone() {
    const RULES: &[&str] = &["80:10.0.0.5:8080"];
    let kind = KINDS[0];
    let mut mock = host(RULES, &Plan::new(&[&[To::F]]));
    mock.sockets.insert(kind.key(80), Socket::Connection);
    for packet in [kind.packet(80), kind.first(80)] {
        let bytes = packet.bytes();
        let (reason, out) = mock.run(Hook::Ingress, packet.link, &bytes);
        assert_eq!((reason, Hex(&out)), (Reason::ForeignFlow, Hex(&bytes)));
    }
}
