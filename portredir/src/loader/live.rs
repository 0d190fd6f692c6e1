//! The maps of a redirect that runs, opened to be read: nothing here writes to them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use aya::Pod;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, MapError, SockHash};
use portredir_common::flow::{Flow, FlowKey, FlowTable};
use portredir_common::kernel::RuleMaps;
use portredir_common::map::hash::Seed;
use portredir_common::map::local;
use portredir_common::map::packet_path::PacketPath;
use portredir_common::map::port_remap::remap_bloom_slot;
use portredir_common::map::rules::{
    AddrKey, Candidates, IfaceKey, PortEntry, PreviousTargets, SourceKey,
};
use portredir_common::map::sockets::ListenerKey;
use portredir_common::net::{Addr, LOOPBACK_IFINDEX, Port, Protocol};
use portredir_common::packed::Packed as _;

use super::error::{DatapathError, map_error};
use super::flows::Flows;
use super::forward::{ForwardCopy, Forwards};
use super::object::{MAPS, Sizes, left_maps, map_memory};
use crate::host::snapshot::LocalNetwork;
use crate::sys::bpffs::PinDir;
use crate::sys::mmap::Mapped;
use crate::sys::process;

/// The maps of a redirect that runs.
#[derive(Debug)]
pub struct Live {
    maps: HashMap<&'static str, Map>,
    hot: Mapped<PacketPath<AtomicU64>>,
    flows: Flows,
    forwards: Forwards,
}

impl Live {
    /// Opens the maps that are pinned; `None` when some are missing.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`], [`DatapathError::Memory`].
    pub fn pinned(pins: &PinDir, sizes: Sizes) -> Result<Option<Self>, DatapathError> {
        left_maps(pins)
            .map(|maps| Self::new(maps, sizes))
            .transpose()
    }

    /// Opens the maps that a process holds; `None` when some are missing. Needs
    /// `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`], [`DatapathError::Memory`].
    pub fn of_process(pid: u32, sizes: Sizes) -> Result<Option<Self>, DatapathError> {
        let mut maps = HashMap::new();
        for id in process::bpf_maps(pid) {
            // A map may be gone meanwhile.
            let Ok(map) = MapData::from_id(id) else {
                continue;
            };
            let info = map.info().map_err(map_error("maps"))?;
            let name = MAPS
                .into_iter()
                .find(|name| info.name_as_str() == Some(name));
            if let Some(name) = name {
                let map = Map::from_map_data(map).map_err(map_error(name))?;
                maps.insert(name, map);
            }
        }
        let is_whole = MAPS.iter().all(|name| maps.contains_key(name));
        is_whole.then(|| Self::new(maps, sizes)).transpose()
    }

    fn new(maps: HashMap<&'static str, Map>, sizes: Sizes) -> Result<Self, DatapathError> {
        let name = "SEED";
        let seed = Array::<_, Seed>::try_from(&maps[name]).and_then(|map| map.get(&0, 0));
        let seed = seed.map_err(map_error(name))?;
        let shares = sizes.shares();
        Ok(Self {
            hot: map_memory(&maps, "HOT", 1)?,
            flows: Flows::new(map_memory(&maps, "FLOWS", shares.total())?, shares, seed),
            forwards: Forwards::new(&maps, sizes.forward_shares())?,
            maps,
        })
    }

