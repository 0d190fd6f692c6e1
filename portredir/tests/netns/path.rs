//! Paths that packets take to a host: kinds of links and devices.

pub mod device;
pub mod link;
pub mod paths;
pub mod wire;
