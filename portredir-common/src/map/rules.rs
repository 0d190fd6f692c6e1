//! Keys and values of the maps that rules are compiled into.
//!
//! A new program reads maps that an older one has filled, until the rules are compiled
//! anew: layouts stay as they are, also where ports are in host order ([`HostPort`]).

use crate::net::{Addr, HostPort, Port, Protocol};
use crate::packed::{Niche, Packed};

/// The entry of one (protocol, port) of one generation.
///
/// [`PacketPath::ports`](super::packet_path::PacketPath::ports) has the entries of both generations side by side: the
/// datapath reads nothing else for traffic that no rule concerns.
///
/// **Shape**: one word; from the lowest bit the target port in host order, the rule,
/// the flags and the set, 16 bits each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortEntry {
    /// The target port of packets to this port, where [`Self::MATCH`] is set and the
    /// rules have no conditions.
    pub target: Port,
    /// The rule with this target: the index of its counters.
    pub rule: u16,
    /// [`Self::MATCH`] and the flags after it.
    pub flags: u16,
    /// The set of conditions of the rules for this port; 0 where there are none.
    pub set: u16,
}

impl PortEntry {
    /// A rule redirects packets to this port.
    pub const MATCH: u16 = 1;
    /// Some rule redirects packets here.
    pub const TARGET: u16 = 2;
    /// Flows to this port may have begun under earlier rules.
    pub const OLD: u16 = 4;
    /// Other hosts reach this port by a rule alone.
    pub const HIDDEN: u16 = 8;
    /// The rules for this port rest while nobody listens on their target.
    pub const IF_LISTENING: u16 = 16;
    /// The target is the number of a [`Service`](crate::map::targets::Service), whose targets
    /// have addresses, or a rule of [`Self::set`] has one.
    pub const FORWARD: u16 = 32;
    /// Some target with an address, or of several ones, has this port.
    pub const REMOTE: u16 = 64;
    /// Somebody traces packets: the fast path leaves this one to the slow path. Maps never
    /// have this flag; it comes from [`TRACED`](super::packet_path::TRACED).
    pub const TRACED: u16 = 1 << 14;
    /// The entry belongs to generation 1, as does all that it leads to.
    pub const GENERATION: u16 = 1 << 15;
    /// The flags of entries that the fast path leaves to the slow path.
    const RARE: u16 = Self::OLD | Self::HIDDEN | Self::IF_LISTENING | Self::TRACED;
    /// The number of entries of a generation: 65 536 for TCP, then as many for UDP.
    pub const COUNT: u32 = 2 << 16;

    /// The index of a port in [`PacketPath::ports`](super::packet_path::PacketPath::ports).
    #[inline(always)]
    #[must_use]
    pub const fn index(protocol: Protocol, port: Port) -> u32 {
        let half = match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1 << 16,
        };
        half | port.get() as u32
    }

    /// The generation that this entry belongs to, 0 or 1.
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

    /// Whether some rule redirects packets to this port, and the fast path may handle what
    /// leaves from it.
    #[inline(always)]
    #[must_use]
    pub const fn is_quick_target(self) -> bool {
        self.flags & (Self::TARGET | Self::TRACED) == Self::TARGET
    }

    /// Whether the slow path has to see what leaves from this port, be it a target or not.
    #[inline(always)]
    #[must_use]
    pub const fn is_match_or_traced(self) -> bool {
        self.has(Self::MATCH | Self::REMOTE | Self::TRACED)
    }

    /// Whether earlier rules redirected packets to this port.
    #[inline(always)]
    #[must_use]
    pub const fn is_old(self) -> bool {
        self.has(Self::OLD)
    }

    /// Whether some rule concerns packets to this port.
    #[inline(always)]
    #[must_use]
    pub const fn is_dst_or_target(self) -> bool {
        self.flags & (Self::MATCH | Self::TARGET | Self::OLD) != 0
    }

    /// Whether packets to this port go to [`Self::target`], or to this port itself,
    /// without conditions or exceptions.
    #[inline(always)]
    #[must_use]
    pub const fn is_plain(self) -> bool {
        self.flags & (Self::RARE | Self::FORWARD) == 0 && self.set == 0
    }

    /// Whether packets to this port go to a service, without conditions or exceptions.
    #[inline(always)]
    #[must_use]
    pub const fn is_quick_forward(self) -> bool {
        const FORWARD: u16 = PortEntry::MATCH | PortEntry::FORWARD;
        self.flags & (Self::RARE | FORWARD) == FORWARD && self.set == 0
    }

    /// Whether a target of a service has this port, and the fast path may handle what leaves
    /// from it.
    #[inline(always)]
    #[must_use]
    pub const fn is_quick_remote(self) -> bool {
        self.flags & (Self::REMOTE | Self::TRACED) == Self::REMOTE
    }

    /// Whether a rule for this port leads to a service.
    #[inline(always)]
    #[must_use]
    pub const fn is_forward(self) -> bool {
        self.has(Self::FORWARD)
    }

    /// Whether a target of a service has this port.
    #[inline(always)]
    #[must_use]
    pub const fn is_remote(self) -> bool {
        self.has(Self::REMOTE)
    }

    /// Whether other hosts must not reach this port directly.
    #[inline(always)]
    #[must_use]
    pub const fn is_hidden(self) -> bool {
        self.has(Self::HIDDEN)
    }

    /// Whether what comes to this port may go elsewhere, or nowhere, unless this host
    /// itself began the flow at this port.
    #[inline(always)]
    #[must_use]
    pub const fn is_private(self) -> bool {
        self.flags & (Self::MATCH | Self::HIDDEN) != 0
    }

    /// Whether the rules for this port need a server on the target port.
    #[inline(always)]
    #[must_use]
    pub const fn is_if_listening(self) -> bool {
        self.has(Self::IF_LISTENING)
    }
}

