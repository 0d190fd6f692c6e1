//! The end of a packet's way, or of a look at a socket's peer: the reason is counted.

use portredir_common::verdict::{Reason, Verdict};

use crate::kernel::counters;

/// Counts what became of a packet.
#[inline(always)]
pub fn conclude(reason: Reason) -> Verdict {
    if reason.is_counted_for_packets() {
        counters::count(reason);
    }
    reason.verdict()
}

/// Counts what became of a socket's peer.
#[inline(always)]
pub fn conclude_for_socket(reason: Reason) -> Verdict {
    if reason.is_counted() {
        counters::count(reason);
    }
    reason.verdict()
}
