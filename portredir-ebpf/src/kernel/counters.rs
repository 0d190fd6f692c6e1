//! The counters and the clock.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use portredir_common::flow::FlowLookup;
use portredir_common::kernel::{Hit, Outcome};
use portredir_common::map::counters::{Counter, CounterKey, Outcomes};
use portredir_common::map::entry::Word as _;
use portredir_common::verdict::Reason;

use crate::maps::{CLOCK, COUNTERS, HITS, More, OUTCOMES, Places, REASONS, REPLIES, REPLIES_MORE};

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
    record(&HITS, &COUNTERS, key(ifindex, hit), hit);
}

/// Counts a reply: on the sending side of the network stack, which nothing interrupts
/// that counts replies too (`__dev_queue_xmit` in net/core/dev.c).
#[inline(always)]
pub fn record_reply(ifindex: u32, hit: &Hit) {
    record(&REPLIES, &REPLIES_MORE, key(ifindex, hit), hit);
}

/// Counts an outcome of a flow.
#[inline(never)]
pub fn record_outcome(rule: u16, outcome: Outcome) {
    let rule = u32::from(rule);
    let outcomes = match OUTCOMES.get_ptr_mut(rule) {
        Some(outcomes) => outcomes,
        None => {
            // As in `count_elsewhere`.
            let _ = OUTCOMES.insert(rule, Outcomes::default(), u64::from(BPF_NOEXIST));
            let Some(outcomes) = OUTCOMES.get_ptr_mut(rule) else {
                return;
            };
            outcomes
        }
    };
    // SAFETY: per-CPU, and the pointer was checked.
    unsafe {
        match outcome {
            Outcome::Accepted => (*outcomes).accepted += 1,
            Outcome::Refused => (*outcomes).refused += 1,
        }
    }
}

/// Counts in a place, or in a map of more.
#[inline(always)]
fn record(places: &Places, more: &'static More, key: CounterKey, hit: &Hit) {
    if let Some(hits) = places.get_ptr_mut(key.place()) {
        // SAFETY: per-CPU, and the pointer was checked.
        unsafe {
            if (*hits).key != key {
                if (*hits).counter.last_hit_ns != 0 {
                    return record_in(more, key, hit);
                }
                (*hits).key = key;
            }
            add(&raw mut (*hits).counter, hit);
        }
    }
}

/// Counts where there is no place in [`HITS`].
#[inline(always)]
pub fn record_elsewhere(ifindex: u32, hit: &Hit) {
    record_in(&COUNTERS, key(ifindex, hit), hit);
}

#[inline(always)]
fn record_in(more: &'static More, key: CounterKey, hit: &Hit) {
    let segments = u64::from(hit.segments) << 1 | u64::from(hit.begins_flow());
    // Each map has a function of its own.
    if core::ptr::eq(more, &raw const COUNTERS) {
        count_request(key, segments, hit.bytes, hit.at_ns);
    } else {
        count_reply(key, segments, hit.bytes, hit.at_ns);
    }
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
fn count_request(key: CounterKey, segments: u64, bytes: usize, at_ns: u64) {
    count_in(&COUNTERS, key, &hit_of(key, segments, bytes, at_ns));
}

/// Counts in [`REPLIES_MORE`], as [`count_request`] does.
#[inline(never)]
fn count_reply(key: CounterKey, segments: u64, bytes: usize, at_ns: u64) {
    count_in(&REPLIES_MORE, key, &hit_of(key, segments, bytes, at_ns));
}

#[inline(always)]
fn hit_of(key: CounterKey, segments: u64, bytes: usize, at_ns: u64) -> Hit {
    Hit {
        rule: key.rule as u16,
        segments: (segments >> 1) as u32,
        bytes,
        flow: if segments & 1 == 0 {
            FlowLookup::Established
        } else {
            FlowLookup::Inserted
        },
        at_ns,
    }
}

/// Counts in a map of more.
#[inline(always)]
fn count_in(more: &More, key: CounterKey, hit: &Hit) {
    let counter = match more.get_ptr_mut(key) {
        Some(counter) => counter,
        None => {
            // Another CPU may be first; the counter is there either way, unless
            // the map is full.
            let _ = more.insert(key, Counter::default(), u64::from(BPF_NOEXIST));
            let Some(counter) = more.get_ptr_mut(key) else {
                return;
            };
            counter
        }
    };
    // SAFETY: per-CPU, and the pointer was checked.
    unsafe { add(counter, hit) };
}
