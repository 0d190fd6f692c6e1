//! The hash of a flow, by a secret of this host.

use core::fmt;

use crate::flow::FlowKey;
use crate::net::{Port, Version};

/// The secret that makes hashes differ from host to host.
///
/// A client that knew it could choose flows that push the flow of another client out of
/// its bucket.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Seed(pub [u64; Self::WORDS]);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("secret")
    }
}

impl Seed {
    /// The number of words: one to begin with for each version of IP, one for the ports,
    /// and one for each 32 bits of two addresses.
    pub const WORDS: usize = 2 + 1 + 8;

    /// A seed of random numbers.
    #[must_use]
    pub fn new(mut random: [u64; Self::WORDS]) -> Self {
        // Multiplied by an odd number, no two words become one.
        random.iter_mut().for_each(|word| *word |= 1);
        Self(random)
    }

    /// Whether this seed was ever made.
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

/// The largest [`Hash::check`]: the second word of an entry has 14 bits of the hash.
pub(super) const CHECK_MAX: u64 = (1 << 14) - 1;

/// The hash of a translated flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(pub u64);

impl Hash {
    /// The hash of a flow by a [`Seed`], of which `seed` gives the words.
    ///
    /// The hash begins as the sum modulo 2^64 of the words of the key, each multiplied
    /// by a secret odd number. Two keys that differ in one word never have the
    /// same sum. Otherwise one factor is settled by the others: not more than one in
    /// 2^(63 - v) makes the sums equal, when the difference of its words is a
    /// multiple of 2^v; so 2^-32 at worst, and mostly 2^-63. The sum is linear: a client
    /// that learned of two flows with one hash would know of others. The mixing behind
    /// the sum, a bijection, takes that away.
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

    /// The bucket of this hash among `count`.
    #[inline(always)]
    pub(super) const fn bucket(self, count: u32) -> u32 {
        let low = self.0 & 0xffff_ffff;
        ((low * count as u64) >> 32) as u32
    }

    /// The first word of the entry of a flow to `target`.
    #[inline(always)]
    pub(super) fn tag(self, target: Port) -> u64 {
        self.0 >> 16 << 16 | u64::from(target.get())
    }

    /// A place of the bucket by chance, independent of the number of the bucket.
    #[inline(always)]
    pub(super) const fn any_place(self) -> u64 {
        self.0 >> 61
    }

    /// The bits of this hash that the second word of an entry has.
    #[inline(always)]
    pub(super) const fn check(self) -> u64 {
        self.0 & CHECK_MAX
    }
}

/// `fmix64` of MurmurHash3.
#[inline(always)]
pub(super) const fn mix(mut word: u64) -> u64 {
    word ^= word >> 33;
    word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
    word ^= word >> 33;
    word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ word >> 33
}
