//! Clients on this host that name their peer.

use core::ffi::c_void;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sk_storage_get, bpf_skc_to_mptcp_sock,
    bpf_skc_to_tcp6_sock, bpf_skc_to_udp6_sock,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use portredir_common::datapath::connect::{NamedPeer, PeerCall, redirect_connect, restore_peer};
use portredir_common::flow::FlowKey;
use portredir_common::kernel::Client;
use portredir_common::map::sockets::{ConnectedPeers, ForwardPeer, ForwardPeers, scope};
use portredir_common::map::trace::TraceHook;
use portredir_common::net::{Addr, LOOPBACK_IFINDEX, Port, Protocol};
use portredir_common::verdict::{Reason, Verdict};

use crate::context::{AF_INET, Context, v4, v6};
use crate::globals::{has_mptcp, has_socket_casts, netns_cookie};
use crate::kernel::Kernel;
use crate::kernel::sockets::{has_udp, is_connected_udp, is_in_scope, tcp_state_of};
use crate::maps::{DIALLED, FORWARD_PEERS, UDP_PEERS};
use crate::program::conclude::conclude_for_socket;
use crate::program::trace;

/// The byte of `skc_ipv6only` in `struct sock_common`: after two addresses, a hash, two
/// ports, the family and the state (include/net/sock.h, since Linux 3.16).
const V6_ONLY_BYTE: usize = 19;
/// The bit: behind `skc_reuse`, which has four, and `skc_reuseport`.
const V6_ONLY_BIT: u8 = if cfg!(target_endian = "little") {
    1 << 5
} else {
    1 << 2
};

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
    pub fn set_addr4(self, addr: Addr) {
        let [.., word] = addr.words();
        // SAFETY: the context is valid.
        unsafe { (*self.0).user_ip4 = word };
    }

    /// For hooks of IPv6 alone.
    #[inline(always)]
    pub fn set_addr6(self, addr: Addr) {
        let [a, b, c, d] = addr.words();
        // SAFETY: the context is valid. Word by word, as the verifier wants it.
        unsafe {
            (&raw mut (*self.0).user_ip6[0]).write_volatile(a);
            (&raw mut (*self.0).user_ip6[1]).write_volatile(b);
            (&raw mut (*self.0).user_ip6[2]).write_volatile(c);
            (&raw mut (*self.0).user_ip6[3]).write_volatile(d);
        }
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

    /// The address of the peer; `V4` says which hook this is.
    #[inline(always)]
    fn addr<const V4: bool>(self) -> Addr {
        if V4 { self.addr4() } else { self.addr6() }
    }

    #[inline(always)]
    fn set_addr<const V4: bool>(self, addr: Addr) {
        if V4 {
            self.set_addr4(addr);
        } else {
            self.set_addr6(addr);
        }
    }

    /// The value that a map keeps at the socket.
    #[inline(always)]
    fn stored<T>(self, map: *const SkStorage<T>, flags: u64) -> *mut T {
        // SAFETY: the context is valid, and has a socket.
        let subflow = unsafe { (*self.0).__bindgen_anon_1.sk };
        let mut socket: *mut c_void = subflow.cast();
        if has_mptcp() {
            // A subflow connects, but the MPTCP socket is asked for its peer.
            // SAFETY: the context has a socket.
            let mptcp = unsafe { bpf_skc_to_mptcp_sock(subflow.cast()) };
            if !mptcp.is_null() {
                socket = mptcp.cast();
            }
        }
        // SAFETY: a full socket; what has no value begins as zero. The
        // value lives as long as the socket. Another thread of the client that
        // uses the same socket writes the same kind of thing.
        unsafe {
            bpf_sk_storage_get(map.cast_mut().cast(), socket, core::ptr::null_mut(), flags).cast()
        }
    }

    /// The value that a map keeps at the socket; all zero if there was none.
    #[inline(always)]
    fn stored_or_zero<T>(self, map: *const SkStorage<T>) -> *mut T {
        const CREATE: u64 = aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE as u64;
        self.stored(map, CREATE)
    }
}

impl Context for SockAddr {
    const IS_PACKET: bool = false;

    #[inline(always)]
    fn as_ptr(self) -> *mut c_void {
        self.0.cast()
    }

