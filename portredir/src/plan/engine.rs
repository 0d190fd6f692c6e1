//! Which engine an interface gets, and why no other.

use portredir_common::wire::Link;

use super::input::Input;
use super::planned::{LOOPBACK_WARNING, Refused, Rejected};
use crate::config::engine::{Engine, EngineChoice};
use crate::host::features::Features;
use crate::host::snapshot::Interface;

/// Drivers of real NICs whose native XDP costs no offload that matters. Two others are
/// left out: `virtio_net` loses guest TSO and GRO, and with `veth` the peer loses TSO, so
/// that bulk TCP falls to a quarter.
const NATIVE_XDP_DRIVERS: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "ena",
    "fbnic",
    "funeth",
    "gve",
    "i40e",
    "ice",
    "idpf",
    "igb",
    "igc",
    "ionic",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "nfp",
    "qede",
    "sfc",
];

/// The engine for an interface, why that one, and why no other.
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

    fn requested(engine: Engine) -> Self {
        Self::new(engine, "requested with --engine")
    }
}

/// Chooses the engine of an interface.
///
/// # Errors
///
/// The requested engine is not available there.
pub(super) fn choose(input: Input<'_>, interface: &Interface) -> Result<Chosen, Refused> {
    let choice = input.settings.engine;
    match choice {
        EngineChoice::Socket => Ok(Chosen::requested(Engine::Lookup)),
        _ if interface.is_loopback() => Ok(for_loopback(choice, input.features)),
        EngineChoice::Tc => Ok(Chosen::requested(Engine::Tc)),
        EngineChoice::TcClsact => Ok(Chosen::requested(Engine::TcClsact)),
        EngineChoice::Xdp | EngineChoice::XdpGeneric => requested_xdp(input, interface),
        EngineChoice::Auto => Ok(best(input, interface)),
    }
}

fn requested_xdp(input: Input<'_>, interface: &Interface) -> Result<Chosen, Refused> {
    let is_generic = input.settings.engine == EngineChoice::XdpGeneric;
    let engine = if is_generic {
        Engine::XdpGeneric
    } else {
        Engine::XdpNative
    };
    let lacks = if is_generic || input.is_attached(interface) {
        None
    } else {
        lacks_native_xdp(interface)
    };
    match xdp_taken(input, interface).or(lacks) {
        None => Ok(Chosen::requested(engine)),
        Some(why) => Err(Refused {
            index: interface.index,
            name: interface.name.clone(),
            engine,
            why,
        }),
    }
}

/// Native XDP where it is better, else TC.
fn best(input: Input<'_>, interface: &Interface) -> Chosen {
    let costs =
        lacks_native_xdp(interface).or_else(|| cost_of_native_xdp(interface, input.features));
    let whys: Vec<_> = xdp_taken(input, interface)
        .into_iter()
        .chain(costs)
        .chain(missed_by_native_xdp(input, interface))
        .collect();
    if whys.is_empty() {
        let driver = interface.driver.as_deref().unwrap_or_default();
        let why = format!("driver {driver} supports native XDP");
        return Chosen::new(Engine::XdpNative, why);
    }
    let mut chosen = Chosen::new(Engine::Tc, whys.join("; "));
    chosen.rejected = whys
        .into_iter()
        .map(|why| Rejected::new(Engine::XdpNative, why))
        .collect();
    chosen
}

/// Why an interface can have no XDP program of ours, if others have programs in the way.
fn xdp_taken(input: Input<'_>, interface: &Interface) -> Option<String> {
    if input.is_attached(interface) {
        return None;
    }
    if let Some(id) = interface.xdp {
        let program = input.programs.name(id);
        return Some(format!(
            "XDP program {program} is already attached; portredir never replaces it"
        ));
    }
    // "Cannot attach when an upper device already has a program": dev_xdp_attach() in
    // net/core/dev.c. A program of ours gives way.
    input
        .interfaces()
        .filter(|upper| upper.is_upper_of(interface) && !input.is_attached(upper))
        .find_map(|upper| Some((upper, upper.xdp?)))
        .map(|(upper, id)| {
            let (name, program) = (&upper.name, input.programs.name(id));
            format!("upper device {name} has XDP program {program}; the kernel allows none here")
        })
}

/// Which packets reach an interface without passing the XDP program of its driver.
fn missed_by_native_xdp(input: Input<'_>, interface: &Interface) -> Option<String> {
    input
        .interfaces()
        .find(|upper| upper.lower == Some(interface.index) && upper.has_own_egress())
        .map(|upper| {
            let (kind, name) = (what(upper), &upper.name);
            format!("packets that {kind} {name} receives from its siblings bypass native XDP")
        })
}

/// Why native XDP is impossible.
fn lacks_native_xdp(interface: &Interface) -> Option<String> {
    let what = what(interface);
    if interface.link == Link::Ip {
        return Some(format!("{what} has no Ethernet header"));
    }
    let features = interface.xdp_features?;
    (!features.has_native()).then(|| format!("{what} does not support native XDP"))
}

/// Why native XDP is no gain where it is possible.
fn cost_of_native_xdp(interface: &Interface, features: &Features) -> Option<String> {
    match (interface.kind.as_deref(), interface.driver.as_deref()) {
        (Some("veth"), _) => Some("native XDP on veth disables TSO on the peer".into()),
        (Some(kind), _) => Some(format!("{kind} is a virtual device")),
        (None, Some("virtio_net")) => Some("native XDP disables guest TSO and GRO".into()),
        (None, Some(driver)) if NATIVE_XDP_DRIVERS.contains(&driver) => {
            let max_mtu = features.linear_mtu();
            let has_frags = interface
                .xdp_features
                .is_none_or(|features| features.has_frags());
            (!has_frags && interface.mtu > max_mtu).then(|| {
                format!(
                    "MTU {} is too large for native XDP: driver {driver} has no XDP multi-buffer \
                     support (maximum {max_mtu})",
                    interface.mtu
                )
            })
        }
        (None, Some(driver)) => Some(format!(
            "driver {driver} is not known to gain from native XDP"
        )),
        (None, None) => Some("no driver known to gain from native XDP".into()),
    }
}

/// The subject of messages about an interface: its kind, or the driver of a NIC.
fn what(interface: &Interface) -> String {
    match (&interface.kind, &interface.driver) {
        (Some(kind), _) => kind.clone(),
        (None, Some(driver)) => format!("driver {driver}"),
        (None, None) => "the device".into(),
    }
}

/// The engine for loopback. A packet there keeps the conntrack entry of its way out; when
/// it is rewritten, it no longer belongs to that entry.
fn for_loopback(choice: EngineChoice, features: &Features) -> Chosen {
    let tc = match choice {
        EngineChoice::TcClsact => Engine::TcClsact,
        _ => Engine::Tc,
    };
    if let EngineChoice::Tc | EngineChoice::TcClsact = choice {
        let mut chosen = Chosen::requested(tc);
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
        let mut chosen = Chosen::new(tc, why);
        chosen
            .rejected
            .push(Rejected::new(Engine::Cgroup, why.into()));
        chosen.notes.push(LOOPBACK_WARNING.into());
        chosen
    }
}
