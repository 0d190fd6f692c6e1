//! The map that the datapath reads for every packet.

use crate::map::rules::PortEntry;
use crate::net::Addr;

/// The one element of `HOT`: all that the datapath reads for every packet.
///
/// This is one element of one map, as finding an element takes longer than reading it.
/// User space fills it as memory; all words of it are read and written whole.
#[repr(C)]
pub struct PacketPath<W> {
    /// The entries of ports of both generations, by [`PortEntry::index`].
    pub ports: [[W; 2]; PortEntry::COUNT as usize],
    /// The local address cache: two addresses of two words each in a slot, by
    /// [`local_addr_slot`]. It holds addresses of this host that packets reach from
    /// anywhere, as far as there is room; unused ones are all zero.
    pub local_addrs: [[W; 4]; LOCAL_ADDR_SLOTS as usize],
    /// The lowest bit is the generation of rules that is live; switching it is all that a
    /// change of rules does to traffic. The next ones are [`IPSEC_BY_SOCKET`] and [`TRACED`].
    pub generation: W,
}

/// The bit of [`PacketPath::generation`] that leaves packets out of IPsec as they are on
/// interfaces whose connections listeners get: their replies are encrypted before TC.
pub const IPSEC_BY_SOCKET: u64 = 2;

/// The bit of [`PacketPath::generation`] that has packets to and from the ports of rules
/// take the slow path, which writes a record of each to `TRACE`: the bit of
/// [`PortEntry::TRACED`] in an entry that is a word.
pub const TRACED: u64 = (PortEntry::TRACED as u64) << 32;

/// The bits of [`PacketPath::generation`] that belong to every entry that is read: all but
/// the generation and [`IPSEC_BY_SOCKET`], so that adding them takes the fewest instructions.
/// Also an entry without rules has them then.
pub const ENTRY_BITS: u64 = !(1 | IPSEC_BY_SOCKET);

/// The slot of an address in [`PacketPath::local_addrs`]. Of more than two addresses
/// of one slot, the rest is in `LOCAL` alone.
#[inline(always)]
#[must_use]
pub const fn local_addr_slot(addr: Addr) -> u32 {
    let [low, high] = addr.long_words();
    // The 64-bit golden ratio; user space alone fills the cache, so nobody gains by
    // addresses that share a slot.
    let mixed = (low ^ high).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (64 - 12)) as u32
}

/// The number of slots of [`PacketPath::local_addrs`].
pub const LOCAL_ADDR_SLOTS: u32 = 1 << 12;

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn places_are_inside_the_map() {
        let mut seen = std::collections::HashSet::new();
        for a in 0..=255 {
            for b in 0..=255 {
                let v4 = Addr::v4([10, 1, a, b]);
                assert!(local_addr_slot(v4) < LOCAL_ADDR_SLOTS);
                seen.insert(local_addr_slot(v4));
            }
        }
        // Neighbours have slots of their own.
        assert!(seen.len() > LOCAL_ADDR_SLOTS as usize / 2, "{}", seen.len());
    }
}
