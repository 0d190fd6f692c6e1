//! The clients that a rule takes, compared with the clients that servers accept.

use std::collections::BTreeSet;
use std::net::IpAddr;

use glob::Pattern;
use portredir_common::net::{Port, Protocol, Version};

use super::finding::{Finding, Kind};
use super::listener::{Listener, Listeners, ports};
use crate::config::engine::EngineChoice;
use crate::config::settings::Settings;
use crate::host::snapshot::{LocalAddrs, Snapshot};
use crate::rule::{Ports, Rule};
use crate::ruleset::taken::TakenPorts;

/// The clients of a rule.
pub struct Scope<'a> {
    rule: &'a Rule,
    host: &'a LocalAddrs,
    /// Whether clients on other hosts are among them.
    has_remote: bool,
    /// Whether clients on this host are among them.
    has_local: bool,
    /// Whether servers on a loopback address get clients of other hosts.
    reaches_loopback: bool,
    /// Whether the rule does nothing while no server listens.
    rests: bool,
    /// Whether the redirect is for every interface.
    is_everywhere: bool,
    /// The ports on which no server has to listen.
    taken: &'a TakenPorts,
}

impl<'a> Scope<'a> {
    pub fn new(
        rule: &'a Rule,
        settings: &Settings,
        (host, taken): (&'a Snapshot, &'a TakenPorts),
    ) -> Self {
        let is_on_lo = rule.on.is_empty() || rule.on.iter().any(|name| matches(name, "lo"));
        let is_loopback = rule.addr.is_some_and(|addr| addr.is_loopback())
            || rule.from.is_some_and(|from| from.addr().is_loopback());
        let is_for_lo = !settings.no_local && settings.iface.selects("lo").is_some();
        let is_socket = settings.engine == EngineChoice::Socket;
        Self {
            rule,
            host: &host.local,
            has_remote: !is_loopback
                && (rule.on.is_empty() || rule.on.iter().any(|name| name != "lo")),
            has_local: is_for_lo && is_on_lo,
            reaches_loopback: is_socket && settings.allow_loopback_target,
            // A rule with several targets, or with an address, does not ask for listeners.
            rests: settings.if_listening && rule.here().is_some(),
            is_everywhere: rule.on.is_empty() && settings.iface.is_everything(),
            taken,
        }
    }

    /// The findings about the servers on the target ports.
    pub fn served(&self, listeners: &Listeners, protocol: Protocol) -> Vec<Finding> {
        let mut findings = Vec::<(Kind, Vec<Ports>)>::new();
        let mut add = |kind: Kind, new: Ports| {
            let same = findings.iter_mut().find(|(other, _)| *other == kind);
            match same {
                Some((_, ranges)) => join(ranges, new),
                None => findings.push((kind, vec![new])),
            }
        };
        let add_nobody = |add: &mut dyn FnMut(Kind, Ports), before: Ports| {
            let is_free = |port: &Port| !self.taken.contains(protocol, *port);
            for port in before.each().filter(is_free) {
                add(Kind::Nobody { rests: self.rests }, Ports::one(port));
            }
        };
        for target in self.rule.own_targets() {
            let Ports { first, last } = target;
            let mut next = u32::from(first);
            for (port, here) in listeners.within(protocol, target) {
                if let Some(before) = between(next, u32::from(port)) {
                    add_nobody(&mut add, before);
                }
                next = u32::from(port) + 1;
                if let Some(kind) = self.judge(here) {
                    add(kind, ports(port));
                }
            }
            if let Some(rest) = between(next, u32::from(last) + 1) {
                add_nobody(&mut add, rest);
            }
        }
        let finding = |(kind, ports)| Finding {
            rule: self.rule.clone(),
            protocol,
            ports,
            kind,
        };
        findings.into_iter().map(finding).collect()
    }

    /// The clients that the listeners of one target port refuse.
    fn judge(&self, here: &[Listener]) -> Option<Kind> {
        if !self.has_remote {
            return None;
        }
        let versions = [Version::V4, Version::V6].into_iter();
        let versions: Vec<_> = versions.filter(|version| self.takes(*version)).collect();
        let is_open = |listener: &&Listener| self.reaches_loopback || !listener.is_loopback();
        let open: Vec<_> = here.iter().filter(is_open).collect();
        if open.is_empty() {
            let places = here.iter().map(Listener::place).collect();
            return (!versions.is_empty()).then_some(Kind::LoopbackOnly { places });
        }
        for version in &versions {
            if !open.iter().any(|listener| listener.accepts(*version)) {
                return Some(Kind::NotBy(*version));
            }
        }
        let devices: Vec<_> = open.iter().filter_map(|l| l.device.as_deref()).collect();
        if let Some(device) = devices.first().filter(|_| devices.len() == open.len()) {
            let is_meant = self.rule.on.iter().any(|name| name == device);
            let is_one = devices.iter().all(|other| other == device);
            return (is_one && !is_meant).then(|| Kind::OneDevice((*device).to_owned()));
        }
        let mut missed = versions.iter().flat_map(|version| self.addrs(*version));
        let has = |addr: &IpAddr| {
            open.iter().any(|listener| {
                let version = version_of(*addr);
                let is_any = listener.addr.is_unspecified() || listener.is_loopback();
                listener.accepts(version) && (is_any || listener.addr == *addr)
            })
        };
        missed.any(|addr| !has(&addr)).then(|| Kind::SomeAddresses {
            places: open.iter().map(|listener| listener.place()).collect(),
            wanted: self.rule.addr,
        })
    }

