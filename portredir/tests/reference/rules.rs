//! The meaning of rules, in the words of the documentation.

use portredir::rule::Rule;
use portredir_common::net::{Port, Protocol};

use super::flows::Ends;
use crate::packet::mock::OTHER;
use crate::packet::{Iface, Setup};

/// How many earlier targets a port remembers.
const REMEMBERED: usize = 4;

/// The rules that hold, and those before them.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    /// Those that hold no more.
    gone: Vec<Rule>,
    pub is_hiding: bool,
    pub if_listening: bool,
}

fn has(rule: &Rule, protocol: Protocol) -> bool {
    rule.protocols.each().contains(&protocol)
}

impl Rules {
    pub fn of(setup: Setup) -> Self {
        let parse = |text: &&str| text.parse::<Rule>().expect("a rule");
        let rules: Vec<Rule> = setup.rules.iter().map(parse).collect();
        let gone = setup.earlier.iter().map(parse);
        Self {
            gone: gone.filter(|rule| !rules.contains(rule)).collect(),
            rules,
            is_hiding: setup.is_hiding,
            if_listening: setup.if_listening,
        }
    }

    fn about(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = &Rule> {
        let rules = self.rules.iter();
        rules.filter(move |rule| has(rule, protocol) && rule.redirects(Port::new(port)))
    }

    /// Whether some rule is about packets to this port.
    pub fn is_dst(&self, protocol: Protocol, port: u16) -> bool {
        self.about(protocol, port).next().is_some()
    }

    /// Whether all packets to this port are redirected, whoever sends them.
    fn is_dialled_by_all(&self, protocol: Protocol, port: u16) -> bool {
        let is_plain =
            |rule: &Rule| rule.addr.is_none() && rule.from.is_none() && rule.on.is_empty();
        self.is_dst(protocol, port) && self.about(protocol, port).all(is_plain)
    }

    /// Whether a target port is hidden from other hosts.
    pub fn is_hidden(&self, protocol: Protocol, port: u16) -> bool {
        self.is_hiding && port != 0 && self.is_target(protocol, port)
    }

    /// Whether a rule leads here, or what is hidden is answered from here.
    pub fn is_target(&self, protocol: Protocol, port: u16) -> bool {
        if self.is_hiding && port == 0 {
            return self.rules.iter().any(|rule| has(rule, protocol));
        }
        let mut rules = self.rules.iter();
        rules.any(|rule| {
            let is_alone = rule.forward().is_none();
            is_alone && has(rule, protocol) && rule.is_own_target(Port::new(port))
        })
    }

    /// Whether packets of a client go to targets with an address.
    pub fn forwards(&self, ends: Ends, iface: Iface) -> bool {
        let rule = self.matching(ends, iface);
        rule.is_some_and(|rule| rule.forward().is_some())
    }

    /// Whether a reply from here may have to be restored.
    pub fn was_target(&self, protocol: Protocol, port: u16) -> bool {
        let mut gone = self.gone.iter();
        self.is_target(protocol, port)
            || gone.any(|rule| has(rule, protocol) && rule.is_own_target(Port::new(port)))
    }

    /// Where packets to this port were sent before, and are no more.
    pub fn earlier(&self, protocol: Protocol, port: u16) -> Vec<u16> {
        let now = self
            .about(protocol, port)
            .next()
            .and_then(|rule| rule.target_of(Port::new(port)))
            .map(Port::get);
        let is_now = |target| self.is_dialled_by_all(protocol, port) && now == Some(target);
        let mut targets = Vec::new();
        for rule in &self.gone {
            let Some(target) = rule.target_of(Port::new(port)).map(Port::get) else {
                continue;
            };
            if has(rule, protocol)
                && rule.redirects(Port::new(port))
                && !targets.contains(&target)
                && !is_now(target)
            {
                targets.push(target);
            }
        }
        targets.truncate(REMEMBERED);
        targets
    }

    /// Where a packet goes whose client dialled these ends.
    pub fn target(&self, ends: Ends, iface: Iface) -> Option<u16> {
        let rule = self.matching(ends, iface)?;
        rule.target_of(Port::new(ends.local_port)).map(Port::get)
    }

    /// The rule for a packet whose client dialled these ends: the rule for its address wins over those for all
    /// addresses, then the rule for fewer clients, then the one that is for some
    /// interfaces only, then the first.
    fn matching(&self, ends: Ends, iface: Iface) -> Option<&Rule> {
        let iface = if iface == Iface::Lo { "lo" } else { OTHER };
        let fits = |rule: &&Rule| {
            rule.addr.is_none_or(|addr| addr == ends.local)
                && rule.from.is_none_or(|from| from.contains(&ends.client))
                && (rule.on.is_empty() || rule.on.iter().any(|name| name == iface))
        };
        let rank = |rule: &&Rule| {
            let prefix = rule.from.map_or(-1, |from| i16::from(from.prefix_len()));
            let width = rule.ports.last - rule.ports.first;
            (rule.addr.is_none(), -prefix, width)
        };
        // Of equals it takes the first.
        let dialled = ends.local_port;
        let rules = self.about(ends.protocol, dialled);
        rules.filter(fits).min_by_key(rank)
    }
}
