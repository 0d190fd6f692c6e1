//! The programs: the datapath at XDP, at TC ingress and at TC egress, for
//! devices with and without an Ethernet header.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "contexts, maps and helpers are raw pointers")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "packets are shorter than 4 GiB"
)]

mod frame;
mod maps;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{tcx_action_base::TCX_NEXT, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use portredir_common::redirect;
use portredir_common::verdict::{Reason, Verdict};
use portredir_common::wire::{End, Frame, Link, Packet};

use crate::frame::{Skb, Xdp};
use crate::maps::Kernel;

/// As `TC_ACT_SHOT`; TCX knows it as `TCX_DROP`.
const TC_DROP: i32 = 2;

/// Counts and, when somebody listens, tells what became of a packet.
#[inline(always)]
fn conclude(ctx: &impl EbpfContext, frame: &mut impl Frame, link: Link, reason: Reason) -> Verdict {
    if reason.is_counted() {
        maps::count(reason);
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
    let packet = packet.opaque(frame);
    // Defaults, which cannot be met, keep the fields always initialised.
    let src = packet.addr(frame, End::Src).unwrap_or_default();
    let dst = packet.addr(frame, End::Dst).unwrap_or_default();
    let (src_port, dst_port) = packet.ports(frame).unwrap_or_default();
    debug!(
        ctx,
        "{} {:i} {} -> {:i} {}",
        reason as u32,
        src.0,
        src_port.get(),
        dst.0,
        dst_port.get()
    );
}

#[inline(always)]
fn xdp_ingress<const FRAGS: bool>(ctx: &XdpContext, link: Link) -> u32 {
    let mut frame = Xdp::<FRAGS>::new(ctx.ctx);
    let reason = redirect::ingress(&mut frame, &Kernel(ctx.ctx), link);
    match conclude(ctx, &mut frame, link, reason) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

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
    let mut frame = Skb::new(skb);
    let reason = redirect::ingress(&mut frame, &Kernel(skb), link);
    tc_action(conclude(ctx, &mut frame, link, reason))
}

#[inline(always)]
fn tc_egress(ctx: &TcContext, link: Link) -> i32 {
    let skb = ctx.as_ptr().cast();
    let mut frame = Skb::new(skb);
    let reason = redirect::egress(&mut frame, &Kernel(skb), link);
    tc_action(conclude(ctx, &mut frame, link, reason))
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

/// The verifier proves that nothing panics; the compiler wants a handler.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

// `bpf_l4_csum_replace`, `bpf_sk_storage_get` and others may be called only
// from programs that declare a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
