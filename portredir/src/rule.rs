//! Rules as people write them: `80:8080`, `53:5353/udp`.
//!
//! The text is the same on the command line, in files and in what is printed:
//! `[ADDR:]PORT[-PORT]:PORT[-PORT][/tcp|/udp|/both] [from CIDR] [on IFACE,…]`.

mod error;
mod list;
pub(crate) mod parse;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use portredir_common::net::{Port, Protocol};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use self::error::RuleError;
pub use self::list::{Origin, Sourced, SourcedError, from_words};

/// The transport protocols of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocols {
    /// TCP alone; the default of a rule without a protocol, as with `docker -p`.
    #[default]
    Tcp,
    /// UDP alone.
    Udp,
    /// TCP and UDP.
    Both,
}

impl Protocols {
    /// Iterates over the single protocols.
    #[must_use]
    pub const fn each(self) -> &'static [Protocol] {
        match self {
            Self::Tcp => &[Protocol::Tcp],
            Self::Udp => &[Protocol::Udp],
            Self::Both => &[Protocol::Tcp, Protocol::Udp],
        }
    }
}

/// Ports from `first` to `last`, both included. The ends are numbers, because ranges are
/// compared and counted; a single port is a [`Port`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The lowest port.
    pub first: u16,
    /// The highest port, not below `first`.
    pub last: u16,
}

impl Ports {
    /// A range of one port.
    #[must_use]
    pub const fn one(port: Port) -> Self {
        Self {
            first: port.get(),
            last: port.get(),
        }
    }

    /// Whether a port is in the range.
    #[must_use]
    pub const fn contains(self, port: Port) -> bool {
        self.first <= port.get() && port.get() <= self.last
    }

    /// Iterates over the ports.
    pub fn each(self) -> impl Iterator<Item = Port> {
        (self.first..=self.last).map(Port::new)
    }
}

/// Writes `80` or `8000-8100`.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// One redirect: clients that connect to a port of `ports` reach the server that
/// listens on `target`.
///
/// `Display` gives the canonical text, which parses to the same rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The address of this host that clients connect to; `None` for all.
    pub addr: Option<IpAddr>,
    /// The destination ports. A range may include its only target port, which is then not
    /// redirected.
    pub ports: Ports,
    /// The target ports: as many as `ports`, or one.
    pub target: Ports,
    /// The protocols.
    pub protocols: Protocols,
    /// The clients that the rule is for; `None` for all.
    pub from: Option<IpNet>,
    /// Names and globs of the ingress interfaces that the rule is for, sorted; none for
    /// all.
    pub on: Vec<String>,
}

impl Rule {
    /// The target port for a destination port.
    #[must_use]
    pub const fn target_of(&self, dst_port: Port) -> Port {
        if self.target.first == self.target.last {
            Port::new(self.target.first)
        } else {
            Port::new(self.target.first + (dst_port.get() - self.ports.first))
        }
    }

    /// Whether the rule leads from a port to another one.
    #[must_use]
    pub fn redirects(&self, port: Port) -> bool {
        self.ports.contains(port) && self.target_of(port) != port
    }

    /// The destination ports that lead to another port: one range, or two around a target
    /// port that is among them.
    pub fn stretches(&self) -> impl Iterator<Item = Ports> + use<> {
        let Ports { first, last } = self.ports;
        let target = self.target.first;
        let is_range = self.target.first != self.target.last;
        let stretches = if is_range || !self.ports.contains(Port::new(target)) {
            [(first, Some(last)), (1, Some(0))]
        } else {
            [
                (first, target.checked_sub(1)),
                (
                    target.saturating_add(1),
                    Some(last).filter(|_| target < last),
                ),
            ]
        };
        stretches.into_iter().filter_map(|(first, last)| {
            let last = last.filter(|&last| first <= last)?;
            Some(Ports { first, last })
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr {
            Some(IpAddr::V4(addr)) => write!(f, "{addr}:")?,
            Some(IpAddr::V6(addr)) => write!(f, "[{addr}]:")?,
            None => {}
        }
        write!(f, "{}:{}", self.ports, self.target)?;
        f.write_str(match self.protocols {
            Protocols::Tcp => "",
            Protocols::Udp => "/udp",
            Protocols::Both => "/both",
        })?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if !self.on.is_empty() {
            write!(f, " on {}", self.on.join(","))?;
        }
        Ok(())
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}
