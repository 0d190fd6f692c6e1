//! Decides which engine an interface gets, and why no other.

use std::collections::BTreeMap;

use portredir_common::net::LOOPBACK_IFINDEX;
use portredir_common::wire::frame::Link;
use serde::Serialize;
use thiserror::Error;

use crate::config::engine::{Engine, EngineChoice};
use crate::config::selection::SelectedBy;
use crate::host::features::{Features, Programs};
use crate::host::snapshot::{Header, Interface, Snapshot};
use crate::plan::driver::{self, NativeDriver};

/// The reason for an engine that the user asked for.
const ASKED: &str = "requested with --engine";

/// An engine that was considered and not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// The name of the engine.
    pub engine: &'static str,
    /// The reason against this engine.
    pub why: String,
}

impl Rejected {
    const fn new(engine: Engine, why: String) -> Self {
        Self {
            engine: engine.name(),
            why,
        }
    }
}

/// An interface on which the engine that was asked for is impossible.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{name}: --engine {} is not available: {why}; use --engine tc or auto", .engine.name())]
pub struct Refused {
    /// The index of the interface.
    pub index: u32,
    /// The name of the interface.
    pub name: String,
    /// The engine.
    pub engine: Engine,
    /// The reason.
    pub why: String,
}

/// An engine, the reason for it, the rejected ones, and notes for the user.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub engine: Engine,
    pub why: String,
    pub rejected: Vec<Rejected>,
    pub notes: Vec<String>,
}

impl Chosen {
    fn new(engine: Engine, why: impl Into<String>) -> Self {
        Self {
            engine,
            why: why.into(),
            rejected: Vec::new(),
            notes: Vec::new(),
        }
    }

    const fn native_xdp(why: String, notes: Vec<String>) -> Self {
        Self {
            engine: Engine::XdpNative,
            why,
            rejected: Vec::new(),
            notes,
        }
    }

    /// TC, where there are reasons against another engine.
    fn tc_instead_of(engine: Engine, whys: Vec<String>) -> Self {
        let why = whys.join("; ");
        let rejected = whys.into_iter().map(|why| Rejected::new(engine, why));
        Self {
            rejected: rejected.collect(),
            ..Self::new(Engine::Tc, why)
        }
    }
}

/// An interface that has programs of ours before the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The way the interface was selected.
    pub selected: SelectedBy,
    /// Whether it has programs for outgoing packets alone.
    pub is_egress_only: bool,
}

impl Attached {
    /// An interface that has programs, where no more is known.
    pub const SOMEHOW: Self = Self {
        selected: SelectedBy::Pattern,
        is_egress_only: false,
    };
}

/// The request for an engine, and the facts that decide which one is possible.
#[derive(Clone, Copy)]
pub(super) struct EngineRequest<'a> {
    /// The requested engine.
    pub choice: EngineChoice,
    pub features: &'a Features,
    /// The interfaces with programs of ours.
    pub attached: &'a BTreeMap<u32, Attached>,
    /// The programs of others.
    pub programs: &'a dyn Programs,
}

impl EngineRequest<'_> {
    /// Whether an interface has a program of ours for incoming packets, so that an XDP
    /// program there is ours.
    pub(super) fn is_ours(self, interface: &Interface) -> bool {
        let attached = self.attached.get(&interface.index);
        attached.is_some_and(|attached| !attached.is_egress_only)
    }
}

