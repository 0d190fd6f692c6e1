//! The interfaces and addresses of this host at one moment.

use std::collections::{BTreeMap, HashMap};

use portredir_common::wire::frame::Link;

use crate::sys::netdev::XdpFeatures;

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

/// Interfaces and addresses at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The interfaces by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// The unicast addresses of this host; the value is one of [`local`](portredir_common::map::local).
    pub addrs: HashMap<[u8; 16], u8>,
}
