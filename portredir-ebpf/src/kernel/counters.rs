//! The counters and the clock.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use portredir_common::flow::FlowLookup;
use portredir_common::kernel::Hit;
use portredir_common::map::counters::{Counter, CounterKey};
use portredir_common::map::entry::Word as _;
use portredir_common::verdict::Reason;

use crate::maps::{CLOCK, COUNTERS, HITS, REASONS};

/// The lowest bits of [`CLOCK`] are those of the tick; the clock leaves out the lowest
/// bits of the time: 4 ms, as coarse as the time itself may be.
const TICK_BITS: u32 = 26;
const TIME_BITS: u32 = 22;

/// Counts a reason.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: per-CPU, and the pointer was checked.
        unsafe { *counter += 1 };
    }
}

/// `CLOCK_MONOTONIC` to some milliseconds, read at most once a tick: the kernel
/// puts the number of the tick in place as a load.
///
/// Where nothing was asked for 2^26 ticks, 18 hours or more, it may tell the time
/// of then for one tick.
#[inline(always)]
pub fn now_ns() -> u64 {
    const TICKS: u64 = (1 << TICK_BITS) - 1;
    // SAFETY: no arguments.
    let tick = unsafe { bpf_jiffies64() } & TICKS;
    let clock = CLOCK.load();
    if clock & TICKS == tick {
        return clock >> TICK_BITS << TIME_BITS;
    }
    // SAFETY: no arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() } >> TIME_BITS;
    CLOCK.store(now_ns << TICK_BITS | tick);
    now_ns << TIME_BITS
}

/// Adds a packet to a counter.
///
/// # Safety
///
/// The counter is one of a map, of this CPU.
#[inline(always)]
unsafe fn add(counter: *mut Counter, hit: &Hit) {
    // SAFETY: by the caller.
    unsafe {
        (*counter).packets += u64::from(hit.segments);
        (*counter).bytes += hit.bytes as u64;
        (*counter).flows += u64::from(hit.begins_flow());
        (*counter).last_hit_ns = hit.at_ns;
    }
}

/// Counts a packet: on the receiving side of the network stack, which nothing
/// interrupts that counts packets too.
#[inline(always)]
pub fn record_packet(ifindex: u32, hit: &Hit) {
    let key = key(ifindex, hit);
    if let Some(hits) = HITS.get_ptr_mut(key.place()) {
        // SAFETY: per-CPU, and the pointer was checked.
        unsafe {
            let is_mine = (*hits).key == key;
            if is_mine || (*hits).counter.last_hit_ns == 0 {
                (*hits).key = key;
                add(&raw mut (*hits).counter, hit);
                return;
            }
        }
    }
    record_elsewhere(ifindex, hit);
}

/// Counts where there is no place in [`HITS`].
#[inline(always)]
pub fn record_elsewhere(ifindex: u32, hit: &Hit) {
    let segments = u64::from(hit.segments) << 1 | u64::from(hit.begins_flow());
    count_elsewhere(key(ifindex, hit), segments, hit.bytes, hit.at_ns);
}

#[inline(always)]
fn key(ifindex: u32, hit: &Hit) -> CounterKey {
    CounterKey {
        ifindex,
        rule: hit.rule.into(),
    }
}

/// Counts in [`COUNTERS`]. This is not inlined, as it is rare; `segments` has in its
/// lowest bit whether the packet begins a flow.
#[inline(never)]
fn count_elsewhere(key: CounterKey, segments: u64, bytes: usize, at_ns: u64) {
    let counter = match COUNTERS.get_ptr_mut(key) {
        Some(counter) => counter,
        None => {
            // Another CPU may be first; the counter is there either way, unless
            // the map is full.
            let _ = COUNTERS.insert(key, Counter::default(), u64::from(BPF_NOEXIST));
            let Some(counter) = COUNTERS.get_ptr_mut(key) else {
                return;
            };
            counter
        }
    };
    let hit = Hit {
        rule: key.rule as u16,
        segments: (segments >> 1) as u32,
        bytes,
        flow: if segments & 1 == 0 {
            FlowLookup::Established
        } else {
            FlowLookup::Inserted
        },
        at_ns,
    };
    // SAFETY: per-CPU, and the pointer was checked.
    unsafe { add(counter, &hit) };
}
