//! Decides which interfaces need no programs, because others see their packets.
//!
//! The kernel hands a packet from device to device: from a NIC to the VLAN of its tag, to
//! the macvlan of its MAC address, or to the bridge or bond that the device is a port of. On
//! its way up a packet must cross one of our hooks, not two, or `80:8080 8080:9090` would
//! chain. A device whose packets were handled anywhere below gets no hook, and a master of
//! which one port is such a device leaves its packets to all of its ports. Every other
//! master is hooked instead of its ports.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::engine::EngineChoice;
use crate::config::selection::SelectedBy;
use crate::config::settings::Settings;
use crate::host::snapshot::{Interface, Snapshot};

/// The number of VLAN tags that a TC program finds its way through: the kernel takes the
/// outer one off the frame, and the parser reads two more.
pub(super) const MAX_TAGS: u8 = 3;

/// The selected interfaces, and those of them whose packets were handled before.
pub(super) struct Coverage<'a> {
    snapshot: &'a Snapshot,
    settings: &'a Settings,
    selected: BTreeMap<u32, SelectedBy>,
    ports: BTreeMap<u32, Vec<&'a Interface>>,
    /// The interfaces that have programs already, also while they are down.
    kept: BTreeSet<u32>,
    /// The interfaces whose packets were handled on a device below, each with the number
    /// of VLAN tags that they lose on the way.
    handled: BTreeMap<u32, u8>,
    /// The masters whose ports are hooked.
    by_ports: BTreeSet<u32>,
    /// The interfaces whose hooks stand while hooks for replies are added; `None` while the
    /// hooks of the selected interfaces are worked out.
    standing: Option<BTreeSet<u32>>,
}

impl<'a> Coverage<'a> {
    /// Works out the coverage of the selected interfaces. Ports that are hooked instead of
    /// a selected master become selected.
    pub(super) fn new(
        snapshot: &'a Snapshot,
        settings: &'a Settings,
        selected: BTreeMap<u32, SelectedBy>,
        kept: BTreeSet<u32>,
    ) -> Self {
        let mut coverage = Self {
            snapshot,
            settings,
            ports: snapshot.ports(&selected, &kept),
            selected,
            kept,
            handled: BTreeMap::new(),
            by_ports: BTreeSet::new(),
            standing: None,
        };
        if settings.engine != EngineChoice::Socket {
            coverage.select_between();
            // Each round only adds to what is known, so this ends.
            while coverage.look_up() {}
        }
        coverage
    }

    /// Adds the hooks by which every packet that leaves crosses one: packets leave on the
    /// same ways on which they come in. The hooks of `standing` stay where they are, and
    /// those of `exits` are added where they are needed.
    pub(super) fn with_exits(mut self, standing: BTreeSet<u32>, exits: &BTreeSet<u32>) -> Self {
        self.standing = Some(standing);
        for index in exits {
            let entry = self.selected.entry(*index);
            entry.or_insert(SelectedBy::Pattern);
        }
        self.ports = self.snapshot.ports(&self.selected, &self.kept);
        while self.look_up() {}
        self
    }

    /// The interfaces that are selected, and how each was selected.
    pub(super) const fn selected(&self) -> &BTreeMap<u32, SelectedBy> {
        &self.selected
    }

    /// Whether incoming packets of an interface are handled on a device below it.
    pub(super) fn is_handled_below(&self, interface: &Interface) -> bool {
        self.handled.contains_key(&interface.index)
    }

    /// Whether some packets leave through an interface alone, to siblings, though its
    /// incoming packets are handled below: its own, and those of devices above it that no
    /// master hands down.
    pub(super) fn has_exit_to_siblings(&self, interface: &Interface) -> bool {
        let is_left_to_master = self.taken_by_master(interface).is_some();
        let is_on_it = |upper: &Interface| {
            let lower = self.snapshot.lower(upper);
            let mut carriers = self.snapshot.with_masters(interface.index);
            let is_above = carriers.any(|it| lower.is_some_and(|lower| lower.index == it.index));
            is_above && !self.is_standing(upper)
        };
        interface.has_own_egress()
            && self.is_handled_below(interface)
            && (!is_left_to_master || self.snapshot.interfaces.values().any(is_on_it))
    }

    /// Whether an interface has the hook for the packets that come in there.
    pub(super) fn is_hooked(&self, interface: &Interface) -> bool {
        self.is_standing(interface)
            || (self.is_selected(interface) && self.reason(interface).is_none())
    }

    fn is_standing(&self, interface: &Interface) -> bool {
        let standing = self.standing.as_ref();
        standing.is_some_and(|standing| standing.contains(&interface.index))
    }

