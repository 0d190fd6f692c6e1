//! Options and rules, checked against each other and against the interfaces.

use thiserror::Error;

use crate::config::engine::EngineChoice;
use crate::config::settings::Settings;
use crate::host::snapshot::Snapshot;
use crate::rule::{Protocols, Rule};

/// Why there can be no plan: what was typed is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UsageError {
    /// `--iface` names nothing that exists.
    #[error("interface `{name}` does not exist (a glob such as `{name}*` may match later); \
             existing interfaces: {}", .known.join(", "))]
    UnknownInterface {
        /// The name that was given.
        name: String,
        /// The names of the existing interfaces.
        known: Vec<String>,
    },
    /// The engine `socket` cannot redirect UDP.
    #[error(
        "rule `{0}` includes UDP, but --engine socket redirects only TCP; use --engine auto, or \
         /tcp"
    )]
    SocketUdp(Rule),
    /// `--allow-loopback-target` without the engine it is for.
    #[error(
        "--allow-loopback-target requires --engine socket; the other engines deliver packets to \
         the original destination address, on which such a server does not listen"
    )]
    LoopbackTarget,
}

impl Snapshot {
    /// Checks what was typed against itself and against what exists.
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
        if settings.allow_loopback_target && !is_socket {
            return Err(UsageError::LoopbackTarget);
        }
        let known: Vec<_> = self.interfaces.values().map(|i| i.name.clone()).collect();
        let is_exact = |name: &&String| !name.contains(['*', '?', '[']);
        let in_rules = settings.rules.iter().flat_map(|rule| &rule.on);
        let mut names = settings.iface.names.iter().chain(in_rules.filter(is_exact));
        match names.find(|name| !known.contains(name)) {
            Some(name) => Err(UsageError::UnknownInterface {
                name: name.clone(),
                known,
            }),
            None => Ok(()),
        }
    }
}
