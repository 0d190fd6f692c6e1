//! Checks whether each rule of a list can match.
//!
//! A rule is shadowed when others take all its packets: rules for longer prefixes of
//! clients and, for equal prefixes, rules for fewer ports and earlier ones for as many.
//! Several can do so together, each for some of the ports, clients or interfaces. A rule
//! that still has packets is allowed: users write exceptions as a narrow rule before or
//! after a wide one.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};

use glob::Pattern;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portredir_common::net::Protocol;
use thiserror::Error;

use super::interval::{Condition, Holders, Interval, by_width, conditions, intervals};
use crate::rule::parse::is_glob;
use crate::rule::{Affinity, Check, Forward, Rule, Sourced, To, WhenDown};

/// The largest number of rules: the programs have 16 bits for a rule.
pub const MAX_RULES: usize = 1 << 16;

/// The largest number of different `on` lists: bits of a mask, of which the lowest means
/// all interfaces.
pub const MAX_ON: usize = 63;

/// The reason why a list of rules cannot work together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConflictError {
    /// A rule can never match.
    #[error(
        "rule `{}` ({}) never matches: {} {}; {}",
        .shadowed.rule, .shadowed.origin, Names(.by), ports(.shadowed, .by.len()), remedy(.shadowed, .by)
    )]
    Shadowed {
        /// The rule that can never match.
        shadowed: Box<Sourced>,
        /// The rules that take its packets.
        by: Vec<Sourced>,
    },
    /// A rule is given twice.
    #[error("rule `{}` is given twice ({first}, {again}); remove one of them", .again.rule, first = .first, again = .again.origin)]
    Twice {
        /// The place where the rule was first given.
        first: crate::rule::Origin,
        /// The rule that was given again.
        again: Box<Sourced>,
    },
    /// There are more rules than the programs can tell apart.
    #[error("too many rules: {0}; the maximum is {MAX_RULES}")]
    Rules(usize),
    /// Too many `on` lists.
    #[error("the rules use {0} different interface lists (`on …`); the maximum is {MAX_ON}")]
    On(usize),
}

/// The text of a list of rules with their places: all of a few, some of many.
struct Names<'a>(&'a [Sourced]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        let shown = self.0.len().min(SHOWN);
        let left = self.0.len() - shown;
        for (i, Sourced { rule, origin, .. }) in self.0[..shown].iter().enumerate() {
            let gap = match i {
                0 => "",
                _ if i + 1 == shown && left == 0 => " and ",
                _ => ", ",
            };
            write!(f, "{gap}`{rule}` ({origin})")?;
        }
        if left > 0 {
            write!(f, " and {left} more")?;
        }
        Ok(())
    }
}

fn ports(shadowed: &Sourced, takers: usize) -> String {
    let verb = if takers == 1 {
        "already covers"
    } else {
        "already cover"
    };
    let ports = shadowed.rule.ports;
    let noun = if ports.first == ports.last {
        "port"
    } else {
        "ports"
    };
    format!("{verb} {noun} {ports}")
}

/// The way out: of two rules for the same packets, one rule can have all targets.
fn remedy(shadowed: &Sourced, by: &[Sourced]) -> String {
    let both = match by {
        [taker] => shared(&taker.rule, &shadowed.rule),
        _ => None,
    };
    match both {
        Some(rule) => format!("remove one of them, or write `{rule}` for both targets"),
        None => "remove one of them".to_owned(),
    }
}

/// The rule with the targets of two rules that differ in them alone.
fn shared(one: &Rule, other: &Rule) -> Option<Rule> {
    if one.listen_key() != other.listen_key() {
        return None;
    }
    let targets: Vec<_> = one.targets().into_iter().chain(other.targets()).collect();
    let rule = Rule {
        to: To::Forward(Box::new(Forward {
            check: Check::usual(targets.len(), one.protocols),
            targets,
            affinity: Affinity::default(),
            otherwise: None,
            when_down: WhenDown::default(),
        })),
        ..one.clone()
    };
    // A target that both have would be refused.
    rule.to_string().parse().ok()
}

