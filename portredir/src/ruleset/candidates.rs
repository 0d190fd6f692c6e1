//! The rules that a packet can match, by the network of its client.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portredir_common::map::rules::{Candidate, Candidates};

use super::interval;

/// A rule of a set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Condition {
    pub(super) addr: Option<IpAddr>,
    pub(super) from: Option<IpNet>,
    pub(super) candidate: Candidate,
}

impl Condition {
    /// The key that is equal for rules that match the same packets.
    pub(super) const fn key(&self) -> interval::Condition {
        (self.addr, self.from, self.candidate.on as usize)
    }

    pub(super) fn is_none(&self) -> bool {
        self.addr.is_none() && self.from.is_none() && self.candidate.on == 0
    }

    /// The rank of the rule: the most specific rule comes first. A rule for all
    /// IPv4 clients is more specific than a rule for all clients.
    fn rank(&self) -> Rank {
        let length = self.from.map_or(0, |from| u16::from(from.prefix_len()) + 1);
        (Reverse(self.addr.is_some()), Reverse(length))
    }
}

/// Whether the rule has an address, and one more than the length of its client
/// network; 0 without one.
type Rank = (Reverse<bool>, Reverse<u16>);

/// The number of candidates for one client, where there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany(pub(super) usize);

/// The client networks of one IP version, with their rules.
pub(super) struct Networks {
    rules: BTreeMap<(Rank, IpNet), Vec<Candidate>>,
    ranks: BTreeSet<Rank>,
}

/// Sorts the rules for one address, or for those that no rule names, by the client
/// networks of each IP version.
pub(super) fn networks(
    addr: Option<IpAddr>,
    rules: &[Condition],
) -> impl Iterator<Item = Networks> {
    let all = [
        IpNet::from(Ipv4Net::default()),
        IpNet::from(Ipv6Net::default()),
    ];
    all.into_iter()
        .filter(move |all| addr.is_none_or(|addr| addr.is_ipv4() == all.addr().is_ipv4()))
        .map(|all| Networks::new(all, rules))
}

impl Networks {
    /// Takes the rules of the IP version of `all`, the network of all clients.
    fn new(all: IpNet, conditions: &[Condition]) -> Self {
        let mut rules = BTreeMap::<_, Vec<Candidate>>::new();
        for rule in conditions {
            let from = rule.from.unwrap_or(all);
            if from.addr().is_ipv4() == all.addr().is_ipv4() {
                let same = rules.entry((rule.rank(), from)).or_default();
                same.push(rule.candidate);
            }
        }
        let ranks = rules.keys().map(|(rank, _)| *rank).collect();
        Self { rules, ranks }
    }

    /// The networks that rules name.
    pub(super) fn nets(&self) -> BTreeSet<IpNet> {
        self.rules.keys().map(|(_, net)| *net).collect()
    }

    /// The rules for the clients of a network, the most specific first, then in order.
    ///
    /// # Errors
    ///
    /// [`TooMany`] when the programs cannot hold as many.
    pub(super) fn candidates(&self, net: IpNet) -> Result<Candidates, TooMany> {
        let mut found = Vec::<Candidate>::new();
        for rank in &self.ranks {
            let length = u8::try_from(rank.1.0.saturating_sub(1)).expect("a length");
            if length > net.prefix_len() {
                continue;
            }
            let wider = IpNet::new(net.addr(), length).expect("a shorter prefix");
            if let Some(more) = self.rules.get(&(*rank, wider.trunc())) {
                found.extend(more);
            }
        }
        let last = found.iter().position(|candidate| candidate.on == 0);
        found.truncate(last.map_or(found.len(), |last| last + 1));
        // The first of the rules for the same interfaces wins.
        let mut seen = 0_u64;
        found.retain(|candidate| {
            let before = seen;
            seen |= 1 << candidate.on;
            seen != before
        });
        if found.len() > Candidates::COUNT {
            return Err(TooMany(found.len()));
        }
        let mut candidates = Candidates::default();
        candidates.0[..found.len()].copy_from_slice(&found);
        Ok(candidates)
    }
}
