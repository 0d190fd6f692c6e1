//! [`FlowTables`] over the maps of flow state.
//!
//! The functions that are exported are global to the verifier, which walks them once
//! and not once per call. It has them look at pointers, and wants them to return a
//! number.

use aya_ebpf::bindings::BPF_ANY;
use portredir_common::datapath::flow_lookup;
use portredir_common::flow::{Epoch, Flow, FlowKey, FlowTable};
use portredir_common::kernel::{FlowBuckets, FlowTables, NewFlow};
use portredir_common::map::bucket::{Bucket, Shares};
use portredir_common::map::entry::{Connection, Entry};
use portredir_common::map::hash::Hash;
use portredir_common::map::port_remap::remap_bloom_slot;
use portredir_common::net::{Port, Protocol};
use portredir_common::packed::Packed;
use portredir_common::verdict::Reason;

use crate::context::Context;
use crate::globals::{FLOW_SEED, FLOW_SHARES};
use crate::kernel::Kernel;
use crate::kernel::counters::now_ns;
use crate::maps::{FLOWS, GIVEN, GIVEN_TCP, REMAP, REMAP_TCP, REMAPPED, UDP_ENDS};
use crate::verifier::{Volatile, computed};

#[inline(always)]
pub(super) fn hash(key: &FlowKey) -> Hash {
    // SAFETY: a word of a valid static; volatile, as the loader changes it.
    let Hash(hash) = Hash::of(key, |i| unsafe {
        (&raw const FLOW_SEED).cast::<u64>().add(i).read_volatile()
    });
    Hash(computed(hash))
}

#[inline(always)]
fn shares() -> Shares {
    read_shares(&raw const FLOW_SHARES)
}

#[inline(always)]
pub(super) fn read_shares(shares: *const Shares) -> Shares {
    // SAFETY: words of a valid static; volatile, as the loader changes it.
    unsafe {
        Shares {
            tcp: (&raw const (*shares).tcp).read_volatile(),
            udp: (&raw const (*shares).udp).read_volatile(),
            syn: (&raw const (*shares).syn).read_volatile(),
        }
    }
}

#[inline(always)]
fn bucket(table: FlowTable, hash: Hash) -> Option<&'static Bucket<Volatile>> {
    FLOWS.get(shares().index(table, hash))
}

#[inline(always)]
fn keep_ports(slot: u32, client_port: Port, target: Port) {
    if let Some(ends) = UDP_ENDS.get(slot) {
        ends.write_ports(client_port, target, (now_ns() / Epoch::UNIT_NS) as u32);
    }
}

#[inline(always)]
fn keep_addrs(slot: u32, key: &FlowKey) {
    if let Some(ends) = UDP_ENDS.get(slot) {
        ends.write_addrs(key.client, key.local);
    }
}

/// [`FlowBuckets`] of the kernel, which need no context.
pub(super) struct Maps;

impl FlowBuckets for Maps {
    type Word = Volatile;
    type Bucket<'a> = &'static Bucket<Volatile>;

    #[inline(always)]
    fn hash(&self, key: &FlowKey) -> Hash {
        hash(key)
    }

    #[inline(always)]
    fn bucket(&self, table: FlowTable, hash: Hash) -> Option<&'static Bucket<Volatile>> {
        bucket(table, hash)
    }

    #[inline(always)]
    fn udp_slot(&self, hash: Hash, place: usize) -> u32 {
        shares().udp_slot(hash, place)
    }

    #[inline(always)]
    fn keep_ports(&self, slot: u32, client_port: Port, target: Port) {
        keep_ports(slot, client_port, target);
    }

    #[inline(always)]
    fn keep_addrs(&self, slot: u32, key: &FlowKey) {
        keep_addrs(slot, key);
    }
}

/// [`flow_lookup::entry`].
#[unsafe(no_mangle)]
extern "C" fn flow_look(table: u64, key: *const FlowKey) -> u64 {
    // SAFETY: null or a key.
    let key = unsafe { key.as_ref() };
    key.and_then(|key| flow_lookup::entry(&Maps, FlowTable::unpack(table), key))
        .pack()
}

