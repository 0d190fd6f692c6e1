//! The ports that a firewall on this host must allow.

use std::collections::BTreeSet;

use portredir_common::net::Protocol;
use serde::Serialize;

use crate::config::engine::EngineChoice;
use crate::config::settings::Settings;
use crate::rule::Ports;

/// The ports that a firewall on this host must allow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Firewall {
    /// The ports with their protocols, as `8080/tcp`.
    pub open: Vec<String>,
    /// The reason for these ports.
    pub why: &'static str,
}

impl Firewall {
    /// The ports for these settings. The engines that rewrite packets do so before a
    /// firewall sees them, and a redirected local client connects to the target port; a
    /// socket lookup comes after the firewall.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let is_socket = settings.engine == EngineChoice::Socket;
        let ports: BTreeSet<_> = settings
            .rules
            .iter()
            .flat_map(|rule| {
                let ports = if is_socket { rule.ports } else { rule.target };
                let each = rule.protocols.each().iter();
                each.map(move |protocol| match protocol {
                    Protocol::Tcp => (ports.first, ports.last, "tcp"),
                    Protocol::Udp => (ports.first, ports.last, "udp"),
                })
            })
            .collect();
        Self {
            open: ports
                .iter()
                .map(|&(first, last, name)| format!("{}/{name}", Ports { first, last }))
                .collect(),
            why: if is_socket {
                "INPUT sees the port before redirection"
            } else {
                "INPUT sees the port after redirection"
            },
        }
    }
}
