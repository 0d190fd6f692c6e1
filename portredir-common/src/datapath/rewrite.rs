//! Writing ports and addresses into packets.

use crate::net::{Addr, Port, Version};
use crate::verdict::Reason;
use crate::wire::fields::{ipv4, ports};
use crate::wire::frame::{AddrField, Check, Cover, Frame};
use crate::wire::headers::{End, Packet};

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

/// Writes the address of one end of a packet; `check` is the checksum of what it carries,
/// and how the checksum covers the address.
#[inline(always)]
pub(super) fn set_addr(
    frame: &mut impl Frame,
    packet: &Packet,
    (end, check, cover): (End, Check, Cover),
    to: Addr,
) -> Result<(), Reason> {
    let from = packet.addr(frame, end)?;
    if from.is(to) {
        return Ok(());
    }
    let header_check = match packet.version {
        Version::V4 => Some(packet.network + ipv4::CHECKSUM),
        Version::V6 => None,
    };
    let field = AddrField {
        offset: packet.addr_offset(end),
        header_check,
        check,
        cover,
    };
    frame.set_addr(field, from, to)
}
