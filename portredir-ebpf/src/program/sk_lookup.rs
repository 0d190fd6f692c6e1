//! Connections that look for a listener.

use core::ffi::c_void;

use aya_ebpf::bindings::{bpf_sk_lookup, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use portredir_common::datapath::sk_lookup::{find_listener, is_wanted};
use portredir_common::flow::FlowKey;
use portredir_common::kernel::{Host as _, Listeners};
use portredir_common::map::sockets::{ListenerKey, scope};
use portredir_common::map::trace::TraceHook;
use portredir_common::net::{Addr, LOOPBACK_IFINDEX, Port, Protocol, Version};
use portredir_common::verdict::Verdict;

use crate::context::{AF_INET, Context, v4, v6, word};
use crate::globals::is_loopback_target_allowed;
use crate::kernel::sockets::{has_udp, is_in_scope, tcp_state_of};
use crate::kernel::{Kernel, is_local};
use crate::maps::LISTENERS;
use crate::program::conclude::conclude;
use crate::program::trace;

/// A connection that looks for a listener. With `SCOPED` the interface it came
/// in by is known, since Linux 5.17.
#[derive(Clone, Copy)]
pub struct Lookup<const SCOPED: bool> {
    ctx: *mut bpf_sk_lookup,
    /// The ifindex that rules know the interface by.
    ifindex: u32,
}

impl<const SCOPED: bool> Lookup<SCOPED> {
    #[inline(always)]
    pub const fn new(ctx: &SkLookupContext) -> Self {
        Self {
            ctx: ctx.lookup,
            ifindex: 0,
        }
    }

    /// This connection with its interface. A local client comes by `lo`; the
    /// kernel tells the interface that has the destination address (`inet_iif` in
    /// include/net/inet_sock.h, of the route that the client's packet took).
    #[inline(always)]
    pub fn located(self, key: &FlowKey) -> Self {
        let is_own = is_local(&key.client, LOOPBACK_IFINDEX)
            // Loopback addresses are martians elsewhere.
            || key.local.is_v4_loopback()
            || key.local.is(Addr::V6_LOOPBACK);
        let ifindex = if is_own {
            LOOPBACK_IFINDEX
        } else if SCOPED {
            // SAFETY: the kernel passes a valid context for the time of the run.
            unsafe { (*self.ctx).ingress_ifindex }
        } else {
            0
        };
        Self { ifindex, ..self }
    }

    #[inline(always)]
    pub fn is_tcp(self) -> bool {
        const IPPROTO_TCP: u32 = 6;
        // SAFETY: the kernel passes a valid context for the time of the run.
        unsafe { (*self.ctx).protocol == IPPROTO_TCP }
    }

    /// The port of the client.
    #[inline(always)]
    fn client_port(self) -> Port {
        Port::from_half(word!(self.ctx, bpf_sk_lookup, remote_port, 0) as u16)
    }

    /// Whether this is the look-up of [`super::listeners::register_listener`], which asks for the
    /// server of a port itself: it names a client that cannot be.
    #[inline(always)]
    fn is_scan(self) -> bool {
        // SAFETY: the context is valid.
        if unsafe { (*self.ctx).family } == AF_INET {
            v4!(self.ctx, bpf_sk_lookup, remote_ip4).is(Addr::V4_ANY)
        } else {
            v6!(self.ctx, bpf_sk_lookup, remote_ip6).is(Addr::V6_ANY)
        }
    }

    /// The flow to the port that the client connected to.
    #[inline(always)]
    pub fn key(self) -> FlowKey {
        // SAFETY: the context is valid.
        let (family, port) = unsafe { ((*self.ctx).family, (*self.ctx).local_port) };
        let mut key = FlowKey {
            client: Addr::V6_ANY,
            local: Addr::V6_ANY,
            client_port: Port::new(0),
            local_port: Port::new(port as u16),
            protocol: Protocol::Tcp as u8,
            version: Version::V6 as u8,
            pad: [0; 2],
        };
        if family == AF_INET {
            key.version = Version::V4 as u8;
            key.client = v4!(self.ctx, bpf_sk_lookup, remote_ip4);
            key.local = v4!(self.ctx, bpf_sk_lookup, local_ip4);
        } else {
            key.client = v6!(self.ctx, bpf_sk_lookup, remote_ip6);
            key.local = v6!(self.ctx, bpf_sk_lookup, local_ip6);
        }
        key
    }
}

impl<const SCOPED: bool> Context for Lookup<SCOPED> {
    const IS_PACKET: bool = false;

    #[inline(always)]
    fn as_ptr(self) -> *mut c_void {
        self.ctx.cast()
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        self.ifindex
    }

    #[inline(always)]
    fn tcp_state(self, key: &FlowKey) -> u32 {
        tcp_state_of(self, key)
    }

    #[inline(always)]
    fn has_udp(self, key: &FlowKey) -> bool {
        has_udp(self, key)
    }

    #[inline(always)]
    fn is_ipsec_by_socket(self) -> bool {
        false
    }
}

impl<const SCOPED: bool> Listeners for Kernel<Lookup<SCOPED>> {
    #[inline(always)]
    fn is_in_scope(&self) -> bool {
        let ifindex = self.ctx.ifindex;
        let is_everywhere = !SCOPED && ifindex != LOOPBACK_IFINDEX;
        !self.ctx.is_scan() && (is_everywhere || is_in_scope(ifindex, scope::LOOKUP))
    }

    #[inline(always)]
    fn is_loopback_allowed(&self) -> bool {
        is_loopback_target_allowed()
    }

    #[inline(always)]
    fn assign(&self, key: &ListenerKey) -> bool {
        let map = (&raw const LISTENERS).cast_mut().cast();
        // SAFETY: a socket map and a key of its type.
        let socket: *mut bpf_sock =
            unsafe { bpf_map_lookup_elem(map, core::ptr::from_ref(key).cast()) }.cast();
        if socket.is_null() {
            return false;
        }
        // SAFETY: not null, and ours until it is released.
        let device = unsafe { (*socket).bound_dev_if };
        // The kernel does not look at what the socket is bound to again.
        let is_for_us = device == 0 || device == self.ctx.ifindex();
        // SAFETY: as above. It fails when the socket is of the wrong family, or
        // when another program has chosen already.
        let is_assigned =
            is_for_us && unsafe { bpf_sk_assign(self.ctx.as_ptr(), socket.cast(), 0) } == 0;
        // SAFETY: the reference from the look-up, given back once.
        unsafe { bpf_sk_release(socket.cast()) };
        is_assigned
    }
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
    let Some(tables) = Kernel::new(lookup) else {
        return SK_PASS;
    };
    if !is_wanted(tables.port(Protocol::Tcp, key.local_port)) {
        return SK_PASS;
    }
    let Some(tables) = Kernel::new(lookup.located(&key)) else {
        return SK_PASS;
    };
    let reason = find_listener(&tables, &key);
    let verdict = conclude(reason);
    let key = FlowKey {
        client_port: lookup.client_port(),
        ..key
    };
    let peer = trace::Peer {
        hook: TraceHook::Lookup,
        reason,
        key: &key,
        port_after: key.local_port,
    };
    trace::peer::<false, _>(&tables, peer);
    match verdict {
        Verdict::Pass => SK_PASS,
        // The stack answers as if nobody listened.
        Verdict::Drop => SK_DROP,
    }
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
