//! Flows: what the datapath remembers of a connection or of a UDP flow.
//!
//! The rule says where a packet goes; state is needed for the way back, as a
//! client may also have connected to the target port itself. There is one entry per
//! flow, never a pair, so nothing can be half lost, and every packet of the
//! client puts a lost entry back. For TCP the kernel's sockets are the truth:
//! an entry only ever counts as alive when a socket stands behind it.

use crate::net::{Addr, Flags, Port, Protocol};
use crate::packed::Packed;
use crate::verdict::Reason;

/// A flow table.
///
/// There are three, so that a flood of one kind costs no flow of another. [`Self::Tcp`]
/// also holds direct connections to a target port: so a forged packet to a
/// redirected port cannot claim one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowTable {
    /// The table of TCP flows that no server has accepted yet: anybody can send a SYN,
    /// or a packet that draws a RST.
    Syn,
    /// The table of TCP connections.
    Tcp,
    /// The table of UDP flows.
    Udp,
}

impl FlowTable {
    /// All tables.
    pub const ALL: [Self; 3] = [Self::Syn, Self::Tcp, Self::Udp];
}

impl Packed for FlowTable {
    #[inline(always)]
    fn pack(self) -> u64 {
        self as u64
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        const TCP: u64 = FlowTable::Tcp as u64;
        const UDP: u64 = FlowTable::Udp as u64;
        match word {
            TCP => Self::Tcp,
            UDP => Self::Udp,
            _ => Self::Syn,
        }
    }
}

/// The ends of one flow, seen from this host.
///
/// In the flow tables and in `GIVEN…` this is the translated flow, as the server's
/// socket knows it; in `REMAP…` it is the original one, as the client knows it.
///
/// **Shape**: 40 bytes; client address at 0, local address at 16, client port at 32,
/// local port at 34, protocol at 36, IP version at 37.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct FlowKey {
    /// The address of the remote end.
    pub client: Addr,
    /// The address of this host that the client connected to.
    pub local: Addr,
    /// The port of the remote end.
    pub client_port: Port,
    /// The port of this host.
    pub local_port: Port,
    /// The number of the [`Protocol`].
    pub protocol: u8,
    /// The IP version, 4 or 6.
    pub version: u8,
    /// Padding, always zero.
    pub pad: [u8; 2],
}

impl FlowKey {
    /// The key of nothing: no packet has protocol 0.
    pub(crate) const NOTHING: Self = Self {
        client: Addr::V4_ANY,
        local: Addr::V4_ANY,
        client_port: Port::new(0),
        local_port: Port::new(0),
        protocol: 0,
        version: 0,
        pad: [0; 2],
    };

    /// The protocol of this flow.
    ///
    /// # Errors
    ///
    /// [`Reason::NoRule`] for others than TCP and UDP, of which there are no flows.
    #[inline(always)]
    pub const fn protocol(&self) -> Result<Protocol, Reason> {
        const TCP: u8 = Protocol::Tcp as u8;
        const UDP: u8 = Protocol::Udp as u8;
        match self.protocol {
            TCP => Ok(Protocol::Tcp),
            UDP => Ok(Protocol::Udp),
            _ => Err(Reason::NoRule),
        }
    }

    /// The bytes that this key is in memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[..16].copy_from_slice(&self.client.octets());
        bytes[16..32].copy_from_slice(&self.local.octets());
        bytes[32..34].copy_from_slice(&self.client_port.bytes());
        bytes[34..36].copy_from_slice(&self.local_port.bytes());
        bytes[36] = self.protocol;
        bytes[37] = self.version;
        bytes
    }
}

/// The client's view of a flow, as it is kept.
///
/// **Shape**: 8 bytes in `SOCKETS`. A flow table holds an
/// [`Entry`](crate::map::entry::Entry) instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Flow {
    /// The port of this host that the client connected to.
    pub dst_port: Port,
    /// The port the client really uses; differs from the key's on a collision.
    pub client_port: Port,
    /// The rule that made the flow; meaningless for direct flows.
    pub rule: u16,
    /// The time at which the last packet was seen.
    pub seen: Epoch,
}

impl Flow {
    /// The rule of a flow that this host began.
    const OWN: u16 = u16::MAX;

    /// A flow that this host, or a host behind it, began at the local port of `key`.
    #[inline(always)]
    #[must_use]
    pub const fn own(key: &FlowKey, seen: Epoch) -> Self {
        Self {
            rule: Self::OWN,
            ..Self::direct(key, seen)
        }
    }

    /// Whether this flow, whose key is `key`, is one of [`Self::own`].
    #[inline(always)]
    pub(crate) fn is_own(&self, key: &FlowKey) -> bool {
        self.rule == Self::OWN && self.is_direct(key)
    }

    /// Whether this flow is direct, and the client may have begun it.
    #[inline(always)]
    pub(crate) fn is_foreign(&self, key: &FlowKey) -> bool {
        self.rule != Self::OWN && self.is_direct(key)
    }

    /// Whether nothing is translated of this flow, whose key is `key`.
    #[inline(always)]
    #[must_use]
    pub fn is_direct(&self, key: &FlowKey) -> bool {
        self.dst_port == key.local_port && self.client_port == key.client_port
    }

    /// A direct flow, of which nothing is translated.
    #[inline(always)]
    pub(crate) const fn direct(key: &FlowKey, seen: Epoch) -> Self {
        Self {
            dst_port: key.local_port,
            client_port: key.client_port,
            rule: 0,
            seen,
        }
    }
}

