//! The interfaces and addresses of this host at one moment.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use portredir_common::map::local;
use portredir_common::net::Addr;
use portredir_common::wire::frame::Link;

use crate::sys::netdev::XdpFeatures;
use crate::sys::xfrm::Policy;

/// The properties of an interface that the planner needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The index, which outlives a change of name.
    pub index: u32,
    /// The name.
    pub name: String,
    /// Whether the interface is administratively up.
    pub is_up: bool,
    /// The kind of header that frames of the interface begin with.
    pub link: Link,
    /// The kind of a virtual device (`veth`, `bridge`, …) as `ip -d link` shows it.
    pub kind: Option<String>,
    /// The driver, as `ethtool -i` shows it.
    pub driver: Option<String>,
    /// The bridge, bond, team or VRF that the interface is a port of.
    pub master: Option<u32>,
    /// Whether the interface is a bridge and connection tracking sees its packets at the
    /// port on which they come in, before the bridge: `br_netfilter`.
    pub is_tracked_bridge: bool,
    /// The lower device in this namespace (for a VLAN, macvlan, …).
    pub lower: Option<u32>,
    /// The ID of the XDP program that is attached.
    pub xdp: Option<u32>,
    /// The size of the largest packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// The XDP features of the driver; unknown before Linux 6.3.
    pub xdp_features: Option<XdpFeatures>,
}

/// The first header of a frame as TC programs see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The Ethernet header.
    Ethernet,
    /// The IP header.
    Ip,
    /// Perhaps a header that the packet came out of, or goes into: TC sees it before the
    /// IP header.
    Outer,
}

impl Header {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ethernet, Self::Ip, Self::Outer];
}

impl Interface {
    /// An interface of which no more is known; it is down.
    #[must_use]
    pub const fn new(index: u32, link: Link) -> Self {
        Self {
            index,
            name: String::new(),
            is_up: false,
            link,
            kind: None,
            driver: None,
            master: None,
            is_tracked_bridge: false,
            lower: None,
            xdp: None,
            mtu: 0,
            xdp_features: None,
        }
    }

    /// The first header of a frame of the interface.
    ///
    /// An xfrm or VTI interface keeps the Ethernet header of the encrypted packet, a GRE
    /// tunnel with many peers the outer IP header and the GRE header: `skb_pop_mac_header`
    /// in net/ipv4/ip_gre.c. The tunnels named here end both in order: they were tried.
    #[must_use]
    pub fn first_header(&self) -> Header {
        match (self.link, self.kind.as_deref()) {
            (Link::Ethernet, _) => Header::Ethernet,
            (Link::Ip, Some("ip6tnl" | "ipip" | "ppp" | "sit" | "tun" | "wireguard")) => Header::Ip,
            (Link::Ip, _) => Header::Outer,
        }
    }
}

/// Interfaces and addresses at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The interfaces by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// The addresses whose packets are delivered to this host.
    pub local: LocalAddrs,
    /// The IPsec policies for packets that leave. Unknown ones are left out: root alone may
    /// list them.
    pub policies: Vec<Policy>,
}

impl Snapshot {
    /// The names that a packet which comes in on an interface comes in on: the interface
    /// itself, the bridge or bond that it is a port of, and the VRF of that.
    pub fn names(&self, interface: &Interface) -> impl Iterator<Item = &str> {
        let with_masters = self.with_masters(interface.index);
        with_masters.map(|interface| interface.name.as_str())
    }

    /// An interface, the master that it is a port of, and the masters of that.
    pub fn with_masters(&self, index: u32) -> impl Iterator<Item = &Interface> {
        // A master of a master of a master is the most that the kernel builds; and what is
        // read while devices change may be a circle.
        const DEPTH: usize = 8;
        let own = self.interfaces.get(&index);
        let all = std::iter::successors(own, |below| self.interfaces.get(&below.master?));
        all.take(DEPTH)
    }
}

/// The destinations whose packets the kernel delivers to this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalAddrs {
    /// Single unicast addresses; the value is one of [`local`].
    pub addrs: HashMap<[u8; 16], u8>,
    /// Whole networks, which can be reached from anywhere.
    pub networks: BTreeSet<LocalNetwork>,
}

/// A network of which every address is local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalNetwork {
    /// The first address, IPv4 as `::ffff:a.b.c.d`.
    pub addr: [u8; 16],
    /// The number of leading bits that all addresses share; 96 more for IPv4.
    pub prefix_len: u8,
}

impl LocalAddrs {
    /// Adds the destination of a route of type `local`.
    pub fn add_route(&mut self, addr: IpAddr, prefix_len: u8) {
        // 127.0.0.0/8 and ::1 can be reached through `lo` alone, which the programs know.
        if addr.is_loopback() || addr.is_multicast() {
            return;
        }
        let prefix_len = prefix_len + if addr.is_ipv4() { 96 } else { 0 };
        let addr = Addr::from(addr).octets();
        if prefix_len == 128 {
            self.addrs.entry(addr).or_insert(local::ANYWHERE);
        } else {
            self.networks.insert(LocalNetwork { addr, prefix_len });
        }
    }
}

impl From<HashMap<[u8; 16], u8>> for LocalAddrs {
    fn from(addrs: HashMap<[u8; 16], u8>) -> Self {
        Self {
            addrs,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_addresses_or_networks() {
        let mut local = LocalAddrs::default();
        for (addr, prefix_len) in [
            ("198.51.100.10", 32),
            ("2001:db8::1", 128),
            ("10.9.0.0", 16),
            ("2001:db8:5::", 48),
            ("127.0.0.0", 8),
            ("::1", 128),
        ] {
            local.add_route(addr.parse().expect(addr), prefix_len);
        }
        let octets = |text: &str| Addr::from(text.parse::<IpAddr>().expect(text)).octets();
        let addrs = ["198.51.100.10", "2001:db8::1"].map(|text| (octets(text), local::ANYWHERE));
        assert_eq!(local.addrs, HashMap::from(addrs));
        let networks =
            [("10.9.0.0", 112), ("2001:db8:5::", 48)].map(|(text, prefix_len)| LocalNetwork {
                addr: octets(text),
                prefix_len,
            });
        assert_eq!(local.networks, BTreeSet::from(networks));
    }
}
