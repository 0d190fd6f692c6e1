//! This host: interfaces, addresses, features of the kernel, and the privileges of this
//! process.

pub mod features;
mod link;
pub mod netlink;
pub mod preflight;
pub mod snapshot;
