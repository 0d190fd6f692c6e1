//! The redirect that is traced: its maps, its rules, and whether it still runs.

use super::error::ControllerError;
use super::status::not_running;
use crate::config::settings::Settings;
use crate::ipc::client::{self, Role};
use crate::loader::pinned::{self, Found};
use crate::loader::trace::{TraceError, Tracer};
use crate::rule::Rule;
use crate::ruleset::history::History;
use crate::state::State;
use crate::sys::bpffs::PinDir;

/// The redirect of this network namespace, while it is traced.
pub struct Source {
    /// The trace.
    pub tracer: Tracer,
    rules: Vec<(u16, Rule)>,
    holder: Holder,
    /// The interfaces whose programs are too old to be traced.
    pub silent: Vec<String>,
}

/// Where the maps are.
enum Holder {
    Pins(PinDir),
    /// A run in the foreground, by its process.
    Process(i32),
}

/// Begins to trace the redirect of this network namespace.
///
/// # Errors
///
/// [`ControllerError::NotRunning`], or the maps cannot be used.
pub fn source() -> Result<Source, ControllerError> {
    let pins = PinDir::current().map_err(ControllerError::netns)?;
    match pinned::find(&pins)? {
        Found::Live(state) if state.is_ending => Err(ControllerError::Ending),
        Found::Live(state) => {
            let tracer = Tracer::of_pins(&pins)?;
            let attachments = pinned::attachments(&pins);
            let silent = tracer.silent(&pins, &attachments);
            if !silent.is_empty() && silent.len() == attachments.len() {
                return Err(TraceError::Older.into());
            }
            Ok(Source {
                tracer,
                rules: state.rules(),
                holder: Holder::Pins(pins),
                silent,
            })
        }
        Found::Nothing | Found::Unfinished => foreground(),
    }
}

fn foreground() -> Result<Source, ControllerError> {
    let ask = |error| ControllerError::io("ask the process that redirects")(error);
    let answer = client::status().map_err(ask)?;
    let answer = answer.filter(|answer| answer.role == Some(Role::Foreground));
    let (Some(answer), Some(pid)) = (answer, client::pid().map_err(ask)?) else {
        return Err(not_running());
    };
    // The numbers that the process has given its rules, which never change there.
    let state = State::empty(Settings::default()).next(answer.settings, History::default());
    Ok(Source {
        tracer: Tracer::of_process(pid)?,
        rules: state.rules(),
        holder: Holder::Process(pid),
        silent: Vec::new(),
    })
}

impl Source {
    /// The rules that run, with their numbers.
    #[must_use]
    pub fn rules(&self) -> &[(u16, Rule)] {
        &self.rules
    }

    /// Keeps the trace on, and reads the rules again; returns whether the redirect still runs.
    ///
    /// # Errors
    ///
    /// The maps cannot be used.
    pub fn renew(&mut self) -> Result<bool, ControllerError> {
        match &self.holder {
            Holder::Process(pid) => {
                if client::pid().ok().flatten() != Some(*pid) {
                    return Ok(false);
                }
            }
            Holder::Pins(pins) => {
                if !self.tracer.is_pinned(pins) {
                    return Ok(false);
                }
                if let Ok(Found::Live(state)) = pinned::find(pins) {
                    self.rules = state.rules();
                }
            }
        }
        self.tracer.renew()?;
        Ok(true)
    }
}
