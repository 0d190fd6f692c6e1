//! Which interfaces get programs, of which engine, and why. Pure: a snapshot
//! goes in, nothing is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use portredir_common::abi::LOOPBACK_IFINDEX;
use portredir_common::wire::Link;
use thiserror::Error;

use crate::interface::{Interface, Snapshot};

/// What the user asked for with `--engine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineChoice {
    /// The best for each interface, never generic XDP.
    #[default]
    Auto,
    /// Native XDP everywhere.
    Xdp,
    /// TC everywhere: TCX, or clsact on kernels before 6.6.
    Tc,
    /// Generic XDP everywhere: works on every device, slower than TC.
    XdpGeneric,
    /// By sockets.
    Socket,
    /// TC by clsact even where TCX exists; for tests.
    #[value(hide = true)]
    TcClsact,
}

/// Where packets that come in are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// XDP in the driver.
    XdpNative,
    /// XDP in the stack.
    XdpGeneric,
    /// TC ingress: TCX, else clsact.
    Tc,
    /// TC ingress by clsact.
    TcClsact,
    /// Connections are given to listeners by `sk_lookup`.
    Lookup,
    /// Clients on this host, by cgroup hooks.
    Cgroup,
}

impl Engine {
    /// The name in the plan and in `--json`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::XdpNative => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Tc | Self::TcClsact => "tc",
            Self::Lookup | Self::Cgroup => "socket",
        }
    }
}

/// Drivers of real NICs whose native XDP costs no offload that matters. Not
/// among them: `virtio_net` (guest TSO and GRO go off), `veth` (the peer's TSO
/// goes off and bulk TCP falls to a quarter).
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

/// `--iface`: names, or everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Every interface that is up, but not those whose packets another one
    /// sees as well.
    All,
    /// These, by name.
    Names(Vec<String>),
}

/// What will be done with one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The interface.
    pub interface: Interface,
    /// Where its packets are rewritten.
    pub engine: Engine,
    /// Why there.
    pub why: String,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<15} {:<11} {}",
            self.interface.name,
            self.engine.name(),
            self.why
        )
    }
}

/// Why an interface that was looked at gets no programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// The reason.
    pub why: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<15} {:<11} {}", self.name, "-", self.why)
    }
}

/// The whole plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// By interface index.
    pub attach: BTreeMap<u32, Planned>,
    /// The others.
    pub skip: Vec<Skipped>,
    /// Where the engine that was asked for is impossible.
    pub refuse: Vec<PlanError>,
}

/// Why there can be no plan.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// `--iface` names nothing that exists.
    #[error("no interface `{name}`; there are: {}", .known.join(", "))]
    UnknownInterface {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A forced XDP engine finds the slot taken.
    #[error(
        "{interface} already has an XDP program, {program}, which is never replaced; use --engine tc or auto"
    )]
    ForeignXdp {
        /// The interface.
        interface: String,
        /// The program that is there.
        program: String,
    },
    /// Native XDP needs a driver with an Ethernet header.
    #[error("{interface} has no Ethernet header and so no native XDP; use --engine tc or auto")]
    NoNativeXdp {
        /// The interface.
        interface: String,
    },
}

/// Tells what an XDP program is called: user space knows its ID alone.
pub type ProgramName<'a> = &'a dyn Fn(u32) -> String;

impl Snapshot {
    /// Plans what to attach to.
    ///
    /// An interface in `attached` is kept while it exists, also under another
    /// name; its own XDP program is not foreign.
    ///
    /// What is impossible is in [`Plan::refuse`].
    #[must_use]
    pub fn plan(
        &self,
        selection: &Selection,
        choice: EngineChoice,
        attached: &BTreeSet<u32>,
        program_name: ProgramName<'_>,
    ) -> Plan {
        let mut plan = Plan::default();
        let candidates: Vec<_> = match selection {
            Selection::All => self.interfaces.values().filter(|i| i.is_up).collect(),
            Selection::Names(names) => self
                .interfaces
                .values()
                .filter(|i| names.contains(&i.name) || attached.contains(&i.index))
                .collect(),
        };
        let indexes: BTreeSet<_> = candidates.iter().map(|i| i.index).collect();
        for interface in candidates {
            if let Some(why) = self.covered(interface, selection, &indexes) {
                plan.skip.push(Skipped {
                    name: interface.name.clone(),
                    why,
                });
                continue;
            }
            let is_ours = attached.contains(&interface.index);
            let foreign = interface.xdp.filter(|_| !is_ours).map(program_name);
            match choose(interface, choice, selection, foreign) {
                Ok((engine, why)) => {
                    let planned = Planned {
                        interface: interface.clone(),
                        engine,
                        why,
                    };
                    plan.attach.insert(interface.index, planned);
                }
                Err(error) => plan.refuse.push(error),
            }
        }
        plan
    }

