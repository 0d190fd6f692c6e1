//! The programs in the kernel: load, fill, attach, detach.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{
    Array, HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues,
    SockHash,
};
use aya::programs::links::{CgroupAttachMode, FdLink, LinkError, LinkOrder};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::xdp::{XdpError, XdpLink};
use aya::programs::{
    CgroupSockAddr, ProgramError, SchedClassifier, SkLookup, SockOps, TcAttachType, TestRun as _,
    TestRunOptions, Xdp, XdpMode,
};
use aya::sys::SyscallError;
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfError, EbpfLoader};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use portredir_common::abi::{
    Addr, AddrKey, Candidates, Counter, CounterKey, Epoch, FlowKey, Hits, IfaceKey, ListenerKey,
    OWN_PLACES, Old, Port, PortEntry, Protocol, SourceKey, local, own_place,
};
use portredir_common::bucket::{Entry, Seed, Shares};
use portredir_common::flow::{Table as FlowTable, UDP_IDLE};
use portredir_common::wire::Link as FrameLink;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::counters::ELSEWHERE;
use crate::ethtool;
use crate::flows::{self, Flows};
use crate::interface::Interface;
use crate::memory::Mapped;
use crate::netdev;
use crate::pins::{self, PinDir};
use crate::plan::{Engine, Planned};
use crate::sockets::TcpSocket;
use crate::state::{Record, State, Store};
use crate::table::Table;

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
    /// A map cannot be accessed as memory.
    #[error("map {name} is not as it should be")]
    Memory {
        /// Its name.
        name: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The kernel has no random numbers.
    #[error("choose a seed")]
    Seed(#[from] getrandom::Error),
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
    /// A link could not be made to outlive the process.
    #[error("pin {path}: {reason}")]
    Pin {
        /// Where.
        path: String,
        /// The kernel's error, in words.
        reason: String,
    },
    /// A program that is attached could not be replaced by the one of this
    /// process.
    #[error("replace {program} on {interface}")]
    Replace {
        /// The program.
        program: &'static str,
        /// The interface.
        interface: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// What is attached is of another version.
    #[error("there is no program `{0}` in this version of portredir")]
    Unknown(String),
}

/// The maps that outlive a process.
const MAPS: [&str; 24] = [
    "ADDRS",
    "COUNTERS",
    "DIALLED",
    "FLOWS",
    "GENERATION",
    "GIVEN",
    "GIVEN_TCP",
    "HITS",
    "IFACES",
    "LISTENERS",
    "LOCAL",
    "NEXT_SLOT",
    "OLD",
    "OWN",
    "PORTS",
    "REASONS",
    "REMAP",
    "REMAPPED",
    "REMAP_TCP",
    "SCOPE",
    "SEED",
    "SOCKETS",
    "SOURCES",
    "STATE",
];

/// Programs, by what they are attached to and what its frames begin with.
mod program {
    use portredir_common::wire::Link;

    pub const XDP_FRAGS: &str = "portredir_frags";
    /// Knows the interface.
    pub const LOOKUP: &str = "portredir_look";
    pub const LOOKUP_EVERYWHERE: &str = "portredir_lkall";
    pub const REGISTER: &str = "portredir_reg";
    pub const ACCEPT: &str = "portredir_acc";
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

    /// The program of this name.
    pub fn known(name: &str) -> Option<&'static str> {
        let others = [XDP_FRAGS, LOOKUP, LOOKUP_EVERYWHERE, REGISTER, ACCEPT];
        let by_link =
            [Link::Ethernet, Link::Ip].map(|link| [xdp(link), ingress(link), egress(link)]);
        let all = others.iter().chain(&CLIENT).chain(by_link.as_flattened());
        all.copied().find(|known| *known == name)
    }

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

/// Keeps a program attached.
#[derive(Debug)]
enum Hook {
    /// For as long as it is held.
    Held(#[expect(dead_code, reason = "held to be dropped")] Link),
    /// Until the pin is removed.
    Pinned(PathBuf),
    /// Until the clsact filter is removed, which is known by its program.
    Filter(TcAttachType, String),
}

impl Hook {
    fn detach(self, interface: &str) {
        match self {
            Self::Held(_) => {}
            Self::Pinned(path) => {
                if let Err(error) = pins::detach(&path) {
                    log::warn!("remove {}: {error}", path.display());
                }
            }
            Self::Filter(direction, program) => {
                // Not being there is fine: the qdisc may be gone.
                let _ = tc::qdisc_detach_program(interface, direction, &program);
            }
        }
    }
}

/// A link as the library has it.
#[derive(Debug)]
enum Link {
    Fd(FdLink),
    Xdp(XdpLink),
    Tc(SchedClassifierLink),
}

/// Where a program is attached that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A link, by the name of its pin.
    Pin(String),
    /// A clsact filter.
    Filter {
        /// Its direction.
        is_ingress: bool,
        /// Its priority.
        priority: u16,
        /// Its handle.
        handle: u32,
    },
}

/// How an interface was attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mode {
    /// The kernel's way: `native+frags`, `tcx`, ….
    pub name: String,
    /// What outlives the process, and its programs; in the order in which they
    /// were attached.
    pub programs: Vec<(Place, String)>,
}

impl Mode {
    fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            programs: Vec::new(),
        }
    }
}