impl Snapshot {
    /// The engine of an interface. XDP programs on those in `attached` are ours.
    pub(super) fn choose(
        &self,
        interface: &Interface,
        request: EngineRequest<'_>,
    ) -> Result<Chosen, Refused> {
        let EngineRequest {
            choice, features, ..
        } = request;
        let is_ours = request.is_ours(interface);
        let asked = |engine| Ok(Chosen::new(engine, ASKED));
        match choice {
            EngineChoice::Socket => return asked(Engine::Lookup),
            _ if interface.is_loopback() => return Ok(loopback(choice, features)),
            EngineChoice::Tc => return asked(Engine::Tc),
            EngineChoice::TcClsact => return asked(Engine::TcClsact),
            EngineChoice::XdpGeneric if interface.first_header() == Header::Outer => {
                let what = interface.what();
                let why = format!("{what} may deliver an outer header, which XDP cannot skip");
                return Ok(Chosen::tc_instead_of(Engine::XdpGeneric, vec![why]));
            }
            EngineChoice::Auto | EngineChoice::Xdp | EngineChoice::XdpGeneric => {}
        }
        let taken = if is_ours {
            None
        } else {
            self.xdp_taken(interface, request)
        };
        let engine = match choice {
            EngineChoice::XdpGeneric => Engine::XdpGeneric,
            _ => Engine::XdpNative,
        };
        let refuse = |why| {
            Err(Refused {
                index: interface.index,
                name: interface.name.clone(),
                engine,
                why,
            })
        };
        let lacks = interface.lacks_native_xdp();
        let native = |why| Chosen::native_xdp(why, interface.note_on_native_xdp(is_ours));
        match (choice, taken, lacks) {
            (EngineChoice::Xdp | EngineChoice::XdpGeneric, Some(taken), _) => refuse(taken),
            (EngineChoice::Xdp, None, Some(lacks)) if !is_ours => refuse(lacks),
            (EngineChoice::XdpGeneric, None, _) => asked(engine),
            (EngineChoice::Xdp, None, _) => Ok(native(ASKED.into())),
            (_, taken, lacks) => {
                let costs = lacks.or_else(|| interface.cost_of_native_xdp(features));
                let misses = self.missed_by_native_xdp(interface);
                let whys: Vec<_> = taken.into_iter().chain(costs).chain(misses).collect();
                if whys.is_empty() {
                    let driver = interface.driver.as_deref().unwrap_or_default();
                    return Ok(native(format!("driver {driver} supports native XDP")));
                }
                Ok(Chosen::tc_instead_of(engine, whys))
            }
        }
    }

    /// The reason why no XDP program of ours can be on an interface.
    fn xdp_taken(&self, interface: &Interface, request: EngineRequest<'_>) -> Option<String> {
        if let Some(id) = interface.xdp {
            let program = request.programs.name(id);
            // One without a name is `program id 7`.
            let program = program.trim_start_matches("program ");
            return Some(format!(
                "XDP program {program} is already attached; portredir never replaces it"
            ));
        }
        // "Cannot attach when an upper device already has a program": dev_xdp_attach() in
        // net/core/dev.c. A program of ours gives way.
        self.interfaces
            .values()
            .filter(|upper| upper.is_above(interface) && !request.is_ours(upper))
            .find_map(|upper| Some((upper, upper.xdp?)))
            .map(|(upper, id)| {
                let (name, program) = (&upper.name, request.programs.name(id));
                format!(
                    "upper device {name} has XDP program {program}; the kernel allows none \
                         here"
                )
            })
    }
}

impl Snapshot {
    /// A note on packets that come to an interface without passing the XDP program in its
    /// driver.
    fn missed_by_native_xdp(&self, interface: &Interface) -> Option<String> {
        self.interfaces
            .values()
            .find(|upper| upper.lower == Some(interface.index) && upper.has_own_egress())
            .map(|upper| {
                let (kind, name) = (upper.what(), &upper.name);
                format!("packets that {kind} {name} receives from its siblings bypass native XDP")
            })
    }
}

impl Interface {
    pub(super) const fn is_loopback(&self) -> bool {
        self.index == LOOPBACK_IFINDEX
    }

    /// The kind of the interface for messages, or the driver of a NIC.
    fn what(&self) -> String {
        match (&self.kind, &self.driver) {
            (Some(kind), _) => kind.clone(),
            (None, Some(driver)) => format!("driver {driver}"),
            (None, None) => "the device".into(),
        }
    }

