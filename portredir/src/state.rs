//! What a command finds of the one before it.
//!
//! It is kept in a map among the pins, as JSON, and so lives exactly as long as
//! what it tells of. The rules are written for the generation that is not live;
//! the switch to it makes rules and state valid in one step.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, MapError};
use nix::time::{ClockId, clock_gettime};
use portredir_common::abi::StateKey;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::engine::Engine;
use crate::config::selection::SelectedBy;
use crate::config::settings::Settings;
use crate::loader::{Mode, live_generation};
use crate::observe::report::InterfaceReport;
use crate::rule::Rule;
use crate::ruleset::history::History;
use crate::sys::bpffs::{PinDir, PinError};
use crate::sys::mmap::Mapped;

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

/// How one interface is attached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
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

/// What is pinned in a directory.
#[derive(Clone, Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A state that is valid.
    Live(Box<State>),
    /// What somebody left who was killed before anything became valid.
    Unfinished,
}

/// Why a state cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// The pins may not be read.
    #[error(
        "not permitted: run it with sudo, or, where `portredir follow` runs, as a member of the \
         group `portredir`"
    )]
    NotPermitted(#[source] io::Error),
    /// Another version's.
    #[error(
        "what is attached is of portredir {version}, with layout {layout}, and this is {} with \
         layout {LAYOUT}; use that version, or: portredir down --force",
        env!("CARGO_PKG_VERSION")
    )]
    Layout {
        /// The version that wrote it.
        version: String,
        /// Its layout.
        layout: u32,
    },
    /// Not a state.
    #[error("the state in {0} is damaged; to remove it: portredir down --force")]
    Damaged(String),
    /// A pin could not be read.
    #[error("read {0}")]
    Read(String, #[source] MapError),
    /// The directory could not be read.
    #[error(transparent)]
    Dir(#[from] PinError),
}

/// Reads what is pinned.
///
/// # Errors
///
/// [`StateError`].
pub fn find(pins: &PinDir) -> Result<Found, StateError> {
    match pins.exists() {
        Ok(true) => {}
        Ok(false) => return Ok(Found::Nothing),
        Err(PinError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            return Err(StateError::NotPermitted(source));
        }
        Err(error) => return Err(error.into()),
    }
    let (Some(state), Some(hot)) = (open(pins, "STATE")?, open(pins, "HOT")?) else {
        return Ok(Found::Unfinished);
    };
    let state = Map::HashMap(state);
    let read = |error| StateError::Read(pins.dir().display().to_string(), error);
    let hot = Mapped::new(hot.fd().as_fd(), 1).map_err(|error| read(MapError::IoError(error)))?;
    let generation = live_generation(&hot);
    let Some(text) = Store::of(&state).map_err(read)?.read(generation) else {
        return Ok(Found::Unfinished);
    };
    let state = State::parse(&text, &pins.dir().display().to_string())?;
    Ok(Found::Live(Box::new(state)))
}

impl Record {
    /// Reads what was written; `None` when it is damaged.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }
}

/// What is known of interfaces; those whose record is damaged are not.
#[must_use]
pub fn records(pins: &PinDir) -> Vec<Record> {
    let Ok(Some(state)) = open(pins, "STATE") else {
        return Vec::new();
    };
    Store::of(&Map::HashMap(state)).map_or_else(|_| Vec::new(), |store| store.records())
}

fn open(pins: &PinDir, name: &str) -> Result<Option<MapData>, StateError> {
    let path = pins.path(name);
    match MapData::from_pin(&path) {
        Ok(map) => Ok(Some(map)),
        Err(MapError::SyscallError(error)) => match error.io_error.kind() {
            io::ErrorKind::NotFound => Ok(None),
            io::ErrorKind::PermissionDenied => Err(StateError::NotPermitted(error.io_error)),
            _ => Err(StateError::Read(path.display().to_string(), error.into())),
        },
        Err(error) => Err(StateError::Read(path.display().to_string(), error)),
    }
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

/// The first document of an interface; before it are those of generations.
const INTERFACES: u32 = 1 << 31;

const CHUNK: usize = 1024;

/// The map with the documents.
pub struct Store<M>(HashMap<M, StateKey, [u8; CHUNK]>);

impl<'a> Store<&'a MapData> {
    /// To read.
    ///
    /// # Errors
    ///
    /// When it is another kind of map.
    pub fn of(map: &'a Map) -> Result<Self, MapError> {
        HashMap::try_from(map).map(Self)
    }

    /// What is known of interfaces.
    pub fn records(&self) -> Vec<Record> {
        let keys = self.0.keys().filter_map(Result::ok);
        keys.filter(|key| key.document >= INTERFACES && key.chunk == 0)
            .filter_map(|key| Record::parse(&self.read(key.document)?))
            .collect()
    }

    fn read(&self, document: u32) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        for chunk in 0.. {
            let Ok(bytes) = self.0.get(&StateKey { document, chunk }, 0) else {
                break;
            };
            text.extend(bytes);
        }
        let end = text.iter().rposition(|&byte| byte != 0)?;
        text.truncate(end + 1);
        Some(text)
    }
}

impl<'a> Store<&'a mut MapData> {
    /// To write.
    ///
    /// # Errors
    ///
    /// When it is another kind of map.
    pub fn of_mut(map: &'a mut Map) -> Result<Self, MapError> {
        HashMap::try_from(map).map(Self)
    }

    /// Writes the state of a generation that is not live.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn set_state(&mut self, generation: u32, state: &State) -> Result<(), MapError> {
        self.write(generation, state)
    }

    /// Writes what is known of an interface.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn set_record(&mut self, record: &Record) -> Result<(), MapError> {
        self.write(INTERFACES | record.report.ifindex, record)
    }

    /// Forgets an interface.
    pub fn remove_record(&mut self, index: u32) {
        self.cut(INTERFACES | index, 0);
    }

    /// In one step where it fits into one element. Where not, what a reader finds
    /// half-way is no document: the first element comes last.
    fn write(&mut self, document: u32, value: &impl Serialize) -> Result<(), MapError> {
        let text = serde_json::to_vec(value).expect("state is JSON");
        let chunks: Vec<_> = (0..).zip(text.chunks(CHUNK)).collect();
        if chunks.len() > 1 {
            self.cut(document, 0);
        }
        for (chunk, text) in chunks.into_iter().rev() {
            let mut bytes = [0; CHUNK];
            bytes[..text.len()].copy_from_slice(text);
            self.0.insert(StateKey { document, chunk }, bytes, 0)?;
        }
        self.cut(
            document,
            u32::try_from(text.len().div_ceil(CHUNK)).expect("a small document"),
        );
        Ok(())
    }

    /// Removes a document from an element on.
    fn cut(&mut self, document: u32, first: u32) {
        for chunk in first.. {
            if self.0.remove(&StateKey { document, chunk }).is_err() {
                break;
            }
        }
    }
}
