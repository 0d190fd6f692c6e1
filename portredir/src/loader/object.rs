//! The compiled programs: parsing, their settings, and the maps that they share with user
//! space.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use aya::maps::{Array, Map, MapData};
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader};
use portredir_common::map::bucket::Shares;
use portredir_common::map::hash::Seed;
use serde::{Deserialize, Serialize};

use super::error::DatapathError;
use crate::sys::bpffs::PinDir;
use crate::sys::mmap::{self, Mapped, Shared};
use crate::sys::xfrm;

/// The compiled programs. `cargo xtask build-ebpf` makes them anew.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/portredir.bpf.o");

/// The sizes of the flow tables.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Sizes {
    /// The number of entries in the TCP table.
    pub tcp_flows: u32,
    /// The number of entries in the UDP table, and in that of TCP flows being opened.
    pub udp_flows: u32,
}

/// The options that are fixed before the first program is loaded.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The sizes of the flow tables.
    pub sizes: Sizes,
    /// The cgroup of the local clients and of the servers.
    pub cgroup: Option<PathBuf>,
    /// Whether the user named this cgroup, so that it has a part of the processes.
    pub is_cgroup_named: bool,
    /// Whether servers on loopback addresses also serve other hosts.
    pub allow_loopback_target: bool,
    /// Whether every interface is used, so that connections are redirected even when the
    /// kernel cannot tell their ingress interface.
    pub is_everywhere: bool,
    /// The seed of hashes, where it has to be that of other programs; `None` for the one that
    /// is pinned, or a new one.
    pub seed: Option<Seed>,
}

impl Sizes {
    /// The division of the buckets of flows.
    #[must_use]
    pub const fn shares(self) -> Shares {
        Shares::new(self.tcp_flows, self.udp_flows)
    }

    /// The division of the buckets of forwarded flows: a quarter as many, as an entry of one
    /// has four times as much memory beside it.
    #[must_use]
    pub const fn forward_shares(self) -> Shares {
        Shares::new(self.tcp_flows.div_ceil(4), self.udp_flows.div_ceil(4))
    }
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
pub(super) const MAPS: [&str; 41] = [
    "ADDRS",
    "COUNTERS",
    "DIALLED",
    "FLOWS",
    "FORWARDS",
    "FORWARD_ENDS",
    "FORWARD_PEERS",
    "GIVEN",
    "GIVEN_TCP",
    "HITS",
    "HOT",
    "IFACES",
    "LISTENERS",
    "LISTENS_ON",
    "LOCAL",
    "LOCAL_NETS",
    "NEXT_SLOT",
    "OLD",
    "OUTCOMES",
    "OWN_ADDRS",
    "OWN_NUMBERS",
    "REASONS",
    "REMAP",
    "REMAPPED",
    "REMAP_TCP",
    "REPLIES",
    "REPLIES_MORE",
    "SCOPE",
    "SEED",
    "SERVICES",
    "SLOTS",
    "SOCKETS",
    "SOURCES",
    "STATE",
    "TARGETS",
    "TARGET_ADDRS",
    "TRACE",
    "TRACE_CPU",
    "TRACE_UNTIL",
    "UDP_ENDS",
    "UDP_PEERS",
];

/// The constants that programs are loaded with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Globals {
    pub(super) netns_cookie: u64,
    pub(super) shares: Shares,
    /// The division of `FORWARDS`.
    pub(super) forward_shares: Shares,
    pub(super) seed: Seed,
}

