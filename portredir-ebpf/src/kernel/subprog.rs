//! The parts of the datapath that are BPF functions of their own, for contexts of
//! packets.
//!
//! These functions are global to the verifier, which walks them once and not once per
//! call and state of the caller. It has them look at pointers, and wants them to return
//! a number. A context cannot be generic then, so there is one of each for each kind of
//! context: [`packet_context`] makes them.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, bpf_xfrm_state, xdp_md};
use aya_ebpf::helpers::generated::bpf_skb_get_xfrm_state;
use portredir_common::datapath::{forward, subprog};
use portredir_common::flow::{Admitted, FlowKey, Original, Segment};
use portredir_common::kernel::forward::{ForwardFlow, FreeSlot};
use portredir_common::kernel::{Admission, Route, Subprograms};
use portredir_common::map::rules::PortEntry;
use portredir_common::map::sockets::scope;
use portredir_common::net::{Flags, Port};
use portredir_common::packed::Packed;
use portredir_common::verdict::Reason;

use crate::context::Context;
use crate::globals::has_ipsec;
use crate::kernel::Kernel;
use crate::kernel::sockets::{has_udp, is_in_scope, tcp_state_of};
use crate::verifier::used;

macro_rules! packet_context {
    (
        $context:ty, $ifindex:ident,
        $tcp_state:ident, $has_udp:ident, $find_route:ident, $has_begun:ident, $admit:ident,
        $find_forward:ident, $begin_forward:ident,
        $is_ipsec_by_socket:expr
    ) => {
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $tcp_state(ctx: *mut $context, key: *const FlowKey) -> u32 {
            // SAFETY: null or a key.
            unsafe { key.as_ref() }.map_or(0, |key| tcp_state_of(ctx, key))
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
            let route = match (unsafe { key.as_mut() }, Kernel::new(ctx)) {
                (Some(key), Some(tables)) => {
                    let entry = PortEntry::unpack(entry);
                    subprog::find_route(&tables, key, entry, Flags(flags as u16))
                }
                _ => Err(Reason::NoRule),
            };
            route.pack()
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $has_begun(
            ctx: *mut $context,
            key: *mut FlowKey,
            dst_port: u32,
            rule: u32,
            flags: u32,
        ) -> u64 {
            // SAFETY: null or a key of the caller's own.
            let rule = match (unsafe { key.as_mut() }, Kernel::new(ctx)) {
                (Some(key), Some(tables)) => {
                    let original = Original {
                        dst_port: Port::unpack(dst_port.into()),
                        client_port: key.client_port,
                        rule: rule as u16,
                    };
                    subprog::has_begun(&tables, key, original, Flags(flags as u16))
                }
                _ => None,
            };
            rule.pack()
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $admit(
            ctx: *mut $context,
            key: *mut FlowKey,
            dst_port: u32,
            route: u64,
            segment: u64,
        ) -> u64 {
            let request = Admission {
                dst_port: Port::unpack(dst_port.into()),
                route: Route::unpack(route),
                segment: Segment::unpack(segment),
            };
            // SAFETY: null or a key of the caller's own.
            let admitted = match (unsafe { key.as_mut() }, Kernel::new(ctx)) {
                (Some(key), Some(tables)) => subprog::admit(&tables, key, &request),
                _ => Err(Reason::NoRule),
            };
            admitted.pack()
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $find_forward(
            ctx: *mut $context,
            key: *mut FlowKey,
            route: u64,
            segment: u64,
        ) -> u64 {
            // SAFETY: null or a key of the caller's own.
            let flow = match (unsafe { key.as_mut() }, Kernel::new(used(ctx))) {
                (Some(key), Some(tables)) => {
                    let (route, segment) = (Route::unpack(route), Segment::unpack(segment));
                    forward::find(&tables, key, route, segment)
                }
                _ => Err(Reason::NoRule),
            };
            flow.pack()
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $begin_forward(
            ctx: *mut $context,
            key: *mut FlowKey,
            slot: u64,
            flags: u32,
        ) -> u64 {
            // SAFETY: null or a key of the caller's own.
            let admitted = match (unsafe { key.as_mut() }, Kernel::new(ctx)) {
                (Some(key), Some(tables)) => {
                    forward::begin(&tables, key, FreeSlot::unpack(slot), Flags(flags as u16))
                }
                _ => Err(Reason::NoRule),
            };
            admitted.pack()
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
            fn is_ipsec_by_socket(self) -> bool {
                $is_ipsec_by_socket(self)
            }
        }

        impl Subprograms for Kernel<*mut $context> {
            #[inline(always)]
            fn find_route(
                &self,
                key: &mut FlowKey,
                entry: PortEntry,
                flags: Flags,
            ) -> Result<Route, Reason> {
                Packed::unpack($find_route(self.ctx, key, entry.pack(), flags.0.into()))
            }

            #[inline(always)]
            fn has_begun(
                &self,
                key: &mut FlowKey,
                original: Original,
                flags: Flags,
            ) -> Option<u16> {
                let dst_port = original.dst_port.half().into();
                let rule = original.rule.into();
                Packed::unpack($has_begun(self.ctx, key, dst_port, rule, flags.0.into()))
            }

            #[inline(always)]
            fn admit(&self, key: &mut FlowKey, request: &Admission) -> Result<Admitted, Reason> {
                let dst_port = request.dst_port.half().into();
                let route = request.route.pack();
                let segment = request.segment.pack();
                Packed::unpack($admit(self.ctx, key, dst_port, route, segment))
            }

            #[inline(always)]
            fn find_forward(
                &self,
                key: &mut FlowKey,
                route: Route,
                segment: Segment,
            ) -> Result<ForwardFlow, Reason> {
                let (route, segment) = (route.pack(), segment.pack());
                Packed::unpack($find_forward(self.ctx, key, route, segment))
            }

            #[inline(always)]
            fn begin_forward(
                &self,
                key: &mut FlowKey,
                slot: FreeSlot,
                flags: Flags,
            ) -> Result<Admitted, Reason> {
                let flags = flags.0.into();
                Packed::unpack($begin_forward(self.ctx, key, slot.pack(), flags))
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
    xdp_admit,
    xdp_find_forward,
    xdp_begin_forward,
    |_| false
);
packet_context!(
    __sk_buff,
    ifindex,
    skb_tcp_state,
    skb_has_udp,
    skb_find_route,
    skb_has_begun,
    skb_admit,
    skb_find_forward,
    skb_begin_forward,
    |ctx| skb_is_ipsec_by_socket(ctx) != 0
);

/// [`Context::is_ipsec_by_socket`]: a packet that came out of IPsec keeps the state that
/// decrypted it, and no packet has more for the same interface. A tunnel interface of
/// IPsec is not in [`SCOPE`](crate::maps::SCOPE) for that.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn skb_is_ipsec_by_socket(ctx: *mut __sk_buff) -> u32 {
    // SAFETY: the context is valid.
    let ifindex = unsafe { (*ctx).ifindex };
    // The flag is a constant to the verifier, which removes the call where there is no
    // such helper.
    if !is_in_scope(ifindex, scope::LOOKUP) || !has_ipsec() {
        return 0;
    }
    let mut state = MaybeUninit::<bpf_xfrm_state>::uninit();
    let size = size_of::<bpf_xfrm_state>() as u32;
    // SAFETY: the helper fills the whole state, also when there is none.
    let ret = unsafe { bpf_skb_get_xfrm_state(ctx, 0, state.as_mut_ptr(), size, 0) };
    (ret == 0).into()
}
