//! The rules in the form that the programs read. Pure: nothing here touches a map.
//!
//! Each port has one entry, whatever the number of rules. Where rules have conditions,
//! ports with the same rules share a set of them: one lookup by the destination address,
//! then one by the client's address leads to the few remaining rules, the most specific
//! first; they differ in their interfaces.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use portredir_common::map::rules::{
    AddrKey, Candidate, Candidates, PortEntry, PreviousTargets, SourceKey,
};
use portredir_common::net::HostPort;
use portredir_common::net::{Addr, Port, Protocol};
use thiserror::Error;

use super::candidates::{self, Condition, TooMany};
use super::history::History;
use super::interval::{self, Holders, by_width, intervals};
use super::shadow::MAX_ON;
use super::taken::TakenPorts;
use crate::rule::{Forward, Ports, Rule};

/// The error of rules that need more than the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// Too many `on` lists.
    #[error("the rules use {0} different interface lists (`on …`); the maximum is {MAX_ON}")]
    On(usize),
    /// Too many conditions for one client.
    #[error(
        "port {}: {count} rules with equal `from` differ only in `on`; the maximum is {}",
        .port.get(), Candidates::COUNT
    )]
    Candidates {
        /// The destination port.
        port: Port,
        /// The number of conditions.
        count: usize,
    },
    /// Too many combinations of conditions.
    #[error("the rules need too many {what}; the maximum is {limit}")]
    Conditions {
        /// The kind of the entries.
        what: &'static str,
        /// The largest number of entries.
        limit: usize,
    },
    /// The targets of a rule have no number by which the programs find them.
    #[error("the targets of rule {} have no number", .place + 1)]
    NoService {
        /// The place of the rule in the list.
        place: usize,
    },
}

/// The size of the map, as declared in `portredir-ebpf/src/maps.rs`.
const MAX_ADDRS: usize = 65_536 / 2;
const MAX_SOURCES: usize = 262_144 / 2;

/// The settings that ports carry to the programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableOptions<'a> {
    /// Whether outsiders cannot connect to target ports themselves.
    pub hide_target: bool,
    /// Whether a port is redirected only while a server listens on its target port.
    pub if_listening: bool,
    /// The target ports on which no server has to listen.
    pub taken: Option<&'a TakenPorts>,
}

/// The contents of the maps for one generation; the generation itself is added when the
/// maps are filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The entries of ports, by [`PortEntry::index`].
    pub ports: Vec<PortEntry>,
    /// The previous targets of ports, by [`PortEntry::index`].
    pub old: BTreeMap<u32, PreviousTargets>,
    /// The group of rules for an address, by set and address.
    pub addrs: HashMap<AddrKey, u32>,
    /// The rules for clients, by set or group and by prefix.
    pub sources: HashMap<(u32, SourceKey), Candidates>,
    on: Vec<Vec<String>>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            ports: vec![PortEntry::default(); PortEntry::COUNT as usize],
            old: BTreeMap::new(),
            addrs: HashMap::new(),
            sources: HashMap::new(),
            on: Vec::new(),
        }
    }
}

