//! Where the headers of a packet are, and what they say.

use crate::flow::{FlowKey, Segment};
use crate::net::{Addr, Flags, Port, Protocol, Version};
use crate::packed::{Packed, Word};
use crate::verdict::Reason;
use crate::wire::checksum;
use crate::wire::fields::{ipv4, ipv6, tcp, udp};
use crate::wire::frame::{Check, Frame, be16};

/// One of the two ends of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The source.
    Src,
    /// The destination.
    Dst,
}

impl End {
    const fn other(self) -> Self {
        match self {
            Self::Src => Self::Dst,
            Self::Dst => Self::Src,
        }
    }
}

/// The payload of the IP header, as far as the datapath cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// TCP or UDP.
    Ports(Protocol),
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp,
}

/// The headers of a packet: what they are, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The IP version.
    pub version: Version,
    /// The offset of the IP header.
    pub network: usize,
    /// The offset of the TCP, UDP or ICMP header.
    pub transport: usize,
    /// The kind of header at `transport`.
    pub payload: Payload,
    /// Whether the packet is the first of several fragments, not the whole datagram.
    pub is_fragment: bool,
}

/// The greatest offset of a header.
///
/// Two VLAN tags, IPv6 with six extension headers of 2 048 bytes at most, ICMPv6 and as
/// much again in the quote end before. The verifier needs a bound on every offset.
pub const MAX_OFFSET: usize = 0x7fff;

/// The greatest number of extension headers: more of them hide the ports.
pub const MAX_EXTENSION_HEADERS: usize = 6;

impl Packet {
    /// The checksum that covers the ports of a packet of a [`Shape`](super::shape::Shape)
    /// in the first `len` bytes, as [`Self::check`] finds it. `None` also when the
    /// length in the headers is zero, as in a packet that is too long for the field.
    #[inline(always)]
    pub(crate) fn shape_check(
        &self,
        frame: &impl Frame,
        len: usize,
        protocol: Protocol,
    ) -> Option<Check> {
        let field = |offset| be16(frame, offset).map(usize::from);
        let end = match self.version {
            Version::V4 => self.network + field(self.network + ipv4::TOTAL_LEN)?,
            Version::V6 => self.transport + field(self.network + ipv6::PAYLOAD_LEN)?,
        };
        // The header, or the datagram, and the least that it can be.
        let (claimed, least, offset, kind) = match protocol {
            Protocol::Tcp => {
                let header = field(self.transport + tcp::DATA_OFFSET)? >> 12 << 2;
                (header, tcp::LEN, tcp::CHECKSUM, checksum::Kind::Plain)
            }
            Protocol::Udp => {
                let datagram = field(self.transport + udp::LEN)?;
                (
                    datagram,
                    udp::HEADER_LEN,
                    udp::CHECKSUM,
                    checksum::Kind::Udp,
                )
            }
        };
        frame.half(self.transport + offset)?;
        let is_sound = claimed >= least && self.transport + claimed <= end && end <= len;
        is_sound.then_some(Check {
            offset: self.transport + offset,
            kind,
        })
    }

