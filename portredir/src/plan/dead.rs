//! Finds rules that match nothing on the host as it is now, and names that no interface has
//! yet. Both may change with the host, so they are said and not refused.

use std::net::IpAddr;

use portredir_common::net::Addr;

use super::Plan;
use crate::host::snapshot::{Interface, LocalAddrs, LocalNetwork, Snapshot};
use crate::rule::Rule;

impl Snapshot {
    /// Warnings about rules that match no packet under a plan.
    #[must_use]
    pub fn dead_rules(&self, rules: &[Rule], plan: &Plan) -> Vec<String> {
        let mut warnings = Vec::new();
        for rule in rules {
            let names = rule.on.iter();
            warnings.extend(names.filter_map(|name| self.dead_interface(rule, name, plan)));
            if let Some(addr) = rule.addr.filter(|addr| !self.local.contains(*addr)) {
                warnings.push(format!(
                    "warning: rule `{rule}` matches nothing now: {addr} is not an address of this \
                     host; the rule applies once the host has the address"
                ));
            }
        }
        warnings
    }

    /// The warning about one name or glob behind `on`.
    fn dead_interface(&self, rule: &Rule, name: &str, plan: &Plan) -> Option<String> {
        let glob = glob::Pattern::new(name).ok()?;
        let named: Vec<_> = self
            .interfaces
            .values()
            .filter(|interface| glob.matches(&interface.name))
            .collect();
        let Some(first) = named.first() else {
            return is_exact(name).then(|| {
                let hint = self.hint(name);
                format!(
                    "warning: rule `{rule}`: interface `{name}` does not exist yet; the rule \
                     applies when it appears{hint}"
                )
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
        let why = plan.why_unhooked(first);
        Some(format!(
            "warning: rule `{rule}` matches nothing on {}: {why}",
            first.name
        ))
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
            (None, None) => "--iface does not select it".to_owned(),
        }
    }
}

impl LocalAddrs {
    /// Whether packets for an address are delivered to this host.
    fn contains(&self, addr: IpAddr) -> bool {
        if addr.is_loopback() || addr.is_unspecified() {
            return true;
        }
        let octets = Addr::from(addr).octets();
        self.addrs.contains_key(&octets)
            || self.networks.iter().any(|network| network.contains(octets))
    }
}

impl LocalNetwork {
    fn contains(self, addr: [u8; 16]) -> bool {
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
