//! The interfaces and addresses of a network namespace at one moment.

use std::collections::{BTreeMap, HashMap};

use portredir_common::abi::LOOPBACK_IFINDEX;
use portredir_common::wire::Link;

use crate::sys::netdev::XdpFeatures;

/// An interface, as far as the planner needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The index, which stays when the interface is renamed.
    pub index: u32,
    /// The name.
    pub name: String,
    /// Whether the interface is administratively up.
    pub is_up: bool,
    /// The header that frames begin with.
    pub link: Link,
    /// The kind of a virtual device (`veth`, `bridge`, …), as in `ip -d link`.
    pub kind: Option<String>,
    /// The driver, as in `ethtool -i`.
    pub driver: Option<String>,
    /// The index of the bridge, bond, team or VRF that has this interface as a port.
    pub master: Option<u32>,
    /// Whether this is a bridge with `br_netfilter`: conntrack sees a packet at the
    /// ingress port, before the bridge does.
    pub is_tracked_bridge: bool,
    /// The index of the lower device in this namespace (VLAN, macvlan, …).
    pub lower: Option<u32>,
    /// The ID of the attached XDP program.
    pub xdp: Option<u32>,
    /// The MTU: bytes of the largest packet, without the Ethernet header.
    pub mtu: u32,
    /// The XDP features of the driver; unknown before Linux 6.3.
    pub xdp_features: Option<XdpFeatures>,
}

impl Interface {
    /// Whether this is the loopback interface.
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        self.index == LOOPBACK_IFINDEX
    }

    /// Whether packets can leave through this interface that do not leave through the
    /// device below it: macvlan and ipvlan devices on one device talk to each other.
    #[must_use]
    pub fn has_own_egress(&self) -> bool {
        matches!(
            self.kind.as_deref(),
            Some("macvlan" | "macvtap" | "ipvlan" | "ipvtap")
        )
    }

    /// Whether the kernel knows this interface as an upper device of `lower`. Tunnels
    /// have a device below them as well, but only by name.
    #[must_use]
    pub fn is_upper_of(&self, lower: &Self) -> bool {
        const STACKED: [&str; 6] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "vxlan"];
        let kind = self.kind.as_deref().unwrap_or_default();
        lower.master == Some(self.index)
            || (self.lower == Some(lower.index) && STACKED.contains(&kind))
    }
}

/// Interfaces and addresses at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The interfaces, by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// The unicast addresses of this host; the values are those of
    /// [`portredir_common::abi::local`].
    pub addrs: HashMap<[u8; 16], u8>,
}
