//! Settings that contradict themselves or the host.

use thiserror::Error;

use crate::config::engine::EngineChoice;
use crate::config::settings::Settings;
use crate::exit::ExitCode;
use crate::host::snapshot::Snapshot;
use crate::rule::{Protocols, Rule};

/// Why no plan is possible: the settings are wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UsageError {
    /// `--iface` or a rule names an interface that does not exist.
    #[error(
        "interface `{name}` does not exist (a glob such as `{name}*` may match later); existing \
         interfaces: {}", .known.join(", ")
    )]
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
    /// `--allow-loopback-target` is given without `--engine socket`.
    #[error(
        "--allow-loopback-target requires --engine socket; the other engines deliver packets to \
         the original destination address, on which such a server does not listen"
    )]
    LoopbackTarget,
}

impl UsageError {
    /// The exit code of a command that ends with this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        ExitCode::Usage
    }
}

impl Snapshot {
    /// Checks settings against themselves and against the interfaces that exist.
    ///
    /// # Errors
    ///
    /// [`UsageError`].
    pub fn check(&self, settings: &Settings) -> Result<(), UsageError> {
        let is_socket = settings.engine == EngineChoice::Socket;
        let has_udp = |rule: &&Rule| rule.protocols != Protocols::Tcp;
        if let Some(rule) = settings.rules.iter().find(has_udp).filter(|_| is_socket) {
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
