//! The way from this host to an address: route, neighbour, and the interfaces that have to
//! forward. Nothing is sent and nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourMessage, NeighbourState as State,
};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteType, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use portredir_common::net::LOOPBACK_IFINDEX;
use serde::{Deserialize, Serialize};

use super::forwarding::{has_force_forwarding, setting};
use super::packet_filter::Rulesets;
use super::routes;
use super::snapshot::Snapshot;
use crate::sys::netlink::{NetlinkError, ask};

/// The way to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The kernel's answer to the question for a route.
    pub route: Route,
    /// The state of the first host on the way.
    pub neighbour: Neighbour,
}

/// The kernel's answer to the question for a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Packets leave this host.
    Out(Hop),
    /// The address is one of this host.
    Local,
    /// Packets go nowhere.
    None(NoRoute),
    /// The kernel gives another answer.
    Unknown(String),
}

/// The first step of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The egress interface.
    pub index: u32,
    /// The router; `None` where the address is on the link.
    pub gateway: Option<IpAddr>,
    /// The address that this host sends from.
    pub source: Option<IpAddr>,
    /// The network on the link that the address is in.
    pub on_link: Option<IpNet>,
}

/// The reason why packets to an address go nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No route matches.
    Missing,
    /// A route says so, of type `unreachable`, `prohibit` or `blackhole`.
    Refusing(&'static str),
    /// The address is of many hosts: broadcast or multicast.
    Many,
    /// The address means another host on each link.
    LinkLocal,
}

/// The knowledge of the kernel about the first host on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Neighbour {
    /// The link has two ends, so nobody is asked for.
    NotNeeded,
    /// The host has answered.
    Reachable,
    /// The host has answered, some time ago.
    Stale,
    /// The host is being asked for.
    Incomplete,
    /// The host was asked for and does not answer.
    Failed,
    /// Nobody has asked for the host lately.
    Unknown,
}

impl Neighbour {
    /// The name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotNeeded => "not-needed",
            Self::Reachable => "reachable",
            Self::Stale => "stale",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// An interface by which packets come in or leave: a bridge, a bond or a VRF instead of its
/// ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The index.
    pub index: u32,
    /// The name.
    pub name: String,
    /// The kind of a virtual device.
    pub kind: Option<String>,
    /// Whether the interface is administratively up.
    pub is_up: bool,
    /// Whether the other end of the link is up.
    pub has_carrier: bool,
    /// The number of ports of a bridge, a bond or a VRF.
    pub ports: usize,
    /// Whether netfilter sees what a bridge passes from port to port.
    pub is_tracked_bridge: bool,
    /// Whether IPv4 packets that come in here are forwarded.
    pub forwards_v4: bool,
    /// Whether IPv6 packets that come in here are forwarded.
    pub forwards_v6: bool,
    /// The filter of source addresses: 0 is off, 1 strict, 2 loose.
    pub rp_filter: i32,
}

impl Device {
    /// Whether packets of a family that come in here are forwarded.
    #[must_use]
    pub const fn forwards(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(_) => self.forwards_v4,
            IpAddr::V6(_) => self.forwards_v6,
        }
    }

    /// Whether the interface is a bridge.
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }
}

/// Everything that the plan has to know about the ways to some targets.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The ways by target.
    pub ways: BTreeMap<IpAddr, Way>,
    /// The interfaces by index. The index of a port leads to its bridge, bond or VRF.
    pub devices: BTreeMap<u32, Device>,
    /// Whether one interface can forward IPv6 packets while all others do not.
    pub has_force_forwarding: bool,
    /// The interfaces that accept router advertisements for as long as they are no routers.
    pub hears_routers: Vec<String>,
    /// The rules of packet filters.
    pub filters: Rulesets,
}

impl Facts {
    /// Looks at the ways to targets from some ingress interfaces.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`]: interfaces cannot be listed.
    pub fn read(
        host: &Snapshot,
        targets: &BTreeSet<IpAddr>,
        ingress: &BTreeSet<u32>,
    ) -> Result<Self, NetlinkError> {
        Ok(Self {
            filters: Rulesets::read(),
            ..Self::without_filters(host, targets, ingress)?
        })
    }

