//! Parsing in BPF functions of their own.

use crate::flow::FlowKey;
use crate::net::{Addr, Port, Protocol, Version};
use crate::packed::{from_word, to_word};
use crate::verdict::Reason;
use crate::wire::checksum;
use crate::wire::frame::{Check, Frame, Link};
use crate::wire::headers::{End, MAX_OFFSET, Packet};
use crate::wire::parse::{ethernet, ip, version};

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
        to_word(check().map(|check| check.offset as u64))
    }
    let protocol = Packet::from_word(packet)?.protocol()?;
    #[expect(clippy::cast_possible_truncation, reason = "not above MAX_OFFSET")]
    let offset = from_word(offset(frame, packet))? as usize & MAX_OFFSET;
    let kind = match protocol {
        Protocol::Tcp => checksum::Kind::Plain,
        Protocol::Udp => checksum::Kind::Udp,
    };
    Ok(Check { offset, kind })
}

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
}