/// The names of pins.
mod pin {
    pub const LOOKUP: &str = "lookup";
    pub const REGISTER: &str = "register";
    pub const ACCEPT: &str = "accept";

    pub fn device(index: u32, is_ingress: bool) -> String {
        let direction = if is_ingress { "ingress" } else { "egress" };
        format!("if{index}-{direction}")
    }
}

/// What redirects on one interface.
#[derive(Debug)]
enum Attached {
    /// Packets are rewritten.
    Wire {
        /// `None` where packets that come in are met elsewhere.
        ingress: Option<Hook>,
        egress: Hook,
    },
    /// Connections are given to listeners: [`Datapath::lookup`].
    Lookup,
    /// Clients on this host are pointed elsewhere. What asks goes first.
    Clients(Vec<Hook>),
}

/// The engine for listeners, of the whole network namespace.
#[derive(Debug)]
struct Lookup {
    link: Hook,
    register: Option<Hook>,
    mode: Mode,
}

impl Lookup {
    fn detach(self) {
        self.link.detach("");
        if let Some(register) = self.register {
            register.detach("");
        }
    }
}

/// What notes connections when they are accepted, for all interfaces where
/// packets are rewritten.
#[derive(Debug)]
struct Watch {
    hook: Hook,
    /// It, as a [`Mode`] has it.
    programs: Vec<(Place, String)>,
}

/// A server that could not be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unregistered {
    /// The port it listens on.
    pub port: u16,
    /// The kernel's `errno`.
    pub errno: i32,
}

/// The datapath of this network namespace.
#[derive(Debug)]
pub struct Datapath {
    ebpf: Ebpf,
    loaded: BTreeSet<&'static str>,
    options: Options,
    attached: BTreeMap<u32, Attached>,
    lookup: Option<Lookup>,
    watch: Option<Watch>,
    local: HashMap<[u8; 16], u8>,
    /// Where what is attached outlives the process.
    pins: Option<PinDir>,
    flows: Flows,
    /// `PORTS`: both generations of each entry.
    ports: Mapped<[AtomicU64; 2]>,
    /// `OWN`: two addresses of two words in each place.
    own: Mapped<[AtomicU64; 4]>,
}

impl Datapath {
    /// Creates the maps, or opens those that are pinned; attaches nothing.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Load`], [`DatapathError::Map`].
    pub fn load(options: Options, pins: Option<&PinDir>) -> Result<Self, DatapathError> {
        let netns_cookie = netns_cookie()?;
        let Sizes {
            tcp_flows,
            udp_flows,
        } = options.sizes;
        let shares = Shares::new(tcp_flows, udp_flows);
        let seed = match pins.and_then(left_seed) {
            Some(seed) => seed,
            None => flows::new_seed()?,
        };
        let mut loader = EbpfLoader::new();
        if let Some(pins) = pins {
            for name in MAPS {
                loader.map_pin_path(name, pins.path(name));
            }
        }
        let mut ebpf = loader
            .override_global(aya_log::LEVEL, &options.log_level, true)
            .override_global("NETNS_COOKIE", &netns_cookie, true)
            .override_global(
                "LOOPBACK_TARGET",
                &u8::from(options.allow_loopback_target),
                true,
            )
            .override_global(
                "FLOW_SHARES",
                &[shares.tcp, shares.udp, shares.syn][..],
                true,
            )
            .override_global("FLOW_SEED", &seed.0[..], true)
            .map_max_entries("FLOWS", shares.total())
            .load(OBJECT)?;
        let name = "SEED";
        let map = ebpf.map_mut(name).expect("the object has the map");
        Array::<_, Seed>::try_from(map)
            .and_then(|mut map| map.set(0, seed, 0))
            .map_err(map_error(name))?;
        let name = "LOCAL";
        let map = ebpf.map(name).expect("the object has the map");
        let local = BpfHashMap::<_, Addr, u8>::try_from(map).map_err(map_error(name))?;
        let local = local.iter().filter_map(Result::ok);
        let local = local.map(|(addr, reach)| (addr.octets(), reach)).collect();
        let flows = map_fd(&ebpf, "FLOWS", |fd| Flows::new(fd, shares, seed))?;
        let ports = map_fd(&ebpf, "PORTS", |fd| Mapped::new(fd, PortEntry::COUNT))?;
        let own = map_fd(&ebpf, "OWN", |fd| Mapped::new(fd, OWN_PLACES))?;
        let datapath = Self {
            ebpf,
            loaded: BTreeSet::new(),
            options,
            attached: BTreeMap::new(),
            lookup: None,
            watch: None,
            // What somebody else may have left there.
            local,
            pins: pins.cloned(),
            flows,
            ports,
            own,
        };
        Ok(datapath)
    }

    /// How many of the connections need their packets rewritten.
    #[must_use]
    pub fn count_redirected(&self, table: &Table, connections: &[TcpSocket]) -> usize {
        let is_rewriting = |attached: &Attached| matches!(attached, Attached::Wire { .. });
        if !self.attached.values().any(is_rewriting) {
            return 0;
        }
        let is_redirected = |key: &FlowKey| {
            self.tcp_entry(key)
                .is_some_and(|entry| entry.dialled_port() != key.local_port)
        };
        connections
            .iter()
            .map(|socket| &socket.key)
            .filter(|key| {
                table.is_target(Protocol::Tcp, key.local_port.get()) && is_redirected(key)
            })
            .count()
    }

