//! The addresses of this host, in the form that the programs look up.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::Ordering::Relaxed;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap as BpfHashMap, MapError};
use portredir_common::map::local;
use portredir_common::map::packet_path::{LOCAL_ADDR_SLOTS, local_addr_slot};
use portredir_common::net::Addr;

use super::Datapath;
use super::error::{DatapathError, map_error};
use crate::host::snapshot::{LocalAddrs, LocalNetwork};

/// The single addresses.
const ADDRS: &str = "LOCAL";

/// The networks, a trie.
const NETWORKS: &str = "LOCAL_NETS";

impl Datapath {
    /// Sets the local addresses: packets to them are redirected.
    ///
    /// # Errors
    ///
    /// [`DatapathError::LocalFull`], when a map cannot hold them all: then the map holds as
    /// many as it can. [`DatapathError::Map`].
    pub fn set_local(&mut self, local: &LocalAddrs) -> Result<(), DatapathError> {
        let addrs = self.set_addrs(local);
        let networks = self.set_networks(&local.networks);
        addrs.and(networks)
    }

    fn set_addrs(&mut self, LocalAddrs { addrs, .. }: &LocalAddrs) -> Result<(), DatapathError> {
        // A failed entry is tried again with the next change.
        let mut local = self.local.clone();
        let mut map =
            BpfHashMap::<_, Addr, u8>::try_from(self.map_mut(ADDRS)).map_err(map_error(ADDRS))?;
        local.retain(|addr, _| {
            let is_kept = addrs.contains_key(addr);
            is_kept || map.remove(&Addr::new(*addr)).is_err()
        });
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
        let held = local.len();
        self.local = local;
        let numbered = self.set_own();
        result.map_err(local_error(ADDRS, addrs.len(), held))?;
        numbered
    }

    /// Adds one local address to those that were set.
    ///
    /// # Errors
    ///
    /// [`DatapathError::LocalFull`], [`DatapathError::Map`].
    pub fn add_local(&mut self, (addr, reach): ([u8; 16], u8)) -> Result<(), DatapathError> {
        if self.local.contains_key(&addr) {
            return Ok(());
        }
        let wanted = self.local.len() + 1;
        let mut map =
            BpfHashMap::<_, Addr, u8>::try_from(self.map_mut(ADDRS)).map_err(map_error(ADDRS))?;
        map.insert(Addr::new(addr), reach, 0)
            .map_err(local_error(ADDRS, wanted, wanted - 1))?;
        self.local.insert(addr, reach);
        self.set_own()
    }

    /// The networks that an earlier process may have left.
    pub(super) fn left_networks(&self) -> BTreeSet<LocalNetwork> {
        let trie = self.maps.get(NETWORKS);
        let trie = trie.and_then(|map| LpmTrie::<_, [u8; 16], u8>::try_from(map).ok());
        let Some(trie) = trie else {
            return BTreeSet::new();
        };
        let keys = trie.keys().filter_map(Result::ok);
        keys.filter_map(|key| {
            Some(LocalNetwork {
                addr: key.data(),
                prefix_len: key.prefix_len().try_into().ok()?,
            })
        })
        .collect()
    }

    /// Fills the trie of networks, which an object of an older version does not have.
    fn set_networks(&mut self, networks: &BTreeSet<LocalNetwork>) -> Result<(), DatapathError> {
        let mut held = self.local_networks.clone();
        let Some(map) = self.maps.get_mut(NETWORKS) else {
            return Ok(());
        };
        let mut map = LpmTrie::<_, [u8; 16], u8>::try_from(map).map_err(map_error(NETWORKS))?;
        let key = |network: &LocalNetwork| Key::new(network.prefix_len.into(), network.addr);
        held.retain(|network| networks.contains(network) || map.remove(&key(network)).is_err());
        let mut result = Ok(());
        for network in networks {
            if !held.contains(network) {
                let inserted = map.insert(&key(network), local::ANYWHERE, 0);
                if inserted.is_ok() {
                    held.insert(*network);
                }
                result = result.and(inserted);
            }
        }
        let count = held.len();
        self.local_networks = held;
        result.map_err(local_error(NETWORKS, networks.len(), count))
    }

    /// Fills the local address cache, [`PacketPath::local_addrs`], with addresses of `LOCAL` that can be
    /// reached from anywhere.
    fn set_own(&mut self) -> Result<(), DatapathError> {
        let anywhere = self.local.iter();
        let anywhere = anywhere.filter(|(_, reach)| **reach == local::ANYWHERE);
        let anywhere: HashSet<_> = anywhere.map(|(addr, _)| Addr::new(*addr)).collect();
        self.number_addrs(&anywhere)?;
        let mut own = vec![[Addr::default(); 2]; LOCAL_ADDR_SLOTS as usize];
        let mut anywhere: Vec<_> = self.local.iter().collect();
        // Sorting makes the choice stable where there is no room for all.
        anywhere.sort_unstable();
        for (addr, _) in anywhere
            .into_iter()
            .filter(|(_, reach)| **reach == local::ANYWHERE)
        {
            let place = &mut own[local_addr_slot(Addr::new(*addr)) as usize];
            if let Some(unused) = place.iter_mut().find(|addr| **addr == Addr::default()) {
                *unused = Addr::new(*addr);
            }
        }
        for (words, addrs) in self.hot[0].local_addrs.iter().zip(own) {
            for (words, addr) in words.chunks_exact(2).zip(addrs) {
                let [first, second] = addr.long_words();
                if words[0].load(Relaxed) != first || words[1].load(Relaxed) != second {
                    // The programs must never see half of one address and half of
                    // another.
                    words[1].store(0, Relaxed);
                    words[0].store(first, Relaxed);
                    words[1].store(second, Relaxed);
                }
            }
        }
        Ok(())
    }
}

/// The error of a map that did not take an address. A full hash says `E2BIG`, a full trie
/// `ENOSPC`.
fn local_error(
    name: &'static str,
    wanted: usize,
    held: usize,
) -> impl FnOnce(MapError) -> DatapathError {
    move |source| match &source {
        MapError::SyscallError(error)
            if matches!(
                error.io_error.raw_os_error(),
                Some(libc::E2BIG | libc::ENOSPC)
            ) =>
        {
            DatapathError::LocalFull { wanted, held }
        }
        _ => map_error(name)(source),
    }
}
