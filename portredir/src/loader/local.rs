//! The addresses of this host, in the form that the programs look up.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use aya::maps::HashMap as BpfHashMap;
use portredir_common::map::local;
use portredir_common::map::rules::{LOCAL_ADDR_SLOTS, local_addr_slot};
use portredir_common::net::Addr;

use super::Datapath;
use super::error::{DatapathError, map_error};

impl Datapath {
    /// Sets the local addresses: packets to them are redirected.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn set_local(&mut self, addrs: &HashMap<[u8; 16], u8>) -> Result<(), DatapathError> {
        let name = "LOCAL";
        // A failed entry is tried again with the next change.
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

    /// Fills the local address cache, [`PacketPath::local_addrs`], with addresses of `LOCAL` that can be
    /// reached from anywhere.
    fn set_own(&self) {
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
    }
}
