//! The input of the planner.

use std::collections::BTreeMap;

use crate::config::selection::SelectedBy;
use crate::config::settings::Settings;
use crate::host::features::{Features, Programs};
use crate::host::snapshot::{Interface, Snapshot};

/// Everything that a plan depends on.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub snapshot: &'a Snapshot,
    pub settings: &'a Settings,
    pub features: &'a Features,
    /// The interfaces that have programs of ours, with how each was selected.
    pub attached: &'a BTreeMap<u32, SelectedBy>,
    /// The programs of others.
    pub programs: &'a dyn Programs,
}

impl<'a> Input<'a> {
    /// All interfaces, by index.
    pub fn interfaces(&self) -> impl Iterator<Item = &'a Interface> + use<'a> {
        self.snapshot.interfaces.values()
    }

    /// Whether an interface has programs of ours.
    pub fn is_attached(&self, interface: &Interface) -> bool {
        self.attached.contains_key(&interface.index)
    }
}
