//! Every map.

use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{
    Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage, SockHash,
};
use aya_ebpf::macros::btf_map;
use portredir_common::flow::{Flow, FlowKey};
use portredir_common::map::StateKey;
use portredir_common::map::bucket::Bucket;
use portredir_common::map::counters::{Counter, CounterKey, Hits, Outcomes};
use portredir_common::map::ends::Ends;
use portredir_common::map::hash::Seed;
use portredir_common::map::packet_path::PacketPath;
use portredir_common::map::port_remap::REMAP_BLOOM_ELEMENTS;
use portredir_common::map::rules::{
    AddrKey, Candidates, IfaceKey, PortEntry, PreviousTargets, SourceKey,
};
use portredir_common::map::sockets::{ConnectedPeers, ForwardPeer, ForwardPeers, ListenerKey};
use portredir_common::map::targets::{self, Target};
use portredir_common::map::trace::{TraceCpu, TracedPacket};
use portredir_common::net::{Addr, Port};
use portredir_common::verdict::Reason;

use crate::verifier::Volatile;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const CLONED: usize = BPF_F_CLONE as usize;

/// The definition of a socket storage whose values a listener hands down to the sockets of
/// its connections. Library types have no such flag.
#[repr(C)]
pub struct HandedDown<T> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; NO_PREALLOC | CLONED],
}

// SAFETY: the fields say types alone; nobody follows them.
unsafe impl<T> Sync for HandedDown<T> {}

impl<T> HandedDown<T> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }
}

/// See [`PacketPath`].
#[btf_map]
pub static HOT: Array<PacketPath<Volatile>, 1, MMAPABLE> = Array::new();

/// Earlier targets of ports, by [`PreviousTargets::key`].
#[btf_map]
pub static OLD: HashMap<u32, PreviousTargets, { 2 * PortEntry::COUNT as usize }, NO_PREALLOC> =
    HashMap::new();

// The conditions of rules: by the address of this host, then by that of the
// client; which interfaces are meant is in `IFACES`.
#[btf_map]
pub static ADDRS: HashMap<AddrKey, u32, 65536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static SOURCES: LpmTrie<SourceKey, Candidates, 262144> = LpmTrie::new();
#[btf_map]
pub static IFACES: HashMap<IfaceKey, u64, 8192, NO_PREALLOC> = HashMap::new();

/// Documents that commands leave for each other.
#[btf_map]
static STATE: HashMap<StateKey, [u8; 1024], 32768, NO_PREALLOC> = HashMap::new();

/// Unicast addresses of this host; value as in [`local`].
#[btf_map]
pub static LOCAL: HashMap<Addr, u8, 16384> = HashMap::new();

/// Networks of which every address is one of this host, as routes of type `local` to
/// networks have them.
#[btf_map]
pub static LOCAL_NETS: LpmTrie<Addr, u8, 4096> = LpmTrie::new();

/// The flows of servers' sockets, direct ones too.
#[btf_map]
pub static SOCKETS: SkStorage<Flow> = SkStorage::new();

/// Servers on the targets, by where they listen.
#[btf_map]
pub static LISTENERS: SockHash<ListenerKey, 16384> = SockHash::new();

/// The port of a listener that was given connections to another port, at the listener and
/// at the sockets of its connections, where it tells their target.
#[btf_map]
pub static LISTENS_ON: HandedDown<Port> = HandedDown::new();

/// Where the next of them goes, of `ListenerKey::SLOTS`, by the low byte of
/// the port: ports that share an entry only disturb the order.
#[btf_map]
pub static NEXT_SLOT: Array<u32, 256> = Array::new();

/// The interfaces whose connections listeners get, with who gives them.
#[btf_map]
pub static SCOPE: HashMap<u32, u8, 4096> = HashMap::new();

/// The peers of clients on this host: [`ConnectedPeers`].
#[btf_map]
pub static DIALLED: SkStorage<ConnectedPeers> = SkStorage::new();

/// The flows of all tables. That it may be mapped puts buckets on the borders of
/// cache lines. Its size is set by user space.
#[btf_map]
pub static FLOWS: Array<Bucket<Volatile>, 98304, MMAPABLE> = Array::new();

/// The ends of UDP flows, by
/// [`Shares::udp_slot`](portredir_common::map::bucket::Shares::udp_slot). The size is set by
/// user space.
#[btf_map]
pub static UDP_ENDS: Array<Ends<Volatile>, 131072, MMAPABLE> = Array::new();

/// [`FLOW_SEED`] for the next process that loads programs.
#[btf_map]
static SEED: Array<Seed, 1> = Array::new();

/// A [`Service`](portredir_common::map::targets::Service) each, by
/// [`service_index`](portredir_common::map::targets::service_index).
#[btf_map]
pub static SERVICES: Array<Volatile, { 2 * targets::SERVICES as usize }, MMAPABLE> = Array::new();

