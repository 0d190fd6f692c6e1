//! The subject of an examination, gathered by the caller.

use crate::config::settings::Settings;
use crate::host::features::Features;
use crate::host::snapshot::Snapshot;
use crate::state::attachment::InterfaceReport;

/// The process that keeps a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// No process does.
    Unwatched,
    /// The watcher does, by its ID.
    Watched(u32),
    /// The redirect lives as long as this process.
    Foreground(u32),
}

/// A redirect that runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// The process that keeps it.
    pub role: Role,
    /// Seconds until an unconfirmed change is rolled back.
    pub confirm_within: Option<u64>,
    /// The interfaces that are attached.
    pub interfaces: Vec<InterfaceReport>,
}

/// The redirect of this network namespace.
#[derive(Clone, Debug)]
pub enum State {
    /// A redirect runs with the settings that are examined.
    Running(Running),
    /// A redirect runs with other settings.
    Other,
    /// None runs.
    Nothing,
}

/// The subject of an examination.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// The settings that run, or that would.
    pub settings: &'a Settings,
    /// The redirect of this network namespace.
    pub state: State,
    /// Interfaces and addresses.
    pub host: &'a Snapshot,
    /// The features of the kernel.
    pub features: &'a Features,
}
