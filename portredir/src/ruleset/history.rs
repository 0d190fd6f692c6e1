//! The previous targets of ports: their flows still go there.

use std::collections::{BTreeMap, HashSet};

use portredir_common::abi::{Old, Protocol};
use serde::{Deserialize, Serialize};

use super::interval::{Holders, intervals};
use crate::rule::{Ports, Rule};

/// The targets of removed rules, for each port. Flows that began under these rules still
/// go to these targets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History(BTreeMap<HistoryKey, Vec<u16>>);

/// A port of a protocol. The JSON form is a text such as `tcp/80`, as JSON has no other
/// keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(super) struct HistoryKey {
    pub(super) protocol: Protocol,
    pub(super) dst_port: u16,
}

impl From<HistoryKey> for String {
    fn from(HistoryKey { protocol, dst_port }: HistoryKey) -> Self {
        let name = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        format!("{name}/{dst_port}")
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
        let dst_port = port.parse().map_err(|_| "not a port")?;
        Ok(Self { protocol, dst_port })
    }
}

impl History {
    /// The history after one list of rules replaced another: the targets that no longer
    /// belong to their port, and the earlier targets that still have flows.
    #[must_use]
    pub fn after(
        &self,
        before: &[Rule],
        after: &[Rule],
        is_alive: impl Fn(Protocol, u16, u16) -> bool,
    ) -> Self {
        let mut history = BTreeMap::<HistoryKey, Vec<u16>>::new();
        let mut add = |key, target| {
            let targets = history.entry(key).or_default();
            if targets.len() < Old::COUNT && !targets.contains(&target) {
                targets.push(target);
            }
            targets.len() < Old::COUNT
        };
        let stay: HashSet<_> = after.iter().collect();
        let gone: Vec<_> = before.iter().filter(|rule| !stay.contains(rule)).collect();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let rules = gone.iter().copied().enumerate();
            let mut holders = Holders::default();
            for interval in intervals(rules, protocol) {
                holders.pass(&interval, |i| mapping(gone[i]));
                for dst_port in interval.ports.into_iter().flat_map(Ports::each) {
                    let key = HistoryKey { protocol, dst_port };
                    let mut places = holders.places().iter();
                    places.all(|&i| add(key, gone[i].target_of(dst_port)));
                }
            }
        }
        for (&key, targets) in &self.0 {
            for &target in targets {
                if is_alive(key.protocol, key.dst_port, target) {
                    add(key, target);
                }
            }
        }
        Self(history)
    }

    /// Iterates over the ports and their previous targets.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&HistoryKey, &Vec<u16>)> {
        self.0.iter()
    }

    /// Whether no port has a previous target.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The mapping of a rule: to one port, or to ports at a fixed distance.
fn mapping(rule: &Rule) -> (bool, i32) {
    let target = i32::from(rule.target.first);
    if rule.target.first == rule.target.last {
        (false, target)
    } else {
        (true, target - i32::from(rule.dst_ports.first))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::rule::tests::arbitrary::near_rule;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

        /// The targets of removed rules are known, up to four, in the order of the rules.
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
                    for dst_port in rule.dst_ports.each().filter(|&port| rule.redirects(port)) {
                        let targets = expected.entry(HistoryKey { protocol, dst_port }).or_default();
                        let target = rule.target_of(dst_port);
                        if targets.len() < Old::COUNT && !targets.contains(&target) {
                            targets.push(target);
                        }
                    }
                }
            }
            prop_assert_eq!(history, History(expected));
        }
    }
}
