//! From the first byte of a frame to its ports.
//!
//! Ethernet with up to two VLAN tags in band (IEEE 802.1Q, 802.1ad), IPv4 with
//! options (RFC 791), IPv6 with extension headers (RFC 8200), TCP, UDP, ICMP.
//! Everything read here is hostile: nothing is trusted that was not compared.

use crate::abi::{Addr, FlowKey, Port, Protocol};
use crate::csum;
use crate::verdict::{self, Reason};

/// Bytes of one packet, and the one way to change them.
#[expect(clippy::len_without_is_empty, reason = "no frame is empty")]
pub trait Frame {
    /// Bytes from the first to the last of the frame, also those that
    /// [`Self::words`] cannot reach.
    fn len(&self) -> usize;

    /// The same without those that take a call to count: not more than [`Self::len`].
    fn head_len(&self) -> usize {
        self.len()
    }

    /// How many packets of the wire this frame stands for (GRO).
    fn segments(&self) -> u32 {
        1
    }

    /// `N` words of four bytes at `offset`, as they lie in memory; `None` when the
    /// packet ends before their end.
    ///
    /// Words and not bytes, as the compiler has no registers for single bytes. The
    /// size is fixed because the verifier accepts a window whose end was compared
    /// with the packet's, and refuses a slice of any length.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;

    /// The same for two bytes.
    fn half(&self, offset: usize) -> Option<u16>;

    /// Makes the bytes before `end` readable where they are there: some drivers
    /// put headers into fragments of the buffer.
    fn reach(&mut self, _end: usize) {}

    /// `number`, of which the verifier no longer knows anything.
    ///
    /// It walks the code once per value that it can tell apart, and headers
    /// have many shapes.
    fn forget(&self, number: u64) -> u64 {
        number
    }

    /// Replaces the port at `offset`, which is `from`, by `to`, and updates
    /// the checksum at `check` that covers it.
    ///
    /// An operation and not a window because TC may change a checksum only
    /// through the kernel, which knows whether the field holds a sum or the
    /// start of one.
    ///
    /// # Errors
    ///
    /// [`Reason::WriteFailed`] when the kernel refuses.
    fn set_port(&mut self, offset: usize, from: Port, to: Port, check: Check)
    -> Result<(), Reason>;
}

/// The checksum field that covers a port.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Where it is in the frame.
    pub offset: usize,
    /// How it treats zero.
    pub kind: csum::Kind,
}

/// What a frame of a device begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: tun, WireGuard, PPP, IP tunnels.
    Ip,
}

impl Link {
    /// Bytes before the IP header, without VLAN tags.
    const fn len(self) -> usize {
        match self {
            Self::Ethernet => 14,
            Self::Ip => 0,
        }
    }
}

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Version {
    /// RFC 791.
    V4 = 4,
    /// RFC 8200.
    V6 = 6,
}

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

// As they lie in memory.
const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
const ETHERTYPE_VLAN: u16 = 0x8100_u16.to_be();
const ETHERTYPE_QINQ: u16 = 0x88a8_u16.to_be();

const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const AUTHENTICATION: u32 = 51;
const DESTINATION_OPTIONS: u32 = 60;
const ICMP: u32 = 1;
const ICMPV6: u32 = 58;

/// No header we read starts behind this: two VLAN tags, IPv6 with six
/// extension headers of 2 048 bytes at most, ICMPv6 and as much again in the
/// quote. The verifier needs a bound on every offset.
pub const MAX_OFFSET: usize = 0x7fff;

/// More extension headers than this hide the ports from us.
pub const MAX_EXTENSION_HEADERS: usize = 6;

impl Packet {
    /// Finds the headers of a frame.
    ///
    /// # Errors
    ///
    /// [`Reason::NoRule`] for all that is not the first bytes of a TCP, UDP or
    /// ICMP packet; [`Reason::ExtensionHeader`] and [`Reason::Malformed`].
    #[inline(always)]
    pub fn parse(frame: &mut impl Frame, link: Link) -> Result<Self, Reason> {
        Self::from_word(find_apart(frame, link))
    }

