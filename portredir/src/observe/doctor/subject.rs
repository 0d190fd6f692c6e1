//! The subject of an examination, gathered by the caller.

use std::collections::BTreeMap;

use crate::config::settings::Settings;
use crate::host::features::Features;
use crate::host::snapshot::Snapshot;
use crate::loader::Unregistered;
use crate::loader::flows::Fill;
use crate::observe::attached::Interface;

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
    /// The interfaces that are attached, and what the kernel says about them.
    pub interfaces: Vec<Interface>,
    /// The ID of a watcher that does not answer.
    pub silent: Option<u32>,
    /// The fill of the flow tables; empty where the process does not tell.
    pub flow_tables: Vec<Fill>,
    /// The servers that a socket lookup cannot deliver to.
    pub unregistered: Vec<Unregistered>,
    /// The dropped packets, by reason.
    pub drops: BTreeMap<String, u64>,
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
