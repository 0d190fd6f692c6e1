//! Checks settings against themselves.

use thiserror::Error;

use crate::config::engine::{Engine, EngineChoice};
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
    /// The XDP engines cannot tell whether a packet has its checksum yet.
    #[error(
        "rule `{rule}` has a target with an address, or several targets, but with --engine \
         {engine} packets whose sender leaves the checksum to its device, as on veth and in \
         virtual machines, would leave this host with a wrong one; use --engine auto or tc"
    )]
    XdpForward {
        /// The rule.
        rule: Rule,
        /// The name of the engine.
        engine: &'static str,
    },
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
        let mut forward = settings.rules.iter();
        let forward = forward.find(|rule| rule.forward().is_some());
        if let Some(rule) = forward.cloned() {
            let by_xdp = |engine| UsageError::XdpForward {
                rule: rule.clone(),
                engine,
            };
            match settings.engine {
                EngineChoice::Auto | EngineChoice::Tc | EngineChoice::TcClsact => {}
                EngineChoice::Socket => return Err(UsageError::SocketForward(rule)),
                EngineChoice::Xdp => return Err(by_xdp(Engine::XdpNative.name())),
                EngineChoice::XdpGeneric => return Err(by_xdp(Engine::XdpGeneric.name())),
            }
        }
        if settings.allow_loopback_target && !is_socket {
            return Err(UsageError::LoopbackTarget);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::tests::rule;

    #[test]
    fn engines_without_forwarding_refuse_such_rules() {
        let check = |engine, text: &str| {
            let settings = Settings {
                engine,
                rules: vec![rule(text)],
                ..Settings::default()
            };
            Snapshot::default().check(&settings)
        };
        for text in ["80:10.0.0.5:8080", "80:8080,8081"] {
            for engine in [EngineChoice::Auto, EngineChoice::Tc, EngineChoice::TcClsact] {
                assert_eq!(check(engine, text), Ok(()));
            }
            let socket = check(EngineChoice::Socket, text);
            assert_eq!(socket, Err(UsageError::SocketForward(rule(text))));
            for (choice, engine) in [
                (EngineChoice::Xdp, "xdp"),
                (EngineChoice::XdpGeneric, "xdp-generic"),
            ] {
                let rule = rule(text);
                let refused = UsageError::XdpForward { rule, engine };
                assert_eq!(check(choice, text), Err(refused));
            }
        }
        for engine in [EngineChoice::Xdp, EngineChoice::Socket] {
            assert_eq!(check(engine, "80:8080"), Ok(()));
        }
    }
}
