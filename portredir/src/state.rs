//! What a command finds of the one before it.
//!
//! It is kept in a map among the pins, as JSON, and so lives exactly as long as
//! what it tells of. The rules are written for the generation that is not live;
//! the switch to it makes rules and state valid in one step.

pub mod attachment;
pub mod store;

use std::collections::HashSet;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::settings::Settings;
use crate::rule::Rule;
use crate::ruleset::history::History;

/// Raised when maps or state change so that an older or newer program cannot
/// work with them.
pub const LAYOUT: u32 = 2;

/// What one generation is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`LAYOUT`] of the program that wrote it.
    pub layout: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// Options and rules.
    pub settings: Settings,
    /// The counter of each rule. A rule that stays keeps it.
    pub ids: Vec<u16>,
    /// Where the search for an unused counter goes on.
    pub next_id: u16,
    /// Targets of rules that are gone, for flows that are not.
    pub history: History,
    /// Whether everything is being taken down.
    pub is_ending: bool,
    /// What comes back unless somebody confirms in time.
    pub pending: Option<Pending>,
}

/// A change that waits to be confirmed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// When it is taken back, `CLOCK_BOOTTIME`, milliseconds.
    pub deadline_ms: u64,
    /// What there was before; `None` when nothing was.
    pub before: Option<Settings>,
}

/// Why a state cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another version's.
    #[error(
        "the attached programs belong to portredir {version} (state layout {layout}), but this is {} \
         (state layout {LAYOUT}); use that version, or remove everything: portredir down --force",
        env!("CARGO_PKG_VERSION")
    )]
    Layout {
        /// The version that wrote it.
        version: String,
        /// Its layout.
        layout: u32,
    },
    /// Not a state.
    #[error("the state in {0} is corrupt; remove it with: portredir down --force")]
    Damaged(String),
}

/// `CLOCK_BOOTTIME` in milliseconds.
#[must_use]
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl State {
    /// Reads what was written under a directory.
    ///
    /// # Errors
    ///
    /// [`StateError::Layout`], [`StateError::Damaged`].
    pub fn parse(text: &[u8], dir: &str) -> Result<Self, StateError> {
        /// What every version writes.
        #[derive(Deserialize)]
        struct Any {
            layout: u32,
            version: String,
        }
        let damaged = || StateError::Damaged(dir.to_owned());
        let Any { layout, version } = serde_json::from_slice(text).map_err(|_| damaged())?;
        if layout != LAYOUT {
            return Err(StateError::Layout { version, layout });
        }
        let state: Self = serde_json::from_slice(text).map_err(|_| damaged())?;
        let ids: HashSet<_> = state.ids.iter().collect();
        let rules: HashSet<_> = state.settings.rules.iter().collect();
        let count = state.ids.len();
        if ids.len() != count || rules.len() != count || state.settings.rules.len() != count {
            return Err(damaged());
        }
        Ok(state)
    }

    /// How long until an unconfirmed change is taken back.
    #[must_use]
    pub fn confirm_within(&self) -> Option<Duration> {
        let pending = self.pending.as_ref()?;
        Some(Duration::from_millis(
            pending.deadline_ms.saturating_sub(now_ms()),
        ))
    }

    /// No rules yet.
    #[must_use]
    pub fn empty(settings: Settings) -> Self {
        Self {
            layout: LAYOUT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: Settings {
                rules: Vec::new(),
                ..settings
            },
            ids: Vec::new(),
            next_id: 0,
            history: History::default(),
            is_ending: false,
            pending: None,
        }
    }

    /// The rules, each with its counter.
    #[must_use]
    pub fn rules(&self) -> Vec<(u16, Rule)> {
        let ids = self.ids.iter().copied();
        ids.zip(self.settings.rules.iter().cloned()).collect()
    }

    /// What follows this when the settings change; a rule that stays keeps its
    /// counter, and no counter is used again soon.
    #[must_use]
    pub fn next(&self, settings: Settings, history: History) -> Self {
        let known: std::collections::HashMap<_, _> = self
            .settings
            .rules
            .iter()
            .zip(self.ids.iter().copied())
            .collect();
        let mut used: HashSet<u16> = self.ids.iter().copied().collect();
        let mut next_id = self.next_id;
        let ids = settings.rules.iter().map(|rule| {
            known.get(rule).copied().unwrap_or_else(|| {
                // There are as many as rules at most, and those that go are few.
                while used.len() <= usize::from(u16::MAX) && used.contains(&next_id) {
                    next_id = next_id.wrapping_add(1);
                }
                used.insert(next_id);
                let id = next_id;
                next_id = next_id.wrapping_add(1);
                id
            })
        });
        let ids = ids.collect();
        Self {
            ids,
            next_id,
            history,
            settings,
            is_ending: false,
            pending: None,
            ..Self::empty(Settings::default())
        }
    }
}
