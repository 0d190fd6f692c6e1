//! The programs.

mod accept;
mod cgroup;
mod listeners;
mod log;
mod sk_lookup;
mod sock_ops;
mod tc;
mod trafficgen;
mod xdp;
