//! The flow table: set-associative, one bucket for each hash.
//!
//! A flow lies in one of the eight places of one bucket, which its hash tells.
//! So an entry is found, made and replaced in two cache lines, and a full bucket
//! evicts the least recently used of eight.
//!
//! An entry is two words, and every access is one load or one store of a word:
//! there are no locks. Both words have bits of the hash in them, so what two
//! processors write to one place at once is nobody's entry and never another's;
//! the entry is lost, as when it is replaced, and the next packet of the client inserts
//! it again.
//!
//! Addresses are not kept, a hash of 64 bits stands for them, of which an entry
//! has 62. The target port is kept.

use crate::flow::{Epoch, FlowTable};
use crate::map::entry::{Entry, PLACES, Word};
use crate::map::hash::Hash;
use crate::net::Port;

/// The division of the buckets of one array map among the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Shares {
    /// The number of buckets for confirmed TCP flows.
    pub tcp: u32,
    /// The number of buckets for UDP flows.
    pub udp: u32,
    /// The number of buckets for TCP flows that are not confirmed.
    pub syn: u32,
}

impl Shares {
    /// The shares for so many flows. There are two places for each flow, as buckets do
    /// not fill evenly: with all flows alive, 1 in 120 finds a full bucket; with half of
    /// them, 1 in 8000 (Poisson distribution).
    #[must_use]
    pub const fn new(tcp_flows: u32, udp_flows: u32) -> Self {
        const PER_BUCKET: u32 = 8 / 2;
        const { assert!(PLACES == 8) };
        let udp = udp_flows.div_ceil(PER_BUCKET);
        Self {
            tcp: tcp_flows.div_ceil(PER_BUCKET),
            udp,
            syn: udp,
        }
    }

    /// The number of all buckets.
    #[must_use]
    pub const fn total(self) -> u32 {
        self.tcp + self.udp + self.syn
    }

    /// The index of the bucket of a flow.
    #[inline(always)]
    #[must_use]
    pub const fn index(self, table: FlowTable, hash: Hash) -> u32 {
        match table {
            FlowTable::Tcp => hash.bucket(self.tcp),
            FlowTable::Udp => self.tcp + hash.bucket(self.udp),
            FlowTable::Syn => self.tcp + self.udp + hash.bucket(self.syn),
        }
    }

    /// The number of a place in the bucket of a UDP flow, among all places of UDP.
    #[expect(clippy::cast_possible_truncation, reason = "below 8")]
    #[inline(always)]
    #[must_use]
    pub const fn udp_slot(self, hash: Hash, place: usize) -> u32 {
        hash.bucket(self.udp) * PLACES as u32 + place as u32
    }

    /// The number of slots of UDP flows.
    #[expect(clippy::cast_possible_truncation, reason = "8")]
    #[must_use]
    pub const fn udp_slots(self) -> u32 {
        self.udp * PLACES as u32
    }

    /// The number of places of confirmed TCP flows and of UDP flows, which come first.
    #[expect(clippy::cast_possible_truncation, reason = "8")]
    #[must_use]
    pub const fn known_places(self) -> u32 {
        (self.tcp + self.udp) * PLACES as u32
    }

    /// The table of a bucket.
    #[must_use]
    pub const fn table(self, index: u32) -> FlowTable {
        if index < self.tcp {
            FlowTable::Tcp
        } else if index - self.tcp < self.udp {
            FlowTable::Udp
        } else {
            FlowTable::Syn
        }
    }
}

/// Eight places for entries, on two cache lines; most flows find theirs on the first.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Bucket<W> {
    places: [Place<W>; PLACES],
}

/// The two words of an entry.
#[derive(Debug, Default)]
#[repr(C)]
struct Place<W> {
    tag: W,
    entry: W,
}

/// An entry that was found, and its place.
#[derive(Debug)]
pub struct Found<'a, W> {
    /// The entry as it was.
    pub entry: Entry,
    word: &'a W,
}

impl<W: Word> Found<'_, W> {
    /// Notes that a packet of the flow was seen now.
    #[inline(always)]
    pub fn refresh(&self, now: Epoch) {
        if now.since(self.entry.seen()) > 0 {
            let word = self.entry.0 >> 16 << 16 | u64::from(now.0) | Entry::SEEN_AGAIN;
            self.word.store(word);
        }
    }
}

