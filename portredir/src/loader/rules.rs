//! Two generations of rules, and the switch between them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap as BpfHashMap, Map, MapError};
use portredir_common::map::packet_path::PacketPath;
use portredir_common::map::rules::{
    AddrKey, Candidates, IfaceKey, PortEntry, PreviousTargets, SourceKey,
};
use portredir_common::packed::Packed as _;

use super::Datapath;
use super::error::{DatapathError, map_error};
use crate::ruleset::compile::Table;
use crate::sys::mmap::Mapped;

/// The generation of rules that is live: 0 or 1.
#[must_use]
pub fn live_generation(hot: &Mapped<PacketPath<AtomicU64>>) -> u32 {
    u32::from(hot[0].generation.load(Acquire) & 1 != 0)
}

impl Datapath {
    /// The generation of rules that is live: 0 or 1.
    #[must_use]
    pub fn generation(&self) -> u32 {
        live_generation(&self.hot)
    }

    /// Makes a generation the live one, between two packets.
    pub fn switch_to(&self, generation: u32) {
        // The other bits belong to others, who may change them at the same time.
        let word = &self.hot[0].generation;
        if generation == 0 {
            word.fetch_and(!1, Release);
        } else {
            word.fetch_or(1, Release);
        }
    }

    /// Fills the generation that is not live, and makes it the live one.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn commit(&mut self, table: &Table) -> Result<(), DatapathError> {
        let generation = self.fill(table)?;
        self.switch_to(generation);
        Ok(())
    }

    /// Fills the generation that is not live, and returns it.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn fill(&mut self, table: &Table) -> Result<u32, DatapathError> {
        let generation = 1 - self.generation();
        let bit = generation << 31;
        self.fill_ports(generation, &table.ports);
        let is_old = |key: &u32| PreviousTargets::generation(*key) == generation;
        fill_hash(self.map_mut("OLD"), is_old, {
            let key = |index: &u32| PreviousTargets::key(generation, *index);
            table.old.iter().map(move |(index, old)| (key(index), *old))
        })
        .map_err(map_error("OLD"))?;
        fill_hash(
            self.map_mut("ADDRS"),
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
        let mut map = LpmTrie::<_, SourceKey, Candidates>::try_from(self.map_mut(name))
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

    /// Writes the entries that differ from the present ones.
    fn fill_ports(&self, generation: u32, entries: &[PortEntry]) {
        for (both, entry) in self.hot[0].ports.iter().zip(entries) {
            let mut entry = *entry;
            if entry != PortEntry::default() && generation == 1 {
                entry.flags |= PortEntry::GENERATION;
            }
            let word = &both[generation as usize];
            if word.load(Relaxed) != entry.pack() {
                word.store(entry.pack(), Relaxed);
            }
        }
    }

    /// Writes the lists of interfaces that each interface is in, for the rules of a
    /// generation.
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
        fill_hash(self.map_mut("IFACES"), is_gone, masks).map_err(map_error("IFACES"))
    }
}

/// Removes some entries of a hash map, then adds others.
pub(super) fn fill_hash<K: aya::Pod, V: aya::Pod>(
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
