//! Intervals of ports, cut where a rule begins or ends: many rules with long ranges cost
//! as much as their ends, not as their ports.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use portredir_common::net::Protocol;

use crate::rule::{Ports, Rule};

/// An interval of ports that have the same rules.
pub struct Interval {
    /// The ports; none after the last port of any rule.
    pub ports: Option<Ports>,
    /// The rules with ports that ended before the interval, by their place in the list.
    pub ended: Vec<usize>,
    /// The rules with ports that begin at the interval.
    pub begun: Vec<usize>,
}

/// The intervals of one protocol, from the lowest port.
pub fn intervals<'a>(
    rules: impl IntoIterator<Item = (usize, &'a Rule)>,
    protocol: Protocol,
) -> Vec<Interval> {
    // Port, rule, and whether the rule begins there. At 65 536 the last ones end.
    let mut ends = Vec::<(u32, usize, bool)>::new();
    for (i, rule) in rules {
        if !rule.protocols.each().contains(&protocol) {
            continue;
        }
        for Ports { first, last } in rule.stretches() {
            ends.push((first.into(), i, true));
            ends.push((u32::from(last) + 1, i, false));
        }
    }
    ends.sort_unstable();
    let mut cuts = ends.chunk_by(|a, b| a.0 == b.0).peekable();
    let mut intervals = Vec::new();
    while let Some(cut) = cuts.next() {
        let rules = |begin| {
            let those = cut.iter().filter(|&&(_, _, begins)| begins == begin);
            those.map(|&(_, i, _)| i).collect()
        };
        let ports = cuts.peek().and_then(|next| {
            Some(Ports {
                first: u16::try_from(cut[0].0).ok()?,
                last: u16::try_from(next[0].0 - 1).ok()?,
            })
        });
        intervals.push(Interval {
            ports,
            ended: rules(false),
            begun: rules(true),
        });
    }
    intervals
}

/// The rules, each with its place in the list, in the order in which they win where all else is
/// equal: those for fewer ports, then the earlier ones.
pub fn by_width<T>(rules: &[T], rule: impl Fn(&T) -> &Rule) -> Vec<(usize, &T)> {
    let mut rules: Vec<_> = rules.iter().enumerate().collect();
    // A stable sort keeps the order of the list among equals.
    rules.sort_by_key(|(_, one)| rule(one).ports.count());
    rules
}

/// The rules of an interval by a key: of rules with equal keys, the first holds.
pub struct Holders<K> {
    of: BTreeMap<K, BTreeSet<usize>>,
    first: BTreeSet<usize>,
    new: Vec<usize>,
}

impl<K> Default for Holders<K> {
    fn default() -> Self {
        Self {
            of: BTreeMap::new(),
            first: BTreeSet::new(),
            new: Vec::new(),
        }
    }
}

impl<K: Ord + Clone> Holders<K> {
    /// Goes on to the next interval. Returns whether other rules hold now.
    pub fn pass(&mut self, interval: &Interval, key: impl Fn(usize) -> K) -> bool {
        self.new.clear();
        let mut is_changed = false;
        for &i in &interval.ended {
            let key = key(i);
            let equals = self.of.get_mut(&key).expect("it has begun");
            equals.remove(&i);
            let next = equals.first().copied();
            if next.is_none() {
                self.of.remove(&key);
            }
            if self.first.remove(&i) {
                self.first.extend(next);
                self.new.extend(next);
                is_changed = true;
            }
        }
        for &i in &interval.begun {
            let equals = self.of.entry(key(i)).or_default();
            let before = equals.first().copied();
            equals.insert(i);
            if before.is_none_or(|before| i < before) {
                before.map(|before| self.first.remove(&before));
                self.first.insert(i);
                self.new.push(i);
                is_changed = true;
            }
        }
        is_changed
    }

    /// The places of the rules that did not hold before, with some that no longer hold.
    pub fn new_places(&self) -> &[usize] {
        &self.new
    }

    /// The places of the rules that hold, in their order.
    pub fn places(&self) -> &BTreeSet<usize> {
        &self.first
    }

    /// The rules that hold, by their keys, from a key on.
    pub fn range(&self, from: &K) -> impl Iterator<Item = (&K, usize)> {
        let places = self.of.range(from..);
        places.filter_map(|(key, equals)| Some((key, *equals.first()?)))
    }
}

/// The packets that a rule is for, apart from their ports: the destination address, the
/// client, and the number of the list of interfaces.
pub type Condition = (Option<IpAddr>, Option<IpNet>, usize);

/// The conditions of rules. The number 0 is the list of all interfaces; each other list
/// has a number from 1, in the order in which they first appear.
pub fn conditions<'a>(
    rules: impl IntoIterator<Item = &'a Rule>,
) -> (Vec<Condition>, Vec<&'a [String]>) {
    let mut numbers = HashMap::<&[String], usize>::new();
    let mut lists = Vec::new();
    let conditions = rules.into_iter().map(|rule| {
        let on = if rule.on.is_empty() {
            0
        } else {
            *numbers.entry(&rule.on).or_insert_with(|| {
                lists.push(rule.on.as_slice());
                lists.len()
            })
        };
        (rule.addr, rule.from, on)
    });
    let conditions = conditions.collect();
    (conditions, lists)
}
