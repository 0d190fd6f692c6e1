//! What a redirect answers when it is asked.

use super::error::ControllerError;
use super::{Controller, Logging, Parts};
use crate::host::netlink::Netlink;
use crate::ipc::client::{self, Answer, Reply, Request, Role, Who};
use crate::loader::chain;
use crate::loader::pinned::{self, Found};
use crate::sys::bpffs::PinDir;
use crate::sys::netns::netns_cookie;

impl Controller {
    /// The answer of this process to a request.
    #[must_use]
    pub fn reply(&self, role: Role, request: Request) -> Reply {
        match request {
            Request::Status => self.answer(Some(role)).map_or_else(
                |error| Reply::Refused(chain(&error)),
                |answer| Reply::Answer(Box::new(answer)),
            ),
            _ => Reply::Done(Who::this(role)),
        }
    }

    fn answer(&self, role: Option<Role>) -> Result<Answer, ControllerError> {
        Ok(Answer {
            role,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: self.state.settings.clone(),
            confirm_within: self.state.confirm_within().map(|left| left.as_secs()),
            report: self.report()?,
        })
    }
}

/// Reads what runs: from the process that answers, else from the pins.
///
/// # Errors
///
/// [`ControllerError::NotRunning`], [`ControllerError::Ending`], or this user may
/// not read the pins.
pub fn read() -> Result<Answer, ControllerError> {
    match client::status() {
        Ok(Some(answer)) => return Ok(answer),
        Ok(None) => {}
        // Root can still read the pins.
        Err(error) => log::debug!("{error}"),
    }
    let pins = PinDir::new(netns_cookie().map_err(ControllerError::io(
        "read the cookie of the network namespace",
    ))?);
    match pinned::find(&pins)? {
        Found::Live(state) if state.is_ending => Err(ControllerError::Ending),
        Found::Live(state) => {
            let controller = Controller::open(Parts {
                settings: state.settings.clone(),
                state: *state,
                netlink: Netlink::open()?,
                pins: Some(pins),
                logging: Logging::Off,
            })?;
            controller.answer(None)
        }
        Found::Nothing | Found::Unfinished => Err(ControllerError::NotRunning),
    }
}