/// [`flow_lookup::connection`].
#[unsafe(no_mangle)]
extern "C" fn flow_find_tcp(key: *const FlowKey) -> u64 {
    // SAFETY: null or a key.
    let key = unsafe { key.as_ref() };
    key.and_then(|key| flow_lookup::connection(&Maps, key))
        .pack()
}

/// [`flow_lookup::put`].
#[unsafe(no_mangle)]
extern "C" fn flow_put(table: u64, key: *const FlowKey, flow: u64) -> u32 {
    // SAFETY: null or a key.
    if let Some(key) = unsafe { key.as_ref() } {
        flow_lookup::put(&Maps, FlowTable::unpack(table), key, &Flow::unpack(flow));
    }
    0
}

/// Adds the entry of a UDP flow that has none, and returns its slot: see [`Bucket::add`].
#[unsafe(no_mangle)]
extern "C" fn flow_add(bucket: *const Bucket<Volatile>, hash: u64, target: u32, flow: u64) -> u32 {
    // SAFETY: null or a bucket.
    let Some(bucket) = (unsafe { bucket.as_ref() }) else {
        return 0;
    };
    let (hash, target) = (Hash(hash), Port::unpack(target.into()));
    let flow = Flow::unpack(flow);
    let place = bucket.add(hash, target, Entry::new(hash, &flow));
    let slot = shares().udp_slot(hash, place);
    keep_ports(slot, flow.client_port, target);
    slot
}

/// [`flow_lookup::remove`].
#[unsafe(no_mangle)]
extern "C" fn flow_remove(table: u64, key: *const FlowKey) -> u32 {
    // SAFETY: null or a key.
    if let Some(key) = unsafe { key.as_ref() } {
        flow_lookup::remove(&Maps, FlowTable::unpack(table), key);
    }
    0
}

// Until Linux 6.1 at least a key that a global function was given is no key to a
// map (`map_key_value_types` in kernel/bpf/verifier.c), so these look with a copy.
/// The client's own port, by the flow with the port that the client was given.
#[inline(never)]
fn given_look(table: u64, key: &FlowKey) -> u64 {
    let key = &{ *key };
    let port = match FlowTable::unpack(table) {
        FlowTable::Tcp => GIVEN_TCP.get_ptr(key),
        FlowTable::Syn | FlowTable::Udp => GIVEN.get_ptr(key),
    };
    // SAFETY: two bytes, written once.
    port.map(|port| unsafe { *port }).pack()
}

/// Keeps the client's own port, and for a connection the way back; whether there was
/// room.
#[inline(never)]
fn given_put(table: u64, key: &FlowKey, flow: u64) -> bool {
    let key = &{ *key };
    let flow = Flow::unpack(flow);
    let (own, given) = (flow.client_port, key.client_port);
    if FlowTable::unpack(table) != FlowTable::Tcp {
        return GIVEN.insert(key, own, u64::from(BPF_ANY)).is_ok();
    }
    if GIVEN_TCP.insert(key, own, u64::from(BPF_ANY)).is_err() {
        return false;
    }
    let original = &FlowKey {
        client_port: own,
        local_port: flow.dst_port,
        ..*key
    };
    REMAP_TCP
        .insert(original, given, u64::from(BPF_ANY))
        .is_ok()
}

/// Keeps the client's own port of a flow to a target with an address; whether there was room.
#[inline(never)]
pub(super) fn own_port_put(key: &FlowKey, own: u32) -> bool {
    let key = &{ *key };
    let own = Port::unpack(own.into());
    GIVEN.insert(key, own, u64::from(BPF_ANY)).is_ok()
}

/// The client port that was given, by the original flow.
#[inline(never)]
fn remap_look(key: &FlowKey) -> u64 {
    let key = &{ *key };
    if key.protocol == Protocol::Tcp as u8
        && let Some(port) = REMAP_TCP.get_ptr(key)
    {
        // SAFETY: two bytes, written once.
        return Some(unsafe { *port }).pack();
    }
    // SAFETY: as above.
    REMAP.get_ptr(key).map(|port| unsafe { *port }).pack()
}

