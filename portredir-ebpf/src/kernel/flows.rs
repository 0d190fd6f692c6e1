//! [`FlowTables`] over the maps of flow state.

use aya_ebpf::bindings::BPF_ANY;
use portredir_common::flow::{Epoch, Flow, FlowKey, Original, Table};
use portredir_common::kernel::{FlowTables, Met};
use portredir_common::map::bucket::{Bucket, Entry, Found, Hash, Shares};
use portredir_common::map::port_remap::remapped_place;
use portredir_common::net::{Port, Protocol};
use portredir_common::verdict::Reason;

use crate::context::Context;
use crate::globals::{FLOW_SEED, FLOW_SHARES};
use crate::kernel::Kernel;
use crate::maps::{FLOWS, GIVEN, GIVEN_TCP, REMAP, REMAP_TCP, REMAPPED};
use crate::verifier::Volatile;

#[inline(always)]
fn hash(key: &FlowKey) -> Hash {
    // SAFETY: a word of a valid static; volatile, as the loader changes it.
    Hash::of(key, |i| unsafe {
        (&raw const FLOW_SEED).cast::<u64>().add(i).read_volatile()
    })
}

#[inline(always)]
fn bucket(table: Table, hash: Hash) -> Option<&'static Bucket<Volatile>> {
    let shares = &raw const FLOW_SHARES;
    // SAFETY: words of a valid static; volatile, as the loader changes it.
    let shares = unsafe {
        Shares {
            tcp: (&raw const (*shares).tcp).read_volatile(),
            udp: (&raw const (*shares).udp).read_volatile(),
            syn: (&raw const (*shares).syn).read_volatile(),
        }
    };
    FLOWS.get(shares.index(table, hash))
}

/// The entry of a flow to `target`.
#[inline(always)]
fn find(table: Table, hash: Hash, target: Port) -> Option<Found<'static, Volatile>> {
    bucket(table, hash)?.find(hash, target)
}

#[inline(always)]
const fn table(number: u32) -> Table {
    const TCP: u32 = Table::Tcp as u32;
    const UDP: u32 = Table::Udp as u32;
    match number {
        TCP => Table::Tcp,
        UDP => Table::Udp,
        _ => Table::Syn,
    }
}

// These are global to the verifier, which walks them once and not once per call.
// It has them look at pointers, and wants them to return a number.

/// The [`Entry`] of a flow in a table, or 0.
#[unsafe(no_mangle)]
extern "C" fn flow_look(number: u32, key: *const FlowKey) -> u64 {
    // SAFETY: null or a key.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return 0;
    };
    find(table(number), hash(key), key.local_port).map_or(0, |found| found.entry.to_word())
}

/// Set in an [`Entry`] of [`Table::Syn`].
const BEGUN: u64 = Entry::SPARE;

/// The [`Entry`] of a connection, or 0.
#[unsafe(no_mangle)]
extern "C" fn flow_find_tcp(key: *const FlowKey) -> u64 {
    // SAFETY: null or a key.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return 0;
    };
    let hash = hash(key);
    if let Some(found) = find(Table::Tcp, hash, key.local_port) {
        return found.entry.to_word() & !BEGUN;
    }
    find(Table::Syn, hash, key.local_port).map_or(0, |found| found.entry.to_word() | BEGUN)
}

/// Adds or replaces the entry of a flow.
#[unsafe(no_mangle)]
extern "C" fn flow_put(number: u32, key: *const FlowKey, flow: u64) -> u32 {
    // SAFETY: null or a key.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return 0;
    };
    let flow = Flow::from_word(flow);
    let hash = hash(key);
    if let Some(bucket) = bucket(table(number), hash) {
        let is_remapped = flow.client_port != key.client_port;
        let mut entry = Entry::new(hash, &flow, is_remapped);
        if number == Table::Tcp as u32 {
            entry = entry.confirmed();
        }
        bucket.put(hash, key.local_port, entry);
    }
    0
}

