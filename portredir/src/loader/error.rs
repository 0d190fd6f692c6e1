//! The errors of the datapath.

use std::io;
use std::os::fd::AsFd as _;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::links::LinkError;
use aya::programs::xdp::XdpError;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::sys::SyscallError;
use nix::errno::Errno;
use thiserror::Error;

use crate::sys::netdev;

/// An error of the kernel.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// The kernel refused the object.
    #[error("load the eBPF object")]
    Load(#[from] EbpfError),
    /// The kernel refused a program.
    #[error("load program {name}")]
    Program {
        /// The name of the program.
        name: &'static str,
        /// The verifier's message.
        #[source]
        source: ProgramError,
    },
    /// A map could not be read or written.
    #[error("access BPF map {name}")]
    Map {
        /// The name of the map.
        name: &'static str,
        /// The kernel's error.
        #[source]
        source: MapError,
    },
    /// A program ended with an action that it does not have.
    #[error("program {name} returned {action}, which is no verdict")]
    Action {
        /// The name of the program.
        name: &'static str,
        /// The action.
        action: u32,
    },
    /// The host has more local addresses than a map holds.
    #[error(
        "this host has {wanted} local addresses or networks, and portredir holds {held} of them: \
         connections to the other {} are not redirected; replace single addresses by a network \
         (ip route add local NETWORK dev lo), or remove addresses",
        .wanted.saturating_sub(*.held)
    )]
    LocalFull {
        /// The number of addresses.
        wanted: usize,
        /// The number of addresses in the map.
        held: usize,
    },
    /// A map cannot be accessed as memory.
    #[error("BPF map {name} does not have the expected type or size")]
    Memory {
        /// The name of the map.
        name: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The kernel has no random numbers.
    #[error("get random bytes for the hash seed")]
    Seed(#[from] getrandom::Error),
    /// An interface refused a program.
    #[error("attach {what} to {interface}: {reason}")]
    Attach {
        /// The hook and the mode.
        what: &'static str,
        /// The interface.
        interface: String,
        /// The kernel's error, in words.
        reason: String,
    },
    /// A hook that belongs to no interface refused a program.
    #[error("attach {program} to {to}")]
    Hook {
        /// The program.
        program: &'static str,
        /// The cgroup or network namespace.
        to: String,
        /// The kernel's error.
        #[source]
        source: ProgramError,
    },
    /// A file that stands for an attach point cannot be opened.
    #[error("open {path}")]
    Open {
        /// The path of the file.
        path: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The `sk_lookup` of this kernel does not know the ingress interface: Linux before
    /// 5.17.
    #[error(
        "before Linux 5.17, --engine socket cannot tell on which ingress interface a connection \
         arrived; use --iface all without --no-local, or --engine tc"
    )]
    NoIfindex(#[source] ProgramError),
    /// Listening servers cannot be listed.
    #[error("list listening sockets")]
    Scan(#[source] ProgramError),
    /// There is no cgroup v2 hierarchy, which identifies local clients.
    #[error("no cgroup v2 hierarchy is mounted")]
    NoCgroup,
    /// A link cannot be pinned to outlive the process.
    #[error("pin {path}: {reason}")]
    Pin {
        /// The path of the pin.
        path: String,
        /// The kernel's error, in words.
        reason: String,
    },
    /// An attached program could not be replaced by that of this process.
    #[error("replace {program} on {interface}")]
    Replace {
        /// The program.
        program: &'static str,
        /// The interface.
        interface: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// An attached program belongs to another version.
    #[error("the attached program `{0}` does not exist in this version of portredir")]
    Unknown(String),
}

/// The error of an attachment that is not a link: kernels older than the supported ones
/// attach otherwise.
pub(super) fn link_error(error: LinkError) -> ProgramError {
    ProgramError::IOError(io::Error::other(error))
}

pub(super) fn hook_error(
    program: &'static str,
    to: String,
) -> impl FnOnce(ProgramError) -> DatapathError {
    move |source| DatapathError::Hook {
        program,
        to,
        source,
    }
}

pub(super) const fn map_error(name: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |source| DatapathError::Map { name, source }
}

/// The reason why XDP was refused: the meaning of the number, and the kernel's own
/// message where there is one.
pub(super) fn attach_reason(
    error: &ProgramError,
    program: &Xdp,
    index: u32,
    mode: XdpMode,
) -> String {
    let number = match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => io_error.raw_os_error(),
        // aya falls back to netlink where links are not available.
        ProgramError::XdpError(XdpError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    };
    let Some(number) = number else {
        return chain(error);
    };
    let errno = Errno::from_raw(number);
    let words = program
        .fd()
        .ok()
        .and_then(|fd| netdev::refusal(index, fd.as_fd(), mode));
    let reason = match words {
        Some(words) => format!("{words} ({errno:?})"),
        None => errno.to_string(),
    };
    match errno {
        Errno::EBUSY | Errno::EEXIST | Errno::EOPNOTSUPP => reason + "; use --engine tc or auto",
        _ => reason,
    }
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
