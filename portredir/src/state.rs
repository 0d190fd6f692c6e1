//! The state that a command leaves for the next one.
//!
//! The state is kept in a map among the pins, as JSON, and so lives exactly as long as
//! the redirect. The rules are written for the generation that is not live; the switch to
//! it makes rules and state valid in one step.

pub mod attachment;
pub mod stamp;
pub mod store;

use std::collections::HashSet;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::settings::Settings;
use crate::rule::Rule;
use crate::ruleset::forwarding::Numbered;
use crate::ruleset::history::History;
use crate::ruleset::services::Services;
use crate::ruleset::taken::TakenPorts;

use self::stamp::Stamp;

/// The version of maps and state; raised when they change so that an older or newer
/// program cannot work with them.
pub const LAYOUT: u32 = 2;

/// The state of one generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The [`LAYOUT`] of the program that wrote the state.
    pub layout: u32,
    /// The version of the program that wrote the state.
    pub version: String,
    /// The options and the rules.
    pub settings: Settings,
    /// The counter of each rule. An unchanged rule keeps its counter.
    pub ids: Vec<u16>,
    /// The counter at which the search for an unused one goes on.
    pub next_id: u16,
    /// The targets of removed rules that still have flows.
    pub history: History,
    /// The targets with an address, and those of rules with several targets.
    #[serde(default)]
    pub services: Services,
    /// The rules that were removed while flows go on to their targets, with their counters:
    /// they take no new flows.
    #[serde(default)]
    pub leaving: Vec<Numbered>,
    /// The target ports on which no server has to listen, with `--if-listening`.
    #[serde(default)]
    pub taken: TakenPorts,
    /// Whether the redirect is being stopped.
    pub is_ending: bool,
    /// The settings that are restored unless the change is confirmed in time.
    pub pending: Option<Pending>,
    /// The time when the last change was rolled back because it was not confirmed,
    /// `CLOCK_BOOTTIME`, milliseconds. The next change removes it.
    #[serde(default)]
    pub rolled_back_ms: Option<u64>,
    /// The time when the last change was confirmed, `CLOCK_BOOTTIME`, milliseconds. The next
    /// change removes it.
    #[serde(default)]
    pub confirmed_ms: Option<u64>,
    /// The beginning of the redirect.
    #[serde(default)]
    pub since: Option<Stamp>,
    /// The last change of the settings.
    #[serde(default)]
    pub changed: Option<Stamp>,
}

/// A change that waits to be confirmed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// The time when the change is rolled back, `CLOCK_BOOTTIME`, milliseconds.
    pub deadline_ms: u64,
    /// The settings before the change; `None` without a redirect before.
    pub before: Option<Settings>,
}

/// The reason why a state cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another version wrote the state.
    #[error(
        "the attached programs belong to portredir {version} (state layout {layout}), but this is {} \
         (state layout {LAYOUT}); use that version, or remove everything: portredir down --force",
        env!("CARGO_PKG_VERSION")
    )]
    Layout {
        /// The version that wrote the state.
        version: String,
        /// The layout of the state.
        layout: u32,
    },
    /// The text is not a state.
    #[error("the state in {0} is corrupt; remove it with: portredir down --force")]
    Damaged(String),
}

/// `CLOCK_BOOTTIME` in milliseconds.
#[must_use]
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The time since `CLOCK_BOOTTIME` was `ms`.
fn ago(ms: u64) -> Duration {
    Duration::from_millis(now_ms().saturating_sub(ms))
}

impl State {
    /// Reads the state from the pins of a directory.
    ///
    /// # Errors
    ///
    /// [`StateError::Layout`], [`StateError::Damaged`].
    pub fn parse(text: &[u8], dir: &str) -> Result<Self, StateError> {
        /// The fields that every version writes.
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
        if !state.services.is_sound() {
            return Err(damaged());
        }
        let ids: HashSet<_> = state.ids.iter().collect();
        let rules: HashSet<_> = state.settings.rules.iter().collect();
        let count = state.ids.len();
        if ids.len() != count || rules.len() != count || state.settings.rules.len() != count {
            return Err(damaged());
        }
        Ok(state)
    }

    /// The time until an unconfirmed change is rolled back.
    #[must_use]
    pub fn confirm_within(&self) -> Option<Duration> {
        let pending = self.pending.as_ref()?;
        Some(Duration::from_millis(
            pending.deadline_ms.saturating_sub(now_ms()),
        ))
    }

    /// The time since the last change was rolled back, if it was.
    #[must_use]
    pub fn rolled_back_ago(&self) -> Option<Duration> {
        self.rolled_back_ms.map(ago)
    }

    /// The state that comes after this one when its change is confirmed.
    #[must_use]
    pub fn confirmed(&self) -> Self {
        Self {
            pending: None,
            confirmed_ms: Some(now_ms()),
            ..self.clone()
        }
    }

    /// The time since the last change was confirmed, if it was.
    #[must_use]
    pub fn confirmed_ago(&self) -> Option<Duration> {
        self.confirmed_ms.map(ago)
    }

    /// A state without rules.
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
            services: Services::default(),
            leaving: Vec::new(),
            taken: TakenPorts::default(),
            is_ending: false,
            pending: None,
            rolled_back_ms: None,
            confirmed_ms: None,
            since: None,
            changed: None,
        }
    }

    /// The rules, each with its counter.
    #[must_use]
    pub fn rules(&self) -> Vec<(u16, Rule)> {
        let ids = self.ids.iter().copied();
        ids.zip(self.settings.rules.iter().cloned()).collect()
    }

    /// The state that comes after this one when the settings change; an unchanged rule
    /// keeps its counter, and no counter is used again soon.
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
                // There are at most as many used counters as rules, and few rules are
                // removed at a time.
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
            since: self.since.clone(),
            ..Self::empty(Settings::default())
        }
    }
}
