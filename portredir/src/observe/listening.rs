//! The servers that clients of each rule reach, and those that a rule takes clients from.
//!
//! Sockets are listed once for each protocol, and processes once, however many rules there
//! are. Everything here is a fact of the moment: a server may start after its rule.

mod finding;
mod listener;
mod scope;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use portredir_common::net::Protocol;
use serde::Serialize;

pub use self::finding::{Finding, Kind};
pub use self::listener::{Listener, Listeners};
use self::listener::{marked, place, ports};
use self::scope::Scope;
use crate::config::settings::Settings;
pub use crate::host::packet_filter::ruleset::name_of;
use crate::host::snapshot::Snapshot;
use crate::rule::{Ports, Rule};
use crate::ruleset::taken::TakenPorts;

/// The servers of one rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listening {
    /// The canonical text of the rule.
    pub rule: String,
    /// The sockets on its target ports of this host.
    pub listeners: Vec<Listener>,
    /// Everything that stands between clients and servers.
    pub findings: Vec<Finding>,
}

impl Listening {
    /// A line for each server, and one for each finding.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let servers = self.servers().into_iter();
        let servers = servers.map(|line| format!("{}: {line}", self.rule));
        servers.chain(self.finding_lines())
    }

    /// A line for each finding.
    pub fn finding_lines(&self) -> impl Iterator<Item = String> {
        let findings = self.findings.iter();
        findings.map(|finding| format!("{}: {finding}", self.rule))
    }

    /// The listeners as sentences: those of one process on neighbouring ports are one.
    fn servers(&self) -> Vec<String> {
        let mut places = BTreeMap::<_, BTreeSet<String>>::new();
        for listener in &self.listeners {
            let key = (listener.protocol, listener.port, listener.who());
            places.entry(key).or_default().insert(listener.place());
        }
        let mut merged: Vec<(Ports, &str, String, BTreeSet<String>)> = Vec::new();
        for ((protocol, port, who), places) in places {
            let same = merged.iter_mut().rev().find(|(ports, ..)| {
                // Processes that share a port stand between its neighbours.
                ports.last == port || ports.last.checked_add(1) == Some(port)
            });
            match same {
                Some((ports, of, by, at)) if (*of, &*by, &*at) == (protocol, &who, &places) => {
                    ports.last = port;
                }
                _ => merged.push((ports(port), protocol, who, places)),
            }
        }
        let line = |(ports, protocol, who, places): (Ports, _, _, BTreeSet<_>)| {
            let places: Vec<_> = places.into_iter().collect();
            format!(
                "{who} listens on {ports}/{protocol} ({})",
                places.join(", ")
            )
        };
        merged.into_iter().map(line).collect()
    }
}

/// The servers of each rule of these settings, in the order of the rules. On ports that others
/// take, no server has to listen.
#[must_use]
pub fn of_rules(
    listeners: &Listeners,
    settings: &Settings,
    host: &Snapshot,
    taken: &TakenPorts,
) -> Vec<Listening> {
    let targets = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
        let rules = settings.rules.iter();
        let rules = rules.filter(|rule| rule.protocols.each().contains(&protocol));
        marked(rules.flat_map(Rule::own_targets))
    });
    let rules = settings.rules.iter();
    rules
        .map(|rule| {
            let scope = Scope::new(rule, settings, (host, taken));
            let each = rule.protocols.each().iter();
            let findings = each.clone().flat_map(|&protocol| {
                let targets = &targets[place(protocol)];
                let served = scope.served(listeners, protocol);
                let shadowed = scope.shadowed(listeners, protocol, targets);
                served.into_iter().chain(shadowed)
            });
            let servers = each.flat_map(|&protocol| {
                let within = rule
                    .own_targets()
                    .flat_map(move |ports| listeners.within(protocol, ports));
                within.flat_map(|(_, here)| here.to_vec())
            });
            Listening {
                rule: rule.to_string(),
                findings: findings.collect(),
                listeners: servers.collect(),
            }
        })
        .collect()
}