impl<W: Word> Bucket<W> {
    /// The entry of a flow to `target`.
    #[inline(always)]
    pub fn find(&self, hash: Hash, target: Port) -> Option<Found<'_, W>> {
        let tag = hash.tag(target);
        self.first(|place| {
            if place.tag.load() != tag {
                return None;
            }
            let word = &place.entry;
            let entry = Entry(word.load());
            entry.is_of(hash).then_some(Found { entry, word })
        })
    }

    /// The first place that something is found in.
    ///
    /// There is no loop: the compiler would keep it where much is inlined, which costs time,
    /// and Linux 6.1 accepts few forms of loops (`check_cfg` in kernel/bpf/verifier.c).
    #[inline(always)]
    fn first<'a, T>(&'a self, look: impl Fn(&'a Place<W>) -> Option<T>) -> Option<T> {
        const { assert!(PLACES == 8) };
        macro_rules! look_at {
            ($($place:literal)*) => {
                $(
                    if let Some(found) = look(&self.places[$place]) {
                        return Some(found);
                    }
                )*
            };
        }
        look_at!(0 1 2 3 4 5 6 7);
        None
    }

    /// Adds the entry of a flow that has none: in the first free place, where the
    /// next look begins, or in the place of the entry with the highest eviction score.
    ///
    /// Returns the number of the place.
    #[inline(always)]
    pub fn add(&self, hash: Hash, target: Port, entry: Entry) -> usize {
        self.add_words(hash, hash.tag(target), entry)
    }

    /// [`Self::add`] with the first word.
    #[inline(always)]
    pub(super) fn add_words(&self, hash: Hash, tag: u64, entry: Entry) -> usize {
        let free = self.places.iter().position(|place| place.entry.load() == 0);
        let number = free.unwrap_or_else(|| self.evicted(hash, entry.seen()));
        let place = &self.places[W::place(number as u64)];
        // No reader must take the second word of one flow for that of another.
        place.entry.store(0);
        place.tag.store(tag);
        place.entry.store(entry.0);
        number
    }

    /// The first thing that is found in the two words of a place, of which the second may be
    /// written.
    #[inline(always)]
    pub(super) fn find_by<'a, T>(
        &'a self,
        look: impl Fn(u64, u64, &'a W) -> Option<T>,
    ) -> Option<T> {
        self.first(|place| look(place.tag.load(), place.entry.load(), &place.entry))
    }

    /// The words of all places, with their number.
    pub(super) fn words(&self) -> impl Iterator<Item = (usize, u64, u64)> {
        let places = self.places.iter().enumerate();
        places.map(|(number, place)| (number, place.tag.load(), place.entry.load()))
    }

    /// Removes an entry that was read, unless it has changed.
    pub(super) fn remove_at(&self, place: usize, entry: u64) {
        let word = &self.places[place].entry;
        if word.load() == entry {
            word.store(0);
        }
    }

    /// The place of the entry with the highest eviction score. Among equals it is any: if
    /// it were always the first, in a flood each new entry would go with the next.
    #[inline(always)]
    fn evicted(&self, hash: Hash, now: Epoch) -> usize {
        let any = hash.any_place();
        let mut highest = 0;
        for (i, place) in (0..).zip(&self.places) {
            let score = Entry(place.entry.load()).eviction_score::<W>(now);
            highest = W::larger(highest, score << 3 | (i ^ any));
        }
        W::place(highest ^ any)
    }

    /// Adds an entry, or replaces the one that the flow has; returns the number of the place
    /// of an entry that was added.
    #[inline(always)]
    pub fn put(&self, hash: Hash, target: Port, entry: Entry) -> Option<usize> {
        const WHAT: u64 = 0xffff << Entry::DST_PORT | Entry::REMAPPED;
        let Some(found) = self.find(hash, target) else {
            return Some(self.add(hash, target, entry));
        };
        let is_same = (found.entry.0 ^ entry.0) & WHAT == 0;
        let is_later = entry.seen().since(found.entry.seen()) > 0;
        let again = if is_same && is_later {
            Entry::SEEN_AGAIN
        } else if is_same {
            found.entry.0 & Entry::SEEN_AGAIN
        } else {
            0
        };
        found.word.store(entry.0 | again);
        None
    }

    /// Removes the entry of a flow.
    #[inline(always)]
    pub fn remove(&self, hash: Hash, target: Port) {
        if let Some(found) = self.find(hash, target) {
            found.word.store(0);
        }
    }

    /// All entries, with the target of each.
    pub fn entries(&self) -> impl Iterator<Item = (Port, Entry)> {
        self.places().map(|(_, target, entry)| (target, entry))
    }

    /// All entries, with the place and the target of each.
    pub fn places(&self) -> impl Iterator<Item = (usize, Port, Entry)> {
        self.places
            .iter()
            .enumerate()
            .filter_map(|(number, place)| {
                let entry = Entry(place.entry.load());
                #[expect(clippy::cast_possible_truncation, reason = "the lowest 16 bits")]
                let target = Port::new(place.tag.load() as u16);
                (entry.0 != 0).then_some((number, target, entry))
            })
    }

    /// Removes all entries.
    pub fn clear(&self) {
        for place in &self.places {
            place.entry.store(0);
            place.tag.store(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;
    use crate::flow::{Flow, UDP_IDLE};
    use crate::map::hash::mix;

    const TARGET: Port = Port::new(8080);

    type Places = Bucket<AtomicU64>;

    fn hash(number: u64) -> Hash {
        Hash(mix(number + 1))
    }

    /// Adds the flow of a number, last met at `seen`.
    fn add(bucket: &Places, number: u64, seen: u16) {
        let flow = Flow {
            dst_port: Port::new(80),
            client_port: Port::new(5000),
            rule: 0,
            seen: Epoch(seen),
        };
        bucket.add(hash(number), TARGET, Entry::new(hash(number), &flow));
    }

    fn has(bucket: &Places, number: u64) -> bool {
        bucket.find(hash(number), TARGET).is_some()
    }

    fn full(seen: impl Fn(u64) -> u16) -> Places {
        let bucket = Places::default();
        for number in 0..PLACES as u64 {
            add(&bucket, number, seen(number));
        }
        bucket
    }

    #[test]
    fn nothing_is_lost_while_there_is_room() {
        let bucket = full(|_| 7);
        assert!((0..8).all(|number| has(&bucket, number)));
        bucket.remove(hash(3), TARGET);
        add(&bucket, 8, 7);
        for number in 0..=8 {
            assert_eq!(has(&bucket, number), number != 3, "{number}");
        }
    }

    #[test]
    fn the_oldest_is_lost() {
        for oldest in 0..8 {
            // Epochs wrap around.
            let bucket = full(|number| 3_u16.wrapping_sub(if number == oldest { 9 } else { 0 }));
            add(&bucket, 8, 4);
            for number in 0..=8 {
                assert_eq!(has(&bucket, number), number != oldest, "{number}");
            }
        }
    }

    #[test]
    fn a_flood_pushes_out_itself() {
        let bucket = full(|_| 7);
        let goes_on = [0, 2, 5];
        for number in goes_on {
            let found = bucket.find(hash(number), TARGET);
            found.expect("an entry").refresh(Epoch(8));
        }
        for number in 8..1000 {
            add(
                &bucket,
                number,
                8 + u16::try_from(number / 10).expect("small"),
            );
        }
        assert!(goes_on.iter().all(|&number| has(&bucket, number)));
        // Until it is idle.
        for number in 1000..1100 {
            add(&bucket, number, 8 + UDP_IDLE);
        }
        assert!(!goes_on.iter().any(|&number| has(&bucket, number)));
    }

    #[test]
    fn in_a_flood_a_new_flow_stays_for_some_others() {
        const FLOWS: u64 = 1000;
        let bucket = full(|_| 7);
        let mut others = 0;
        for number in (0..FLOWS).map(|flow| 8 + flow * 1_000_000) {
            add(&bucket, number, 7);
            others += (number + 1..)
                .take_while(|&other| {
                    add(&bucket, other, 7);
                    has(&bucket, number)
                })
                .count();
        }
        // Seven on average, when each of eight may be the next to go.
        assert!(others > 6 * 1000, "{others} of others for {FLOWS} flows");
    }
}