/// Refuses lists in which a rule could never match, and lists that are too long for the
/// programs.
///
/// # Errors
///
/// [`ConflictError`]; for the first rule that never matches, with the rules that shadow
/// it.
pub fn check(rules: &[Sourced]) -> Result<(), ConflictError> {
    if rules.len() > MAX_RULES {
        return Err(ConflictError::Rules(rules.len()));
    }
    let list = List::new(rules);
    if list.on.len() > MAX_ON + 1 {
        return Err(ConflictError::On(list.on.len() - 1));
    }
    let Some(shadowed) = list.shadowed() else {
        return Ok(());
    };
    let by = list.shadowing(shadowed);
    let rule = |i: usize| list.rules[i].1;
    let shadowed = Box::new(rule(shadowed).clone());
    if let [first] = by[..]
        && rule(first).rule == shadowed.rule
    {
        return Err(ConflictError::Twice {
            first: rule(first).origin.clone(),
            again: shadowed,
        });
    }
    let by = by.into_iter().map(|i| rule(i).clone()).collect();
    Err(ConflictError::Shadowed { shadowed, by })
}

/// The rules in the order in which they win, with the data that decides between them.
struct List<'a> {
    rules: Vec<(usize, &'a Sourced)>,
    conditions: Vec<Condition>,
    /// Whether rules for narrower networks together have all the clients of these. Most
    /// often they do not, and then the check of each interval can skip them.
    is_divided: HashMap<(Option<IpAddr>, Option<IpNet>), bool>,
    /// Lists of interfaces by their number; the first, of all, is empty.
    on: Vec<&'a [String]>,
    /// The lists that have all interfaces of a list, and more: by `covering[of][name]`.
    covering: Vec<Vec<Vec<bool>>>,
    /// The intervals of each protocol.
    intervals: Vec<Vec<Interval>>,
}

impl<'a> List<'a> {
    fn new(rules: &'a [Sourced]) -> Self {
        let rules = by_width(rules, |sourced| &sourced.rule);
        let (conditions, lists) = conditions(rules.iter().map(|(_, sourced)| &sourced.rule));
        let on: Vec<_> = std::iter::once(&[][..]).chain(lists).collect();
        let covering = if on.len() > MAX_ON + 1 {
            Vec::new()
        } else {
            on.iter().map(|list| covering(list, &on)).collect()
        };
        let of = |protocol| {
            let rules = rules.iter().map(|(_, sourced)| &sourced.rule);
            intervals(rules.enumerate(), protocol)
        };
        let is_divided = divided(&conditions);
        let intervals = vec![of(Protocol::Tcp), of(Protocol::Udp)];
        Self {
            rules,
            conditions,
            is_divided,
            on,
            covering,
            intervals,
        }
    }

    /// The shadowed rule that comes first in the list of the caller.
    fn shadowed(&self) -> Option<usize> {
        let mut is_alive = vec![false; self.rules.len()];
        for intervals in &self.intervals {
            let mut holders = Holders::default();
            // The rules that hold among their equals, but are shadowed so far.
            let mut waiting = Vec::<usize>::new();
            for interval in intervals {
                if !holders.pass(interval, |i| self.conditions[i]) {
                    continue;
                }
                waiting.extend(holders.new_places());
                waiting.retain(|&i| {
                    if is_alive[i] || !holders.places().contains(&i) {
                        return false;
                    }
                    is_alive[i] = self.takers(i, &holders).is_none();
                    !is_alive[i]
                });
            }
        }
        let dead = (0..self.rules.len()).filter(|i| !is_alive[*i]);
        dead.min_by_key(|i| self.rules[*i].0)
    }

    /// The rules that take the packets of a shadowed one, in their order.
    fn shadowing(&self, shadowed: usize) -> Vec<usize> {
        let mut shadowing = BTreeSet::new();
        for intervals in &self.intervals {
            let mut holders = Holders::default();
            let mut is_here = false;
            for interval in intervals {
                holders.pass(interval, |i| self.conditions[i]);
                is_here = (is_here && !interval.ended.contains(&shadowed))
                    || interval.begun.contains(&shadowed);
                if is_here {
                    shadowing.extend(self.takers(shadowed, &holders).into_iter().flatten());
                }
            }
        }
        let mut shadowing: Vec<_> = shadowing.into_iter().collect();
        shadowing.sort_by_key(|i| self.rules[*i].0);
        shadowing
    }

