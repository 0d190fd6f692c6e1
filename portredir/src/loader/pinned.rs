//! The pinned maps of a redirect that outlives the process, and the documents in them.

use std::io;
use std::os::fd::AsFd as _;

use aya::maps::{Map, MapData, MapError};
use jiff::Timestamp;
use thiserror::Error;

use super::Datapath;
use super::error::{DatapathError, map_error};
use super::object::MAPS;
use super::rules::live_generation;
use crate::exit::ExitCode;
use crate::host::forwarding::Saved;
use crate::state::attachment::Attachment;
use crate::state::store::Store;
use crate::state::{State, StateError};
use crate::sys::bpffs::{PinDir, PinError};
use crate::sys::mmap::Mapped;

/// The document of the interface with index 0. The documents of the two
/// generations come before.
const INTERFACES: u32 = 1 << 31;

/// The document of the switches of forwarding.
const FORWARDING: u32 = 1 << 30;
/// The document with the time at which targets were last being checked.
const CHECKED: u32 = 2;

/// The state of the pins in a directory.
#[derive(Clone, Debug)]
pub enum Found {
    /// There are no pins.
    Nothing,
    /// The pins have a valid state.
    Live(Box<State>),
    /// A process was killed before its state became valid.
    Unfinished,
}

/// The reason why pinned maps cannot be used.
#[derive(Debug, Error)]
pub enum PinnedError {
    /// The pins may not be read.
    #[error(
        "not permitted: this command needs root (file capabilities are enough for foreground runs \
         only); use sudo. While the watcher process runs, members of group `portredir` may use \
         `rules` and `status`"
    )]
    NotPermitted(#[source] io::Error),
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A pinned map could not be read.
    #[error("read {0}")]
    Map(String, #[source] MapError),
    /// A map could not be pinned again.
    #[error("pin {0}")]
    Pin(String, #[source] aya::pin::PinError),
    /// The directory could not be read.
    #[error(transparent)]
    Dir(#[from] PinError),
}

impl PinnedError {
    /// The exit code for this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotPermitted(_) => ExitCode::NotPermitted,
            _ => ExitCode::Failed,
        }
    }
}

/// Reads the state of the pins.
///
/// # Errors
///
/// [`PinnedError`].
pub fn find(pins: &PinDir) -> Result<Found, PinnedError> {
    match pins.exists() {
        Ok(true) => {}
        Ok(false) => return Ok(Found::Nothing),
        Err(PinError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            return Err(PinnedError::NotPermitted(source));
        }
        Err(error) => return Err(error.into()),
    }
    let (Some(state), Some(hot)) = (open(pins, "STATE")?, open(pins, "HOT")?) else {
        return Ok(Found::Unfinished);
    };
    let state = Map::HashMap(state);
    let dir = pins.dir().display().to_string();
    let read = |error| PinnedError::Map(dir.clone(), error);
    let hot = Mapped::new(hot.fd().as_fd(), 1).map_err(|error| read(MapError::IoError(error)))?;
    let generation = live_generation(&hot);
    let Some(text) = Store::of(&state).map_err(read)?.read(generation) else {
        return Ok(Found::Unfinished);
    };
    Ok(Found::Live(Box::new(State::parse(&text, &dir)?)))
}

/// The time at which a process was last checking targets; none where none ever did.
#[must_use]
pub fn checked_at(pins: &PinDir) -> Option<Timestamp> {
    let state = Map::HashMap(open(pins, "STATE").ok()??);
    let text = Store::of(&state).ok()?.read(CHECKED)?;
    serde_json::from_slice(&text).ok()
}

/// The attachments of all interfaces, without those with a damaged document.
#[must_use]
pub fn attachments(pins: &PinDir) -> Vec<Attachment> {
    let Ok(Some(state)) = open(pins, "STATE") else {
        return Vec::new();
    };
    let state = Map::HashMap(state);
    let Ok(store) = Store::of(&state) else {
        return Vec::new();
    };
    let documents = store.documents().into_iter();
    documents
        .filter(|document| *document >= INTERFACES)
        .filter_map(|document| Attachment::parse(&store.read(document)?))
        .collect()
}

/// The switches of forwarding that were off before; none where nothing is written down.
#[must_use]
pub fn forwarding(pins: &PinDir) -> Saved {
    let state = open(pins, "STATE").ok().flatten().map(Map::HashMap);
    let text = state
        .as_ref()
        .and_then(|state| Store::of(state).ok()?.read(FORWARDING));
    let saved = text.and_then(|text| serde_json::from_slice(&text).ok());
    saved.unwrap_or_default()
}

fn open(pins: &PinDir, name: &str) -> Result<Option<MapData>, PinnedError> {
    let path = pins.path(name);
    match MapData::from_pin(&path) {
        Ok(map) => Ok(Some(map)),
        Err(MapError::SyscallError(error)) => match error.io_error.kind() {
            io::ErrorKind::NotFound => Ok(None),
            io::ErrorKind::PermissionDenied => Err(PinnedError::NotPermitted(error.io_error)),
            _ => Err(PinnedError::Map(path.display().to_string(), error.into())),
        },
        Err(error) => Err(PinnedError::Map(path.display().to_string(), error)),
    }
}

/// Whether all maps are pinned.
#[must_use]
pub fn has_maps(pins: &PinDir) -> bool {
    MAPS.iter().all(|name| pins.path(name).exists())
}

impl Datapath {
    /// The state that is valid by the maps of this process, whatever became of their pins.
    ///
    /// # Errors
    ///
    /// [`PinnedError`].
    pub fn held_state(&self, pins: &PinDir) -> Result<State, PinnedError> {
        let dir = pins.dir().display().to_string();
        let store = Store::of(self.map("STATE"));
        let store = store.map_err(|error| PinnedError::Map(dir.clone(), error))?;
        let text = store.read(live_generation(&self.hot)).unwrap_or_default();
        Ok(State::parse(&text, &dir)?)
    }

    /// Pins the maps of this process where somebody else has removed their pins.
    ///
    /// # Errors
    ///
    /// [`PinnedError::Pin`], or the directory cannot be made.
    pub fn pin_again(&self, pins: &PinDir) -> Result<(), PinnedError> {
        pins.create()?;
        for name in MAPS {
            let path = pins.path(name);
            if !path.exists() {
                let pin = self.map(name).pin(&path);
                pin.map_err(|error| PinnedError::Pin(path.display().to_string(), error))?;
            }
        }
        Ok(())
    }

    fn store(&mut self) -> Result<Store<&mut MapData>, DatapathError> {
        let name = "STATE";
        Store::of_mut(self.map_mut(name)).map_err(map_error(name))
    }

    /// Writes the state of the generation that is not live.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn set_state(&mut self, generation: u32, state: &State) -> Result<(), DatapathError> {
        self.store()?
            .write(generation, state)
            .map_err(map_error("STATE"))
    }

    /// Writes down that targets are being checked.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn set_checked_at(&mut self, time: Timestamp) -> Result<(), DatapathError> {
        self.store()?
            .write(CHECKED, &time)
            .map_err(map_error("STATE"))
    }

    /// Writes the attachment of an interface.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn set_attachment(&mut self, attachment: &Attachment) -> Result<(), DatapathError> {
        self.store()?
            .write(INTERFACES | attachment.report.ifindex, attachment)
            .map_err(map_error("STATE"))
    }

    /// Writes down the switches of forwarding that were off before.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn set_forwarding(&mut self, saved: &Saved) -> Result<(), DatapathError> {
        self.store()?
            .write(FORWARDING, saved)
            .map_err(map_error("STATE"))
    }

    /// Removes the document of an interface.
    pub fn remove_attachment(&mut self, index: u32) {
        if let Ok(mut store) = self.store() {
            store.remove(INTERFACES | index);
        }
    }
}