    /// Copies all that the programs know of rules and of this host.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn rules(&self) -> Result<RuleCopy, DatapathError> {
        let hot = &self.hot[0];
        let name = "LISTENERS";
        let listeners = SockHash::<_, ListenerKey>::try_from(&self.maps[name])
            .map_err(map_error(name))?
            .keys()
            .collect::<Result<_, _>>()
            .map_err(map_error(name))?;
        let sources: HashMap<_, _> = self.trie("SOURCES")?;
        let prefixes: BTreeSet<_> = sources.keys().map(|(prefix, _)| *prefix).collect();
        let networks: HashMap<_, u8> = self.trie::<Addr, u8>("LOCAL_NETS")?;
        let networks = networks.into_keys().filter_map(|(prefix_len, addr)| {
            Some(LocalNetwork {
                addr: addr.octets(),
                prefix_len: prefix_len.try_into().ok()?,
            })
        });
        Ok(RuleCopy {
            generation: hot.generation.load(Relaxed),
            ports: hot
                .ports
                .iter()
                .map(|both| both.each_ref().map(|word| word.load(Relaxed)))
                .collect(),
            local_addrs: hot
                .local_addrs
                .iter()
                .map(|slot| slot.each_ref().map(|word| word.load(Relaxed)))
                .collect(),
            old: self.hash("OLD")?,
            addrs: self.hash("ADDRS")?,
            ifaces: self.hash("IFACES")?,
            local: self.hash("LOCAL")?,
            scope: self.hash("SCOPE")?,
            networks: networks.collect(),
            forward: ForwardCopy::new(&self.maps)?,
            seed: self.flows.seed(),
            sources,
            prefixes: prefixes.into_iter().rev().collect(),
            listeners,
        })
    }

    fn hash<K, V>(&self, name: &'static str) -> Result<HashMap<K, V>, DatapathError>
    where
        K: Pod + Eq + std::hash::Hash,
        V: Pod,
    {
        let map = BpfHashMap::<_, K, V>::try_from(&self.maps[name]).map_err(map_error(name))?;
        entries(map.iter()).map_err(map_error(name))
    }

    fn trie<K, V>(&self, name: &'static str) -> Result<HashMap<(u32, K), V>, DatapathError>
    where
        K: Pod + Eq + std::hash::Hash,
        V: Pod,
    {
        let map = LpmTrie::<_, K, V>::try_from(&self.maps[name]).map_err(map_error(name))?;
        let entries = map
            .iter()
            .map(|entry| entry.map(|(key, value)| ((key.prefix_len(), key.data()), value)));
        self::entries(entries).map_err(map_error(name))
    }

    /// The flow of a key, and the table that has it.
    #[must_use]
    pub fn flow(&self, protocol: Protocol, key: &FlowKey) -> Option<(FlowTable, Flow)> {
        let tables: &[FlowTable] = match protocol {
            Protocol::Tcp => &[FlowTable::Tcp, FlowTable::Syn],
            Protocol::Udp => &[FlowTable::Udp],
        };
        let mut tables = tables.iter();
        tables.find_map(|table| {
            let entry = self.flows.entry(*table, key)?;
            Some((*table, entry.flow(self.own_port(*table, key))))
        })
    }

    /// The tables of forwarded flows.
    #[must_use]
    pub const fn forwards(&self) -> &Forwards {
        &self.forwards
    }

    /// The flow tables.
    #[must_use]
    pub const fn flows(&self) -> &Flows {
        &self.flows
    }

    /// The client's own port of a flow that was given another one, else the one of the key.
    #[must_use]
    pub fn own_port(&self, table: FlowTable, key: &FlowKey) -> Port {
        let name = match table {
            FlowTable::Tcp => "GIVEN_TCP",
            FlowTable::Syn | FlowTable::Udp => "GIVEN",
        };
        let map = BpfHashMap::<_, FlowKey, [u8; 2]>::try_from(&self.maps[name]).ok();
        let given = map.and_then(|map| map.get(key, 0).ok());
        given.map_or(key.client_port, |port| Port::new(u16::from_be_bytes(port)))
    }

    /// Whether the client of a key may have been marked.
    #[must_use]
    pub fn is_marked(&self, key: &FlowKey) -> bool {
        let (element, byte) = remap_bloom_slot(key.client, key.client_port);
        let marks = Array::<_, [u8; 64]>::try_from(&self.maps["REMAPPED"]).ok();
        let marks = marks.and_then(|map| map.get(&element, 0).ok());
        marks.is_some_and(|marks| marks[byte] != 0)
    }
}

/// The entries of a map that may change while it is read: some are seen twice then.
fn entries<K: Eq + std::hash::Hash, V>(
    entries: impl Iterator<Item = Result<(K, V), MapError>>,
) -> Result<HashMap<K, V>, MapError> {
    entries.collect()
}

/// A copy of all that programs know of rules and of this host, as it was at one moment.
#[derive(Clone, Debug)]
pub struct RuleCopy {
    /// The word [`PacketPath::generation`].
    pub(super) generation: u64,
    pub(super) ports: Vec<[u64; 2]>,
    pub(super) local_addrs: Vec<[u64; 4]>,
    pub(super) old: HashMap<u32, PreviousTargets>,
    pub(super) addrs: HashMap<AddrKey, u32>,
    pub(super) sources: HashMap<(u32, SourceKey), Candidates>,
    /// The lengths of prefixes in `sources`, the longest first.
    prefixes: Vec<u32>,
    pub(super) ifaces: HashMap<IfaceKey, u64>,
    pub(super) local: HashMap<Addr, u8>,
    pub(super) networks: BTreeSet<LocalNetwork>,
    scope: HashMap<u32, u8>,
    listeners: HashSet<ListenerKey>,
    /// The targets with an address.
    pub forward: ForwardCopy,
    /// The seed of hashes: the hash of a client names its target.
    pub seed: Seed,
}

impl RuleCopy {
    /// The entry of a port.
    #[must_use]
    pub fn port(&self, protocol: Protocol, port: Port) -> PortEntry {
        let [first, second] = self.ports[PortEntry::index(protocol, port) as usize];
        let is_first = self.generation & 1 == 0;
        PortEntry::unpack(if is_first { first } else { second })
    }

    /// The target ports that earlier rules had for a port.
    #[must_use]
    pub fn previous_targets(&self, entry: PortEntry, index: u32) -> PreviousTargets {
        let key = PreviousTargets::key(entry.generation(), index);
        self.old.get(&key).copied().unwrap_or_default()
    }

    /// Whether packets to an address that come in by an interface are for this host, as the
    /// programs judge it.
    #[must_use]
    pub fn is_local(&self, addr: &Addr, ifindex: u32) -> bool {
        match self.local.get(addr) {
            Some(&local::ANYWHERE) => true,
            Some(_) => ifindex == LOOPBACK_IFINDEX,
            None if addr.is_v4_loopback() => ifindex == LOOPBACK_IFINDEX,
            None => self.networks.iter().any(|network| {
                let wanted = Addr::new(network.addr);
                masked(*addr, network.prefix_len.into()) == wanted
            }),
        }
    }

    /// The way in which connections of an interface are given to listeners, one of
    /// [`scope`](portredir_common::map::sockets::scope).
    #[must_use]
    pub fn scope(&self, ifindex: u32) -> Option<u8> {
        self.scope.get(&ifindex).copied()
    }

    /// Whether a listening socket is registered.
    #[must_use]
    pub fn has_listener(&self, key: &ListenerKey) -> bool {
        self.listeners.contains(key)
    }
}

impl RuleMaps for RuleCopy {
    fn addr_group(&self, key: &AddrKey) -> Option<u32> {
        self.addrs.get(key).copied()
    }

    fn candidates(&self, key: &SourceKey) -> Option<&Candidates> {
        let mut prefixes = self.prefixes.iter();
        prefixes.find_map(|&prefix| {
            let client = masked(key.client, prefix.saturating_sub(SourceKey::PREFIX));
            self.sources.get(&(prefix, SourceKey { client, ..*key }))
        })
    }

    fn iface_mask(&self, key: &IfaceKey) -> Option<u64> {
        self.ifaces.get(key).copied()
    }
}

/// The first bits of an address; the others are zero.
fn masked(addr: Addr, bits: u32) -> Addr {
    let number = u128::from_be_bytes(addr.octets());
    let mask = u128::MAX.checked_shl(Addr::BITS - bits).unwrap_or_default();
    Addr::new((number & mask).to_be_bytes())
}
