//! Rules as people write them: `80:8080`, `53:5353/udp`, `80:10.0.0.5:8080`.
//!
//! The text is the same on the command line, in files and in what is printed:
//! `[ADDR:]PORT[-PORT]:TARGET[,TARGET…][/tcp|/udp|/both] [from CIDR] [on IFACE,…] [OPTION…]`,
//! where a target is `PORT[-PORT]` or `HOST[:PORT[-PORT]]`, each with `[=WEIGHT]`. A label may
//! stand at the end: `name NAME` and `# COMMENT`.

pub mod duration;
mod error;
mod label;
mod list;
pub mod object;
pub(crate) mod parse;
pub mod target;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use ipnet::IpNet;
use portredir_common::net::{Port, Protocol};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use self::error::RuleError;
pub use self::label::{Comment, Label, LabelError, Labelled, Labels, Name};
pub use self::list::{Meant, Origin, Sourced, SourcedError, from_words, names_from_words};
pub use self::target::{Affinity, Check, CheckBy, Else, Forward, RuleTarget, To, WhenDown};

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

    /// The number of ports, from 1 to 65 536.
    #[must_use]
    pub const fn count(self) -> u32 {
        (self.last - self.first) as u32 + 1
    }

    /// Whether the range is a single port.
    #[must_use]
    pub const fn is_one(self) -> bool {
        self.first == self.last
    }

    /// Iterates over the ports.
    pub fn each(self) -> impl Iterator<Item = Port> {
        (self.first..=self.last).map(Port::new)
    }

    /// The target port among these for one of the destination ports.
    #[must_use]
    pub const fn at(self, dst_ports: Self, dst_port: Port) -> Port {
        if self.is_one() {
            Port::new(self.first)
        } else {
            Port::new(self.first + (dst_port.get() - dst_ports.first))
        }
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

/// One redirect: clients that connect to a port of `ports` reach a target.
///
/// `Display` gives the canonical text, which parses to the same rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The address of this host that clients connect to; `None` for all.
    pub addr: Option<IpAddr>,
    /// The destination ports. A range may include its only target port, which is then not
    /// redirected.
    pub ports: Ports,
    /// The targets.
    pub to: To,
    /// The protocols.
    pub protocols: Protocols,
    /// The clients that the rule is for; `None` for all.
    pub from: Option<IpNet>,
    /// Names and globs of the ingress interfaces that the rule is for, sorted; none for
    /// all.
    pub on: Vec<String>,
}

impl Rule {
    /// The target ports of a rule that leads to one port of this host, or to one for each
    /// destination port; `None` for a rule with other targets.
    #[must_use]
    pub const fn here(&self) -> Option<Ports> {
        match self.to {
            To::Here(ports) => Some(ports),
            To::Forward(_) => None,
        }
    }

    /// The targets of a rule that leads to a target with an address, or to several ones.
    #[must_use]
    pub const fn forward(&self) -> Option<&Forward> {
        match &self.to {
            To::Forward(forward) => Some(forward),
            To::Here(_) => None,
        }
    }

    /// All targets, each with its weight.
    #[must_use]
    pub fn targets(&self) -> Vec<RuleTarget> {
        match &self.to {
            To::Here(ports) => vec![RuleTarget {
                host: None,
                ports: *ports,
                weight: 1,
            }],
            To::Forward(forward) => forward.targets.clone(),
        }
    }

    /// The target ports on this host, also those beside targets with an address, and that of
    /// `else`.
    pub fn own_targets(&self) -> impl Iterator<Item = Ports> {
        let others = self.forward().into_iter().flat_map(Forward::all_targets);
        let others = others.filter(|target| target.host.is_none());
        self.here()
            .into_iter()
            .chain(others.map(|target| target.ports))
    }

    /// Whether a port is a target port on this host.
    #[must_use]
    pub fn is_own_target(&self, port: Port) -> bool {
        self.own_targets().any(|ports| ports.contains(port))
    }

    /// The target port on this host for a destination port, where the rule has no other
    /// targets.
    #[must_use]
    pub fn target_of(&self, dst_port: Port) -> Option<Port> {
        let target = self.here().filter(|_| self.ports.contains(dst_port))?;
        Some(target.at(self.ports, dst_port))
    }

    /// Whether the rule leads from a port to another one, or to other targets.
    #[must_use]
    pub fn redirects(&self, port: Port) -> bool {
        self.ports.contains(port) && self.target_of(port) != Some(port)
    }

    /// The destination ports that lead elsewhere: one range, or two around a target port of
    /// this host that is among them.
    pub fn stretches(&self) -> impl Iterator<Item = Ports> + use<> {
        let Ports { first, last } = self.ports;
        let is_among =
            |target: &Ports| target.is_one() && self.ports.contains(Port::new(target.first));
        let stretches = match self.here().filter(is_among) {
            None => [(first, Some(last)), (1, Some(0))],
            Some(Ports { first: target, .. }) => [
                (first, target.checked_sub(1)),
                (
                    target.saturating_add(1),
                    Some(last).filter(|_| target < last),
                ),
            ],
        };
        stretches.into_iter().filter_map(|(first, last)| {
            let last = last.filter(|&last| first <= last)?;
            Some(Ports { first, last })
        })
    }

    /// The text of the part that says which packets the rule is for: rules that differ in
    /// their targets alone have equal ones.
    #[must_use]
    pub fn listen_key(&self) -> String {
        let mut text = String::new();
        self.write_addr(&mut text)
            .and_then(|()| write!(text, "{}", self.ports))
            .and_then(|()| self.write_conditions(&mut text))
            .expect("a string takes all");
        text
    }

    fn write_addr(&self, f: &mut impl fmt::Write) -> fmt::Result {
        match self.addr {
            Some(IpAddr::V4(addr)) => write!(f, "{addr}:"),
            Some(IpAddr::V6(addr)) => write!(f, "[{addr}]:"),
            None => Ok(()),
        }
    }

    /// Writes the protocols and the conditions.
    fn write_conditions(&self, f: &mut impl fmt::Write) -> fmt::Result {
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

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_addr(f)?;
        write!(f, "{}:", self.ports)?;
        match &self.to {
            To::Here(target) => write!(f, "{target}")?,
            To::Forward(forward) => forward.write_targets(f, self.ports)?,
        }
        self.write_conditions(f)?;
        match &self.to {
            To::Here(_) => Ok(()),
            To::Forward(forward) => forward.write_options(f, self.ports, self.protocols),
        }
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