    /// The reason why another interface handles the packets of this one.
    pub(super) fn reason(&self, interface: &Interface) -> Option<String> {
        let is_socket = self.settings.engine == EngineChoice::Socket;
        if is_socket {
            // A socket lookup knows the device that delivers the packet: the bridge, the
            // bond, also the VRF. A port delivers no packet itself.
            let master = self.snapshot.master(interface)?;
            let (kind, name) = (master.master_kind(), &master.name);
            return Some(format!(
                "port of {kind} {name}; sockets see its packets as received on {name}"
            ));
        }
        self.taken_by_master(interface)
            .or_else(|| self.left_to_ports(interface))
            .or_else(|| self.handled_below(interface))
    }

    fn taken_by_master(&self, interface: &Interface) -> Option<String> {
        let master = self.snapshot.receiving_master(interface)?;
        let (kind, name) = (master.master_kind(), &master.name);
        if self.by_ports.contains(&master.index) {
            None
        } else if self.is_selected(master) {
            Some(format!("port of {kind} {name}; {name} is used instead"))
        } else if self.settings.iface.is_all || self.standing.is_some() {
            Some(format!("port of {kind} {name}; {name} is not selected"))
        } else {
            None
        }
    }

    fn left_to_ports(&self, interface: &Interface) -> Option<String> {
        if interface.kind.as_deref() == Some("vrf") {
            // The ports of a VRF receive packets themselves.
            return Some("VRF; its member interfaces are used".into());
        }
        if !self.by_ports.contains(&interface.index) {
            return None;
        }
        if interface.is_tracked_bridge {
            return Some(
                "bridge ports are used: with br_netfilter, conntrack sees packets at the port"
                    .into(),
            );
        }
        let kind = interface.master_kind();
        let mut ports = self.ports_of(interface);
        let port = ports.find(|port| self.is_handled_below(port) || self.is_standing(port))?;
        Some(format!(
            "{kind} ports are used: packets of {} are redirected before {} receives them",
            port.name, interface.name
        ))
    }

    fn handled_below(&self, interface: &Interface) -> Option<String> {
        if !self.is_handled_below(interface) {
            return None;
        }
        let lower = self.snapshot.lower(interface)?;
        let (kind, name) = (interface.kind.as_deref()?, &lower.name);
        let mut first = lower;
        while self.is_handled_below(first)
            && let Some(lower) = self.snapshot.lower(first)
        {
            first = lower;
        }
        Some(if first.index == lower.index {
            format!("{kind} on {name}, where its packets are redirected first")
        } else {
            format!(
                "{kind} on {name}; its packets are redirected first on {}",
                first.name
            )
        })
    }

    fn is_selected(&self, interface: &Interface) -> bool {
        self.selected.contains_key(&interface.index)
    }

    fn ports_of(&self, master: &Interface) -> impl Iterator<Item = &'a Interface> + use<'a> {
        let ports = self.ports.get(&master.index).cloned().unwrap_or_default();
        ports.into_iter()
    }

    /// Selects masters between a selected device below and a selected device above: some of
    /// their packets were handled before, and no device above could tell which.
    fn select_between(&mut self) {
        let mut above: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let mut below: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for upper in self.snapshot.interfaces.values() {
            if let Some(lower) = self.snapshot.lower(upper) {
                above.entry(lower.index).or_default().push(upper.index);
                below.entry(upper.index).or_default().push(lower.index);
            }
            for port in self.ports_of(upper) {
                above.entry(port.index).or_default().push(upper.index);
                below.entry(upper.index).or_default().push(port.index);
            }
        }
        let starts: Vec<_> = self.selected.keys().copied().collect();
        let (above, below) = (reached(&starts, &above), reached(&starts, &below));
        for &index in above.intersection(&below) {
            let interface = &self.snapshot.interfaces[&index];
            let is_excluded = self.settings.iface.excludes(&interface.name).is_some();
            if self.ports.contains_key(&index) && !is_excluded {
                self.selected.entry(index).or_insert(SelectedBy::Pattern);
            }
        }
    }

    /// Looks at every device once, with what is known of those below. Returns whether
    /// anything became known.
    fn look_up(&mut self) -> bool {
        let mut is_news = false;
        for interface in self.snapshot.interfaces.values() {
            let index = interface.index;
            let is_selected_master = self.is_selected(interface) && interface.is_receiving();
            let mut with_masters = self.snapshot.with_masters(index);
            let may_give_way = !with_masters.any(|it| self.is_standing(it));
            if is_selected_master && may_give_way && self.needs_ports(interface) {
                is_news |= self.by_ports.insert(index);
                // A user who names a bridge means the packets that come in on its ports.
                for port in self.ports_of(interface) {
                    if self.settings.iface.excludes(&port.name).is_none() {
                        let entry = self.selected.entry(port.index);
                        entry.or_insert(SelectedBy::Pattern);
                    }
                }
            }
            let Some(tags) = self.tags_below(interface) else {
                continue;
            };
            if self.handled.get(&index).is_none_or(|known| tags < *known) {
                self.handled.insert(index, tags);
                is_news = true;
            }
        }
        is_news
    }