/// A [`Slot`](portredir_common::map::targets::Slot) each.
#[btf_map]
pub static SLOTS: Array<Volatile, { targets::SLOTS as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static TARGETS: Array<Target, { targets::TARGETS as usize }> = Array::new();

/// The addresses that targets have.
#[btf_map]
pub static TARGET_ADDRS: HashMap<Addr, u32, { targets::TARGETS as usize }, NO_PREALLOC> =
    HashMap::new();

/// The addresses of this host, by number.
#[btf_map]
pub static OWN_ADDRS: Array<Addr, { targets::OWN_ADDRS as usize }> = Array::new();

/// The numbers of the addresses of this host.
#[btf_map]
pub static OWN_NUMBERS: HashMap<Addr, u32, { targets::OWN_ADDRS as usize }, NO_PREALLOC> =
    HashMap::new();

/// The flows to targets with an address, divided as [`FLOWS`]. Its size is set by user space.
#[btf_map]
pub static FORWARDS: Array<Bucket<Volatile>, 24576, MMAPABLE> = Array::new();

/// The ends of connections and UDP flows of [`FORWARDS`], by place. The size is set by user
/// space.
#[btf_map]
pub static FORWARD_ENDS: Array<Ends<Volatile>, 163840, MMAPABLE> = Array::new();

/// The targets with an address of clients on this host: [`ForwardPeers`].
#[btf_map]
pub static FORWARD_PEERS: SkStorage<ForwardPeers> = SkStorage::new();

/// The one of [`FORWARD_PEERS`] that a UDP socket is connected to, by the cookie of the socket:
/// the kernel does not tell processes what is kept at UDP sockets.
#[btf_map]
pub static UDP_PEERS: LruHashMap<u64, ForwardPeer, 16384> = LruHashMap::new();

/// Client ports given on collisions; key is the original flow.
#[btf_map]
pub static REMAP: LruHashMap<FlowKey, Port, 16384> = LruHashMap::new();

/// The other way round: the client's own port; key is the translated flow.
#[btf_map]
pub static GIVEN: LruHashMap<FlowKey, Port, 16384> = LruHashMap::new();

/// [`REMAP`] of connections: only who has real ones adds to it.
#[btf_map]
pub static REMAP_TCP: LruHashMap<FlowKey, Port, 16384> = LruHashMap::new();

/// [`GIVEN`] of connections.
#[btf_map]
pub static GIVEN_TCP: LruHashMap<FlowKey, Port, 16384> = LruHashMap::new();

/// The marks of [`FlowTables::mark`](portredir_common::kernel::FlowTables::mark), see
/// [`remap_bloom_slot`](portredir_common::map::port_remap::remap_bloom_slot).
#[btf_map]
pub static REMAPPED: Array<[u8; 64], REMAP_BLOOM_ELEMENTS> = Array::new();

/// The map of counters that have no place in [`Places`]: it grows with the pairs of rule
/// and interface that see traffic.
pub type More = PerCpuHashMap<CounterKey, Counter, 65536, NO_PREALLOC>;

/// The counters that packets are counted in first.
pub type Places = PerCpuArray<Hits, { Hits::PLACES as usize }>;

/// Redirected packets, by the interface they came in on.
#[btf_map]
pub static HITS: Places = PerCpuArray::new();

/// More of [`HITS`].
#[btf_map]
pub static COUNTERS: More = PerCpuHashMap::new();

/// Replies that were rewritten, by the interface they left by.
#[btf_map]
pub static REPLIES: Places = PerCpuArray::new();

/// More of [`REPLIES`].
#[btf_map]
pub static REPLIES_MORE: More = PerCpuHashMap::new();

/// The outcomes of the flows of a rule, by its number.
#[btf_map]
pub static OUTCOMES: PerCpuHashMap<u32, Outcomes, 65536, NO_PREALLOC> = PerCpuHashMap::new();

#[btf_map]
pub static REASONS: PerCpuArray<u64, { Reason::COUNT }> = PerCpuArray::new();

/// A [`Record`](portredir_common::map::trace::Record) of each packet, while somebody traces.
#[btf_map]
pub static TRACE: RingBuf<TracedPacket, { 1 << 19 }> = RingBuf::new();

/// The time up to which somebody traces, `CLOCK_MONOTONIC` in nanoseconds. Who traces moves
/// it on, so that nothing is left on when that process is killed.
#[btf_map]
pub static TRACE_UNTIL: Array<u64, 1> = Array::new();

/// The record that is being made, and how many are written.
#[btf_map]
pub static TRACE_CPU: PerCpuArray<TraceCpu, 1> = PerCpuArray::new();

/// The time that `now_ns` of kernel/counters.rs told last, and the tick at which it was read: one word, so that
/// processors may share it. Each writes it once a tick at most.
#[unsafe(no_mangle)]
pub static CLOCK: Volatile = Volatile::new(0);
