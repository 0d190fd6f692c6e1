//! From rules to the targets whose ways have to be known.

use std::collections::BTreeSet;

use glob::Pattern;
use portredir_common::net::{LOOPBACK_IFINDEX, Port};

use super::WantedWay;
use crate::config::engine::Engine;
use crate::host::snapshot::{Interface, Snapshot};
use crate::plan::Plan;
use crate::rule::{Forward, Rule};

impl Snapshot {
    /// The targets with an address, each with the interfaces of a plan by which clients of
    /// its rule come in.
    #[must_use]
    pub fn wanted_ways(&self, rules: &[Rule], plan: &Plan) -> Vec<WantedWay> {
        let mut wanted = Vec::new();
        for rule in rules {
            let targets = rule.forward().into_iter().flat_map(Forward::all_targets);
            let mut targets = targets
                .filter_map(|target| Some((target.host?, target)))
                .peekable();
            if targets.peek().is_none() {
                continue;
            }
            let ingress = self.ingress(rule, plan);
            wanted.extend(targets.map(|(addr, target)| WantedWay {
                rule: rule.to_string(),
                target: addr,
                port: Port::new(target.ports.first),
                protocols: rule.protocols,
                from: rule.from,
                dialled: rule.addr,
                ingress: ingress.clone(),
            }));
        }
        wanted
    }

    /// The interfaces by which clients of a rule come in.
    fn ingress(&self, rule: &Rule, plan: &Plan) -> BTreeSet<u32> {
        let globs = rule.on.iter().filter_map(|name| Pattern::new(name).ok());
        let globs: Vec<_> = globs.collect();
        let is_on = |interface: &Interface| {
            let mut names = self.names(interface);
            globs.is_empty() || names.any(|name| globs.iter().any(|glob| glob.matches(name)))
        };
        let planned = plan.attach.values().filter(|planned| {
            !planned.is_egress_only && planned.engine != Engine::Lookup && is_on(&planned.interface)
        });
        planned.map(|planned| planned.interface.index).collect()
    }
}

impl Plan {
    /// The engine that redirects clients on this host.
    #[must_use]
    pub fn local_engine(&self) -> Option<Engine> {
        let planned = self.attach.get(&LOOPBACK_IFINDEX)?;
        Some(planned.engine)
    }
}
