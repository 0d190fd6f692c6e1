//! What is asked by way of the context of a packet.
//!
//! The functions here that are exported are global to the verifier, which walks
//! them once and not once per call and state of the caller. It has them look at
//! pointers, and wants them to return a number. A context cannot be generic then,
//! so there is one of each for each kind of context.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release};
use portredir_common::datapath::{conntrack, subprog};
use portredir_common::flow::{FlowKey, NOT_BEGUN, Original};
use portredir_common::net::{Flags, Port};

use crate::context::Context;
use crate::kernel::Kernel;
use crate::kernel::sockets::{look_up, tcp_socket};

#[inline(always)]
pub fn tcp_state(ctx: impl Context, key: &FlowKey) -> u32 {
    let socket = tcp_socket(ctx, key);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: not null, and ours until it is released.
    let state = unsafe { (*socket).state };
    // SAFETY: the reference from the look-up, given back once.
    unsafe { bpf_sk_release(socket.cast()) };
    state
}

#[inline(always)]
pub fn has_udp(ctx: impl Context, key: &FlowKey) -> bool {
    let socket = look_up(ctx, key, bpf_sk_lookup_udp);
    if socket.is_null() {
        return false;
    }
    // SAFETY: the reference from the look-up, given back once.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}

#[inline(always)]
pub fn find_route(ctx: impl Context, key: &mut FlowKey, entry: u64, flags: Flags) -> u64 {
    Kernel::new(ctx).map_or(0, |tables| subprog::find_route(&tables, key, entry, flags))
}

#[inline(always)]
pub fn has_begun(ctx: impl Context, key: &mut FlowKey, original: Original, flags: Flags) -> u32 {
    Kernel::new(ctx).map_or(NOT_BEGUN, |tables| {
        conntrack::has_begun(&tables, key, original, flags)
    })
}

#[inline(always)]
pub fn admit(
    ctx: impl Context,
    key: &mut FlowKey,
    dialled_port: Port,
    route: u64,
    flags: Flags,
) -> u64 {
    Kernel::new(ctx).map_or(0, |tables| {
        subprog::admit(&tables, key, dialled_port, route, flags)
    })
}

macro_rules! packet_context {
    ($context:ty, $ifindex:ident, $tcp_state:ident, $has_udp:ident, $find_route:ident, $has_begun:ident, $admit:ident) => {
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $tcp_state(ctx: *mut $context, key: *const FlowKey) -> u32 {
            // SAFETY: null or a key.
            unsafe { key.as_ref() }.map_or(0, |key| tcp_state(ctx, key))
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $has_udp(ctx: *mut $context, key: *const FlowKey) -> u32 {
            // SAFETY: null or a key.
            unsafe { key.as_ref() }.map_or(0, |key| has_udp(ctx, key).into())
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $find_route(
            ctx: *mut $context,
            key: *mut FlowKey,
            entry: u64,
            flags: u32,
        ) -> u64 {
            // SAFETY: null or a key of the caller's own.
            match (unsafe { key.as_mut() }, Kernel::new(ctx)) {
                (Some(key), Some(tables)) => {
                    subprog::find_route(&tables, key, entry, Flags(flags as u16))
                }
                _ => 0,
            }
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $has_begun(
            ctx: *mut $context,
            key: *mut FlowKey,
            dialled_port: u32,
            rule: u32,
            flags: u32,
        ) -> u32 {
            // SAFETY: null or a key of the caller's own.
            let (Some(key), Some(tables)) = (unsafe { key.as_mut() }, Kernel::new(ctx)) else {
                return NOT_BEGUN;
            };
            let original = Original {
                dialled_port: Port::new(dialled_port as u16),
                client_port: key.client_port,
                rule: rule as u16,
            };
            conntrack::has_begun(&tables, key, original, Flags(flags as u16))
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $admit(
            ctx: *mut $context,
            key: *mut FlowKey,
            dialled_port: u32,
            route: u64,
            flags: u32,
        ) -> u64 {
            let dialled_port = Port::new(dialled_port as u16);
            let flags = Flags(flags as u16);
            // SAFETY: null or a key of the caller's own.
            match (unsafe { key.as_mut() }, Kernel::new(ctx)) {
                (Some(key), Some(tables)) => {
                    subprog::admit(&tables, key, dialled_port, route, flags)
                }
                _ => 0,
            }
        }

        impl Context for *mut $context {
            const IS_PACKET: bool = true;

            #[inline(always)]
            fn as_ptr(self) -> *mut c_void {
                self.cast()
            }

            #[inline(always)]
            fn ifindex(self) -> u32 {
                // SAFETY: the kernel passes a valid context for the time of the run.
                unsafe { (*self).$ifindex }
            }

            #[inline(always)]
            fn tcp_state(self, key: &FlowKey) -> u32 {
                $tcp_state(self, key)
            }

            #[inline(always)]
            fn has_udp(self, key: &FlowKey) -> bool {
                $has_udp(self, key) != 0
            }

            #[inline(always)]
            fn find_route(self, key: &mut FlowKey, entry: u64, flags: Flags) -> u64 {
                $find_route(self, key, entry, flags.0.into())
            }

            #[inline(always)]
            fn has_begun(self, key: &mut FlowKey, original: Original, flags: Flags) -> u32 {
                let dialled_port = original.dialled_port.get().into();
                $has_begun(
                    self,
                    key,
                    dialled_port,
                    original.rule.into(),
                    flags.0.into(),
                )
            }

            #[inline(always)]
            fn admit(self, key: &mut FlowKey, dialled_port: Port, route: u64, flags: Flags) -> u64 {
                $admit(self, key, dialled_port.get().into(), route, flags.0.into())
            }
        }
    };
}

packet_context!(
    xdp_md,
    ingress_ifindex,
    xdp_tcp_state,
    xdp_has_udp,
    xdp_find_route,
    xdp_has_begun,
    xdp_admit
);
packet_context!(
    __sk_buff,
    ifindex,
    skb_tcp_state,
    skb_has_udp,
    skb_find_route,
    skb_has_begun,
    skb_admit
);
