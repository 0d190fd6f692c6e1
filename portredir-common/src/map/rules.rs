//! Keys and values of the maps that rules are compiled into, and of what is read
//! for every packet.

use crate::net::{Addr, Port, Protocol};

/// The entry of one (protocol, port) of one generation. `PORTS` has those of
/// both generations side by side: traffic which no rule concerns reads nothing
/// else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct PortEntry {
    /// Where packets to this port go, when there is [`Self::MATCH`] and no
    /// condition. Host order.
    pub target: u16,
    /// The rule that says so: the index of its counters.
    pub rule: u16,
    /// [`Self::MATCH`] and those after it.
    pub flags: u16,
    /// Above 0 the rules for this port have conditions, found by it.
    pub set: u16,
}

impl PortEntry {
    /// A rule redirects packets to this port.
    pub const MATCH: u16 = 1;
    /// Some rule redirects packets here.
    pub const TARGET: u16 = 2;
    /// Flows to this port may have begun under earlier rules.
    pub const OLD: u16 = 4;
    /// Other hosts do not reach this port but by a rule.
    pub const HIDDEN: u16 = 8;
    /// The rules for this port rest while nobody listens on their target.
    pub const IF_LISTENING: u16 = 16;
    /// Of the generation 1; what is found by this entry is of the same.
    pub const GENERATION: u16 = 1 << 15;
    /// Number of elements of `PORTS`: 65 536 for TCP, then as many for UDP.
    pub const COUNT: u32 = 2 << 16;

    /// The index of a port in `PORTS`.
    #[inline(always)]
    #[must_use]
    pub const fn index(protocol: Protocol, port: Port) -> u32 {
        let half = match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1 << 16,
        };
        half | port.get() as u32
    }

    /// As the one word that it is in memory.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        let [a, b] = self.target.to_ne_bytes();
        let [c, d] = self.rule.to_ne_bytes();
        let [e, f] = self.flags.to_ne_bytes();
        let [g, h] = self.set.to_ne_bytes();
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }

    /// The entry that [`Self::to_word`] made.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
        Self {
            target: u16::from_ne_bytes([a, b]),
            rule: u16::from_ne_bytes([c, d]),
            flags: u16::from_ne_bytes([e, f]),
            set: u16::from_ne_bytes([g, h]),
        }
    }

    /// 0 or 1.
    #[inline(always)]
    #[must_use]
    pub const fn generation(self) -> u32 {
        (self.flags >> 15) as u32
    }

    #[inline(always)]
    const fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether a rule redirects packets to this port.
    #[inline(always)]
    #[must_use]
    pub const fn is_match(self) -> bool {
        self.has(Self::MATCH)
    }

    /// Whether a rule redirects packets from elsewhere to this port.
    #[inline(always)]
    #[must_use]
    pub const fn is_target(self) -> bool {
        self.has(Self::TARGET)
    }

    /// Whether earlier rules redirected packets to this port.
    #[inline(always)]
    #[must_use]
    pub const fn is_old(self) -> bool {
        self.has(Self::OLD)
    }

    /// Whether packets to this port are any rule's concern.
    #[inline(always)]
    #[must_use]
    pub const fn is_dialled_or_target(self) -> bool {
        self.flags & (Self::MATCH | Self::TARGET | Self::OLD) != 0
    }

    /// Whether its packets go where [`Self::target`] says, or to itself, without
    /// conditions or exceptions.
    #[inline(always)]
    #[must_use]
    pub const fn is_plain(self) -> bool {
        const RARE: u16 = PortEntry::OLD | PortEntry::HIDDEN | PortEntry::IF_LISTENING;
        self.flags & RARE == 0 && self.set == 0
    }

    /// Whether other hosts do not reach it directly.
    #[inline(always)]
    #[must_use]
    pub const fn is_hidden(self) -> bool {
        self.has(Self::HIDDEN)
    }

    /// Whether its rules need a server.
    #[inline(always)]
    #[must_use]
    pub const fn is_if_listening(self) -> bool {
        self.has(Self::IF_LISTENING)
    }
}

/// Value of `OLD`, by [`Old::key`]: where earlier rules sent the packets of a
/// port. Host order; unused ones are 0 and at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Old {
    /// The targets, the latest first.
    pub targets: [u16; Self::COUNT],
}

impl Old {
    /// How many there can be.
    pub const COUNT: usize = 4;

    /// The key for a port of a generation.
    #[inline(always)]
    #[must_use]
    pub const fn key(generation: u32, index: u32) -> u32 {
        (generation & 1) << 17 | index
    }

    /// The generation of a key.
    #[must_use]
    pub const fn generation(key: u32) -> u32 {
        key >> 17
    }
}

/// Key of `ADDRS`: rules for one address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct AddrKey {
    /// [`AddrKey::set`].
    pub set: u32,
    /// The address.
    pub addr: Addr,
}