impl Table {
    /// Compiles rules, each with the number of its counters, in the order given. The number of
    /// a service comes from `service_of`, by the place of a rule that has one.
    ///
    /// # Errors
    ///
    /// [`TableError`]: the rules need more than the maps hold, or a rule has no number.
    pub fn compile(
        rules: &[(u16, Rule)],
        history: &History,
        options: TableOptions<'_>,
        service_of: impl Fn(usize) -> Option<u16>,
    ) -> Result<Self, TableError> {
        let mut table = Self::default();
        let ranked = by_width(rules, |(_, rule)| rule);
        let conditions = table.conditions(&ranked, service_of)?;
        let mut sets = HashMap::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            table.add_targets(rules, protocol, options);
            let mut holders = Holders::default();
            let mut set = 0;
            for interval in intervals(
                ranked.iter().map(|(_, (_, rule))| rule).enumerate(),
                protocol,
            ) {
                let is_changed = holders.pass(&interval, |i| conditions[i].key());
                let (Some(&first), Some(ports)) = (holders.places().first(), interval.ports) else {
                    continue;
                };
                if is_changed {
                    set = table.set(
                        &mut sets,
                        Port::new(ports.first),
                        holders.places(),
                        &conditions,
                    )?;
                }
                let candidate = conditions[first].candidate;
                let flags = options.match_flags(holders.places().iter().map(|&i| &conditions[i]));
                for port in ports.each() {
                    let entry = &mut table.ports[index(protocol, port)];
                    entry.set = set;
                    entry.target = candidate.target_of(port);
                    entry.rule = candidate.rule;
                    entry.flags |= flags;
                    let mut all = holders.places().iter().map(|&i| conditions[i].candidate);
                    if all.any(|candidate| options.is_taken(protocol, candidate, port)) {
                        entry.flags &= !PortEntry::IF_LISTENING;
                    }
                }
            }
        }
        table.add_history(history);
        Ok(table)
    }

    /// Numbers the lists of interfaces, and returns the conditions of the rules.
    fn conditions(
        &mut self,
        rules: &[(usize, &(u16, Rule))],
        service_of: impl Fn(usize) -> Option<u16>,
    ) -> Result<Vec<Condition>, TableError> {
        let (conditions, lists) = interval::conditions(rules.iter().map(|(_, (_, rule))| rule));
        if lists.len() > MAX_ON {
            return Err(TableError::On(lists.len()));
        }
        self.on = lists.into_iter().map(<[_]>::to_vec).collect();
        let conditions = rules.iter().zip(conditions);
        let conditions = conditions.map(|(&(place, (id, rule)), (addr, from, on))| {
            let (target, flags) = match rule.here() {
                Some(ports) if ports.is_one() => (ports.first, 0),
                Some(ports) => (ports.first, Candidate::RANGE),
                None => {
                    let number = service_of(place).filter(|number| *number != 0);
                    let number = number.ok_or(TableError::NoService { place })?;
                    (number, Candidate::FORWARD)
                }
            };
            let candidate = Candidate {
                target: HostPort::new(Port::new(target)),
                first_dst_port: HostPort::new(Port::new(rule.ports.first)),
                rule: *id,
                on: u8::try_from(on).expect("few lists"),
                flags,
            };
            Ok(Condition {
                addr,
                from,
                candidate,
            })
        });
        conditions.collect()
    }

    /// Marks the target ports of rules.
    fn add_targets(
        &mut self,
        rules: &[(u16, Rule)],
        protocol: Protocol,
        options: TableOptions<'_>,
    ) {
        let rules = || {
            let rules = rules.iter().map(|(_, rule)| rule);
            rules.filter(|rule| rule.protocols.each().contains(&protocol))
        };
        let all_targets = || {
            rules()
                .filter_map(Rule::forward)
                .flat_map(Forward::all_targets)
        };
        let remote = covered(all_targets().map(|target| target.ports));
        let here = covered(rules().filter_map(Rule::here));
        let shared = covered(
            rules()
                .filter(|_| options.hide_target)
                .flat_map(hidden_beside),
        );
        let marks = here.into_iter().zip(shared).zip(remote);
        for (port, ((is_here, is_shared), is_remote)) in (0..=u16::MAX).map(Port::new).zip(marks) {
            let place = index(protocol, port);
            if is_here {
                self.ports[place].flags |= options.target_flags();
            }
            if is_shared {
                self.ports[place].flags |= PortEntry::HIDDEN;
            }
            if is_remote {
                self.ports[place].flags |= PortEntry::REMOTE;
            }
            if options.hide_target && (is_here || is_shared) {
                // A hidden port answers as port 0 does, whose replies are rewritten.
                self.ports[index(protocol, Port::CLOSED)].flags |= PortEntry::TARGET;
            }
        }
    }

    /// The number of a set of rules; 0 where they have no conditions.
    fn set(
        &mut self,
        sets: &mut HashMap<Vec<usize>, u16>,
        port: Port,
        places: &BTreeSet<usize>,
        conditions: &[Condition],
    ) -> Result<u16, TableError> {
        // Of rules without conditions, only the first can match.
        if places.iter().all(|&i| conditions[i].is_none()) {
            return Ok(0);
        }
        let count = sets.len() + 1;
        match sets.entry(places.iter().copied().collect()) {
            Entry::Occupied(set) => Ok(*set.get()),
            Entry::Vacant(set) => {
                let limit = usize::from(u16::MAX);
                let what = "different sets of rules per port";
                let id =
                    u16::try_from(count).map_err(|_| TableError::Conditions { what, limit })?;
                let rules: Vec<_> = set.key().iter().map(|&i| conditions[i]).collect();
                self.add_set(id, port, &rules)?;
                Ok(*set.insert(id))
            }
        }
    }

    /// Adds the conditions of the rules of one port; all ports with the same rules share
    /// them.
    fn add_set(&mut self, id: u16, port: Port, rules: &[Condition]) -> Result<(), TableError> {
        let set = u32::from(id);
        let (general, own): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| rule.addr.is_none());
        self.add_group(set, None, port, &general)?;
        let mut of_addr = BTreeMap::<_, Vec<Condition>>::new();
        for rule in own {
            of_addr
                .entry(rule.addr.expect("it has one"))
                .or_default()
                .push(rule);
        }
        for (addr, mut rules) in of_addr {
            // Numbers of groups are above those of sets.
            let group = u32::from(u16::MAX) + 1 + u32::try_from(self.addrs.len()).expect("few");
            let key = AddrKey {
                set,
                addr: Addr::from(addr),
            };
            self.addrs.insert(key, group);
            rules.extend(&general);
            self.add_group(group, Some(addr), port, &rules)?;
        }
        Ok(())
    }

    /// Adds the rules for one address, or for addresses that no rule names.
    fn add_group(
        &mut self,
        group: u32,
        addr: Option<IpAddr>,
        port: Port,
        rules: &[Condition],
    ) -> Result<(), TableError> {
        for networks in candidates::networks(addr, rules) {
            for net in networks.nets() {
                let candidates = networks
                    .candidates(net)
                    .map_err(|TooMany(count)| TableError::Candidates { port, count })?;
                self.sources.insert(source_key(group, net), candidates);
                // The check is made for each network, not only at the end, because there
                // can be far too many entries.
                self.check_limits()?;
            }
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), TableError> {
        for (what, count, limit) in [
            ("address entries", self.addrs.len(), MAX_ADDRS),
            ("client network entries", self.sources.len(), MAX_SOURCES),
        ] {
            if count > limit {
                return Err(TableError::Conditions { what, limit });
            }
        }
        Ok(())
    }

    fn add_history(&mut self, history: &History) {
        for (protocol, port, targets) in history.iter() {
            let place = index(protocol, port);
            let entry = self.ports[place];
            // A target that is still the same needs no history.
            let is_one = entry.is_match() && entry.set == 0;
            let is_here = is_one && entry.flags & PortEntry::FORWARD == 0;
            let is_same = |target: Port| is_here && entry.target == target;
            let targets = targets.filter(|&target| !is_same(target));
            let targets: Vec<_> = targets.take(PreviousTargets::COUNT).collect();
            for &target in &targets {
                self.ports[index(protocol, target)].flags |= PortEntry::TARGET;
            }
            let old = PreviousTargets::new(targets);
            if old != PreviousTargets::default() {
                self.ports[place].flags |= PortEntry::OLD;
                self.old
                    .insert(u32::try_from(place).expect("an index"), old);
            }
        }
    }

    /// The lists of interfaces in rules; the bit of a list is its place plus one.
    #[must_use]
    pub fn on_lists(&self) -> &[Vec<String>] {
        &self.on
    }

    /// Whether a port is a target port.
    #[must_use]
    pub fn is_target(&self, protocol: Protocol, port: Port) -> bool {
        self.ports[index(protocol, port)].is_target()
    }
}

