//! What the kernel refuses.

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

/// What went wrong with the kernel.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// The object was refused.
    #[error("load the eBPF object")]
    Load(#[from] EbpfError),
    /// A program was refused.
    #[error("load program {name}")]
    Program {
        /// Its name.
        name: &'static str,
        /// The verifier's words.
        #[source]
        source: ProgramError,
    },
    /// A map could not be read or written.
    #[error("map {name}")]
    Map {
        /// Its name.
        name: &'static str,
        /// The kernel's error.
        #[source]
        source: MapError,
    },
    /// A map cannot be accessed as memory.
    #[error("map {name} is not as it should be")]
    Memory {
        /// Its name.
        name: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The kernel has no random numbers.
    #[error("choose a seed")]
    Seed(#[from] getrandom::Error),
    /// An interface refused a program.
    #[error("attach {what} to {interface}: {reason}")]
    Attach {
        /// Hook and mode.
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
    /// A file that stands for something to attach to.
    #[error("open {path}")]
    Open {
        /// Its path.
        path: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// `sk_lookup` of Linux before 5.17.
    #[error(
        "this kernel does not tell by which interface a connection came in; \
         use --iface all without --no-local, or --engine tc"
    )]
    NoIfindex(#[source] ProgramError),
    /// Servers that listen could not be looked up.
    #[error("look up the servers that listen")]
    Scan(#[source] ProgramError),
    /// Clients on this host are told apart by their cgroup.
    #[error("no cgroup v2 hierarchy is mounted")]
    NoCgroup,
    /// A link could not be made to outlive the process.
    #[error("pin {path}: {reason}")]
    Pin {
        /// Where.
        path: String,
        /// The kernel's error, in words.
        reason: String,
    },
    /// A program that is attached could not be replaced by the one of this
    /// process.
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
    /// What is attached is of another version.
    #[error("there is no program `{0}` in this version of portredir")]
    Unknown(String),
}

/// Not a link: kernels before ours attach otherwise.
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

/// Why XDP was refused: the number's meaning, and the kernel's own words where
/// it has any.
pub(super) fn attach_reason(
    error: &ProgramError,
    program: &Xdp,
    index: u32,
    mode: XdpMode,
) -> String {
    let number = match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => io_error.raw_os_error(),
        // aya falls back to netlink where links are not to be had.
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

/// An error with what caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
