//! Checks settings against themselves.

use thiserror::Error;

use crate::config::engine::EngineChoice;
use crate::config::settings::Settings;
use crate::host::snapshot::Snapshot;
use crate::rule::{Protocols, Rule};

/// The reason why there can be no plan: the settings are wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UsageError {
    /// The engine `socket` cannot redirect UDP.
    #[error(
        "rule `{0}` includes UDP, but --engine socket redirects only TCP; use --engine auto, or \
         /tcp"
    )]
    SocketUdp(Rule),
    /// The engine `socket` cannot redirect to other targets than one port of this host.
    #[error(
        "rule `{0}` has a target with an address, or several targets, but --engine socket gives \
         connections to listeners on this host alone; use --engine auto or tc"
    )]
    SocketForward(Rule),
    /// The option `--allow-loopback-target` needs the engine `socket`.
    #[error(
        "--allow-loopback-target requires --engine socket; the other engines deliver packets to \
         the original destination address, on which such a server does not listen"
    )]
    LoopbackTarget,
}

impl Snapshot {
    /// Checks the settings against themselves.
    ///
    /// # Errors
    ///
    /// [`UsageError`].
    pub fn check(&self, settings: &Settings) -> Result<(), UsageError> {
        let is_socket = settings.engine == EngineChoice::Socket;
        let udp = |rule: &&Rule| rule.protocols != Protocols::Tcp;
        if let Some(rule) = settings.rules.iter().find(udp).filter(|_| is_socket) {
            return Err(UsageError::SocketUdp(rule.clone()));
        }
        let mut forward = settings
            .rules
            .iter()
            .filter(|rule| rule.forward().is_some());
        if let Some(rule) = forward.next().filter(|_| is_socket) {
            return Err(UsageError::SocketForward(rule.clone()));
        }
        if settings.allow_loopback_target && !is_socket {
            return Err(UsageError::LoopbackTarget);
        }
        Ok(())
    }
}
