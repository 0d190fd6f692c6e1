//! The maps and helpers of the kernel, as the datapath asks for them.

pub mod counters;
pub mod flows;
pub mod sockets;
pub mod subprog;

use aya_ebpf::bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use portredir_common::flow::{Flow, FlowKey, Original};
use portredir_common::kernel::{Cached, Choice, Host, Socket, SocketCache, Tables};
use portredir_common::map::bucket::Word as _;
use portredir_common::map::counters::CounterKey;
use portredir_common::map::local;
use portredir_common::map::rules::{
    AddrKey, Candidates, Hot, IfaceKey, Old, PortEntry, SourceKey, own_place,
};
use portredir_common::net::{Addr, Flags, LOOPBACK_IFINDEX, Port, Protocol};

use crate::context::Context;
use crate::kernel::sockets::{sender, stored, tcp_state};
use crate::maps::{ADDRS, HOT, IFACES, LOCAL, OLD, SOURCES};
use crate::verifier::{Volatile, bounded};

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
