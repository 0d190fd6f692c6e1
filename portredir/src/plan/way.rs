//! The way to targets with an address, as far as the plan knows it: whether packets get
//! there, and whether replies come back by this host. Pure: facts go in, and nothing is
//! touched.

mod back;
pub mod checks;
mod firewall;
pub mod forward;
pub mod present;
pub mod report;
mod route;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use portredir_common::net::{LOOPBACK_IFINDEX, Port};
use thiserror::Error;

use super::finding::{Diagnosis, Finding, Severity};
use crate::config::engine::Engine;
use crate::host::forwarding::Forwarding;
use crate::host::way::{Device, Facts, Hop, Neighbour, Route, Way};
use crate::rule::Protocols;

/// The check of routes, links and neighbours of targets.
pub const ROUTE: &str = "target-route";
/// The check of the switches of forwarding.
pub const FORWARDING: &str = "target-forwarding";
/// The check of packet filters on the way to targets.
pub const FIREWALL: &str = "target-firewall";
/// The check of the way of replies.
pub const RETURN: &str = "target-return";
/// The check of the IP versions of clients and targets.
pub const FAMILY: &str = "target-family";
/// The check of local clients of targets.
pub const LOCAL: &str = "target-local-clients";

/// A target with an address, and the clients of its rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedWay {
    /// The canonical text of the rule.
    pub rule: String,
    /// The address of the target.
    pub target: IpAddr,
    /// The port of the target, the first one of a range.
    pub port: Port,
    /// The protocols.
    pub protocols: Protocols,
    /// The network of the clients; `None` for all.
    pub from: Option<IpNet>,
    /// The address that clients dial; `None` for any of this host.
    pub dialled: Option<IpAddr>,
    /// The indexes of the ingress interfaces that the rule has; `lo` counts for nothing.
    pub ingress: BTreeSet<u32>,
}

/// A request for the part of the plan on targets with an address.
#[derive(Clone, Copy, Debug)]
pub struct WayRequest<'a> {
    /// The targets of all rules.
    pub wanted: &'a [WantedWay],
    /// The engine that redirects local clients; `None` with `--no-local`.
    pub local: Option<Engine>,
    /// Whether forwarding may be switched on.
    pub may_enable: bool,
}

impl WayRequest<'_> {
    /// The addresses that [`Facts::read`] needs.
    #[must_use]
    pub fn targets(&self) -> BTreeSet<IpAddr> {
        self.wanted.iter().map(|wanted| wanted.target).collect()
    }

    /// The ingress interfaces that [`Facts::read`] needs.
    #[must_use]
    pub fn ingress(&self) -> BTreeSet<u32> {
        let wanted = self.wanted.iter();
        let all = wanted.flat_map(|wanted| wanted.ingress.iter().copied());
        all.filter(|index| *index != LOOPBACK_IFINDEX).collect()
    }
}

/// The part of the plan on targets with an address. `Display` is text for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// The targets, each once for each port.
    pub targets: Vec<PlannedTarget>,
    /// The switches that `up` has to set, and `down` to put back; none unless the request
    /// allows it.
    pub forwarding: Forwarding,
    /// The findings, the heaviest first, with all that was not evaluated.
    pub diagnosis: Diagnosis,
}

/// The way to one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTarget {
    /// The address.
    pub addr: IpAddr,
    /// The port.
    pub port: Port,
    /// The egress interface; `None` where there is no way.
    pub interface: Option<String>,
    /// The router.
    pub gateway: Option<IpAddr>,
    /// The address that this host sends from.
    pub source: Option<IpAddr>,
    /// The state of the first host on the way; `None` where there is no way.
    pub neighbour: Option<Neighbour>,
}

/// A way that is impossible, or that needs a permission.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what}: {why}; {fix}")]
pub struct WayError {
    /// The fact.
    pub what: String,
    /// The reason why the fact matters.
    pub why: String,
    /// The command that mends it.
    pub fix: String,
}

impl Ways {
    /// Plans the ways to all targets.
    #[must_use]
    pub fn plan(facts: &Facts, request: WayRequest<'_>) -> Self {
        let mut ways = Self::default();
        let mut planner = Planner {
            facts,
            request,
            diagnosis: Diagnosis::default(),
        };
        for wanted in request.wanted {
            let target = PlannedTarget::of(wanted, facts);
            if !ways.targets.contains(&target) {
                ways.targets.push(target);
            }
            planner.check_route(wanted);
            planner.check_family(wanted);
            planner.check_local(wanted);
            planner.check_return(wanted);
        }
        ways.forwarding = planner.check_forwarding();
        planner.check_firewall();
        ways.diagnosis = planner.finished();
        ways
    }

    /// Whether a redirect to these targets may begin.
    ///
    /// # Errors
    ///
    /// The first [`WayError`]: a target has no way, is an address of this host, or needs
    /// forwarding that may not be switched on.
    pub fn check(&self) -> Result<(), WayError> {
        let mut refusing = self.diagnosis.findings.iter().filter(|finding| {
            let is_check = [ROUTE, FORWARDING, FAMILY].contains(&finding.check);
            is_check && finding.severity == Severity::Error
        });
        refusing.next().map_or(Ok(()), |finding| {
            let Finding { what, why, fix, .. } = finding.clone();
            Err(WayError { what, why, fix })
        })
    }
}

