//! The datapath at XDP.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use portredir_common::datapath::{fast, ingress};
use portredir_common::verdict::{Reason, Verdict};
use portredir_common::wire::frame::Link;

use crate::frame::Xdp;
use crate::kernel::Kernel;
use crate::program::log::conclude;

/// Goes the quick way, and where that does not lead on the slow one. A macro, as the
/// compiler makes calls of closures here.
macro_rules! handle {
    ($quick:path, $slow:path, $frame:expr, $ctx:expr, $link:ident) => {{
        let quick = Kernel::new($ctx).and_then(|tables| $quick($frame, &tables, $link));
        match quick {
            Some(reason) => reason,
            // Anew, so that nothing has to be kept until now.
            None => match Kernel::new($ctx) {
                Some(tables) => $slow($frame, &tables, $link),
                None => Reason::NoRule,
            },
        }
    }};
}

#[inline(always)]
fn xdp_ingress<const FRAGS: bool>(ctx: &XdpContext, link: Link) -> u32 {
    let mut frame = Xdp::<FRAGS>::new(ctx.ctx);
    let reason = handle!(fast::ingress, ingress::ingress, &mut frame, ctx.ctx, link);
    match conclude(ctx, &mut frame, link, reason) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

// The kernel keeps 15 characters of a name.

#[xdp]
fn portredir_xdp(ctx: XdpContext) -> u32 {
    xdp_ingress::<false>(&ctx, Link::Ethernet)
}

#[xdp(frags)]
fn portredir_frags(ctx: XdpContext) -> u32 {
    xdp_ingress::<true>(&ctx, Link::Ethernet)
}

#[xdp]
fn portredir_xdpip(ctx: XdpContext) -> u32 {
    xdp_ingress::<false>(&ctx, Link::Ip)
}

pub(crate) use handle;
