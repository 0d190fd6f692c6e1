//! The rules as the programs read them. Pure: nothing here touches a map.
//!
//! Each port has one entry, whatever there is of rules. Where rules have
//! conditions, ports with the same rules share a set of them: by the address
//! that was dialled, then by the client's, one look-up leads to the few rules
//! that are left, the most specific first; they differ in their interfaces.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portredir_common::abi::{
    Addr, AddrKey, Candidate, Candidates, Old, Port, PortEntry, Protocol, SourceKey,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::interface::to_bytes;
use crate::rule::Rule;

/// More than the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// Too many `on` lists.
    #[error(
        "the rules name {0} different lists of interfaces (`on …`); at most {MAX_ON} are possible"
    )]
    On(usize),
    /// Too many conditions for one client.
    #[error(
        "port {port}: {count} rules for the same clients differ in their interfaces alone; at most \
         {} are possible",
        Candidates::COUNT
    )]
    Candidates {
        /// The port that is dialled.
        port: u16,
        /// How many there are.
        count: usize,
    },
    /// Too many combinations of conditions.
    #[error(
        "the conditions of the rules make {count} entries in {what}; at most {limit} are possible"
    )]
    Conditions {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there can be.
        limit: usize,
    },
}

/// Different `on` lists: bits of a mask, of which the lowest means all.
const MAX_ON: usize = 63;
/// As the maps are declared in `portredir-ebpf/src/maps.rs`.
const MAX_ADDRS: usize = 65_536 / 2;
const MAX_SOURCES: usize = 262_144 / 2;

/// Where rules that are gone sent the packets of a port; their flows still go
/// there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History(BTreeMap<HistoryKey, Vec<u16>>);

/// `tcp/80` in JSON, which knows no other keys than text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct HistoryKey {
    protocol: Protocol,
    dialled: u16,
}

impl From<HistoryKey> for String {
    fn from(HistoryKey { protocol, dialled }: HistoryKey) -> Self {
        let name = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        format!("{name}/{dialled}")
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
        let dialled = port.parse().map_err(|_| "not a port")?;
        Ok(Self { protocol, dialled })
    }
}

impl History {
    /// What remains to be known when one list of rules takes the place of
    /// another: the targets that are no longer those of their port, and the
    /// earlier ones that still have flows.
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
        };
        let stay: std::collections::HashSet<_> = after.iter().collect();
        for rule in before.iter().filter(|rule| !stay.contains(rule)) {
            for (protocol, dialled, target) in ways(rule) {
                add(HistoryKey { protocol, dialled }, target);
            }
        }
        for (&key, targets) in &self.0 {
            for &target in targets {
                if is_alive(key.protocol, key.dialled, target) {
                    add(key, target);
                }
            }
        }
        Self(history)
    }

    /// Whether it is of no port.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Each protocol and port of a rule, and where it leads.
fn ways(rule: &Rule) -> impl Iterator<Item = (Protocol, u16, u16)> {
    let protocols = rule.protocols.each().iter();
    protocols.flat_map(move |&protocol| {
        let ports = rule.dialled.each();
        ports.map(move |port| (protocol, port, rule.target_of(port)))
    })
}

