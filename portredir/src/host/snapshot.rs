//! The interfaces and addresses of this host at one moment.

pub use super::netlink::{Interface, Snapshot};
