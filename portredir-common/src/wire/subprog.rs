//! Parsing in BPF functions of their own.
//!
//! The verifier does not walk the code behind these calls once for each shape of
//! headers: it loses what it knows of their result. Functions that are not inlined
//! here are so for the BPF stack.

use crate::flow::FlowKey;
use crate::net::{Protocol, Version};
use crate::packed::{Packed, Word};
use crate::verdict::Reason;
use crate::wire::checksum;
use crate::wire::frame::{Check, Frame, Link};
use crate::wire::headers::{End, MAX_OFFSET, Packet};
use crate::wire::parse::{ethernet, ip, version};

/// The headers of a frame, or the reason why the datapath leaves it alone.
pub(crate) type Found = Word<Result<Packet, Reason>>;

/// Finds the headers of a frame.
#[inline(always)]
pub(crate) fn find<F: Frame>(frame: &mut F, link: Link) -> Found {
    Word::from_bits(find_bits(frame, link))
}

#[inline(never)]
fn find_bits<F: Frame>(frame: &mut F, link: Link) -> u64 {
    let start = match link {
        Link::Ethernet => ethernet(frame),
        Link::Ip => version(frame, 0).map(|version| (0, version)),
    };
    let packet = start.and_then(|(network, version)| ip(frame, network, version));
    frame.barrier_var(bounded(packet).pack())
}

#[inline(never)]
fn find_at_bits<F: Frame>(frame: &mut F, network: usize, version: Version) -> u64 {
    let packet = ip(frame, network, version);
    frame.barrier_var(bounded(packet).pack())
}

/// Offsets that have no room in the word are in no packet that is sound.
#[inline(always)]
fn bounded(packet: Result<Packet, Reason>) -> Result<Packet, Reason> {
    packet.and_then(|packet| {
        if packet.transport <= MAX_OFFSET {
            Ok(packet)
        } else {
            Err(Reason::Malformed)
        }
    })
}

/// The key of a packet, with its ports; `local` says which end is this host.
/// [`FlowKey::NOTHING`] when the packet has no ports.
#[inline(always)]
pub(crate) fn key<F: Frame>(frame: &F, packet: Found, local: End) -> FlowKey {
    key_of_bits(frame, packet.bits(), local)
}

#[inline(never)]
fn key_of_bits<F: Frame>(frame: &F, bits: u64, local: End) -> FlowKey {
    let read = || {
        let packet = Found::from_bits(bits).get()?;
        let (src, dst) = packet.ports(frame)?;
        let mut key = packet.key(frame, local, packet.protocol()?)?;
        (key.client_port, key.local_port) = match local {
            End::Dst => (src, dst),
            End::Src => (dst, src),
        };
        Ok::<_, Reason>(key)
    };
    read().unwrap_or(FlowKey::NOTHING)
}

/// The checksum that covers the ports of a packet: see [`Packet::check`].
#[inline(always)]
pub(crate) fn check<F: Frame>(frame: &F, packet: Found) -> Result<Check, Reason> {
    let protocol = packet.get()?.protocol()?;
    let offset: Result<usize, _> = Packed::unpack(check_offset(frame, packet.bits()));
    let kind = match protocol {
        Protocol::Tcp => checksum::Kind::Plain,
        Protocol::Udp => checksum::Kind::Udp,
    };
    Ok(Check {
        offset: offset? & MAX_OFFSET,
        kind,
    })
}

#[inline(never)]
fn check_offset<F: Frame>(frame: &F, bits: u64) -> u64 {
    let check = || {
        let packet = Found::from_bits(bits).get()?;
        packet.check(frame, packet.protocol()?)
    };
    check().map(|check| check.offset).pack()
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
        find(frame, link).get()
    }

    /// Finds the headers of the packet whose IP header is at `network`.
    ///
    /// # Errors
    ///
    /// Those of [`Self::parse`].
    #[inline(always)]
    pub fn network(
        frame: &mut impl Frame,
        network: usize,
        version: Version,
    ) -> Result<Self, Reason> {
        Found::from_bits(find_at_bits(frame, network, version)).get()
    }
}
