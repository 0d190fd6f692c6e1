//! Frames, as the datapath sees them: bytes that can be read, and ports and addresses that
//! can be written.

use crate::net::{Addr, Port};
use crate::verdict::Reason;
use crate::wire::checksum;

/// Bytes of one packet, and the ways to change them.
#[expect(clippy::len_without_is_empty, reason = "no frame is empty")]
pub trait Frame {
    /// The number of bytes of the frame, also of those that [`Self::words`] cannot
    /// reach.
    fn len(&self) -> usize;

    /// The number of bytes that can be read, without a call; not more than
    /// [`Self::len`].
    fn linear_len(&self) -> usize;

    /// The number of packets of the wire that this frame stands for (GRO).
    fn segments(&self) -> u32;

    /// `N` words of four bytes at `offset`, as they lie in memory; `None` when the
    /// packet ends before their end.
    ///
    /// The compiler has no registers for single bytes, so these are words. The
    /// size is fixed because the verifier accepts a window whose end was compared
    /// with the packet's, and refuses a slice of any length.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;

    /// Two bytes at `offset`, as they lie in memory.
    fn half(&self, offset: usize) -> Option<u16>;

    /// Makes the bytes before `end` readable where they are there: some drivers
    /// put headers into fragments of the buffer.
    fn pull(&mut self, end: usize);

    /// `value`, of which the verifier no longer knows anything.
    ///
    /// The verifier walks the code once per value that it can tell apart, and headers
    /// have many shapes.
    fn barrier_var(&self, value: u64) -> u64;

    /// Replaces the port at `offset`, which is `from`, by `to`, and updates
    /// the checksum at `check` that covers it.
    ///
    /// This is an operation and not a window because TC may change a checksum only
    /// through the kernel, which knows whether the field holds a sum or the
    /// start of one.
    ///
    /// # Errors
    ///
    /// [`Reason::WriteFailed`] when the kernel refuses.
    fn set_port(&mut self, offset: usize, from: Port, to: Port, check: Check)
    -> Result<(), Reason>;

    /// Replaces the address in a field, which is `from`, by `to` of the same IP version, and
    /// updates the checksums that cover it.
    ///
    /// # Errors
    ///
    /// [`Reason::WriteFailed`] when the kernel refuses.
    fn set_addr(&mut self, field: AddrField, from: Addr, to: Addr) -> Result<(), Reason>;
}

/// The number in two bytes at `offset`, which are in network order.
#[inline(always)]
pub(crate) fn be16(frame: &impl Frame, offset: usize) -> Option<u16> {
    frame.half(offset).map(u16::from_be)
}

/// The checksum field that covers a port.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// The offset of the field in the frame.
    pub offset: usize,
    /// How the field treats zero.
    pub kind: checksum::Kind,
}

/// An address in an IP header, and the checksums that cover it.
#[derive(Clone, Copy, Debug)]
pub struct AddrField {
    /// The offset of the address in the frame.
    pub offset: usize,
    /// The offset of the checksum of an IPv4 header; IPv6 has none.
    pub header_check: Option<usize>,
    /// The checksum of what the packet carries, or of the ICMP error that quotes it.
    pub check: Check,
    /// How that checksum covers the address.
    pub cover: Cover,
}

/// How the checksum of a TCP, UDP or ICMP header covers an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// The pseudo-header has the address (RFC 9293, 3.1; RFC 8200, 8.1).
    PseudoHeader,
    /// The address is data: in the quote of an ICMPv6 error.
    Data,
    /// The checksum does not cover the address: ICMP of IPv4 has no pseudo-header, and in its quotes the checksum of the
    /// quoted header, which changes too, makes up for the address.
    Nothing,
}

/// The first header of the frames of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: tun, WireGuard, PPP, IP tunnels.
    Ip,
}

impl Link {
    /// The number of bytes before the IP header, without VLAN tags.
    pub(crate) const fn len(self) -> usize {
        match self {
            Self::Ethernet => 14,
            Self::Ip => 0,
        }
    }
}