impl TableOptions<'_> {
    /// The flags of a port with some rules. The programs ask for listeners only where a rule
    /// leads to a port of this host alone.
    fn match_flags<'a>(self, rules: impl Iterator<Item = &'a Condition>) -> u16 {
        let flags = rules.map(|rule| {
            if rule.candidate.flags & Candidate::FORWARD != 0 {
                PortEntry::FORWARD
            } else if self.if_listening {
                PortEntry::IF_LISTENING
            } else {
                0
            }
        });
        flags.fold(PortEntry::MATCH, |all, flag| all | flag)
    }

    /// Whether a rule leads a port to one on which no server has to listen.
    fn is_taken(self, protocol: Protocol, candidate: Candidate, port: Port) -> bool {
        let is_here = candidate.flags & Candidate::FORWARD == 0;
        let taken = self.taken.filter(|_| self.if_listening && is_here);
        taken.is_some_and(|taken| taken.contains(protocol, candidate.target_of(port)))
    }

    const fn target_flags(self) -> u16 {
        if self.hide_target {
            PortEntry::TARGET | PortEntry::HIDDEN
        } else {
            PortEntry::TARGET
        }
    }
}

/// The ports that some ranges have, by the number of the port.
fn covered(ranges: impl Iterator<Item = Ports>) -> Vec<bool> {
    // The number of ranges that more begin than end at each port: a range costs two steps.
    let mut steps = vec![0_i32; (1 << 16) + 1];
    for range in ranges {
        steps[usize::from(range.first)] += 1;
        steps[usize::from(range.last) + 1] -= 1;
    }
    let counts = steps.into_iter().scan(0, |count, step| {
        *count += step;
        Some(*count > 0)
    });
    counts.collect()
}

/// The target ports on this host of a rule that has other targets as well, as far as they can
/// be hidden: clients connect to a port that is a destination port, too.
fn hidden_beside(rule: &Rule) -> impl Iterator<Item = Ports> {
    let dst = rule.ports;
    let own = rule.own_targets().filter(|_| rule.forward().is_some());
    own.flat_map(move |own| {
        let below = (own.first, own.last.min(dst.first.saturating_sub(1)));
        let above = (own.first.max(dst.last.saturating_add(1)), own.last);
        let parts = [
            Some(below).filter(|_| own.first < dst.first),
            Some(above).filter(|_| own.last > dst.last),
        ];
        let parts = parts.into_iter().flatten();
        parts.map(|(first, last)| Ports { first, last })
    })
}

/// The key of a client network in a group, with the length of the prefix.
fn source_key(group: u32, net: IpNet) -> (u32, SourceKey) {
    let (version, mapped) = if net.addr().is_ipv4() {
        (4, 96)
    } else {
        (6, 0)
    };
    let key = SourceKey {
        group,
        version,
        client: Addr::from(net.addr()),
    };
    let prefix = SourceKey::PREFIX + mapped + u32::from(net.prefix_len());
    (prefix, key)
}

fn index(protocol: Protocol, port: Port) -> usize {
    PortEntry::index(protocol, port) as usize
}

#[cfg(test)]
mod tests;