    /// The entry of a TCP flow.
    fn tcp_entry(&self, key: &FlowKey) -> Option<Entry> {
        [FlowTable::Tcp, FlowTable::Syn]
            .into_iter()
            .find_map(|table| self.flows.entry(table, key))
    }

    /// The flow tables.
    #[must_use]
    pub const fn flows(&self) -> &Flows {
        &self.flows
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

    /// Loads a program of any kind.
    fn program_fd(&mut self, name: &'static str) -> Result<OwnedFd, DatapathError> {
        use aya::programs::Program;
        let program = self.ebpf.program(name).expect("the object has the program");
        let fd = match program {
            Program::Xdp(_) => self.program::<Xdp>(name)?.fd(),
            Program::SchedClassifier(_) => self.program::<SchedClassifier>(name)?.fd(),
            Program::SkLookup(_) => self.program::<SkLookup>(name)?.fd(),
            Program::SockOps(_) => self.program::<SockOps>(name)?.fd(),
            _ => self.program::<CgroupSockAddr>(name)?.fd(),
        };
        fd.and_then(|fd| {
            fd.as_fd()
                .try_clone_to_owned()
                .map_err(ProgramError::IOError)
        })
        .map_err(|source| DatapathError::Program { name, source })
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
                let inserted = map.insert(Addr::new(*addr), reach, 0);
                if inserted.is_ok() {
                    local.insert(*addr, *reach);
                }
                result = result.and(inserted);
            }
        }
        local.retain(|addr, _| {
            let is_kept = addrs.contains_key(addr);
            is_kept || map.remove(&Addr::new(*addr)).is_err()
        });
        self.local = local;
        self.set_own();
        result.map_err(map_error(name))
    }

    /// Gives those of `LOCAL` that are reached from anywhere a place in `OWN`.
    fn set_own(&self) {
        let mut own = vec![[Addr::default(); 2]; self.own.len()];
        let mut anywhere: Vec<_> = self.local.iter().collect();
        // The same ones, where there is no room for all.
        anywhere.sort_unstable();
        for (addr, _) in anywhere
            .into_iter()
            .filter(|(_, reach)| **reach == local::ANYWHERE)
        {
            let place = &mut own[own_place(Addr::new(*addr)) as usize];
            if let Some(unused) = place.iter_mut().find(|addr| **addr == Addr::default()) {
                *unused = Addr::new(*addr);
            }
        }
        for (words, addrs) in self.own.iter().zip(own) {
            for (words, addr) in words.chunks_exact(2).zip(addrs) {
                let [first, second] = addr.long_words();
                if words[0].load(Relaxed) != first || words[1].load(Relaxed) != second {
                    // Never half of one address and half of another.
                    words[1].store(0, Relaxed);
                    words[0].store(first, Relaxed);
                    words[1].store(second, Relaxed);
                }
            }
        }
    }

    /// Attaches to an interface.
    ///
    /// # Errors
    ///
    /// Any [`DatapathError`]; nothing is left attached then.
    pub fn attach(&mut self, planned: &Planned) -> Result<Mode, DatapathError> {
        let (attached, mode) = match planned.engine {
            Engine::Lookup => self.attach_lookup(planned.interface.index)?,
            Engine::Cgroup => self.attach_clients()?,
            _ => self.attach_wire(planned)?,
        };
        self.attached.insert(planned.interface.index, attached);
        Ok(mode)
    }

    fn attach_wire(&mut self, planned: &Planned) -> Result<(Attached, Mode), DatapathError> {
        if self.watch.is_none() {
            self.watch = self.attach_watch();
        }
        let wire = self.attach_device(planned);
        if wire.is_err() {
            self.end_watch();
        }
        let (attached, mut mode) = wire?;
        if let Some(watch) = &self.watch {
            mode.programs.splice(0..0, watch.programs.iter().cloned());
        }
        Ok((attached, mode))
    }

    /// Without it connections are known by their packets alone.
    fn attach_watch(&mut self) -> Option<Watch> {
        let Some(cgroup) = self.options.cgroup.clone() else {
            log::debug!("no cgroup v2 hierarchy is mounted: connections are not watched");
            return None;
        };
        let mut mode = Mode::default();
        match self.attach_sock_ops(program::ACCEPT, &cgroup, pin::ACCEPT, &mut mode) {
            Ok(hook) => Some(Watch {
                hook,
                programs: mode.programs,
            }),
            Err(error) => {
                log::warn!(
                    "connections are known by their packets alone, a flood may cut those \
                     whose server is silent: {}",
                    chain(&error)
                );
                None
            }
        }
    }

    /// Ends it after the last interface.
    fn end_watch(&mut self) {
        let is_wire = |attached: &Attached| matches!(attached, Attached::Wire { .. });
        if !self.attached.values().any(is_wire)
            && let Some(watch) = self.watch.take()
        {
            watch.hook.detach("");
        }
    }

    /// Attaches a program for what sockets of a cgroup do.
    fn attach_sock_ops(
        &mut self,
        name: &'static str,
        cgroup: &Path,
        pin: &str,
        mode: &mut Mode,
    ) -> Result<Hook, DatapathError> {
        let to = cgroup.display().to_string();
        let cgroup = open(&to)?;
        let program: &mut SockOps = self.program(name)?;
        let link = program
            .attach(cgroup, LINK_MODE)
            .and_then(|id| program.take_link(id))
            .and_then(|link| FdLink::try_from(link).map_err(link_error))
            .map_err(hook_error(name, to))?;
        self.hold(Link::Fd(link), pin, name, mode)
    }

    fn attach_device(&mut self, planned: &Planned) -> Result<(Attached, Mode), DatapathError> {
        let interface = &planned.interface;
        let is_tcx_allowed = planned.engine != Engine::TcClsact;
        // Egress first: a packet must not be rewritten before its reply would be.
        let (egress, mut mode) = self.attach_tc(interface, TcAttachType::Egress, is_tcx_allowed)?;
        let ingress = match planned.engine {
            _ if planned.is_egress_only => None,
            Engine::XdpNative => Some(self.attach_xdp(interface, XdpMode::Driver)),
            Engine::XdpGeneric => Some(self.attach_xdp(interface, XdpMode::Skb)),
            _ => Some(self.attach_tc(interface, TcAttachType::Ingress, is_tcx_allowed)),
        };
        let ingress = match ingress {
            None => None,
            Some(Ok((ingress, Mode { name, programs }))) => {
                mode.name = name;
                mode.programs.extend(programs);
                Some(ingress)
            }
            Some(Err(error)) => {
                egress.detach(&interface.name);
                return Err(error);
            }
        };
        Ok((Attached::Wire { ingress, egress }, mode))
    }

    /// Keeps a link, by a pin where it is to outlive the process.
    fn hold(
        &self,
        link: Link,
        pin: &str,
        program: &str,
        mode: &mut Mode,
    ) -> Result<Hook, DatapathError> {
        let Some(pins) = &self.pins else {
            return Ok(Hook::Held(link));
        };
        let path = pins.path(pin);
        let error = |reason: String| DatapathError::Pin {
            path: path.display().to_string(),
            reason,
        };
        let link = match link {
            Link::Fd(link) => Ok(link),
            Link::Xdp(link) => link.try_into(),
            Link::Tc(link) => link.try_into(),
        };
        let link: FdLink = link.map_err(|e| error(e.to_string()))?;
        // What was left by somebody who was killed before he could say so.
        let _ = fs::remove_file(&path);
        link.pin(&path).map_err(|e| error(chain(&e)))?;
        let place = Place::Pin(pin.to_owned());
        mode.programs.push((place, program.to_owned()));
        Ok(Hook::Pinned(path))
    }

    /// Lets the listeners have the connections of an interface too.
    fn attach_lookup(&mut self, ifindex: u32) -> Result<(Attached, Mode), DatapathError> {
        if self.lookup.is_none() {
            self.lookup = Some(self.load_lookup()?);
        }
        let mode = self.lookup.as_ref().map(|lookup| lookup.mode.clone());
        let name = "SCOPE";
        BpfHashMap::<_, u32, u8>::try_from(self.map(name))
            .and_then(|mut scope| scope.insert(ifindex, 1, 0))
            .map_err(map_error(name))?;
        Ok((Attached::Lookup, mode.unwrap_or_default()))
    }

    fn load_lookup(&mut self) -> Result<Lookup, DatapathError> {
        let mut mode = Mode::named("sk_lookup");
        // Servers register before the first connection looks for them.
        let register = match self.options.cgroup.clone() {
            None => None,
            Some(cgroup) => {
                let name = program::REGISTER;
                Some(self.attach_sock_ops(name, &cgroup, pin::REGISTER, &mut mode)?)
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
        let link = self.hold(Link::Fd(link.into()), pin::LOOKUP, name, &mut mode)?;
        Ok(Lookup {
            link,
            register,
            mode,
        })
    }

    fn attach_clients(&mut self) -> Result<(Attached, Mode), DatapathError> {
        let path = self.options.cgroup.clone().ok_or(DatapathError::NoCgroup)?;
        let to = path.display().to_string();
        let mut mode = Mode::named("cgroup");
        let mut hooks = Vec::new();
        for name in program::CLIENT {
            let cgroup = open(&to)?;
            let program: &mut CgroupSockAddr = self.program(name)?;
            let hook = program
                .attach(cgroup, LINK_MODE)
                .and_then(|id| program.take_link(id))
                .and_then(|link| FdLink::try_from(link).map_err(link_error))
                .map_err(hook_error(name, to.clone()))
                .and_then(|link| self.hold(Link::Fd(link), name, name, &mut mode));
            match hook {
                Ok(hook) => hooks.push(hook),
                Err(error) => {
                    hooks.into_iter().rev().for_each(|hook| hook.detach(""));
                    return Err(error);
                }
            }
        }
        // What asks goes before what answers.
        hooks.reverse();
        Ok((Attached::Clients(hooks), mode))
    }

    /// No longer knows what is attached. It stays so where it is pinned.
    pub fn forget(&mut self) {
        self.attached.clear();
        self.lookup = None;
        self.watch = None;
    }

    /// Takes over what another process has left attached to an interface.
    pub fn adopt(&mut self, index: u32, engine: Engine, mode: &Mode) {
        let Some(pins) = self.pins.clone() else {
            return;
        };
        let hook = |(place, program): &(Place, String)| match place {
            Place::Pin(pin) => Hook::Pinned(pins.path(pin)),
            Place::Filter { is_ingress, .. } => {
                Hook::Filter(direction(*is_ingress), program.clone())
            }
        };
        // As they were attached: what answers, or restores, comes first.
        let mut hooks: Vec<_> = mode.programs.iter().map(hook).collect();
        let attached = match engine {
            Engine::Lookup => {
                if let Some(link) = hooks.pop() {
                    let register = hooks.pop();
                    let mode = mode.clone();
                    self.lookup = Some(Lookup {
                        link,
                        register,
                        mode,
                    });
                }
                Attached::Lookup
            }
            Engine::Cgroup => {
                hooks.reverse();
                Attached::Clients(hooks)
            }
            _ => {
                if mode
                    .programs
                    .first()
                    .is_some_and(|(_, name)| name == program::ACCEPT)
                {
                    self.watch = Some(Watch {
                        hook: hooks.remove(0),
                        programs: mode.programs[..1].to_vec(),
                    });
                }
                if hooks.is_empty() {
                    return;
                }
                let egress = hooks.remove(0);
                let ingress = hooks.pop();
                Attached::Wire { ingress, egress }
            }
        };
        self.attached.insert(index, attached);
    }

    /// Puts the programs of this process in the place of those that another one
    /// has left attached to an interface. No packet is missed.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Replace`]: it is no longer attached, or the kernel
    /// refuses. [`DatapathError::Program`].
    pub fn replace(&mut self, interface: &str, mode: &Mode) -> Result<(), DatapathError> {
        let pins = self.pins.clone().expect("what was left is pinned");
        for (place, name) in &mode.programs {
            let name = program::known(name).ok_or_else(|| DatapathError::Unknown(name.clone()))?;
            let fd = self.program_fd(name)?;
            let result = match place {
                Place::Pin(pin) => pins::replace(&pins.path(pin), fd.as_fd()),
                Place::Filter {
                    is_ingress,
                    priority,
                    handle,
                } => {
                    let program: &mut SchedClassifier = self.program(name)?;
                    let (direction, handle) = (direction(*is_ingress), (*handle).into());
                    SchedClassifierLink::attached(interface, direction, *priority, handle, None)
                        .and_then(|link| {
                            let new = program
                                .attach_to_link(link)
                                .and_then(|id| program.take_link(id))
                                .map_err(io::Error::other)?;
                            std::mem::forget(new);
                            Ok(())
                        })
                }
            };
            result.map_err(|source| DatapathError::Replace {
                program: name,
                interface: interface.to_owned(),
                source,
            })?;
        }
        Ok(())
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
        table: &Table,
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
            if table.is_target(Protocol::Tcp, socket.key.local_port.get()) {
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
    /// hold the lock, so they are nobody else's. Says whether there were any.
    pub fn sweep(interface: &Interface) -> bool {
        let Interface { name, link, .. } = interface;
        let ours = [
            (TcAttachType::Ingress, program::ingress(*link)),
            (TcAttachType::Egress, program::egress(*link)),
        ];
        ours.into_iter()
            .filter(|(direction, program)| {
                tc::qdisc_detach_program(name, *direction, program).is_ok()
            })
            .count()
            > 0
    }

    /// Detaches what somebody has attached to an interface who was killed before
    /// he could say so.
    pub fn clear(&mut self, engine: Engine, index: u32) {
        if engine == Engine::Lookup {
            self.leave_scope(index);
        }
        let Some(pins) = &self.pins else {
            return;
        };
        let names = match engine {
            Engine::Cgroup => program::CLIENT.map(str::to_owned).to_vec(),
            Engine::Lookup if self.lookup.is_some() => Vec::new(),
            Engine::Lookup => [pin::REGISTER, pin::LOOKUP].map(str::to_owned).to_vec(),
            _ => {
                let watch = self.watch.is_none().then(|| pin::ACCEPT.to_owned());
                let device = [false, true].map(|is_ingress| pin::device(index, is_ingress));
                watch.into_iter().chain(device).collect()
            }
        };
        // What redirects goes before what restores.
        for name in names.iter().rev() {
            // Most are not there.
            let _ = pins::detach(&pins.path(name));
        }
    }

    /// The listeners no longer have the connections of an interface.
    fn leave_scope(&mut self, index: u32) {
        // It is not there when the interface was not told.
        let _ = BpfHashMap::<_, u32, u8>::try_from(self.map("SCOPE"))
            .and_then(|mut scope| scope.remove(&index));
    }

    /// Detaches from an interface.
    pub fn detach(&mut self, index: u32, name: &str) {
        match self.attached.remove(&index) {
            None => {}
            Some(Attached::Clients(hooks)) => hooks.into_iter().for_each(|hook| hook.detach(name)),
            Some(Attached::Lookup) => {
                self.leave_scope(index);
                let is_lookup = |attached: &Attached| matches!(attached, Attached::Lookup);
                if !self.attached.values().any(is_lookup)
                    && let Some(lookup) = self.lookup.take()
                {
                    lookup.detach();
                }
            }
            Some(Attached::Wire { ingress, egress }) => {
                // A packet must not be rewritten after its reply no longer is.
                if let Some(ingress) = ingress {
                    ingress.detach(name);
                }
                egress.detach(name);
                self.end_watch();
            }
        }
    }

    fn attach_xdp(
        &mut self,
        interface: &Interface,
        mode: XdpMode,
    ) -> Result<(Hook, Mode), DatapathError> {
        let (with_frags, without) = match mode {
            XdpMode::Driver => ("native+frags", "native"),
            _ => ("generic+frags", "generic"),
        };
        let mut ways = vec![(program::xdp(interface.link), without)];
        if interface.link == FrameLink::Ethernet {
            ways.insert(0, (program::XDP_FRAGS, with_frags));
        }
        let mut result = None;
        for (name, what) in ways {
            if let Some(Err(error)) = &result {
                // The kernel (before 5.18) or the driver has no frags.
                log::debug!("{}: {}", interface.name, chain(error));
            }
            let program: &mut Xdp = self.program(name)?;
            let link = program
                .attach_to_if_index(interface.index, mode)
                .and_then(|id| program.take_link(id))
                .map_err(|error| DatapathError::Attach {
                    what,
                    interface: interface.name.clone(),
                    reason: attach_reason(&error, program, interface.index, mode),
                });
            match link {
                Ok(link) => {
                    let mut mode = Mode::named(what);
                    let pin = pin::device(interface.index, true);
                    let hook = self.hold(Link::Xdp(link), &pin, name, &mut mode)?;
                    return Ok((hook, mode));
                }
                Err(error) => result = Some(Err(error)),
            }
        }
        result.expect("there is a way")
    }

    fn attach_tc(
        &mut self,
        interface: &Interface,
        direction: TcAttachType,
        is_tcx_allowed: bool,
    ) -> Result<(Hook, Mode), DatapathError> {
        let Interface {
            name, index, link, ..
        } = interface;
        let is_ingress = direction == TcAttachType::Ingress;
        let program_name = if is_ingress {
            program::ingress(*link)
        } else {
            program::egress(*link)
        };
        let is_pinned = self.pins.is_some();
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
                    let mut mode = Mode::named("tcx");
                    let pin = pin::device(*index, is_ingress);
                    let hook = self.hold(Link::Tc(link), &pin, program_name, &mut mode)?;
                    return Ok((hook, mode));
                }
                // Before 6.6 the attach type does not exist.
                Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
                    if io_error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(e) => return Err(error("tcx", chain(&e))),
            }
        }
        match tc::qdisc_add_clsact(name) {
            Ok(()) => {}
            Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => {}
            Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::ENOENT) => {
                let hint = "; are the kernel modules sch_ingress and cls_bpf there?";
                return Err(error("clsact", chain(&e) + hint));
            }
            Err(e) => return Err(error("clsact", chain(&e))),
        }
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
        let mut mode = Mode::named("clsact");
        if !is_pinned {
            return Ok((Hook::Held(Link::Tc(link)), mode));
        }
        let place = (|| {
            Ok::<_, ProgramError>(Place::Filter {
                is_ingress,
                priority: link.priority()?,
                handle: link.handle()?.into(),
            })
        })();
        let place = place.map_err(|e| error("clsact", chain(&e)))?;
        mode.programs.push((place, program_name.to_owned()));
        std::mem::forget(link);
        Ok((Hook::Filter(direction, program_name.to_owned()), mode))
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
        let mut counters = HashMap::<CounterKey, Counter>::new();
        for entry in map.iter() {
            let (key, per_cpu) = entry.map_err(map_error(name))?;
            let sum = counters.entry(key).or_default();
            per_cpu.iter().for_each(|cpu| sum.add(cpu));
        }
        let name = "HITS";
        let map = self.ebpf.map(name).expect("the object has the map");
        let map = PerCpuArray::<&MapData, Hits>::try_from(map).map_err(map_error(name))?;
        for per_cpu in map.iter() {
            let per_cpu = per_cpu.map_err(map_error(name))?;
            for hits in per_cpu.iter().filter(|hits| hits.counter.last_hit_ns != 0) {
                counters.entry(hits.key).or_default().add(&hits.counter);
            }
        }
        Ok(counters.into_iter().collect())
    }

    /// Makes the places of some counters in `HITS` nobody's, and returns what was
    /// counted there.
    fn take_hits(
        &mut self,
        is_meant: impl Fn(&CounterKey) -> bool,
    ) -> Result<Vec<(CounterKey, Counter)>, DatapathError> {
        let name = "HITS";
        let mut map = PerCpuArray::<_, Hits>::try_from(self.map(name)).map_err(map_error(name))?;
        let mut taken = Vec::new();
        for place in 0..Hits::PLACES {
            let mut per_cpu = map.get(&place, 0).map_err(map_error(name))?.to_vec();
            let before = taken.len();
            for hits in &mut per_cpu {
                if hits.counter.last_hit_ns != 0 && is_meant(&hits.key) {
                    taken.push((hits.key, hits.counter));
                    *hits = Hits::default();
                }
            }
            if taken.len() > before {
                // Others that share the place, on other CPUs, may lose what they
                // count in this moment.
                let per_cpu = PerCpuValues::try_from(per_cpu).expect("one for each CPU");
                map.set(place, per_cpu, 0).map_err(map_error(name))?;
            }
        }
        Ok(taken)
    }

    /// Keeps what an interface that is gone has counted, but no longer by its
    /// index: a host may see any number of them.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn forget_interface(&mut self, index: u32) -> Result<(), DatapathError> {
        let is_meant = |key: &CounterKey| key.ifindex == index;
        let mut sums = HashMap::<u32, Counter>::new();
        for (key, counter) in self.take_counters(is_meant)? {
            sums.entry(key.rule).or_default().add(&counter);
        }
        let name = "COUNTERS";
        let map = self.map(name);
        let mut map =
            PerCpuHashMap::<_, CounterKey, Counter>::try_from(map).map_err(map_error(name))?;
        for (rule, sum) in sums {
            let key = CounterKey {
                ifindex: ELSEWHERE,
                rule,
            };
            let mut per_cpu: Vec<_> = match map.get(&key, 0) {
                Ok(per_cpu) => per_cpu.to_vec(),
                Err(_) => {
                    let cpus = nr_cpus().map_err(|(path, source)| DatapathError::Open {
                        path: path.to_owned(),
                        source,
                    })?;
                    vec![Counter::default(); cpus]
                }
            };
            per_cpu[0].add(&sum);
            let per_cpu = PerCpuValues::try_from(per_cpu).expect("one for each CPU");
            map.insert(key, per_cpu, 0).map_err(map_error(name))?;
        }
        Ok(())
    }

    /// Forgets what all but some rules have counted, by their numbers: those that
    /// are gone, and those that had the numbers of new ones before.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn keep_counters(&mut self, rules: &BTreeSet<u16>) -> Result<(), DatapathError> {
        let is_other =
            |key: &CounterKey| !u16::try_from(key.rule).is_ok_and(|id| rules.contains(&id));
        self.take_counters(is_other).map(drop)
    }

    /// Removes counters, and returns what was counted.
    fn take_counters(
        &mut self,
        is_meant: impl Fn(&CounterKey) -> bool,
    ) -> Result<Vec<(CounterKey, Counter)>, DatapathError> {
        let mut taken = self.take_hits(&is_meant)?;
        let name = "COUNTERS";
        let map = self.map(name);
        let mut map =
            PerCpuHashMap::<_, CounterKey, Counter>::try_from(map).map_err(map_error(name))?;
        let keys: Vec<_> = map.keys().filter_map(Result::ok).collect();
        for key in keys.into_iter().filter(is_meant) {
            let per_cpu = map.get(&key, 0).map_err(map_error(name))?;
            taken.extend(per_cpu.iter().map(|counter| (key, *counter)));
            map.remove(&key).map_err(map_error(name))?;
        }
        Ok(taken)
    }

    fn store(&mut self) -> Result<Store<&mut MapData>, DatapathError> {
        let name = "STATE";
        Store::of_mut(self.map(name)).map_err(map_error(name))
    }

    /// Writes the state of a generation that is not live.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn set_state(&mut self, generation: u32, state: &State) -> Result<(), DatapathError> {
        let mut store = self.store()?;
        store
            .set_state(generation, state)
            .map_err(map_error("STATE"))
    }

    /// Writes how an interface is attached.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn set_record(&mut self, record: &Record) -> Result<(), DatapathError> {
        self.store()?.set_record(record).map_err(map_error("STATE"))
    }

    /// Forgets how an interface is attached.
    pub fn remove_record(&mut self, index: u32) {
        if let Ok(mut store) = self.store() {
            store.remove_record(index);
        }
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

impl Datapath {
    /// Which generation of rules is live: 0 or 1.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn generation(&self) -> Result<u32, DatapathError> {
        let name = "GENERATION";
        let map = self.ebpf.map(name).expect("the object has the map");
        Array::<_, u32>::try_from(map)
            .and_then(|map| map.get(&0, 0))
            .map_err(map_error(name))
    }

    /// Makes a generation the live one: between two packets.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn switch_to(&mut self, generation: u32) -> Result<(), DatapathError> {
        let name = "GENERATION";
        Array::<_, u32>::try_from(self.map(name))
            .and_then(|mut map| map.set(0, generation, 0))
            .map_err(map_error(name))
    }

    /// Fills the generation that is not live, and makes it the live one.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn commit(&mut self, table: &Table) -> Result<(), DatapathError> {
        let generation = self.fill(table)?;
        self.switch_to(generation)
    }

    /// Fills the generation that is not live, and returns it.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn fill(&mut self, table: &Table) -> Result<u32, DatapathError> {
        let generation = 1 - self.generation()?;
        let bit = generation << 31;
        self.fill_ports(generation, &table.ports);
        let is_old = |key: &u32| Old::generation(*key) == generation;
        fill_hash(self.map("OLD"), is_old, {
            let key = |index: &u32| Old::key(generation, *index);
            table.old.iter().map(move |(index, old)| (key(index), *old))
        })
        .map_err(map_error("OLD"))?;
        fill_hash(
            self.map("ADDRS"),
            |key: &AddrKey| key.set >> 31 == generation,
            {
                table.addrs.iter().map(|(key, group)| {
                    let set = key.set | bit;
                    (AddrKey { set, ..*key }, group | bit)
                })
            },
        )
        .map_err(map_error("ADDRS"))?;
        let name = "SOURCES";
        let mut map = LpmTrie::<_, SourceKey, Candidates>::try_from(self.map(name))
            .map_err(map_error(name))?;
        let keys: Vec<_> = map.keys().filter_map(Result::ok).collect();
        for key in keys
            .iter()
            .filter(|key| key.data().group >> 31 == generation)
        {
            map.remove(key).map_err(map_error(name))?;
        }
        for ((prefix, key), candidates) in &table.sources {
            let group = key.group | bit;
            let key = Key::new(*prefix, SourceKey { group, ..*key });
            map.insert(&key, candidates, 0).map_err(map_error(name))?;
        }
        Ok(generation)
    }

    /// Writes what differs from what is there.
    fn fill_ports(&self, generation: u32, entries: &[PortEntry]) {
        for (both, entry) in self.ports.iter().zip(entries) {
            let mut entry = *entry;
            if entry != PortEntry::default() && generation == 1 {
                entry.flags |= PortEntry::GENERATION;
            }
            let word = &both[generation as usize];
            if word.load(Relaxed) != entry.to_word() {
                word.store(entry.to_word(), Relaxed);
            }
        }
    }

    /// Says which interfaces are in which lists of the rules of a generation.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn set_on(
        &mut self,
        generation: u32,
        masks: &BTreeMap<u32, u64>,
    ) -> Result<(), DatapathError> {
        let is_gone =
            |key: &IfaceKey| key.generation == generation && !masks.contains_key(&key.ifindex);
        let masks = masks.iter().map(|(&ifindex, &mask)| {
            let key = IfaceKey {
                generation,
                ifindex,
            };
            (key, mask)
        });
        fill_hash(self.map("IFACES"), is_gone, masks).map_err(map_error("IFACES"))
    }

    /// The flows there are, by protocol, dialled port and target: of TCP those of
    /// `connections`, of UDP those that are not idle.
    #[must_use]
    pub fn live(&self, connections: &[TcpSocket]) -> BTreeSet<(Protocol, u16, u16)> {
        let mut live = BTreeSet::new();
        for TcpSocket { key, .. } in connections {
            if let Some(entry) = self.tcp_entry(key) {
                let dialled = entry.dialled_port().get();
                live.insert((Protocol::Tcp, dialled, key.local_port.get()));
            }
        }
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
            u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX)
        });
        let now = Epoch::at(now);
        for (table, target, entry) in self.flows.entries() {
            if table == FlowTable::Udp && now.since(entry.seen()) < UDP_IDLE {
                live.insert((Protocol::Udp, entry.dialled_port().get(), target.get()));
            }
        }
        live
    }
}

