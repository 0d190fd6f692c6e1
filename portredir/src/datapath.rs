//! The programs in the kernel: load, fill, attach, detach.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd as _;

use aya::maps::{Array, HashMap as BpfHashMap, MapData, MapError, PerCpuArray, PerCpuHashMap};
use aya::programs::links::LinkOrder;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::xdp::{XdpError, XdpLink};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::sys::SyscallError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use nix::errno::Errno;
use portredir_common::abi::{Addr, Counter, CounterKey, Port, PortEntry};
use portredir_common::wire::Link;
use thiserror::Error;

use crate::ethtool;
use crate::interface::Interface;
use crate::netdev;
use crate::plan::{Engine, Planned};
use crate::rule::Rule;

/// The compiled programs. `cargo xtask build-ebpf` makes them anew.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../ebpf/portredir.bpf.o");

/// How many flows the kernel remembers.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Entries of the TCP table.
    pub tcp_flows: u32,
    /// Entries of the UDP table, and of the one of TCP flows being opened.
    pub udp_flows: u32,
}

/// What went wrong with the kernel.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// The object was refused.
    #[error("load the eBPF object")]
    Load(#[from] EbpfError),
    /// A program was refused.
    #[error("load program {name}")]
    Program {
        /// Its name.
        name: &'static str,
        /// The verifier's words.
        #[source]
        source: ProgramError,
    },
    /// A map could not be read or written.
    #[error("map {name}")]
    Map {
        /// Its name.
        name: &'static str,
        /// The kernel's error.
        #[source]
        source: MapError,
    },
    /// An interface refused a program.
    #[error("attach {what} to {interface}: {reason}")]
    Attach {
        /// Hook and mode.
        what: &'static str,
        /// The interface.
        interface: String,
        /// The kernel's error, in words.
        reason: String,
    },
}

/// Programs, by what they are attached to and what its frames begin with.
mod program {
    use super::Link;

    pub const XDP_FRAGS: &str = "portredir_frags";

    pub const fn xdp(link: Link) -> &'static str {
        match link {
            Link::Ethernet => "portredir_xdp",
            Link::Ip => "portredir_xdpip",
        }
    }

    pub const fn ingress(link: Link) -> &'static str {
        match link {
            Link::Ethernet => "portredir_in",
            Link::Ip => "portredir_in_ip",
        }
    }

    pub const fn egress(link: Link) -> &'static str {
        match link {
            Link::Ethernet => "portredir_out",
            Link::Ip => "portredir_outip",
        }
    }
}

/// What rewrites packets on one interface. Dropping it detaches, ingress first.
#[derive(Debug)]
struct Attached {
    ingress: IngressLink,
    egress: SchedClassifierLink,
    restore: Vec<&'static str>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held to be dropped")]
enum IngressLink {
    Xdp(XdpLink),
    Tc(SchedClassifierLink),
}

/// The datapath of this network namespace.
#[derive(Debug)]
pub struct Datapath {
    ebpf: Ebpf,
    loaded: BTreeSet<&'static str>,
    attached: BTreeMap<u32, Attached>,
    local: HashMap<[u8; 16], u8>,
    /// Interfaces whose clsact qdisc we made.
    clsact: BTreeSet<u32>,
}

impl Datapath {
    /// Creates the maps and fills in the rules; attaches nothing.
    ///
    /// With `log_level` above zero the programs log decisions, see
    /// [`aya_log::Level`].
    ///
    /// # Errors
    ///
    /// [`DatapathError::Load`], [`DatapathError::Map`].
    pub fn load(rules: &[Rule], sizes: Sizes, log_level: u8) -> Result<Self, DatapathError> {
        let ebpf = EbpfLoader::new()
            .override_global(aya_log::LEVEL, &log_level, true)
            .map_max_entries("TCP", sizes.tcp_flows)
            .map_max_entries("SYN", sizes.udp_flows)
            .map_max_entries("UDP", sizes.udp_flows)
            .load(OBJECT)?;
        let mut datapath = Self {
            ebpf,
            loaded: BTreeSet::new(),
            attached: BTreeMap::new(),
            local: HashMap::new(),
            clsact: BTreeSet::new(),
        };
        let name = "PORTS";
        let mut ports =
            Array::<_, PortEntry>::try_from(datapath.map(name)).map_err(map_error(name))?;
        for (index, entry) in port_entries(rules) {
            ports.set(index, entry, 0).map_err(map_error(name))?;
        }
        Ok(datapath)
    }

