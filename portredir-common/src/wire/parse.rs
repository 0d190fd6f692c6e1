//! The headers of a frame, found one behind the other.
//!
//! All bytes read here are hostile: the parser trusts nothing that it has not compared.

use crate::net::{Protocol, Version};
use crate::verdict::Reason;
use crate::wire::fields::ethernet::EtherType;
use crate::wire::fields::{ethernet as eth, ipv4 as ip4, ipv6 as ip6, tcp, udp};
use crate::wire::frame::{Frame, be16};
use crate::wire::headers::{MAX_EXTENSION_HEADERS, MAX_OFFSET, Packet, Payload};

/// The number of bytes of a TCP, UDP or ICMP header that the datapath reads.
const TRANSPORT: usize = tcp::LEN;

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
    frame.pull(packet.transport + TRANSPORT);
    Ok(packet)
}

/// The offset and the version of the IP header behind an Ethernet header.
#[inline(always)]
pub(super) fn ethernet<F: Frame>(frame: &mut F) -> Result<(usize, Version), Reason> {
    frame.pull(eth::LEN);
    let mut ethertype = ethertype_at(frame, eth::TYPE).ok_or(Reason::NoRule)?;
    let mut offset = eth::LEN;
    for _ in 0..2 {
        if ethertype != EtherType::VLAN && ethertype != EtherType::QINQ {
            break;
        }
        frame.pull(offset + eth::VLAN_LEN);
        ethertype = ethertype_at(frame, offset + eth::VLAN_TYPE).ok_or(Reason::NoRule)?;
        // One tag is then like two.
        #[expect(clippy::cast_possible_truncation, reason = "at most 22")]
        let behind = frame.barrier_var((offset + eth::VLAN_LEN) as u64) as usize & MAX_OFFSET;
        // Masked, as older kernels lose a bound that is compared with later.
        offset = behind;
    }
    let version = ethernet_version(ethertype).ok_or(Reason::NoRule)?;
    Ok((offset, version))
}

#[inline(always)]
pub(super) const fn ethernet_version(ethertype: EtherType) -> Option<Version> {
    match ethertype {
        EtherType::IPV4 => Some(Version::V4),
        EtherType::IPV6 => Some(Version::V6),
        _ => None,
    }
}

/// The EtherType at an offset.
#[inline(always)]
pub(super) fn ethertype_at(frame: &impl Frame, offset: usize) -> Option<EtherType> {
    frame.half(offset).map(EtherType::from_half)
}

/// The version of an IP header, by its first two bytes as a number.
#[inline(always)]
pub(super) const fn ip_version(first: u16) -> Option<Version> {
    match first >> 12 {
        4 => Some(Version::V4),
        6 => Some(Version::V6),
        _ => None,
    }
}

#[inline(always)]
pub(super) fn version<F: Frame>(frame: &mut F, network: usize) -> Result<Version, Reason> {
    frame.pull(network + 2);
    let first = be16(frame, network).ok_or(Reason::NoRule)?;
    ip_version(first).ok_or(Reason::NoRule)
}

#[inline(always)]
fn ipv4<F: Frame>(frame: &mut F, network: usize) -> Result<Packet, Reason> {
    frame.pull(network + ip4::LEN);
    let header: [u32; 5] = frame.words(network).ok_or(Reason::NoRule)?;
    let first = u32::from_be(header[0]) >> 24;
    let header_len = (first & 0x0f) as usize * 4;
    if first >> 4 != 4 || header_len < ip4::LEN {
        return Err(Reason::NoRule);
    }
    let payload = match (u32::from_be(header[2]) >> 16) & 0xff {
        tcp::PROTOCOL => Payload::Ports(Protocol::Tcp),
        udp::PROTOCOL => Payload::Ports(Protocol::Udp),
        ip4::ICMP => Payload::Icmp,
        _ => return Err(Reason::NoRule),
    };
    let fragment = u32::from_be(header[1]);
    if fragment & ip4::FRAGMENT_OFFSET != 0 {
        // Not the first: what stands where the ports would be is payload.
        return Err(Reason::NoRule);
    }
    Ok(Packet {
        version: Version::V4,
        network,
        transport: network + header_len,
        payload,
        is_fragment: fragment & ip4::MORE_FRAGMENTS != 0,
    })
}

#[inline(always)]
fn ipv6<F: Frame>(frame: &mut F, network: usize) -> Result<Packet, Reason> {
    frame.pull(network + ip6::LEN);
    let header: [u32; 2] = frame.words(network).ok_or(Reason::NoRule)?;
    if u32::from_be(header[0]) >> 28 != 6 {
        return Err(Reason::NoRule);
    }
    let mut next = (u32::from_be(header[1]) >> 8) & 0xff;
    let mut transport = network + ip6::LEN;
    let mut is_fragment = 0;
    // One round more than there may be headers, to look at what comes last.
    for _ in 0..=MAX_EXTENSION_HEADERS {
        let payload = match next {
            tcp::PROTOCOL => Payload::Ports(Protocol::Tcp),
            udp::PROTOCOL => Payload::Ports(Protocol::Udp),
            ip6::ICMPV6 => Payload::Icmp,
            ip6::HOP_BY_HOP | ip6::ROUTING | ip6::DESTINATION_OPTIONS | ip6::FRAGMENT => {
                frame.pull(transport + ip6::EXTENSION_UNIT);
                let [extension, _] = frame.words(transport).ok_or(Reason::Malformed)?;
                let extension = u32::from_be(extension);
                if next == ip6::FRAGMENT {
                    if extension & 0xfff8 != 0 {
                        return Err(Reason::NoRule);
                    }
                    is_fragment |= extension & 1;
                    transport += ip6::EXTENSION_UNIT;
                } else {
                    // Segments left: the destination, and with it the sum, is
                    // not the final one (RFC 8200, 4.4 and 8.1).
                    if next == ip6::ROUTING && extension & 0xff != 0 {
                        return Err(Reason::ExtensionHeader);
                    }
                    let units = ((extension >> 16) & 0xff) as usize + 1;
                    transport += units * ip6::EXTENSION_UNIT;
                }
                next = extension >> 24;
                // One round is then like another.
                let packed = frame.barrier_var((transport as u64) << 1 | u64::from(is_fragment));
                #[expect(clippy::cast_possible_truncation, reason = "it was 32 bits")]
                let packed = packed as u32;
                (transport, is_fragment) = ((packed >> 1) as usize & MAX_OFFSET, packed & 1);
                continue;
            }
            // A digest covers the ports, which the datapath cannot renew (RFC 4302).
            ip6::AUTHENTICATION => return Err(Reason::ExtensionHeader),
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