    /// Whether the kernel treats this as an upper device of `lower`. Tunnels have a lower
    /// device as well, but only by name.
    fn is_above(&self, lower: &Self) -> bool {
        const STACKED: [&str; 6] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "vxlan"];
        let kind = self.kind.as_deref().unwrap_or_default();
        lower.master == Some(self.index)
            || (self.lower == Some(lower.index) && STACKED.contains(&kind))
    }

    /// The reason why native XDP is impossible.
    fn lacks_native_xdp(&self) -> Option<String> {
        let what = self.what();
        if self.link == Link::Ip {
            return Some(format!("{what} has no Ethernet header"));
        }
        let features = self.xdp_features?;
        (!features.has_native()).then(|| format!("{what} does not support native XDP"))
    }

    /// A note on what attaching native XDP does to the link, unless it is attached.
    fn note_on_native_xdp(&self, is_ours: bool) -> Vec<String> {
        let driver = self.driver.as_deref().filter(|_| !is_ours);
        driver.and_then(driver::note).into_iter().collect()
    }

    /// The reason why native XDP is not worth its cost where it is possible.
    fn cost_of_native_xdp(&self, features: &Features) -> Option<String> {
        match (self.kind.as_deref(), self.driver.as_deref()) {
            (Some("veth"), _) => Some("native XDP on veth disables TSO on the peer".into()),
            (Some(kind), _) => Some(format!("{kind} is a virtual device")),
            (None, Some("virtio_net")) => Some("native XDP disables guest TSO and GRO".into()),
            (None, Some(driver)) if NativeDriver::find(driver).is_some() => {
                let max_mtu = features.linear_mtu();
                let has_frags = self
                    .xdp_features
                    .is_none_or(|features| features.has_frags());
                (!has_frags && self.mtu > max_mtu).then(|| {
                    format!(
                        "MTU {} is too large for native XDP: driver {driver} has no XDP \
                         multi-buffer support (maximum {max_mtu})",
                        self.mtu
                    )
                })
            }
            (None, Some(driver)) => Some(format!(
                "driver {driver} is not known to gain from native XDP"
            )),
            (None, None) => Some("no driver known to gain from native XDP".into()),
        }
    }
}

/// A warning about packets that are rewritten on loopback.
pub(super) const LOOPBACK_WARNING: &str = "conntrack classifies packets rewritten on loopback as \
                                           INVALID; if OUTPUT has `ct state invalid drop`, use \
                                           --engine socket for TCP";

/// The engine on loopback. A packet there keeps the connection tracking entry that it got
/// on its way out; after a rewrite, the packet no longer belongs to that entry.
fn loopback(choice: EngineChoice, features: &Features) -> Chosen {
    let engine = match choice {
        EngineChoice::TcClsact => Engine::TcClsact,
        _ => Engine::Tc,
    };
    if let EngineChoice::Tc | EngineChoice::TcClsact = choice {
        let mut chosen = Chosen::new(engine, ASKED);
        chosen.notes.push(LOOPBACK_WARNING.into());
        chosen
    } else if features.cgroup.is_some() {
        let why = "conntrack would classify packets rewritten on loopback as INVALID";
        let mut chosen = Chosen::new(Engine::Cgroup, why);
        let xdp = Rejected::new(
            Engine::XdpNative,
            "loopback does not support native XDP".into(),
        );
        chosen.rejected = vec![xdp, Rejected::new(Engine::Tc, why.into())];
        chosen
    } else {
        let why = "the root of the cgroup v2 hierarchy is not mounted; name another cgroup v2 \
                   directory with --cgroup";
        let mut chosen = Chosen::new(engine, why);
        chosen
            .rejected
            .push(Rejected::new(Engine::Cgroup, why.into()));
        chosen.notes.push(LOOPBACK_WARNING.into());
        chosen
    }
}
