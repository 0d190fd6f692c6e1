//! What is true on both sides of the kernel boundary: the layout of the maps
//! ([`abi`]) and the datapath, written once as safe code: [`redirect`] rewrites
//! packets, [`socket`] redirects where there is a socket instead. [`generator`] is
//! what the benchmark sends.
//!
//! The eBPF crate runs the datapath in the kernel's hooks; the tests run the same
//! functions on byte slices. This crate knows no context, no helper and no map.

#![no_std]

pub mod abi;
pub mod bucket;
pub mod csum;
pub mod flow;
pub mod generator;
pub mod icmp;
pub mod redirect;
pub mod socket;
pub mod verdict;
pub mod wire;
