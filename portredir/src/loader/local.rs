//! The addresses of this host, as the programs look them up.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use aya::maps::HashMap as BpfHashMap;
use portredir_common::abi::{Addr, OWN_PLACES, local, own_place};

use super::Datapath;
use super::error::{DatapathError, map_error};

impl Datapath {
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
}
