//! The programs in the kernel: load, fill, attach, detach.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use aya::maps::{
    Array, HashMap as BpfHashMap, MapData, MapError, PerCpuArray, PerCpuHashMap, SockHash,
};
use aya::programs::cgroup_sock_addr::CgroupSockAddrLink;
use aya::programs::links::{CgroupAttachMode, LinkOrder};
use aya::programs::sk_lookup::SkLookupLink;
use aya::programs::sock_ops::SockOpsLink;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::xdp::{XdpError, XdpLink};
use aya::programs::{
    CgroupSockAddr, ProgramError, SchedClassifier, SkLookup, SockOps, TcAttachType, TestRun as _,
    TestRunOptions, Xdp, XdpMode,
};
use aya::sys::SyscallError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use nix::errno::Errno;
use portredir_common::abi::{
    Addr, Counter, CounterKey, Flow, FlowKey, ListenerKey, Port, PortEntry, Protocol,
};
use portredir_common::wire::Link;
use thiserror::Error;

use crate::ethtool;
use crate::interface::Interface;
use crate::netdev;
use crate::plan::{Engine, Planned};
use crate::rule::Rule;
use crate::sockets::TcpSocket;

/// The compiled programs. `cargo xtask build-ebpf` makes them anew.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../ebpf/portredir.bpf.o");

/// How many flows the kernel remembers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// Entries of the TCP table.
    pub tcp_flows: u32,
    /// Entries of the UDP table, and of the one of TCP flows being opened.
    pub udp_flows: u32,
}

/// What is settled once, before the first program is loaded.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Of the flow tables.
    pub sizes: Sizes,
    /// Above zero the programs log decisions, see [`aya_log::Level`].
    pub log_level: u8,
    /// The cgroup of the processes that count as clients and servers here.
    pub cgroup: Option<PathBuf>,
    /// Whether servers on loopback addresses serve other hosts.
    pub allow_loopback_target: bool,
    /// Whether every interface is used, so that nothing is lost when the kernel
    /// cannot tell by which one a connection came in.
    pub is_everywhere: bool,
}