    /// Checks that every name exists.
    ///
    /// # Errors
    ///
    /// [`PlanError::UnknownInterface`].
    pub fn check_names(&self, selection: &Selection) -> Result<(), PlanError> {
        let Selection::Names(names) = selection else {
            return Ok(());
        };
        let known: Vec<_> = self.interfaces.values().map(|i| i.name.clone()).collect();
        match names.iter().find(|name| !known.contains(name)) {
            Some(name) => Err(PlanError::UnknownInterface {
                name: name.clone(),
                known,
            }),
            None => Ok(()),
        }
    }

    /// Why the packets of an interface are rewritten elsewhere: a packet must
    /// cross one of our hooks, not two, or `80:8080 8080:9090` would chain.
    fn covered(
        &self,
        interface: &Interface,
        selection: &Selection,
        selected: &BTreeSet<u32>,
    ) -> Option<String> {
        if let Some(master) = interface
            .master
            .and_then(|index| self.interfaces.get(&index))
        {
            let kind = master.kind.as_deref().unwrap_or("master");
            // The ports of a VRF receive for themselves.
            let is_port = kind != "vrf";
            if is_port && (*selection == Selection::All || selected.contains(&master.index)) {
                return Some(format!(
                    "port of {kind} {}, which is used instead",
                    master.name
                ));
            }
        }
        if interface.kind.as_deref() == Some("vrf") {
            return Some("VRF; its ports are used instead".into());
        }
        // Tunnels name a device below them too, but packets arrive there wrapped.
        let kind = interface.kind.as_deref()?;
        if !matches!(kind, "vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap") {
            return None;
        }
        let lower = self.interfaces.get(&interface.lower?)?;
        (selected.contains(&lower.index) && self.covered(lower, selection, selected).is_none())
            .then(|| format!("{kind} on {}, which sees its packets first", lower.name))
    }
}