    /// The protocol of the ports.
    ///
    /// # Errors
    ///
    /// [`Reason::NoRule`] for ICMP.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> Result<Protocol, Reason> {
        match self.payload {
            Payload::Ports(protocol) => Ok(protocol),
            Payload::Icmp => Err(Reason::NoRule),
        }
    }

    /// A flow key with the addresses of the packet and without ports; `local`
    /// says which address is this host's.
    ///
    /// # Errors
    ///
    /// [`Reason::Malformed`], which [`Self::parse`] has already excluded.
    #[inline(always)]
    pub fn key(
        &self,
        frame: &impl Frame,
        local: End,
        protocol: Protocol,
    ) -> Result<FlowKey, Reason> {
        Ok(FlowKey {
            client: self.addr(frame, local.other())?,
            local: self.addr(frame, local)?,
            client_port: Port::default(),
            local_port: Port::default(),
            protocol: protocol as u8,
            version: self.version as u8,
            pad: [0; 2],
        })
    }

    /// The address of one end.
    ///
    /// # Errors
    ///
    /// [`Reason::Malformed`], which [`Self::parse`] has already excluded.
    #[inline(always)]
    pub fn addr(&self, frame: &impl Frame, end: End) -> Result<Addr, Reason> {
        let offset = self.addr_offset(end);
        let addr = match self.version {
            Version::V4 => frame.words(offset).map(Addr::v4_word),
            Version::V6 => frame.words(offset).map(Addr::from_words),
        };
        addr.ok_or(Reason::Malformed)
    }

    /// The offset of the address of one end in the frame.
    #[inline(always)]
    #[must_use]
    pub const fn addr_offset(&self, end: End) -> usize {
        self.network
            + match (self.version, end) {
                (Version::V4, End::Src) => ipv4::SRC,
                (Version::V4, End::Dst) => ipv4::DST,
                (Version::V6, End::Src) => ipv6::SRC,
                (Version::V6, End::Dst) => ipv6::DST,
            }
    }

    /// The source and the destination port of a TCP or UDP packet.
    ///
    /// # Errors
    ///
    /// [`Reason::Malformed`] when the packet ends before them.
    #[inline(always)]
    pub fn ports(&self, frame: &impl Frame) -> Result<(Port, Port), Reason> {
        let [ports] = frame.words(self.transport).ok_or(Reason::Malformed)?;
        Ok(Port::pair(ports))
    }

    /// The checksum that covers the ports, once the lengths in the headers
    /// were found to agree with each other and with the frame.
    ///
    /// # Errors
    ///
    /// [`Reason::Malformed`], or [`Reason::FragmentTooShort`] for a first
    /// fragment that ends before the TCP checksum.
    #[inline(always)]
    pub fn check(&self, frame: &impl Frame, protocol: Protocol) -> Result<Check, Reason> {
        let len = self.transport_len(frame)?;
        match protocol {
            Protocol::Tcp => self.tcp_check(frame, len),
            Protocol::Udp => self.udp_check(frame, len),
        }
    }

    #[inline(always)]
    fn tcp_check(&self, frame: &impl Frame, len: usize) -> Result<Check, Reason> {
        if self.is_fragment && len < tcp::CHECKSUM + 2 {
            return Err(Reason::FragmentTooShort);
        }
        if !self.is_fragment {
            let field = be16(frame, self.transport + tcp::DATA_OFFSET).ok_or(Reason::Malformed)?;
            let header = usize::from(field >> 12) * 4;
            if header < tcp::LEN || header > len {
                return Err(Reason::Malformed);
            }
        }
        let offset = self.transport + tcp::CHECKSUM;
        frame.half(offset).ok_or(Reason::Malformed)?;
        Ok(Check {
            offset,
            kind: checksum::Kind::Plain,
        })
    }

    #[inline(always)]
    fn udp_check(&self, frame: &impl Frame, len: usize) -> Result<Check, Reason> {
        // The second word is length and checksum.
        let [_, field] = frame.words(self.transport).ok_or(Reason::Malformed)?;
        let datagram = (u32::from_be(field) >> 16) as usize;
        // RFC 2675: zero for a datagram over 65 535 bytes, which only
        // GRO builds.
        let is_jumbo = datagram == 0 && len > 0xffff;
        if len < udp::HEADER_LEN {
            return Err(Reason::Malformed);
        }
        let is_short = datagram < udp::HEADER_LEN;
        if !is_jumbo && (is_short || (!self.is_fragment && datagram > len)) {
            return Err(Reason::Malformed);
        }
        Ok(Check {
            offset: self.transport + udp::CHECKSUM,
            kind: checksum::Kind::Udp,
        })
    }

    /// The number of bytes from the transport header to the end of the IP packet, which
    /// may be less than the frame has (Ethernet padding).
    #[inline(always)]
    pub(crate) fn transport_len(&self, frame: &impl Frame) -> Result<usize, Reason> {
        let available = frame
            .len()
            .checked_sub(self.network)
            .ok_or(Reason::Malformed)?;
        let (field, fixed) = match self.version {
            Version::V4 => (self.network + ipv4::TOTAL_LEN, 0),
            Version::V6 => (self.network + ipv6::PAYLOAD_LEN, ipv6::LEN),
        };
        let field = be16(frame, field).ok_or(Reason::Malformed)?;
        let field = usize::from(field);
        // A GRO packet over 64 KiB ("BIG TCP") has no room for its length.
        let total = if field == 0 && available > 0xffff {
            available
        } else {
            field + fixed
        };
        if total > available {
            return Err(Reason::Malformed);
        }
        (self.network + total)
            .checked_sub(self.transport)
            .ok_or(Reason::Malformed)
    }
}

