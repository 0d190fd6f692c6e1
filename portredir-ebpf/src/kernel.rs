//! The maps and helpers of the kernel, as the datapath asks for them.

pub mod counters;
pub mod flows;
pub mod forward;
pub mod rules;
pub mod sockets;
pub mod subprog;

use aya_ebpf::bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use portredir_common::flow::{Flow, FlowKey};
use portredir_common::kernel::{Assign, Cached, Hit, Host, Outcome, Socket, SocketCache, Tables};
use portredir_common::map::entry::Word as _;
use portredir_common::map::local;
use portredir_common::map::packet_path::{
    ENTRY_BITS, IPSEC_BY_SOCKET, PacketPath, TRACED, local_addr_slot,
};
use portredir_common::map::rules::{Choice, PortEntry, PreviousTargets};
use portredir_common::map::trace::TraceHead;
use portredir_common::net::{Addr, LOOPBACK_IFINDEX, Port, Protocol};
use portredir_common::packed::Packed;

use crate::context::Context;
use crate::kernel::sockets::{assign_listener, has_sender, sender, stored, tcp_state};
use crate::maps::{HOT, LOCAL, LOCAL_NETS, OLD, TRACE_CPU};
use crate::verifier::{Volatile, masked};

/// The maps and helpers, as one context may use them.
#[derive(Clone, Copy)]
pub struct Kernel<C> {
    pub ctx: C,
    packet_path: &'static PacketPath<Volatile>,
}

impl<C> Kernel<C> {
    /// The result is always `Some`, but the verifier does not know.
    #[inline(always)]
    pub fn new(ctx: C) -> Option<Self> {
        Some(Self {
            ctx,
            packet_path: HOT.get(0)?,
        })
    }

    /// Whether somebody traces.
    #[inline(always)]
    pub fn is_traced(&self) -> bool {
        self.packet_path.generation.load() & TRACED != 0
    }
}

impl<C: Context> Host for Kernel<C> {
    #[inline(always)]
    fn port(&self, protocol: Protocol, port: Port) -> PortEntry {
        const COUNT: usize = PortEntry::COUNT as usize;
        // User space writes one of them at a time, and not the one of the
        // generation that is live.
        let index = masked::<COUNT>(PortEntry::index(protocol, port).into());
        let [first, second] = &self.packet_path.ports[index];
        let (first, second) = (first.load(), second.load());
        if first | second == 0 {
            return PortEntry::default();
        }
        let generation = self.packet_path.generation.load();
        if generation & IPSEC_BY_SOCKET != 0 && self.ctx.is_ipsec_by_socket() {
            return PortEntry::default();
        }
        let is_first = generation & 1 == 0;
        let entry = if is_first { first } else { second };
        PortEntry::unpack(entry | generation & ENTRY_BITS)
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
    fn is_in_local_addr_cache(&self, addr: &Addr) -> bool {
        is_in_local_addr_cache(self.packet_path, *addr)
    }

    #[inline(always)]
    fn came_in_on_loopback(&self) -> bool {
        self.ctx.ifindex() == LOOPBACK_IFINDEX
    }

    #[inline(always)]
    fn match_rule(&self, entry: PortEntry, key: &FlowKey, dst_port: Port) -> Option<Choice> {
        rules::call_match_rule(entry, key, dst_port, self.ctx.ifindex())
    }

    #[inline(always)]
    fn previous_targets(
        &self,
        entry: PortEntry,
        protocol: Protocol,
        port: Port,
    ) -> PreviousTargets {
        let index = PortEntry::index(protocol, port);
        let key = PreviousTargets::key(entry.generation(), index);
        // SAFETY: eight bytes, written before the generation is live.
        unsafe { OLD.get(key) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn note_rule(&self, rule: u16) {
        if self.is_traced() {
            note_rule(TraceHead::RULE | u32::from(rule));
        }
    }

    #[inline(always)]
    fn record(&self, hit: &Hit) {
        if C::IS_PACKET {
            counters::record_packet(self.ctx.ifindex(), hit);
        } else {
            counters::record_elsewhere(self.ctx.ifindex(), hit);
        }
    }

    #[inline(always)]
    fn record_reply(&self, hit: &Hit) {
        counters::record_reply(self.ctx.ifindex(), hit);
    }

    #[inline(always)]
    fn record_outcome(&self, rule: u16, outcome: Outcome) {
        counters::record_outcome(rule, outcome);
    }
}

impl Assign for Kernel<*mut __sk_buff> {
    #[inline(always)]
    fn assign_listener(&self, key: &FlowKey) -> bool {
        assign_listener(self.ctx, key)
    }
}

impl SocketCache for Kernel<*mut __sk_buff> {
    #[inline(always)]
    fn cached(&self, ports: (Port, Port)) -> Cached {
        let Some(socket) = sender(self.ctx, ports) else {
            return if has_sender(self.ctx) {
                Cached::NoSocket
            } else {
                Cached::Forwarded
            };
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
        if let Some(socket) = sender(self.ctx, (key.local_port, key.client_port)) {
            // Without memory for it the flow tables are asked again.
            stored(
                socket,
                &raw mut flow,
                u64::from(BPF_SK_STORAGE_GET_F_CREATE),
            );
        }
    }
}

/// Whether an address is in the local address cache.
#[inline(always)]
fn is_in_local_addr_cache(packet_path: &PacketPath<Volatile>, addr: Addr) -> bool {
    let [low, high] = addr.long_words();
    let [a, b, c, d] = &packet_path.local_addrs[local_addr_slot(addr) as usize];
    // An unused place looks like this address.
    if low | high == 0 {
        return false;
    }
    (a.load() ^ low) | (b.load() ^ high) == 0 || (c.load() ^ low) | (d.load() ^ high) == 0
}

/// Whether an address is one of this host, for packets that came in on an interface.
/// This is not inlined: the fast path asks [`is_in_local_addr_cache`].
#[inline(never)]
pub fn is_local(addr: &Addr, ifindex: u32) -> bool {
    if HOT
        .get(0)
        .is_some_and(|packet_path| is_in_local_addr_cache(packet_path, *addr))
    {
        return true;
    }
    // SAFETY: one byte.
    match unsafe { LOCAL.get(addr) } {
        Some(&local::ANYWHERE) => true,
        Some(_) => ifindex == LOOPBACK_IFINDEX,
        None if addr.is_v4_loopback() => ifindex == LOOPBACK_IFINDEX,
        None => LOCAL_NETS.get(&Key::new(Addr::BITS, *addr)).is_some(),
    }
}

/// Notes the rule in the record that is being made. This is not inlined, as it is rare.
#[inline(never)]
fn note_rule(rule: u32) {
    if let Some(cpu) = TRACE_CPU.get_ptr_mut(0) {
        // SAFETY: per-CPU, and the pointer was checked.
        unsafe { (*cpu).packet.head.rule = rule };
    }
}

/// Copies a flow out of a map.
///
/// The copy goes by way of a flow that is always initialised: from a plain `map` the
/// compiler concludes that it may compute with the fields before it knows whether they
/// are there, and the verifier finds pointers in the registers.
#[inline(always)]
fn copy(flow: Option<*const Flow>) -> Option<Flow> {
    let mut copy = Flow::default();
    if let Some(flow) = flow {
        // SAFETY: not null, from a map. The copy may be torn by another CPU,
        // which then writes the same ports.
        copy = unsafe { *flow };
    }
    // Nobody connects to port 0.
    (copy.dst_port != Port::new(0)).then_some(copy)
}
