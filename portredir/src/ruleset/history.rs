//! The targets of earlier rules.

use std::collections::{BTreeMap, HashSet};

use portredir_common::map::rules::PreviousTargets;
use portredir_common::net::{Port, Protocol};
use serde::{Deserialize, Serialize};

use super::interval::{Holders, intervals};
use crate::rule::{Ports, Rule};

/// The previous targets of each port: removed rules sent packets there, and their flows
/// still go there. Ports are numbers here, because the state has them so in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History(BTreeMap<HistoryKey, Vec<u16>>);

/// The key of a port: `tcp/80` in JSON, which allows only text as keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct HistoryKey {
    protocol: Protocol,
    port: u16,
}

impl HistoryKey {
    const fn new(protocol: Protocol, port: Port) -> Self {
        Self {
            protocol,
            port: port.get(),
        }
    }
}

impl From<HistoryKey> for String {
    fn from(HistoryKey { protocol, port }: HistoryKey) -> Self {
        let name = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        format!("{name}/{port}")
    }
}

impl TryFrom<String> for HistoryKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let (name, port) = text.split_once('/').ok_or("no protocol")?;
        let protocol = match name {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err("unknown protocol"),
        };
        let port = port.parse().map_err(|_| "not a port")?;
        Ok(Self { protocol, port })
    }
}

impl History {
    /// The history after one list of rules replaces another: the targets that are no
    /// longer those of their port, and the earlier ones that still have flows.
    #[must_use]
    pub fn after(
        &self,
        before: &[Rule],
        after: &[Rule],
        is_alive: impl Fn(Protocol, Port, Port) -> bool,
    ) -> Self {
        let mut history = BTreeMap::<HistoryKey, Vec<u16>>::new();
        let mut add = |key, target| {
            let targets = history.entry(key).or_default();
            if targets.len() < PreviousTargets::COUNT && !targets.contains(&target) {
                targets.push(target);
            }
            targets.len() < PreviousTargets::COUNT
        };
        let stay: HashSet<_> = after.iter().collect();
        // Where the flows of other rules went is known by their targets.
        let gone = before.iter().filter(|rule| rule.here().is_some());
        let gone: Vec<_> = gone.filter(|rule| !stay.contains(rule)).collect();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let rules = gone.iter().copied().enumerate();
            let mut holders = Holders::default();
            for interval in intervals(rules, protocol) {
                holders.pass(&interval, |i| way(gone[i]));
                for port in interval.ports.into_iter().flat_map(Ports::each) {
                    let key = HistoryKey::new(protocol, port);
                    let places = holders.places().iter();
                    let mut targets = places.filter_map(|&i| gone[i].target_of(port));
                    targets.all(|target| add(key, target.get()));
                }
            }
        }
        for (&key, targets) in &self.0 {
            for &target in targets {
                if is_alive(key.protocol, Port::new(key.port), Port::new(target)) {
                    add(key, target);
                }
            }
        }
        Self(history)
    }

    /// The targets of each port.
    pub(super) fn iter(
        &self,
    ) -> impl Iterator<Item = (Protocol, Port, impl Iterator<Item = Port>)> {
        self.0.iter().map(|(key, targets)| {
            let targets = targets.iter().copied().map(Port::new);
            (key.protocol, Port::new(key.port), targets)
        })
    }

    /// Whether the history has no ports.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The way of a rule to one port of this host, or to ports at a distance; none of others.
fn way(rule: &Rule) -> Option<(bool, i32)> {
    let target = rule.here()?;
    let first = i32::from(target.first);
    Some(if target.is_one() {
        (false, first)
    } else {
        (true, first - i32::from(rule.ports.first))
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::rule::tests::arbitrary::near_rule;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

        /// The history has the targets of removed rules, up to four, in the order of the
        /// rules.
        #[test]
        fn targets_that_are_gone_are_remembered(
            before in vec(near_rule(), 0..10),
            stay in vec(any::<bool>(), 10),
        ) {
            let after: Vec<_> = before
                .iter()
                .zip(stay)
                .filter(|(_, stays)| *stays)
                .map(|(rule, _)| rule.clone())
                .collect();
            let history = History::default().after(&before, &after, |_, _, _| false);
            let mut expected = BTreeMap::<_, Vec<u16>>::new();
            for rule in before.iter().filter(|rule| !after.contains(rule)) {
                for &protocol in rule.protocols.each() {
                    for port in rule.ports.each().filter(|&port| rule.redirects(port)) {
                        let targets = expected.entry(HistoryKey::new(protocol, port)).or_default();
                        let target = rule.target_of(port).expect("one target").get();
                        if targets.len() < PreviousTargets::COUNT && !targets.contains(&target) {
                            targets.push(target);
                        }
                    }
                }
            }
            prop_assert_eq!(history, History(expected));
        }
    }
}