    /// For the log reader, which has to be set up before the first attach.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Loads and returns a program, for running it on a packet.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`].
    pub fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P, DatapathError>
    where
        P: Load,
        &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
    {
        let is_new = !self.loaded.contains(name);
        let program: &mut P = self
            .ebpf
            .program_mut(name)
            .expect("the object has the program")
            .try_into()
            .map_err(|source| DatapathError::Program { name, source })?;
        if is_new {
            program
                .load_into_kernel()
                .map_err(|source| DatapathError::Program { name, source })?;
            self.loaded.insert(name);
        }
        Ok(program)
    }

    fn map(&mut self, name: &str) -> &mut aya::maps::Map {
        self.ebpf.map_mut(name).expect("the object has the map")
    }

    /// The interfaces that are attached, by index.
    #[must_use]
    pub fn attached(&self) -> BTreeSet<u32> {
        self.attached.keys().copied().collect()
    }

    /// Makes `addrs` the addresses whose packets are redirected.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn set_local(&mut self, addrs: &HashMap<[u8; 16], u8>) -> Result<(), DatapathError> {
        let name = "LOCAL";
        // What fails is tried again with the next change.
        let mut local = self.local.clone();
        let mut map =
            BpfHashMap::<_, Addr, u8>::try_from(self.map(name)).map_err(map_error(name))?;
        let mut result = Ok(());
        for (addr, reach) in addrs {
            if local.get(addr) != Some(reach) {
                let inserted = map.insert(Addr(*addr), reach, 0);
                if inserted.is_ok() {
                    local.insert(*addr, *reach);
                }
                result = result.and(inserted);
            }
        }
        local.retain(|addr, _| {
            let is_kept = addrs.contains_key(addr);
            is_kept || map.remove(&Addr(*addr)).is_err()
        });
        self.local = local;
        result.map_err(map_error(name))
    }

