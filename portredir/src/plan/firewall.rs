//! The ports that a firewall on this host must allow.

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
        let ports = settings.rules.iter().flat_map(|rule| {
            let dst = Some(rule.ports).filter(|_| is_socket);
            // INPUT sees what is for this host alone.
            let own = rule.own_targets().filter(move |_| !is_socket);
            dst.into_iter().chain(own).flat_map(|ports| {
                rule.protocols
                    .each()
                    .iter()
                    .map(move |protocol| match protocol {
                        Protocol::Tcp => (ports, "tcp"),
                        Protocol::Udp => (ports, "udp"),
                    })
            })
        });
        Self {
            open: merged(ports)
                .into_iter()
                .map(|(ports, name)| format!("{ports}/{name}"))
                .collect(),
            why: if is_socket {
                "INPUT sees the port before redirection"
            } else {
                "INPUT sees the port after redirection"
            },
        }
    }
}

/// The ranges in the order of ports; those of one protocol that touch or overlap are one.
fn merged(ports: impl Iterator<Item = (Ports, &'static str)>) -> Vec<(Ports, &'static str)> {
    let mut sorted: Vec<_> = ports.collect();
    sorted.sort_by_key(|(ports, protocol)| (*protocol, ports.first));
    let mut merged: Vec<(Ports, &'static str)> = Vec::new();
    for (ports, protocol) in sorted {
        match merged.last_mut() {
            Some((before, of))
                if *of == protocol && ports.first <= before.last.saturating_add(1) =>
            {
                before.last = before.last.max(ports.last);
            }
            _ => merged.push((ports, protocol)),
        }
    }
    merged.sort_by_key(|(ports, _)| (ports.first, ports.last));
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(rules: &[&str]) -> Vec<String> {
        let rules = rules.iter().map(|rule| rule.parse().expect(rule)).collect();
        Firewall::of(&Settings {
            rules,
            ..Settings::default()
        })
        .open
    }

    #[test]
    fn neighbours_are_one_range() {
        for (rules, expected) in [
            (&["1:8081", "2:8080", "3:8082"][..], &["8080-8082/tcp"][..]),
            (&["1:8080", "2:8082"], &["8080/tcp", "8082/tcp"]),
            (
                &["1:8080/both", "2:8081/udp", "3:53/udp"],
                &["53/udp", "8080/tcp", "8080-8081/udp"],
            ),
            (
                &["1-10:101-110", "20:105", "11-20:111-120"],
                &["101-120/tcp"],
            ),
            (&["1:65535", "2:65534"], &["65534-65535/tcp"]),
            (&[], &[]),
        ] {
            assert_eq!(open(rules), expected, "{rules:?}");
        }
    }

    #[test]
    fn a_long_list_is_cut_for_people() {
        let rules: Vec<_> = (0..100)
            .map(|i| format!("{}:{}", i + 1, 1000 + 2 * i))
            .collect();
        let rules: Vec<_> = rules.iter().map(String::as_str).collect();
        let open = open(&rules);
        assert_eq!(open.len(), 100);
        let text = Firewall { open, why: "why" }.to_string();
        assert!(
            text.ends_with("1038/tcp and 80 more, which `plan --json` lists (why)"),
            "{text}"
        );
    }
}