impl PlannedTarget {
    fn of(wanted: &WantedWay, facts: &Facts) -> Self {
        let way = facts.ways.get(&wanted.target);
        let hop = way.and_then(Way::hop);
        let device = hop.and_then(|hop| facts.devices.get(&hop.index));
        Self {
            addr: wanted.target,
            port: wanted.port,
            interface: device.map(|device| device.name.clone()),
            gateway: hop.and_then(|hop| hop.gateway),
            source: hop.and_then(|hop| hop.source),
            neighbour: hop.and(way).map(|way| way.neighbour),
        }
    }
}

impl Way {
    /// The first step, where there is a way.
    const fn hop(&self) -> Option<&Hop> {
        match &self.route {
            Route::Out(hop) => Some(hop),
            _ => None,
        }
    }
}

impl WantedWay {
    /// The target as rules have it.
    fn end(&self) -> String {
        end(self.target, self.port)
    }
}

/// An address and a port as rules have them.
fn end(addr: IpAddr, port: Port) -> String {
    std::net::SocketAddr::new(addr, port.get()).to_string()
}

/// The findings on the way.
struct Planner<'a> {
    facts: &'a Facts,
    request: WayRequest<'a>,
    diagnosis: Diagnosis,
}

impl<'a> Planner<'a> {
    /// Adds a finding, once.
    fn find(&mut self, check: &'static str, severity: Severity, [what, why, fix]: [String; 3]) {
        let finding = Finding {
            severity,
            check,
            what,
            why,
            fix,
        };
        if !self.diagnosis.findings.contains(&finding) {
            self.diagnosis.findings.push(finding);
        }
    }

    /// Adds something that was not evaluated, once.
    fn leave_out(&mut self, check: &'static str, why: String) {
        let mut others = self.diagnosis.unchecked.iter();
        if !others.any(|other| other.why == why) {
            self.diagnosis.not_checked(check, why);
        }
    }

    /// The step and the egress interface of a target that has a way.
    fn out(&self, wanted: &WantedWay) -> Option<(&'a Hop, &'a Device)> {
        let hop = self.facts.ways.get(&wanted.target)?.hop()?;
        Some((hop, self.device(hop.index)?))
    }

    /// The interface in whose name packets of an interface come in.
    fn device(&self, index: u32) -> Option<&'a Device> {
        self.facts.devices.get(&index)
    }

    /// The ingress interfaces of a target: bridges, bonds and VRFs instead of their ports.
    fn ingress(&self, wanted: &WantedWay) -> BTreeMap<u32, &'a Device> {
        let indexes = wanted.ingress.iter();
        let indexes = indexes.filter(|index| **index != LOOPBACK_IFINDEX);
        let devices = indexes.filter_map(|index| self.device(*index));
        devices.map(|device| (device.index, device)).collect()
    }

    fn check_family(&mut self, wanted: &WantedWay) {
        let is_v4 = wanted.target.is_ipv4();
        let (own, other) = if is_v4 {
            ("IPv4", "IPv6")
        } else {
            ("IPv6", "IPv4")
        };
        let (end, rule) = (wanted.end(), &wanted.rule);
        let from = wanted.from.map(|net| net.addr());
        let named = [wanted.dialled, from].into_iter().flatten();
        let named: Vec<_> = named.map(|addr| addr.is_ipv4() == is_v4).collect();
        if named.contains(&false) {
            let what = format!("{end} is {own}, and rule `{rule}` has {other} clients");
            let why = "packets cannot change from one IP version to the other".to_owned();
            let fix = format!("name a target with an {other} address");
            self.find(FAMILY, Severity::Error, [what, why, fix]);
            return;
        }
        let mut all = self.request.wanted.iter();
        let has_other =
            all.any(|other| other.rule == wanted.rule && other.target.is_ipv4() != is_v4);
        if named.is_empty() && !has_other {
            let what = format!("rule `{rule}` serves {own} clients alone");
            let why = format!(
                "{end} is {own}, and packets cannot change from one IP version to the other; \
                 {other} clients get what they get without the rule{}",
                if is_v4 && self.request.local == Some(Engine::Cgroup) {
                    ". IPv6 sockets of this host that connect, and are not for IPv6 alone, are \
                     pointed at it as IPv4 ones"
                } else {
                    ""
                }
            );
            let fix = format!("add a target with an {other} address, if they matter");
            self.find(FAMILY, Severity::Note, [what, why, fix]);
        }
    }

    fn check_local(&mut self, wanted: &WantedWay) {
        let Some(engine) = self.request.local else {
            return;
        };
        if engine == Engine::Cgroup || self.out(wanted).is_none() {
            return;
        }
        let what = format!(
            "clients on this host do not get to {} by rule `{}`",
            wanted.end(),
            wanted.rule
        );
        let why = format!(
            "engine {} on lo leaves the destination address as it is; the hooks of a cgroup \
             change it",
            engine.name()
        );
        let fix = "portredir up --engine auto, with cgroup v2 mounted; or --no-local".to_owned();
        self.find(LOCAL, Severity::Warning, [what, why, fix]);
    }

    fn finished(self) -> Diagnosis {
        let mut diagnosis = self.diagnosis;
        diagnosis.findings.sort_by_key(|finding| finding.severity);
        if self.request.wanted.is_empty() {
            return diagnosis;
        }
        for (check, fact) in [
            (ROUTE, "every target has a route and a link that is up"),
            (FORWARDING, "packets to targets and replies are forwarded"),
            (FIREWALL, "no rule drops packets to targets"),
        ] {
            diagnosis.pass(check, fact);
        }
        diagnosis
    }
}