/// **Shape**, from the lowest bit: offset of the IP header 16, offset of the transport
/// header 16, payload 4, IPv6, first fragment.
impl Packed for Packet {
    #[inline(always)]
    fn pack(self) -> u64 {
        let payload = match self.payload {
            Payload::Ports(Protocol::Tcp) => Self::TCP,
            Payload::Ports(Protocol::Udp) => Self::UDP,
            Payload::Icmp => Self::ICMP,
        };
        let is_v6 = self.version == Version::V6;
        let v6 = if is_v6 { Self::V6 } else { 0 };
        let fragment = if self.is_fragment { Self::FRAGMENT } else { 0 };
        let (network, transport) = (self.network as u64, self.transport as u64);
        network | transport << Self::TRANSPORT | payload << Self::PAYLOAD | v6 | fragment
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        let payload = match word >> Self::PAYLOAD & 0xf {
            Self::TCP => Payload::Ports(Protocol::Tcp),
            Self::UDP => Payload::Ports(Protocol::Udp),
            _ => Payload::Icmp,
        };
        let is_v6 = word & Self::V6 != 0;
        let offset = |word| usize::from(u16::unpack(word)) & MAX_OFFSET;
        Self {
            version: if is_v6 { Version::V6 } else { Version::V4 },
            network: offset(word),
            transport: offset(word >> Self::TRANSPORT),
            payload,
            is_fragment: word & Self::FRAGMENT != 0,
        }
    }
}

impl Packet {
    const TRANSPORT: u32 = 16;
    const PAYLOAD: u32 = 32;
    const V6: u64 = 1 << 36;
    const FRAGMENT: u64 = 1 << 37;
    const TCP: u64 = 1;
    const UDP: u64 = 2;
    const ICMP: u64 = 3;

    /// Whether the word of a packet, or of a reason, is one of ICMP.
    #[inline(always)]
    pub(crate) fn is_icmp(word: Word<Result<Self, Reason>>) -> bool {
        word.bits() >> Self::PAYLOAD & 0xf == Self::ICMP
    }
}

/// The flags of a packet; a UDP packet has those of a SYN.
#[inline(always)]
pub(crate) fn flags(
    frame: &impl Frame,
    packet: &Packet,
    protocol: Protocol,
) -> Result<Flags, Reason> {
    match protocol {
        Protocol::Udp => Ok(Flags::SYN),
        Protocol::Tcp => {
            let field = be16(frame, packet.transport + tcp::DATA_OFFSET);
            Ok(Flags(field.ok_or(Reason::Malformed)? & 0xff))
        }
    }
}

/// The segment of a packet; `local` says which end is this host, or the target. Of a packet
/// of a client the number is the one that it acknowledges.
#[inline(always)]
pub(crate) fn segment(
    frame: &impl Frame,
    packet: &Packet,
    (protocol, local): (Protocol, End),
) -> Result<Segment, Reason> {
    if protocol == Protocol::Udp {
        return Ok(Segment::UDP);
    }
    let flags = flags(frame, packet, protocol)?;
    let offset = match local {
        End::Dst => tcp::ACKNOWLEDGED,
        End::Src => tcp::SEQUENCE,
    };
    let [number] = frame
        .words(packet.transport + offset)
        .ok_or(Reason::Malformed)?;
    Ok(Segment {
        flags,
        number: u32::from_be(number),
    })
}