impl From<Sizes> for Options {
    fn from(sizes: Sizes) -> Self {
        Self {
            sizes,
            ..Self::default()
        }
    }
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
    /// A hook that belongs to no interface refused a program.
    #[error("attach {program} to {to}")]
    Hook {
        /// The program.
        program: &'static str,
        /// The cgroup or network namespace.
        to: String,
        /// The kernel's error.
        #[source]
        source: ProgramError,
    },
    /// A file that stands for something to attach to.
    #[error("open {path}")]
    Open {
        /// Its path.
        path: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// `sk_lookup` of Linux before 5.17.
    #[error(
        "this kernel does not tell by which interface a connection came in; \
         use --iface all without --no-local, or --engine tc"
    )]
    NoIfindex(#[source] ProgramError),
    /// Servers that listen could not be looked up.
    #[error("look up the servers that listen")]
    Scan(#[source] ProgramError),
    /// Clients on this host are told apart by their cgroup.
    #[error("no cgroup v2 hierarchy is mounted")]
    NoCgroup,
}

/// Programs, by what they are attached to and what its frames begin with.
mod program {
    use super::Link;

    pub const XDP_FRAGS: &str = "portredir_frags";
    /// Knows the interface.
    pub const LOOKUP: &str = "portredir_look";
    pub const LOOKUP_EVERYWHERE: &str = "portredir_lkall";
    pub const REGISTER: &str = "portredir_reg";
    pub const SCAN: &str = "portredir_scan";
    /// For clients on this host.
    pub const CLIENT: [&str; 8] = [
        // What answers before what asks: a client must not be redirected before
        // it would be told so.
        "portredir_recv4",
        "portredir_recv6",
        "portredir_peer4",
        "portredir_peer6",
        "portredir_send4",
        "portredir_send6",
        "portredir_conn4",
        "portredir_conn6",
    ];

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

/// A link takes no flag; it always runs beside the programs of others.
const LINK_MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// What redirects on one interface. Dropping it detaches.
#[derive(Debug)]
enum Attached {
    /// Packets are rewritten.
    Wire {
        /// `None` where packets that come in are met elsewhere.
        ingress: Option<IngressLink>,
        egress: SchedClassifierLink,
        restore: Vec<&'static str>,
    },
    /// Connections are given to listeners: [`Datapath::lookup`].
    Lookup,
    /// Clients on this host are pointed elsewhere.
    Clients(#[expect(dead_code, reason = "held to be dropped")] Vec<CgroupSockAddrLink>),
}

/// The engine for listeners, of the whole network namespace.
#[derive(Debug)]
#[expect(dead_code, reason = "held to be dropped")]
struct Lookup {
    link: SkLookupLink,
    register: Option<SockOpsLink>,
}

/// A server that could not be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unregistered {
    /// The port it listens on.
    pub port: u16,
    /// The kernel's `errno`.
    pub errno: i32,
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
    options: Options,
    rules: Vec<Rule>,
    attached: BTreeMap<u32, Attached>,
    lookup: Option<Lookup>,
    local: HashMap<[u8; 16], u8>,
    /// Interfaces whose clsact qdisc we made.
    clsact: BTreeSet<u32>,
}

impl Datapath {
    /// Creates the maps and fills in the rules; attaches nothing.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Load`], [`DatapathError::Map`].
    pub fn load(rules: &[Rule], options: Options) -> Result<Self, DatapathError> {
        let netns_cookie = netns_cookie()?;
        let ebpf = EbpfLoader::new()
            .override_global(aya_log::LEVEL, &options.log_level, true)
            .override_global("NETNS_COOKIE", &netns_cookie, true)
            .override_global(
                "LOOPBACK_TARGET",
                &u8::from(options.allow_loopback_target),
                true,
            )
            .map_max_entries("TCP", options.sizes.tcp_flows)
            .map_max_entries("SYN", options.sizes.udp_flows)
            .map_max_entries("UDP", options.sizes.udp_flows)
            .load(OBJECT)?;
        let mut datapath = Self {
            ebpf,
            loaded: BTreeSet::new(),
            options,
            rules: rules.to_vec(),
            attached: BTreeMap::new(),
            lookup: None,
            local: HashMap::new(),
            clsact: BTreeSet::new(),
        };
        datapath.set_ports(0)?;
        Ok(datapath)
    }

    /// Writes the rules into the kernel, with `flags` at the dialled ports.
    fn set_ports(&mut self, flags: u32) -> Result<(), DatapathError> {
        let name = "PORTS";
        let entries = port_entries(&self.rules);
        let mut ports = Array::<_, PortEntry>::try_from(self.map(name)).map_err(map_error(name))?;
        for (index, mut entry) in entries {
            if entry.is_match() {
                entry.flags |= flags;
            }
            ports.set(index, entry, 0).map_err(map_error(name))?;
        }
        Ok(())
    }

    /// Lets new flows go to the dialled port; those that are known go on.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn drain(&mut self) -> Result<(), DatapathError> {
        self.set_ports(PortEntry::DRAIN)
    }

    /// How many of the connections need their packets rewritten.
    #[must_use]
    pub fn count_redirected(&self, connections: &[TcpSocket]) -> usize {
        let is_rewriting = |attached: &Attached| matches!(attached, Attached::Wire { .. });
        if !self.attached.values().any(is_rewriting) {
            return 0;
        }
        let tables: Vec<_> = ["TCP", "SYN"]
            .into_iter()
            .filter_map(|name| self.ebpf.map(name))
            .filter_map(|map| BpfHashMap::<_, FlowKey, Flow>::try_from(map).ok())
            .collect();
        let is_redirected = |key: &FlowKey| {
            tables
                .iter()
                .filter_map(|table| table.get(key, 0).ok())
                .any(|flow| flow.dialled_port != key.local_port)
        };
        connections
            .iter()
            .map(|socket| &socket.key)
            .filter(|key| self.is_target(key.local_port.get()) && is_redirected(key))
            .count()
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

    /// The interfaces that are attached, by index, and whether only for what
    /// goes out.
    #[must_use]
    pub fn attached(&self) -> BTreeMap<u32, bool> {
        let is_egress_only =
            |attached: &Attached| matches!(attached, Attached::Wire { ingress: None, .. });
        self.attached
            .iter()
            .map(|(index, attached)| (*index, is_egress_only(attached)))
            .collect()
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
    /// Any [`DatapathError`]; nothing is left attached then.
    pub fn attach(&mut self, planned: &Planned) -> Result<&'static str, DatapathError> {
        let (attached, mode) = match planned.engine {
            Engine::Lookup => (self.attach_lookup(planned.interface.index)?, "sk_lookup"),
            Engine::Cgroup => (self.attach_clients()?, "cgroup"),
            _ => self.attach_wire(planned)?,
        };
        self.attached.insert(planned.interface.index, attached);
        Ok(mode)
    }

    fn attach_wire(
        &mut self,
        planned: &Planned,
    ) -> Result<(Attached, &'static str), DatapathError> {
        let interface = &planned.interface;
        let is_tcx_allowed = planned.engine != Engine::TcClsact;
        self.sweep(interface);
        // Egress first: a packet must not be rewritten before its reply would be.
        let (egress, mode) = self.attach_tc(interface, TcAttachType::Egress, is_tcx_allowed)?;
        let mut restore = Vec::new();
        let (ingress, mode) = match planned.engine {
            _ if planned.is_egress_only => (None, mode),
            Engine::XdpNative => {
                let (link, mode) = self.attach_xdp(interface, XdpMode::Driver)?;
                (Some(IngressLink::Xdp(link)), mode)
            }
            Engine::XdpGeneric => {
                restore = features_on(&interface.name);
                let (link, mode) = self.attach_xdp(interface, XdpMode::Skb)?;
                (Some(IngressLink::Xdp(link)), mode)
            }
            _ => {
                let (link, mode) =
                    self.attach_tc(interface, TcAttachType::Ingress, is_tcx_allowed)?;
                (Some(IngressLink::Tc(link)), mode)
            }
        };
        let attached = Attached::Wire {
            ingress,
            egress,
            restore,
        };
        Ok((attached, mode))
    }

    /// Lets the listeners have the connections of an interface too.
    fn attach_lookup(&mut self, ifindex: u32) -> Result<Attached, DatapathError> {
        if self.lookup.is_none() {
            self.lookup = Some(self.load_lookup()?);
        }
        let name = "SCOPE";
        BpfHashMap::<_, u32, u8>::try_from(self.map(name))
            .and_then(|mut scope| scope.insert(ifindex, 1, 0))
            .map_err(map_error(name))?;
        Ok(Attached::Lookup)
    }

    fn load_lookup(&mut self) -> Result<Lookup, DatapathError> {
        // Servers register before the first connection looks for them.
        let register = match self.options.cgroup.clone() {
            None => None,
            Some(path) => {
                let to = path.display().to_string();
                let cgroup = open(&to)?;
                let program: &mut SockOps = self.program(program::REGISTER)?;
                let link = program
                    .attach(cgroup, LINK_MODE)
                    .and_then(|id| program.take_link(id));
                Some(link.map_err(hook_error(program::REGISTER, to))?)
            }
        };
        let name = match self.program::<SkLookup>(program::LOOKUP) {
            Ok(_) => program::LOOKUP,
            Err(DatapathError::Program { source, .. }) => {
                if !self.options.is_everywhere {
                    return Err(DatapathError::NoIfindex(source));
                }
                log::debug!("{}", chain(&source));
                program::LOOKUP_EVERYWHERE
            }
            Err(error) => return Err(error),
        };
        const NETNS: &str = "/proc/self/ns/net";
        let netns = open(NETNS)?;
        let program: &mut SkLookup = self.program(name)?;
        let link = program
            .attach(netns)
            .and_then(|id| program.take_link(id))
            .map_err(hook_error(name, NETNS.to_owned()))?;
        Ok(Lookup { link, register })
    }

    fn attach_clients(&mut self) -> Result<Attached, DatapathError> {
        let path = self.options.cgroup.clone().ok_or(DatapathError::NoCgroup)?;
        let to = path.display().to_string();
        let mut links = Vec::new();
        for name in program::CLIENT {
            let cgroup = open(&to)?;
            let program: &mut CgroupSockAddr = self.program(name)?;
            let link = program
                .attach(cgroup, LINK_MODE)
                .and_then(|id| program.take_link(id))
                .map_err(hook_error(name, to.clone()))?;
            links.push(link);
        }
        // What asks goes before what answers.
        links.reverse();
        Ok(Attached::Clients(links))
    }

    /// Whether servers have to be registered.
    #[must_use]
    pub const fn needs_listeners(&self) -> bool {
        self.lookup.is_some()
    }

    /// Registers those of the listening sockets that are on a target and are not
    /// registered yet, and returns those that the kernel refused.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`], [`DatapathError::Map`].
    pub fn register(
        &mut self,
        listening: &[TcpSocket],
    ) -> Result<Vec<Unregistered>, DatapathError> {
        let name = "LISTENERS";
        let mut registered = HashMap::<(Addr, Port), u8>::new();
        let map = self.ebpf.map(name).expect("the object has the map");
        let map = SockHash::<_, ListenerKey>::try_from(map).map_err(map_error(name))?;
        for key in map.keys() {
            // One that closes meanwhile ends the walk; the next call sees the rest.
            let Ok(key) = key else { break };
            *registered.entry((key.addr, key.port)).or_default() += 1;
        }
        let mut groups = HashMap::<(Addr, Port), Vec<TcpSocket>>::new();
        for socket in listening {
            if self.is_target(socket.key.local_port.get()) {
                let place = (socket.key.local, socket.key.local_port);
                groups.entry(place).or_default().push(*socket);
            }
        }
        let mut refused = Vec::new();
        for (place, group) in groups {
            let registered = registered.get(&place).copied().unwrap_or_default();
            let slots = usize::from(ListenerKey::SLOTS - registered.min(ListenerKey::SLOTS));
            let missing = group.len().saturating_sub(registered.into()).min(slots);
            match self.register_group(&group, missing)? {
                Ok(()) => {}
                Err(errno) => refused.push(Unregistered {
                    port: place.1.get(),
                    errno,
                }),
            }
        }
        Ok(refused)
    }

    /// Whether a rule sends TCP connections to a port.
    fn is_target(&self, port: u16) -> bool {
        self.rules.iter().any(|rule| {
            rule.target.contains(port) && rule.protocols.each().contains(&Protocol::Tcp)
        })
    }

    /// Registers `missing` of the sockets that listen in one place.
    fn register_group(
        &mut self,
        group: &[TcpSocket],
        mut missing: usize,
    ) -> Result<Result<(), i32>, DatapathError> {
        // The look-up chooses among a group by the client, so that one can only
        // try. Those on different devices are found at once.
        const TRIES: usize = 16;
        let tries = group.iter().cycle().take(TRIES * group.len());
        for (client_port, socket) in (0..=u16::MAX).zip(tries) {
            if missing == 0 {
                break;
            }
            let mut socket = *socket;
            socket.key.client_port = Port::new(client_port);
            match self.scan(&socket)? {
                Ok(is_new) => missing -= usize::from(is_new),
                // One that closes, or whose device is gone, hides no other.
                Err(libc::ENOENT | libc::ENODEV) => {}
                Err(errno) => return Ok(Err(errno)),
            }
        }
        Ok(Ok(()))
    }

    /// Has the kernel look up a listening socket and register it; says whether it
    /// was not registered before.
    fn scan(&mut self, socket: &TcpSocket) -> Result<Result<bool, i32>, DatapathError> {
        // `ifindex` in `struct __sk_buff` of include/uapi/linux/bpf.h.
        const IFINDEX: usize = 40;
        let mut packet = [0; 14 + size_of::<FlowKey>()];
        packet[14..].copy_from_slice(&socket.key.to_bytes());
        let mut context = [0; IFINDEX + 4];
        context[IFINDEX..].copy_from_slice(&socket.device.to_ne_bytes());
        let program: &mut SchedClassifier = self.program(program::SCAN)?;
        let options = TestRunOptions {
            data_in: Some(&packet),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = match program.test_run(options) {
            Ok(result) => result,
            // The device that the socket is bound to.
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENODEV) =>
            {
                return Ok(Err(libc::ENODEV));
            }
            Err(source) => return Err(DatapathError::Scan(source)),
        };
        match result.return_value.cast_signed() {
            is_new @ (0 | 1) => Ok(Ok(is_new == 1)),
            errno => Ok(Err(-errno)),
        }
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
        match self.attached.remove(&index) {
            None | Some(Attached::Clients(_)) => {}
            Some(Attached::Lookup) => {
                let map = self.map("SCOPE");
                // It is not there when the interface was not told.
                let _ = BpfHashMap::<_, u32, u8>::try_from(map)
                    .and_then(|mut scope| scope.remove(&index));
                if !self
                    .attached
                    .values()
                    .any(|a| matches!(a, Attached::Lookup))
                {
                    self.lookup = None;
                }
            }
            Some(Attached::Wire {
                ingress,
                egress,
                restore,
            }) => {
                // A packet must not be rewritten after its reply no longer is.
                drop(ingress);
                drop(egress);
                for feature in restore {
                    if let Err(error) = ethtool::set_feature(name, feature, true) {
                        log::warn!("{name}: switch {feature} on again: {error}");
                    }
                }
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
                let mut sum = Counter::default();
                per_cpu.iter().for_each(|cpu| sum.add(cpu));
                Ok((key, sum))
            })
            .collect::<Result<_, MapError>>()
            .map_err(map_error(name))
    }

    /// Removes the counters of an interface that is gone, and returns them.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn take_counters(
        &mut self,
        index: u32,
    ) -> Result<Vec<(CounterKey, Counter)>, DatapathError> {
        let mut counters = self.counters()?;
        counters.retain(|(key, _)| key.ifindex == index);
        let name = "COUNTERS";
        let mut map = PerCpuHashMap::<_, CounterKey, Counter>::try_from(self.map(name))
            .map_err(map_error(name))?;
        for (key, _) in &counters {
            map.remove(key).map_err(map_error(name))?;
        }
        Ok(counters)
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

fn hook_error(program: &'static str, to: String) -> impl FnOnce(ProgramError) -> DatapathError {
    move |source| DatapathError::Hook {
        program,
        to,
        source,
    }
}

fn open(path: &str) -> Result<File, DatapathError> {
    File::open(path).map_err(|source| DatapathError::Open {
        path: path.to_owned(),
        source,
    })
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

impl Load for SkLookup {
    fn load_into_kernel(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}

impl Load for SockOps {
    fn load_into_kernel(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}

impl Load for CgroupSockAddr {
    fn load_into_kernel(&mut self) -> Result<(), ProgramError> {
        self.load()
    }
}

/// The entries of `PORTS` that are not empty.
fn port_entries(rules: &[Rule]) -> HashMap<u32, PortEntry> {
    let mut entries = HashMap::<u32, PortEntry>::new();
    for (id, rule) in rules.iter().enumerate() {
        for &protocol in rule.protocols.each() {
            for port in rule.dialled.each() {
                let target = PortEntry::index(protocol, Port::new(rule.target_of(port)));
                entries.entry(target).or_default().flags |= PortEntry::TARGET;
                let dialled = PortEntry::index(protocol, Port::new(port));
                let entry = entries.entry(dialled).or_default();
                entry.flags |= PortEntry::MATCH;
                entry.target = rule.target_of(port);
                entry.rule = u16::try_from(id).expect("the list of rules was checked");
            }
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

mod sockopt {
    use nix::{getsockopt_impl, sockopt_impl};

    sockopt_impl!(
        NetnsCookie,
        GetOnly,
        libc::SOL_SOCKET,
        libc::SO_NETNS_COOKIE,
        u64
    );
}

/// What the kernel calls the current network namespace, since Linux 5.14.
fn netns_cookie() -> Result<u64, DatapathError> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket};
    socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .and_then(|socket| getsockopt(&socket, sockopt::NetnsCookie))
    .map_err(|errno| DatapathError::Open {
        path: "the cookie of the network namespace".to_owned(),
        source: errno.into(),
    })
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
