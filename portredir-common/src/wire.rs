//! From the first byte of a frame to its ports.
//!
//! Ethernet with up to two VLAN tags in band (IEEE 802.1Q, 802.1ad), IPv4 with
//! options (RFC 791), IPv6 with extension headers (RFC 8200), TCP, UDP, ICMP.
//! Everything read here is hostile: nothing is trusted that was not compared.

use crate::abi::{Addr, FlowKey, Port, Protocol};
use crate::csum;
use crate::verdict::Reason;

/// Bytes of one packet, and the one way to change them.
#[expect(clippy::len_without_is_empty, reason = "no frame is empty")]
pub trait Frame {
    /// Bytes from the first to the last of the frame, also those that
    /// [`Self::at`] cannot reach.
    fn len(&self) -> usize;

    /// How many packets of the wire this frame stands for (GRO).
    fn segments(&self) -> u32 {
        1
    }

    /// The `N` bytes at `offset`; `None` when the packet ends before them.
    ///
    /// The size is fixed because the verifier accepts a window whose end was
    /// compared with the packet's, and refuses a slice of any length. It is two
    /// at least: the compiler turns `start + 1 <= end` into `start < end`, from
    /// which the verifier learns nothing.
    fn at<const N: usize>(&mut self, offset: usize) -> Option<[u8; N]>;

    /// `offset`, as a number that the verifier knows nothing of but its bound.
    ///
    /// It walks the code once per value that it can tell apart, and headers
    /// have many shapes.
    fn opaque(&self, offset: usize) -> usize {
        offset
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

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
const ETHERTYPE_QINQ: [u8; 2] = [0x88, 0xa8];

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

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
        let (network, version) = match link {
            Link::Ethernet => ethernet(frame)?,
            Link::Ip => (0, version(frame, 0)?),
        };
        Self::network(frame, network, version)
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
        match version {
            Version::V4 => ipv4(frame, network),
            Version::V6 => ipv6(frame, network),
        }
    }

