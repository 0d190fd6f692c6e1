//! The features of the kernel and the host that the planner needs to know, apart from the
//! interfaces. Nothing here needs privileges; features that may not be read stay unknown.

use std::path::{Path, PathBuf};

use aya::programs::{ProgramError, SchedClassifier, TcAttachType, loaded_programs};
use aya::sys::SyscallError;
use nix::unistd::{SysconfVar, sysconf};

use crate::sys::cgroup::cgroup_root;

/// The features of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// The cgroup v2 directory of local clients.
    pub cgroup: Option<PathBuf>,
    /// Whether the kernel has TCX; `None` without the permission to ask.
    pub tcx: Option<bool>,
    /// Bytes of a memory page, in which a packet for XDP without frags must fit.
    pub page_bytes: u32,
}

impl Features {
    /// Reads the features. `cgroup` is the directory that the user named.
    #[must_use]
    pub fn read(cgroup: Option<&Path>) -> Self {
        let page_bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
        Self {
            cgroup: cgroup.map(Path::to_owned).or_else(cgroup_root),
            tcx: has_tcx(),
            page_bytes: page_bytes
                .and_then(|bytes| bytes.try_into().ok())
                .unwrap_or(4096),
        }
    }
}

impl Features {
    /// The largest MTU of native XDP without frags. Drivers differ by a few
    /// bytes; this is `ENA_XDP_MAX_MTU` of
    /// drivers/net/ethernet/amazon/ena/ena_xdp.h, which is among the smallest:
    /// a page, without `XDP_PACKET_HEADROOM`, `struct skb_shared_info`, and the
    /// Ethernet header, VLAN tag and checksum.
    #[must_use]
    pub const fn linear_mtu(&self) -> u32 {
        self.page_bytes.saturating_sub(256 + 320 + 14 + 4 + 4)
    }
}

/// Asks for the TCX programs of loopback: a kernel before 6.6 does not know
/// the attach type.
fn has_tcx() -> Option<bool> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Some(true),
        Err(ProgramError::SyscallError(SyscallError { call, io_error })) => {
            match (call, io_error.raw_os_error()) {
                ("bpf_prog_query", Some(libc::EINVAL)) => Some(false),
                ("bpf_prog_query", _) => None,
                // The kernel answered the question, but this process may not see its
                // programs.
                _ => Some(true),
            }
        }
        Err(_) => None,
    }
}

/// Information about programs of others: user space knows only their IDs.
pub trait Programs {
    /// The name of the program with this ID.
    fn name(&self, id: u32) -> String;

    /// The TCX programs of an interface, by name.
    fn tcx(&self, interface: &str) -> Vec<String>;
}

/// The prefix of the names of portredir's programs.
pub const OURS: &str = "portredir_";

/// The name of the program with this ID. Only a process with `CAP_SYS_ADMIN` may ask.
#[must_use]
pub fn program_name(id: u32) -> Option<String> {
    let mut programs = loaded_programs().filter_map(Result::ok);
    let info = programs.find(|info| info.id() == id)?;
    let name = info.name_as_str()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// The programs that are in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Loaded;

impl Programs for Loaded {
    fn name(&self, id: u32) -> String {
        name_and_id(program_name(id), id)
    }

    fn tcx(&self, interface: &str) -> Vec<String> {
        [TcAttachType::Ingress, TcAttachType::Egress]
            .into_iter()
            .filter_map(|direction| SchedClassifier::query_tcx(interface, direction).ok())
            .flat_map(|(_, programs)| programs)
            .filter(|info| {
                !info
                    .name_as_str()
                    .is_some_and(|name| name.starts_with(OURS))
            })
            .map(|info| name_and_id(info.name_as_str().map(str::to_owned), info.id()))
            .collect()
    }
}

fn name_and_id(name: Option<String>, id: u32) -> String {
    match name {
        Some(name) if !name.is_empty() => format!("{name} (id {id})"),
        _ => format!("program id {id}"),
    }
}
