//! Writing ports into packets.

use crate::net::Port;
use crate::verdict::Reason;
use crate::wire::fields::ports;
use crate::wire::frame::{Check, Frame};

/// A change of a port; none where both are equal.
#[derive(Clone, Copy)]
pub(super) struct Change {
    /// The port in the packet.
    pub from: Port,
    /// The port that the packet gets.
    pub to: Port,
}

impl Change {
    /// A change from one port to another.
    #[inline(always)]
    pub const fn new(from: Port, to: Port) -> Self {
        Self { from, to }
    }
}

/// The changes of the ports of a packet.
#[derive(Clone, Copy)]
pub(super) struct Rewrite {
    /// The offset of the ports in the frame.
    pub offset: usize,
    /// The checksum that covers them.
    pub check: Check,
    /// The change of the source port.
    pub src: Change,
    /// The change of the destination port.
    pub dst: Change,
}

/// Writes the ports that change.
#[inline(always)]
pub(super) fn rewrite(frame: &mut impl Frame, rewrite: Rewrite) -> Result<(), Reason> {
    let Rewrite {
        offset,
        check,
        src,
        dst,
    } = rewrite;
    if src.from != src.to {
        frame.set_port(offset + ports::SRC, src.from, src.to, check)?;
    }
    if dst.from != dst.to {
        frame.set_port(offset + ports::DST, dst.from, dst.to, check)?;
    }
    Ok(())
}
