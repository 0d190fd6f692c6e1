//! The programs.

mod accept;
mod cgroup;
mod conclude;
mod listeners;
mod sk_lookup;
mod sock_ops;
mod tc;
mod trace;
mod trafficgen;
mod xdp;
