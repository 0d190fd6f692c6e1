//! Reports from counters: which rule and interface a counter belongs to, and what is not
//! known.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::{Timestamp, Unit};
use nix::net::if_::if_indextoname;
use portredir_common::map::counters::CounterKey;
use portredir_common::net::Protocol;

use super::counts::{Hits, RuleOutcomes, RuleReport};
use crate::config::engine::Engine;
use crate::loader::ACCEPT;
use crate::loader::counters::Counters;
use crate::observe::attached::Interface;
use crate::rule::Rule;
use crate::sys::clock::monotonic;

/// The counters, and what is needed to read them.
pub(super) struct Reader<'a> {
    clock: &'a Clock,
    interfaces: &'a [Interface],
    counters: &'a Counters,
    /// Whether packets are seen on some interface.
    sees_packets: bool,
    /// Whether the kernel tells of connections that servers accept.
    sees_accepted: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        clock: &'a Clock,
        interfaces: &'a [Interface],
        counters: &'a Counters,
    ) -> Self {
        let mut hooks = interfaces.iter().flat_map(|interface| &interface.hooks);
        Self {
            clock,
            interfaces,
            counters,
            sees_packets: interfaces.iter().any(sees_packets),
            sees_accepted: hooks.any(|hook| hook.program == ACCEPT && !hook.state.is_fault()),
        }
    }

    /// Whether packets are seen on this interface; on one that is gone, as far as it is
    /// known.
    fn sees_packets_on(&self, index: u32) -> bool {
        let mut interfaces = self.interfaces.iter();
        let interface = interfaces.find(|interface| interface.report.ifindex == index);
        interface.map_or(self.sees_packets, sees_packets)
    }

    /// The report of a rule that has counted nothing, with the number of the rule.
    pub(super) fn empty(&self, (id, rule): &(u16, Rule)) -> (u32, RuleReport) {
        let zero = self.sees_packets.then_some(0);
        let protocols = rule.protocols.each();
        let has_tcp = protocols.contains(&Protocol::Tcp);
        let has_udp = protocols.contains(&Protocol::Udp);
        let accepted = zero.filter(|_| has_tcp && self.sees_accepted);
        let report = RuleReport {
            rule: rule.to_string(),
            total: Hits::none(zero),
            outcomes: RuleOutcomes {
                accepted,
                refused: zero,
                unanswered: accepted.filter(|_| !has_udp),
            },
            interfaces: BTreeMap::new(),
        };
        (u32::from(*id), report)
    }

    /// Adds the counters to the reports of their rules. Those of a rule that is gone, but
    /// still has flows, are left out.
    pub(super) fn fill(&self, rules: &mut [(u32, RuleReport)]) {
        let numbers = rules.iter().map(|(id, _)| *id);
        let places: HashMap<_, usize> = numbers.zip(0..).collect();
        let mut add = |key: &CounterKey, count: &dyn Fn(&mut Hits, bool)| {
            let Some(&place) = places.get(&key.rule) else {
                return;
            };
            let is_seen = self.sees_packets_on(key.ifindex);
            let report: &mut RuleReport = &mut rules[place].1;
            let name = name_of(key.ifindex, self.interfaces);
            let none = Hits::none(is_seen.then_some(0));
            count(report.interfaces.entry(name).or_insert(none), is_seen);
            count(&mut report.total, is_seen);
        };
        for (key, counter) in &self.counters.requests {
            let last_hit = self.clock.wall(counter.last_hit_ns);
            add(key, &|hits, is_seen| {
                if is_seen {
                    grow(&mut hits.packets, counter.packets);
                    grow(&mut hits.bytes, counter.bytes);
                }
                hits.flows += counter.flows;
                hits.last_hit = hits.last_hit.max(last_hit);
            });
        }
        for (key, counter) in &self.counters.replies {
            add(key, &|hits, _| {
                grow(&mut hits.packets_out, counter.packets);
                grow(&mut hits.bytes_out, counter.bytes);
            });
        }
        for (id, rule) in rules {
            let counted = self.counters.outcomes.get(id).copied().unwrap_or_default();
            let flows = rule
                .interfaces
                .values()
                .filter(|hits| hits.packets.is_some());
            let flows: u64 = flows.map(|hits| hits.flows).sum();
            let answered = counted.accepted + counted.refused;
            let outcomes = &mut rule.outcomes;
            grow(&mut outcomes.accepted, counted.accepted);
            grow(&mut outcomes.refused, counted.refused);
            grow(&mut outcomes.unanswered, flows.saturating_sub(answered));
        }
    }
}

/// Whether the engine of an interface sees packets.
fn sees_packets(interface: &Interface) -> bool {
    Engine::sees_packets(&interface.report.engine)
}

/// Adds to a count, where there is one.
fn grow(count: &mut Option<u64>, more: u64) {
    if let Some(count) = count {
        *count += more;
    }
}

/// The name of an interface: the one that it was attached by, else the present one.
fn name_of(index: u32, attached: &[Interface]) -> String {
    let attached = attached.iter().map(|interface| &interface.report);
    if let Some(report) = attached.into_iter().find(|report| report.ifindex == index) {
        return report.name.clone();
    }
    match (index != CounterKey::UNKNOWN_IFINDEX).then(|| if_indextoname(index)) {
        None => "elsewhere".to_owned(),
        Some(Ok(name)) => name.to_string_lossy().into_owned(),
        Some(Err(_)) => format!("if{index}"),
    }
}

/// Both clocks at one moment: the kernel counts by the monotonic one.
pub(super) struct Clock {
    pub(super) time: Timestamp,
    monotonic: Duration,
}

impl Clock {
    pub(super) fn now() -> Self {
        Self {
            time: Timestamp::now(),
            monotonic: monotonic(),
        }
    }

    fn wall(&self, monotonic_ns: u64) -> Option<Timestamp> {
        let ago = self
            .monotonic
            .saturating_sub(Duration::from_nanos(monotonic_ns));
        // The two clocks are not read at the very same time: a small difference is noise.
        let time = self.time - ago;
        (monotonic_ns != 0).then(|| time.round(Unit::Millisecond).unwrap_or(time))
    }
}