    /// Attaches to an interface and returns the mode that worked.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`], [`DatapathError::Attach`]; nothing is left
    /// attached then.
    pub fn attach(&mut self, planned: &Planned) -> Result<&'static str, DatapathError> {
        let interface = &planned.interface;
        let is_tcx_allowed = planned.engine != Engine::TcClsact;
        self.sweep(interface);
        // Egress first: a packet must not be rewritten before its reply would be.
        let (egress, _) = self.attach_tc(interface, TcAttachType::Egress, is_tcx_allowed)?;
        let mut restore = Vec::new();
        let (ingress, mode) = match planned.engine {
            Engine::Tc | Engine::TcClsact => {
                let (link, mode) =
                    self.attach_tc(interface, TcAttachType::Ingress, is_tcx_allowed)?;
                (IngressLink::Tc(link), mode)
            }
            Engine::XdpNative => {
                let (link, mode) = self.attach_xdp(interface, XdpMode::Driver)?;
                (IngressLink::Xdp(link), mode)
            }
            Engine::XdpGeneric => {
                restore = features_on(&interface.name);
                let (link, mode) = self.attach_xdp(interface, XdpMode::Skb)?;
                (IngressLink::Xdp(link), mode)
            }
            Engine::Lookup | Engine::Cgroup => {
                return Err(DatapathError::Attach {
                    what: planned.hook,
                    interface: interface.name.clone(),
                    reason: "this build has no such engine".into(),
                });
            }
        };
        let attached = Attached {
            ingress,
            egress,
            restore,
        };
        self.attached.insert(interface.index, attached);
        Ok(mode)
    }

    /// Removes clsact filters of a run that was killed, which outlive it: we
    /// hold the lock, so they are nobody else's.
    fn sweep(&mut self, interface: &Interface) {
        let Interface {
            name, index, link, ..
        } = interface;
        for (direction, program) in [
            (TcAttachType::Ingress, program::ingress(*link)),
            (TcAttachType::Egress, program::egress(*link)),
        ] {
            if tc::qdisc_detach_program(name, direction, program).is_ok() {
                // Then the qdisc is of that run as well.
                self.clsact.insert(*index);
            }
        }
    }

    /// Detaches from an interface and puts its settings back.
    pub fn detach(&mut self, index: u32, name: &str) {
        let Some(Attached {
            ingress,
            egress,
            restore,
        }) = self.attached.remove(&index)
        else {
            return;
        };
        // A packet must not be rewritten after its reply no longer is.
        drop(ingress);
        drop(egress);
        for feature in restore {
            if let Err(error) = ethtool::set_feature(name, feature, true) {
                log::warn!("{name}: switch {feature} on again: {error}");
            }
        }
    }

    /// Whether the clsact qdisc of an interface is ours to remove. Says so once.
    pub fn forget_clsact(&mut self, index: u32) -> bool {
        self.clsact.remove(&index)
    }

    fn attach_xdp(
        &mut self,
        interface: &Interface,
        mode: XdpMode,
    ) -> Result<(XdpLink, &'static str), DatapathError> {
        let mut attach = |program: &'static str, what: &'static str| {
            let program: &mut Xdp = self.program(program)?;
            program
                .attach_to_if_index(interface.index, mode)
                .and_then(|id| program.take_link(id))
                .map_err(|error| DatapathError::Attach {
                    what,
                    interface: interface.name.clone(),
                    reason: attach_reason(&error, program, interface.index, mode),
                })
        };
        let (with_frags, without) = match mode {
            XdpMode::Driver => ("native+frags", "native"),
            _ => ("generic+frags", "generic"),
        };
        if interface.link == Link::Ethernet {
            match attach(program::XDP_FRAGS, with_frags) {
                Ok(link) => return Ok((link, with_frags)),
                // The kernel (before 5.18) or the driver has no frags.
                Err(error) => log::debug!("{}: {}", interface.name, chain(&error)),
            }
        }
        Ok((attach(program::xdp(interface.link), without)?, without))
    }

    fn attach_tc(
        &mut self,
        interface: &Interface,
        direction: TcAttachType,
        is_tcx_allowed: bool,
    ) -> Result<(SchedClassifierLink, &'static str), DatapathError> {
        let Interface {
            name, index, link, ..
        } = interface;
        let is_ingress = direction == TcAttachType::Ingress;
        let program_name = if is_ingress {
            program::ingress(*link)
        } else {
            program::egress(*link)
        };
        let program: &mut SchedClassifier = self.program(program_name)?;
        let error = |what, reason| DatapathError::Attach {
            what,
            interface: name.clone(),
            reason,
        };
        if is_tcx_allowed {
            // First in both directions: a program before us that ends the chain
            // would leave packets half redirected.
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            match program.attach_with_options(name, direction, options) {
                Ok(id) => {
                    let link = program.take_link(id).map_err(|e| error("tcx", chain(&e)))?;
                    return Ok((link, "tcx"));
                }
                // Before 6.6 the attach type does not exist.
                Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
                    if io_error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(e) => return Err(error("tcx", chain(&e))),
            }
        }
        match tc::qdisc_add_clsact(name) {
            Ok(()) => {
                self.clsact.insert(*index);
            }
            Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => {}
            Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::ENOENT) => {
                let hint = "; are the kernel modules sch_ingress and cls_bpf there?";
                return Err(error("clsact", chain(&e) + hint));
            }
            Err(e) => return Err(error("clsact", chain(&e))),
        }
        let program: &mut SchedClassifier = self.program(program_name)?;
        let mut attach = |priority| {
            let options = NlOptions {
                priority,
                handle: TcHandle::AUTO_ASSIGN,
                classid: None,
            };
            program.attach_with_options(name, direction, TcAttachOptions::Netlink(options))
        };
        // The first priority there is; of programs with the same, the last to
        // come is the first to run.
        let id = attach(1).or_else(|refused| {
            log::warn!(
                "{name}: a tc filter of another kind has priority 1 and comes before ours; if it \
                 ends the chain nothing is redirected here ({})",
                chain(&refused)
            );
            attach(0)
        });
        let link = id
            .and_then(|id| program.take_link(id))
            .map_err(|e| error("clsact", chain(&e)))?;
        Ok((link, "clsact"))
    }

    /// The counters of all rules on all interfaces, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn counters(&self) -> Result<Vec<(CounterKey, Counter)>, DatapathError> {
        let name = "COUNTERS";
        let map = self.ebpf.map(name).expect("the object has the map");
        let map = PerCpuHashMap::<&MapData, CounterKey, Counter>::try_from(map)
            .map_err(map_error(name))?;
        map.iter()
            .map(|entry| {
                let (key, per_cpu) = entry?;
                let sum = per_cpu.iter().fold(Counter::default(), |sum, cpu| Counter {
                    packets: sum.packets + cpu.packets,
                    bytes: sum.bytes + cpu.bytes,
                    flows: sum.flows + cpu.flows,
                    last_hit_ns: sum.last_hit_ns.max(cpu.last_hit_ns),
                });
                Ok((key, sum))
            })
            .collect::<Result<_, MapError>>()
            .map_err(map_error(name))
    }

    /// How often each [`Reason`](portredir_common::verdict::Reason) was met,
    /// in their order.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn reasons(&self) -> Result<Vec<u64>, DatapathError> {
        let name = "REASONS";
        let map = self.ebpf.map(name).expect("the object has the map");
        let map = PerCpuArray::<&MapData, u64>::try_from(map).map_err(map_error(name))?;
        map.iter()
            .map(|per_cpu| Ok(per_cpu?.iter().sum()))
            .collect::<Result<_, MapError>>()
            .map_err(map_error(name))
    }
}