impl Packed for PortEntry {
    #[inline(always)]
    fn pack(self) -> u64 {
        self.target.get().pack()
            | self.rule.pack() << 16
            | self.flags.pack() << 32
            | self.set.pack() << 48
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self {
            target: Port::new(u16::unpack(word)),
            rule: u16::unpack(word >> 16),
            flags: u16::unpack(word >> 32),
            set: u16::unpack(word >> 48),
        }
    }
}

/// The target ports that earlier rules had for a port: a value of `OLD`, by
/// [`PreviousTargets::key`].
///
/// **Shape**: four ports of two bytes, in host order; unused ones are 0 and at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PreviousTargets([HostPort; Self::COUNT]);

impl PreviousTargets {
    /// The greatest number of targets.
    pub const COUNT: usize = 4;

    /// The first [`Self::COUNT`] of some targets; the latest comes first.
    #[must_use]
    pub fn new(targets: impl IntoIterator<Item = Port>) -> Self {
        let mut previous = Self::default();
        for (place, target) in previous.0.iter_mut().zip(targets) {
            *place = HostPort::new(target);
        }
        previous
    }

    /// The `i`th target, which is below [`Self::COUNT`]; `None` behind the last one.
    #[inline(always)]
    #[must_use]
    pub const fn target(&self, i: usize) -> Option<Port> {
        let target = self.0[i];
        if target.is_unused() {
            None
        } else {
            Some(target.port())
        }
    }

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

/// A key of `ADDRS`: the rules for one address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct AddrKey {
    /// The set of conditions, with its generation: see [`AddrKey::set`].
    pub set: u32,
    /// The address.
    pub addr: Addr,
}

impl AddrKey {
    /// The set of conditions of an entry, with its generation in the highest bit. As
    /// a group it stands for addresses that have no rule of their own.
    #[inline(always)]
    #[must_use]
    pub const fn set(entry: PortEntry) -> u32 {
        entry.generation() << 31 | entry.set as u32
    }
}

/// A key of `SOURCES`, behind the length of the prefix: the rules for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SourceKey {
    /// The group that `ADDRS` has for the address, or the set itself.
    pub group: u32,
    /// The IP version, 4 or 6: `::/0` is not for IPv4.
    pub version: u32,
    /// The client.
    pub client: Addr,
}

impl SourceKey {
    /// The number of bits before those of the address.
    pub const PREFIX: u32 = 64;
}

/// A value of `SOURCES`: the rules for such a client, the most specific first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Candidates(pub [Candidate; Self::COUNT]);

impl Candidates {
    /// The greatest number of rules for one client: they differ in their interfaces.
    pub const COUNT: usize = 8;
}

