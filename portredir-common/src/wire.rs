//! From the first byte of a frame to its ports, and back.
//!
//! Ethernet with up to two VLAN tags in band (IEEE 802.1Q, 802.1ad), IPv4 with
//! options (RFC 791), IPv6 with extension headers (RFC 8200), TCP, UDP, ICMP.

pub mod checksum;
pub mod fields;
pub mod frame;
pub mod headers;
mod parse;
pub(crate) mod shape;
pub(crate) mod subprog;
