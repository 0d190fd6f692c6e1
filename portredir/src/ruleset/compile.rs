//! The rules as the programs in the kernel read them.
//!
//! The compiler is pure: nothing here touches a map. Each port has one entry, whatever
//! the number of rules. Where rules have conditions, ports with the same rules share a
//! set of them: two look-ups, by the destination address and by the address of the
//! client, lead to the few rules that remain, the most specific first. These differ in
//! their interfaces.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use portredir_common::abi::{
    Addr, AddrKey, Candidate, Candidates, Old, Port, PortEntry, Protocol, SourceKey,
};

use super::candidates::{Condition, Group};
pub use super::error::TableError;
use super::history::History;
use super::interval::{self, Holders, intervals};
use super::shadow::MAX_ON;
use crate::rule::Rule;
use crate::sys::addr::to_bytes;

/// The maximum of entries for addresses: half of the map `ADDRS`, which holds two
/// generations.
const MAX_ADDRS: usize = 65_536 / 2;

/// The options that every port entry carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// Whether direct access to target ports is blocked.
    pub hide_target: bool,
    /// Whether a rule matches only while a process listens on its target port.
    pub if_listening: bool,
}

/// The contents of the maps of one generation, without the generation itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Port entries, by [`PortEntry::index`].
    pub ports: Vec<PortEntry>,
    /// Previous targets, by [`PortEntry::index`].
    pub old: BTreeMap<u32, Old>,
    /// The group of rules for an address, by set and address.
    pub addrs: HashMap<AddrKey, u32>,
    /// The rules for clients, by the length of the prefix of the key.
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
    /// Compiles rules, each with the number of its counters, in the order given.
    ///
    /// # Errors
    ///
    /// [`TableError`]: more than the maps hold.
    pub fn compile(
        rules: &[(u16, Rule)],
        history: &History,
        options: TableOptions,
    ) -> Result<Self, TableError> {
        let mut table = Self::default();
        let conditions = table.conditions(rules)?;
        let mut sets = HashMap::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            table.add_targets(rules, protocol, options);
            let mut holders = Holders::default();
            let mut set = 0;
            let rules = rules.iter().map(|(_, rule)| rule).enumerate();
            for interval in intervals(rules, protocol) {
                let is_changed = holders.pass(&interval, |i| conditions[i].key());
                let (Some(&first), Some(ports)) = (holders.places().first(), interval.ports) else {
                    continue;
                };
                if is_changed {
                    set = table.set((&mut sets, holders.places()), ports.first, &conditions)?;
                }
                let candidate = conditions[first].candidate;
                for port in ports.each() {
                    let entry = &mut table.ports[index(protocol, port)];
                    entry.set = set;
                    entry.target = candidate.target_of(port);
                    entry.rule = candidate.rule;
                    entry.flags |= options.match_flags();
                }
            }
        }
        table.add_history(history);
        Ok(table)
    }

    /// Numbers the interface lists, and returns the conditions of the rules.
    fn conditions(&mut self, rules: &[(u16, Rule)]) -> Result<Vec<Condition>, TableError> {
        let (conditions, lists) = interval::conditions(rules.iter().map(|(_, rule)| rule));
        if lists.len() > MAX_ON {
            return Err(TableError::On(lists.len()));
        }
        self.on = lists.into_iter().map(<[_]>::to_vec).collect();
        let conditions = rules.iter().zip(conditions);
        Ok(conditions
            .map(|((id, rule), (addr, from, on))| Condition {
                addr,
                from,
                candidate: Candidate {
                    target: rule.target.first,
                    dialled: rule.dst_ports.first,
                    rule: *id,
                    on: u8::try_from(on).expect("few lists"),
                    is_range: u8::from(rule.target.first != rule.target.last),
                },
            })
            .collect())
    }

    /// Marks the target ports of all rules.
    fn add_targets(&mut self, rules: &[(u16, Rule)], protocol: Protocol, options: TableOptions) {
        // How many more rules begin than end at a port: a range costs two steps.
        let mut steps = vec![0_i32; (1 << 16) + 1];
        for (_, rule) in rules {
            if rule.protocols.each().contains(&protocol) {
                steps[usize::from(rule.target.first)] += 1;
                steps[usize::from(rule.target.last) + 1] -= 1;
            }
        }
        let mut count = 0;
        for (port, step) in (0..=u16::MAX).zip(steps) {
            count += step;
            if count > 0 {
                self.ports[index(protocol, port)].flags |= options.target_flags();
            }
        }
    }

    /// Returns the number of a set of rules, which is 0 where they have no conditions.
    fn set(
        &mut self,
        (sets, places): (&mut HashMap<Vec<usize>, u16>, &BTreeSet<usize>),
        port: u16,
        conditions: &[Condition],
    ) -> Result<u16, TableError> {
        // Of rules without conditions one holds.
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

    /// Adds the conditions of the rules of one port, and of all ports with the same rules.
    fn add_set(&mut self, id: u16, port: u16, rules: &[Condition]) -> Result<(), TableError> {
        let set = u32::from(id);
        let (general, own): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| rule.addr.is_none());
        let group = Group {
            id: set,
            addr: None,
            port,
            rules: &general,
        };
        group.add_to(&mut self.sources)?;
        let mut by_addr = BTreeMap::<_, Vec<Condition>>::new();
        for rule in own {
            let addr = rule.addr.expect("the rule has an address");
            by_addr.entry(addr).or_default().push(rule);
        }
        for (addr, mut rules) in by_addr {
            // Numbers above those of sets.
            let id = u32::from(u16::MAX) + 1 + u32::try_from(self.addrs.len()).expect("few");
            let key = AddrKey {
                set,
                addr: Addr::new(to_bytes(addr)),
            };
            self.addrs.insert(key, id);
            if self.addrs.len() > MAX_ADDRS {
                return Err(TableError::Conditions {
                    what: "address entries",
                    limit: MAX_ADDRS,
                });
            }
            rules.extend(&general);
            let group = Group {
                id,
                addr: Some(addr),
                port,
                rules: &rules,
            };
            group.add_to(&mut self.sources)?;
        }
        Ok(())
    }

    fn add_history(&mut self, history: &History) {
        for (key, targets) in history.iter() {
            let place = index(key.protocol, key.dst_port);
            let entry = self.ports[place];
            // A target that is still valid needs no history.
            let is_same =
                |target: u16| entry.is_match() && entry.set == 0 && entry.target == target;
            let targets = targets.iter().copied().filter(|&target| !is_same(target));
            let mut old = Old::default();
            for (slot, target) in old.targets.iter_mut().zip(targets) {
                *slot = target;
                self.ports[index(key.protocol, target)].flags |= PortEntry::TARGET;
            }
            if old != Old::default() {
                self.ports[place].flags |= PortEntry::OLD;
                self.old
                    .insert(u32::try_from(place).expect("an index"), old);
            }
        }
    }

    /// The interface lists of the rules; the bit of a list is its place plus one.
    #[must_use]
    pub fn on_lists(&self) -> &[Vec<String>] {
        &self.on
    }

    /// Whether packets are sent to a port.
    #[must_use]
    pub fn is_target(&self, protocol: Protocol, port: u16) -> bool {
        self.ports[index(protocol, port)].is_target()
    }
}

impl TableOptions {
    const fn match_flags(self) -> u16 {
        if self.if_listening {
            PortEntry::MATCH | PortEntry::IF_LISTENING
        } else {
            PortEntry::MATCH
        }
    }

    const fn target_flags(self) -> u16 {
        if self.hide_target {
            PortEntry::TARGET | PortEntry::HIDDEN
        } else {
            PortEntry::TARGET
        }
    }
}

fn index(protocol: Protocol, port: u16) -> usize {
    PortEntry::index(protocol, Port::new(port)) as usize
}

#[cfg(test)]
mod tests;
