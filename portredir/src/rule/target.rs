//! The targets of rules: one port of this host, or several targets, each with an address or
//! on this host.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use portredir_common::net::Port;

use super::duration;
use super::{Ports, Protocols};

/// Where a rule leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum To {
    /// One port of this host, or one for each destination port.
    Here(Ports),
    /// A target with an address, or several targets.
    Forward(Box<Forward>),
}

/// Targets that share the flows of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    /// The targets, in the order of the text: several, or one that has an address.
    pub targets: Vec<RuleTarget>,
    /// The health check of each target; none where targets count as up.
    pub check: Option<Check>,
    /// The flows that go to one target together.
    pub affinity: Affinity,
    /// Where flows go while every target is down; none where the rule rests then.
    pub otherwise: Option<Else>,
    /// The fate of the TCP connections of a target that goes down.
    pub when_down: WhenDown,
}

/// One of the targets of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleTarget {
    /// The address; none for this host, by the address that the client connected to.
    pub host: Option<IpAddr>,
    /// The ports: as many as destination ports, or one.
    pub ports: Ports,
    /// The share of new flows, compared with the weights of the other targets.
    pub weight: u16,
}

/// The health check of targets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Check {
    /// The question that a target has to answer.
    pub by: CheckBy,
    /// The time from one check to the next, in whole milliseconds.
    pub every: Duration,
    /// The time after which a check has failed, in whole milliseconds, at most `every`.
    pub timeout: Duration,
    /// The number of checks in a row that bring a target up.
    pub rise: u8,
    /// The number of failed checks in a row that bring a target down.
    pub fall: u8,
}

/// The question that a health check asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CheckBy {
    /// A TCP connection to a port; none for the first port of the target.
    Tcp(Option<Port>),
    /// An empty datagram to a port; none for the first port of the target. An answer that the
    /// port or the host cannot be reached is a failure, silence is good.
    Udp(Option<Port>),
    /// An HTTP request for a path to the first port of the target: 2xx and 3xx are good.
    Http(String),
}

/// The flows that go to one target together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Affinity {
    /// Each flow has a target of its own.
    #[default]
    Flow,
    /// All flows of one client address.
    Client,
}

/// Where flows go while every target is down.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Else {
    /// To another target, which has no weight.
    Target(RuleTarget),
    /// Nowhere: packets are dropped.
    Drop,
}

/// The fate of the TCP connections of a target that goes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WhenDown {
    /// The connections stay with the target.
    #[default]
    Keep,
    /// The connections are cut.
    Cut,
}

impl Forward {
    /// The targets, and that of `else` behind them.
    pub fn all_targets(&self) -> impl Iterator<Item = &RuleTarget> {
        let otherwise = match &self.otherwise {
            Some(Else::Target(target)) => Some(target),
            Some(Else::Drop) | None => None,
        };
        self.targets.iter().chain(otherwise)
    }
}

impl RuleTarget {
    /// The heaviest weight.
    pub const MOST_WEIGHT: u16 = 100;

    /// The text of the target of a rule with these destination ports, without its weight.
    #[must_use]
    pub fn text(&self, dst_ports: Ports) -> String {
        Spelled(self, dst_ports).to_string()
    }

    /// The target port of a destination port, for a rule with these destination ports.
    #[must_use]
    pub const fn port_of(&self, dst_ports: Ports, dst_port: Port) -> Option<Port> {
        if dst_ports.contains(dst_port) {
            Some(self.ports.at(dst_ports, dst_port))
        } else {
            None
        }
    }
}

impl Check {
    /// The time from one check to the next, unless a rule has another one.
    pub const EVERY: Duration = Duration::from_secs(2);
    /// The time after which a check has failed, unless a rule has another one.
    pub const TIMEOUT: Duration = Duration::from_secs(1);
    /// The number of good checks that bring a target up, unless a rule has another one.
    pub const RISE: u8 = 2;
    /// The number of failed checks that bring a target down, unless a rule has another one.
    pub const FALL: u8 = 3;