fn choose(
    interface: &Interface,
    choice: EngineChoice,
    selection: &Selection,
    foreign_xdp: Option<String>,
) -> Result<(Engine, String), PlanError> {
    let name = &interface.name;
    if let (EngineChoice::Xdp | EngineChoice::XdpGeneric, Some(program)) = (choice, &foreign_xdp) {
        return Err(PlanError::ForeignXdp {
            interface: name.clone(),
            program: program.clone(),
        });
    }
    let is_xdp = matches!(choice, EngineChoice::Xdp | EngineChoice::XdpGeneric);
    if is_xdp && interface.index == LOOPBACK_IFINDEX && *selection == Selection::All {
        // It would copy every packet of up to 64 KiB.
        return Ok((Engine::Tc, "XDP on loopback only slows it down".into()));
    }
    let asked = "asked for by --engine".to_owned();
    match choice {
        EngineChoice::Xdp if interface.link == Link::Ip => {
            return Err(PlanError::NoNativeXdp {
                interface: name.clone(),
            });
        }
        EngineChoice::Xdp => return Ok((Engine::XdpNative, asked)),
        EngineChoice::XdpGeneric => return Ok((Engine::XdpGeneric, asked)),
        EngineChoice::Tc => return Ok((Engine::Tc, asked)),
        EngineChoice::Socket => return Ok((Engine::Lookup, asked)),
        EngineChoice::TcClsact => return Ok((Engine::TcClsact, asked)),
        EngineChoice::Auto => {}
    }
    if let Some(program) = foreign_xdp {
        return Ok((
            Engine::Tc,
            format!("XDP is taken by {program}, which is left alone"),
        ));
    }
    if interface.index == LOOPBACK_IFINDEX {
        return Ok((Engine::Cgroup, "loopback has no native XDP".into()));
    }
    let kind = interface.kind.as_deref();
    let driver = interface.driver.as_deref();
    let why = match (kind, driver) {
        (Some("veth"), _) => "native XDP on veth would cost the peer its TSO".into(),
        (Some(kind), _) if interface.link == Link::Ip => format!("{kind} has no Ethernet header"),
        (Some(kind), _) => format!("{kind} is a virtual device"),
        (None, Some("virtio_net")) => "native XDP would switch guest TSO and GRO off".into(),
        (None, Some(driver)) if NATIVE_XDP_DRIVERS.contains(&driver) => {
            return Ok((Engine::XdpNative, format!("driver {driver} has native XDP")));
        }
        (None, Some(driver)) => format!("driver {driver} is not known to be better with XDP"),
        (None, None) => "no driver known to be better with XDP".into(),
    };
    Ok((Engine::Tc, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str) -> Interface {
        Interface {
            index,
            name: name.into(),
            is_up: true,
            link: Link::Ethernet,
            kind: None,
            driver: None,
            master: None,
            lower: None,
            xdp: None,
        }
    }

    fn kind(index: u32, name: &str, kind: &str) -> Interface {
        Interface {
            kind: Some(kind.into()),
            ..interface(index, name)
        }
    }

    fn driver(index: u32, name: &str, driver: &str) -> Interface {
        Interface {
            driver: Some(driver.into()),
            ..interface(index, name)
        }
    }

    fn snapshot(interfaces: impl IntoIterator<Item = Interface>) -> Snapshot {
        Snapshot {
            interfaces: interfaces.into_iter().map(|i| (i.index, i)).collect(),
            ..Snapshot::default()
        }
    }

    fn plan(snapshot: &Snapshot, selection: &Selection, choice: EngineChoice) -> Plan {
        snapshot.plan(selection, choice, &BTreeSet::new(), &|id| {
            format!("probe (id {id})")
        })
    }

    fn names(list: &[&str]) -> Selection {
        Selection::Names(list.iter().map(ToString::to_string).collect())
    }

    fn engines(plan: &Plan) -> Vec<(&str, &str)> {
        plan.attach
            .values()
            .map(|p| (p.interface.name.as_str(), p.engine.name()))
            .collect()
    }

    #[test]
    fn auto_uses_native_xdp_on_real_nics_alone() {
        let snapshot = snapshot([
            interface(1, "lo"),
            driver(2, "eth0", "i40e"),
            driver(3, "eth1", "virtio_net"),
            kind(4, "veth0", "veth"),
            Interface {
                link: Link::Ip,
                ..kind(5, "wg0", "wireguard")
            },
            driver(6, "wlan0", "iwlwifi"),
        ]);
        let plan = plan(&snapshot, &Selection::All, EngineChoice::Auto);
        let expected = [
            ("lo", "tc"),
            ("eth0", "xdp"),
            ("eth1", "tc"),
            ("veth0", "tc"),
            ("wg0", "tc"),
            ("wlan0", "tc"),
        ];
        assert_eq!(engines(&plan), expected);
        assert!(plan.attach.values().all(|p| !p.why.is_empty()));
    }

    #[test]
    fn a_packet_crosses_one_hook() {
        let port = Interface {
            master: Some(3),
            ..kind(4, "veth0", "veth")
        };
        let vlan_on_bridge = Interface {
            lower: Some(3),
            ..kind(5, "br0.10", "vlan")
        };
        let vlan_on_port = Interface {
            lower: Some(4),
            ..kind(6, "veth0.20", "vlan")
        };
        let down = Interface {
            is_up: false,
            ..interface(7, "eth9")
        };
        let tunnel = Interface {
            lower: Some(3),
            ..kind(8, "vxlan0", "vxlan")
        };
        let snapshot = snapshot([
            kind(3, "br0", "bridge"),
            port,
            vlan_on_bridge,
            vlan_on_port,
            down,
            tunnel,
        ]);
        let all = plan(&snapshot, &Selection::All, EngineChoice::Tc);
        // The port is left to the bridge, so a VLAN on the port is on its own.
        assert_eq!(
            engines(&all),
            [("br0", "tc"), ("veth0.20", "tc"), ("vxlan0", "tc")]
        );
        assert_eq!(
            all.skip.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "veth0           -           port of bridge br0, which is used instead",
                "br0.10          -           vlan on br0, which sees its packets first",
            ]
        );
        let alone = plan(&snapshot, &names(&["veth0"]), EngineChoice::Tc);
        assert_eq!(engines(&alone), [("veth0", "tc")]);
        let both = plan(&snapshot, &names(&["veth0", "br0"]), EngineChoice::Tc);
        assert_eq!(engines(&both), [("br0", "tc")]);
    }

    #[test]
    fn foreign_xdp_is_named_and_left_alone() {
        let snapshot = snapshot([Interface {
            xdp: Some(7),
            ..driver(2, "eth0", "ice")
        }]);
        let auto = plan(&snapshot, &Selection::All, EngineChoice::Auto);
        assert_eq!(engines(&auto), [("eth0", "tc")]);
        assert!(auto.attach[&2].why.contains("probe (id 7)"));
        let forced = plan(&snapshot, &Selection::All, EngineChoice::Xdp);
        assert!(forced.attach.is_empty());
        let error = forced.refuse[0].to_string();
        assert!(
            error.contains("eth0 already has an XDP program, probe (id 7)"),
            "{error}"
        );
        let ours = snapshot.plan(
            &Selection::All,
            EngineChoice::Xdp,
            &BTreeSet::from([2]),
            &|_| unreachable!(),
        );
        assert_eq!(engines(&ours), [("eth0", "xdp")]);
    }

    #[test]
    fn unknown_names_are_refused_with_those_that_exist() {
        let snapshot = snapshot([interface(1, "lo"), interface(2, "eth0")]);
        let error = snapshot
            .check_names(&names(&["eth0", "eth1"]))
            .expect_err("refused");
        assert_eq!(
            error.to_string(),
            "no interface `eth1`; there are: lo, eth0"
        );
    }

    #[test]
    fn attached_interfaces_are_kept_when_renamed() {
        let snapshot = snapshot([interface(2, "lan0")]);
        let plan = snapshot.plan(
            &names(&["eth0"]),
            EngineChoice::Tc,
            &BTreeSet::from([2]),
            &|_| unreachable!(),
        );
        assert_eq!(engines(&plan), [("lan0", "tc")]);
    }
}
