//! A server on another machine, which shows the effect of a network card and its driver.
//!
//! There `portredir bench serve` listens, and the machine's owner redirects ports to
//! it, each in another way. Nothing is changed here or there.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{bail, ensure};
use portredir_common::net::Port;

use crate::bench::load::request::Target;
use crate::bench::measure::{Entry, Role};
use crate::bench::traffic::Traffic;
use crate::cli::TARGET_PORT;

/// The ports of the server, and their redirectors.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The address of the server.
    pub addr: Ipv4Addr,
    /// The names and the ports that lead to the target.
    pub ports: Vec<(String, Port)>,
}

impl Remote {
    /// The participants: the target three times, and every port that leads to it. The
    /// first with a name that begins with `iptables` is the reference, and all with names
    /// that begin with `portredir` are ours.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |name: &str, port: Port, role| Entry {
            name: name.to_owned(),
            target: Target {
                addr: SocketAddrV4::new(self.addr, port.get()),
                link: None,
                place: None,
            },
            role,
            setting: (1, false),
        };
        let mut entries = vec![
            entry("direct", TARGET_PORT, Role::Direct),
            entry("direct 2", TARGET_PORT, Role::DirectAgain),
            entry("direct 3", TARGET_PORT, Role::DirectAgain),
        ];
        let mut has_reference = false;
        for (name, port) in &self.ports {
            let role = if name.starts_with("portredir") {
                Role::Ours
            } else if name.starts_with("iptables") && !has_reference {
                has_reference = true;
                Role::Reference
            } else {
                Role::Other
            };
            entries.push(entry(name, *port, role));
        }
        entries
    }

    /// Checks that all of the traffic can be measured from here.
    ///
    /// # Errors
    ///
    /// When some cannot; the error names the first.
    pub fn check(&self, traffic: impl Iterator<Item = Traffic>) -> anyhow::Result<()> {
        let mut is_any = false;
        for traffic in traffic {
            if matches!(traffic, Traffic::Udp | Traffic::UdpNew) {
                bail!(
                    "with --remote only rr, crr and bulk are measured: {} would show how fast this \
                     machine sends",
                    traffic.title()
                );
            }
            is_any = true;
        }
        ensure!(is_any, "with --remote only rr, crr and bulk are measured");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_who_is_who() {
        let ports = [
            ("portredir xdp", 80),
            ("iptables", 81),
            ("iptables-nft", 82),
            ("nginx", 83),
        ];
        let remote = Remote {
            addr: Ipv4Addr::LOCALHOST,
            ports: ports
                .map(|(name, port)| (name.to_owned(), Port::new(port)))
                .to_vec(),
        };
        let roles: Vec<_> = remote.entries().iter().map(|entry| entry.role).collect();
        use Role::{Direct, DirectAgain, Other, Ours, Reference};
        assert_eq!(roles[..3], [Direct, DirectAgain, DirectAgain]);
        assert_eq!(roles[3..], [Ours, Reference, Other, Other]);
        assert!(remote.check([Traffic::Rr].into_iter()).is_ok());
        assert!(
            remote
                .check([Traffic::Rr, Traffic::Udp].into_iter())
                .is_err()
        );
        assert!(remote.check([].into_iter()).is_err());
    }
}