    /// A check with the usual times.
    #[must_use]
    pub const fn new(by: CheckBy) -> Self {
        Self {
            by,
            every: Self::EVERY,
            timeout: Self::TIMEOUT,
            rise: Self::RISE,
            fall: Self::FALL,
        }
    }

    /// The check of rules whose text has none: by TCP where there are several targets, so that
    /// another one can take over.
    #[must_use]
    pub const fn usual(targets: usize, protocols: Protocols) -> Option<Self> {
        match protocols {
            // A server for UDP seldom listens on TCP, too.
            Protocols::Udp => None,
            Protocols::Tcp | Protocols::Both if targets > 1 => Some(Self::new(CheckBy::Tcp(None))),
            Protocols::Tcp | Protocols::Both => None,
        }
    }

    /// The usual time after which a check has failed.
    pub(super) fn usual_timeout(every: Duration) -> Duration {
        Self::TIMEOUT.min(every)
    }
}

/// Writes `tcp`, `tcp:8081`, `udp` or `http:/healthz`.
impl fmt::Display for CheckBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(None) => f.write_str("tcp"),
            Self::Tcp(Some(port)) => write!(f, "tcp:{}", port.get()),
            Self::Udp(None) => f.write_str("udp"),
            Self::Udp(Some(port)) => write!(f, "udp:{}", port.get()),
            Self::Http(path) => write!(f, "http:{path}"),
        }
    }
}

/// The text of a target of a rule with these destination ports, without its weight.
pub(super) struct Spelled<'a>(pub(super) &'a RuleTarget, pub(super) Ports);

impl fmt::Display for Spelled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(target, dst_ports) = self;
        match target.host {
            None => return write!(f, "{}", target.ports),
            Some(IpAddr::V4(addr)) => write!(f, "{addr}")?,
            Some(IpAddr::V6(addr)) => write!(f, "[{addr}]")?,
        }
        if target.ports == *dst_ports {
            return Ok(());
        }
        write!(f, ":{}", target.ports)
    }
}

impl Forward {
    /// Writes the targets, with weights.
    pub(super) fn write_targets(&self, f: &mut impl fmt::Write, dst_ports: Ports) -> fmt::Result {
        for (i, target) in self.targets.iter().enumerate() {
            let gap = if i == 0 { "" } else { "," };
            write!(f, "{gap}{}", Spelled(target, dst_ports))?;
            if target.weight != 1 {
                write!(f, "={}", target.weight)?;
            }
        }
        Ok(())
    }

    /// Writes each option that differs from its default, with a space before it.
    pub(super) fn write_options(
        &self,
        f: &mut impl fmt::Write,
        dst_ports: Ports,
        protocols: Protocols,
    ) -> fmt::Result {
        let usual = Check::usual(self.targets.len(), protocols);
        match &self.check {
            None if usual.is_some() => f.write_str(" check none")?,
            None => {}
            Some(check) => check.write(f, usual.as_ref())?,
        }
        if self.affinity == Affinity::Client {
            f.write_str(" affinity client")?;
        }
        match &self.otherwise {
            Some(Else::Target(target)) => write!(f, " else {}", Spelled(target, dst_ports))?,
            Some(Else::Drop) => f.write_str(" else drop")?,
            None => {}
        }
        match self.when_down {
            WhenDown::Cut => f.write_str(" cut"),
            WhenDown::Keep => Ok(()),
        }
    }
}

impl Check {
    fn write(&self, f: &mut impl fmt::Write, usual: Option<&Self>) -> fmt::Result {
        if usual.is_none_or(|usual| usual.by != self.by) {
            write!(f, " check {}", self.by)?;
        }
        if self.every != Self::EVERY {
            write!(f, " every {}", duration::text(self.every))?;
        }
        if self.timeout != Self::usual_timeout(self.every) {
            write!(f, " timeout {}", duration::text(self.timeout))?;
        }
        if self.rise != Self::RISE {
            write!(f, " rise {}", self.rise)?;
        }
        if self.fall != Self::FALL {
            write!(f, " fall {}", self.fall)?;
        }
        Ok(())
    }
}