/// Keeps a client port that was given, in place of an earlier one; whether there was
/// room.
#[inline(never)]
fn remap_put(key: &FlowKey, port: u32) -> bool {
    let key = &{ *key };
    let port = Port::unpack(port.into());
    let _ = REMAP_TCP.remove(key);
    REMAP.insert(key, port, u64::from(BPF_ANY)).is_ok()
}

impl<C: Context> FlowBuckets for Kernel<C> {
    type Word = Volatile;
    type Bucket<'a>
        = &'static Bucket<Volatile>
    where
        C: 'a;

    #[inline(always)]
    fn hash(&self, key: &FlowKey) -> Hash {
        hash(key)
    }

    #[inline(always)]
    fn bucket(&self, table: FlowTable, hash: Hash) -> Option<&'static Bucket<Volatile>> {
        bucket(table, hash)
    }

    #[inline(always)]
    fn udp_slot(&self, hash: Hash, place: usize) -> u32 {
        shares().udp_slot(hash, place)
    }

    #[inline(always)]
    fn keep_ports(&self, slot: u32, client_port: Port, target: Port) {
        keep_ports(slot, client_port, target);
    }

    #[inline(always)]
    fn keep_addrs(&self, slot: u32, key: &FlowKey) {
        keep_addrs(slot, key);
    }
}

impl<C: Context> FlowTables for Kernel<C> {
    #[inline(always)]
    fn entry(&self, table: FlowTable, key: &FlowKey) -> Option<Entry> {
        Packed::unpack(flow_look(table.pack(), key))
    }

    #[inline(always)]
    fn connection(&self, key: &FlowKey) -> Option<Connection> {
        Packed::unpack(flow_find_tcp(key))
    }

    #[inline(always)]
    fn insert(&self, bucket: &'static Bucket<Volatile>, new: &NewFlow) -> Result<u32, Reason> {
        let target = new.target.half().into();
        Ok(flow_add(bucket, new.hash.0, target, new.flow.pack()))
    }

    #[inline(always)]
    fn set_flow(&self, table: FlowTable, key: &FlowKey, flow: &Flow) -> Result<(), Reason> {
        if flow.client_port != key.client_port {
            given_put(table.pack(), key, flow.pack())
                .then_some(())
                .ok_or(Reason::TableFull)?;
        }
        flow_put(table.pack(), key, flow.pack());
        Ok(())
    }

    #[inline(always)]
    fn remove_flow(&self, table: FlowTable, key: &FlowKey) {
        flow_remove(table.pack(), key);
    }

    #[inline(always)]
    fn own_port(&self, table: FlowTable, key: &FlowKey) -> Option<Port> {
        Packed::unpack(given_look(table.pack(), key))
    }

    #[inline(always)]
    fn remap(&self, original: &FlowKey) -> Option<Port> {
        if !self.is_marked(original) {
            return None;
        }
        Packed::unpack(remap_look(original))
    }

    #[inline(always)]
    fn set_remap(&self, original: &FlowKey, client_port: Port) -> Result<(), Reason> {
        self.mark(original);
        remap_put(original, client_port.half().into())
            .then_some(())
            .ok_or(Reason::TableFull)
    }

    #[inline(always)]
    fn mark(&self, key: &FlowKey) {
        let (element, byte) = remap_bloom_slot(key.client, key.client_port);
        if let Some(bytes) = REMAPPED.get_ptr_mut(element) {
            // SAFETY: not null, and `byte` is below 64. A byte, as two
            // processors may write their neighbours.
            unsafe { bytes.cast::<u8>().add(byte).write_volatile(1) };
        }
    }

    #[inline(always)]
    fn is_marked(&self, key: &FlowKey) -> bool {
        let (element, byte) = remap_bloom_slot(key.client, key.client_port);
        REMAPPED
            .get_ptr(element)
            // SAFETY: not null, and `byte` is below 64.
            .is_none_or(|bytes| unsafe { bytes.cast::<u8>().add(byte).read_volatile() } != 0)
    }
}
