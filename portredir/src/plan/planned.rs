//! The plan itself: a decision for each interface.

use std::collections::BTreeMap;

use serde::Serialize;
use thiserror::Error;

use super::firewall::Firewall;
use crate::config::engine::{Engine, EngineChoice};
use crate::config::selection::SelectedBy;
use crate::host::features::Features;
use crate::host::snapshot::Interface;

/// The plan for all interfaces. `Display` prints a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The requested engine.
    pub choice: EngineChoice,
    /// The canonical texts of the rules.
    pub rules: Vec<String>,
    /// The interfaces that get programs, by index.
    pub attach: BTreeMap<u32, Planned>,
    /// The interfaces that get no programs.
    pub skip: Vec<Skipped>,
    /// The interfaces on which the requested engine is not available.
    pub refuse: Vec<Refused>,
    /// The ports that a firewall has to allow.
    pub firewall: Firewall,
    /// Notes on the plan as a whole.
    pub notes: Vec<String>,
}

impl Plan {
    /// Checks that the requested engine is available on all interfaces.
    ///
    /// # Errors
    ///
    /// The first [`Refused`].
    pub fn check(&self) -> Result<(), Refused> {
        self.refuse.first().cloned().map_or(Ok(()), Err)
    }
}

/// An interface that gets programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The interface.
    pub interface: Interface,
    /// How the interface was selected; the next plan needs it.
    pub selected: SelectedBy,
    /// How connections of the interface are redirected.
    pub engine: Engine,
    /// Whether another interface redirects the packets that come in here, so that only
    /// replies need a program.
    pub is_egress_only: bool,
    /// The hook of the engine, as far as it is known before programs are attached.
    pub hook: &'static str,
    /// Why this engine.
    pub why: String,
    /// The engines that were considered first.
    pub rejected: Vec<Rejected>,
    /// Warnings, and programs of others.
    pub notes: Vec<String>,
}

impl Planned {
    /// Plans TC instead of an engine that the kernel refused.
    #[must_use]
    pub fn fall_back_to_tc(&self, features: &Features, why: &str) -> Self {
        let engine = Engine::Tc;
        let mut notes = self.notes.clone();
        if self.interface.is_loopback() {
            notes.push(LOOPBACK_WARNING.to_owned());
        }
        let refused = Rejected::new(self.engine, why.to_owned());
        Self {
            engine,
            hook: engine.hook(features.tcx),
            why: format!("{} mode failed: {why}", self.hook),
            rejected: [&self.rejected[..], &[refused]].concat(),
            notes,
            ..self.clone()
        }
    }
}

/// An interface that gets no programs, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The index of the interface.
    pub index: u32,
    /// The name of the interface.
    pub name: String,
    /// The reason.
    pub why: String,
    /// Whether the interface was selected, and another one redirects its packets.
    pub is_covered: bool,
}

impl Skipped {
    /// Skips an interface that is not selected, or cannot be used now.
    pub(super) fn new(interface: &Interface, why: impl Into<String>) -> Self {
        Self {
            index: interface.index,
            name: interface.name.clone(),
            why: why.into(),
            is_covered: false,
        }
    }
}

/// An interface on which the requested engine is not available.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{name}: --engine {} is not available: {why}; use --engine tc or auto", .engine.name())]
pub struct Refused {
    /// The index of the interface.
    pub index: u32,
    /// The name of the interface.
    pub name: String,
    /// The engine.
    pub engine: Engine,
    /// The reason.
    pub why: String,
}

/// An engine that was considered and not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// The name of the engine.
    pub engine: &'static str,
    /// The reason.
    pub why: String,
}

impl Rejected {
    pub(super) const fn new(engine: Engine, why: String) -> Self {
        Self {
            engine: engine.name(),
            why,
        }
    }
}

/// The note on interfaces where packets are rewritten on loopback.
pub(super) const LOOPBACK_WARNING: &str = "conntrack classifies packets rewritten on loopback as INVALID; if OUTPUT has `ct state \
     invalid drop`, use --engine socket for TCP";
