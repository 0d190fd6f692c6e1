//! Where the headers of a packet are, and what they say.

use crate::flow::FlowKey;
use crate::net::{Addr, Flags, Port, Protocol, Version};
use crate::verdict::Reason;
use crate::wire::checksum;
use crate::wire::frame::{Check, Frame, Link};

/// One of the two ends of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where it comes from.
    Src,
    /// Where it goes.
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

/// What follows the IP header, as far as we care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// TCP or UDP.
    Ports(Protocol),
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp,
}

/// Where the headers of a packet are.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// IP version.
    pub version: Version,
    /// Offset of the IP header.
    pub network: usize,
    /// Offset of the TCP, UDP or ICMP header.
    pub transport: usize,
    /// Which of them it is.
    pub payload: Payload,
    /// Whether this is the first of several fragments, not the whole datagram.
    pub is_fragment: bool,
}

/// No header we read starts behind this: two VLAN tags, IPv6 with six
/// extension headers of 2 048 bytes at most, ICMPv6 and as much again in the
/// quote. The verifier needs a bound on every offset.
pub const MAX_OFFSET: usize = 0x7fff;

/// More extension headers than this hide the ports from us.
pub const MAX_EXTENSION_HEADERS: usize = 6;

impl Packet {
    /// What [`Self::plain`] found.
    #[inline(always)]
    pub(crate) const fn of_plain(link: Link, version: Version, protocol: Protocol) -> Self {
        let network = link.len();
        let header = match version {
            Version::V4 => 20,
            Version::V6 => 40,
        };
        Self {
            version,
            network,
            transport: network + header,
            payload: Payload::Ports(protocol),
            is_fragment: false,
        }
    }

    /// [`Self::check`] of such a packet; `None` also when its length is zero, as of a
    /// packet that has no room for it.
    #[inline(always)]
    pub(crate) fn plain_check(
        &self,
        frame: &impl Frame,
        len: usize,
        protocol: Protocol,
    ) -> Option<Check> {
        let field = |offset| {
            let field = frame.half(offset)?;
            Some(usize::from(u16::from_be(field)))
        };
        let end = match self.version {
            Version::V4 => self.network + field(self.network + 2)?,
            Version::V6 => self.transport + field(self.network + 4)?,
        };
        // The header, or the datagram, and the least that it can be.
        let (claimed, least, offset, kind) = match protocol {
            Protocol::Tcp => {
                let header = field(self.transport + 12)? >> 12 << 2;
                (header, 20, 16, checksum::Kind::Plain)
            }
            Protocol::Udp => (field(self.transport + 4)?, 8, 6, checksum::Kind::Udp),
        };
        frame.half(self.transport + offset)?;
        let is_sound = claimed >= least && self.transport + claimed <= end && end <= len;
        is_sound.then_some(Check {
            offset: self.transport + offset,
            kind,
        })
    }

