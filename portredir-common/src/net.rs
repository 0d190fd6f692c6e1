//! Ports, addresses and protocols, as headers and maps have them.
//!
//! All of them lie in memory as they lie in a packet: in network byte order. A
//! number is in host order; [`Port::new`] and [`Port::get`] are the one way from one
//! to the other.

use core::net::IpAddr;

/// A TCP or UDP port.
///
/// **Byte order**: network order in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Port(u16);

impl Port {
    /// Port 0, which no socket can listen on: `bind` takes it for any free port.
    pub const CLOSED: Self = Self(0);

    /// The port of a number.
    #[inline(always)]
    #[must_use]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    /// The number of this port.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The port of two bytes that were loaded from memory.
    #[inline(always)]
    #[must_use]
    pub const fn from_half(half: u16) -> Self {
        Self(half)
    }

    /// The two bytes that this port is in memory.
    #[inline(always)]
    #[must_use]
    pub const fn half(self) -> u16 {
        self.0
    }

    /// The two ports of a word of four bytes that was loaded from memory.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the halves")]
    pub const fn pair(word: u32) -> (Self, Self) {
        let (low, high) = (Self(word as u16), Self((word >> 16) as u16));
        if cfg!(target_endian = "little") {
            (low, high)
        } else {
            (high, low)
        }
    }

    /// The bytes of this port in network order.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }
}

/// A port in the value of a pinned map that has always held it in host order.
///
/// **Byte order**: host order in memory. A program of another version may read or
/// have written the map, so the layout stays; this type is the one place that knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct HostPort(u16);

impl HostPort {
    /// The form of a port that such a map holds.
    #[inline(always)]
    #[must_use]
    pub const fn new(port: Port) -> Self {
        Self(port.get())
    }

    /// The port.
    #[inline(always)]
    #[must_use]
    pub const fn port(self) -> Port {
        Port::new(self.0)
    }

    /// Whether the place in the map is unused: nobody listens on port 0.
    #[inline(always)]
    #[must_use]
    pub const fn is_unused(self) -> bool {
        self.0 == 0
    }
}

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
///
/// **Shape**: four words of four bytes, in network order in memory. They are words
/// because the compiler keeps words in registers and each byte on the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Addr([u32; 4]);

impl Addr {
    /// The address of 16 bytes in network order.
    #[must_use]
    pub const fn new(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The mapped form of an IPv4 address in network order.
    #[must_use]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self::v4_word([u32::from_ne_bytes(octets)])
    }

    /// The mapped form of an IPv4 address that was loaded from memory.
    #[inline(always)]
    #[must_use]
    pub const fn v4_word([word]: [u32; 1]) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), word])
    }

    /// The address of four words that were loaded from memory.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The four words that this address is in memory.
    #[inline(always)]
    #[must_use]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// The bytes of this address in network order.
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
            self.0[3].to_ne_bytes(),
        ];
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// The length of an address in bits.
    pub const BITS: u32 = 128;

    /// 0.0.0.0, the address of servers that listen on all IPv4 addresses.
    pub const V4_ANY: Self = Self::v4([0; 4]);
    /// `::`, the address of servers that listen on all addresses.
    pub const V6_ANY: Self = Self([0; 4]);
    /// 127.0.0.1.
    pub const V4_LOOPBACK: Self = Self::v4([127, 0, 0, 1]);
    /// `::1`.
    pub const V6_LOOPBACK: Self = Self::new(1_u128.to_be_bytes());

    /// The two words of eight bytes that this address is in memory.
    #[inline(always)]
    #[must_use]
    pub const fn long_words(self) -> [u64; 2] {
        let [a, b, c, d] = self.0;
        if cfg!(target_endian = "little") {
            [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32]
        } else {
            [b as u64 | (a as u64) << 32, d as u64 | (c as u64) << 32]
        }
    }

    /// Whether two addresses are equal, compared without a jump for each word.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, other: Self) -> bool {
        let [a, b, c, d] = self.0;
        let [e, f, g, h] = other.0;
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        let [a, b, c, _] = self.0;
        a | b | (c ^ 0xffff_u32.to_be()) == 0
    }

    /// Whether this address is in 127.0.0.0/8 (RFC 1122, 3.2.1.3).
    #[inline(always)]
    #[must_use]
    pub const fn is_v4_loopback(self) -> bool {
        self.is_v4() && u32::from_be(self.0[3]) >> 24 == 127
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::v4(ip.octets()),
            IpAddr::V6(ip) => Self::new(ip.octets()),
        }
    }
}

