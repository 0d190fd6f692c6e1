//! Writing ports.

use crate::net::Port;
use crate::verdict::Reason;
use crate::wire::frame::{Check, Frame};

/// Writes the ports that change: `(from, to)` of the source, then of the
/// destination port, which stand at `offset`.
#[inline(always)]
pub(crate) fn set_ports(
    frame: &mut impl Frame,
    offset: usize,
    check: Check,
    src: (Port, Port),
    dst: (Port, Port),
) -> Result<(), Reason> {
    if src.0 != src.1 {
        frame.set_port(offset, src.0, src.1, check)?;
    }
    if dst.0 != dst.1 {
        frame.set_port(offset + 2, dst.0, dst.1, check)?;
    }
    Ok(())
}