    /// Packets of the host to itself come in by `lo`, whatever the address.
    #[inline(always)]
    fn ifindex(self) -> u32 {
        LOOPBACK_IFINDEX
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

impl Client for SockAddr {
    #[inline(always)]
    fn is_in_netns(&self) -> bool {
        // SAFETY: the context is valid.
        unsafe { bpf_get_netns_cookie(self.0.cast()) == netns_cookie() }
    }

    #[inline(always)]
    fn bound_to(&self) -> Addr {
        // SAFETY: the context is valid.
        let socket = unsafe { (*self.0).__bindgen_anon_1.sk };
        // SAFETY: the context has a socket.
        let (family, v4) = unsafe { ((*socket).family, (*socket).src_ip4) };
        // Of a bound IPv6 socket `src_ip4` is 127.0.0.6 (`LOOPBACK4_IPV6`,
        // include/net/ipv6.h).
        if family == AF_INET {
            Addr::v4(v4.to_ne_bytes())
        } else {
            v6!(socket, bpf_sock, src_ip6)
        }
    }

    #[inline(always)]
    fn is_v6_only(&self) -> bool {
        // SAFETY: the context is valid.
        let socket: *mut c_void = unsafe { (*self.0).__bindgen_anon_1.sk }.cast();
        if !has_socket_casts() {
            return true;
        }
        // SAFETY: the context has a socket. Null for a socket of another kind.
        let mut typed: *const u8 = unsafe { bpf_skc_to_tcp6_sock(socket) }.cast();
        if typed.is_null() {
            // SAFETY: as above.
            typed = unsafe { bpf_skc_to_udp6_sock(socket) }.cast();
        }
        if typed.is_null() {
            return true;
        }
        // SAFETY: a socket, which begins with a `struct sock_common`; the verifier allows
        // the byte.
        unsafe { typed.add(V6_ONLY_BYTE).read_volatile() & V6_ONLY_BIT != 0 }
    }

    #[inline(always)]
    fn own_port(&self) -> Port {
        // SAFETY: the context is valid, and has a socket. In host order.
        let port = unsafe { (*(*self.0).__bindgen_anon_1.sk).src_port };
        Port::new(port as u16)
    }

    /// A socket that is bound to a device may be in a VRF, whose packets to itself do not
    /// cross `lo`.
    #[inline(always)]
    fn is_syn_assigned(&self) -> bool {
        // SAFETY: the context is valid, and has a socket.
        let device = unsafe { (*(*self.0).__bindgen_anon_1.sk).bound_dev_if };
        device == 0 && is_in_scope(LOOPBACK_IFINDEX, scope::ASSIGN)
    }

    #[inline(always)]
    fn is_connected_udp(&self, key: &FlowKey) -> bool {
        is_connected_udp(*self, key)
    }

    #[inline(always)]
    fn peer_port(&self) -> Option<Port> {
        // SAFETY: the context is valid, and has a socket.
        let port = unsafe { (*(*self.0).__bindgen_anon_1.sk).dst_port };
        (port != 0).then_some(Port::from_half(port))
    }

    #[inline(always)]
    fn peers(&mut self) -> Option<&mut ConnectedPeers> {
        // SAFETY: null or a value of the map, see `stored`.
        unsafe { self.stored(&raw const DIALLED, 0).as_mut() }
    }

    #[inline(always)]
    fn peers_or_insert(&mut self) -> Option<&mut ConnectedPeers> {
        // SAFETY: as above.
        unsafe { self.stored_or_zero(&raw const DIALLED).as_mut() }
    }

    #[inline(always)]
    fn forward_peers(&mut self) -> Option<&mut ForwardPeers> {
        let map = &raw const FORWARD_PEERS;
        // SAFETY: as above.
        unsafe { self.stored(map, 0).as_mut() }
    }

    #[inline(always)]
    fn forward_peers_or_insert(&mut self) -> Option<&mut ForwardPeers> {
        // SAFETY: as above.
        unsafe { self.stored_or_zero(&raw const FORWARD_PEERS).as_mut() }
    }

    #[inline(always)]
    fn keep_udp_peer(&mut self, peer: Option<&ForwardPeer>) {
        // SAFETY: the context is valid.
        let cookie = unsafe { bpf_get_socket_cookie(self.0.cast()) };
        // Without memory for it the socket cannot be ended, and works all the same.
        let _ = match peer {
            Some(peer) => UDP_PEERS.insert(cookie, peer, 0),
            None => UDP_PEERS.remove(cookie),
        };
    }
}

/// Points a client on this host at the target.
#[inline(always)]
fn redirect_peer<const V4: bool>(ctx: &SockAddrContext, protocol: Protocol, call: PeerCall) -> i32 {
    const DENY: i32 = 0;
    const ALLOW: i32 = 1;
    let mut client = SockAddr::new(ctx);
    let (addr, port) = (client.addr::<V4>(), client.port());
    let Some(tables) = Kernel::new(client) else {
        return ALLOW;
    };
    let mut peer = NamedPeer {
        protocol,
        addr,
        port,
    };
    let reason = redirect_connect(&tables, &mut client, &mut peer, call);
    if reason == Reason::Redirected {
        if !peer.addr.is(addr) {
            client.set_addr::<V4>(peer.addr);
        }
        client.set_port(peer.port);
    }
    let verdict = conclude_for_socket(reason);
    let hook = match call {
        PeerCall::Connect => TraceHook::Connect,
        PeerCall::Send => TraceHook::Send,
    };
    let named = NamedPeer { addr, port, ..peer };
    tell(&tables, &named, peer.port, (hook, reason));
    match verdict {
        Verdict::Pass => ALLOW,
        Verdict::Drop => DENY,
    }
}

#[inline(always)]
fn connect<const V4: bool>(ctx: &SockAddrContext) -> i32 {
    match protocol(ctx) {
        Some(protocol) => redirect_peer::<V4>(ctx, protocol, PeerCall::Connect),
        None => 1,
    }
}

/// UDP-Lite has this hook as well.
#[inline(always)]
fn send<const V4: bool>(ctx: &SockAddrContext) -> i32 {
    match protocol(ctx) {
        Some(Protocol::Udp) => redirect_peer::<V4>(ctx, Protocol::Udp, PeerCall::Send),
        _ => 1,
    }
}

/// Tells a client on this host the port that it connected to, and the address.
#[inline(always)]
fn tell_peer<const V4: bool>(ctx: &SockAddrContext, hook: TraceHook) -> i32 {
    let Some(protocol) = protocol(ctx) else {
        return 1;
    };
    let mut client = SockAddr::new(ctx);
    let (addr, port) = (client.addr::<V4>(), client.port());
    let Some(tables) = Kernel::new(client) else {
        return 1;
    };
    let mut peer = NamedPeer {
        protocol,
        addr,
        port,
    };
    let reason = match restore_peer(&tables, &mut client, &mut peer) {
        Ok(()) => {
            if !peer.addr.is(addr) {
                client.set_addr::<V4>(peer.addr);
            }
            client.set_port(peer.port);
            Reason::Restored
        }
        Err(reason) => reason,
    };
    let _ = conclude_for_socket(reason);
    let own = NamedPeer { addr, port, ..peer };
    tell(&tables, &own, peer.port, (hook, reason));
    1
}

/// Tells who traces of a peer, which has another port now, and of the hook and the reason.
#[inline(always)]
fn tell(
    tables: &Kernel<SockAddr>,
    peer: &NamedPeer,
    port_after: Port,
    (hook, reason): (TraceHook, Reason),
) {
    let unknown = if peer.addr.is_v4() {
        Addr::V4_ANY
    } else {
        Addr::V6_ANY
    };
    let key = FlowKey {
        client: unknown,
        local: peer.addr,
        client_port: Port::CLOSED,
        local_port: peer.port,
        protocol: peer.protocol as u8,
        version: if peer.addr.is_v4() { 4 } else { 6 },
        pad: [0; 2],
    };
    let peer = trace::Peer {
        hook,
        reason,
        key: &key,
        port_after,
    };
    trace::peer::<true, _>(tables, peer);
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

#[cgroup_sock_addr(connect4)]
fn portredir_conn4(ctx: SockAddrContext) -> i32 {
    connect::<true>(&ctx)
}

#[cgroup_sock_addr(connect6)]
fn portredir_conn6(ctx: SockAddrContext) -> i32 {
    connect::<false>(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
fn portredir_send4(ctx: SockAddrContext) -> i32 {
    send::<true>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
fn portredir_send6(ctx: SockAddrContext) -> i32 {
    send::<false>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
fn portredir_recv4(ctx: SockAddrContext) -> i32 {
    tell_peer::<true>(&ctx, TraceHook::Receive)
}

#[cgroup_sock_addr(recvmsg6)]
fn portredir_recv6(ctx: SockAddrContext) -> i32 {
    tell_peer::<false>(&ctx, TraceHook::Receive)
}

#[cgroup_sock_addr(getpeername4)]
fn portredir_peer4(ctx: SockAddrContext) -> i32 {
    tell_peer::<true>(&ctx, TraceHook::PeerName)
}

#[cgroup_sock_addr(getpeername6)]
fn portredir_peer6(ctx: SockAddrContext) -> i32 {
    tell_peer::<false>(&ctx, TraceHook::PeerName)
}
