//! The attachment of one interface, for reports and for the next command.

use serde::{Deserialize, Serialize};

use crate::config::engine::Engine;
use crate::config::selection::SelectedBy;
use crate::plan::Attached;

/// The attachment of an interface, for reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceReport {
    /// The name of the interface.
    pub name: String,
    /// The index of the interface.
    pub ifindex: u32,
    /// The engine.
    pub engine: String,
    /// The mode in which the engine is attached.
    pub mode: String,
    /// The reason for this engine.
    pub why: String,
}

/// The attachment of one interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The attachment as reports show it.
    pub report: InterfaceReport,
    /// The way the interface was selected. Where nobody did, and only replies are restored,
    /// a new name decides anew.
    pub selected: SelectedBy,
    /// The engine that redirects its connections.
    pub engine: Engine,
    /// Whether only egress programs are attached.
    pub is_egress_only: bool,
    /// The attached programs.
    pub mode: Mode,
    /// The offloads to switch on again.
    pub restore: Vec<String>,
    /// Whether portredir made the clsact qdisc.
    pub is_clsact_ours: bool,
}

impl Attachment {
    /// The attachment as the next plan needs it.
    #[must_use]
    pub const fn for_plan(&self) -> Attached {
        Attached {
            selected: self.selected,
            is_egress_only: self.is_egress_only,
        }
    }

    /// Reads what [`crate::state::store::Store`] has kept; `None` when the text is damaged.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }
}

/// The place of an attached program that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A link, by the name of its pin.
    Pin(String),
    /// A clsact filter.
    Filter {
        /// The direction of the filter.
        is_ingress: bool,
        /// The priority of the filter.
        priority: u16,
        /// The handle of the filter.
        handle: u32,
    },
}

/// The mode in which an interface was attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mode {
    /// The name of the kernel's mechanism: `native+frags`, `tcx`, ….
    pub name: String,
    /// The places that outlive the process, and their programs, in the order in which
    /// they were attached.
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
