//! Look-ups in the flow tables: the one body of each, over buckets.

use crate::flow::{Epoch, Flow, FlowKey, FlowLookup, FlowTable, Original};
use crate::kernel::{FlowBuckets, FlowTables, NewFlow};
use crate::map::entry::{Connection, Entry};
use crate::map::hash::Hash;
use crate::net::{Port, Protocol};

/// The entry of a translated flow in one table: the body of [`FlowTables::entry`].
#[inline(always)]
pub fn entry<T: FlowBuckets>(tables: &T, table: FlowTable, key: &FlowKey) -> Option<Entry> {
    entry_of_hash(tables, table, tables.hash(key), key.local_port)
}

#[inline(always)]
fn entry_of_hash<T: FlowBuckets>(
    tables: &T,
    table: FlowTable,
    hash: Hash,
    target: Port,
) -> Option<Entry> {
    let bucket = tables.bucket(table, hash)?;
    let found = bucket.find(hash, target)?;
    Some(found.entry)
}

/// The entry of a translated TCP flow: the body of [`FlowTables::connection`].
#[inline(always)]
pub fn connection<T: FlowBuckets>(tables: &T, key: &FlowKey) -> Option<Connection> {
    let hash = tables.hash(key);
    if let Some(entry) = entry_of_hash(tables, FlowTable::Tcp, hash, key.local_port) {
        return Some(Connection::new(FlowTable::Tcp, entry));
    }
    let entry = entry_of_hash(tables, FlowTable::Syn, hash, key.local_port)?;
    Some(Connection::new(FlowTable::Syn, entry))
}

/// Adds or replaces the entry of a translated flow: the part of
/// [`FlowTables::set_flow`] that concerns buckets.
#[inline(always)]
pub fn put<T: FlowBuckets>(tables: &T, table: FlowTable, key: &FlowKey, flow: &Flow) {
    let hash = tables.hash(key);
    if let Some(bucket) = tables.bucket(table, hash) {
        let mut entry = Entry::new(hash, flow);
        if flow.client_port != key.client_port {
            entry = entry.remapped();
        }
        if table == FlowTable::Tcp {
            entry = entry.confirmed();
        }
        let added = bucket.put(hash, key.local_port, entry);
        if let (FlowTable::Udp, Some(place)) = (table, added) {
            let slot = tables.udp_slot(hash, place);
            tables.keep_ports(slot, key.client_port, key.local_port);
            tables.keep_addrs(slot, key);
        }
    }
}

/// Removes the entry of a translated flow: the body of [`FlowTables::remove_flow`].
#[inline(always)]
pub fn remove<T: FlowBuckets>(tables: &T, table: FlowTable, key: &FlowKey) {
    let hash = tables.hash(key);
    if let Some(bucket) = tables.bucket(table, hash) {
        bucket.remove(hash, key.local_port);
    }
}

/// The flow of a translated key in one table.
#[inline(always)]
pub(super) fn lookup<T: FlowTables>(tables: &T, table: FlowTable, key: &FlowKey) -> Option<Flow> {
    let entry = tables.entry(table, key)?;
    flow_of_entry(tables, table, key, entry)
}

/// The flow of a translated key in the tables of a protocol, and the table that has it.
#[inline(always)]
pub(super) fn lookup_protocol<T: FlowTables>(
    tables: &T,
    protocol: Protocol,
    key: &FlowKey,
) -> Option<(FlowTable, Flow)> {
    if protocol == Protocol::Udp {
        return lookup(tables, FlowTable::Udp, key).map(|flow| (FlowTable::Udp, flow));
    }
    let connection = tables.connection(key)?;
    let table = connection.table();
    flow_of_entry(tables, table, key, connection.entry()).map(|flow| (table, flow))
}

/// The flow of an entry, with the client's own port.
#[inline(always)]
fn flow_of_entry<T: FlowTables>(
    tables: &T,
    table: FlowTable,
    key: &FlowKey,
    entry: Entry,
) -> Option<Flow> {
    let own_port = if entry.is_remapped() {
        tables.own_port(table, key)?
    } else {
        key.client_port
    };
    Some(entry.flow(own_port))
}

/// A packet's question to the flow table.
#[derive(Clone, Copy)]
pub(super) struct FlowQuery<'a> {
    /// The translated flow, under the client's own port.
    pub key: &'a FlowKey,
    /// The hash of `key`; computed apart, so that no more of the key has to be kept.
    pub hash: Hash,
    /// The flow as the client knows it.
    pub original: Original,
    /// The present moment.
    pub now: Epoch,
}

/// Refreshes the entry of a flow whose client has its own port; inserts one where there
/// is none and the flow may begin, which a UDP flow may.
///
/// To insert, the function needs the whole key, for which `rebuild_key` reads the
/// packet again: so nothing has to be kept until then.
#[inline(always)]
pub(super) fn lookup_or_insert<T: FlowTables>(
    tables: &T,
    table: FlowTable,
    query: FlowQuery<'_>,
    mut rebuild_key: impl FnMut() -> Option<FlowKey>,
) -> FlowLookup {
    let FlowQuery {
        key,
        hash,
        original,
        now,
    } = query;
    let Some(bucket) = tables.bucket(table, hash) else {
        return FlowLookup::SlowPath;
    };
    if let Some(found) = bucket.find(hash, key.local_port) {
        if !found.entry.is_translated_from(original.dst_port) {
            return FlowLookup::SlowPath;
        }
        found.refresh(now);
        return FlowLookup::Established;
    }
    if table == FlowTable::Tcp {
        return match entry_of_hash(tables, FlowTable::Syn, hash, key.local_port) {
            Some(entry) if entry.is_translated_from(original.dst_port) => FlowLookup::Unconfirmed,
            _ => FlowLookup::SlowPath,
        };
    }
    match rebuild_key() {
        Some(key) if !tables.is_marked(&key) => {
            let new = NewFlow {
                hash,
                target: key.local_port,
                flow: original.flow(now),
            };
            match tables.insert(bucket, &new) {
                Ok(slot) => {
                    // Again, so that the key is kept nowhere meanwhile.
                    if let Some(key) = rebuild_key() {
                        tables.keep_addrs(slot, &key);
                    }
                    FlowLookup::Inserted
                }
                Err(_) => FlowLookup::SlowPath,
            }
        }
        _ => FlowLookup::SlowPath,
    }
}

/// The flow of a translated key in one table, whose entry a reply refreshes.
#[inline(always)]
pub(super) fn lookup_and_refresh<T: FlowTables>(
    tables: &T,
    table: FlowTable,
    key: &FlowKey,
    now: Epoch,
) -> Option<Flow> {
    let hash = tables.hash(key);
    let bucket = tables.bucket(table, hash)?;
    let found = bucket.find(hash, key.local_port)?;
    found.refresh(now);
    flow_of_entry(tables, table, key, found.entry)
}

/// Refreshes the entry of a flow that was found, once an epoch: this saves a write per
/// packet.
#[inline(always)]
pub(super) fn refresh<T: FlowTables>(tables: &T, table: FlowTable, key: &FlowKey, seen: Seen) {
    if seen.now.since(seen.flow.seen) > 0 {
        let flow = Flow {
            seen: seen.now,
            ..seen.flow
        };
        // The entry is there already; if this fails the next packet tries again.
        let _ = tables.set_flow(table, key, &flow);
    }
}

/// A flow of which a packet was seen now.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// The flow as it was found.
    pub flow: Flow,
    /// The present moment.
    pub now: Epoch,
}
