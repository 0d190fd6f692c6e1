//! The errors of changes and of questions.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use crate::config::file::ConfigError;
use crate::exit::ExitCode;
use crate::host::forwarding::ForwardingError;
use crate::host::netlink::HostError;
use crate::host::preflight::PreflightError;
use crate::loader::DatapathError;
use crate::loader::pinned::PinnedError;
use crate::loader::trace::TraceError;
use crate::observe::connections::ListError;
use crate::plan::lockout::LockoutError;
use crate::plan::way::WayError;
use crate::plan::{Refused, UsageError};
use crate::ruleset::compile::TableError;
use crate::ruleset::services::ServicesError;
use crate::ruleset::services::endpoint::Selector;
use crate::sys::bpffs::PinError;
use crate::sys::lock::LockError;
use crate::sys::netlink::NetlinkError;
use crate::sys::sock_diag::SockDiagError;

/// The reason why a change is refused before anything is touched.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// No interface is left to attach to.
    #[error("no interface to attach to; see --iface")]
    NoInterface,
    /// An option can only be changed by `up`.
    #[error("`{0}` cannot be changed while programs are attached; use: portredir up")]
    NeedsUp(String),
    /// No change waits for its confirmation.
    #[error("no change is waiting for confirmation")]
    NothingPending,
    /// Another change waits for its confirmation, for this number of seconds.
    #[error(
        "another change is waiting for confirmation; keep that change with `portredir confirm`, or \
         wait {0} s until it is rolled back"
    )]
    Pending(u64),
    /// No rule has a target that was named.
    #[error("no rule has the target {which}; {}", targets(known))]
    NoTarget {
        /// The name.
        which: Selector,
        /// The targets that there are.
        known: Vec<String>,
    },
    /// A rule takes over a port by which the host is administered.
    #[error(transparent)]
    Lockout(#[from] LockoutError),
    /// The settings contradict themselves or the host.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The engine that was asked for is not available on an interface.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A target with an address has no way, or needs forwarding.
    #[error(transparent)]
    Way(#[from] WayError),
    /// The ways to targets cannot be read.
    #[error("look at the ways to targets")]
    Host(#[source] NetlinkError),
}

impl ChangeError {
    /// The exit code for this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::Usage,
            _ => ExitCode::Failed,
        }
    }
}

/// The reason why a change, or a question, fails.
#[derive(Debug, Error)]
pub enum ControllerError {
    /// No redirect runs in this network namespace.
    #[error("not running in this network namespace; start with: portredir up 80:8080")]
    NotRunning,
    /// Another process watches already, or has the address of the control socket.
    #[error(
        "another watcher process is already running; `portredir status --check` says whether that \
         process answers, and how to replace it"
    )]
    Watched,
    /// No redirect runs, but clsact filters of a killed one are attached.
    #[error(
        "not running, but a killed run has left its tc filters on {}, which may still redirect; \
         remove them with: portredir down",
        .0.join(", ")
    )]
    LeftFilters(Vec<String>),
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
    /// The kernel refused a request.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// Packets cannot be traced.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The pinned maps cannot be used.
    #[error(transparent)]
    Pinned(#[from] PinnedError),
    /// The directory of the pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The rules need more than the maps hold.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A switch of forwarding cannot be read or set.
    #[error("switch forwarding")]
    Forwarding(#[from] ForwardingError),
    /// The rules need more targets than the maps hold.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// The lock of this network namespace is taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The state of the host cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// TCP sockets cannot be listed.
    #[error(transparent)]
    Sockets(#[from] SockDiagError),
    /// Flows cannot be listed.
    #[error(transparent)]
    List(#[from] ListError),
    /// The process in the foreground does not tell the maps of its flows.
    #[error(
        "the running process does not answer a question for its flows; restart that process if \
         it is of an older version"
    )]
    NoFlows(#[source] io::Error),
    /// The process in the foreground does not tell its targets.
    #[error(
        "the running process does not answer a question for its targets; try again, or restart \
         that process if it is of an older version"
    )]
    NoTargets(#[source] io::Error),
    /// Metrics cannot be served at the address of the settings.
    #[error("{}", unserved(*addr, source))]
    Metrics {
        /// The address.
        addr: SocketAddr,
        /// The kernel's error, which the text includes.
        source: io::Error,
    },
    /// Options, rules or files are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A system call failed.
    #[error("{action}")]
    Io {
        /// The action that was tried.
        action: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl ControllerError {
    /// Turns an error of a system call into one that names the action.
    pub const fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// The error for a network namespace that the kernel cannot identify.
    #[must_use]
    pub const fn netns(source: io::Error) -> Self {
        Self::Io {
            action: "read the cookie of the network namespace",
            source,
        }
    }

    /// The exit code for this error.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotRunning | Self::LeftFilters(_) | Self::Ending => ExitCode::NotRunning,
            Self::Change(error) => error.exit_code(),
            Self::Preflight(error) => error.exit_code(),
            Self::Pinned(error) => error.exit_code(),
            Self::Trace(error) => error.exit_code(),
            Self::Config(error) => error.exit_code(),
            _ => ExitCode::Failed,
        }
    }
}

/// The targets that can be named instead.
fn targets(known: &[String]) -> String {
    const MOST: usize = 20;
    if known.is_empty() {
        return "the running rules have one port of this host each, which cannot be drained: \
                remove the rule instead, as in portredir rm 80:8080"
            .to_owned();
    }
    let more = match known.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more, which portredir targets shows"),
    };
    let first: Vec<_> = known.iter().take(MOST).map(String::as_str).collect();
    format!("the targets are {}{more}", first.join(", "))
}

/// The text about an address that cannot be served at.
pub(super) fn unserved(addr: SocketAddr, error: &io::Error) -> String {
    let cure = match error.kind() {
        io::ErrorKind::AddrInUse => {
            let port = addr.port();
            format!("; choose another port, or find who has it: ss -ltnp 'sport = {port}'")
        }
        io::ErrorKind::AddrNotAvailable => {
            "; choose an address of this host: ip addr show".to_owned()
        }
        _ => String::new(),
    };
    format!("--metrics: cannot listen on {addr}: {error}{cure}")
}
