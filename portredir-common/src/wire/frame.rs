//! Frames, as the datapath sees them: bytes that can be read, and ports that can be
//! written.

use crate::net::Port;
use crate::verdict::Reason;
use crate::wire::checksum;

/// Bytes of one packet, and the one way to change them.
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
