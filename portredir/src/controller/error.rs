//! Why a change, or a question, fails.

use std::io;

use thiserror::Error;

use crate::config::file::ConfigError;
use crate::exit::ExitCode;
use crate::host::netlink::HostError;
use crate::host::preflight::PreflightError;
use crate::loader::DatapathError;
use crate::loader::pinned::PinnedError;
use crate::plan::lockout::GuardError;
use crate::plan::{Refused, UsageError};
use crate::ruleset::compile::TableError;
use crate::sys::bpffs::PinError;
use crate::sys::lock::LockError;
use crate::sys::sock_diag::SockDiagError;

/// Why a change is refused before anything is touched.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// No interface is left to attach to.
    #[error("no interface to attach to; see --iface")]
    NoInterface,
    /// An option can only be changed by `up`.
    #[error("`{0}` cannot be changed while programs are attached; use: portredir up --config PATH")]
    NeedsUp(String),
    /// No change waits for its confirmation.
    #[error("no change is waiting for confirmation")]
    NothingPending,
    /// Another change waits for its confirmation, for so many seconds.
    #[error(
        "another change is waiting for confirmation; keep that change with `portredir confirm`, or \
         wait {0} s until it is rolled back"
    )]
    Pending(u64),
    /// A rule takes over a port by which the host is administered.
    #[error(transparent)]
    Lockout(#[from] GuardError),
    /// The settings contradict themselves or the host.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The engine that was asked for is not available on an interface.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl ChangeError {
    /// How the program ends by this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::Usage,
            _ => ExitCode::Failed,
        }
    }
}

/// Why a change, or a question, fails.
#[derive(Debug, Error)]
pub enum ControllerError {
    /// Nothing runs in this network namespace.
    #[error("not running in this network namespace; start with: portredir up 80:8080")]
    NotRunning,
    /// The redirect is being stopped.
    #[error("shutdown in progress; if it was interrupted, run: portredir down")]
    Ending,
    /// A run in the foreground cannot be changed.
    #[error(
        "portredir runs in the foreground (process {0}) and its rules cannot be changed; stop that \
         process with Ctrl-C or `portredir down`, then use `portredir up`"
    )]
    Foreground(u32),
    /// A run in the foreground would redirect a second time.
    #[error(
        "already running (started by `portredir up`); use `portredir add`, `rm`, `apply` or `up`, \
         or stop it first: portredir down"
    )]
    Attached,
    /// A process was asked to stop and did not.
    #[error("process {0} did not stop in time; use: portredir down --force")]
    NotStopped(u32),
    /// The change is refused.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// A privilege or a kernel feature is missing.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The lock is taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel refused something.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The pinned maps cannot be used.
    #[error(transparent)]
    Pinned(#[from] PinnedError),
    /// The directory of the pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The rules need more than the maps hold.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The log of the programs cannot be read.
    #[error("read the log of the programs")]
    Log(#[from] aya_log::Error),
    /// A system call failed.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The files of a reload are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host cannot be asked for its interfaces.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The sockets of the host cannot be listed.
    #[error(transparent)]
    Sockets(#[from] SockDiagError),
}

impl ControllerError {
    /// Turns an error of a system call into one that says what was tried.
    pub const fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// How the program ends by this error.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotRunning | Self::Ending => ExitCode::NotRunning,
            Self::Change(error) => error.exit_code(),
            Self::Preflight(error) => error.exit_code(),
            Self::Pinned(error) => error.exit_code(),
            Self::Config(error) => error.exit_code(),
            _ => ExitCode::Failed,
        }
    }
}