/// The seed of what another process has left.
fn left_seed(pins: &PinDir) -> Option<Seed> {
    let map = Map::Array(MapData::from_pin(pins.path("SEED")).ok()?);
    let seed = Array::<_, Seed>::try_from(&map).ok()?.get(&0, 0).ok()?;
    seed.is_set().then_some(seed)
}

/// Opens an array map as memory.
fn map_fd<T>(
    ebpf: &Ebpf,
    name: &'static str,
    open: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> Result<T, DatapathError> {
    let Some(Map::Array(map)) = ebpf.map(name) else {
        unreachable!("the object has the map {name}");
    };
    open(map.fd().as_fd()).map_err(|source| DatapathError::Memory { name, source })
}

/// Removes some entries of a hash map, then adds others.
fn fill_hash<K: aya::Pod, V: aya::Pod>(
    map: &mut Map,
    is_gone: impl Fn(&K) -> bool,
    entries: impl IntoIterator<Item = (K, V)>,
) -> Result<(), MapError> {
    let mut map = BpfHashMap::<_, K, V>::try_from(map)?;
    let keys: Vec<_> = map.keys().filter_map(Result::ok).collect();
    for key in keys.iter().filter(|key| is_gone(key)) {
        map.remove(key)?;
    }
    entries
        .into_iter()
        .try_for_each(|(key, value)| map.insert(key, value, 0))
}

/// Not a link: kernels before ours attach otherwise.
fn link_error(error: LinkError) -> ProgramError {
    ProgramError::IOError(io::Error::other(error))
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

const fn direction(is_ingress: bool) -> TcAttachType {
    if is_ingress {
        TcAttachType::Ingress
    } else {
        TcAttachType::Egress
    }
}

/// The offloads of an interface that generic XDP will switch off.
#[must_use]
pub fn features_on(interface: &str) -> Vec<&'static str> {
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
///
/// # Errors
///
/// [`DatapathError::Open`]: before Linux 5.14.
pub fn netns_cookie() -> Result<u64, DatapathError> {
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