/// A protocol with ports that rules can name, by its IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp = 6,
    /// IP protocol 17.
    Udp = 17,
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Version {
    /// IPv4 (RFC 791).
    V4 = 4,
    /// IPv6 (RFC 8200).
    V6 = 6,
}

/// The flags of a TCP segment, in host order (RFC 9293, 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u16);

impl Flags {
    /// The flags of a SYN; the datapath treats a UDP packet as one.
    pub const SYN: Self = Self(0x02);
    /// The flags of a segment in the middle of a connection.
    pub(crate) const ACK_ALONE: Self = Self(Self::ACK);

    /// The flags of a segment that resets its connection.
    pub(crate) const RESET: Self = Self(Self::RST);

    const FIN: u16 = 0x01;
    const RST: u16 = 0x04;
    const PSH: u16 = 0x08;
    const ACK: u16 = 0x10;

    /// Whether the segment asks for a new connection.
    #[inline(always)]
    #[must_use]
    pub const fn is_syn(self) -> bool {
        self.0 & (Self::SYN.0 | Self::RST | Self::ACK) == Self::SYN.0
    }

    /// Whether the segment begins a connection, or answers one that does.
    #[inline(always)]
    pub(crate) const fn has_syn(self) -> bool {
        self.0 & Self::SYN.0 != 0
    }

    /// Whether the segment answers a SYN: it begins nothing.
    #[inline(always)]
    #[must_use]
    pub const fn is_syn_ack(self) -> bool {
        const SYN_ACK: u16 = Flags::SYN.0 | Flags::ACK;
        self.0 & (SYN_ACK | Self::RST) == SYN_ACK
    }

    /// Whether the segment resets its connection.
    #[inline(always)]
    #[must_use]
    pub const fn is_reset(self) -> bool {
        self.0 & Self::RST != 0
    }

    /// Whether the segment is the answer of a closed port to a SYN (RFC 9293, 3.10.7.1):
    /// the RST to a segment that has an ACK itself has none.
    #[inline(always)]
    pub(crate) const fn is_refusal(self) -> bool {
        const RST_ACK: u16 = Flags::RST | Flags::ACK;
        self.0 & RST_ACK == RST_ACK
    }

    /// Whether the segment acknowledges something, and neither begins nor resets a connection.
    #[inline(always)]
    pub(crate) const fn is_acknowledgement(self) -> bool {
        self.0 & (Self::SYN.0 | Self::RST | Self::ACK) == Self::ACK
    }

    /// Whether the segment is the last one of its sender.
    #[inline(always)]
    pub(crate) const fn is_last(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// Whether the segment ends a connection, or one direction of it.
    #[inline(always)]
    pub(crate) const fn is_end(self) -> bool {
        self.0 & (Self::FIN | Self::RST) != 0
    }

    /// Whether the segment has data, or the end of some.
    #[inline(always)]
    pub(crate) const fn is_push(self) -> bool {
        self.0 & Self::PSH != 0
    }
}

/// The ifindex of `lo` in every network namespace (`LOOPBACK_IFINDEX` in
/// `include/net/flow.h`).
pub const LOOPBACK_IFINDEX: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_loopback() {
        assert!(Addr::v4([127, 255, 1, 2]).is_v4_loopback());
        assert!(!Addr::v4([128, 0, 0, 1]).is_v4_loopback());
        assert!(!Addr::new([0x7f; 16]).is_v4_loopback());
    }
}
