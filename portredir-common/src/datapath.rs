//! The datapath: DNAT of the destination port on the way in, and the way back.
//!
//! Decide first, write last: a packet that is refused leaves as it came.

pub mod connect;
pub mod conntrack;
pub mod egress;
pub mod fast;
mod icmp;
pub mod ingress;
mod port_remap;
mod rewrite;
mod rule_match;
pub mod sk_lookup;
pub mod subprog;
