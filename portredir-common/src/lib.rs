//! The code that both sides of the kernel boundary share: the layout of the maps
//! ([`map`]) and the datapath, written once as safe code. [`datapath`] rewrites
//! packets, or redirects sockets where there is one. [`trafficgen`] makes the packets
//! that the benchmark sends.
//!
//! Imports go one way: `net`, `verdict`, then `packed`, `flow`, `map` and `wire`,
//! `kernel`, `datapath`.
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
