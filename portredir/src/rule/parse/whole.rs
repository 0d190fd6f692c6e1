//! Parses a rule from its beginning to its end.

use std::str::FromStr;

use ipnet::IpNet;

use super::Parser;
use super::options::Words;
use super::target::{Listen, Placed, other_version};
use crate::rule::error::EXAMPLE;
use crate::rule::{Else, Forward, Labelled, Protocols, Rule, RuleError, To};

/// Reads a rule. A label may stand at its end and is left out.
impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        text.parse().map(|labelled: Labelled| labelled.rule)
    }
}

impl FromStr for Labelled {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut parser = Parser { text, at: 0 };
        parser.skip_spaces();
        if parser.rest().is_empty() {
            return Err(parser.error("the rule is empty", EXAMPLE));
        }
        parser.no_quotes()?;
        if parser.is_firewalld() {
            return parser.firewalld();
        }
        let addr = parser.addr()?;
        let ports = parser.ports("the port that clients connect to")?;
        parser.colon(ports)?;
        let listen = Listen { addr, ports };
        let targets = parser.targets(listen)?;
        let protocols = parser.protocols()?;
        parser.finish(listen, protocols, targets)
    }
}

impl Parser<'_> {
    /// Reads the conditions and options, and makes the rule.
    pub(super) fn finish(
        &mut self,
        listen: Listen,
        protocols: Protocols,
        targets: Vec<Placed>,
    ) -> Result<Labelled, RuleError> {
        let Listen { addr, ports } = listen;
        let first = &targets[0];
        let is_here = targets.len() == 1 && first.target.host.is_none();
        if is_here {
            self.check_ports(ports, first.target.ports, first.at)?;
            if let Some(at) = first.weight_at {
                return Err(self.error_at(
                    at,
                    "the only target has no share to weigh",
                    format!("write `{ports}:{}`", first.target.ports),
                ));
            }
        } else {
            for Placed { target, at, .. } in &targets {
                self.check_count(ports, target, *at)?;
            }
        }
        let mut rule = Rule {
            addr,
            ports,
            to: To::Here(first.target.ports),
            protocols,
            from: None,
            on: Vec::new(),
        };
        let mut words = Words::default();
        self.conditions(&mut rule, &mut words)?;
        if is_here {
            self.no_options(&rule, &words)?;
            let label = words.label;
            return Ok(Labelled { rule, label });
        }
        if let Some(from) = rule.from {
            self.check_clients(from, &targets, &words)?;
        }
        let check = self.check_of(&words, targets.len(), protocols)?;
        rule.to = To::Forward(Box::new(Forward {
            targets: targets.into_iter().map(|placed| placed.target).collect(),
            check,
            affinity: words.affinity,
            otherwise: words.otherwise.map(|(otherwise, _)| otherwise),
            when_down: words.when_down,
        }));
        let label = words.label;
        Ok(Labelled { rule, label })
    }

    /// Refuses targets that clients of the network cannot reach.
    fn check_clients(
        &self,
        from: IpNet,
        targets: &[Placed],
        words: &Words,
    ) -> Result<(), RuleError> {
        let is_v4 = from.addr().is_ipv4();
        let placed = targets.iter().map(|placed| (&placed.target, placed.at));
        let otherwise = match &words.otherwise {
            Some((Else::Target(target), at)) => Some((target, *at)),
            Some((Else::Drop, _)) | None => None,
        };
        let hosts = placed.chain(otherwise);
        let mut hosts = hosts.filter_map(|(target, at)| Some((target.host?, at)));
        let Some((host, at)) = hosts.find(|(host, _)| host.is_ipv4() != is_v4) else {
            return Ok(());
        };
        let problem = format!("clients in {from} cannot be sent to {host}");
        Err(self.error_at(at, problem, other_version(is_v4)))
    }
}
