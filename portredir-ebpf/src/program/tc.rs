//! The datapath at TC ingress and egress.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::tcx_action_base::TCX_NEXT;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use portredir_common::datapath::assign::assign;
use portredir_common::datapath::{egress, fast, ingress};
use portredir_common::map::trace::TraceHook;
use portredir_common::verdict::{Reason, Verdict};
use portredir_common::wire::frame::Link;

use crate::frame::{AtData, AtNetworkHeader, Skb, Start};
use crate::kernel::Kernel;
use crate::program::conclude::conclude;
use crate::program::trace::{self, Place};

/// `TC_ACT_SHOT`, which TCX calls `TCX_DROP`.
const TC_DROP: i32 = 2;

/// Never `TC_ACT_OK`: it would skip the programs and filters behind us.
#[inline(always)]
const fn tc_action(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TCX_NEXT,
        Verdict::Drop => TC_DROP,
    }
}

#[inline(always)]
fn tc_ingress(ctx: &TcContext, link: Link) -> i32 {
    let skb = ctx.as_ptr().cast();
    let mut frame = Skb::new(skb, AtData);
    let kernel = Kernel::new(skb);
    let reason = match kernel.and_then(|kernel| fast::ingress(&mut frame, &kernel, link)) {
        Some(reason) => reason,
        // Looked up again, so that nothing has to be kept until now.
        None => match Kernel::new(skb) {
            Some(kernel) => {
                let place = Place::new(TraceHook::Ingress, link);
                trace::run(&mut frame, &kernel, place, ingress::ingress)
            }
            None => Reason::NoRule,
        },
    };
    tc_action(conclude(reason))
}

#[inline(always)]
fn tc_egress(ctx: &TcContext, link: Link) -> i32 {
    let skb = ctx.as_ptr().cast();
    let mut frame = Skb::new(skb, AtData);
    let kernel = Kernel::new(skb);
    let reason = match kernel.and_then(|kernel| fast::egress(&mut frame, &kernel, link)) {
        Some(reason) => reason,
        // Looked up again, so that nothing has to be kept until now.
        None => match Kernel::new(skb) {
            Some(kernel) => {
                let place = Place::new(TraceHook::Egress, link);
                trace::run(&mut frame, &kernel, place, egress::egress)
            }
            None => Reason::NoRule,
        },
    };
    tc_action(conclude(reason))
}

/// Runs one part of the datapath, without a fast path before it.
#[inline(always)]
fn tc_one<S: Start>(ctx: &TcContext, start: S, place: Place, part: Part<S>) -> i32 {
    let skb = ctx.as_ptr().cast();
    let mut frame = Skb::new(skb, start);
    let reason = match Kernel::new(skb) {
        Some(kernel) => trace::run(&mut frame, &kernel, place, part),
        None => Reason::NoRule,
    };
    tc_action(conclude(reason))
}

/// A part of the datapath.
type Part<S> = fn(&mut Skb<S>, &Kernel<*mut __sk_buff>, Link) -> Reason;

/// At ingress of `lo`, beside the hooks of local clients.
#[classifier]
fn portredir_lo(ctx: TcContext) -> i32 {
    let place = Place::new(TraceHook::Assign, Link::Ethernet);
    tc_one(&ctx, AtData, place, assign)
}

#[classifier]
fn portredir_in(ctx: TcContext) -> i32 {
    tc_ingress(&ctx, Link::Ethernet)
}

#[classifier]
fn portredir_in_ip(ctx: TcContext) -> i32 {
    tc_ingress(&ctx, Link::Ip)
}

#[classifier]
fn portredir_out(ctx: TcContext) -> i32 {
    tc_egress(&ctx, Link::Ethernet)
}

#[classifier]
fn portredir_outip(ctx: TcContext) -> i32 {
    tc_egress(&ctx, Link::Ip)
}

// For tunnels that leave the header before a packet that the packet came out of. The fast
// path would need more stack than the kernel gives.

#[classifier]
fn portredir_in_nh(ctx: TcContext) -> i32 {
    let start = AtNetworkHeader::find(ctx.as_ptr().cast());
    let place = Place::new(TraceHook::Ingress, Link::Ip);
    tc_one(&ctx, start, place, ingress::ingress)
}

#[classifier]
fn portredir_outnh(ctx: TcContext) -> i32 {
    let start = AtNetworkHeader::find(ctx.as_ptr().cast());
    let place = Place::new(TraceHook::Egress, Link::Ip);
    tc_one(&ctx, start, place, egress::egress)
}
