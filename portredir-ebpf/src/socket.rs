//! The contexts and maps of the socket engine.

use core::arch::asm;
use core::ffi::c_void;
use core::mem::offset_of;

use aya_ebpf::bindings::{
    __sk_buff, BPF_ANY, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, bpf_sk_lookup, bpf_sock,
    bpf_sock_addr, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_map_lookup_elem, bpf_map_update_elem, bpf_sk_assign, bpf_sk_release,
    bpf_sk_storage_get, bpf_sock_hash_update,
};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext};
use portredir_common::abi::{
    Addr, Dialled, Epoch, FlowKey, LOOPBACK_IFINDEX, ListenerKey, Port, Protocol,
};
use portredir_common::flow::{self, Host as _};
use portredir_common::socket::{Client, Listeners};
use portredir_common::wire::Version;

use crate::context::Context;
use crate::counters;
use crate::maps::{DIALLED, Kernel, LISTENERS, NEXT_SLOT, SCOPE, stored, tcp_socket, tcp_state};

// include/linux/socket.h
const AF_INET: u32 = 2;

/// The network namespace that the rules are for: cgroups contain processes of
/// others. Set by user space.
#[unsafe(no_mangle)]
static NETNS_COOKIE: u64 = 0;

/// Whether servers on loopback addresses serve other hosts. Set by user space.
#[unsafe(no_mangle)]
static LOOPBACK_TARGET: u8 = 0;

#[inline(always)]
pub fn is_loopback_target_allowed() -> bool {
    // SAFETY: a valid static; volatile, as the loader changes its value.
    unsafe { (&raw const LOOPBACK_TARGET).read_volatile() != 0 }
}

#[inline(always)]
fn netns_cookie() -> u64 {
    // SAFETY: as above.
    unsafe { (&raw const NETNS_COOKIE).read_volatile() }
}

/// Loads the `i`th word of a field of a context.
///
/// In assembler, as the compiler would choose between two fields by computing a
/// pointer, which is forbidden for contexts.
macro_rules! word {
    ($ctx:expr, $context:ty, $field:ident, $i:literal) => {{
        let word: u64;
        // SAFETY: the kernel passes a valid context for the time of the run.
        unsafe {
            asm!(
                "{word} = *(u32 *)({ctx} + {offset})",
                word = out(reg) word,
                ctx = in(reg) $ctx,
                offset = const offset_of!($context, $field) + 4 * $i,
                options(pure, readonly, nostack),
            );
        }
        word as u32
    }};
}

/// An IPv4 address in a field of a context.
macro_rules! v4 {
    ($ctx:expr, $context:ty, $field:ident) => {
        Addr::v4_word([word!($ctx, $context, $field, 0)])
    };
}

/// An IPv6 address in a field of a context.
macro_rules! v6 {
    ($ctx:expr, $context:ty, $field:ident) => {{
        Addr::from_words([
            word!($ctx, $context, $field, 0),
            word!($ctx, $context, $field, 1),
            word!($ctx, $context, $field, 2),
            word!($ctx, $context, $field, 3),
        ])
    }};
}

/// A connection that looks for a listener. With `SCOPED` the interface it came
/// in by is known, since Linux 5.17.
#[derive(Clone, Copy)]
pub struct Lookup<const SCOPED: bool>(*mut bpf_sk_lookup);

impl<const SCOPED: bool> Lookup<SCOPED> {
    #[inline(always)]
    pub const fn new(ctx: &SkLookupContext) -> Self {
        Self(ctx.lookup)
    }

    #[inline(always)]
    pub fn is_tcp(self) -> bool {
        const IPPROTO_TCP: u32 = 6;
        // SAFETY: the kernel passes a valid context for the time of the run.
        unsafe { (*self.0).protocol == IPPROTO_TCP }
    }

    /// Whether this is the look-up of [`register_listener`], which asks for the
    /// server of a port itself: it names a client that cannot be.
    #[inline(always)]
    fn is_scan(self) -> bool {
        // SAFETY: the context is valid.
        if unsafe { (*self.0).family } == AF_INET {
            v4!(self.0, bpf_sk_lookup, remote_ip4).is(Addr::V4_ANY)
        } else {
            v6!(self.0, bpf_sk_lookup, remote_ip6).is(Addr::V6_ANY)
        }
    }

