//! The programs in the kernel: load, fill, attach, detach.

mod adopt;
mod attach;
mod counters;
mod error;
mod hook;
mod listeners;
mod program;
mod rules;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData};
use aya::programs::{CgroupSockAddr, ProgramError, SchedClassifier, SkLookup, SockOps, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::time::{ClockId, clock_gettime};
use portredir_common::abi::{
    Addr, Epoch, FlowKey, OWN_PLACES, PortEntry, Protocol, local, own_place,
};
use portredir_common::bucket::{Entry, Seed, Shares};
use portredir_common::flow::{Table as FlowTable, UDP_IDLE};

use self::error::map_error;
use self::hook::{Attached, Lookup, Watch};
use self::program::Load;
use crate::ethtool;
use crate::flows::{self, Flows};
use crate::memory::Mapped;
use crate::pins::PinDir;
use crate::sockets::TcpSocket;
use crate::state::{Record, State, Store};
use crate::table::Table;

pub use self::error::DatapathError;
pub use self::hook::{Mode, Place};
pub use self::listeners::Unregistered;

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
        if !self.is_rewriting() {
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

    /// Whether packets are rewritten on some interface.
    fn is_rewriting(&self) -> bool {
        let is_wire = |attached: &Attached| matches!(attached, Attached::Wire { .. });
        self.attached.values().any(is_wire)
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
