//! Every map, and the datapath's [`Tables`] over them.

use core::arch::asm;
use core::ffi::c_void;
use core::mem::offset_of;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock,
    bpf_sock_tuple,
};
use aya_ebpf::btf_maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::btf_maps::{Array, HashMap, SkStorage, SockHash};
use aya_ebpf::helpers::generated::{
    bpf_get_prandom_u32, bpf_sk_fullsock, bpf_sk_storage_get, bpf_skc_lookup_tcp,
};
use aya_ebpf::macros::btf_map;
use portredir_common::abi::{
    Addr, AddrKey, Candidates, CounterKey, Dialled, Flow, FlowKey, Hot, IfaceKey, LOOPBACK_IFINDEX,
    ListenerKey, Old, Port, PortEntry, Protocol, SourceKey, StateKey, local, own_place,
};
use portredir_common::bucket::Word as _;
use portredir_common::flow::{Flags, Host, Original, Socket};
use portredir_common::redirect::{Cached, Choice, SocketCache, Tables};
use portredir_common::wire::Version;

use crate::context::Context;
use crate::counters;
use crate::flows::Volatile;

pub const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
pub const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// See [`Hot`].
#[btf_map]
static HOT: Array<Hot<Volatile>, 1, MMAPABLE> = Array::new();

/// Earlier targets of ports, by [`Old::key`].
#[btf_map]
static OLD: HashMap<u32, Old, { 2 * PortEntry::COUNT as usize }, NO_PREALLOC> = HashMap::new();

// The conditions of rules: by the address of this host, then by that of the
// client; which interfaces are meant is in `IFACES`.
#[btf_map]
static ADDRS: HashMap<AddrKey, u32, 65536, NO_PREALLOC> = HashMap::new();
#[btf_map]
static SOURCES: LpmTrie<SourceKey, Candidates, 262144> = LpmTrie::new();
#[btf_map]
static IFACES: HashMap<IfaceKey, u64, 8192, NO_PREALLOC> = HashMap::new();

/// What commands leave for each other.
#[btf_map]
static STATE: HashMap<StateKey, [u8; 1024], 32768, NO_PREALLOC> = HashMap::new();

/// Unicast addresses of this host; value as in [`local`].
#[btf_map]
static LOCAL: HashMap<Addr, u8, 16384> = HashMap::new();

/// The flows of servers' sockets, direct ones too.
#[btf_map]
pub static SOCKETS: SkStorage<Flow> = SkStorage::new();

/// Servers on the targets, by where they listen.
#[btf_map]
pub static LISTENERS: SockHash<ListenerKey, 16384> = SockHash::new();

/// Where the next of them goes, of `ListenerKey::SLOTS`, by the low byte of
/// the port: ports that share an entry only disturb the order.
#[btf_map]
pub static NEXT_SLOT: Array<u32, 256> = Array::new();

/// Interfaces whose connections [`LISTENERS`] get.
#[btf_map]
pub static SCOPE: HashMap<u32, u8, 4096> = HashMap::new();

/// Of clients on this host.
#[btf_map]
pub static DIALLED: SkStorage<Dialled> = SkStorage::new();

/// The rule and target of a packet to a port whose rules have conditions, as
/// one number; 0 when there is none. Global, as what is in [`crate::context`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn candidate(entry: u64, key: *const FlowKey, port: u32, ifindex: u32) -> u32 {
    let (entry, port) = (PortEntry::from_word(entry), port as u16);
    // SAFETY: null or a key.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return 0;
    };
    let set = AddrKey::set(entry);
    let addr = AddrKey {
        set,
        addr: key.local,
    };
    // SAFETY: four bytes.
    let group = unsafe { ADDRS.get(addr) }.copied().unwrap_or(set);
    let source = SourceKey {
        group,
        version: u32::from(key.version),
        client: key.client,
    };
    let Some(candidates) = SOURCES.get(&Key::new(SourceKey::PREFIX + 128, source)) else {
        return 0;
    };
    let iface = IfaceKey {
        generation: entry.generation(),
        ifindex,
    };
    // SAFETY: eight bytes.
    let mask = unsafe { IFACES.get(iface) }.copied().unwrap_or_default() | 1;
    for i in 0..Candidates::COUNT {
        let candidate = &candidates.0[i];
        if candidate.target == 0 {
            break;
        }
        if mask >> (candidate.on & 63) & 1 != 0 {
            return u32::from(candidate.rule) << 16 | u32::from(candidate.target_of(port));
        }
    }
    0
}

