//! Where flows are kept: a set-associative table.
//!
//! A flow lies in one of the eight places of one bucket, which its hash tells.
//! So an entry is found, made and replaced in two cache lines, and what a full
//! bucket loses is the least recently used of eight.
//!
//! An entry is two words, and every access is one load or one store of a word:
//! there are no locks. Both words have bits of the hash in them, so what two
//! processors write to one place at once is nobody's entry and never another's;
//! it is lost, as when it is replaced, and the next packet of the client puts
//! it back.
//!
//! Addresses are not kept, a hash of 64 bits stands for them, of which an entry
//! has 62. The target port is kept.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::flow::{Epoch, Flow, FlowKey, FlowTable, UDP_IDLE};
use crate::net::{Port, Version};
use crate::packed::{Niche, Packed};

/// What makes the hash another one on each host: random and secret, or clients
/// could choose flows that push another's out of its bucket.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Seed(pub [u64; Self::WORDS]);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("secret")
    }
}

impl Seed {
    /// One to begin with for each version of IP, one for the ports, and one for
    /// each 32 bits of two addresses.
    pub const WORDS: usize = 2 + 1 + 8;

    /// A seed of random numbers.
    #[must_use]
    pub fn new(mut random: [u64; Self::WORDS]) -> Self {
        // Multiplied by an odd number no two words become one.
        random.iter_mut().for_each(|word| *word |= 1);
        Self(random)
    }

    /// Whether it was ever made.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0 != [0; Self::WORDS]
    }

    /// The hash of a flow.
    #[must_use]
    pub fn hash(&self, key: &FlowKey) -> Hash {
        Hash::of(key, |i| self.0[i])
    }
}

/// The hash of a translated flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(pub u64);

impl Hash {
    /// The hash of a flow by a [`Seed`], of which `seed` gives the words.
    ///
    /// It begins as the sum modulo 2^64 of the words of the key, each multiplied
    /// by a secret odd number. Two keys that differ in one word never have the
    /// same sum. Else one factor is settled by the others: not more than one in
    /// 2^(63 - v) makes the sums equal, when the difference of its words is a
    /// multiple of 2^v; so 2^-32 at worst, and mostly 2^-63. The sum is linear:
    /// who learns of two flows that meet would know of others. The mixing behind
    /// it, a bijection, takes that away.
    #[inline(always)]
    pub fn of(key: &FlowKey, seed: impl Fn(usize) -> u64) -> Self {
        const PORTS: usize = 2;
        const ADDRS: usize = 3;
        let (client, server) = (key.client_port.half(), key.local_port.half());
        let ports = u64::from(client) | u64::from(server) << 16;
        let mut sum = ports.wrapping_mul(seed(PORTS));
        let (client, local) = (key.client.words(), key.local.words());
        let times = |addr: [u32; 4], i: usize, factor: usize| {
            u64::from(addr[i]).wrapping_mul(seed(ADDRS + factor))
        };
        if key.version == Version::V4 as u8 {
            sum = sum.wrapping_add(seed(0));
            sum = sum.wrapping_add(times(client, 3, 0));
            sum = sum.wrapping_add(times(local, 3, 1));
        } else {
            sum = sum.wrapping_add(seed(1));
            sum = sum.wrapping_add(times(client, 0, 0));
            sum = sum.wrapping_add(times(client, 1, 1));
            sum = sum.wrapping_add(times(client, 2, 2));
            sum = sum.wrapping_add(times(client, 3, 3));
            sum = sum.wrapping_add(times(local, 0, 4));
            sum = sum.wrapping_add(times(local, 1, 5));
            sum = sum.wrapping_add(times(local, 2, 6));
            sum = sum.wrapping_add(times(local, 3, 7));
        }
        Self(mix(sum))
    }

    /// The bucket among `count`.
    #[inline(always)]
    const fn bucket(self, count: u32) -> u32 {
        let low = self.0 & 0xffff_ffff;
        ((low * count as u64) >> 32) as u32
    }

    /// The first word of the entry.
    #[inline(always)]
    fn tag(self, target: Port) -> u64 {
        self.0 >> 16 << 16 | u64::from(target.get())
    }

    /// A place of the bucket by chance, of which the bucket's number tells nothing.
    #[inline(always)]
    const fn any_place(self) -> u64 {
        self.0 >> 61
    }

    /// What the second word has of it.
    #[inline(always)]
    const fn check(self) -> u64 {
        self.0 & Entry::CHECK_MAX
    }
}

/// `fmix64` of MurmurHash3.
#[inline(always)]
const fn mix(mut word: u64) -> u64 {
    word ^= word >> 33;
    word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
    word ^= word >> 33;
    word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ word >> 33
}

/// How the buckets of one array map are divided among the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Shares {
    /// Buckets for confirmed TCP flows.
    pub tcp: u32,
    /// Buckets for UDP flows.
    pub udp: u32,
    /// Buckets for TCP flows that are not confirmed.
    pub syn: u32,
}

impl Shares {
    /// For so many flows. There are two places for each, as buckets do not fill
    /// evenly: with all flows alive, 1 in 120 finds a full bucket; with half of
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

    /// How many there are of all.
    #[must_use]
    pub const fn total(self) -> u32 {
        self.tcp + self.udp + self.syn
    }