    /// What the client dialled.
    #[inline(always)]
    pub fn key(self) -> FlowKey {
        // SAFETY: the context is valid.
        let (family, port) = unsafe { ((*self.0).family, (*self.0).local_port) };
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
            key.client = v4!(self.0, bpf_sk_lookup, remote_ip4);
            key.local = v4!(self.0, bpf_sk_lookup, local_ip4);
        } else {
            key.client = v6!(self.0, bpf_sk_lookup, remote_ip6);
            key.local = v6!(self.0, bpf_sk_lookup, local_ip6);
        }
        key
    }
}

impl<const SCOPED: bool> Context for Lookup<SCOPED> {
    #[inline(always)]
    fn as_ptr(self) -> *mut c_void {
        self.0.cast()
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        if SCOPED {
            // SAFETY: the context is valid.
            return unsafe { (*self.0).ingress_ifindex };
        }
        // Loopback addresses are martians elsewhere.
        let addr = self.key().local;
        if addr.is_v4_loopback() || addr.is(Addr::V6_LOOPBACK) {
            LOOPBACK_IFINDEX
        } else {
            0
        }
    }
}

impl<const SCOPED: bool> Listeners for Kernel<Lookup<SCOPED>> {
    #[inline(always)]
    fn is_in_scope(&self) -> bool {
        // SAFETY: one byte.
        let is_chosen = || !SCOPED || unsafe { SCOPE.get(self.ctx.ifindex()) }.is_some();
        !self.ctx.is_scan() && is_chosen()
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

impl Context for *mut bpf_sock_ops {
    #[inline(always)]
    fn as_ptr(self) -> *mut c_void {
        self.cast()
    }

    /// Not told.
    #[inline(always)]
    fn ifindex(self) -> u32 {
        0
    }
}

#[inline(always)]
fn is_target(tables: &Kernel<*mut bpf_sock_ops>, port: Port) -> bool {
    tables.port(Protocol::Tcp, port).is_target()
}

/// Whether a socket is of the network namespace that the rules are for.
#[inline(always)]
fn is_here(ops: *mut bpf_sock_ops) -> bool {
    // SAFETY: the kernel passes a valid context for the time of the run.
    unsafe { bpf_get_netns_cookie(ops.cast()) == netns_cookie() }
}

/// Notes a connection that a server on a target accepts: see [`flow::accept`].
#[inline(always)]
pub fn accept(ops: *mut bpf_sock_ops) {
    // SAFETY: the kernel passes a valid context for the time of the run.
    let (port, remote_port, socket) = unsafe {
        let socket: *mut bpf_sock = (*ops).__bindgen_anon_2.sk;
        ((*ops).local_port as u16, (*ops).remote_port, socket)
    };
    let port = Port::new(port);
    let Some(tables) = Kernel::new(ops) else {
        return;
    };
    if !is_target(&tables, port) || socket.is_null() || !is_here(ops) {
        return;
    }
    // Two bytes in network order, shifted to where they would be the port of a
    // word in network order.
    let client_port = if cfg!(target_endian = "little") {
        remote_port >> 16
    } else {
        remote_port
    };
    let mut key = FlowKey {
        client: Addr::V6_ANY,
        local: Addr::V6_ANY,
        client_port: Port::from_half(client_port as u16),
        local_port: port,
        protocol: Protocol::Tcp as u8,
        version: Version::V4 as u8,
        pad: [0; 2],
    };
    // SAFETY: as above.
    if unsafe { (*ops).family } == AF_INET {
        key.client = v4!(ops, bpf_sock_ops, remote_ip4);
        key.local = v4!(ops, bpf_sock_ops, local_ip4);
    } else {
        key.client = v6!(ops, bpf_sock_ops, remote_ip6);
        key.local = v6!(ops, bpf_sock_ops, local_ip6);
        // A server of both versions has its IPv4 clients like this.
        if !key.client.is_v4() {
            key.version = Version::V6 as u8;
        }
    }
    let mut flow = flow::accept(&tables, &key, Epoch::at(counters::now_ns()));
    // A full socket, as it is one of a connection. Without memory for it the flow
    // tables are asked.
    stored(
        socket,
        &raw mut flow,
        u64::from(BPF_SK_STORAGE_GET_F_CREATE),
    );
}

/// Registers a socket that begins to listen.
#[inline(always)]
pub fn register(ops: *mut bpf_sock_ops) {
    // SAFETY: the kernel passes a valid context for the time of the run.
    let port = Port::new(unsafe { (*ops).local_port } as u16);
    let is_meant = Kernel::new(ops).is_some_and(|tables| is_target(&tables, port));
    if !is_meant || !is_here(ops) {
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
        if result == 0 { 1 } else { result }
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

/// A client on this host that names its peer.
#[derive(Clone, Copy)]
pub struct SockAddr(*mut bpf_sock_addr);

impl SockAddr {
    #[inline(always)]
    pub const fn new(ctx: &SockAddrContext) -> Self {
        Self(ctx.sock_addr)
    }

    #[inline(always)]
    pub fn protocol(self) -> u32 {
        // SAFETY: the kernel passes a valid context for the time of the run.
        unsafe { (*self.0).protocol }
    }

    #[inline(always)]
    pub fn port(self) -> Port {
        // SAFETY: the context is valid. Network order, in the first two bytes.
        Port::from_half(unsafe { (*self.0).user_port } as u16)
    }

    #[inline(always)]
    pub fn set_port(self, port: Port) {
        // SAFETY: the context is valid.
        unsafe { (*self.0).user_port = port.half().into() }
    }

    /// For hooks of IPv4 alone.
    #[inline(always)]
    pub fn addr4(self) -> Addr {
        v4!(self.0, bpf_sock_addr, user_ip4)
    }

    /// For hooks of IPv6 alone.
    #[inline(always)]
    pub fn addr6(self) -> Addr {
        v6!(self.0, bpf_sock_addr, user_ip6)
    }

    #[inline(always)]
    fn dialled_by(self, initial: *mut Dialled, flags: u64) -> Option<&'static mut Dialled> {
        // SAFETY: the context is valid, and has a socket.
        let socket = unsafe { (*self.0).__bindgen_anon_1.sk };
        let map = (&raw const DIALLED).cast_mut().cast();
        // SAFETY: a full socket; `initial` is null or a value of the map. The
        // value lives as long as the socket. Another thread of the client that
        // dials by the same socket writes the same kind of thing.
        unsafe {
            bpf_sk_storage_get(map, socket.cast(), initial.cast(), flags)
                .cast::<Dialled>()
                .as_mut()
        }
    }
}

impl Context for SockAddr {
    #[inline(always)]
    fn as_ptr(self) -> *mut c_void {
        self.0.cast()
    }

    /// Packets of the host to itself come in by `lo`, whatever the address.
    #[inline(always)]
    fn ifindex(self) -> u32 {
        LOOPBACK_IFINDEX
    }
}

impl Client for SockAddr {
    #[inline(always)]
    fn is_here(&self) -> bool {
        // SAFETY: the context is valid.
        unsafe { bpf_get_netns_cookie(self.0.cast()) == netns_cookie() }
    }

    #[inline(always)]
    fn bound_to(&self) -> Addr {
        // SAFETY: the context is valid, and has a socket.
        let addr = unsafe { (*(*self.0).__bindgen_anon_1.sk).src_ip4 };
        Addr::v4(addr.to_ne_bytes())
    }

    #[inline(always)]
    fn peer_port(&self) -> Option<Port> {
        // SAFETY: the context is valid, and has a socket.
        let port = unsafe { (*(*self.0).__bindgen_anon_1.sk).dst_port };
        (port != 0).then_some(Port::from_half(port))
    }

    #[inline(always)]
    fn dialled(&mut self) -> Option<&mut Dialled> {
        self.dialled_by(core::ptr::null_mut(), 0)
    }

    #[inline(always)]
    fn dialled_or_new(&mut self) -> Option<&mut Dialled> {
        const CREATE: u64 = aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE as u64;
        let mut none = Dialled::default();
        self.dialled_by(&raw mut none, CREATE)
    }
}
