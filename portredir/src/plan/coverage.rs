//! Interfaces that need no programs, as programs on other interfaces see their packets.

use std::collections::BTreeSet;

use crate::config::engine::EngineChoice;
use crate::config::settings::Settings;
use crate::host::snapshot::{Interface, Snapshot};

impl Snapshot {
    /// Why the packets of an interface are redirected elsewhere: a packet must
    /// cross one of our hooks, not two, or `80:8080 8080:9090` would chain.
    pub(super) fn covered(
        &self,
        interface: &Interface,
        settings: &Settings,
        selected: &BTreeSet<u32>,
    ) -> Option<String> {
        if let Some(why) = self.covered_by_master(interface, settings, selected) {
            return Some(why);
        }
        if settings.engine == EngineChoice::Socket {
            return None;
        }
        // Where all ports are excluded the bridge itself is the next best.
        let mut ports = self
            .interfaces
            .values()
            .filter(|port| port.is_up && port.master == Some(interface.index))
            .peekable();
        if interface.is_tracked_bridge
            && (ports.peek().is_none() || ports.any(|port| selected.contains(&port.index)))
        {
            return Some(
                "bridge ports are used: with br_netfilter, conntrack sees packets at the port"
                    .into(),
            );
        }
        if interface.kind.as_deref() == Some("vrf") {
            return Some("VRF; its member interfaces are used".into());
        }
        // Tunnels name a device below them too, but packets arrive there wrapped.
        let kind = interface.kind.as_deref()?;
        if !matches!(kind, "vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap") {
            return None;
        }
        let lower = self.interfaces.get(&interface.lower?)?;
        let is_hooked =
            lower.is_tracked_bridge || self.covered(lower, settings, selected).is_none();
        (selected.contains(&lower.index) && is_hooked).then(|| {
            format!(
                "{kind} on {}, where its packets are redirected first",
                lower.name
            )
        })
    }

    /// Why a bridge, a bond or a VRF carries the programs of a port.
    fn covered_by_master(
        &self,
        interface: &Interface,
        settings: &Settings,
        selected: &BTreeSet<u32>,
    ) -> Option<String> {
        let master = self.interfaces.get(&interface.master?)?;
        let name = &master.name;
        let kind = master.kind.as_deref().unwrap_or("master");
        // A socket look-up knows the device that delivers the packet: the
        // bridge, the bond, also the VRF. Nothing else reaches it from here.
        if settings.engine == EngineChoice::Socket {
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
            false if settings.iface.is_all => {
                Some(format!("port of {kind} {name}; {name} is not selected"))
            }
            false => None,
        }
    }
}

impl Interface {
    /// Whether packets can leave on this interface that do not leave on the device
    /// below: macvlan and ipvlan devices on one device talk to each other.
    pub(super) fn has_own_egress(&self) -> bool {
        matches!(
            self.kind.as_deref(),
            Some("macvlan" | "macvtap" | "ipvlan" | "ipvtap")
        )
    }
}