    /// Looks at the ways as [`Self::read`] does, and at no packet filter. Takes the time of
    /// a few questions, so it can be done at each change of a route.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`]: interfaces cannot be listed.
    pub fn without_filters(
        host: &Snapshot,
        targets: &BTreeSet<IpAddr>,
        ingress: &BTreeSet<u32>,
    ) -> Result<Self, NetlinkError> {
        let flags = link_flags()?;
        let mut facts = Self {
            has_force_forwarding: has_force_forwarding(),
            hears_routers: hears_routers(host),
            ..Self::default()
        };
        let mut indexes = ingress.clone();
        for &target in targets {
            let way = Way::to(target, &flags);
            if let Route::Out(hop) = &way.route {
                indexes.insert(hop.index);
            }
            facts.ways.insert(target, way);
        }
        for index in indexes {
            facts
                .devices
                .extend(Some(index).zip(device(host, index, &flags)));
        }
        Ok(facts)
    }
}

impl Way {
    /// Asks the kernel.
    fn to(target: IpAddr, flags: &BTreeMap<u32, LinkFlags>) -> Self {
        let route = Route::to(target);
        let neighbour = match &route {
            Route::Out(hop) if needs_neighbour(flags.get(&hop.index)) => {
                Neighbour::of(hop.gateway.unwrap_or(target), hop.index)
            }
            _ => Neighbour::NotNeeded,
        };
        Self { route, neighbour }
    }
}

/// Whether the first host on the way to an address was asked for and does not answer.
#[must_use]
pub fn is_neighbour_missing(addr: IpAddr) -> bool {
    let Route::Out(hop) = Route::to(addr) else {
        return false;
    };
    // An interface without neighbours knows none, failed or not.
    let neighbour = Neighbour::of(hop.gateway.unwrap_or(addr), hop.index);
    matches!(neighbour, Neighbour::Failed | Neighbour::Incomplete)
}

fn needs_neighbour(flags: Option<&LinkFlags>) -> bool {
    flags.is_some_and(|flags| !flags.contains(LinkFlags::Noarp))
}

impl Route {
    fn to(target: IpAddr) -> Self {
        if let IpAddr::V6(addr) = target
            && addr.is_unicast_link_local()
        {
            return Self::None(NoRoute::LinkLocal);
        }
        let question = [RouteAttribute::Destination(target.into())];
        let answer = match routes::look_up(&question, RouteFlags::empty()) {
            Ok(answer) => answer,
            Err(error) => return Self::refused(&error),
        };
        match answer.header.kind {
            RouteType::Unicast => {}
            RouteType::Local | RouteType::Anycast => return Self::Local,
            RouteType::Broadcast | RouteType::Multicast => return Self::None(NoRoute::Many),
            kind => return Self::Unknown(format!("a route of type {kind:?}")),
        }
        let mut hop = Hop {
            index: 0,
            gateway: None,
            source: None,
            on_link: None,
        };
        for attribute in &answer.attributes {
            match attribute {
                RouteAttribute::Oif(index) => hop.index = *index,
                RouteAttribute::Gateway(addr) => hop.gateway = routes::ip(addr),
                RouteAttribute::Via(RouteVia::Inet6(addr)) => hop.gateway = Some((*addr).into()),
                RouteAttribute::PrefSource(addr) => hop.source = routes::ip(addr),
                _ => {}
            }
        }
        if hop.index == LOOPBACK_IFINDEX {
            return Self::Local;
        }
        if hop.gateway.is_none() {
            let matched = routes::look_up(&question, RouteFlags::FibMatch).ok();
            let matched = matched.as_ref().and_then(routes::destination);
            hop.on_link = matched.and_then(|(addr, len)| IpNet::new(addr, len).ok());
        }
        Self::Out(hop)
    }

