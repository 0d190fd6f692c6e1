//! The events of a change, and of changes of the host.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::error::ControllerError;
use crate::config::engine::EngineChoice;
use crate::loader::Unregistered;
use crate::loader::local_peers::EndSocketsError;
use crate::plan::finding::Finding;
use crate::plan::{Planned, Refused, Skipped};
use crate::rule::Rule;

/// An event that a person, a journal or an agent may want to know.
#[derive(Debug)]
pub enum Event {
    /// An earlier command was killed; this one finishes or undoes its work first.
    Recovered(Interrupted),
    /// An interface was attached in another way than the first plan says: the interface
    /// is new, or the kernel refused the planned engine, which is then among the rejected
    /// ones.
    Attached(Box<Planned>),
    /// An interface no longer has programs.
    Detached {
        /// The name of the interface.
        interface: String,
        /// The reason.
        reason: DetachReason,
    },
    /// An interface has another name.
    Renamed {
        /// The old name.
        from: String,
        /// The new name.
        to: String,
    },
    /// An interface gets no programs, because another one sees its packets.
    Covered(Box<Skipped>),
    /// The engine that was asked for is not available on a new interface.
    Refused(Box<Refused>),
    /// A new interface could not be attached.
    AttachFailed(String),
    /// Somebody else detached programs, and they are attached again.
    Repaired {
        /// The name of the interface.
        interface: String,
        /// The hooks and their state before the repair.
        hooks: Vec<String>,
    },
    /// Somebody else detaches programs again and again, so the next repair has to wait.
    Fought {
        /// The name of the interface.
        interface: String,
        /// The time until the next repair.
        wait: Duration,
    },
    /// Somebody else removed pins from this directory, and they are there again.
    PinnedAgain(String),
    /// Connections to some addresses of this host are not redirected.
    LocalIncomplete(String),
    /// Metrics cannot be served.
    MetricsFailed(String),
    /// Clients behind IPsec policies are redirected in another way, or not at all.
    BehindIpsec(String),
    /// A socket lookup cannot deliver to a server.
    Unregistered {
        /// The engine that was asked for.
        engine: EngineChoice,
        /// The server.
        server: Unregistered,
    },
    /// Stopping waits for connections.
    Draining {
        /// The number of connections.
        connections: usize,
        /// The longest time to wait.
        timeout: Duration,
    },
    /// Stopping still waits for this number of connections; none are left at the end.
    Waiting {
        /// The number of connections.
        connections: usize,
        /// The time until the connections are cut off.
        left: Duration,
    },
    /// Connections that did not end in time are cut off.
    CutOff {
        /// The number of connections.
        connections: usize,
    },
    /// A target has come up or gone down.
    TargetTurned {
        /// The target as rules have it.
        target: String,
        /// The rule.
        rule: Box<Rule>,
        /// The last failure in a few words; none of a target that is up.
        why: Option<String>,
    },
    /// The way to a target has changed.
    WayChanged {
        /// The address of the target.
        target: IpAddr,
        /// The change.
        news: News,
    },
    /// TCP sockets of this host were connected to a target that is down, and were ended.
    SocketsEnded {
        /// The number of sockets.
        sockets: usize,
    },
    /// TCP sockets of this host that are connected to a target that is down cannot be ended.
    SocketsStay(EndSocketsError),
    /// A change that was not confirmed in time was rolled back.
    RolledBack,
    /// A process that did not stop is killed.
    Killed(i32),
    /// The watcher was started and does not answer yet.
    WatcherIsSlow,
    /// A reload was refused; the running rules stay.
    ReloadFailed(ControllerError),
    /// The lock could not be taken, and the work goes on without it.
    Unlocked(ControllerError),
}

/// The news about the way to a target. `Display` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Something is wrong with the way.
    Fault(Finding),
    /// Packets leave by another interface, or go to another router.
    Turned(String),
    /// Nothing is wrong any more.
    Mended(String),
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(Finding { what, fix, .. }) => write!(f, "{what}; {fix}"),
            Self::Turned(way) => write!(f, "the way has changed: {way}"),
            Self::Mended(way) => write!(f, "nothing is wrong with the way any more: {way}"),
        }
    }
}

/// The reason why an interface no longer has programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetachReason {
    /// A change, or the plan for the host as it is now, detached it.
    Stopped,
    /// The interface was removed.
    InterfaceGone,
}

/// A command that was killed before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// `portredir up`.
    Up,
    /// `portredir down`.
    Down,
}

/// The receiver of events.
pub type OnEvent<'a> = &'a mut dyn FnMut(Event);
