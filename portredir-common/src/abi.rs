//! Keys and values of the BPF maps, as both sides of the kernel boundary see
//! them. Every type is `repr(C)`, has no hidden padding and no invalid bit
//! pattern; ports and addresses are bytes in network order.

/// A TCP or UDP port in network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Port(pub [u8; 2]);

impl Port {
    /// From a number.
    #[must_use]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be_bytes())
    }

    /// As a number.
    #[must_use]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// The mapped form of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn v4([a, b, c, d]: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// 0.0.0.0, the address of servers that listen on all IPv4 addresses.
    pub const V4_ANY: Self = Self::v4([0; 4]);
    /// `::`, the address of servers that listen on all addresses.
    pub const V6_ANY: Self = Self([0; 16]);
    /// 127.0.0.1.
    pub const V4_LOOPBACK: Self = Self::v4([127, 0, 0, 1]);
    /// `::1`.
    pub const V6_LOOPBACK: Self = Self(1_u128.to_be_bytes());

    /// Whether both are the same, in two comparisons.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, other: Self) -> bool {
        u128::from_ne_bytes(self.0) == u128::from_ne_bytes(other.0)
    }

    /// Whether it is 127.0.0.0/8 (RFC 1122, 3.2.1.3).
    #[inline(always)]
    #[must_use]
    pub const fn is_v4_loopback(self) -> bool {
        u128::from_be_bytes(self.0) >> 24 == 0x00ff_ff7f
    }
}

/// The protocols that rules are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp = 6,
    /// IP protocol 17.
    Udp = 17,
}

/// The entry of one (protocol, port) in `PORTS`: all that traffic which no
/// rule concerns has to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortEntry {
    /// Where packets to this port go, when [`Self::MATCH`] is set. Host order.
    pub target: u16,
    /// The rule that says so: the index of its counters.
    pub rule: u16,
    /// [`Self::MATCH`], [`Self::TARGET`] and [`Self::DRAIN`].
    pub flags: u32,
}

impl PortEntry {
    /// A rule redirects packets to this port.
    pub const MATCH: u32 = 1;
    /// Some rule redirects packets here.
    pub const TARGET: u32 = 2;
    /// Of the packets to this port only those of known flows are redirected.
    pub const DRAIN: u32 = 4;
    /// Number of entries: 65 536 for TCP, then as many for UDP.
    pub const COUNT: u32 = 2 << 16;

    /// The index of a port in the array.
    #[inline(always)]
    #[must_use]
    pub const fn index(protocol: Protocol, port: Port) -> u32 {
        let half = match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1 << 16,
        };
        half | port.get() as u32
    }

    /// Whether a rule redirects packets to this port.
    #[inline(always)]
    #[must_use]
    pub const fn is_match(self) -> bool {
        self.flags & Self::MATCH != 0
    }

    /// Whether a rule redirects packets from elsewhere to this port.
    #[inline(always)]
    #[must_use]
    pub const fn is_target(self) -> bool {
        self.flags & Self::TARGET != 0
    }

    /// Whether no new flows are redirected.
    #[inline(always)]
    #[must_use]
    pub const fn is_draining(self) -> bool {
        self.flags & Self::DRAIN != 0
    }
}

/// One flow, seen from this host: key of the flow tables.
///
/// In `TCP`, `SYN` and `UDP` it is the translated flow, as the server's socket
/// knows it; in `REMAP` it is the original one, as the client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct FlowKey {
    /// The remote end.
    pub client: Addr,
    /// The address of this host that the client dialled.
    pub local: Addr,
    /// The port of the remote end.
    pub client_port: Port,
    /// The port of this host.
    pub local_port: Port,
    /// [`Protocol`].
    pub protocol: u8,
    /// IP version, 4 or 6.
    pub version: u8,
    /// Always zero.
    pub pad: [u8; 2],
}

impl FlowKey {
    /// As it lies in memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[..16].copy_from_slice(&self.client.0);
        bytes[16..32].copy_from_slice(&self.local.0);
        bytes[32..34].copy_from_slice(&self.client_port.0);
        bytes[34..36].copy_from_slice(&self.local_port.0);
        bytes[36] = self.protocol;
        bytes[37] = self.version;
        bytes
    }
}

/// What the client sees of a flow: value of the flow tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// The port of this host that the client dialled.
    pub dialled_port: Port,
    /// The port the client really uses; differs from the key's on a collision.
    pub client_port: Port,
    /// The rule that made the flow; meaningless for direct flows.
    pub rule: u16,
    /// Always zero.
    pub pad: u16,
    /// When a packet of it was last seen, `CLOCK_MONOTONIC`, nanoseconds.
    pub last_seen_ns: u64,
}

