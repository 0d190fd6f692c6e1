//! The facts about servers that a person should know.

use std::fmt;
use std::net::IpAddr;

use portredir_common::net::{Protocol, Version};
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

use crate::host::packet_filter::ruleset::name_of;
use crate::rule::{Ports, Rule};

/// A fact about the servers on some ports. `Display` is a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// The protocol.
    pub protocol: Protocol,
    /// The ports: target ports, or destination ports of [`Kind::Shadowed`].
    pub ports: Vec<Ports>,
    /// The fact.
    pub kind: Kind,
}

/// The kinds of facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No socket listens on the ports.
    Nobody {
        /// Whether the rule does nothing until one does.
        rests: bool,
    },
    /// Every socket is bound to an address or an interface that other hosts cannot reach.
    LoopbackOnly {
        /// The addresses.
        places: Vec<String>,
    },
    /// No socket that other hosts reach accepts clients of this IP version.
    NotBy(Version),
    /// No socket is bound to all addresses, and some address of this host has none.
    SomeAddresses {
        /// The addresses of the sockets.
        places: Vec<String>,
        /// The address of the rule, if the rule has one.
        wanted: Option<IpAddr>,
    },
    /// Every socket is bound to one interface.
    OneDevice(String),
    /// A server listens on destination ports, and the rule takes its clients.
    Shadowed {
        /// The processes.
        who: String,
        /// The target ports of these destination ports; none where the rule has several
        /// targets, or targets with addresses.
        targets: Option<Ports>,
    },
}

impl Kind {
    /// The name in JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Nobody { .. } => "nobody-listens",
            Self::LoopbackOnly { .. } => "loopback-only",
            Self::NotBy(Version::V4) => "ipv6-only",
            Self::NotBy(Version::V6) => "ipv4-only",
            Self::SomeAddresses { .. } => "some-addresses",
            Self::OneDevice(_) => "one-interface",
            Self::Shadowed { .. } => "shadowed-listener",
        }
    }
}

impl Finding {
    /// The ports with their protocol: the first few, if there are many ranges.
    #[must_use]
    pub fn ports(&self) -> String {
        const MOST: usize = 4;
        let shown: Vec<_> = self
            .ports
            .iter()
            .take(MOST)
            .map(|ports| format!("{ports}/{}", name_of(self.protocol)))
            .collect();
        let more = match self.ports.len().saturating_sub(MOST) {
            0 => String::new(),
            more => format!(" and {more} more ranges"),
        };
        shown.join(", ") + &more
    }

    /// The way out, as a command or as advice.
    #[must_use]
    pub fn fix(&self) -> String {
        let rule = &self.rule;
        let dst = DstPorts(rule);
        let first = self.ports.first().map_or(0, |ports| ports.first);
        match &self.kind {
            Kind::Nobody { .. } if rule.forward().is_some() => "start the server".to_owned(),
            Kind::Nobody { .. } => format!(
                "start the server; if it listens on another port: portredir replace '{rule}' \
                 '{dst}:PORT'"
            ),
            Kind::LoopbackOnly { .. }
                if self.protocol == Protocol::Tcp && rule.forward().is_none() =>
            {
                format!(
                    "let the server listen on 0.0.0.0 or [::]; or: portredir up --engine socket \
                 --allow-loopback-target '{rule}'"
                )
            }
            Kind::LoopbackOnly { .. } => "let the server listen on 0.0.0.0 or [::]".to_owned(),
            Kind::NotBy(version) if rule.forward().is_some() => match version {
                Version::V6 => format!("let the server listen on [::]:{first} too"),
                Version::V4 => format!("let the server listen on 0.0.0.0:{first} too"),
            },
            Kind::NotBy(Version::V6) => format!(
                "let the server listen on [::]:{first} too; or limit the rule to IPv4: portredir \
                 replace '{rule}' '{rule} from 0.0.0.0/0'"
            ),
            Kind::NotBy(Version::V4) => format!(
                "let the server listen on 0.0.0.0:{first} too; or limit the rule to IPv6: \
                 portredir replace '{rule}' '{rule} from ::/0'"
            ),
            Kind::SomeAddresses {
                wanted: Some(addr), ..
            } => {
                format!("let the server listen on {addr}, too")
            }
            Kind::SomeAddresses {
                places,
                wanted: None,
            } => format!(
                "let the server listen on 0.0.0.0 or [::]; or limit the rule: portredir replace \
                 '{rule}' '{}:{rule}'",
                places.first().map_or("ADDR", String::as_str)
            ),
            Kind::OneDevice(device) if rule.on.is_empty() => format!(
                "let the server listen on all interfaces; or limit the rule: portredir replace \
                 '{rule}' '{rule} on {device}'"
            ),
            Kind::OneDevice(_) => "let the server listen on all interfaces".to_owned(),
            Kind::Shadowed { .. } => {
                format!("stop that server; or give it back its clients: portredir rm '{rule}'")
            }
        }
    }
}

/// The beginning of a rule, before its target ports.
struct DstPorts<'a>(&'a Rule);

impl fmt::Display for DstPorts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.addr {
            Some(IpAddr::V4(addr)) => write!(f, "{addr}:")?,
            Some(IpAddr::V6(addr)) => write!(f, "[{addr}]:")?,
            None => {}
        }
        self.0.ports.fmt(f)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = self.ports();
        match &self.kind {
            Kind::Nobody { rests: false } => write!(f, "nobody listens on {ports}"),
            Kind::Nobody { rests: true } => write!(
                f,
                "nobody listens on {ports}; the rule rests until somebody does (--if-listening)"
            ),
            Kind::LoopbackOnly { places } => write!(
                f,
                "{ports} listens on {} only: other hosts are refused",
                places.join(" and ")
            ),
            Kind::NotBy(version) => {
                let (has, lacks) = match version {
                    Version::V4 => ("IPv6", "IPv4"),
                    Version::V6 => ("IPv4", "IPv6"),
                };
                write!(
                    f,
                    "{ports} listens on {has} only: {lacks} clients are refused"
                )
            }
            Kind::SomeAddresses { places, wanted } => {
                let places = places.join(" and ");
                match wanted {
                    Some(addr) => write!(
                        f,
                        "{ports} listens on {places} only: clients of {addr} are refused"
                    ),
                    None => write!(
                        f,
                        "{ports} listens on {places} only: clients of other addresses of this host \
                         are refused"
                    ),
                }
            }
            Kind::OneDevice(device) => write!(
                f,
                "{ports} listens on interface {device} only: clients by other interfaces are \
                 refused"
            ),
            Kind::Shadowed { who, targets } => {
                write!(f, "{who} also listens on {ports}: its new clients")?;
                if let Some(from) = self.rule.from {
                    write!(f, " from {from}")?;
                }
                if !self.rule.on.is_empty() {
                    write!(f, " on {}", self.rule.on.join(","))?;
                }
                match targets {
                    Some(targets) => write!(f, " go to {targets}"),
                    None => f.write_str(" go to the targets of the rule"),
                }
            }
        }
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let ports: Vec<_> = self.ports.iter().map(ToString::to_string).collect();
        let mut object = to.serialize_struct("Finding", 5)?;
        object.serialize_field("kind", self.kind.name())?;
        object.serialize_field("protocol", name_of(self.protocol))?;
        object.serialize_field("ports", &ports)?;
        object.serialize_field("what", &self.to_string())?;
        object.serialize_field("fix", &self.fix())?;
        object.end()
    }
}
