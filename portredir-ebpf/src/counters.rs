//! What is counted, and the clock.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::{PerCpuArray, PerCpuHashMap};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::btf_map;
use portredir_common::abi::{Counter, CounterKey, Hits};
use portredir_common::verdict::Reason;

use crate::maps::NO_PREALLOC;

/// Grows with the pairs of rule and interface that see traffic and have no place
/// in [`HITS`].
#[btf_map]
static COUNTERS: PerCpuHashMap<CounterKey, Counter, 65536, NO_PREALLOC> = PerCpuHashMap::new();

/// What packets are counted in first.
#[btf_map]
static HITS: PerCpuArray<Hits, { Hits::PLACES as usize }> = PerCpuArray::new();

#[btf_map]
static REASONS: PerCpuArray<u64, { Reason::COUNT }> = PerCpuArray::new();

/// The time, and the tick at which it was read.
#[repr(C)]
struct Clock {
    tick: u64,
    now_ns: u64,
}

#[btf_map]
static CLOCK: PerCpuArray<Clock, 1> = PerCpuArray::new();

/// Counts a reason.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: per-CPU, and the pointer was checked.
        unsafe { *counter += 1 };
    }
}

/// `CLOCK_MONOTONIC`, read at most once a tick: the coarse clock moves no
/// faster, and the kernel puts the number of the tick in place as a load.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments.
    let tick = unsafe { bpf_jiffies64() };
    let Some(clock) = CLOCK.get_ptr_mut(0) else {
        return coarse_ns();
    };
    // SAFETY: per-CPU, and the pointer was checked. Who interrupts between the
    // two stores finds another tick and reads the time himself.
    unsafe {
        if (&raw const (*clock).tick).read_volatile() == tick {
            return (&raw const (*clock).now_ns).read_volatile();
        }
        let now_ns = coarse_ns();
        (&raw mut (*clock).now_ns).write_volatile(now_ns);
        (&raw mut (*clock).tick).write_volatile(tick);
        now_ns
    }
}

#[inline(always)]
fn coarse_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
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
            if (*hits).counter.last_hit_ns == 0 {
                (*hits).key = key;
            }
            if (*hits).key == key {
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