/// Adds the entry of a flow that has none.
#[unsafe(no_mangle)]
extern "C" fn flow_add(bucket: *const Bucket<Volatile>, hash: u64, target: u32, flow: u64) -> u32 {
    // SAFETY: null or a bucket.
    if let Some(bucket) = unsafe { bucket.as_ref() } {
        let (hash, target) = (Hash(hash), Port::new(target as u16));
        bucket.add(
            hash,
            target,
            Entry::new(hash, &Flow::from_word(flow), false),
        );
    }
    0
}

/// Forgets a flow.
#[unsafe(no_mangle)]
extern "C" fn flow_remove(number: u32, key: *const FlowKey) -> u32 {
    // SAFETY: null or a key.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return 0;
    };
    let hash = hash(key);
    if let Some(bucket) = bucket(table(number), hash) {
        bucket.remove(hash, key.local_port);
    }
    0
}

// Until Linux 6.1 at least a key that a global function was given is no key to a
// map (`map_key_value_types` in kernel/bpf/verifier.c), so these look with a copy.
// A port that is there has another bit as well: a client's own may be 0.
const THERE: u32 = 1 << 16;

/// The client's own port, by the flow with the one it was given.
#[inline(never)]
fn given_look(number: u32, key: &FlowKey) -> u32 {
    let key = &{ *key };
    let port = match table(number) {
        Table::Tcp => GIVEN_TCP.get_ptr(key),
        Table::Syn | Table::Udp => GIVEN.get_ptr(key),
    };
    // SAFETY: two bytes, written once.
    port.map_or(0, |port| THERE | u32::from(unsafe { *port }.get()))
}

/// Keeps it, and for a connection the way back; whether there was room.
#[inline(never)]
fn given_put(number: u32, key: &FlowKey, flow: u64) -> bool {
    let key = &{ *key };
    let flow = Flow::from_word(flow);
    let (own, given) = (flow.client_port, key.client_port);
    if !matches!(table(number), Table::Tcp) {
        return GIVEN.insert(key, own, u64::from(BPF_ANY)).is_ok();
    }
    if GIVEN_TCP.insert(key, own, u64::from(BPF_ANY)).is_err() {
        return false;
    }
    let original = &FlowKey {
        client_port: own,
        local_port: flow.dialled_port,
        ..*key
    };
    REMAP_TCP
        .insert(original, given, u64::from(BPF_ANY))
        .is_ok()
}

/// The client port that was given, by the original flow.
#[inline(never)]
fn remap_look(key: &FlowKey) -> u32 {
    let key = &{ *key };
    if key.protocol == Protocol::Tcp as u8
        && let Some(port) = REMAP_TCP.get_ptr(key)
    {
        // SAFETY: two bytes, written once.
        return THERE | u32::from(unsafe { *port }.get());
    }
    // SAFETY: as above.
    REMAP
        .get_ptr(key)
        .map_or(0, |port| THERE | u32::from(unsafe { *port }.get()))
}

/// Keeps it in place of an earlier one; whether there was room.
#[inline(never)]
fn remap_put(key: &FlowKey, port: u32) -> bool {
    let key = &{ *key };
    let port = Port::new(port as u16);
    let _ = REMAP_TCP.remove(key);
    REMAP.insert(key, port, u64::from(BPF_ANY)).is_ok()
}

#[inline(always)]
fn some_port(port: u32) -> Option<Port> {
    (port != 0).then_some(Port::new(port as u16))
}

/// The client's own port.
#[inline(always)]
fn own_port(table: Table, key: &FlowKey, entry: Entry) -> Option<Port> {
    if entry.is_remapped() {
        some_port(given_look(table as u32, key))
    } else {
        Some(key.client_port)
    }
}

