//! The rules that remain for a client, after the destination port and the destination
//! address are known: the most specific first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portredir_common::abi::{Addr, Candidate, Candidates, SourceKey};

use super::error::TableError;
use super::interval;
use crate::sys::addr::to_bytes;

/// The maximum of entries for clients: half of the map `SOURCES`, which holds two
/// generations.
const MAX_SOURCES: usize = 262_144 / 2;

/// The rules for clients, by the length of the prefix of the key.
pub(super) type Sources = HashMap<(u32, SourceKey), Candidates>;

/// A rule, as far as packets to one port need it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Condition {
    pub addr: Option<IpAddr>,
    pub from: Option<IpNet>,
    pub candidate: Candidate,
}

impl Condition {
    /// The key by which rules for the same packets are equal.
    pub const fn key(&self) -> interval::Condition {
        (self.addr, self.from, self.candidate.on as usize)
    }

    /// Whether the rule matches every packet to its port.
    pub fn is_none(&self) -> bool {
        self.addr.is_none() && self.from.is_none() && self.candidate.on == 0
    }
}

/// The rules for one destination address of one port, or for all addresses that no rule
/// names.
pub(super) struct Group<'a> {
    pub id: u32,
    pub addr: Option<IpAddr>,
    pub port: u16,
    pub rules: &'a [Condition],
}

/// How specific a rule is: the most specific rank is the lowest.
type Rank = (Reverse<bool>, Reverse<u16>);

impl Group<'_> {
    /// Adds an entry for each client network that a rule names.
    ///
    /// # Errors
    ///
    /// [`TableError`]: more than the map holds.
    pub fn add_to(&self, sources: &mut Sources) -> Result<(), TableError> {
        for all in [
            IpNet::from(Ipv4Net::default()),
            IpNet::from(Ipv6Net::default()),
        ] {
            if self.addr.is_some_and(|addr| !is_same_version(addr, all)) {
                continue;
            }
            let by_rank = self.by_rank(all);
            let nets: BTreeSet<_> = by_rank.keys().map(|(_, net)| *net).collect();
            for net in nets {
                sources.insert(self.key(net), self.candidates(net, &by_rank)?);
                // Not only at the end: there can be far too many.
                if sources.len() > MAX_SOURCES {
                    return Err(TableError::Conditions {
                        what: "client network entries",
                        limit: MAX_SOURCES,
                    });
                }
            }
        }
        Ok(())
    }

    /// The rules for clients of one IP version, the most specific first, then in order.
    /// A rule without `from` is for `all`. A rule for all IPv4 clients is more specific
    /// than a rule for all clients.
    fn by_rank(&self, all: IpNet) -> BTreeMap<(Rank, IpNet), Vec<Candidate>> {
        let rank = |rule: &Condition| {
            let length = rule.from.map_or(0, |from| u16::from(from.prefix_len()) + 1);
            (Reverse(rule.addr.is_some()), Reverse(length))
        };
        let mut by_rank = BTreeMap::<_, Vec<Candidate>>::new();
        for rule in self.rules {
            let from = rule.from.unwrap_or(all);
            if is_same_version(from.addr(), all) {
                let equals = by_rank.entry((rank(rule), from)).or_default();
                equals.push(rule.candidate);
            }
        }
        by_rank
    }

    /// The rules for the clients of a network, up to the first for all interfaces.
    fn candidates(
        &self,
        net: IpNet,
        by_rank: &BTreeMap<(Rank, IpNet), Vec<Candidate>>,
    ) -> Result<Candidates, TableError> {
        let ranks: BTreeSet<_> = by_rank.keys().map(|(rank, _)| *rank).collect();
        let mut found = Vec::<Candidate>::new();
        for rank in ranks {
            let length = u8::try_from(rank.1.0.saturating_sub(1)).expect("a length");
            if length > net.prefix_len() {
                continue;
            }
            let wider = IpNet::new(net.addr(), length).expect("a shorter prefix");
            if let Some(more) = by_rank.get(&(rank, wider.trunc())) {
                found.extend(more);
            }
        }
        let last = found.iter().position(|candidate| candidate.on == 0);
        found.truncate(last.map_or(found.len(), |last| last + 1));
        // Of the rules for the same interfaces the first one matches.
        let mut seen = 0_u64;
        found.retain(|candidate| {
            let before = seen;
            seen |= 1 << candidate.on;
            seen != before
        });
        if found.len() > Candidates::COUNT {
            return Err(TableError::Candidates {
                port: self.port,
                count: found.len(),
            });
        }
        let mut candidates = Candidates::default();
        candidates.0[..found.len()].copy_from_slice(&found);
        Ok(candidates)
    }

    /// The key of a client network, with the length of its prefix.
    fn key(&self, net: IpNet) -> (u32, SourceKey) {
        let (version, mapped) = if net.addr().is_ipv4() {
            (4, 96)
        } else {
            (6, 0)
        };
        let key = SourceKey {
            group: self.id,
            version,
            client: Addr::new(to_bytes(net.addr())),
        };
        let prefix = SourceKey::PREFIX + mapped + u32::from(net.prefix_len());
        (prefix, key)
    }
}

fn is_same_version(addr: IpAddr, net: IpNet) -> bool {
    addr.is_ipv4() == net.addr().is_ipv4()
}