/// The index of `lo`, in every network namespace (`LOOPBACK_IFINDEX` in
/// `include/net/flow.h`).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// Value of `LOCAL`: how far an address of this host reaches.
pub mod local {
    /// Dialled through any interface.
    pub const ANYWHERE: u8 = 1;
    /// Dialled through `lo` alone, as `::1` (a martian elsewhere).
    pub const LOOPBACK: u8 = 2;
}

/// Key of `COUNTERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct CounterKey {
    /// The interface the packet came in by.
    pub ifindex: u32,
    /// Index of the rule.
    pub rule: u32,
}

/// Value of `COUNTERS`, one per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets redirected; a GRO packet counts as the segments it stands for.
    pub packets: u64,
    /// Their bytes, with all headers the hook saw.
    pub bytes: u64,
    /// Flows begun.
    pub flows: u64,
    /// The last packet, `CLOCK_MONOTONIC`, nanoseconds; 0 when none.
    pub last_hit_ns: u64,
}

impl Counter {
    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.flows += other.flows;
        self.last_hit_ns = self.last_hit_ns.max(other.last_hit_ns);
    }
}

/// Key of `LISTENERS`: where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ListenerKey {
    /// The address it is bound to: [`Addr::V4_ANY`] and [`Addr::V6_ANY`] for all.
    pub addr: Addr,
    /// The port it is bound to.
    pub port: Port,
    /// Below [`Self::SLOTS`]: sockets that share address and port by
    /// `SO_REUSEPORT` are one listener each.
    pub slot: u8,
    /// Always zero.
    pub pad: u8,
}

impl ListenerKey {
    /// Sockets kept of a group, the last that came. The kernel balances over the
    /// whole group whichever is found, so one would do; the others are there when
    /// it closes.
    pub const SLOTS: u8 = 4;
}

/// Value of `DIALLED`, kept at a client's socket: which of the peers it knows
/// by another port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Dialled {
    /// In no order. Unused ones are all zero: nobody dials port 0.
    pub peers: [Peer; Self::PEERS],
    /// The index to use next when all are used.
    pub next: u32,
}

/// One peer of a client's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Peer {
    /// Its address.
    pub addr: Addr,
    /// The port it really has.
    pub port: Port,
    /// The port the client dialled.
    pub dialled_port: Port,
}

#[cfg(feature = "user")]
mod pod {
    #![expect(
        unsafe_code,
        reason = "aya reads and writes these types as plain bytes"
    )]

    use super::{Addr, Counter, CounterKey, Flow, FlowKey, ListenerKey, PortEntry};

    // SAFETY: all are `repr(C)` or `repr(transparent)`, made of integers and
    // byte arrays alone, and without padding (`tests::layout`).
    unsafe impl aya::Pod for Addr {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for CounterKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counter {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListenerKey {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layout() {
        assert_eq!(size_of::<PortEntry>(), 2 + 2 + 4);
        assert_eq!(size_of::<FlowKey>(), 16 + 16 + 2 + 2 + 1 + 1 + 2);
        assert_eq!(offset_of!(FlowKey, client_port), 32);
        assert_eq!(offset_of!(FlowKey, protocol), 36);
        assert_eq!(size_of::<Flow>(), 2 + 2 + 2 + 2 + 8);
        assert_eq!(offset_of!(Flow, last_seen_ns), 8);
        assert_eq!(size_of::<CounterKey>(), 4 + 4);
        assert_eq!(size_of::<Counter>(), 4 * 8);
        assert_eq!(size_of::<ListenerKey>(), 16 + 2 + 1 + 1);
        assert_eq!(size_of::<Dialled>(), Dialled::PEERS * (16 + 2 + 2) + 4);
    }

    #[test]
    fn v4_loopback() {
        assert!(Addr::v4([127, 255, 1, 2]).is_v4_loopback());
        assert!(!Addr::v4([128, 0, 0, 1]).is_v4_loopback());
        assert!(!Addr([0x7f; 16]).is_v4_loopback());
    }

    #[test]
    fn protocols_do_not_share_entries() {
        let last_tcp = PortEntry::index(Protocol::Tcp, Port::new(65535));
        let first_udp = PortEntry::index(Protocol::Udp, Port::new(0));
        assert_eq!(last_tcp + 1, first_udp);
        assert_eq!(
            PortEntry::index(Protocol::Udp, Port::new(65535)) + 1,
            PortEntry::COUNT
        );
    }
}
