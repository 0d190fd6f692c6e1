//! The variants: ways to be redirected, each in a network namespace of its own, with its
//! rules and programs.

pub mod rules;

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::Command;

use clap::ValueEnum;
use portredir_common::net::Port;

use crate::bench::program::{find, nginx_module};
use crate::bench::traffic::Protocol;
use crate::cli::{Opponent, TARGET_PORT, Topology};
use crate::config::engine::EngineChoice;
use crate::rule::Protocols;

/// The destination port of clients.
pub const PUBLIC_PORT: Port = Port::new(80);
/// A port that no rule is about.
pub const OTHER_PORT: Port = Port::new(81);

/// The addresses that a client can dial and that rules name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The address of the host that redirects.
    pub host: Ipv4Addr,
    /// The address of the other host, where the server is in [`Topology::Forward`] and
    /// [`Topology::Local`].
    pub behind: Ipv4Addr,
}

impl Opponent {
    /// All opponents.
    pub const ALL: [Self; 9] = [
        Self::IptablesLegacy,
        Self::IptablesNft,
        Self::NftMap,
        Self::NftStateless,
        Self::NftFlowtable,
        Self::Ipvs,
        Self::Nginx,
        Self::Haproxy,
        Self::Socat,
    ];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The program that is run.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::None => "",
            Self::IptablesLegacy => "iptables-legacy-restore",
            Self::IptablesNft => "iptables-nft-restore",
            Self::NftMap | Self::NftStateless | Self::NftFlowtable => "nft",
            Self::Ipvs => "ipvsadm",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Socat => "socat",
        }
    }

    /// The version that the program reports, or the reason why it cannot be compared.
    ///
    /// # Errors
    ///
    /// The reason, in words.
    pub fn version(self) -> Result<String, String> {
        let program = self.program();
        let path = find(program).ok_or_else(|| format!("{program} is not installed"))?;
        let argument = match self {
            Self::Nginx | Self::Haproxy => "-v",
            Self::Socat => "-V",
            _ => "--version",
        };
        let output = Command::new(path).arg(argument).output();
        let output = output.map_err(|error| format!("{program}: {error}"))?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let is_version = |line: &&str| line.contains(|c: char| c.is_ascii_digit());
        let mut lines = text.lines().map(str::trim).filter(is_version);
        // The first line of socat names its authors.
        let line = match self {
            Self::Socat => text.lines().find(|line| line.starts_with("socat version")),
            _ => lines.next(),
        };
        let line = line.unwrap_or_default().to_owned();
        if self == Self::Nginx && nginx_module().is_none() {
            return Err(format!("{line} has no stream module"));
        }
        Ok(line)
    }

    /// Whether the opponent redirects UDP here.
    #[must_use]
    pub const fn has_udp(self) -> bool {
        !matches!(self, Self::Nginx | Self::Haproxy | Self::Socat)
    }

    /// Whether the opponent can redirect there.
    #[must_use]
    pub const fn fits(self, topology: Topology) -> bool {
        match self {
            Self::NftFlowtable | Self::Ipvs => matches!(topology, Topology::Forward),
            Self::NftStateless => matches!(topology, Topology::Host),
            _ => true,
        }
    }

    /// Whether the opponent can have more rules than one.
    #[must_use]
    pub const fn has_rules(self) -> bool {
        matches!(
            self,
            Self::IptablesLegacy | Self::IptablesNft | Self::NftMap
        )
    }

    /// Whether the opponent is a program that every byte goes through.
    #[must_use]
    pub const fn is_proxy(self) -> bool {
        !self.has_udp()
    }
}

/// A redirector, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// No redirect: clients connect to the target port.
    Direct,
    /// No redirect once more, to see which differences mean nothing; from 2 on.
    DirectAgain(u8),
    /// portredir.
    Ours(EngineChoice),
    /// Another redirector.
    Against(Opponent),
}

/// A way to be redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The redirector.
    pub subject: Subject,
    /// The number of rules.
    pub rules: u16,
    /// The protocol of the other rules; `None` for both.
    pub fillers: Option<Protocol>,
    /// Whether connections are tracked even if the redirector does not need it.
    pub has_conntrack: bool,
    /// The place of client and server.
    pub topology: Topology,
}

impl Variant {
    /// A variant with one rule.
    #[must_use]
    pub const fn of(subject: Subject) -> Self {
        Self {
            subject,
            rules: 1,
            fillers: None,
            has_conntrack: false,
            topology: Topology::Host,
        }
    }

    /// A name in reports, and on the command line where it is an opponent's.
    #[must_use]
    pub fn name(&self) -> String {
        let mut name = match self.subject {
            Subject::Direct => self.plain().to_owned(),
            Subject::DirectAgain(number) => format!("{} {number}", self.plain()),
            Subject::Ours(engine) => format!("portredir {}", engine_name(engine)),
            Subject::Against(opponent) => opponent.name(),
        };
        if self.rules > 1 {
            let _ = write!(name, ", {} rules", self.rules);
        }
        if self.has_conntrack {
            name += ", conntrack";
        }
        name
    }

    /// The name of the way without a redirect.
    const fn plain(&self) -> &'static str {
        match self.topology {
            Topology::Host | Topology::Local => "direct",
            Topology::Forward => "route",
        }
    }

    /// The address that clients dial.
    #[must_use]
    pub const fn dialled(&self, ends: Ends) -> Ipv4Addr {
        match (self.subject, self.topology) {
            (Subject::Direct | Subject::DirectAgain(_), Topology::Forward | Topology::Local) => {
                ends.behind
            }
            _ => ends.host,
        }
    }

    /// The destination port of clients.
    #[must_use]
    pub const fn dst_port(&self) -> Port {
        match self.subject {
            Subject::Direct | Subject::DirectAgain(_) => TARGET_PORT,
            Subject::Ours(_) | Subject::Against(_) => PUBLIC_PORT,
        }
    }

    /// Whether datagrams are redirected too.
    #[must_use]
    pub fn has_udp(&self) -> bool {
        if self.topology == Topology::Local {
            return false;
        }
        match self.subject {
            Subject::Direct | Subject::DirectAgain(_) => true,
            Subject::Ours(engine) => engine != EngineChoice::Socket,
            Subject::Against(opponent) => opponent.has_udp(),
        }
    }

    /// The protocols that are redirected.
    #[must_use]
    pub fn protocols(&self) -> Protocols {
        if self.has_udp() {
            Protocols::Both
        } else {
            Protocols::Tcp
        }
    }

    /// Whether the variant tracks connections, so that its table fills.
    #[must_use]
    pub fn tracks(&self) -> bool {
        use Opponent::{IptablesLegacy, IptablesNft, NftFlowtable, NftMap};
        self.has_conntrack
            || matches!(
                self.subject,
                Subject::Against(IptablesLegacy | IptablesNft | NftMap | NftFlowtable)
            )
    }
}

/// The name of the engine on the command line.
#[must_use]
pub fn engine_name(engine: EngineChoice) -> String {
    let value = engine.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_differs() {
        let variant = Variant {
            has_conntrack: true,
            rules: 100,
            ..Variant::of(Subject::Ours(EngineChoice::XdpGeneric))
        };
        assert_eq!(
            variant.name(),
            "portredir xdp-generic, 100 rules, conntrack"
        );
        assert_eq!(Variant::of(Subject::DirectAgain(2)).name(), "direct 2");
        assert_eq!(Opponent::NftStateless.name(), "nft-stateless");
    }
}
