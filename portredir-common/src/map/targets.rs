//! Targets with an address, and how the connections of a rule are shared among them.
//!
//! A rule with such targets leads to a service; a service has slots, and the hash of a
//! client names one. A slot has the target for new flows, and up to three that it had
//! before, whose flows stay with them. Services, slots and targets have numbers that user
//! space gives, beside the two generations of rules: what a flow began with stays while
//! rules change.

use crate::net::{Addr, Port};
use crate::packed::Packed;

/// The number of services, and one more: number 0 is none.
pub const SERVICES: u32 = 1 << 11;

/// The index of a service in `SERVICES` for an IP version, 4 or 6: a rule may have targets
/// of both, with slots of their own.
#[inline(always)]
#[must_use]
pub const fn service_index(number: u16, version: u8) -> u32 {
    let half = if version == 6 { SERVICES } else { 0 };
    half | number as u32 & (SERVICES - 1)
}

/// The number of slots of all services.
pub const SLOTS: u32 = 1 << 16;

/// The number of targets, and one more: number 0 is none.
pub const TARGETS: u32 = 1 << 12;

/// The number of addresses of this host that clients can connect to by such rules, and one
/// more: number 0 is none.
pub const OWN_ADDRS: u32 = 1 << 12;

/// A value of `SERVICES`.
///
/// **Shape**: one word; from the lowest bit the first slot 32, the mask of the hash 16, the
/// flags 16. All zero where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The first slot.
    pub first_slot: u32,
    /// The number of slots, a power of two, less one.
    pub mask: u16,
    /// [`Self::USED`] and the flags after it.
    pub flags: u16,
}

impl Service {
    /// There is a service of this number.
    pub const USED: u16 = 1;
    /// All flows of one client go to one target: the slot is that of its address alone.
    pub const AFFINITY: u16 = 2;
}

impl Packed for Service {
    #[inline(always)]
    fn pack(self) -> u64 {
        u64::from(self.first_slot) | self.mask.pack() << 32 | self.flags.pack() << 48
    }

    #[expect(clippy::cast_possible_truncation, reason = "32 bits of it")]
    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self {
            first_slot: word as u32,
            mask: u16::unpack(word >> 32),
            flags: u16::unpack(word >> 48),
        }
    }
}

/// A value of `SLOTS`: numbers of targets; the first is for new flows, then those before it,
/// the latest first.
///
/// **Shape**: one word, 16 bits each from the lowest bit; unused ones are 0 and at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slot(pub [u16; Self::TARGETS]);

impl Slot {
    /// The number of targets of a slot: the present one and three before.
    pub const TARGETS: usize = 4;
    /// No target is up: new flows go to the port that they were meant for.
    pub const RESTS: u16 = 0;
    /// No target is up: new flows are dropped.
    pub const DROPS: u16 = u16::MAX;
}

impl Packed for Slot {
    #[inline(always)]
    fn pack(self) -> u64 {
        let [a, b, c, d] = self.0;
        a.pack() | b.pack() << 16 | c.pack() << 32 | d.pack() << 48
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self([0, 16, 32, 48].map(|shift| u16::unpack(word >> shift)))
    }
}

/// A value of `TARGETS`.
///
/// **Shape**: 32 bytes; address at 0, port at 16, first destination port at 18, both in
/// network order, rule at 20, flags at 22, padding to the end, always zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Target {
    /// The address; of a target with [`Self::HERE`] it is not used.
    pub addr: Addr,
    /// The port; with [`Self::RANGE`] that of the first destination port.
    pub port: Port,
    /// The first destination port of the rule.
    pub first_dst_port: Port,
    /// The rule: the index of its counters.
    pub rule: u16,
    /// [`Self::DEAD`] and the flags after it.
    pub flags: u16,
    /// Padding, always zero.
    pub pad: [u8; 8],
}

impl Target {
    /// The target does not answer: its UDP flows go elsewhere with their next packet.
    pub const DEAD: u16 = 1;
    /// The connections to the target are cut when it is dead.
    pub const CUT: u16 = 2;
    /// The target is a port of this host, on the address that the client connected to.
    pub const HERE: u16 = 4;
    /// Each destination port has a target port of its own, as far from the first one.
    pub const RANGE: u16 = 8;

    /// Whether a flag is set.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The target port of packets to a destination port.
    #[inline(always)]
    #[must_use]
    pub const fn port_of(&self, dst_port: Port) -> Port {
        if !self.has(Self::RANGE) {
            return self.port;
        }
        let offset = dst_port.get().wrapping_sub(self.first_dst_port.get());
        Port::new(self.port.get().wrapping_add(offset))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn roundtrip(first_slot: u32, mask: u16, flags: u16, targets: [u16; 4]) {
            let service = Service { first_slot, mask, flags };
            prop_assert_eq!(Service::unpack(service.pack()), service);
            let slot = Slot(targets);
            prop_assert_eq!(Slot::unpack(slot.pack()), slot);
        }
    }

    #[test]
    fn ranges_keep_their_offset() {
        let mut target = Target {
            port: Port::new(9000),
            first_dst_port: Port::new(8000),
            flags: Target::RANGE,
            ..Target::default()
        };
        assert_eq!(target.port_of(Port::new(8042)), Port::new(9042));
        target.flags = 0;
        assert_eq!(target.port_of(Port::new(8042)), Port::new(9000));
    }
}
