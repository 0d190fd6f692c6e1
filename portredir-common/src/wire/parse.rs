//! The headers of a frame, found one behind the other.

use crate::net::{Protocol, Version};
use crate::verdict::Reason;
use crate::wire::frame::{Frame, Link};
use crate::wire::headers::{MAX_EXTENSION_HEADERS, MAX_OFFSET, Packet, Payload};

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

/// As much of a TCP, UDP or ICMP header as is read.
const TRANSPORT: usize = 20;

#[inline(always)]
pub(super) fn ip<F: Frame>(
    frame: &mut F,
    network: usize,
    version: Version,
) -> Result<Packet, Reason> {
    let packet = match version {
        Version::V4 => ipv4(frame, network)?,
        Version::V6 => ipv6(frame, network)?,
    };
    frame.reach(packet.transport + TRANSPORT);
    Ok(packet)
}

/// Offset and version of the IP header behind an Ethernet header.
#[inline(always)]
pub(super) fn ethernet<F: Frame>(frame: &mut F) -> Result<(usize, Version), Reason> {
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
pub(super) fn version<F: Frame>(frame: &mut F, network: usize) -> Result<Version, Reason> {
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

impl Packet {
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
}