    /// Whose ports it has.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> Result<Protocol, Reason> {
        match self.payload {
            Payload::Ports(protocol) => Ok(protocol),
            Payload::Icmp => Err(Reason::NoRule),
        }
    }

    const TRANSPORT: u32 = 16;
    const KIND: u32 = 32;
    const V6: u64 = 1 << 36;
    const FIRST_FRAGMENT: u64 = 1 << 37;

    /// As one number, the way a BPF function returns it.
    #[inline(always)]
    fn to_word(self) -> u64 {
        let kind = match self.payload {
            Payload::Ports(Protocol::Tcp) => 1,
            Payload::Ports(Protocol::Udp) => 2,
            Payload::Icmp => 3,
        };
        let is_v6 = self.version == Version::V6;
        let v6 = if is_v6 { Self::V6 } else { 0 };
        let fragment = if self.is_fragment {
            Self::FIRST_FRAGMENT
        } else {
            0
        };
        let (network, transport) = (self.network as u64, self.transport as u64);
        network | transport << Self::TRANSPORT | kind << Self::KIND | v6 | fragment
    }

    #[inline(always)]
    pub(crate) const fn is_icmp(word: u64) -> bool {
        word >> Self::KIND & 0xf == 3
    }

    #[inline(always)]
    pub(crate) fn from_word(word: u64) -> Result<Self, Reason> {
        let payload = match word >> Self::KIND & 0xf {
            1 => Payload::Ports(Protocol::Tcp),
            2 => Payload::Ports(Protocol::Udp),
            3 => Payload::Icmp,
            4 => return Err(Reason::Malformed),
            5 => return Err(Reason::ExtensionHeader),
            _ => return Err(Reason::NoRule),
        };
        let is_v6 = word & Self::V6 != 0;
        #[expect(clippy::cast_possible_truncation, reason = "16 bits of it")]
        let offset = |shift: u32| usize::from((word >> shift) as u16) & MAX_OFFSET;
        Ok(Self {
            version: if is_v6 { Version::V6 } else { Version::V4 },
            network: offset(0),
            transport: offset(Self::TRANSPORT),
            payload,
            is_fragment: word & Self::FIRST_FRAGMENT != 0,
        })
    }

    #[inline(always)]
    pub(crate) fn result_to_word(packet: Result<Self, Reason>) -> u64 {
        match packet {
            Ok(packet) if packet.transport <= MAX_OFFSET => packet.to_word(),
            Ok(_) | Err(Reason::Malformed) => 4 << Self::KIND,
            Err(Reason::ExtensionHeader) => 5 << Self::KIND,
            Err(_) => 0,
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
    /// As [`Self::key`].
    #[inline(always)]
    pub fn addr(&self, frame: &impl Frame, end: End) -> Result<Addr, Reason> {
        let is_dst = usize::from(end == End::Dst);
        let addr = match self.version {
            Version::V4 => frame
                .words(self.network + 12 + is_dst * 4)
                .map(Addr::v4_word),
            Version::V6 => frame
                .words(self.network + 8 + is_dst * 16)
                .map(Addr::from_words),
        };
        addr.ok_or(Reason::Malformed)
    }

    /// Source and destination port of a TCP or UDP packet.
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
            Protocol::Tcp => {
                if self.is_fragment && len < 18 {
                    return Err(Reason::FragmentTooShort);
                }
                if !self.is_fragment {
                    let field = frame.half(self.transport + 12).ok_or(Reason::Malformed)?;
                    let header = usize::from(u16::from_be(field) >> 12) * 4;
                    if header < 20 || header > len {
                        return Err(Reason::Malformed);
                    }
                }
                frame.half(self.transport + 16).ok_or(Reason::Malformed)?;
                Ok(Check {
                    offset: self.transport + 16,
                    kind: checksum::Kind::Plain,
                })
            }
            Protocol::Udp => {
                let [_, field] = frame.words(self.transport).ok_or(Reason::Malformed)?;
                let datagram = (u32::from_be(field) >> 16) as usize;
                // RFC 2675: zero for a datagram over 65 535 bytes, which only
                // GRO builds.
                let is_jumbo = datagram == 0 && len > 0xffff;
                if len < 8 {
                    return Err(Reason::Malformed);
                }
                if !is_jumbo && (datagram < 8 || (!self.is_fragment && datagram > len)) {
                    return Err(Reason::Malformed);
                }
                Ok(Check {
                    offset: self.transport + 6,
                    kind: checksum::Kind::Udp,
                })
            }
        }
    }

    /// Bytes from the transport header to the end of the IP packet, which may
    /// be less than the frame has (Ethernet padding).
    #[inline(always)]
    pub(crate) fn transport_len(&self, frame: &impl Frame) -> Result<usize, Reason> {
        let available = frame
            .len()
            .checked_sub(self.network)
            .ok_or(Reason::Malformed)?;
        let (field, fixed) = match self.version {
            Version::V4 => (self.network + 2, 0),
            Version::V6 => (self.network + 4, 40),
        };
        let field = frame.half(field).ok_or(Reason::Malformed)?;
        let field = usize::from(u16::from_be(field));
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

/// The flags of a TCP packet.
#[inline(always)]
pub(crate) fn tcp_flags(frame: &impl Frame, packet: &Packet) -> Result<Flags, Reason> {
    let field = frame.half(packet.transport + 12).ok_or(Reason::Malformed)?;
    Ok(Flags(u16::from_be(field) & 0xff))
}
