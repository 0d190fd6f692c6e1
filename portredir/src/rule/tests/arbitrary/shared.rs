//! Random targets with addresses, and rules with several of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use portredir_common::net::Port;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::rule::{
    Affinity, Check, CheckBy, Else, Forward, Ports, Protocols, RuleTarget, WhenDown,
};

/// The part of a rule that its targets have to fit.
pub(super) struct Listen {
    pub(super) addr: Option<IpAddr>,
    pub(super) ports: Ports,
    pub(super) protocols: Protocols,
    pub(super) is_v4: Option<bool>,
}

/// Targets that may not fit a rule.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    targets: Vec<AnyTarget>,
    check: Option<Option<Check>>,
    affinity: Affinity,
    otherwise: Option<Option<AnyTarget>>,
    when_down: WhenDown,
}

#[derive(Clone, Debug)]
struct AnyTarget {
    host: Option<IpAddr>,
    port: u16,
    kind: u8,
    weight: u16,
}

impl AnyTarget {
    /// A target that fits.
    fn fitting(&self, listen: &Listen) -> Option<RuleTarget> {
        let more = listen.ports.last - listen.ports.first;
        let is_odd = |host: IpAddr| {
            let is_version = listen.is_v4.is_none_or(|is_v4| is_v4 == host.is_ipv4());
            !is_version || listen.addr == Some(host)
        };
        let ports = match self.kind {
            0 => listen.ports,
            1 => Ports {
                first: self.port,
                last: self.port.checked_add(more)?,
            },
            _ => Ports::one(Port::new(self.port)),
        };
        (!self.host.is_some_and(is_odd)).then_some(RuleTarget {
            host: self.host,
            ports,
            weight: self.weight,
        })
    }
}

impl Shared {
    /// The targets of a rule, if they fit.
    pub(super) fn forward(self, listen: &Listen) -> Option<Forward> {
        let targets = self.targets.iter().map(|target| target.fitting(listen));
        let targets = targets.collect::<Option<Vec<_>>>()?;
        let ends = targets.iter().map(|target| (target.host, target.ports));
        let different: std::collections::HashSet<_> = ends.collect();
        let is_here = matches!(targets[..], [RuleTarget { host: None, .. }]);
        if is_here || different.len() != targets.len() {
            return None;
        }
        let otherwise = match self.otherwise {
            None => None,
            Some(None) => Some(Else::Drop),
            Some(Some(target)) => Some(Else::Target(RuleTarget {
                weight: 1,
                ..target.fitting(listen)?
            })),
        };
        let usual = Check::usual(targets.len(), listen.protocols);
        let check = self.check.unwrap_or(usual).filter(|check| match &check.by {
            CheckBy::Tcp(Some(_)) | CheckBy::Udp(Some(_)) => true,
            CheckBy::Tcp(None) | CheckBy::Http(_) => listen.protocols != Protocols::Udp,
            CheckBy::Udp(None) => listen.protocols != Protocols::Tcp,
        });
        Some(Forward {
            targets,
            check,
            affinity: self.affinity,
            otherwise,
            when_down: self.when_down,
        })
    }
}

/// Targets and options of every kind.
pub(super) fn shared() -> impl Strategy<Value = Shared> {
    let affinity = select(vec![Affinity::Flow, Affinity::Client]);
    let when_down = select(vec![WhenDown::Keep, WhenDown::Cut]);
    let targets = vec(target(), 1..5);
    let otherwise = option::of(option::of(target()));
    let check = option::of(option::of(check()));
    (targets, check, affinity, otherwise, when_down).prop_map(
        |(targets, check, affinity, otherwise, when_down)| Shared {
            targets,
            check,
            affinity,
            otherwise,
            when_down,
        },
    )
}

fn target() -> impl Strategy<Value = AnyTarget> {
    let v4 = any::<u32>().prop_map(|addr| IpAddr::from(Ipv4Addr::from(addr)));
    let v6 = any::<u128>().prop_map(|addr| IpAddr::from(Ipv6Addr::from(addr | 1 << 125)));
    let host = option::weighted(0.8, prop_oneof![v4, v6]).prop_filter("no host", |host| {
        host.is_none_or(|host| {
            let is_odd = match host {
                IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
                IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
            };
            !is_odd && !host.is_loopback() && !host.is_multicast()
        })
    });
    let weight = prop_oneof![2 => Just(1), 1 => 1..=RuleTarget::MOST_WEIGHT];
    (host, 1..=u16::MAX, 0..3_u8, weight).prop_map(|(host, port, kind, weight)| AnyTarget {
        host,
        port,
        kind,
        weight,
    })
}

fn check() -> impl Strategy<Value = Check> {
    let port = || option::of((1..=u16::MAX).prop_map(Port::new));
    let (tcp, udp) = (port().prop_map(CheckBy::Tcp), port().prop_map(CheckBy::Udp));
    let by = prop_oneof![tcp, udp, "/[a-z0-9?=&,%._-]{0,12}".prop_map(CheckBy::Http)];
    let every = prop_oneof![
        Just(Check::EVERY),
        (100..20_000_u64).prop_map(Duration::from_millis)
    ];
    let count = || prop_oneof![Just(Check::RISE), Just(Check::FALL), 1..=100_u8];
    (by, every, option::of(10..20_000_u64), count(), count()).prop_map(
        |(by, every, timeout, rise, fall)| Check {
            by,
            every,
            timeout: timeout
                .map_or(Check::TIMEOUT, Duration::from_millis)
                .min(every),
            rise,
            fall,
        },
    )
}
