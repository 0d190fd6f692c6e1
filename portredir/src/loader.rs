//! The programs in the kernel: loads, fills, attaches and detaches them.

mod adopt;
mod attach;
pub mod counters;
mod error;
pub mod flow_view;
pub mod flows;
pub mod forward;
pub mod forward_view;
pub mod inspect;
mod ipsec;
mod link;
mod listeners;
pub mod live;
mod local;
pub mod local_peers;
mod object;
pub mod pinned;
mod program;
mod rules;
pub mod trace;
pub mod trial;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::AtomicU64;

use aya::Ebpf;
use aya::maps::{Array, HashMap as BpfHashMap, Map};
use aya::programs::{CgroupSockAddr, ProgramError, SchedClassifier, SkLookup, SockOps, Xdp};
use portredir_common::map::hash::Seed;
use portredir_common::map::packet_path::PacketPath;
use portredir_common::net::Addr;

use self::error::map_error;
use self::link::{Attached, Lookup, Watch};
use self::object::{Globals, MAPS, left_maps, left_seed, map_memory, new_seed};
use self::program::Load;
use crate::host::snapshot::LocalNetwork;
use crate::sys::bpffs::PinDir;
use crate::sys::mmap::Mapped;
use crate::sys::netns::netns_cookie;

pub use self::error::{DatapathError, chain};
pub use self::listeners::Unregistered;
pub use self::object::{OBJECT, Options, Sizes};
pub use self::program::ACCEPT;
pub use self::program::Role;
pub use self::rules::live_generation;

/// The datapath of this network namespace.
#[derive(Debug)]
pub struct Datapath {
    maps: HashMap<&'static str, Map>,
    /// The object that programs are made from; with pinned maps, it is parsed only when a
    /// program is needed.
    object: Option<Ebpf>,
    loaded: BTreeSet<&'static str>,
    options: Options,
    globals: Globals,
    attached: BTreeMap<u32, Attached>,
    lookup: Option<Lookup>,
    /// The interfaces on which listeners get the connections out of IPsec, beside programs
    /// that rewrite all other packets.
    ipsec: BTreeSet<u32>,
    watch: Option<Watch>,
    local: HashMap<[u8; 16], u8>,
    local_networks: BTreeSet<LocalNetwork>,
    /// The contents of `OWN_NUMBERS`.
    own_numbers: HashMap<Addr, u32>,
    /// The directory of the pins, if the redirect outlives the process.
    pins: Option<PinDir>,
    hot: Mapped<PacketPath<AtomicU64>>,
}

impl Datapath {
    /// Creates the maps, or opens those that are pinned; attaches nothing.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Load`], [`DatapathError::Map`].
    pub fn load(options: Options, pins: Option<&PinDir>) -> Result<Self, DatapathError> {
        let globals = Globals {
            netns_cookie: netns_cookie().map_err(|source| DatapathError::Open {
                path: "the cookie of the network namespace".to_owned(),
                source,
            })?,
            shares: options.sizes.shares(),
            forward_shares: options.sizes.forward_shares(),
            seed: match options.seed.or_else(|| pins.and_then(left_seed)) {
                Some(seed) => seed,
                None => new_seed()?,
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
            ipsec: BTreeSet::new(),
            watch: None,
            local: HashMap::new(),
            local_networks: BTreeSet::new(),
            own_numbers: HashMap::new(),
            pins: pins.cloned(),
            hot,
        };
        let name = "SEED";
        Array::<_, Seed>::try_from(datapath.map_mut(name))
            .and_then(|mut map| map.set(0, globals.seed, 0))
            .map_err(map_error(name))?;
        // An earlier process may have left addresses there.
        let name = "LOCAL";
        let local =
            BpfHashMap::<_, Addr, u8>::try_from(datapath.map(name)).map_err(map_error(name))?;
        let local = local.iter().filter_map(Result::ok);
        datapath.local = local.map(|(addr, reach)| (addr.octets(), reach)).collect();
        datapath.local_networks = datapath.left_networks();
        datapath.own_numbers = datapath.left_numbers()?;
        Ok(datapath)
    }

    /// Whether packets are rewritten on some interface.
    fn is_rewriting(&self) -> bool {
        let is_wire = |attached: &Attached| matches!(attached, Attached::Wire { .. });
        self.attached.values().any(is_wire)
    }

    /// The object: the programs, and the maps that are not pinned. The log reader has to
    /// be set up before the first attach.
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

    /// Loads a program and returns it, to run it on a packet.
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

    /// A map of those that may be pinned.
    ///
    /// # Panics
    ///
    /// When there is no such map.
    #[must_use]
    pub fn map(&self, name: &str) -> &Map {
        &self.maps[name]
    }

    /// A map of those that may be pinned, to write.
    ///
    /// # Panics
    ///
    /// When there is no such map.
    pub fn map_mut(&mut self, name: &str) -> &mut Map {
        self.maps.get_mut(name).expect("one of the maps")
    }

    /// The interfaces that are attached, by index, and whether only egress is attached.
    #[must_use]
    pub fn attached(&self) -> BTreeMap<u32, bool> {
        let is_egress_only =
            |attached: &Attached| matches!(attached, Attached::Wire { ingress: None, .. });
        self.attached
            .iter()
            .map(|(index, attached)| (*index, is_egress_only(attached)))
            .collect()
    }
}
