//! The flow tables for user space.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use portredir_common::flow::{Epoch, FlowKey};
use portredir_common::flow::{FlowTable, UDP_IDLE};
use portredir_common::map::bucket::{Bucket, Shares};
use portredir_common::map::entry::{Entry, PLACES};
use portredir_common::map::hash::{Hash, Seed};
use portredir_common::net::{Port, Protocol};
use serde::{Deserialize, Serialize};

use super::Datapath;
use super::error::DatapathError;
use super::object::{Globals, map_memory};
use crate::ruleset::compile::Table as RuleTable;
use crate::sys::clock::monotonic_ns;
use crate::sys::sock_diag::TcpSocket;

use crate::sys::mmap::Mapped;

/// All flow tables. They are mapped for as long as this lives: mapped memory counts as
/// memory of the process.
#[derive(Debug)]
pub struct Flows {
    buckets: Mapped<Bucket<AtomicU64>>,
    shares: Shares,
    seed: Seed,
}

impl Flows {
    /// Finds the tables in the memory of the map `FLOWS`.
    #[must_use]
    pub const fn new(buckets: Mapped<Bucket<AtomicU64>>, shares: Shares, seed: Seed) -> Self {
        Self {
            buckets,
            shares,
            seed,
        }
    }

    /// The seed of the hashes.
    #[must_use]
    pub const fn seed(&self) -> Seed {
        self.seed
    }

    /// The place of a translated flow, if it has one.
    #[must_use]
    pub fn bucket(&self, table: FlowTable, key: &FlowKey) -> (&Bucket<AtomicU64>, Hash) {
        let hash = self.seed.hash(key);
        let index = self.shares.index(table, hash);
        (&self.buckets[index as usize], hash)
    }

    /// The entry of a translated flow.
    #[must_use]
    pub fn entry(&self, table: FlowTable, key: &FlowKey) -> Option<Entry> {
        let (bucket, hash) = self.bucket(table, key);
        bucket.find(hash, key.local_port).map(|found| found.entry)
    }

    /// The entry of a TCP flow.
    #[must_use]
    pub fn connection(&self, key: &FlowKey) -> Option<Entry> {
        [FlowTable::Tcp, FlowTable::Syn]
            .into_iter()
            .find_map(|table| self.entry(table, key))
    }

    /// Every entry, with its table and its target.
    pub fn entries(&self) -> impl Iterator<Item = (FlowTable, Port, Entry)> {
        let buckets = (0..).zip(&*self.buckets);
        buckets.flat_map(|(index, bucket)| {
            let table = self.shares.table(index);
            let entries = bucket.entries();
            entries.map(move |(target, entry)| (table, target, entry))
        })
    }

    /// Every entry of the UDP table, with its slot ([`Shares::udp_slot`]) and its target.
    pub fn udp_entries(&self) -> impl Iterator<Item = (usize, Port, Entry)> {
        let first = self.shares.tcp as usize;
        let buckets = (0..).zip(
            self.buckets
                .iter()
                .skip(first)
                .take(self.shares.udp as usize),
        );
        buckets.flat_map(|(index, bucket): (usize, _)| {
            let places = bucket.places();
            places.map(move |(place, target, entry)| (index * PLACES + place, target, entry))
        })
    }

    /// Removes all entries.
    pub fn clear(&self) {
        self.buckets.iter().for_each(Bucket::clear);
    }
}

/// The duration of a number of epochs.
pub(super) fn epochs(number: u32) -> Duration {
    Duration::from_nanos(u64::from(number) * Epoch::UNIT_NS)
}

/// How full a flow table is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// The name of the table: `tcp`, `syn` (connections that no server has accepted yet) or
    /// `udp`.
    pub table: String,
    /// The number of flows that would be lost if they were evicted.
    pub entries: u64,
    /// The number of flows that the table is made for.
    pub capacity: u64,
    /// The number of buckets.
    pub buckets: u64,
    /// The number of buckets where a new flow evicts one of `entries`.
    pub full_buckets: u64,
}

/// The number of flows that a bucket is made for: it has twice as many places
/// ([`Shares::new`]).
const FLOWS_PER_BUCKET: u64 = PLACES as u64 / 2;

impl Flows {
    /// How full each table is.
    #[must_use]
    pub fn fill(&self) -> Vec<Fill> {
        let now = now();
        let mut fills = [FlowTable::Tcp, FlowTable::Syn, FlowTable::Udp].map(|table| Fill {
            table: name(table).to_owned(),
            ..Fill::default()
        });
        for (index, bucket) in (0..).zip(&*self.buckets) {
            let table = self.shares.table(index);
            let alive = bucket.entries().filter(|(_, entry)| {
                // A connection has its entry until it ends.
                table == FlowTable::Tcp || now.since(entry.seen()) < UDP_IDLE
            });
            let alive = alive.count();
            let fill = fills.iter_mut().find(|fill| fill.table == name(table));
            let fill = fill.expect("each table");
            fill.buckets += 1;
            fill.capacity += FLOWS_PER_BUCKET;
            fill.entries += u64::try_from(alive).unwrap_or(0);
            fill.full_buckets += u64::from(alive == PLACES);
        }
        fills.into()
    }
}

const fn name(table: FlowTable) -> &'static str {
    match table {
        FlowTable::Tcp => "tcp",
        FlowTable::Syn => "syn",
        FlowTable::Udp => "udp",
    }
}

fn now() -> Epoch {
    Epoch::at(monotonic_ns())
}

impl Datapath {
    /// The number of connections with rewritten packets.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Memory`].
    pub fn count_redirected(
        &self,
        table: &RuleTable,
        connections: &[TcpSocket],
    ) -> Result<usize, DatapathError> {
        if !self.is_rewriting() {
            return Ok(0);
        }
        let flows = self.flows()?;
        let is_redirected = |key: &FlowKey| {
            flows
                .connection(key)
                .is_some_and(|entry| entry.dst_port() != key.local_port)
        };
        Ok(connections
            .iter()
            .map(|socket| &socket.key)
            .filter(|key| table.is_target(Protocol::Tcp, key.local_port) && is_redirected(key))
            .count())
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

    /// The existing flows, by protocol, destination port and target port: for TCP those
    /// of `connections`, for UDP those that are not idle.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Memory`].
    pub fn live(
        &self,
        connections: &[TcpSocket],
    ) -> Result<HashSet<(Protocol, Port, Port)>, DatapathError> {
        let flows = self.flows()?;
        let mut live = HashSet::new();
        for TcpSocket { key, .. } in connections {
            if let Some(entry) = flows.connection(key) {
                live.insert((Protocol::Tcp, entry.dst_port(), key.local_port));
            }
        }
        let now = now();
        for (table, target, entry) in flows.entries() {
            if table == FlowTable::Udp && now.since(entry.seen()) < UDP_IDLE {
                live.insert((Protocol::Udp, entry.dst_port(), target));
            }
        }
        Ok(live)
    }
}