    /// Whether a selected master leaves its packets to its ports.
    fn needs_ports(&self, master: &Interface) -> bool {
        let is_left = |port: &Interface| self.settings.iface.excludes(&port.name).is_none();
        let mut ports = self.ports_of(master).peekable();
        // What leaves was tracked before it came to the bridge.
        if master.is_tracked_bridge && self.standing.is_none() {
            // Where all ports are excluded, the bridge itself is used.
            return ports.peek().is_none() || ports.any(is_left);
        }
        ports.any(|port| self.is_handled_below(port) || self.is_standing(port))
    }

    /// The number of VLAN tags that packets of an interface carried when they were handled
    /// on a device below; `None` where they were not handled.
    fn tags_below(&self, interface: &Interface) -> Option<u8> {
        if let Some(lower) = self.snapshot.lower(interface) {
            let is_vlan = interface.kind.as_deref() == Some("vlan");
            let tags = self.tags_after(lower)? + u8::from(is_vlan);
            return (tags <= MAX_TAGS).then_some(tags);
        }
        if self.by_ports.contains(&interface.index) {
            let ports = self.ports_of(interface);
            return ports
                .filter_map(|port| self.tags_after(port))
                .min()
                .or(Some(0));
        }
        if self.is_selected(interface) {
            // A master that cannot give way, and need not where all of its ports are covered.
            let tags = self.ports_of(interface).map(|port| self.tags_after(port));
            let tags: Option<Vec<_>> = self.standing.as_ref().and_then(|_| tags.collect());
            return tags?.into_iter().min();
        }
        self.ports_of(interface)
            .filter_map(|port| self.tags_after(port))
            .min()
    }

    /// The number of tags, as [`Self::tags_below`], once the packets have passed the hook of
    /// the interface itself.
    fn tags_after(&self, interface: &Interface) -> Option<u8> {
        if self.is_standing(interface) {
            return Some(0);
        }
        let below = self.handled.get(&interface.index).copied();
        below.or_else(|| self.is_hooked(interface).then_some(0))
    }
}

/// The devices that can be reached from some, without these.
fn reached(starts: &[u32], edges: &BTreeMap<u32, Vec<u32>>) -> BTreeSet<u32> {
    let mut reached = BTreeSet::new();
    let mut next = starts.to_vec();
    while let Some(index) = next.pop() {
        for &other in edges.get(&index).into_iter().flatten() {
            if reached.insert(other) {
                next.push(other);
            }
        }
    }
    reached
}

impl Snapshot {
    /// The device from which this one gets its packets as they are on the wire, but for a
    /// VLAN tag. Tunnels name a lower device too, but packets arrive there wrapped.
    pub(super) fn lower(&self, interface: &Interface) -> Option<&Interface> {
        let kind = interface.kind.as_deref()?;
        if !matches!(kind, "vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap") {
            return None;
        }
        self.interfaces.get(&interface.lower?)
    }

    /// The ports of each master that receives their packets: those that are up, selected or
    /// kept.
    fn ports(
        &self,
        selected: &BTreeMap<u32, SelectedBy>,
        kept: &BTreeSet<u32>,
    ) -> BTreeMap<u32, Vec<&Interface>> {
        let mut ports: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for port in self.interfaces.values() {
            let index = port.index;
            let is_candidate = port.is_up || selected.contains_key(&index) || kept.contains(&index);
            if is_candidate && let Some(master) = self.receiving_master(port) {
                ports.entry(master.index).or_default().push(port);
            }
        }
        ports
    }

    fn master(&self, port: &Interface) -> Option<&Interface> {
        self.interfaces.get(&port.master?)
    }

    /// The master that receives the packets of a port: every one but a VRF.
    fn receiving_master(&self, port: &Interface) -> Option<&Interface> {
        self.master(port).filter(|master| master.is_receiving())
    }
}

impl Interface {
    fn is_receiving(&self) -> bool {
        self.kind.as_deref() != Some("vrf")
    }

    fn master_kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("master")
    }

    /// Whether some outgoing packets leave through this interface but not through its
    /// lower device: macvlan and ipvlan devices on one device talk to each other.
    pub(super) fn has_own_egress(&self) -> bool {
        matches!(
            self.kind.as_deref(),
            Some("macvlan" | "macvtap" | "ipvlan" | "ipvtap")
        )
    }
}
