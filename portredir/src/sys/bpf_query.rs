//! The programs on a hook, in the order in which they run: `BPF_PROG_QUERY` of bpf(2).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::bpf_link::bpf;

/// A kind of hook: `enum bpf_attach_type` of include/uapi/linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// `BPF_CGROUP_SOCK_OPS`.
    SockOps = 3,
    /// `BPF_CGROUP_INET4_CONNECT`.
    Connect4 = 10,
    /// `BPF_CGROUP_INET6_CONNECT`.
    Connect6 = 11,
    /// `BPF_CGROUP_UDP4_SENDMSG`.
    Sendmsg4 = 14,
    /// `BPF_CGROUP_UDP6_SENDMSG`.
    Sendmsg6 = 15,
    /// `BPF_CGROUP_UDP4_RECVMSG`.
    Recvmsg4 = 19,
    /// `BPF_CGROUP_UDP6_RECVMSG`.
    Recvmsg6 = 20,
    /// `BPF_CGROUP_INET4_GETPEERNAME`.
    Getpeername4 = 29,
    /// `BPF_CGROUP_INET6_GETPEERNAME`.
    Getpeername6 = 30,
    /// `BPF_SK_LOOKUP`.
    SkLookup = 36,
    /// `BPF_TCX_INGRESS`.
    TcxIngress = 46,
    /// `BPF_TCX_EGRESS`.
    TcxEgress = 47,
}

impl AttachType {
    /// The name of the hook, as bpftool prints it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SockOps => "sock_ops",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Recvmsg4 => "recvmsg4",
            Self::Recvmsg6 => "recvmsg6",
            Self::Getpeername4 => "getpeername4",
            Self::Getpeername6 => "getpeername6",
            Self::SkLookup => "sk_lookup",
            Self::TcxIngress => "ingress",
            Self::TcxEgress => "egress",
        }
    }
}

/// The object that a hook belongs to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// An interface, by index.
    Interface(u32),
    /// A cgroup: the programs of its ancestors run as well, and count.
    Cgroup(BorrowedFd<'a>),
    /// A network namespace.
    Netns(BorrowedFd<'a>),
}

/// The part of `union bpf_attr` for `BPF_PROG_QUERY`. The kernel writes into it, up to the
/// last field.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

const PROG_QUERY: libc::c_long = 16;
const QUERY_EFFECTIVE: u32 = 1;

/// The IDs of the programs on a hook, in the order in which they run. Needs
/// `CAP_NET_ADMIN`.
///
/// # Errors
///
/// `EINVAL` when the kernel has no such hook, and other errors of the kernel.
pub fn programs(target: Target<'_>, attach_type: AttachType) -> io::Result<Vec<u32>> {
    let (target, query_flags) = match target {
        Target::Interface(index) => (index, 0),
        Target::Cgroup(fd) => (fd.as_raw_fd().cast_unsigned(), QUERY_EFFECTIVE),
        Target::Netns(fd) => (fd.as_raw_fd().cast_unsigned(), 0),
    };
    let mut ids = vec![0; 64];
    loop {
        let mut query = Query {
            target,
            attach_type: attach_type as u32,
            query_flags,
            prog_ids: ids.as_mut_ptr() as u64,
            prog_cnt: ids.len().try_into().unwrap_or(u32::MAX),
            ..Query::default()
        };
        match bpf(PROG_QUERY, &mut query) {
            Ok(_) => {
                ids.truncate(query.prog_cnt as usize);
                return Ok(ids);
            }
            // The hook has more programs than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                ids.resize(ids.len() * 2, 0);
            }
            // No program was ever attached there.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
}
