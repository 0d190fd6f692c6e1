//! The servers on targets.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST, bpf_sock, bpf_sock_ops};
use aya_ebpf::helpers::generated::{
    bpf_map_lookup_elem, bpf_map_update_elem, bpf_sk_release, bpf_sock_hash_update,
};
use aya_ebpf::macros::{classifier, sock_ops};
use aya_ebpf::programs::{SockOpsContext, TcContext};
use portredir_common::flow::FlowKey;
use portredir_common::map::sockets::ListenerKey;
use portredir_common::net::{Addr, Port};
use portredir_common::wire::frame::Frame as _;

use crate::context::{AF_INET, v4, v6};
use crate::frame::{AtData, Skb};
use crate::kernel::Kernel;
use crate::kernel::sockets::{hand_down, tcp_socket, tcp_state};
use crate::maps::{LISTENERS, NEXT_SLOT};
use crate::program::sock_ops::{is_in_netns, is_target};

/// Registers a socket that begins to listen.
#[inline(always)]
pub fn register(ops: *mut bpf_sock_ops) {
    // SAFETY: the kernel passes a valid context for the time of the run.
    let port = Port::new(unsafe { (*ops).local_port } as u16);
    let is_meant = Kernel::new(ops).is_some_and(|tables| is_target(&tables, port));
    if !is_meant || !is_in_netns(ops) {
        return;
    }
    // SAFETY: as above.
    let addr = if unsafe { (*ops).family } == AF_INET {
        v4!(ops, bpf_sock_ops, local_ip4)
    } else {
        v6!(ops, bpf_sock_ops, local_ip6)
    };
    into_slot(addr, port, |key, flags| {
        let map = (&raw const LISTENERS).cast_mut().cast();
        let key = core::ptr::from_mut(key).cast();
        // SAFETY: a socket map and a key of its type.
        unsafe { bpf_sock_hash_update(ops, map, key, flags) }
    });
    // SAFETY: as above.
    let socket: *mut bpf_sock = unsafe { (*ops).__bindgen_anon_2.sk };
    if !socket.is_null() {
        hand_down(socket, port);
    }
}

/// Registers the socket that listens for a flow; 1 when it was not registered
/// before, else 0 or the kernel's error.
#[inline(always)]
pub fn register_listener(skb: *mut __sk_buff, key: &FlowKey) -> i32 {
    const ENOENT: i32 = 2;
    let socket = tcp_socket(skb, key);
    if socket.is_null() {
        return -ENOENT;
    }
    // SAFETY: not null, and ours until it is released.
    let result = if unsafe { (*socket).state } != tcp_state::LISTEN {
        -ENOENT
    } else if is_registered(socket, key.local, key.local_port) {
        0
    } else {
        let result = into_slot(key.local, key.local_port, |key, flags| {
            let map = (&raw const LISTENERS).cast_mut().cast();
            let key = core::ptr::from_ref(key).cast();
            // SAFETY: a socket map and a key of its type.
            unsafe { bpf_map_update_elem(map, key, socket.cast(), flags) }
        });
        if result == 0 {
            hand_down(socket, key.local_port);
            1
        } else {
            result
        }
    };
    // SAFETY: the reference from the look-up, given back once.
    unsafe { bpf_sk_release(socket.cast()) };
    result
}

/// Puts a socket into a slot that is free, else in place of the one that is
/// there for the longest time and may be about to close.
#[inline(always)]
fn into_slot(addr: Addr, port: Port, update: impl Fn(&mut ListenerKey, u64) -> i64) -> i32 {
    const EEXIST: i32 = 17;
    // Before Linux 6.4 only the lower half of what a map returns is set.
    let update = |key: &mut ListenerKey, flags| update(key, flags) as i32;
    let mut key = ListenerKey {
        addr,
        port,
        slot: 0,
        pad: 0,
    };
    let Some(next) = NEXT_SLOT.get_ptr_mut(u32::from(port.get() & 0xff)) else {
        return -EEXIST;
    };
    // SAFETY: not null. Another CPU may change it, then the order is another.
    let first = unsafe { *next };
    for i in 0..u32::from(ListenerKey::SLOTS) {
        key.slot = slot(first + i);
        let result = update(&mut key, u64::from(BPF_NOEXIST));
        if result == 0 {
            // SAFETY: as above.
            unsafe { *next = first + i + 1 };
        }
        if result != -EEXIST {
            return result;
        }
    }
    // SAFETY: as above.
    unsafe { *next = first + 1 };
    key.slot = slot(first);
    update(&mut key, u64::from(BPF_ANY))
}

#[inline(always)]
const fn slot(i: u32) -> u8 {
    (i % ListenerKey::SLOTS as u32) as u8
}

/// Whether a listening socket is in one of its slots.
#[inline(always)]
fn is_registered(socket: *mut bpf_sock, addr: Addr, port: Port) -> bool {
    let map = (&raw const LISTENERS).cast_mut().cast();
    let mut key = ListenerKey {
        addr,
        port,
        slot: 0,
        pad: 0,
    };
    for slot in 0..ListenerKey::SLOTS {
        key.slot = slot;
        // SAFETY: a socket map and a key of its type.
        let other: *mut bpf_sock =
            unsafe { bpf_map_lookup_elem(map, core::ptr::from_ref(&key).cast()) }.cast();
        if other.is_null() {
            continue;
        }
        let is_same = core::ptr::eq(other, socket);
        // SAFETY: the reference from the look-up, given back once.
        unsafe { bpf_sk_release(other.cast()) };
        if is_same {
            return true;
        }
    }
    false
}

#[sock_ops]
fn portredir_reg(ctx: SockOpsContext) -> u32 {
    const LISTEN: u32 = aya_ebpf::bindings::BPF_SOCK_OPS_TCP_LISTEN_CB;
    if ctx.op() == LISTEN {
        register(ctx.ops);
    }
    1
}

/// Run by user space, for sockets that listen already: the packet is an
/// Ethernet header and a [`FlowKey`] to the listener.
#[classifier]
fn portredir_scan(ctx: TcContext) -> i32 {
    let skb = ctx.as_ptr().cast();
    let Some(words) = Skb::new(skb, AtData).words::<{ size_of::<FlowKey>() / 4 }>(14) else {
        return -1;
    };
    // SAFETY: any bytes are a key.
    let key: FlowKey = unsafe { core::mem::transmute(words) };
    register_listener(skb, &key)
}
