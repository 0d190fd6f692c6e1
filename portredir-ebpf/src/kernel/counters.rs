//! What is counted, and the clock.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use portredir_common::map::bucket::Word as _;
use portredir_common::map::counters::{Counter, CounterKey};
use portredir_common::verdict::Reason;

use crate::maps::{CLOCK, COUNTERS, HITS, REASONS};

/// Of [`CLOCK`], the lowest bits are those of the tick, and these of the time are
/// left out: 4 ms, as coarse as the clock itself may be.
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

/// Adds to a counter.
///
/// # Safety
///
/// It is one of a map, of this CPU.
#[inline(always)]
unsafe fn add(counter: *mut Counter, segments: u32, bytes: usize, is_new: bool, now_ns: u64) {
    // SAFETY: by the caller.
    unsafe {
        (*counter).packets += u64::from(segments);
        (*counter).bytes += bytes as u64;
        (*counter).flows += u64::from(is_new);
        (*counter).last_hit_ns = now_ns;
    }
}

/// Counts a packet: on the receiving side of the network stack, which nothing
/// interrupts that counts packets too.
#[inline(always)]
pub fn hit_by_packet(key: CounterKey, segments: u32, bytes: usize, is_new: bool, now_ns: u64) {
    if let Some(hits) = HITS.get_ptr_mut(key.place()) {
        // SAFETY: per-CPU, and the pointer was checked.
        unsafe {
            let is_mine = (*hits).key == key;
            if is_mine || (*hits).counter.last_hit_ns == 0 {
                (*hits).key = key;
                add(&raw mut (*hits).counter, segments, bytes, is_new, now_ns);
                return;
            }
        }
    }
    hit_elsewhere(key, segments, bytes, is_new, now_ns);
}

/// Counts where there is no place for it. Not inlined: it is rare.
#[inline(never)]
pub fn hit_elsewhere(key: CounterKey, segments: u32, bytes: usize, is_new: bool, now_ns: u64) {
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
    // SAFETY: per-CPU, and the pointer was checked.
    unsafe { add(counter, segments, bytes, is_new, now_ns) };
}
