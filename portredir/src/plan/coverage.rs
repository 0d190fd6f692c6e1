//! Which selected interfaces need no programs, as another interface redirects their
//! packets.
//!
//! A packet must pass one of our hooks, not two, or the rules `80:8080 8080:9090` would
//! redirect a packet to port 80 twice.

use std::collections::BTreeSet;

use super::input::Input;
use crate::config::engine::EngineChoice;
use crate::host::snapshot::Interface;

/// Why another interface redirects the packets of this one, if one does.
pub(super) fn covered(
    input: Input<'_>,
    interface: &Interface,
    selected: &BTreeSet<u32>,
) -> Option<String> {
    let is_socket = input.settings.engine == EngineChoice::Socket;
    let by_master = covered_by_master(input, interface, selected);
    if is_socket || by_master.is_some() {
        return by_master;
    }
    covered_by_ports(input, interface, selected)
        .or_else(|| covered_by_lower(input, interface, selected))
}

/// Ports of a bridge, a bond, a team or a VRF.
fn covered_by_master(
    input: Input<'_>,
    interface: &Interface,
    selected: &BTreeSet<u32>,
) -> Option<String> {
    let master = input.snapshot.interfaces.get(&interface.master?)?;
    let (name, kind) = (&master.name, master.kind.as_deref().unwrap_or("master"));
    // A socket look-up knows the device that delivers the packet: the bridge, the bond,
    // also the VRF. Nothing else reaches a socket from here.
    if input.settings.engine == EngineChoice::Socket {
        return Some(format!(
            "port of {kind} {name}; sockets see its packets as received on {name}"
        ));
    }
    // The ports of a VRF receive for themselves.
    if kind == "vrf" {
        return None;
    }
    match selected.contains(&master.index) {
        true if master.is_tracked_bridge => None,
        true => Some(format!("port of {kind} {name}; {name} is used instead")),
        false if input.settings.iface.is_all => {
            Some(format!("port of {kind} {name}; {name} is not selected"))
        }
        false => None,
    }
}

/// Bridges and VRFs whose ports have the programs.
fn covered_by_ports(
    input: Input<'_>,
    interface: &Interface,
    selected: &BTreeSet<u32>,
) -> Option<String> {
    // Where all ports are excluded the bridge itself is the next best.
    let mut ports = input
        .interfaces()
        .filter(|port| port.is_up && port.master == Some(interface.index))
        .peekable();
    if interface.is_tracked_bridge
        && (ports.peek().is_none() || ports.any(|port| selected.contains(&port.index)))
    {
        let why = "bridge ports are used: with br_netfilter, conntrack sees packets at the port";
        return Some(why.into());
    }
    (interface.kind.as_deref() == Some("vrf")).then(|| "VRF; its member interfaces are used".into())
}

/// VLANs, and the macvlan and ipvlan devices on another device.
fn covered_by_lower(
    input: Input<'_>,
    interface: &Interface,
    selected: &BTreeSet<u32>,
) -> Option<String> {
    // Tunnels name a device below them too, but packets arrive there encapsulated.
    let kind = interface.kind.as_deref()?;
    if !matches!(kind, "vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap") {
        return None;
    }
    let lower = input.snapshot.interfaces.get(&interface.lower?)?;
    let is_hooked = lower.is_tracked_bridge || covered(input, lower, selected).is_none();
    (selected.contains(&lower.index) && is_hooked).then(|| {
        format!(
            "{kind} on {}, where its packets are redirected first",
            lower.name
        )
    })
}
