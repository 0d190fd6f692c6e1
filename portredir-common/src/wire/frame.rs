//! What a frame is to the datapath: bytes that can be read, and ports that can be
//! written.

use crate::net::Port;
use crate::verdict::Reason;
use crate::wire::checksum;

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
    pub kind: checksum::Kind,
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
    pub(crate) const fn len(self) -> usize {
        match self {
            Self::Ethernet => 14,
            Self::Ip => 0,
        }
    }
}
