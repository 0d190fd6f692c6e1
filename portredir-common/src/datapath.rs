//! The datapath: DNAT of the destination port on the way in, and the way back.
//!
//! The datapath decides first and writes last: a packet that is refused leaves as it came.
//! [`fast`] handles the packets of flows that have begun; [`ingress`] and [`egress`]
//! handle all others, and [`forward`] those to targets with an address. Where there is a socket, [`sk_lookup`], [`connect`] and [`assign`]
//! redirect it, and no packet is rewritten.

pub mod assign;
pub mod connect;
mod connect_forward;
pub mod conntrack;
pub mod egress;
mod elsewhere;
pub mod fast;
mod fast_forward;
pub mod flow_lookup;
pub mod forward;
mod forward_icmp;
pub mod forward_lookup;
mod icmp;
pub mod ingress;
mod own_flow;
mod peer;
mod port_remap;
mod quote;
mod rewrite;
pub mod rule_match;
pub mod sk_lookup;
pub mod subprog;

use crate::flow::FlowKey;
use crate::kernel::Tables;
use crate::map::rules::PortEntry;
use crate::net::Version;
use crate::verdict::Reason;

/// The reason for traffic to another host.
#[inline(always)]
const fn not_local(entry: PortEntry) -> Reason {
    if entry.is_match() || entry.is_old() {
        Reason::NotLocal
    } else {
        Reason::NoRule
    }
}

/// The reason for traffic to a port, which is no target, that no rule redirects.
#[inline(always)]
const fn unmatched(entry: PortEntry) -> Reason {
    if entry.is_old() {
        Reason::Draining
    } else {
        Reason::NoMatch
    }
}

/// Whether a packet to the local end of `key` is delivered to this host.
#[inline(always)]
fn is_local_dst<T: Tables>(tables: &T, key: &FlowKey) -> bool {
    is_possible_local_dst(key) && tables.is_local(&key.local)
}

/// Whether the local end of `key` is for sure an address of this host.
#[inline(always)]
fn is_cached_local_dst<T: Tables>(tables: &T, key: &FlowKey) -> bool {
    is_possible_local_dst(key) && tables.is_in_local_addr_cache(&key.local)
}

/// Whether the local end of `key` may be an address of this host.
///
/// A key has an IPv4 address in the form of an IPv6 one; in an IPv6 header such an
/// address is nobody's (RFC 4291, 2.5.5.2).
#[inline(always)]
const fn is_possible_local_dst(key: &FlowKey) -> bool {
    key.version == Version::V4 as u8 || !key.local.is_v4()
}