impl<C: Context> FlowTables for Kernel<C> {
    #[inline(always)]
    fn flow(&self, table: Table, key: &FlowKey) -> Option<Flow> {
        let entry = Entry::from_word(flow_look(table as u32, key))?;
        own_port(table, key, entry).map(|own| entry.flow(own))
    }

    #[inline(always)]
    fn find(&self, protocol: Protocol, key: &FlowKey) -> Option<(Table, Flow)> {
        if protocol == Protocol::Udp {
            return self.flow(Table::Udp, key).map(|flow| (Table::Udp, flow));
        }
        let word = flow_find_tcp(key);
        let entry = Entry::from_word(word)?;
        let table = if word & BEGUN == 0 {
            Table::Tcp
        } else {
            Table::Syn
        };
        own_port(table, key, entry).map(|own| (table, entry.flow(own)))
    }

    #[inline(always)]
    fn set_flow(&self, table: Table, key: &FlowKey, flow: &Flow) -> Result<(), Reason> {
        if flow.client_port != key.client_port {
            given_put(table as u32, key, flow.to_word())
                .then_some(())
                .ok_or(Reason::TableFull)?;
        }
        flow_put(table as u32, key, flow.to_word());
        Ok(())
    }

    #[inline(always)]
    fn remove_flow(&self, table: Table, key: &FlowKey) {
        flow_remove(table as u32, key);
    }

    #[inline(always)]
    fn remap(&self, original: &FlowKey) -> Option<Port> {
        if !self.may_be_remapped(original) {
            return None;
        }
        some_port(remap_look(original))
    }

    #[inline(always)]
    fn set_remap(&self, original: &FlowKey, client_port: Port) -> Result<(), Reason> {
        let (element, byte) = remapped_place(original.client, original.client_port);
        if let Some(bytes) = REMAPPED.get_ptr_mut(element) {
            // SAFETY: not null, and `byte` is below 64. A byte, as two
            // processors may write their neighbours.
            unsafe { bytes.cast::<u8>().add(byte).write_volatile(1) };
        }
        remap_put(original, client_port.get().into())
            .then_some(())
            .ok_or(Reason::TableFull)
    }

    #[inline(always)]
    fn may_be_remapped(&self, key: &FlowKey) -> bool {
        let (element, byte) = remapped_place(key.client, key.client_port);
        REMAPPED
            .get_ptr(element)
            // SAFETY: not null, and `byte` is below 64.
            .is_none_or(|bytes| unsafe { bytes.cast::<u8>().add(byte).read_volatile() } != 0)
    }

    #[inline(always)]
    fn hash(&self, key: &FlowKey) -> Hash {
        hash(key)
    }

    #[inline(always)]
    fn meet(
        &self,
        table: Table,
        (key, hash): (&FlowKey, Hash),
        original: Original,
        now: Epoch,
        again: impl FnOnce() -> Option<FlowKey>,
    ) -> Met {
        let Some(bucket) = bucket(table, hash) else {
            return Met::Unclear;
        };
        match bucket.find(hash, key.local_port) {
            Some(found) => {
                if !found.entry.is_translated_from(original.dialled_port) {
                    return Met::Unclear;
                }
                found.refresh(now);
                Met::Known
            }
            None if table == Table::Tcp => match find(Table::Syn, hash, key.local_port) {
                Some(found) if found.entry.is_translated_from(original.dialled_port) => Met::Begun,
                _ => Met::Unclear,
            },
            None => match again() {
                Some(key) if !self.may_be_remapped(&key) => {
                    let target = key.local_port.get().into();
                    flow_add(bucket, hash.0, target, original.flow(now).to_word());
                    Met::New
                }
                _ => Met::Unclear,
            },
        }
    }

    #[inline(always)]
    fn recall(&self, table: Table, key: &FlowKey, now: Epoch) -> Option<Flow> {
        let hash = hash(key);
        let found = find(table, hash, key.local_port)?;
        found.refresh(now);
        own_port(table, key, found.entry).map(|own| found.entry.flow(own))
    }
}
