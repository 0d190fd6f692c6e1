//! Finds rules that match nothing on the host as it is now, and names that no interface has
//! yet. Both may change with the host, so they are said and not refused.

use std::fmt;
use std::net::IpAddr;

use portredir_common::net::Addr;

use super::{NO_LOCAL, Plan};
use crate::config::settings::Settings;
use crate::host::snapshot::{Interface, LocalAddrs, LocalNetwork, Snapshot};
use crate::rule::Rule;

/// The reason why programs are not attached to an interface.
const UNSELECTED: &str = "--iface does not select it";

/// A rule that matches nothing on the host as it is now, or nothing on an interface that
/// the rule names. `Display` is a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadRule {
    /// The rule.
    pub rule: Rule,
    /// The reason.
    pub reason: DeadReason,
}

/// The reason why a rule matches nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadReason {
    /// This host does not have the address.
    ForeignAddr(IpAddr),
    /// No interface has the name.
    NoInterface {
        /// The name.
        name: String,
        /// A question about another name, or nothing.
        hint: String,
    },
    /// Packets do not count as received on the interface.
    Unhooked {
        /// The name of the interface.
        name: String,
        /// The reason in the plan.
        why: String,
    },
}

impl fmt::Display for DeadRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = &self.rule;
        match &self.reason {
            DeadReason::ForeignAddr(addr) => write!(
                f,
                "rule `{rule}` matches nothing now: {addr} is not an address of this host; the \
                 rule applies once the host has the address"
            ),
            DeadReason::NoInterface { name, hint } => write!(
                f,
                "rule `{rule}`: interface `{name}` does not exist yet; the rule applies when it \
                 appears{hint}"
            ),
            DeadReason::Unhooked { name, why } => {
                write!(f, "rule `{rule}` matches nothing on {name}: {why}")
            }
        }
    }
}

/// The rules on `lo` that match nothing on any host, because the settings leave local
/// clients alone.
#[must_use]
pub fn never_local(settings: &Settings) -> Vec<DeadRule> {
    let why = match (settings.no_local, settings.iface.selects("lo")) {
        (true, _) => NO_LOCAL,
        (false, None) => UNSELECTED,
        (false, Some(_)) => return Vec::new(),
    };
    let rules = settings.rules.iter();
    let on_lo = rules.filter(|rule| rule.on.iter().any(|name| name == "lo"));
    let dead = on_lo.map(|rule| DeadRule {
        rule: rule.clone(),
        reason: DeadReason::Unhooked {
            name: "lo".to_owned(),
            why: why.to_owned(),
        },
    });
    dead.collect()
}

impl Snapshot {
    /// Warnings about rules that match no packet under a plan.
    #[must_use]
    pub fn dead_rules(&self, rules: &[Rule], plan: &Plan) -> Vec<String> {
        let dead = self.dead(rules, plan);
        dead.iter().map(|dead| format!("warning: {dead}")).collect()
    }

    /// The rules that match no packet under a plan.
    #[must_use]
    pub fn dead(&self, rules: &[Rule], plan: &Plan) -> Vec<DeadRule> {
        let mut dead = Vec::new();
        for rule in rules {
            let mut add = |reason| {
                dead.push(DeadRule {
                    rule: rule.clone(),
                    reason,
                });
            };
            let names = rule.on.iter();
            names
                .filter_map(|name| self.dead_interface(name, plan))
                .for_each(&mut add);
            if let Some(addr) = rule.addr.filter(|addr| !self.local.contains(*addr)) {
                add(DeadReason::ForeignAddr(addr));
            }
        }
        dead
    }

    /// The reason why one name or glob behind `on` matches nothing.
    fn dead_interface(&self, name: &str, plan: &Plan) -> Option<DeadReason> {
        let glob = glob::Pattern::new(name).ok()?;
        let named: Vec<_> = self
            .interfaces
            .values()
            .filter(|interface| glob.matches(&interface.name))
            .collect();
        let Some(first) = named.first() else {
            return is_exact(name).then(|| DeadReason::NoInterface {
                name: name.to_owned(),
                hint: self.hint(name),
            });
        };
        let matches = |interface: &Interface| self.names(interface).any(|name| glob.matches(name));
        let mut hooked = plan
            .attach
            .values()
            .filter(|planned| !planned.is_egress_only);
        if hooked.any(|planned| matches(&planned.interface)) {
            return None;
        }
        Some(DeadReason::Unhooked {
            name: first.name.clone(),
            why: plan.why_unhooked(first),
        })
    }

    /// The note on a name of `--iface` that no interface has yet.
    pub(super) fn absent_note(&self, name: &str) -> String {
        let hint = self.hint(name);
        format!("`{name}` does not exist yet; it will be attached when it appears{hint}")
    }

    /// An existing interface with a similar name, as a question.
    fn hint(&self, name: &str) -> String {
        let names = self.interfaces.values().map(|interface| &interface.name);
        let near = names
            .map(|other| (distance(name, other), other))
            .filter(|(distance, other)| *distance <= 2 && *distance < other.len().min(name.len()))
            .min();
        near.map_or_else(String::new, |(_, near)| {
            format!(" (did you mean `{near}`?)")
        })
    }
}

impl Plan {
    /// The reason why packets do not count as received on an interface.
    fn why_unhooked(&self, interface: &Interface) -> String {
        let skipped = self
            .skip
            .iter()
            .find(|skipped| skipped.index == interface.index);
        let planned = self.attach.get(&interface.index);
        match (skipped, planned) {
            (Some(skipped), _) => skipped.why.clone(),
            (None, Some(planned)) => planned.why.clone(),
            (None, None) => UNSELECTED.to_owned(),
        }
    }
}

impl LocalAddrs {
    /// Whether packets for an address are delivered to this host.
    pub(super) fn contains(&self, addr: IpAddr) -> bool {
        if addr.is_loopback() || addr.is_unspecified() {
            return true;
        }
        let octets = Addr::from(addr).octets();
        self.addrs.contains_key(&octets)
            || self.networks.iter().any(|network| network.contains(octets))
    }
}

impl LocalNetwork {
    pub(super) fn contains(self, addr: [u8; 16]) -> bool {
        let first_bits = |addr: [u8; 16]| {
            u128::from_be_bytes(addr)
                .checked_shr(128 - u32::from(self.prefix_len))
                .unwrap_or_default()
        };
        first_bits(addr) == first_bits(self.addr)
    }
}

/// Whether a text means one interface.
pub(super) fn is_exact(name: &str) -> bool {
    !name.contains(['*', '?', '['])
}

/// The number of characters to insert, delete or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<_> = b.chars().collect();
    let mut row: Vec<_> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
