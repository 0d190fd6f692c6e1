//! Kernel interfaces that no library wraps: one file for each.

pub mod bpf_link;
pub mod bpf_query;
pub mod bpffs;
pub mod caller;
pub mod capability;
pub mod cgroup;
pub mod clock;
pub mod ethtool;
pub mod hang_up;
#[cfg(feature = "agent")]
pub mod heap;
pub mod lock;
pub mod mmap;
pub mod netdev;
pub mod netlink;
pub mod netns;
pub mod path;
pub mod peer;
pub mod process;
pub mod sock_destroy;
pub mod sock_detail;
pub mod sock_diag;
pub mod syslog;
pub mod terminal;
pub mod tool;
pub mod xfrm;