/// The word of a flow is never 0: nobody connects to port 0.
impl Packed for Flow {
    #[inline(always)]
    fn pack(self) -> u64 {
        self.dst_port.pack()
            | self.client_port.pack() << 16
            | self.rule.pack() << 32
            | self.seen.0.pack() << 48
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self {
            dst_port: Port::unpack(word),
            client_port: Port::unpack(word >> 16),
            rule: u16::unpack(word >> 32),
            seen: Epoch(u16::unpack(word >> 48)),
        }
    }
}

/// A moment of `CLOCK_MONOTONIC`.
///
/// **Unit**: 2^30 ns, some 1.07 s; the number wraps around after 19.5 hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Epoch(pub u16);

impl Epoch {
    /// The unit in nanoseconds.
    pub const UNIT_NS: u64 = 1 << 30;

    /// The epoch of a moment.
    #[expect(clippy::cast_possible_truncation, reason = "epochs wrap around")]
    #[inline(always)]
    #[must_use]
    pub const fn at(now_ns: u64) -> Self {
        Self((now_ns / Self::UNIT_NS) as u16)
    }

    /// How many epochs ago `earlier` was. A moment that is a little later, by the
    /// clock of another processor, counts as now.
    #[inline(always)]
    #[must_use]
    pub const fn since(self, earlier: Self) -> u16 {
        const LATER: u16 = 0xff00;
        let age = self.0.wrapping_sub(earlier.0);
        if age >= LATER { 0 } else { age }
    }
}

/// The time after which an idle UDP flow no longer defends its client port.
///
/// **Unit**: [`Epoch`]; 120 s, as long as netfilter keeps a UDP stream
/// (`nf_conntrack_udp_timeout_stream`).
pub const UDP_IDLE: u16 = 112;

/// The knowledge of the flow table about a packet's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowLookup {
    /// The flow has its entry.
    Established,
    /// The flow had no entry, and has one now.
    Inserted,
    /// The flow has an entry as a connection that no server has accepted yet.
    Unconfirmed,
    /// The fast path cannot decide; nothing was changed.
    SlowPath,
}

/// The client port of a packet that the datapath admits to a target.
///
/// This is one number: of two the compiler makes one anyway, and with what is left in
/// a register when there is an error the verifier sees a pointer in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted(u64);

impl Admitted {
    const INSERTED: u64 = 1 << 16;

    /// Admits a packet of a flow that has begun.
    #[inline(always)]
    #[must_use]
    pub const fn established(client_port: Port) -> Self {
        Self(client_port.half() as u64)
    }

    /// Admits a packet that began a flow.
    #[inline(always)]
    #[must_use]
    pub const fn inserted(client_port: Port) -> Self {
        Self(client_port.half() as u64 | Self::INSERTED)
    }

    /// The client port that the server sees.
    #[expect(clippy::cast_possible_truncation, reason = "16 bits of it")]
    #[inline(always)]
    #[must_use]
    pub const fn client_port(self) -> Port {
        Port::from_half(self.0 as u16)
    }

    /// Whether the packet began a flow.
    #[inline(always)]
    #[must_use]
    pub const fn lookup(self) -> FlowLookup {
        if self.0 & Self::INSERTED == 0 {
            FlowLookup::Established
        } else {
            FlowLookup::Inserted
        }
    }
}

impl Packed for Admitted {
    #[inline(always)]
    fn pack(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self(word)
    }
}

/// The client's side of a flow: the ports that the client uses and sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// The port of this host that the client connected to.
    pub dst_port: Port,
    /// The client's port.
    pub client_port: Port,
    /// The rule for the destination port.
    pub rule: u16,
}

impl Original {
    /// The flow that the tables keep.
    #[inline(always)]
    #[must_use]
    pub const fn flow(self, now: Epoch) -> Flow {
        Flow {
            dst_port: self.dst_port,
            client_port: self.client_port,
            rule: self.rule,
            seen: now,
        }
    }

    /// Whether `flow` is the translated form of this flow.
    #[inline(always)]
    pub(crate) fn is(self, flow: &Flow) -> bool {
        self.dst_port == flow.dst_port && self.client_port == flow.client_port
    }
}

/// The part of a TCP segment that tells of the life of its connection. A UDP packet has that
/// of a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The flags.
    pub flags: Flags,
    /// The acknowledged number of a segment of a client, the own number of one of a target;
    /// host order.
    pub number: u32,
}

impl Segment {
    /// A look that is nobody's segment: nothing is noted.
    pub const LOOK: Self = Self {
        flags: Flags(1 << 15),
        number: 0,
    };

    /// The segment that every UDP packet counts as.
    pub const UDP: Self = Self {
        flags: Flags::SYN,
        number: 0,
    };

    /// Whether nothing is noted.
    #[inline(always)]
    #[must_use]
    pub const fn is_look(self) -> bool {
        self.flags.0 == Self::LOOK.flags.0
    }
}

/// **Shape**, from the lowest bit: flags 16, nothing 16, number 32.
impl Packed for Segment {
    #[inline(always)]
    fn pack(self) -> u64 {
        self.flags.0.pack() | u64::from(self.number) << 32
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self {
            flags: Flags(u16::unpack(word)),
            number: (word >> 32) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_may_be_a_little_later() {
        let epoch = |s: u64| Epoch::at(s * 1_000_000_000);
        assert_eq!(epoch(1000).since(epoch(880)), 112);
        assert_eq!(epoch(1000).since(epoch(1000)), 0);
        assert_eq!(epoch(1000).since(epoch(1010)), 0);
        // After the number has wrapped around.
        assert_eq!(Epoch(3).since(Epoch(u16::MAX)), 4);
    }
}