/// The index of an entry of ports as a number of which the verifier knows the
/// largest: Linux 6.1 forgets it when bytes are swapped, and the compiler does not.
#[inline(always)]
fn bounded(index: u32) -> usize {
    const MASK: u32 = PortEntry::COUNT - 1;
    const { assert!(PortEntry::COUNT.is_power_of_two()) };
    let mut index = u64::from(index);
    // SAFETY: plain arithmetic on a register.
    unsafe {
        asm!(
            "{0} &= {mask}",
            inout(reg) index,
            mask = const MASK,
            options(pure, nomem, nostack),
        );
    }
    index as usize & MASK as usize
}

/// The maps and helpers, as one context may use them.
#[derive(Clone, Copy)]
pub struct Kernel<C> {
    pub ctx: C,
    hot: &'static Hot<Volatile>,
}

impl<C> Kernel<C> {
    /// `None` cannot be, but the verifier does not know.
    #[inline(always)]
    pub fn new(ctx: C) -> Option<Self> {
        Some(Self {
            ctx,
            hot: HOT.get(0)?,
        })
    }
}

impl<C: Context> Host for Kernel<C> {
    #[inline(always)]
    fn port(&self, protocol: Protocol, port: Port) -> PortEntry {
        // User space writes one of them at a time, and not the one of the
        // generation that is live.
        let index = bounded(PortEntry::index(protocol, port));
        let [first, second] = &self.hot.ports[index];
        let (first, second) = (first.load(), second.load());
        if first | second == 0 {
            return PortEntry::default();
        }
        let is_first = self.hot.generation.load() & 1 == 0;
        PortEntry::from_word(if is_first { first } else { second })
    }

    #[inline(always)]
    fn socket(&self, key: &FlowKey) -> Socket {
        match self.ctx.tcp_state(key) {
            0 | tcp_state::LISTEN => Socket::None,
            tcp_state::TIME_WAIT => Socket::TimeWait,
            _ => Socket::Connection,
        }
    }

    #[inline(always)]
    fn is_served(&self, key: &FlowKey) -> bool {
        if key.protocol == Protocol::Udp as u8 {
            self.ctx.has_udp(key)
        } else {
            !matches!(self.ctx.tcp_state(key), 0 | tcp_state::TIME_WAIT)
        }
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        counters::now_ns()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }
}

impl<C: Context> Tables for Kernel<C> {
    #[inline(always)]
    fn is_local(&self, addr: &Addr) -> bool {
        is_local(addr, self.ctx.ifindex())
    }

    #[inline(always)]
    fn is_own(&self, addr: &Addr) -> bool {
        is_own(self.hot, *addr)
    }

    #[inline(always)]
    fn is_from_here(&self) -> bool {
        self.ctx.ifindex() == LOOPBACK_IFINDEX
    }

    #[inline(always)]
    fn choose(&self, entry: PortEntry, key: &FlowKey, port: Port) -> Option<Choice> {
        let found = candidate(entry.to_word(), key, port.get().into(), self.ctx.ifindex());
        let choice = Choice {
            target: found as u16,
            rule: (found >> 16) as u16,
        };
        (found != 0).then_some(choice)
    }