    /// The same, with offsets that are [`Frame::opaque`].
    #[inline(always)]
    #[must_use]
    pub fn opaque(self, frame: &impl Frame) -> Self {
        Self {
            network: frame.opaque(self.network),
            transport: frame.opaque(self.transport),
            ..self
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
        frame: &mut impl Frame,
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
    pub fn addr(&self, frame: &mut impl Frame, end: End) -> Result<Addr, Reason> {
        let is_dst = usize::from(end == End::Dst);
        let addr = match self.version {
            Version::V4 => frame.at(self.network + 12 + is_dst * 4).map(Addr::v4),
            Version::V6 => frame.at(self.network + 8 + is_dst * 16).map(Addr),
        };
        addr.ok_or(Reason::Malformed)
    }

    /// Source and destination port of a TCP or UDP packet.
    ///
    /// # Errors
    ///
    /// [`Reason::Malformed`] when the packet ends before them.
    #[inline(always)]
    pub fn ports(&self, frame: &mut impl Frame) -> Result<(Port, Port), Reason> {
        let [a, b, c, d] = frame.at::<4>(self.transport).ok_or(Reason::Malformed)?;
        Ok((Port([a, b]), Port([c, d])))
    }

    /// The checksum that covers the ports, once the lengths in the headers
    /// were found to agree with each other and with the frame.
    ///
    /// # Errors
    ///
    /// [`Reason::Malformed`], or [`Reason::FragmentTooShort`] for a first
    /// fragment that ends before the TCP checksum.
    #[inline(always)]
    pub fn check(&self, frame: &mut impl Frame, protocol: Protocol) -> Result<Check, Reason> {
        let len = self.transport_len(frame)?;
        match protocol {
            Protocol::Tcp => {
                if self.is_fragment && len < 18 {
                    return Err(Reason::FragmentTooShort);
                }
                if !self.is_fragment {
                    let [offset, _] = frame.at(self.transport + 12).ok_or(Reason::Malformed)?;
                    let header = usize::from(offset >> 4) * 4;
                    if header < 20 || header > len {
                        return Err(Reason::Malformed);
                    }
                }
                frame.at::<18>(self.transport).ok_or(Reason::Malformed)?;
                Ok(Check {
                    offset: self.transport + 16,
                    kind: csum::Kind::Plain,
                })
            }
            Protocol::Udp => {
                let header = frame.at::<8>(self.transport).ok_or(Reason::Malformed)?;
                let datagram = usize::from(u16::from_be_bytes([header[4], header[5]]));
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
    pub(crate) fn transport_len(&self, frame: &mut impl Frame) -> Result<usize, Reason> {
        let available = frame
            .len()
            .checked_sub(self.network)
            .ok_or(Reason::Malformed)?;
        let (field, fixed) = match self.version {
            Version::V4 => (self.network + 2, 0),
            Version::V6 => (self.network + 4, 40),
        };
        let field = usize::from(u16::from_be_bytes(
            frame.at(field).ok_or(Reason::Malformed)?,
        ));
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

/// Offset and version of the IP header behind an Ethernet header.
#[inline(always)]
fn ethernet(frame: &mut impl Frame) -> Result<(usize, Version), Reason> {
    let mut ethertype: [u8; 2] = frame.at(12).ok_or(Reason::NoRule)?;
    let mut offset = 14;
    for _ in 0..2 {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        ethertype = frame.at(offset + 2).ok_or(Reason::NoRule)?;
        offset += 4;
    }
    match ethertype {
        ETHERTYPE_IPV4 => Ok((offset, Version::V4)),
        ETHERTYPE_IPV6 => Ok((offset, Version::V6)),
        _ => Err(Reason::NoRule),
    }
}

#[inline(always)]
fn version(frame: &mut impl Frame, network: usize) -> Result<Version, Reason> {
    let [byte, _] = frame.at(network).ok_or(Reason::NoRule)?;
    match byte >> 4 {
        4 => Ok(Version::V4),
        6 => Ok(Version::V6),
        _ => Err(Reason::NoRule),
    }
}

#[inline(always)]
fn ipv4(frame: &mut impl Frame, network: usize) -> Result<Packet, Reason> {
    let header: [u8; 20] = frame.at(network).ok_or(Reason::NoRule)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < 20 {
        return Err(Reason::NoRule);
    }
    let payload = match header[9] {
        6 => Payload::Ports(Protocol::Tcp),
        17 => Payload::Ports(Protocol::Udp),
        ICMP => Payload::Icmp,
        _ => return Err(Reason::NoRule),
    };
    let fragment = u16::from_be_bytes([header[6], header[7]]);
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
fn ipv6(frame: &mut impl Frame, network: usize) -> Result<Packet, Reason> {
    let header: [u8; 8] = frame.at(network).ok_or(Reason::NoRule)?;
    if header[0] >> 4 != 6 {
        return Err(Reason::NoRule);
    }
    let mut next = header[6];
    let mut transport = network + 40;
    let mut is_fragment = false;
    // One round more than there may be headers, to look at what comes last.
    for _ in 0..=MAX_EXTENSION_HEADERS {
        let payload = match next {
            6 => Payload::Ports(Protocol::Tcp),
            17 => Payload::Ports(Protocol::Udp),
            ICMPV6 => Payload::Icmp,
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT => {
                let extension: [u8; 8] = frame.at(transport).ok_or(Reason::Malformed)?;
                if next == FRAGMENT {
                    let field = u16::from_be_bytes([extension[2], extension[3]]);
                    if field & 0xfff8 != 0 {
                        return Err(Reason::NoRule);
                    }
                    is_fragment |= field & 1 != 0;
                    transport += 8;
                } else {
                    // Segments left: the destination, and with it the sum, is
                    // not the final one (RFC 8200, 4.4 and 8.1).
                    if next == ROUTING && extension[3] != 0 {
                        return Err(Reason::ExtensionHeader);
                    }
                    transport += 8 + usize::from(extension[1]) * 8;
                }
                next = extension[0];
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
            is_fragment,
        });
    }
    Err(Reason::ExtensionHeader)
}
