//! The entry of a forwarded flow in a bucket of `FORWARDS`.
//!
//! No socket of this host tells whether such a flow lives, so the entry has what netfilter
//! would know: whether the target answered the SYN, and who has ended the connection.

use crate::flow::{Epoch, FlowKey};
use crate::map::bucket::Bucket;
use crate::map::entry::{Entry, Word};
use crate::map::hash::Hash;
use crate::net::Port;

/// The second word of an entry of `FORWARDS`; all zero where there is none. The first word
/// has 48 bits of the hash of the translated flow, and below them the number of the address
/// that the client connected to: 0 of a flow that nothing is translated of.
///
/// **Shape**, from the lowest bit: epoch 16, target 16, destination port 16 in host order,
/// 10 bits of the hash, whether the target is the number of a rule, whether the target has
/// answered the SYN, whether the client and whether the target has ended the connection,
/// whether the client port is kept in `GIVEN`, whether the flow was seen again.
///
/// Once the target has answered, and until the client has acknowledged it, the 10 bits are
/// those of the number that it has to acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardEntry(pub u64);

/// The flow of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The number of the target, or of the rule with [`ForwardEntry::by_rule`].
    pub target: u16,
    /// The port that the client connected to.
    pub dst_port: Port,
}

impl ForwardEntry {
    const TARGET: u32 = 16;
    const DST_PORT: u32 = 32;
    const CHECK: u32 = 48;
    const CHECK_MAX: u64 = (1 << 10) - 1;
    const BY_RULE: u64 = 1 << 58;
    const ANSWERED: u64 = 1 << 59;
    const CLIENT_ENDED: u64 = 1 << 60;
    const TARGET_ENDED: u64 = 1 << 61;
    const REMAPPED: u64 = 1 << 62;
    const SEEN_AGAIN: u64 = 1 << 63;

    /// The entry of a flow that begins.
    #[inline(always)]
    #[must_use]
    pub const fn new(hash: Hash, flow: Forwarded, now: Epoch) -> Self {
        Self(
            now.0 as u64
                | (flow.target as u64) << Self::TARGET
                | (flow.dst_port.get() as u64) << Self::DST_PORT
                | (hash.0 & Self::CHECK_MAX) << Self::CHECK,
        )
    }

    /// The entry of a flow to a port of this host whose server is elsewhere.
    #[inline(always)]
    #[must_use]
    pub const fn by_rule(self) -> Self {
        Self(self.0 | Self::BY_RULE)
    }

    /// The entry of a flow whose client has another port than the one in its key.
    #[inline(always)]
    #[must_use]
    pub const fn remapped(self) -> Self {
        Self(self.0 | Self::REMAPPED)
    }

    /// Whether the client has another port than the target sees.
    #[inline(always)]
    #[must_use]
    pub const fn is_remapped(self) -> bool {
        self.0 & Self::REMAPPED != 0
    }

    /// Whether [`Self::flow`] has the number of a rule.
    #[inline(always)]
    #[must_use]
    pub const fn is_by_rule(self) -> bool {
        self.0 & Self::BY_RULE != 0
    }

    /// The flow.
    #[expect(clippy::cast_possible_truncation, reason = "16 bits of it")]
    #[inline(always)]
    #[must_use]
    pub const fn flow(self) -> Forwarded {
        Forwarded {
            target: (self.0 >> Self::TARGET) as u16,
            dst_port: Port::new((self.0 >> Self::DST_PORT) as u16),
        }
    }

    /// The time at which a packet of the flow was last seen.
    #[expect(clippy::cast_possible_truncation, reason = "the lowest 16 bits")]
    #[inline(always)]
    #[must_use]
    pub const fn seen(self) -> Epoch {
        Epoch(self.0 as u16)
    }

    /// Whether both ends have ended the connection, or one has reset it.
    #[inline(always)]
    #[must_use]
    pub const fn is_ended(self) -> bool {
        const BOTH: u64 = ForwardEntry::CLIENT_ENDED | ForwardEntry::TARGET_ENDED;
        self.0 & BOTH == BOTH
    }

