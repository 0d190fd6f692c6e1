//! The programs in the kernel: load, fill, attach, detach.

mod adopt;
mod attach;
mod counters;
mod error;
pub mod flows;
mod link;
mod listeners;
mod program;
mod rules;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData};
use aya::programs::{CgroupSockAddr, ProgramError, SchedClassifier, SkLookup, SockOps, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::time::{ClockId, clock_gettime};
use portredir_common::abi::{Addr, Epoch, FlowKey, Hot, OWN_PLACES, Protocol, local, own_place};
use portredir_common::bucket::{Seed, Shares};
use portredir_common::flow::{Table as FlowTable, UDP_IDLE};

use self::error::map_error;
use self::flows::Flows;
use self::link::{Attached, Lookup, Watch};
use self::program::Load;
use crate::ruleset::compile::Table;
use crate::state::{Record, State, Store};
use crate::sys::bpffs::PinDir;
use crate::sys::mmap::{self, Mapped, Shared};
use crate::sys::netns::netns_cookie;
use crate::sys::sock_diag::TcpSocket;

pub use self::error::DatapathError;
pub use self::link::{Mode, Place};
pub use self::listeners::Unregistered;
pub use self::rules::live_generation;

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
const MAPS: [&str; 22] = [
    "ADDRS",
    "COUNTERS",
    "DIALLED",
    "FLOWS",
    "GIVEN",
    "GIVEN_TCP",
    "HITS",
    "HOT",
    "IFACES",
    "LISTENERS",
    "LOCAL",
    "NEXT_SLOT",
    "OLD",
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

/// What programs know from their beginning.
#[derive(Clone, Copy, Debug)]
struct Globals {
    netns_cookie: u64,
    shares: Shares,
    seed: Seed,
}

impl Globals {
    /// Parses the object, and creates those of its maps that are not pinned.
    fn load(&self, options: &Options, pins: Option<&PinDir>) -> Result<Ebpf, DatapathError> {
        let Self {
            netns_cookie,
            shares,
            seed,
        } = self;
        let loopback_target = u8::from(options.allow_loopback_target);
        let flow_shares = [shares.tcp, shares.udp, shares.syn];
        // It parses the types of the whole kernel, which we do not need.
        let mut loader = EbpfLoader::new();
        if let Some(pins) = pins {
            for name in MAPS {
                loader.map_pin_path(name, pins.path(name));
            }
        }
        let object = loader
            .override_global(aya_log::LEVEL, &options.log_level, true)
            .override_global("NETNS_COOKIE", netns_cookie, true)
            .override_global("LOOPBACK_TARGET", &loopback_target, true)
            .override_global("FLOW_SHARES", &flow_shares[..], true)
            .override_global("FLOW_SEED", &seed.0[..], true)
            .map_max_entries("FLOWS", shares.total())
            .load(OBJECT)?;
        drop(loader);
        mmap::give_back();
        Ok(object)
    }
}

/// The datapath of this network namespace.
#[derive(Debug)]
pub struct Datapath {
    maps: HashMap<&'static str, Map>,
    /// What programs are made from; where maps were pinned already, not before
    /// one is needed.
    object: Option<Ebpf>,
    loaded: BTreeSet<&'static str>,
    options: Options,
    globals: Globals,
    attached: BTreeMap<u32, Attached>,
    lookup: Option<Lookup>,
    watch: Option<Watch>,
    local: HashMap<[u8; 16], u8>,
    /// Where what is attached outlives the process.
    pins: Option<PinDir>,
    hot: Mapped<Hot<AtomicU64>>,
}

impl Datapath {
    /// Creates the maps, or opens those that are pinned; attaches nothing.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Load`], [`DatapathError::Map`].
    pub fn load(options: Options, pins: Option<&PinDir>) -> Result<Self, DatapathError> {
        let Sizes {
            tcp_flows,
            udp_flows,
        } = options.sizes;
        let globals = Globals {
            netns_cookie: netns_cookie().map_err(|source| DatapathError::Open {
                path: "the cookie of the network namespace".to_owned(),
                source,
            })?,
            shares: Shares::new(tcp_flows, udp_flows),
            seed: match pins.and_then(left_seed) {
                Some(seed) => seed,
                None => flows::new_seed()?,
            },
        };
        let (maps, object) = match pins.and_then(left_maps) {
            Some(maps) => (maps, None),
            None => {
                let mut object = globals.load(&options, pins)?;
                let maps = MAPS.map(|name| {
                    let map = object.take_map(name).expect("the object has the map");
                    (name, map)
                });
                (HashMap::from(maps), Some(object))
            }
        };
        let hot = map_memory(&maps, "HOT", 1)?;
        let mut datapath = Self {
            maps,
            object,
            loaded: BTreeSet::new(),
            options,
            globals,
            attached: BTreeMap::new(),
            lookup: None,
            watch: None,
            local: HashMap::new(),
            pins: pins.cloned(),
            hot,
        };
        let name = "SEED";
        Array::<_, Seed>::try_from(datapath.map_mut(name))
            .and_then(|mut map| map.set(0, globals.seed, 0))
            .map_err(map_error(name))?;
        // What somebody else may have left there.
        let name = "LOCAL";
        let local =
            BpfHashMap::<_, Addr, u8>::try_from(datapath.map(name)).map_err(map_error(name))?;
        let local = local.iter().filter_map(Result::ok);
        datapath.local = local.map(|(addr, reach)| (addr.octets(), reach)).collect();
        Ok(datapath)
    }

    /// How many of the connections need their packets rewritten.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Memory`].
    pub fn count_redirected(
        &self,
        table: &Table,
        connections: &[TcpSocket],
    ) -> Result<usize, DatapathError> {
        if !self.is_rewriting() {
            return Ok(0);
        }
        let flows = self.flows()?;
        let is_redirected = |key: &FlowKey| {
            flows
                .connection(key)
                .is_some_and(|entry| entry.dialled_port() != key.local_port)
        };
        Ok(connections
            .iter()
            .map(|socket| &socket.key)
            .filter(|key| {
                table.is_target(Protocol::Tcp, key.local_port.get()) && is_redirected(key)
            })
            .count())
    }

    /// Whether packets are rewritten on some interface.
    fn is_rewriting(&self) -> bool {
        let is_wire = |attached: &Attached| matches!(attached, Attached::Wire { .. });
        self.attached.values().any(is_wire)
    }

    /// The flow tables.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Memory`].
    pub fn flows(&self) -> Result<Flows, DatapathError> {
        let Globals { shares, seed, .. } = self.globals;
        let buckets = map_memory(&self.maps, "FLOWS", shares.total())?;
        Ok(Flows::new(buckets, shares, seed))
    }

    /// The programs, and the maps that are not pinned. The log reader has to be
    /// set up before the first attach.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Load`].
    pub fn object(&mut self) -> Result<&mut Ebpf, DatapathError> {
        let object = match self.object.take() {
            Some(object) => object,
            None => self.globals.load(&self.options, self.pins.as_ref())?,
        };
        Ok(self.object.insert(object))
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
        self.object()?;
        let object = self.object.as_mut().expect("it has just been loaded");
        let program: &mut P = object
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
        let program = self.object()?.program(name);
        let program = program.expect("the object has the program");
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

    /// One of the maps that may be pinned.
    ///
    /// # Panics
    ///
    /// When there is no such map.
    #[must_use]
    pub fn map(&self, name: &str) -> &Map {
        &self.maps[name]
    }

    /// As [`Self::map`], to write.
    ///
    /// # Panics
    ///
    /// When there is no such map.
    pub fn map_mut(&mut self, name: &str) -> &mut Map {
        self.maps.get_mut(name).expect("one of the maps")
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
            BpfHashMap::<_, Addr, u8>::try_from(self.map_mut(name)).map_err(map_error(name))?;
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

    /// Gives those of `LOCAL` that are reached from anywhere a place in [`Hot::own`].
    fn set_own(&self) {
        let mut own = vec![[Addr::default(); 2]; OWN_PLACES as usize];
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
        for (words, addrs) in self.hot[0].own.iter().zip(own) {
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
        Store::of_mut(self.map_mut(name)).map_err(map_error(name))
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
    ///
    /// # Errors
    ///
    /// [`DatapathError::Memory`].
    pub fn live(
        &self,
        connections: &[TcpSocket],
    ) -> Result<BTreeSet<(Protocol, u16, u16)>, DatapathError> {
        let flows = self.flows()?;
        let mut live = BTreeSet::new();
        for TcpSocket { key, .. } in connections {
            if let Some(entry) = flows.connection(key) {
                let dialled = entry.dialled_port().get();
                live.insert((Protocol::Tcp, dialled, key.local_port.get()));
            }
        }
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
            u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX)
        });
        let now = Epoch::at(now);
        for (table, target, entry) in flows.entries() {
            if table == FlowTable::Udp && now.since(entry.seen()) < UDP_IDLE {
                live.insert((Protocol::Udp, entry.dialled_port().get(), target.get()));
            }
        }
        Ok(live)
    }
}

/// The seed of what another process has left.
fn left_seed(pins: &PinDir) -> Option<Seed> {
    let map = Map::Array(MapData::from_pin(pins.path("SEED")).ok()?);
    let seed = Array::<_, Seed>::try_from(&map).ok()?.get(&0, 0).ok()?;
    seed.is_set().then_some(seed)
}

/// The maps that another process has left, if none is missing.
fn left_maps(pins: &PinDir) -> Option<HashMap<&'static str, Map>> {
    let open = |name| {
        let map = MapData::from_pin(pins.path(name));
        Some((name, map.and_then(Map::from_map_data).ok()?))
    };
    MAPS.into_iter().map(open).collect()
}

/// Opens an array map as memory.
fn map_memory<T: Shared>(
    maps: &HashMap<&'static str, Map>,
    name: &'static str,
    len: u32,
) -> Result<Mapped<T>, DatapathError> {
    let Map::Array(map) = &maps[name] else {
        unreachable!("{name} is an array");
    };
    Mapped::new(map.fd().as_fd(), len).map_err(|source| DatapathError::Memory { name, source })
}
