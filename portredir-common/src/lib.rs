//! What is true on both sides of the kernel boundary: the layout of the maps
//! ([`abi`]) and the datapath ([`redirect`]), written once as safe code.
//!
//! The eBPF crate runs the datapath in XDP and TC; the tests run the same
//! functions on byte slices. This crate knows no context, no helper and no map.

#![no_std]

pub mod abi;
pub mod csum;
pub mod flow;
pub mod icmp;
pub mod redirect;
pub mod verdict;
pub mod wire;
