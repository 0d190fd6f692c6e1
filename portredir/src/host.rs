//! The host: its interfaces, addresses, kernel features and the privileges of this
//! process.

pub mod features;
pub mod filters;
pub mod forwarding;
pub mod ipvs;
pub mod netlink;
pub mod packet_filter;
pub mod preflight;
pub mod routes;
pub mod snapshot;
pub mod way;
pub mod way_changes;
pub mod xdp;
