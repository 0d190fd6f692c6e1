//! Kernel interfaces that no library wraps: one file for each.

pub mod bpffs;
pub mod ethtool;
pub mod mmap;
pub mod netdev;
pub mod sock_diag;
