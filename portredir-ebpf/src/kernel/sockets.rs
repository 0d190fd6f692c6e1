//! Sockets of packets, and what is kept at them.

use core::ffi::c_void;
use core::mem::offset_of;

use aya_ebpf::bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{
    bpf_sk_assign, bpf_sk_fullsock, bpf_sk_lookup_udp, bpf_sk_release, bpf_sk_storage_get,
    bpf_skc_lookup_tcp,
};
use portredir_common::flow::{Flow, FlowKey};
use portredir_common::net::{Port, Version};

use crate::context::Context;
use crate::maps::{LISTENS_ON, SCOPE, SOCKETS};

/// States of a socket, as `include/net/tcp_states.h` numbers them.
pub mod tcp_state {
    pub const TIME_WAIT: u32 = 6;
    pub const LISTEN: u32 = 10;
}

/// The TCP socket that gets the packets of a flow; to be released unless null.
#[inline(always)]
pub fn tcp_socket(ctx: impl Context, key: &FlowKey) -> *mut bpf_sock {
    look_up(ctx, key, bpf_skc_lookup_tcp)
}

/// The state of the TCP socket that gets the packets of a flow, or 0.
#[inline(always)]
pub fn tcp_state_of(ctx: impl Context, key: &FlowKey) -> u32 {
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

/// Gives a packet to the socket that listens for a flow, if there is one.
#[inline(always)]
pub fn assign_listener(ctx: *mut __sk_buff, key: &FlowKey) -> bool {
    let socket = tcp_socket(ctx, key);
    if socket.is_null() {
        return false;
    }
    // SAFETY: not null, and ours until it is released.
    let is_listening = unsafe { (*socket).state } == tcp_state::LISTEN;
    // SAFETY: as above.
    let is_assigned = is_listening && unsafe { bpf_sk_assign(ctx.cast(), socket.cast(), 0) } == 0;
    if is_assigned {
        hand_down(socket, key.local_port);
    }
    // SAFETY: the reference from the look-up, given back once.
    unsafe { bpf_sk_release(socket.cast()) };
    is_assigned
}

/// Keeps the port of a listener where the sockets of its connections get it from. Without
/// memory for it the connections are not listed.
#[inline(always)]
pub fn hand_down(listener: *mut bpf_sock, mut port: Port) {
    let map = (&raw const LISTENS_ON).cast_mut().cast();
    let value = (&raw mut port).cast();
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: a storage of sockets, a socket that is not null, and a value of its type.
    unsafe { bpf_sk_storage_get(map, listener.cast(), value, flags) };
}

/// Whether there is a UDP socket that gets the packets of a flow.
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

/// Whether the UDP socket that gets the packets of a flow is connected: a look-up finds
/// it only for the flow of its one peer.
#[inline(always)]
pub fn is_connected_udp(ctx: impl Context, key: &FlowKey) -> bool {
    let socket = look_up(ctx, key, bpf_sk_lookup_udp);
    if socket.is_null() {
        return false;
    }
    // SAFETY: not null, and ours until it is released.
    let peer_port = unsafe { (*socket).dst_port };
    // SAFETY: the reference from the look-up, given back once.
    unsafe { bpf_sk_release(socket.cast()) };
    peer_port != 0
}

/// Whether connections that come in by an interface are given to listeners in a way, one of
/// [`scope`](portredir_common::map::sockets::scope).
#[inline(always)]
pub fn is_in_scope(ifindex: u32, by: u8) -> bool {
    // SAFETY: one byte.
    unsafe { SCOPE.get(ifindex) }.is_some_and(|scope| *scope == by)
}

/// The IPv4 half of `struct bpf_sock_tuple`.
#[repr(C)]
struct Tuple {
    addrs: [u32; 2],
    ports: [u16; 2],
}

/// A helper that looks a socket up.
type LookUp = unsafe fn(*mut c_void, *mut bpf_sock_tuple, u32, u64, u64) -> *mut bpf_sock;

#[inline(always)]
pub fn look_up(ctx: impl Context, key: &FlowKey, look_up: LookUp) -> *mut bpf_sock {
    const CURRENT_NETNS: u64 = u64::MAX;

    // The layout of `struct bpf_sock_tuple`: source and destination address, their
    // ports, in network order. The first 36 bytes of a key are just that.
    if key.version == Version::V4 as u8 {
        let ([_, _, _, client], [_, _, _, local]) = (key.client.words(), key.local.words());
        let ports = [key.client_port, key.local_port].map(Port::half);
        let mut tuple = Tuple {
            addrs: [client, local],
            ports,
        };
        let len = size_of::<Tuple>() as u32;
        // SAFETY: the tuple outlives the call, and its length says IPv4.
        unsafe { look_up(ctx.as_ptr(), (&raw mut tuple).cast(), len, CURRENT_NETNS, 0) }
    } else {
        let len = offset_of!(FlowKey, protocol) as u32;
        let tuple = core::ptr::from_ref(key).cast_mut().cast();
        // SAFETY: the key outlives the call, which only reads it; the
        // length says IPv6.
        unsafe { look_up(ctx.as_ptr(), tuple, len, CURRENT_NETNS, 0) }
    }
}

/// The socket that sends a packet, if it has these ports: neither a
/// listener, nor a request, nor the kernel's own socket for resets.
#[inline(always)]
pub fn sender(
    ctx: *mut __sk_buff,
    (local_port, client_port): (Port, Port),
) -> Option<*mut bpf_sock> {
    // SAFETY: the kernel passes a valid context for the time of the run.
    let socket: *mut bpf_sock = unsafe { (*ctx).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    // SAFETY: not null.
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return None;
    }
    // SAFETY: not null. `src_port` is in host, `dst_port` in network order.
    let (src_port, dst_port) = unsafe { ((*socket).src_port, (*socket).dst_port) };
    let is_its =
        src_port == u32::from(local_port.get()) && Port::from_half(dst_port) == client_port;
    is_its.then_some(socket)
}

/// Whether a socket of this host sends a packet, of whatever kind it is.
#[inline(always)]
pub fn has_sender(ctx: *mut __sk_buff) -> bool {
    // SAFETY: the kernel passes a valid context for the time of the run.
    let socket: *mut bpf_sock = unsafe { (*ctx).__bindgen_anon_2.sk };
    !socket.is_null()
}

/// The flow that is kept at a full socket; null when there is none. What is
/// `initial`, null or a flow, is kept if the flags say so.
#[inline(always)]
pub fn stored(socket: *mut bpf_sock, initial: *mut Flow, flags: u64) -> *mut Flow {
    let map = (&raw const SOCKETS).cast_mut().cast();
    // SAFETY: by the arguments.
    unsafe { bpf_sk_storage_get(map, socket.cast(), initial.cast(), flags) }.cast()
}
