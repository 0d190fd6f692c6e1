//! The flow tables, as user space sees them.

use std::sync::atomic::AtomicU64;

use portredir_common::abi::{FlowKey, Port};
use portredir_common::bucket::{Bucket, Entry, Hash, Seed, Shares};
use portredir_common::flow::Table;

use crate::sys::mmap::Mapped;

/// All flow tables. They are mapped for as long as this lives: what is mapped
/// counts as memory of the process.
#[derive(Debug)]
pub struct Flows {
    buckets: Mapped<Bucket<AtomicU64>>,
    shares: Shares,
    seed: Seed,
}

impl Flows {
    /// The tables in the memory of the map `FLOWS`.
    #[must_use]
    pub const fn new(buckets: Mapped<Bucket<AtomicU64>>, shares: Shares, seed: Seed) -> Self {
        Self {
            buckets,
            shares,
            seed,
        }
    }

    /// Where a translated flow is, if it is anywhere.
    #[must_use]
    pub fn bucket(&self, table: Table, key: &FlowKey) -> (&Bucket<AtomicU64>, Hash) {
        let hash = self.seed.hash(key);
        let index = self.shares.index(table, hash);
        (&self.buckets[index as usize], hash)
    }

    /// The entry of a translated flow.
    #[must_use]
    pub fn entry(&self, table: Table, key: &FlowKey) -> Option<Entry> {
        let (bucket, hash) = self.bucket(table, key);
        bucket.find(hash, key.local_port).map(|found| found.entry)
    }

    /// The entry of a TCP flow.
    #[must_use]
    pub fn connection(&self, key: &FlowKey) -> Option<Entry> {
        [Table::Tcp, Table::Syn]
            .into_iter()
            .find_map(|table| self.entry(table, key))
    }

    /// Every entry, with its table and its target.
    pub fn entries(&self) -> impl Iterator<Item = (Table, Port, Entry)> {
        let buckets = (0..).zip(&*self.buckets);
        buckets.flat_map(|(index, bucket)| {
            let table = self.shares.table(index);
            let entries = bucket.entries();
            entries.map(move |(target, entry)| (table, target, entry))
        })
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.buckets.iter().for_each(Bucket::clear);
    }
}

/// A seed of numbers that nobody can guess.
///
/// # Errors
///
/// When the kernel gives none.
pub fn new_seed() -> Result<Seed, getrandom::Error> {
    let mut random = [0; Seed::WORDS];
    for word in &mut random {
        *word = getrandom::u64()?;
    }
    Ok(Seed::new(random))
}