/// What the maps of one generation contain; the generation itself is added
/// when they are filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// By [`PortEntry::index`].
    pub ports: Vec<PortEntry>,
    /// By the same.
    pub old: BTreeMap<u32, Old>,
    /// The group of rules for an address, by set and address.
    pub addrs: HashMap<AddrKey, u32>,
    /// The rules for clients, by length of prefix.
    pub sources: HashMap<(u32, SourceKey), Candidates>,
    on: Vec<Vec<String>>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            ports: vec![PortEntry::default(); PortEntry::COUNT as usize / 2],
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
        hide_target: bool,
        if_listening: bool,
    ) -> Result<Self, TableError> {
        let mut table = Self::default();
        let mut bits = HashMap::new();
        for (_, rule) in rules.iter().filter(|(_, rule)| !rule.on.is_empty()) {
            bits.entry(&rule.on).or_insert_with(|| {
                table.on.push(rule.on.clone());
                table.on.len()
            });
        }
        if table.on.len() > MAX_ON {
            return Err(TableError::On(table.on.len()));
        }
        let conditions: Vec<_> = rules
            .iter()
            .map(|(id, rule)| Condition {
                addr: rule.addr,
                from: rule.from,
                candidate: Candidate {
                    target: rule.target.first,
                    dialled: rule.dialled.first,
                    rule: *id,
                    on: bits
                        .get(&rule.on)
                        .map_or(0, |&bit| u8::try_from(bit).expect("few lists")),
                    is_range: u8::from(rule.target.first != rule.target.last),
                },
            })
            .collect();
        let mut of_port = vec![Vec::<usize>::new(); table.ports.len()];
        for (i, (_, rule)) in rules.iter().enumerate() {
            for (protocol, dialled, target) in ways(rule) {
                of_port[index(protocol, dialled)].push(i);
                let target = &mut table.ports[index(protocol, target)];
                target.flags |= PortEntry::TARGET;
                target.flags |= if hide_target { PortEntry::HIDDEN } else { 0 };
            }
        }
        let mut sets = HashMap::new();
        for (place, of_port) in of_port.into_iter().enumerate() {
            let Some(&first) = of_port.first() else {
                continue;
            };
            let port = u16::try_from(place % (1 << 16)).expect("a port");
            let mut set = 0;
            if !of_port.iter().all(|&i| conditions[i].is_none()) {
                let count = sets.len() + 1;
                set = match sets.entry(of_port) {
                    Entry::Occupied(set) => *set.get(),
                    Entry::Vacant(set) => {
                        let id = u16::try_from(count).map_err(|_| TableError::Conditions {
                            what: "sets",
                            count,
                            limit: usize::from(u16::MAX),
                        })?;
                        let rules: Vec<_> = set.key().iter().map(|&i| conditions[i]).collect();
                        table.add_set(id, port, &rules)?;
                        *set.insert(id)
                    }
                };
            }
            let entry = &mut table.ports[place];
            entry.set = set;
            entry.target = conditions[first].candidate.target_of(port);
            entry.rule = conditions[first].candidate.rule;
            entry.flags |= PortEntry::MATCH;
            entry.flags |= if if_listening {
                PortEntry::IF_LISTENING
            } else {
                0
            };
        }
        table.add_history(history);
        for (what, count, limit) in [
            ("addresses", table.addrs.len(), MAX_ADDRS),
            ("clients", table.sources.len(), MAX_SOURCES),
        ] {
            if count > limit {
                return Err(TableError::Conditions { what, count, limit });
            }
        }
        Ok(table)
    }

    /// Adds the conditions of the rules of one port, and all that have the same.
    fn add_set(&mut self, id: u16, port: u16, rules: &[Condition]) -> Result<(), TableError> {
        let set = u32::from(id);
        self.add_group(set, None, port, rules)?;
        let addrs: BTreeSet<_> = rules.iter().filter_map(|rule| rule.addr).collect();
        for addr in addrs {
            // Above those that are sets.
            let group = u32::from(u16::MAX) + 1 + u32::try_from(self.addrs.len()).expect("few");
            let key = AddrKey {
                set,
                addr: Addr(to_bytes(addr)),
            };
            self.addrs.insert(key, group);
            self.add_group(group, Some(addr), port, rules)?;
        }
        Ok(())
    }

    /// Adds the rules for one address, or for those that no rule names.
    fn add_group(
        &mut self,
        group: u32,
        addr: Option<IpAddr>,
        port: u16,
        rules: &[Condition],
    ) -> Result<(), TableError> {
        for none in [
            IpNet::from(Ipv4Net::default()),
            IpNet::from(Ipv6Net::default()),
        ] {
            let is_v4 = |addr: IpAddr| addr.is_ipv4();
            if addr.is_some_and(|addr| is_v4(addr) != is_v4(none.addr())) {
                continue;
            }
            // What each rule is for; more specific first, then in order. A rule for
            // all IPv4 clients is more specific than one for all.
            let rank = |rule: &Condition| {
                let length = rule.from.map_or(0, |from| u16::from(from.prefix_len()) + 1);
                (Reverse(rule.addr.is_some()), Reverse(length))
            };
            let mut of_net = BTreeMap::<_, Vec<Candidate>>::new();
            for rule in rules {
                let from = rule.from.unwrap_or(none);
                let is_of_addr = rule.addr.is_none() || rule.addr == addr;
                if is_of_addr && is_v4(from.addr()) == is_v4(none.addr()) {
                    let same = of_net.entry((rank(rule), from)).or_default();
                    same.push(rule.candidate);
                }
            }
            let ranks: BTreeSet<_> = of_net.keys().map(|(rank, _)| *rank).collect();
            let nets: BTreeSet<_> = of_net.keys().map(|(_, net)| *net).collect();
            for net in nets {
                let mut found = Vec::<Candidate>::new();
                for rank in &ranks {
                    let length = u8::try_from(rank.1.0.saturating_sub(1)).expect("a length");
                    if length > net.prefix_len() {
                        continue;
                    }
                    let wider = IpNet::new(net.addr(), length).expect("a shorter prefix");
                    if let Some(more) = of_net.get(&(*rank, wider.trunc())) {
                        found.extend(more);
                    }
                }
                let last = found.iter().position(|candidate| candidate.on == 0);
                found.truncate(last.map_or(found.len(), |last| last + 1));
                // Of those for the same interfaces the first is taken.
                let mut seen = BTreeSet::new();
                found.retain(|candidate| seen.insert(candidate.on));
                if found.len() > Candidates::COUNT {
                    let count = found.len();
                    return Err(TableError::Candidates { port, count });
                }
                let mut candidates = Candidates::default();
                candidates.0[..found.len()].copy_from_slice(&found);
                let (version, mapped) = if is_v4(net.addr()) { (4, 96) } else { (6, 0) };
                let key = SourceKey {
                    group,
                    version,
                    client: Addr(to_bytes(net.addr())),
                };
                let prefix = SourceKey::PREFIX + mapped + u32::from(net.prefix_len());
                self.sources.insert((prefix, key), candidates);
            }
        }
        Ok(())
    }

    fn add_history(&mut self, history: &History) {
        for (key, targets) in &history.0 {
            let place = index(key.protocol, key.dialled);
            let entry = self.ports[place];
            // What is still so needs no history.
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

    /// The lists of interfaces in rules; a rule's bit is its place plus one.
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

/// A rule of a set.
#[derive(Clone, Copy, Debug)]
struct Condition {
    addr: Option<IpAddr>,
    from: Option<IpNet>,
    candidate: Candidate,
}

impl Condition {
    fn is_none(&self) -> bool {
        self.addr.is_none() && self.from.is_none() && self.candidate.on == 0
    }
}

fn index(protocol: Protocol, port: u16) -> usize {
    PortEntry::index(0, protocol, Port::new(port)) as usize
}