impl Globals {
    /// Parses the object, and creates those of its maps that are not pinned.
    pub(super) fn load(
        &self,
        options: &Options,
        pins: Option<&PinDir>,
    ) -> Result<Ebpf, DatapathError> {
        let Self {
            netns_cookie,
            shares,
            forward_shares: forward,
            seed,
        } = self;
        let loopback_target = u8::from(options.allow_loopback_target);
        let has_mptcp = u8::from(has_helper(BpfHelper::BPF_FUNC_skc_to_mptcp_sock));
        // Both came with Linux 5.9.
        let has_casts = u8::from(has_helper(BpfHelper::BPF_FUNC_skc_to_udp6_sock));
        let has_ipsec = u8::from(xfrm::is_supported());
        let flow_shares = [shares.tcp, shares.udp, shares.syn];
        let forward_shares = [forward.tcp, forward.udp, forward.syn];
        let mut loader = EbpfLoader::new();
        // The types of the whole kernel, which it has parsed: no program needs them.
        loader.btf(None);
        if let Some(pins) = pins {
            for name in MAPS {
                loader.map_pin_path(name, pins.path(name));
            }
        }
        let object = loader
            .override_global("NETNS_COOKIE", netns_cookie, true)
            .override_global("LOOPBACK_TARGET", &loopback_target, true)
            .override_global("HAS_MPTCP", &has_mptcp, true)
            .override_global("HAS_SOCKET_CASTS", &has_casts, true)
            .override_global("HAS_IPSEC", &has_ipsec, true)
            .override_global("FLOW_SHARES", &flow_shares[..], true)
            .override_global("FORWARD_SHARES", &forward_shares[..], true)
            .override_global("FLOW_SEED", &seed.0[..], true)
            .map_max_entries("FLOWS", shares.total())
            .map_max_entries("UDP_ENDS", shares.udp_slots())
            .map_max_entries("FORWARDS", forward.total())
            .map_max_entries("FORWARD_ENDS", forward.known_places())
            .load(OBJECT)?;
        drop(loader);
        mmap::give_back();
        Ok(object)
    }
}

/// Whether programs may call a helper: `bpf_skc_to_mptcp_sock` came with Linux 5.19, for
/// kernels that have MPTCP.
fn has_helper(helper: BpfHelper) -> bool {
    // The helper is one for all kinds of programs; this kind is probed the quickest.
    matches!(
        is_helper_supported(ProgramType::SchedClassifier, helper),
        Ok(true)
    )
}

/// A random seed that cannot be guessed.
///
/// # Errors
///
/// When the kernel gives none.
pub(super) fn new_seed() -> Result<Seed, getrandom::Error> {
    let mut random = [0; Seed::WORDS];
    for word in &mut random {
        *word = getrandom::u64()?;
    }
    Ok(Seed::new(random))
}

/// The seed that another process has left.
pub(super) fn left_seed(pins: &PinDir) -> Option<Seed> {
    let map = Map::Array(MapData::from_pin(pins.path("SEED")).ok()?);
    let seed = Array::<_, Seed>::try_from(&map).ok()?.get(&0, 0).ok()?;
    seed.is_set().then_some(seed)
}

/// The maps that another process has left, if none is missing.
pub(super) fn left_maps(pins: &PinDir) -> Option<HashMap<&'static str, Map>> {
    let open = |name| {
        let map = MapData::from_pin(pins.path(name));
        Some((name, map.and_then(Map::from_map_data).ok()?))
    };
    MAPS.into_iter().map(open).collect()
}

/// Takes a map out of those that were opened.
pub(super) fn take(
    maps: &mut BTreeMap<&'static str, MapData>,
    name: &'static str,
) -> Result<MapData, DatapathError> {
    let none = || DatapathError::Memory {
        name,
        source: std::io::ErrorKind::NotFound.into(),
    };
    maps.remove(name).ok_or_else(none)
}

/// Opens an array map as memory.
pub(super) fn map_memory<T: Shared>(
    maps: &HashMap<&'static str, Map>,
    name: &'static str,
    len: u32,
) -> Result<Mapped<T>, DatapathError> {
    let Map::Array(map) = &maps[name] else {
        unreachable!("{name} is an array");
    };
    Mapped::new(map.fd().as_fd(), len).map_err(|source| DatapathError::Memory { name, source })
}

#[cfg(test)]
mod tests {
    use super::MAPS;

    #[test]
    fn the_architecture_has_every_map() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ARCHITECTURE.md");
        let text = std::fs::read_to_string(path).expect("docs/ARCHITECTURE.md");
        let (_, table) = text.split_once("\n### Maps\n").expect("a section");
        let (table, _) = table.split_once("\n### ").expect("another section");
        let rows: Vec<_> = table
            .lines()
            .filter(|line| line.starts_with("| `"))
            .collect();
        let named = |line: &str, name: &str| {
            let first = line.split('|').nth(1).unwrap_or_default();
            first.contains(&format!("`{name}`"))
        };
        let missing = MAPS
            .iter()
            .filter(|name| !rows.iter().any(|line| named(line, name)));
        assert_eq!(missing.collect::<Vec<_>>(), Vec::<&&str>::new());
    }
}