    /// Names the answer that is an error. The kernel gives each type of route an error
    /// number: `fib_props` of net/ipv4/fib_semantics.c, `ip6_rt_type_to_error` of
    /// net/ipv6/route.c.
    fn refused(error: &NetlinkError) -> Self {
        let errno = match error {
            NetlinkError::Kernel { source, .. } => source.raw_os_error(),
            _ => None,
        };
        Self::None(match errno {
            Some(libc::ENETUNREACH | libc::ESRCH) => NoRoute::Missing,
            Some(libc::EHOSTUNREACH) => NoRoute::Refusing("unreachable"),
            Some(libc::EACCES) => NoRoute::Refusing("prohibit"),
            Some(libc::EINVAL) => NoRoute::Refusing("blackhole"),
            _ => return Self::Unknown(error.to_string()),
        })
    }
}

impl Neighbour {
    fn of(addr: IpAddr, index: u32) -> Self {
        let mut question = NeighbourMessage::default();
        question.header.family = match addr {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        question.header.ifindex = index;
        question.attributes = vec![NeighbourAttribute::Destination(addr.into())];
        let question = RouteNetlinkMessage::GetNeighbour(question);
        // The kernel answers with an error where it knows nothing.
        let answers = ask(NETLINK_ROUTE, question.into(), NLM_F_ACK).unwrap_or_default();
        let state = answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour.header.state),
            _ => None,
        });
        match state {
            Some(State::Reachable | State::Permanent | State::Noarp) => Self::Reachable,
            Some(State::Stale | State::Delay | State::Probe) => Self::Stale,
            Some(State::Incomplete) => Self::Incomplete,
            Some(State::Failed) => Self::Failed,
            _ => Self::Unknown,
        }
    }
}

/// The flags of all interfaces.
fn link_flags() -> Result<BTreeMap<u32, LinkFlags>, NetlinkError> {
    let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let answers = ask(NETLINK_ROUTE, question.into(), NLM_F_DUMP)?;
    let flags = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some((link.header.index, link.header.flags)),
        _ => None,
    });
    Ok(flags.collect())
}

/// The interface, or that whose port it is, in whose name packets come in.
fn device(host: &Snapshot, index: u32, flags: &BTreeMap<u32, LinkFlags>) -> Option<Device> {
    let interface = host.with_masters(index).last()?;
    let (index, name) = (interface.index, &interface.name);
    let ports = host.interfaces.values();
    let is_on = |family, interface: &str, key| {
        setting(family, interface, key).is_some_and(|value| value != 0)
    };
    let rp_filter = |interface: &str| setting("ipv4", interface, "rp_filter").unwrap_or(0);
    let is_lower_up = |flags: &LinkFlags| flags.contains(LinkFlags::LowerUp);
    Some(Device {
        index,
        kind: interface.kind.clone(),
        is_up: interface.is_up,
        has_carrier: flags.get(&index).is_some_and(is_lower_up),
        ports: ports.filter(|port| port.master == Some(index)).count(),
        is_tracked_bridge: interface.is_tracked_bridge,
        forwards_v4: is_on("ipv4", name, "forwarding"),
        forwards_v6: is_on("ipv6", "all", "forwarding") || is_on("ipv6", name, "force_forwarding"),
        rp_filter: rp_filter("all").max(rp_filter(name)),
        name: name.clone(),
    })
}

/// The interfaces that would no longer accept router advertisements as routers:
/// `ipv6_accept_ra` of include/net/ipv6.h.
fn hears_routers(host: &Snapshot) -> Vec<String> {
    let others = host.interfaces.values();
    let others = others.filter(|interface| interface.is_up && interface.index != LOOPBACK_IFINDEX);
    let hears = |name: &&String| {
        setting("ipv6", name, "accept_ra") == Some(1)
            && setting("ipv6", name, "forwarding") == Some(0)
    };
    let names = others.map(|interface| &interface.name).filter(hears);
    names.cloned().collect()
}