    /// The bucket of a flow.
    #[inline(always)]
    #[must_use]
    pub const fn index(self, table: FlowTable, hash: Hash) -> u32 {
        match table {
            FlowTable::Tcp => hash.bucket(self.tcp),
            FlowTable::Udp => self.tcp + hash.bucket(self.udp),
            FlowTable::Syn => self.tcp + self.udp + hash.bucket(self.syn),
        }
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

/// Places of a bucket.
pub const PLACES: usize = 8;

/// The second word of an entry; all zero where there is none.
///
/// **Shape**, from the lowest bit: epoch 16, rule 16, dialled port 16 in host
/// order, 14 bits of the hash, whether the client port is kept in `GIVEN`,
/// whether the flow was met again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    const RULE: u32 = 16;
    const DST_PORT: u32 = 32;
    const CHECK: u32 = 48;
    const CHECK_MAX: u64 = (1 << 14) - 1;
    /// A bit of the hash, which nobody needs of an entry that was found.
    const SPARE: u64 = 1 << Self::CHECK;
    const REMAPPED: u64 = 1 << 62;
    const SEEN_AGAIN: u64 = 1 << 63;

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

    /// When it was last met.
    #[expect(clippy::cast_possible_truncation, reason = "the lowest 16 bits")]
    #[inline(always)]
    #[must_use]
    pub const fn seen(self) -> Epoch {
        Epoch(self.0 as u16)
    }

    /// The port that was dialled.
    #[expect(clippy::cast_possible_truncation, reason = "16 bits of it")]
    #[inline(always)]
    #[must_use]
    pub const fn dst_port(self) -> Port {
        Port::new((self.0 >> Self::DST_PORT) as u16)
    }

    /// Whether this port was dialled, by a client that has its own port.
    #[inline(always)]
    #[must_use]
    pub const fn is_translated_from(self, dst_port: Port) -> bool {
        const WHAT: u64 = 0xffff << Entry::DST_PORT | Entry::REMAPPED;
        self.0 & WHAT == (dst_port.get() as u64) << Self::DST_PORT
    }

    /// The flow, whose client has this port.
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

    #[inline(always)]
    const fn is_of(self, hash: Hash) -> bool {
        self.0 != 0 && self.0 >> Self::CHECK & Self::CHECK_MAX == hash.check()
    }

    /// How gladly it is lost: what was never met again or is idle before what was;
    /// of those the oldest. So packets that are each of a new flow push out each
    /// other, and no flow that goes on.
    ///
    /// All by arithmetic: jumps could not be foreseen, and the verifier would
    /// walk all ways through eight entries.
    #[inline(always)]
    fn eviction_score<W: Word>(self, now: Epoch) -> u64 {
        // Some epochs later is none ago, see `Epoch::since`.
        const LATER: u64 = 0x100;
        const IDLE: u64 = UDP_IDLE as u64 + LATER;
        let age = u64::from(now.0).wrapping_sub(self.0).wrapping_add(LATER) & 0xffff;
        let is_idle = W::top_bit((IDLE - 1).wrapping_sub(age));
        let is_met_once = W::top_bit(!self.0);
        age | (is_idle | is_met_once) << 16
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

/// Where an entry was found.
#[derive(Debug)]
pub struct Found<'a, W> {
    /// What it was.
    pub entry: Entry,
    word: &'a W,
}

impl<W: Word> Found<'_, W> {
    /// Makes it one that was met now.
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
        for place in &self.places {
            if place.tag.load() == tag {
                let word = &place.entry;
                let entry = Entry(word.load());
                if entry.is_of(hash) {
                    return Some(Found { entry, word });
                }
            }
        }
        None
    }

    /// Adds the entry of a flow that has none: in the first free place, where the
    /// next look begins, else in the place of the one that is lost most gladly.
    #[inline(always)]
    pub fn add(&self, hash: Hash, target: Port, entry: Entry) {
        let free = self.places.iter().find(|place| place.entry.load() == 0);
        let place = free.unwrap_or_else(|| self.least_used(hash, entry.seen()));
        // Nobody must take one flow's second word for another's.
        place.entry.store(0);
        place.tag.store(hash.tag(target));
        place.entry.store(entry.0);
    }

    /// The place of the entry that is lost most gladly. Of equal ones it is any: if
    /// it were always the first, in a flood each new entry would go with the next.
    #[inline(always)]
    fn least_used(&self, hash: Hash, now: Epoch) -> &Place<W> {
        let any = hash.any_place();
        let mut most = 0;
        for (i, place) in (0..).zip(&self.places) {
            let eviction_score = Entry(place.entry.load()).eviction_score::<W>(now);
            most = W::larger(most, eviction_score << 3 | (i ^ any));
        }
        &self.places[W::place(most ^ any)]
    }

    /// Adds an entry, or replaces the one that the flow has.
    #[inline(always)]
    pub fn put(&self, hash: Hash, target: Port, entry: Entry) {
        const WHAT: u64 = 0xffff << Entry::DST_PORT | Entry::REMAPPED;
        let Some(found) = self.find(hash, target) else {
            return self.add(hash, target, entry);
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
    }

    /// Forgets the entry of a flow.
    #[inline(always)]
    pub fn remove(&self, hash: Hash, target: Port) {
        if let Some(found) = self.find(hash, target) {
            found.word.store(0);
        }
    }

    /// All entries, with the target of each.
    pub fn entries(&self) -> impl Iterator<Item = (Port, Entry)> {
        self.places.iter().filter_map(|place| {
            let entry = Entry(place.entry.load());
            #[expect(clippy::cast_possible_truncation, reason = "the lowest 16 bits")]
            let target = Port::new(place.tag.load() as u16);
            (entry.0 != 0).then_some((target, entry))
        })
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for place in &self.places {
            place.entry.store(0);
            place.tag.store(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
