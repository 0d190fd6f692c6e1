//! The datapath at XDP.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use portredir_common::datapath::{fast, ingress};
use portredir_common::map::trace::TraceHook;
use portredir_common::verdict::{Reason, Verdict};
use portredir_common::wire::frame::Link;

use crate::frame::Xdp;
use crate::kernel::Kernel;
use crate::program::conclude::conclude;
use crate::program::trace::{self, Place};

#[inline(always)]
fn xdp_ingress<const FRAGS: bool>(ctx: &XdpContext, link: Link) -> u32 {
    let mut frame = Xdp::<FRAGS>::new(ctx.ctx);
    let kernel = Kernel::new(ctx.ctx);
    let reason = match kernel.and_then(|kernel| fast::ingress(&mut frame, &kernel, link)) {
        Some(reason) => reason,
        // Looked up again, so that nothing has to be kept until now.
        None => match Kernel::new(ctx.ctx) {
            Some(kernel) => {
                let place = Place::new(TraceHook::Xdp, link);
                trace::run(&mut frame, &kernel, place, ingress::ingress)
            }
            None => Reason::NoRule,
        },
    };
    match conclude(reason) {
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
