//! Programs for `portredir bench`: a sender of frames, and programs that do nothing, for
//! comparison. Only the benchmark loads
//! them.

use aya_ebpf::bindings::{tcx_action_base::TCX_NEXT, xdp_action};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_redirect};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use portredir_common::trafficgen::{Frame, LEN};

/// Sends what it is run on.
#[xdp]
fn portredir_gen(ctx: XdpContext) -> u32 {
    if ctx.data() + LEN > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: it was compared with the end of the packet; any bytes are a frame.
    let frame = unsafe { &mut *(ctx.data() as *mut Frame) };
    // SAFETY: no arguments.
    let ifindex = frame.renew(unsafe { bpf_get_prandom_u32() });
    // SAFETY: plain numbers.
    let action = unsafe { bpf_redirect(ifindex, 0) };
    u32::try_from(action).unwrap_or(xdp_action::XDP_ABORTED)
}

#[xdp]
fn portredir_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[classifier]
fn portredir_next(_ctx: TcContext) -> i32 {
    TCX_NEXT
}
