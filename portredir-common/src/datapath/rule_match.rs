//! The rule for a packet: one body for the programs and for the tests.

use crate::flow::FlowKey;
use crate::kernel::{Route, RuleMaps, Tables};
use crate::map::rules::{AddrKey, Candidate, Candidates, Choice, IfaceKey, PortEntry, SourceKey};
use crate::net::Port;

/// The packet that [`match_rule`] looks for a rule for.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// The ends of the packet; the ports in it are not looked at.
    pub key: &'a FlowKey,
    /// The destination port.
    pub dst_port: Port,
    /// The ifindex of the ingress interface.
    pub ifindex: u32,
}

/// The rule for a packet to a port whose rules have conditions.
///
/// The address of this host leads to a group of rules, the address of the client to the
/// few rules that are left, the most specific first; they differ in their interfaces.
#[inline(always)]
pub fn match_rule(maps: &impl RuleMaps, entry: PortEntry, probe: &Probe<'_>) -> Option<Choice> {
    let set = AddrKey::set(entry);
    let addr = AddrKey {
        set,
        addr: probe.key.local,
    };
    let source = SourceKey {
        group: maps.addr_group(&addr).unwrap_or(set),
        version: u32::from(probe.key.version),
        client: probe.key.client,
    };
    let candidates = maps.candidates(&source)?;
    let iface = IfaceKey {
        generation: entry.generation(),
        ifindex: probe.ifindex,
    };
    // The lowest bit is that of all interfaces.
    let mask = maps.iface_mask(&iface).unwrap_or_default() | 1;
    for i in 0..Candidates::COUNT {
        let candidate = &candidates.0[i];
        if candidate.target.is_unused() {
            break;
        }
        if mask >> (candidate.on & 63) & 1 != 0 {
            return Some(Choice {
                target: candidate.target_of(probe.dst_port),
                rule: candidate.rule,
                is_forward: candidate.flags & Candidate::FORWARD != 0,
            });
        }
    }
    None
}

/// The rule for a packet to a port, if there is one for it.
#[inline(always)]
pub(crate) fn choose<T: Tables>(
    tables: &T,
    entry: PortEntry,
    key: &FlowKey,
    dst_port: Port,
) -> Option<Choice> {
    if !entry.is_match() {
        None
    } else if entry.set == 0 {
        Some(Choice {
            target: entry.target,
            rule: entry.rule,
            is_forward: entry.is_forward(),
        })
    } else {
        tables.match_rule(entry, key, dst_port)
    }
}

/// The route of a packet to a port whose rule is for everybody.
#[inline(always)]
pub(crate) const fn plain_route(entry: PortEntry, dst_port: Port) -> Route {
    let is_match = entry.is_match();
    Route {
        target: if is_match { entry.target } else { dst_port },
        rule: entry.rule,
        is_match,
        is_forward: false,
    }
}