    /// The entry after an end of the connection by the client.
    #[inline(always)]
    #[must_use]
    pub const fn ended_by_client(self) -> Self {
        Self(self.0 | Self::CLIENT_ENDED).forgotten_when_ended()
    }

    /// The entry after an end of the connection by the target.
    #[inline(always)]
    #[must_use]
    pub const fn ended_by_target(self) -> Self {
        Self(self.0 | Self::TARGET_ENDED).forgotten_when_ended()
    }

    /// The entry after a reset.
    #[inline(always)]
    #[must_use]
    pub const fn reset(self) -> Self {
        self.ended_by_client().ended_by_target()
    }

    /// An entry that has ended makes room first.
    #[inline(always)]
    const fn forgotten_when_ended(self) -> Self {
        if self.is_ended() {
            Self(self.0 & !Self::SEEN_AGAIN)
        } else {
            self
        }
    }

    /// The entry after a packet of the client, which anybody can send.
    #[inline(always)]
    #[must_use]
    pub const fn seen_at(self, now: Epoch) -> Self {
        Self(self.0 >> 16 << 16 | now.0 as u64)
    }

    /// The entry after a packet of the target: the flow goes on for sure.
    #[inline(always)]
    #[must_use]
    pub const fn seen_again_at(self, now: Epoch) -> Self {
        let seen = self.seen_at(now);
        if seen.is_ended() {
            seen
        } else {
            Self(seen.0 | Self::SEEN_AGAIN)
        }
    }

    /// Whether the flow goes on for sure.
    #[inline(always)]
    #[must_use]
    pub const fn is_seen_again(self) -> bool {
        self.0 & Self::SEEN_AGAIN != 0
    }

    /// The entry after the target has answered the SYN; `expected` is the number that the
    /// client has to acknowledge.
    #[inline(always)]
    #[must_use]
    pub const fn answered(self, expected: u32) -> Self {
        let check = (expected as u64 & Self::CHECK_MAX) << Self::CHECK;
        Self(self.0 & !(Self::CHECK_MAX << Self::CHECK) | check | Self::ANSWERED)
    }

    /// Whether the target has answered the SYN, and the client has not acknowledged it.
    #[inline(always)]
    #[must_use]
    pub const fn is_answered(self) -> bool {
        self.0 & Self::ANSWERED != 0
    }

    /// Whether a number acknowledges the answer of the target.
    #[inline(always)]
    #[must_use]
    pub const fn is_acknowledged_by(self, number: u32) -> bool {
        self.is_answered() && (self.0 >> Self::CHECK ^ number as u64) & Self::CHECK_MAX == 0
    }

    /// The entry of the connection that the handshake has made.
    #[inline(always)]
    #[must_use]
    pub const fn confirmed(self, hash: Hash) -> Self {
        let check = (hash.0 & Self::CHECK_MAX) << Self::CHECK;
        Self(self.0 & !(Self::CHECK_MAX << Self::CHECK | Self::ANSWERED) | check)
    }

    /// Whether this entry is of a flow with this hash.
    #[inline(always)]
    pub(super) const fn is_of(self, hash: Hash) -> bool {
        self.0 != 0
            && (self.is_answered() || (self.0 >> Self::CHECK ^ hash.0) & Self::CHECK_MAX == 0)
    }
}

/// The first word of the entry of a flow of a client that connected to an address.
#[inline(always)]
const fn tag(hash: Hash, own: u16) -> u64 {
    hash.0 >> 16 << 16 | own as u64
}

/// The entry of a forwarded flow that was found, and its place.
#[derive(Debug)]
pub struct FoundForward<'a, W> {
    /// The number of the address that the client connected to.
    pub own: u16,
    /// The entry.
    pub entry: ForwardEntry,
    word: &'a W,
}

impl<W: Word> FoundForward<'_, W> {
    /// Replaces the entry.
    #[inline(always)]
    pub fn set(&self, entry: ForwardEntry) {
        self.word.store(entry.0);
    }

    /// Removes the entry.
    #[inline(always)]
    pub fn remove(&self) {
        self.word.store(0);
    }
}