    /// The rules of an interval that together take all packets of one of them; `None`
    /// where some packets are left.
    fn takers(&self, place: usize, holders: &Holders<Condition>) -> Option<Vec<usize>> {
        let (addr, from, on) = self.conditions[place];
        let is_divided = self.is_divided[&(addr, from)];
        let before: Vec<_> = holders
            .range(&(addr, from, 0))
            .take_while(|((other, net, _), _)| {
                *other == addr && (*net == from || (is_divided && is_within(from, *net)))
            })
            .filter(|((_, net, _), i)| *net != from || *i < place)
            .map(|(&(_, net, list), i)| (net, list, i))
            .collect();
        if before.is_empty() {
            return None;
        }
        let clients = all_clients(addr, from);
        let mut takers = Vec::new();
        for is_covered in &self.covering[on] {
            let here = before.iter().filter(|(_, list, _)| is_covered[*list]);
            let here: Vec<_> = here.map(|&(net, _, i)| (net, i)).collect();
            takers.extend(cover(&clients, &here)?);
        }
        Some(takers)
    }
}

/// Whether the clients of one rule are among those of another.
fn is_within(all: Option<IpNet>, net: Option<IpNet>) -> bool {
    match (all, net) {
        (None, _) => true,
        (Some(all), Some(net)) => all.contains(&net),
        (Some(_), None) => false,
    }
}

/// The addresses and networks of clients that have all their clients in narrower networks
/// too, for any ports.
fn divided(conditions: &[Condition]) -> HashMap<(Option<IpAddr>, Option<IpNet>), bool> {
    let ends: BTreeSet<_> = conditions
        .iter()
        .map(|&(addr, from, _)| (addr, from))
        .collect();
    let is_divided = |&(addr, from): &_| {
        // The narrower networks come next in this order.
        let narrower = ends.range((Excluded((addr, from)), Unbounded));
        let narrower = narrower
            .take_while(|&&(other, net)| other == addr && is_within(from, net))
            .map(|&(_, net)| (net, 0));
        cover(&all_clients(addr, from), &narrower.collect::<Vec<_>>()).is_some()
    };
    ends.iter().map(|end| (*end, is_divided(end))).collect()
}

/// For each name of a list, or for all interfaces, the lists that have it. Two globs
/// count as independent.
fn covering(list: &[String], lists: &[&[String]]) -> Vec<Vec<bool>> {
    let has = |other: &[String], name: Option<&String>| {
        other.is_empty()
            || other.iter().any(|word| {
                word == "*"
                    || name.is_some_and(|name| {
                        let glob = || Pattern::new(word).is_ok_and(|glob| glob.matches(name));
                        word == name || (is_glob(word) && !is_glob(name) && glob())
                    })
            })
    };
    let of = |name| lists.iter().map(|other| has(other, name)).collect();
    if list.is_empty() {
        vec![of(None)]
    } else {
        list.iter().map(|name| of(Some(name))).collect()
    }
}

/// The clients of a rule as networks.
fn all_clients(addr: Option<IpAddr>, from: Option<IpNet>) -> Vec<IpNet> {
    let v4 = IpNet::from(Ipv4Net::default());
    let v6 = IpNet::from(Ipv6Net::default());
    match (from, addr) {
        (Some(net), _) => vec![net],
        (None, Some(IpAddr::V4(_))) => vec![v4],
        (None, Some(IpAddr::V6(_))) => vec![v6],
        (None, None) => vec![v4, v6],
    }
}

/// The rules that together match all of the clients; `None` when there are clients left.
/// No network means all clients.
fn cover(clients: &[IpNet], rules: &[(Option<IpNet>, usize)]) -> Option<Vec<usize>> {
    let mut used = Vec::new();
    for all in clients {
        let one = |(net, _): &&(Option<IpNet>, usize)| net.is_none_or(|net| net.contains(all));
        if let Some((_, i)) = rules.iter().find(one) {
            used.push(*i);
            continue;
        }
        let parts = rules.iter().filter_map(|&(net, i)| Some((net?, i)));
        let parts: Vec<_> = parts.filter(|(net, _)| all.contains(net)).collect();
        // Most often the networks are far too small, which is cheaper to find out.
        let share = |net: &IpNet| 0.5_f64.powi(i32::from(net.prefix_len() - all.prefix_len()));
        if parts.iter().map(|(net, _)| share(net)).sum::<f64>() < 1.0 {
            return None;
        }
        let nets: Vec<_> = parts.iter().map(|(net, _)| *net).collect();
        if !IpNet::aggregate(&nets).contains(all) {
            return None;
        }
        used.extend(parts.iter().map(|(_, i)| *i));
    }
    Some(used)
}