const fn map_error(name: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |source| DatapathError::Map { name, source }
}

/// Kinds of programs that are loaded on first use.
pub trait Load {
    /// Loads the program into the kernel.
    ///
    /// # Errors
    ///
    /// When the verifier refuses it.
    fn load_into_kernel(&mut self) -> Result<(), ProgramError>;
}

impl Load for Xdp {
    fn load_into_kernel(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}

impl Load for SchedClassifier {
    fn load_into_kernel(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}

/// The entries of `PORTS` that are not empty.
fn port_entries(rules: &[Rule]) -> HashMap<u32, PortEntry> {
    let mut entries = HashMap::<u32, PortEntry>::new();
    for (id, rule) in rules.iter().enumerate() {
        for &protocol in rule.protocols.each() {
            let target = PortEntry::index(protocol, Port::new(rule.target));
            entries.entry(target).or_default().flags |= PortEntry::TARGET;
            let dialled = PortEntry::index(protocol, Port::new(rule.dialled));
            let entry = entries.entry(dialled).or_default();
            entry.flags |= PortEntry::MATCH;
            entry.target = rule.target;
            entry.rule = u16::try_from(id).expect("the list of rules was checked");
        }
    }
    entries
}

/// The offloads of an interface that generic XDP will switch off.
fn features_on(interface: &str) -> Vec<&'static str> {
    let names = ethtool::CLEARED_BY_GENERIC_XDP;
    let on = ethtool::features(interface, &names).unwrap_or_default();
    names
        .into_iter()
        .zip(on)
        .filter_map(|(name, is_on)| is_on.then_some(name))
        .collect()
}

/// Why XDP was refused: the number's meaning, and the kernel's own words where
/// it has any.
fn attach_reason(error: &ProgramError, program: &Xdp, index: u32, mode: XdpMode) -> String {
    let number = match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => io_error.raw_os_error(),
        // aya falls back to netlink where links are not to be had.
        ProgramError::XdpError(XdpError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    };
    let Some(number) = number else {
        return chain(error);
    };
    let errno = Errno::from_raw(number);
    let words = program
        .fd()
        .ok()
        .and_then(|fd| netdev::refusal(index, fd.as_fd(), mode));
    let reason = match words {
        Some(words) => format!("{words} ({errno:?})"),
        None => errno.to_string(),
    };
    match errno {
        Errno::EBUSY | Errno::EEXIST | Errno::EOPNOTSUPP => reason + "; use --engine tc or auto",
        _ => reason,
    }
}

/// An error with what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use portredir_common::abi::Protocol;

    #[test]
    fn chained_rules_share_an_entry() {
        let rules = ["80:8080", "8080:9090", "53:5353/udp"].map(|r| r.parse().expect("a rule"));
        let entries = port_entries(&rules);
        let at = |protocol, port| entries.get(&PortEntry::index(protocol, Port::new(port)));
        let both = at(Protocol::Tcp, 8080).expect("an entry");
        assert!(both.is_match() && both.is_target());
        assert_eq!((both.target, both.rule), (9090, 1));
        assert!(!at(Protocol::Tcp, 80).expect("an entry").is_target());
        assert!(at(Protocol::Tcp, 53).is_none());
        assert_eq!(at(Protocol::Udp, 53).map(|e| e.target), Some(5353));
        assert_eq!(entries.len(), 5);
    }
}