impl<W: Word> Bucket<W> {
    /// The entry of a forwarded flow.
    #[inline(always)]
    pub fn find_forward(&self, hash: Hash) -> Option<FoundForward<'_, W>> {
        self.find_by(|tag, entry, word| {
            let entry = ForwardEntry(entry);
            let is_it = (tag ^ hash.0) >> 16 == 0 && entry.is_of(hash);
            is_it.then_some(FoundForward {
                #[expect(clippy::cast_possible_truncation, reason = "the lowest 16 bits")]
                own: tag as u16,
                entry,
                word,
            })
        })
    }

    /// Adds the entry of a forwarded flow that has none, see [`Self::add`].
    #[inline(always)]
    pub fn add_forward(&self, hash: Hash, own: u16, entry: ForwardEntry) -> usize {
        self.add_words(hash, tag(hash, own), Entry(entry.0))
    }

    /// All forwarded flows, with the place, the number of the dialled address and the entry.
    pub fn forwards(&self) -> impl Iterator<Item = (usize, u16, ForwardEntry)> {
        self.words().filter_map(|(place, tag, entry)| {
            #[expect(clippy::cast_possible_truncation, reason = "the lowest 16 bits")]
            let own = tag as u16;
            (entry != 0).then_some((place, own, ForwardEntry(entry)))
        })
    }

    /// Removes the forwarded flows that a test accepts.
    pub fn remove_forwards(&self, is_gone: impl Fn(u16, ForwardEntry) -> bool) {
        for (place, own, entry) in self.forwards() {
            if is_gone(own, entry) {
                self.remove_at(place, entry.0);
            }
        }
    }
}

/// The key of a flow as the client knows it, for the slot that its client has.
#[inline(always)]
pub(crate) const fn slot_key(key: &FlowKey, is_affine: bool) -> FlowKey {
    if !is_affine {
        return *key;
    }
    FlowKey {
        client: key.client,
        version: key.version,
        ..FlowKey::NOTHING
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;
    use crate::map::hash::mix;

    const FLOW: Forwarded = Forwarded {
        target: 7,
        dst_port: Port::new(80),
    };

    #[test]
    fn an_entry_keeps_its_flow_through_its_life() {
        let hash = Hash(mix(1));
        let bucket = Bucket::<AtomicU64>::default();
        bucket.add_forward(hash, 3, ForwardEntry::new(hash, FLOW, Epoch(5)));
        let found = bucket.find_forward(hash).expect("an entry");
        assert_eq!((found.own, found.entry.flow()), (3, FLOW));

        found.set(found.entry.answered(0x1234_5679));
        let found = bucket.find_forward(hash).expect("an entry");
        assert!(found.entry.is_acknowledged_by(0x1234_5679));
        assert!(!found.entry.is_acknowledged_by(0x1234_5678));

        found.set(found.entry.confirmed(hash).seen_again_at(Epoch(6)));
        let found = bucket.find_forward(hash).expect("an entry");
        assert_eq!((found.entry.flow(), found.entry.seen()), (FLOW, Epoch(6)));
        assert!(!found.entry.is_answered() && !found.entry.is_ended());

        let half = found.entry.ended_by_client();
        assert!(!half.is_ended() && half.ended_by_target().is_ended());
        assert!(found.entry.reset().is_ended());
        assert_eq!(
            bucket.find_forward(Hash(mix(2))).map(|found| found.own),
            None
        );
    }

    #[test]
    fn what_has_ended_makes_room_first() {
        let bucket = Bucket::<AtomicU64>::default();
        for number in 0..8 {
            let hash = Hash(mix(number + 1));
            let entry = ForwardEntry::new(hash, FLOW, Epoch(5)).seen_again_at(Epoch(5));
            let entry = if number == 4 { entry.reset() } else { entry };
            bucket.add_forward(hash, 1, entry);
        }
        let hash = Hash(mix(100));
        bucket.add_forward(hash, 1, ForwardEntry::new(hash, FLOW, Epoch(5)));
        for number in 0..8 {
            let is_there = bucket.find_forward(Hash(mix(number + 1))).is_some();
            assert_eq!(is_there, number != 4, "{number}");
        }
    }
}
