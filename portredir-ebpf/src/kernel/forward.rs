//! [`ForwardTables`] over the maps of targets with an address.
//!
//! The functions that are exported are global to the verifier, see [`flows`](super::flows).

use portredir_common::datapath::forward_lookup;
use portredir_common::flow::{Epoch, FlowKey, FlowTable, Segment};
use portredir_common::kernel::forward::{
    ClientPacket, ForwardMaps, ForwardPlace, ForwardTables, Met, NewForward, Reply,
};
use portredir_common::map::bucket::{Bucket, Shares};
use portredir_common::map::entry::{PLACES, Word as _};
use portredir_common::map::forward::Forwarded;
use portredir_common::map::hash::Hash;
use portredir_common::map::targets::{Service, Slot, Target, service_index};
use portredir_common::net::{Addr, Port};
use portredir_common::packed::Packed;
use portredir_common::verdict::Reason;

use crate::context::Context;
use crate::globals::FORWARD_SHARES;
use crate::kernel::Kernel;
use crate::kernel::counters::now_ns;
use crate::kernel::flows::{Maps, own_port_put, read_shares};
use crate::maps::{
    FORWARD_ENDS, FORWARDS, OWN_ADDRS, OWN_NUMBERS, SERVICES, SLOTS, TARGET_ADDRS, TARGETS,
};
use crate::verifier::Volatile;

#[inline(always)]
fn shares() -> Shares {
    read_shares(&raw const FORWARD_SHARES)
}

#[inline(always)]
fn bucket(table: FlowTable, hash: Hash) -> Option<&'static Bucket<Volatile>> {
    FORWARDS.get(shares().index(table, hash))
}

#[inline(always)]
fn keep_ends(place: ForwardPlace, key: &FlowKey) {
    let ForwardPlace { table, hash, place } = place;
    let index = shares().index(table, hash) * PLACES as u32 + place as u32;
    if let Some(ends) = FORWARD_ENDS.get(index) {
        let since = (now_ns() / Epoch::UNIT_NS) as u32;
        ends.write_addrs(key.client, key.local);
        ends.write_ports(key.client_port, key.local_port, since);
    }
}

#[inline(always)]
fn service(number: u16, version: u8) -> Service {
    let word = SERVICES.get(service_index(number, version));
    word.map_or(Service::default(), |word| Service::unpack(word.load()))
}

#[inline(always)]
fn slot(index: u32) -> Slot {
    let word = SLOTS.get(index);
    Slot::unpack(word.map_or(0, |word| word.load()))
}

/// The number of an address of this host; 0 where it has none.
#[inline(never)]
fn number_of(addr: &Addr) -> u32 {
    let addr = { *addr };
    // SAFETY: four bytes.
    unsafe { OWN_NUMBERS.get(addr) }.copied().unwrap_or(0)
}

#[inline(never)]
fn has_target_addr(addr: &Addr) -> bool {
    let addr = { *addr };
    // SAFETY: four bytes, which nobody reads.
    unsafe { TARGET_ADDRS.get(addr) }.is_some()
}

/// [`forward_lookup::meet`].
#[unsafe(no_mangle)]
extern "C" fn forward_meet(key: *const FlowKey, dialled: *const Addr, packet: u64) -> u32 {
    // SAFETY: null, or a key and an address.
    let (Some(key), Some(dialled)) = (unsafe { key.as_ref() }, unsafe { dialled.as_ref() }) else {
        return 0;
    };
    let packet = ClientPacket::unpack(packet);
    let now = Epoch::at(now_ns());
    forward_lookup::meet(&Maps, key, (dialled, packet), now).pack() as u32
}

/// [`forward_lookup::begin`]; `flow` has the target, the destination port, the number of the
/// address and two flags, `answered` is 0 or above 2^32.
#[unsafe(no_mangle)]
extern "C" fn forward_begin(key: *const FlowKey, flow: u64, answered: u64) -> u32 {
    // SAFETY: null or a key.
    if let Some(key) = unsafe { key.as_ref() } {
        let begun = NewForward {
            own: (flow >> 32) as u16,
            flow: Forwarded {
                target: flow as u16,
                dst_port: Port::new((flow >> 16) as u16),
            },
            is_by_rule: flow >> 48 & 1 != 0,
            is_remapped: flow >> 49 & 1 != 0,
            answered: (answered != 0).then_some(answered as u32),
        };
        forward_lookup::begin(&Maps, key, begun, Epoch::at(now_ns()));
    }
    0
}

/// [`forward_lookup::meet_reply`].
#[unsafe(no_mangle)]
extern "C" fn forward_reply(key: *const FlowKey, segment: u64) -> u64 {
    // SAFETY: null or a key.
    let key = unsafe { key.as_ref() };
    let now = Epoch::at(now_ns());
    key.and_then(|key| forward_lookup::meet_reply(&Maps, key, Segment::unpack(segment), now))
        .pack()
}

macro_rules! maps {
    () => {
        #[inline(always)]
        fn forward_bucket(
            &self,
            table: FlowTable,
            hash: Hash,
        ) -> Option<&'static Bucket<Volatile>> {
            bucket(table, hash)
        }

        #[inline(always)]
        fn keep_forward_ends(&self, place: ForwardPlace, key: &FlowKey) {
            keep_ends(place, key);
        }

        #[inline(always)]
        fn service(&self, number: u16, version: u8) -> Service {
            service(number, version)
        }

        #[inline(always)]
        fn slot(&self, index: u32) -> Slot {
            slot(index)
        }

        #[inline(always)]
        fn target(&self, number: u16) -> Option<&Target> {
            TARGETS.get(number.into())
        }

        #[inline(always)]
        fn own_addr(&self, number: u16) -> Option<&Addr> {
            OWN_ADDRS.get(number.into())
        }

        #[inline(always)]
        fn own_number(&self, addr: &Addr) -> Option<u16> {
            let number = number_of(addr);
            (number != 0).then_some(number as u16)
        }

        #[inline(always)]
        fn is_target_addr(&self, addr: &Addr) -> bool {
            has_target_addr(addr)
        }
    };
}

impl ForwardMaps for Maps {
    maps!();
}

impl<C: Context> ForwardMaps for Kernel<C> {
    maps!();
}

impl<C: Context> ForwardTables for Kernel<C> {
    #[inline(always)]
    fn meet(&self, key: &FlowKey, dialled: &Addr, packet: ClientPacket) -> Met {
        Met::unpack(forward_meet(key, dialled, packet.pack()).into())
    }

    #[inline(always)]
    fn begin(&self, key: &FlowKey, begun: NewForward) {
        let flow = u64::from(begun.flow.target)
            | u64::from(begun.flow.dst_port.get()) << 16
            | u64::from(begun.own) << 32
            | u64::from(begun.is_by_rule) << 48
            | u64::from(begun.is_remapped) << 49;
        let answered = begun
            .answered
            .map_or(0, |number| 1 << 32 | u64::from(number));
        forward_begin(key, flow, answered);
    }

    #[inline(always)]
    fn meet_reply(&self, key: &FlowKey, segment: Segment) -> Option<Reply> {
        Packed::unpack(forward_reply(key, segment.pack()))
    }

    #[inline(always)]
    fn set_own_port(&self, key: &FlowKey, client_port: Port) -> Result<(), Reason> {
        own_port_put(key, client_port.half().into())
            .then_some(())
            .ok_or(Reason::TableFull)
    }
}