    /// Whether the rule takes clients of other hosts with this IP version, and this host
    /// has an address for them.
    fn takes(&self, version: Version) -> bool {
        let is_version = |addr: IpAddr| version_of(addr) == version;
        self.rule.addr.is_none_or(is_version)
            && self.rule.from.is_none_or(|from| is_version(from.addr()))
            && reachable(self.host).any(is_version)
    }

    /// The addresses that clients of the rule connect to, as far as each needs a server.
    fn addrs(&self, version: Version) -> Vec<IpAddr> {
        match self.rule.addr {
            Some(addr) => vec![addr],
            // Programs on a few interfaces take the clients of a few addresses.
            None if !self.is_everywhere => Vec::new(),
            None => reachable(self.host)
                .filter(|addr| version_of(*addr) == version)
                .collect(),
        }
    }

    /// The servers on destination ports that are no target ports: the rule takes their
    /// clients.
    pub fn shadowed(
        &self,
        listeners: &Listeners,
        protocol: Protocol,
        targets: &[bool],
    ) -> Vec<Finding> {
        let mut findings = Vec::<Finding>::new();
        for stretch in self.rule.stretches() {
            for (port, here) in listeners.within(protocol, stretch) {
                let target = self.rule.target_of(Port::new(port)).map(Port::get);
                let is_served = || {
                    let mut servers = target.into_iter().map(ports);
                    servers.any(|ports| listeners.within(protocol, ports).next().is_some())
                };
                let is_taken =
                    || target.is_some_and(|port| self.taken.contains(protocol, Port::new(port)));
                let rests = || self.rests && !is_served() && !is_taken();
                if targets[usize::from(port)] || rests() {
                    continue;
                }
                let shadowed = here.iter().filter(|listener| self.overlaps(listener));
                let whos: BTreeSet<_> = shadowed.map(Listener::who).collect();
                for who in whos {
                    self.add_shadowed(&mut findings, protocol, (port, target, who));
                }
            }
        }
        findings
    }

    /// Adds a port to the finding about the same process on the port before, or a finding.
    fn add_shadowed(
        &self,
        findings: &mut Vec<Finding>,
        protocol: Protocol,
        (port, target, who): (u16, Option<u16>, String),
    ) {
        for finding in findings.iter_mut() {
            if let (
                Kind::Shadowed {
                    who: other,
                    targets,
                },
                [range],
            ) = (&mut finding.kind, finding.ports.as_mut_slice())
                && *other == who
                && range.last.checked_add(1) == Some(port)
            {
                range.last = port;
                if let (Some(targets), Some(target)) = (targets, target) {
                    targets.last = target;
                }
                return;
            }
        }
        findings.push(Finding {
            rule: self.rule.clone(),
            protocol,
            ports: vec![ports(port)],
            kind: Kind::Shadowed {
                who,
                targets: target.map(ports),
            },
        });
    }

    /// Whether a listener on a destination port has clients that the rule takes.
    fn overlaps(&self, listener: &Listener) -> bool {
        let has_clients = if listener.is_loopback() {
            self.has_local
        } else {
            self.has_remote || self.has_local
        };
        let is_same = |addr: IpAddr| {
            let is_any = listener.addr.is_unspecified();
            listener.accepts(version_of(addr)) && (is_any || listener.addr == addr)
        };
        let from = self.rule.from.map(|from| from.addr());
        has_clients
            && self.rule.addr.is_none_or(is_same)
            && from.is_none_or(|from| listener.accepts(version_of(from)))
    }
}

/// The ports from `first` to before `end`, if there are any.
fn between(first: u32, end: u32) -> Option<Ports> {
    (first < end).then(|| Ports {
        first: u16::try_from(first).unwrap_or(u16::MAX),
        last: u16::try_from(end - 1).unwrap_or(u16::MAX),
    })
}

/// Adds ports, which come in order, to ranges.
fn join(ranges: &mut Vec<Ports>, new: Ports) {
    match ranges.last_mut() {
        Some(last) if last.last.checked_add(1) == Some(new.first) => last.last = new.last,
        _ => ranges.push(new),
    }
}

const fn version_of(addr: IpAddr) -> Version {
    match addr {
        IpAddr::V4(_) => Version::V4,
        IpAddr::V6(_) => Version::V6,
    }
}

/// The addresses by which other hosts reach this one. A link-local address needs a scope,
/// and hardly any client uses one.
fn reachable(host: &LocalAddrs) -> impl Iterator<Item = IpAddr> {
    let addrs = host.addrs.keys().map(|octets| ip(*octets));
    let networks = host.networks.iter().map(|network| ip(network.addr));
    addrs.chain(networks).filter(|addr| match addr {
        IpAddr::V4(addr) => !addr.is_loopback() && !addr.is_link_local(),
        IpAddr::V6(addr) => !addr.is_loopback() && !addr.is_unicast_link_local(),
    })
}

fn ip(octets: [u8; 16]) -> IpAddr {
    IpAddr::from(octets).to_canonical()
}

/// Whether a name or glob of a rule matches an interface.
fn matches(name: &str, interface: &str) -> bool {
    Pattern::new(name).is_ok_and(|glob| glob.matches(interface))
}