/// One rule for a client. Unused ones are all zero: nobody listens on port 0.
///
/// **Shape**: 8 bytes; target port at 0 and first destination port at 2, both in host
/// order, rule at 4, interfaces at 6, flags at 7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Candidate {
    /// The target port of packets to `first_dst_port`.
    pub target: HostPort,
    /// The first destination port of the rule.
    pub first_dst_port: HostPort,
    /// The rule: the index of its counters.
    pub rule: u16,
    /// The bit of `IFACES` that the rule needs; 0 for all interfaces.
    pub on: u8,
    /// [`Self::RANGE`] or [`Self::FORWARD`].
    pub flags: u8,
}

impl Candidate {
    /// Each destination port has a target port of its own, as far from the first one.
    pub const RANGE: u8 = 1;
    /// The target is the number of a [`Service`](crate::map::targets::Service).
    pub const FORWARD: u8 = 2;

    /// The target port of packets to a destination port.
    #[inline(always)]
    #[must_use]
    pub const fn target_of(&self, dst_port: Port) -> Port {
        let target = self.target.port();
        if self.flags & Self::RANGE == 0 {
            return target;
        }
        let first = self.first_dst_port.port().get();
        Port::new(
            target
                .get()
                .wrapping_add(dst_port.get().wrapping_sub(first)),
        )
    }
}

/// The rule for a packet, and its target port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The target port; with [`Self::is_forward`] the number of a service.
    pub target: Port,
    /// The rule.
    pub rule: u16,
    /// Whether the rule leads to a [`Service`](crate::map::targets::Service).
    pub is_forward: bool,
}

impl Choice {
    const FORWARD: u64 = 1 << 33;
}

impl Packed for Choice {
    #[inline(always)]
    fn pack(self) -> u64 {
        let forward = if self.is_forward { Self::FORWARD } else { 0 };
        self.target.pack() | self.rule.pack() << 16 | forward
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self {
            target: Port::unpack(word),
            rule: u16::unpack(word >> 16),
            is_forward: word & Self::FORWARD != 0,
        }
    }
}

/// No rule has target port 0.
impl Niche for Choice {
    const NONE: u64 = 0;
}

/// A key of `IFACES`; the value is a mask of the lists of interfaces in rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct IfaceKey {
    /// The generation of rules, 0 or 1.
    pub generation: u32,
    /// The interface.
    pub ifindex: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_do_not_share_entries() {
        let mut next = 0;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for port in [0, 65535] {
                let index = PortEntry::index(protocol, Port::new(port));
                assert_eq!(index, next + u32::from(port));
                for generation in [0, 1] {
                    let key = PreviousTargets::key(generation, index);
                    assert_eq!(PreviousTargets::generation(key), generation);
                    assert_eq!(key % PortEntry::COUNT, index);
                }
            }
            next += 1 << 16;
        }
        assert_eq!(next, PortEntry::COUNT);
    }

    #[test]
    fn an_entry_is_the_word_that_earlier_programs_wrote() {
        let entry = PortEntry {
            target: Port::new(8080),
            rule: 7,
            flags: PortEntry::MATCH | PortEntry::GENERATION,
            set: 3,
        };
        assert_eq!(entry.pack(), 0x0003_8001_0007_1f90);
        assert_eq!(PortEntry::unpack(entry.pack()), entry);
        assert_eq!(PortEntry::default().pack(), 0);
    }

    #[test]
    fn ports_in_maps_keep_their_byte_order() {
        let previous = PreviousTargets::new([8080, 9090].map(Port::new));
        let [first, second, ..] = previous.0;
        assert_eq!([first, second].map(|port| port.port().get()), [8080, 9090]);
        assert_eq!(previous.target(1), Some(Port::new(9090)));
        assert_eq!(previous.target(2), None);
    }

    #[test]
    fn ranges_keep_their_offset() {
        let mut candidate = Candidate {
            target: HostPort::new(Port::new(9000)),
            first_dst_port: HostPort::new(Port::new(8000)),
            flags: Candidate::RANGE,
            ..Candidate::default()
        };
        let target = |candidate: Candidate| candidate.target_of(Port::new(8042)).get();
        assert_eq!(target(candidate), 9042);
        candidate.target = HostPort::new(Port::new(100));
        assert_eq!(target(candidate), 142);
        candidate.flags = 0;
        assert_eq!(target(candidate), 100);
    }
}
