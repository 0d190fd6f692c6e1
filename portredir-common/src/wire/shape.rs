//! Packets of a shape that most have: no VLAN tag, no IP options or extension headers,
//! TCP or UDP, and whole.

use crate::net::{Protocol, Version};
use crate::wire::fields::{ethernet, ipv4, ipv6, tcp, udp};
use crate::wire::frame::{Frame, Link, be16};
use crate::wire::headers::{Packet, Payload};
use crate::wire::parse::{ethernet_version, ethertype_at, ip_version};

/// A shape, as constants: the compiler makes the code of the fast path once for each,
/// and half of it to run.
pub(crate) trait Shape {
    /// The IP version.
    const VERSION: Version;
    /// The protocol of the ports.
    const PROTOCOL: Protocol;

    /// The headers of a packet of this shape.
    #[inline(always)]
    fn packet(link: Link) -> Packet {
        let network = link.len();
        let header = match Self::VERSION {
            Version::V4 => ipv4::LEN,
            Version::V6 => ipv6::LEN,
        };
        Packet {
            version: Self::VERSION,
            network,
            transport: network + header,
            payload: Payload::Ports(Self::PROTOCOL),
            is_fragment: false,
        }
    }
}

/// TCP in IPv4.
pub(crate) struct TcpV4;
/// UDP in IPv4.
pub(crate) struct UdpV4;
/// TCP in IPv6.
pub(crate) struct TcpV6;
/// UDP in IPv6.
pub(crate) struct UdpV6;

impl Shape for TcpV4 {
    const VERSION: Version = Version::V4;
    const PROTOCOL: Protocol = Protocol::Tcp;
}

impl Shape for UdpV4 {
    const VERSION: Version = Version::V4;
    const PROTOCOL: Protocol = Protocol::Udp;
}

impl Shape for TcpV6 {
    const VERSION: Version = Version::V6;
    const PROTOCOL: Protocol = Protocol::Tcp;
}

impl Shape for UdpV6 {
    const VERSION: Version = Version::V6;
    const PROTOCOL: Protocol = Protocol::Udp;
}

/// The shape of a packet, if it has one.
#[inline(always)]
pub(crate) fn shape<F: Frame>(frame: &F, link: Link) -> Option<(Version, Protocol)> {
    let network = link.len();
    let version = match link {
        Link::Ethernet => ethernet_version(ethertype_at(frame, ethernet::TYPE)?)?,
        Link::Ip => ip_version(be16(frame, 0)?)?,
    };
    let protocol = match version {
        Version::V4 => {
            const FRAGMENT: u32 = ipv4::FRAGMENT_OFFSET | ipv4::MORE_FRAGMENTS;
            let header: [u32; 3] = frame.words(network)?;
            let is_whole = u32::from_be(header[1]) & FRAGMENT == 0;
            // Version 4, and five words of header.
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
        tcp::PROTOCOL => Some((version, Protocol::Tcp)),
        udp::PROTOCOL => Some((version, Protocol::Udp)),
        _ => None,
    }
}
