//! The entry of a flow in a bucket.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::flow::{Epoch, Flow, FlowTable, UDP_IDLE};
use crate::map::hash::{CHECK_MAX, Hash};
use crate::net::Port;
use crate::packed::{Niche, Packed};

/// A word that others read and write at the same time: an [`AtomicU64`], but the
/// BPF target has no such loads and stores.
pub trait Word {
    /// The value of this word.
    fn load(&self) -> u64;

    /// Replaces the value of this word.
    fn store(&self, value: u64);

    /// The highest bit of a number; in the kernel without a jump, which the compiler
    /// would take for quicker.
    #[must_use]
    fn top_bit(value: u64) -> u64;

    /// The larger of two numbers below 2^63; in the kernel without a jump.
    #[must_use]
    fn larger(a: u64, b: u64) -> u64;

    /// A number modulo [`PLACES`]; in the kernel so that the verifier sees the bound.
    #[must_use]
    fn place(value: u64) -> usize;
}

impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    fn store(&self, value: u64) {
        self.store(value, Ordering::Relaxed);
    }

    fn top_bit(value: u64) -> u64 {
        value >> 63
    }

    fn larger(a: u64, b: u64) -> u64 {
        a.max(b)
    }

    #[expect(clippy::cast_possible_truncation, reason = "below 8")]
    fn place(value: u64) -> usize {
        (value % PLACES as u64) as usize
    }
}

/// The number of places of a bucket.
pub const PLACES: usize = 8;

/// The second word of an entry; all zero where there is none.
///
/// **Shape**, from the lowest bit: epoch 16, rule 16, destination port 16 in host
/// order, 14 bits of the hash, whether the client port is kept in `GIVEN`,
/// whether the flow was seen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub(super) u64);

impl Entry {
    const RULE: u32 = 16;
    pub(super) const DST_PORT: u32 = 32;
    const CHECK: u32 = 48;
    /// A bit of the hash, which nobody needs of an entry that was found.
    const SPARE: u64 = 1 << Self::CHECK;
    pub(super) const REMAPPED: u64 = 1 << 62;
    pub(super) const SEEN_AGAIN: u64 = 1 << 63;

    /// The entry of `flow`, whose client has the port in its key.
    #[inline(always)]
    #[must_use]
    pub fn new(hash: Hash, flow: &Flow) -> Self {
        Self(
            u64::from(flow.seen.0)
                | u64::from(flow.rule) << Self::RULE
                | u64::from(flow.dst_port.get()) << Self::DST_PORT
                | hash.check() << Self::CHECK,
        )
    }

    /// The entry of a flow whose client has another port than the one in its key.
    #[inline(always)]
    #[must_use]
    pub const fn remapped(self) -> Self {
        Self(self.0 | Self::REMAPPED)
    }

    /// The entry of a flow that goes on for sure: it counts as seen again.
    #[inline(always)]
    #[must_use]
    pub const fn confirmed(self) -> Self {
        Self(self.0 | Self::SEEN_AGAIN)
    }

    /// Whether the client has another port than the server sees.
    #[inline(always)]
    #[must_use]
    pub const fn is_remapped(self) -> bool {
        self.0 & Self::REMAPPED != 0
    }

    /// The time at which a packet of the flow was last seen.
    #[expect(clippy::cast_possible_truncation, reason = "the lowest 16 bits")]
    #[inline(always)]
    #[must_use]
    pub const fn seen(self) -> Epoch {
        Epoch(self.0 as u16)
    }

    /// The port that the client connected to.
    #[expect(clippy::cast_possible_truncation, reason = "16 bits of it")]
    #[inline(always)]
    #[must_use]
    pub const fn dst_port(self) -> Port {
        Port::new((self.0 >> Self::DST_PORT) as u16)
    }

    /// Whether this entry and another one are of one flow; a packet may have been seen
    /// meanwhile.
    #[must_use]
    pub const fn is_same_flow(self, other: Self) -> bool {
        const TIME: u64 = 0xffff | Entry::SEEN_AGAIN;
        (self.0 ^ other.0) & !TIME == 0
    }

    /// Whether the client connected to this port, and has its own port.
    #[inline(always)]
    #[must_use]
    pub const fn is_translated_from(self, dst_port: Port) -> bool {
        const WHAT: u64 = 0xffff << Entry::DST_PORT | Entry::REMAPPED;
        self.0 & WHAT == (dst_port.get() as u64) << Self::DST_PORT
    }

    /// The flow of this entry, whose client has this port.
    #[expect(clippy::cast_possible_truncation, reason = "16 bits of it")]
    #[inline(always)]
    #[must_use]
    pub const fn flow(self, client_port: Port) -> Flow {
        Flow {
            dst_port: self.dst_port(),
            client_port,
            rule: (self.0 >> Self::RULE) as u16,
            seen: self.seen(),
        }
    }

    /// Whether this entry is of a flow with this hash.
    #[inline(always)]
    pub(super) const fn is_of(self, hash: Hash) -> bool {
        self.0 != 0 && self.0 >> Self::CHECK & CHECK_MAX == hash.check()
    }

    /// The eviction score of this entry: the entry with the highest score is evicted
    /// first.
    ///
    /// Flows seen once and idle flows score above active ones; within a group, older
    /// entries score higher. A flood of new flows therefore evicts itself and no active
    /// flow.
    ///
    /// This is arithmetic: jumps could not be foreseen, and the verifier would
    /// walk all ways through eight entries.
    #[inline(always)]
    pub(super) fn eviction_score<W: Word>(self, now: Epoch) -> u64 {
        // A few epochs later counts as now, see `Epoch::since`.
        const LATER: u64 = 0x100;
        const IDLE: u64 = UDP_IDLE as u64 + LATER;
        let age = u64::from(now.0).wrapping_sub(self.0).wrapping_add(LATER) & 0xffff;
        let is_idle = W::top_bit((IDLE - 1).wrapping_sub(age));
        let is_seen_once = W::top_bit(!self.0);
        age | (is_idle | is_seen_once) << 16
    }
}

impl Packed for Entry {
    #[inline(always)]
    fn pack(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self(word)
    }
}

impl Niche for Entry {
    const NONE: u64 = 0;
}

/// The entry of a TCP flow, and the table that has it.
///
/// **Shape**: the word of the entry; the lowest bit of the hash, which nobody needs of
/// an entry that was found, tells the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection(Entry);

impl Connection {
    /// The entry of a flow, in [`FlowTable::Tcp`] or [`FlowTable::Syn`].
    #[inline(always)]
    #[must_use]
    pub const fn new(table: FlowTable, entry: Entry) -> Self {
        Self(Entry(match table {
            FlowTable::Syn => entry.0 | Entry::SPARE,
            FlowTable::Tcp | FlowTable::Udp => entry.0 & !Entry::SPARE,
        }))
    }

    /// The table that has the entry.
    #[inline(always)]
    #[must_use]
    pub const fn table(self) -> FlowTable {
        if self.0.0 & Entry::SPARE == 0 {
            FlowTable::Tcp
        } else {
            FlowTable::Syn
        }
    }

    /// The entry, without the bit of the hash.
    #[inline(always)]
    #[must_use]
    pub const fn entry(self) -> Entry {
        self.0
    }
}

impl Packed for Connection {
    #[inline(always)]
    fn pack(self) -> u64 {
        self.0.0
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self(Entry(word))
    }
}

impl Niche for Connection {
    const NONE: u64 = 0;
}