    #[inline(always)]
    fn old(&self, entry: PortEntry, protocol: Protocol, port: Port) -> Old {
        let key = Old::key(entry.generation(), PortEntry::index(protocol, port));
        // SAFETY: eight bytes, written before the generation is live.
        unsafe { OLD.get(key) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn find_route(&self, key: &mut FlowKey, entry: u64, flags: Flags) -> u64 {
        self.ctx.find_route(key, entry, flags)
    }

    #[inline(always)]
    fn has_begun(&self, key: &mut FlowKey, original: Original, flags: Flags) -> u32 {
        self.ctx.has_begun(key, original, flags)
    }

    #[inline(always)]
    fn admit(&self, key: &mut FlowKey, dialled_port: Port, route: u64, flags: Flags) -> u64 {
        self.ctx.admit(key, dialled_port, route, flags)
    }

    #[inline(always)]
    fn hit(&self, rule: u16, segments: u32, bytes: usize, is_new: bool, now_ns: u64) {
        let key = CounterKey {
            ifindex: self.ctx.ifindex(),
            rule: rule.into(),
        };
        if C::IS_PACKET {
            counters::hit_by_packet(key, segments, bytes, is_new, now_ns);
        } else {
            counters::hit_elsewhere(key, segments, bytes, is_new, now_ns);
        }
    }
}

impl SocketCache for Kernel<*mut __sk_buff> {
    #[inline(always)]
    fn cached(&self, key: &FlowKey) -> Cached {
        let Some(socket) = sender(self.ctx, key) else {
            return Cached::NoSocket;
        };
        let flow = stored(socket, core::ptr::null_mut(), 0);
        match copy((!flow.is_null()).then_some(flow.cast_const())) {
            Some(flow) => Cached::Flow(flow),
            None => Cached::Nothing,
        }
    }

    #[inline(always)]
    fn cache(&self, key: &FlowKey, flow: &Flow) {
        let mut flow = *flow;
        if let Some(socket) = sender(self.ctx, key) {
            // Without memory for it the flow tables are asked again.
            stored(
                socket,
                &raw mut flow,
                u64::from(BPF_SK_STORAGE_GET_F_CREATE),
            );
        }
    }
}

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

    // As `struct bpf_sock_tuple`: source and destination address, their
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

/// [`Tables::is_own`].
#[inline(always)]
fn is_own(hot: &Hot<Volatile>, addr: Addr) -> bool {
    let [low, high] = addr.long_words();
    let [a, b, c, d] = &hot.own[own_place(addr) as usize];
    // A place that is not used looks like this address.
    if low | high == 0 {
        return false;
    }
    (a.load() ^ low) | (b.load() ^ high) == 0 || (c.load() ^ low) | (d.load() ^ high) == 0
}

/// [`Tables::is_local`]. Not inlined: who is quick asks [`is_own`].
#[inline(never)]
fn is_local(addr: &Addr, ifindex: u32) -> bool {
    if HOT.get(0).is_some_and(|hot| is_own(hot, *addr)) {
        return true;
    }
    // SAFETY: one byte.
    match unsafe { LOCAL.get(addr) } {
        Some(&local::ANYWHERE) => true,
        Some(_) => ifindex == LOOPBACK_IFINDEX,
        None => addr.is_v4_loopback() && ifindex == LOOPBACK_IFINDEX,
    }
}

/// Copies a flow out of a map.
///
/// By way of a flow that is always initialised: from a plain `map` the compiler
/// concludes that it may compute with the fields before it knows whether they
/// are there, and the verifier finds pointers in the registers.
#[inline(always)]
fn copy(flow: Option<*const Flow>) -> Option<Flow> {
    let mut copy = Flow::default();
    if let Some(flow) = flow {
        // SAFETY: not null, from a map. The copy may be torn by another CPU,
        // which then writes the same ports.
        copy = unsafe { *flow };
    }
    // Nobody dials port 0.
    (copy.dialled_port != Port::new(0)).then_some(copy)
}

/// The socket that sends a packet, if it is the connection of `key`: neither a
/// listener, nor a request, nor the kernel's own socket for resets.
#[inline(always)]
fn sender(ctx: *mut __sk_buff, key: &FlowKey) -> Option<*mut bpf_sock> {
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
        src_port == u32::from(key.local_port.get()) && Port::from_half(dst_port) == key.client_port;
    is_its.then_some(socket)
}

/// The flow that is kept at a full socket; null when there is none. What is
/// `initial`, null or a flow, is kept if the flags say so.
#[inline(always)]
pub fn stored(socket: *mut bpf_sock, initial: *mut Flow, flags: u64) -> *mut Flow {
    let map = (&raw const SOCKETS).cast_mut().cast();
    // SAFETY: by the arguments.
    unsafe { bpf_sk_storage_get(map, socket.cast(), initial.cast(), flags) }.cast()
}
