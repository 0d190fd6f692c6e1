//! How one interface is attached, as it is shown and as the next command finds it.

use serde::{Deserialize, Serialize};

use crate::config::engine::Engine;
use crate::config::selection::SelectedBy;

/// How an interface is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceReport {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// Engine.
    pub engine: String,
    /// How the engine is attached.
    pub mode: String,
    /// Why this engine.
    pub why: String,
}

/// How one interface is attached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// As it is shown.
    pub report: InterfaceReport,
    /// How it was selected.
    pub selected: SelectedBy,
    /// How its connections are redirected.
    pub engine: Engine,
    /// Whether only what goes out passes here.
    pub is_egress_only: bool,
    /// What was attached.
    pub mode: Mode,
    /// Offloads to switch on again.
    pub restore: Vec<String>,
    /// Whether the clsact qdisc is ours.
    pub is_clsact_ours: bool,
}

impl Attachment {
    /// Reads what [`crate::state::store::Store`] has kept; `None` when the text is damaged.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }
}

/// Where a program is attached that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A link, by the name of its pin.
    Pin(String),
    /// A clsact filter.
    Filter {
        /// Its direction.
        is_ingress: bool,
        /// Its priority.
        priority: u16,
        /// Its handle.
        handle: u32,
    },
}

/// How an interface was attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mode {
    /// The kernel's way: `native+frags`, `tcx`, ….
    pub name: String,
    /// What outlives the process, and its programs; in the order in which they
    /// were attached.
    pub programs: Vec<(Place, String)>,
}

impl Mode {
    /// A mode without programs that outlive the process.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            programs: Vec::new(),
        }
    }
}