    /// The headers of a frame of the shape that most have: no VLAN tag, no IP options
    /// or extension headers, TCP or UDP, whole.
    #[inline(always)]
    pub(crate) fn plain<F: Frame>(frame: &F, link: Link) -> Option<(Version, Protocol)> {
        let network = link.len();
        let version = match link {
            Link::Ethernet => ethernet_version(frame.half(12)?)?,
            Link::Ip => ip_version(frame.half(0)?)?,
        };
        let protocol = match version {
            Version::V4 => {
                let header: [u32; 3] = frame.words(network)?;
                let is_whole = u32::from_be(header[1]) & 0x3fff == 0;
                if u32::from_be(header[0]) >> 24 != 0x45 || !is_whole {
                    return None;
                }
                u32::from_be(header[2]) >> 16
            }
            Version::V6 => {
                let header: [u32; 2] = frame.words(network)?;
                if u32::from_be(header[0]) >> 28 != 6 {
                    return None;
                }
                u32::from_be(header[1]) >> 8
            }
        };
        match protocol & 0xff {
            6 => Some((version, Protocol::Tcp)),
            17 => Some((version, Protocol::Udp)),
            _ => None,
        }
    }

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
                (header, 20, 16, csum::Kind::Plain)
            }
            Protocol::Udp => (field(self.transport + 4)?, 8, 6, csum::Kind::Udp),
        };
        frame.half(self.transport + offset)?;
        let is_sound = claimed >= least && self.transport + claimed <= end && end <= len;
        is_sound.then_some(Check {
            offset: self.transport + offset,
            kind,
        })
    }

    /// Finds the headers of the packet whose IP header is at `network`.
    ///
    /// # Errors
    ///
    /// As [`Self::parse`].
    #[inline(always)]
    pub fn network(
        frame: &mut impl Frame,
        network: usize,
        version: Version,
    ) -> Result<Self, Reason> {
        Self::from_word(find_at(frame, network, version))
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
    fn result_to_word(packet: Result<Self, Reason>) -> u64 {
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
                    kind: csum::Kind::Plain,
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
                    kind: csum::Kind::Udp,
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

// The verifier does not walk what comes behind these once for each shape of
// headers: they forget it. What is not inlined is so for the BPF stack.

/// The headers of a frame, as one number.
#[inline(never)]
pub(crate) fn find_apart<F: Frame>(frame: &mut F, link: Link) -> u64 {
    let start = match link {
        Link::Ethernet => ethernet(frame),
        Link::Ip => version(frame, 0).map(|version| (0, version)),
    };
    let packet = start.and_then(|(network, version)| ip(frame, network, version));
    frame.forget(Packet::result_to_word(packet))
}

#[inline(never)]
fn find_at<F: Frame>(frame: &mut F, network: usize, version: Version) -> u64 {
    let packet = ip(frame, network, version);
    frame.forget(Packet::result_to_word(packet))
}

/// [`Packet::key`], with its ports. Of a packet that was not found to have them it is
/// one of nobody's.
#[inline(never)]
pub(crate) fn key_apart<F: Frame>(frame: &F, packet: u64, local: End) -> FlowKey {
    let read = || {
        let packet = Packet::from_word(packet)?;
        let (src, dst) = packet.ports(frame)?;
        let mut key = packet.key(frame, local, packet.protocol()?)?;
        (key.client_port, key.local_port) = match local {
            End::Dst => (src, dst),
            End::Src => (dst, src),
        };
        Ok::<_, Reason>(key)
    };
    read().unwrap_or(FlowKey {
        client: Addr::V4_ANY,
        local: Addr::V4_ANY,
        client_port: Port::default(),
        local_port: Port::default(),
        protocol: 0,
        version: 0,
        pad: [0; 2],
    })
}

/// [`Packet::check`].
#[inline(always)]
pub(crate) fn check_apart<F: Frame>(frame: &F, packet: u64) -> Result<Check, Reason> {
    #[inline(never)]
    fn offset<F: Frame>(frame: &F, packet: u64) -> u64 {
        let check = || {
            let packet = Packet::from_word(packet)?;
            packet.check(frame, packet.protocol()?)
        };
        verdict::to_word(check().map(|check| check.offset as u64))
    }
    let protocol = Packet::from_word(packet)?.protocol()?;
    #[expect(clippy::cast_possible_truncation, reason = "not above MAX_OFFSET")]
    let offset = verdict::from_word(offset(frame, packet))? as usize & MAX_OFFSET;
    let kind = match protocol {
        Protocol::Tcp => csum::Kind::Plain,
        Protocol::Udp => csum::Kind::Udp,
    };
    Ok(Check { offset, kind })
}

/// As much of a TCP, UDP or ICMP header as is read.
const TRANSPORT: usize = 20;

#[inline(always)]
fn ip<F: Frame>(frame: &mut F, network: usize, version: Version) -> Result<Packet, Reason> {
    let packet = match version {
        Version::V4 => ipv4(frame, network)?,
        Version::V6 => ipv6(frame, network)?,
    };
    frame.reach(packet.transport + TRANSPORT);
    Ok(packet)
}

/// Offset and version of the IP header behind an Ethernet header.
#[inline(always)]
fn ethernet<F: Frame>(frame: &mut F) -> Result<(usize, Version), Reason> {
    frame.reach(14);
    let mut ethertype = frame.half(12).ok_or(Reason::NoRule)?;
    let mut offset = 14;
    for _ in 0..2 {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        frame.reach(offset + 4);
        ethertype = frame.half(offset + 2).ok_or(Reason::NoRule)?;
        // One tag is then like two.
        #[expect(clippy::cast_possible_truncation, reason = "at most 22")]
        let behind = frame.forget(offset as u64 + 4) as usize & MAX_OFFSET;
        // Masked, as older kernels lose a bound that is compared with later.
        offset = behind;
    }
    let version = ethernet_version(ethertype).ok_or(Reason::NoRule)?;
    Ok((offset, version))
}

#[inline(always)]
const fn ethernet_version(ethertype: u16) -> Option<Version> {
    match ethertype {
        ETHERTYPE_IPV4 => Some(Version::V4),
        ETHERTYPE_IPV6 => Some(Version::V6),
        _ => None,
    }
}

/// By the first two bytes of an IP header.
#[inline(always)]
const fn ip_version(first: u16) -> Option<Version> {
    match u16::from_be(first) >> 12 {
        4 => Some(Version::V4),
        6 => Some(Version::V6),
        _ => None,
    }
}

#[inline(always)]
fn version<F: Frame>(frame: &mut F, network: usize) -> Result<Version, Reason> {
    frame.reach(network + 2);
    let first = frame.half(network).ok_or(Reason::NoRule)?;
    ip_version(first).ok_or(Reason::NoRule)
}

#[inline(always)]
fn ipv4<F: Frame>(frame: &mut F, network: usize) -> Result<Packet, Reason> {
    frame.reach(network + 20);
    let header: [u32; 5] = frame.words(network).ok_or(Reason::NoRule)?;
    let first = u32::from_be(header[0]) >> 24;
    let header_len = (first & 0x0f) as usize * 4;
    if first >> 4 != 4 || header_len < 20 {
        return Err(Reason::NoRule);
    }
    let payload = match (u32::from_be(header[2]) >> 16) & 0xff {
        6 => Payload::Ports(Protocol::Tcp),
        17 => Payload::Ports(Protocol::Udp),
        ICMP => Payload::Icmp,
        _ => return Err(Reason::NoRule),
    };
    let fragment = u32::from_be(header[1]);
    if fragment & 0x1fff != 0 {
        // Not the first: what stands where the ports would be is payload.
        return Err(Reason::NoRule);
    }
    Ok(Packet {
        version: Version::V4,
        network,
        transport: network + header_len,
        payload,
        is_fragment: fragment & 0x2000 != 0,
    })
}

#[inline(always)]
fn ipv6<F: Frame>(frame: &mut F, network: usize) -> Result<Packet, Reason> {
    frame.reach(network + 40);
    let header: [u32; 2] = frame.words(network).ok_or(Reason::NoRule)?;
    if u32::from_be(header[0]) >> 28 != 6 {
        return Err(Reason::NoRule);
    }
    let mut next = (u32::from_be(header[1]) >> 8) & 0xff;
    let mut transport = network + 40;
    let mut is_fragment = 0;
    // One round more than there may be headers, to look at what comes last.
    for _ in 0..=MAX_EXTENSION_HEADERS {
        let payload = match next {
            6 => Payload::Ports(Protocol::Tcp),
            17 => Payload::Ports(Protocol::Udp),
            ICMPV6 => Payload::Icmp,
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT => {
                frame.reach(transport + 8);
                let [extension, _] = frame.words(transport).ok_or(Reason::Malformed)?;
                let extension = u32::from_be(extension);
                if next == FRAGMENT {
                    if extension & 0xfff8 != 0 {
                        return Err(Reason::NoRule);
                    }
                    is_fragment |= extension & 1;
                    transport += 8;
                } else {
                    // Segments left: the destination, and with it the sum, is
                    // not the final one (RFC 8200, 4.4 and 8.1).
                    if next == ROUTING && extension & 0xff != 0 {
                        return Err(Reason::ExtensionHeader);
                    }
                    transport += 8 + ((extension >> 16) & 0xff) as usize * 8;
                }
                next = extension >> 24;
                // One round is then like another.
                let packed = frame.forget((transport as u64) << 1 | u64::from(is_fragment));
                #[expect(clippy::cast_possible_truncation, reason = "it was 32 bits")]
                let packed = packed as u32;
                (transport, is_fragment) = ((packed >> 1) as usize & MAX_OFFSET, packed & 1);
                continue;
            }
            // Covers the ports by a digest that we cannot renew (RFC 4302).
            AUTHENTICATION => return Err(Reason::ExtensionHeader),
            _ => return Err(Reason::NoRule),
        };
        return Ok(Packet {
            version: Version::V6,
            network,
            transport,
            payload,
            is_fragment: is_fragment != 0,
        });
    }
    Err(Reason::ExtensionHeader)
}