impl AddrKey {
    /// A set of conditions of a generation; as a group it is what holds for
    /// addresses that have no rule of their own.
    #[inline(always)]
    #[must_use]
    pub const fn set(entry: PortEntry) -> u32 {
        entry.generation() << 31 | entry.set as u32
    }
}

/// Key of `SOURCES`, behind the length of the prefix: rules for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SourceKey {
    /// What `ADDRS` says, or the set itself.
    pub group: u32,
    /// IP version, 4 or 6: `::/0` is not for IPv4.
    pub version: u32,
    /// The client.
    pub client: Addr,
}

impl SourceKey {
    /// Bits before those of the address.
    pub const PREFIX: u32 = 64;
}

/// Value of `SOURCES`: the rules for such a client, the most specific first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Candidates(pub [Candidate; Self::COUNT]);

impl Candidates {
    /// How many there can be: they differ in their interfaces.
    pub const COUNT: usize = 8;
}

/// One of them. Unused ones are all zero: nobody listens on port 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Candidate {
    /// Where packets to `dialled` go.
    pub target: u16,
    /// The first port of the rule.
    pub dialled: u16,
    /// The rule: the index of its counters.
    pub rule: u16,
    /// 0 for all interfaces, else the bit of `IFACES`.
    pub on: u8,
    /// 1 where each port has a target of its own, as far from the first as it
    /// is itself.
    pub is_range: u8,
}

impl Candidate {
    /// Where packets to a port go.
    #[inline(always)]
    #[must_use]
    pub const fn target_of(&self, port: u16) -> u16 {
        if self.is_range == 0 {
            self.target
        } else {
            self.target.wrapping_add(port.wrapping_sub(self.dialled))
        }
    }
}

/// Key of `IFACES`; the value is a mask of the lists of interfaces in rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct IfaceKey {
    /// 0 or 1.
    pub generation: u32,
    /// The interface.
    pub ifindex: u32,
}

/// What is read for every packet, as one element of one map: to find an element
/// takes longer than to read it. Filled by user space, as memory; all words of it
/// are read and written whole.
#[repr(C)]
pub struct Hot<W> {
    /// The entries of ports of both generations, by [`PortEntry::index`].
    pub ports: [[W; 2]; PortEntry::COUNT as usize],
    /// Two addresses of two words each in a place, by [`own_place`]: addresses of
    /// this host that are reached from anywhere, as far as there is room; unused
    /// ones are all zero.
    pub own: [[W; 4]; OWN_PLACES as usize],
    /// Which of two generations of rules is live, 0 or 1; switching it is all that
    /// a change of rules does to traffic.
    pub generation: W,
}

/// The place of an address in `OWN`, which has those addresses of `LOCAL` that
/// are reached from anywhere, two in one place. Where more meet, the rest is
/// found in `LOCAL` alone.
#[inline(always)]
#[must_use]
pub const fn own_place(addr: Addr) -> u32 {
    let [low, high] = addr.long_words();
    // The 64-bit golden ratio; user space alone fills the map, so nobody
    // gains by addresses that meet.
    let mixed = (low ^ high).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (64 - 12)) as u32
}

/// How many places [`Hot::own`] has.
pub const OWN_PLACES: u32 = 1 << 12;

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn ports_do_not_share_entries() {
        let mut next = 0;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for port in [0, 65535] {
                let index = PortEntry::index(protocol, Port::new(port));
                assert_eq!(index, next + u32::from(port));
                for generation in [0, 1] {
                    let key = Old::key(generation, index);
                    assert_eq!(Old::generation(key), generation);
                    assert_eq!(key % PortEntry::COUNT, index);
                }
            }
            next += 1 << 16;
        }
        assert_eq!(next, PortEntry::COUNT);
    }

    #[test]
    fn an_entry_is_one_word() {
        let entry = PortEntry {
            target: 8080,
            rule: 7,
            flags: PortEntry::MATCH | PortEntry::GENERATION,
            set: 3,
        };
        assert_eq!(PortEntry::from_word(entry.to_word()), entry);
        assert_eq!(PortEntry::default().to_word(), 0);
    }

    #[test]
    fn ranges_keep_their_offset() {
        let mut candidate = Candidate {
            target: 9000,
            dialled: 8000,
            is_range: 1,
            ..Candidate::default()
        };
        assert_eq!(candidate.target_of(8042), 9042);
        candidate.target = 100;
        assert_eq!(candidate.target_of(8042), 142);
        candidate.is_range = 0;
        assert_eq!(candidate.target_of(8042), 100);
    }

    #[test]
    fn places_are_inside_the_map() {
        let mut seen = std::collections::HashSet::new();
        for a in 0..=255 {
            for b in 0..=255 {
                let v4 = Addr::v4([10, 1, a, b]);
                assert!(own_place(v4) < OWN_PLACES);
                seen.insert(own_place(v4));
            }
        }
        // Neighbours do not meet.
        assert!(seen.len() > OWN_PLACES as usize / 2, "{}", seen.len());
    }
}
