//! What is true on both sides of the kernel boundary: the layout of the maps
//! ([`map`]) and the datapath, written once as safe code: [`datapath`] rewrites
//! packets, and redirects where there is a socket instead. [`trafficgen`] is what
//! the benchmark sends.
//!
//! The eBPF crate runs the datapath in the kernel's hooks; the tests run the same
//! functions on byte slices. This crate knows no context, no helper and no map.

#![no_std]

pub mod datapath;
pub mod flow;
pub mod kernel;
pub mod map;
pub mod net;
pub mod packed;
pub mod trafficgen;
pub mod verdict;
pub mod wire;
