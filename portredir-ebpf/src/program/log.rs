//! The end of a packet's way, or of a look at a socket's peer: the reason is counted and,
//! when somebody listens, logged.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use portredir_common::net::{Addr, Port};
use portredir_common::verdict::{Reason, Verdict};
use portredir_common::wire::frame::{Frame, Link};
use portredir_common::wire::headers::{End, Packet};

use crate::kernel::counters;

/// Counts and, when somebody listens, tells what became of a packet.
#[inline(always)]
pub fn conclude(
    ctx: &impl EbpfContext,
    frame: &mut impl Frame,
    link: Link,
    reason: Reason,
) -> Verdict {
    if reason.is_counted_for_packets() {
        counters::count(reason);
    }
    // The level is a constant to the verifier, which removes this when off.
    if reason != Reason::NoRule && level_enabled(Level::Debug) {
        log(ctx, frame, link, reason);
    }
    reason.verdict()
}

/// Logs a decision with the packet as it goes on.
///
/// The reason is a number, which user space replaces: with texts of different
/// lengths the verifier of Linux 6.1 walks over a million instructions.
#[inline(never)]
fn log(ctx: &impl EbpfContext, frame: &mut impl Frame, link: Link, reason: Reason) {
    let Ok(packet) = Packet::parse(frame, link) else {
        return;
    };
    // Defaults, which cannot be met, keep the fields always initialised.
    let src = packet.addr(frame, End::Src).unwrap_or_default();
    let dst = packet.addr(frame, End::Dst).unwrap_or_default();
    let (src_port, dst_port) = packet.ports(frame).unwrap_or_default();
    debug!(
        ctx,
        "{} {:i} {} -> {:i} {}",
        reason as u32,
        src.octets(),
        src_port.get(),
        dst.octets(),
        dst_port.get()
    );
}

/// Counts and, when somebody listens, tells what became of a socket's peer.
#[inline(always)]
pub fn conclude_for_socket(ctx: &impl EbpfContext, addr: Addr, port: Port, reason: Reason) {
    if reason.is_counted() {
        counters::count(reason);
    }
    if reason != Reason::NoRule && level_enabled(Level::Debug) {
        log_for_socket(ctx, addr, port, reason);
    }
}

#[inline(never)]
fn log_for_socket(ctx: &impl EbpfContext, addr: Addr, port: Port, reason: Reason) {
    debug!(
        ctx,
        "{} socket -> {:i} {}",
        reason as u32,
        addr.octets(),
        port.get()
    );
}
