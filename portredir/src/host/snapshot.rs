//! The interfaces and addresses of a network namespace at one moment.

use std::collections::{BTreeMap, HashMap};

use portredir_common::abi::LOOPBACK_IFINDEX;
use portredir_common::wire::Link;

use crate::sys::netdev::XdpFeatures;

/// What the planner needs to know of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Index, which outlives a change of name.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Administratively up.
    pub is_up: bool,
    /// What its frames begin with.
    pub link: Link,
    /// Kind of a virtual device (`veth`, `bridge`, …) as `ip -d link` shows it.
    pub kind: Option<String>,
    /// Driver, as `ethtool -i` shows it.
    pub driver: Option<String>,
    /// The bridge, bond, team or VRF it is a port of.
    pub master: Option<u32>,
    /// A bridge whose packets the kernel shows to connection tracking when they
    /// come in by a port, before the bridge has them: `br_netfilter`.
    pub is_tracked_bridge: bool,
    /// The device below it in this namespace (VLAN, macvlan, …).
    pub lower: Option<u32>,
    /// ID of the XDP program that is attached.
    pub xdp: Option<u32>,
    /// Bytes of the largest packet, without the Ethernet header.
    pub mtu: u32,
    /// What the driver's XDP can do; unknown before Linux 6.3.
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
    /// By index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// Unicast addresses of this host; the value as in [`portredir_common::abi::local`].
    pub addrs: HashMap<[u8; 16], u8>,
}
