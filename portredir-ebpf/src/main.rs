//! The programs: the datapath at XDP, at TC ingress and at TC egress, for
//! devices with and without an Ethernet header, and at the hooks of sockets.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "contexts, maps and helpers are raw pointers")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "packets are shorter than 4 GiB"
)]

mod bench;
mod context;
mod counters;
mod flows;
mod frame;
mod maps;
mod socket;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{tcx_action_base::TCX_NEXT, xdp_action};
use aya_ebpf::macros::{cgroup_sock_addr, classifier, sk_lookup, sock_ops, xdp};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext, TcContext, XdpContext};
use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use portredir_common::abi::{Addr, FlowKey, Port, Protocol};
use portredir_common::redirect;
use portredir_common::socket::{self as by_socket, Dial};
use portredir_common::verdict::{Reason, Verdict};
use portredir_common::wire::{End, Frame, Link, Packet};

use crate::frame::{Skb, Xdp};
use crate::maps::Kernel;
use crate::socket::{Lookup, SockAddr};

/// As `TC_ACT_SHOT`; TCX knows it as `TCX_DROP`.
const TC_DROP: i32 = 2;

/// Counts and, when somebody listens, tells what became of a packet.
#[inline(always)]
fn conclude(ctx: &impl EbpfContext, frame: &mut impl Frame, link: Link, reason: Reason) -> Verdict {
    if reason.is_counted() {
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

/// Goes the quick way, and where that does not lead on the slow one. A macro, as the
/// compiler makes calls of closures here.
macro_rules! handle {
    ($quick:ident, $slow:ident, $frame:expr, $ctx:expr, $link:ident) => {{
        let quick = Kernel::new($ctx).and_then(|tables| redirect::$quick($frame, &tables, $link));
        match quick {
            Some(reason) => reason,
            // Anew, so that nothing has to be kept until now.
            None => match Kernel::new($ctx) {
                Some(tables) => redirect::$slow($frame, &tables, $link),
                None => Reason::NoRule,
            },
        }
    }};
}

#[inline(always)]
fn xdp_ingress<const FRAGS: bool>(ctx: &XdpContext, link: Link) -> u32 {
    let mut frame = Xdp::<FRAGS>::new(ctx.ctx);
    let reason = handle!(quick_ingress, ingress, &mut frame, ctx.ctx, link);
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
    let reason = handle!(quick_ingress, ingress, &mut frame, skb, link);
    tc_action(conclude(ctx, &mut frame, link, reason))
}

#[inline(always)]
fn tc_egress(ctx: &TcContext, link: Link) -> i32 {
    let skb = ctx.as_ptr().cast();
    let mut frame = Skb::new(skb);
    let reason = handle!(quick_egress, egress, &mut frame, skb, link);
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

/// Gives a connection to the listener on the target.
#[inline(always)]
fn look_up<const SCOPED: bool>(ctx: &SkLookupContext) -> u32 {
    const SK_DROP: u32 = 0;
    const SK_PASS: u32 = 1;
    let lookup = Lookup::<SCOPED>::new(ctx);
    if !lookup.is_tcp() {
        return SK_PASS;
    }
    let key = lookup.key();
    let is_loopback_allowed = socket::is_loopback_target_allowed();
    let Some(tables) = Kernel::new(lookup) else {
        return SK_PASS;
    };
    let reason = by_socket::look_up(&tables, &key, is_loopback_allowed);
    conclude_for_socket(ctx, key.local, key.local_port, reason);
    match reason.verdict() {
        Verdict::Pass => SK_PASS,
        // The stack answers as if nobody listened.
        Verdict::Drop => SK_DROP,
    }
}

/// Points a client on this host at the target.
#[inline(always)]
fn dial(ctx: &SockAddrContext, addr: Addr, protocol: Protocol, dial: Dial) -> i32 {
    const DENY: i32 = 0;
    const ALLOW: i32 = 1;
    let mut client = SockAddr::new(ctx);
    let port = client.port();
    let Some(tables) = Kernel::new(client) else {
        return ALLOW;
    };
    let mut target = port;
    let reason = by_socket::dial(&tables, &mut client, protocol, addr, &mut target, dial);
    if reason == Reason::Redirected {
        client.set_port(target);
    }
    conclude_for_socket(ctx, addr, port, reason);
    match reason.verdict() {
        Verdict::Pass => ALLOW,
        Verdict::Drop => DENY,
    }
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, addr: Addr) -> i32 {
    match protocol(ctx) {
        Some(protocol) => dial(ctx, addr, protocol, Dial::Connect),
        None => 1,
    }
}

/// UDP-Lite has this hook as well.
#[inline(always)]
fn send(ctx: &SockAddrContext, addr: Addr) -> i32 {
    match protocol(ctx) {
        Some(Protocol::Udp) => dial(ctx, addr, Protocol::Udp, Dial::Send),
        _ => 1,
    }
}

/// Tells a client on this host the port it dialled.
#[inline(always)]
fn answer(ctx: &SockAddrContext, addr: Addr) -> i32 {
    let Some(protocol) = protocol(ctx) else {
        return 1;
    };
    let mut client = SockAddr::new(ctx);
    let port = client.port();
    let Some(tables) = Kernel::new(client) else {
        return 1;
    };
    let reason = match by_socket::answered(&tables, &mut client, protocol, (addr, port)) {
        Ok(dialled) => {
            client.set_port(dialled);
            Reason::Restored
        }
        Err(reason) => reason,
    };
    conclude_for_socket(ctx, addr, port, reason);
    1
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Option<Protocol> {
    // include/uapi/linux/in.h
    const TCP: u32 = Protocol::Tcp as u32;
    const UDP: u32 = Protocol::Udp as u32;
    const MPTCP: u32 = 262;
    match SockAddr::new(ctx).protocol() {
        TCP | MPTCP => Some(Protocol::Tcp),
        UDP => Some(Protocol::Udp),
        _ => None,
    }
}

/// Counts and, when somebody listens, tells what became of a socket's peer.
#[inline(always)]
fn conclude_for_socket(ctx: &impl EbpfContext, addr: Addr, port: Port, reason: Reason) {
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

#[sk_lookup]
fn portredir_look(ctx: SkLookupContext) -> u32 {
    look_up::<true>(&ctx)
}

/// For kernels that do not tell the interface.
#[sk_lookup]
fn portredir_lkall(ctx: SkLookupContext) -> u32 {
    look_up::<false>(&ctx)
}

#[sock_ops]
fn portredir_reg(ctx: SockOpsContext) -> u32 {
    const LISTEN: u32 = aya_ebpf::bindings::BPF_SOCK_OPS_TCP_LISTEN_CB;
    if ctx.op() == LISTEN {
        socket::register(ctx.ops);
    }
    1
}

#[sock_ops]
fn portredir_acc(ctx: SockOpsContext) -> u32 {
    const ACCEPTED: u32 = aya_ebpf::bindings::BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB;
    if ctx.op() == ACCEPTED {
        socket::accept(ctx.ops);
    }
    1
}

/// Run by user space, for sockets that listen already: the packet is an
/// Ethernet header and a [`FlowKey`] to the listener.
#[classifier]
fn portredir_scan(ctx: TcContext) -> i32 {
    let skb = ctx.as_ptr().cast();
    let Some(words) = Skb::new(skb).words::<{ size_of::<FlowKey>() / 4 }>(14) else {
        return -1;
    };
    // SAFETY: any bytes are a key.
    let key: FlowKey = unsafe { core::mem::transmute(words) };
    socket::register_listener(skb, &key)
}

#[cgroup_sock_addr(connect4)]
fn portredir_conn4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, SockAddr::new(&ctx).addr4())
}

#[cgroup_sock_addr(connect6)]
fn portredir_conn6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, SockAddr::new(&ctx).addr6())
}

#[cgroup_sock_addr(sendmsg4)]
fn portredir_send4(ctx: SockAddrContext) -> i32 {
    send(&ctx, SockAddr::new(&ctx).addr4())
}

#[cgroup_sock_addr(sendmsg6)]
fn portredir_send6(ctx: SockAddrContext) -> i32 {
    send(&ctx, SockAddr::new(&ctx).addr6())
}

#[cgroup_sock_addr(recvmsg4)]
fn portredir_recv4(ctx: SockAddrContext) -> i32 {
    answer(&ctx, SockAddr::new(&ctx).addr4())
}

#[cgroup_sock_addr(recvmsg6)]
fn portredir_recv6(ctx: SockAddrContext) -> i32 {
    answer(&ctx, SockAddr::new(&ctx).addr6())
}

#[cgroup_sock_addr(getpeername4)]
fn portredir_peer4(ctx: SockAddrContext) -> i32 {
    answer(&ctx, SockAddr::new(&ctx).addr4())
}

#[cgroup_sock_addr(getpeername6)]
fn portredir_peer6(ctx: SockAddrContext) -> i32 {
    answer(&ctx, SockAddr::new(&ctx).addr6())
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
