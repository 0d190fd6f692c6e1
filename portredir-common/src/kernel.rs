//! The traits by which the datapath asks the kernel: for its maps, its sockets, its clock, and
//! calls of BPF functions.
//!
//! All methods are required: the eBPF crate implements them over maps and helpers, the
//! tests over hash maps. What both do alike stands in [`datapath`](crate::datapath).

mod buckets;
pub mod forward;

use crate::flow::{Admitted, Epoch, Flow, FlowKey, FlowLookup, FlowTable, Original, Segment};
use crate::kernel::forward::{ForwardFlow, ForwardTables, FreeSlot};
use crate::map::entry::{Connection, Entry};
use crate::map::hash::Hash;
use crate::map::rules::{
    AddrKey, Candidates, Choice, IfaceKey, PortEntry, PreviousTargets, SourceKey,
};
use crate::map::sockets::{ConnectedPeers, ForwardPeer, ForwardPeers, ListenerKey};
use crate::net::{Addr, Flags, Port, Protocol};
use crate::verdict::Reason;

pub use self::buckets::FlowBuckets;

/// The flow tables, and the maps of client ports that were given on collisions. Old
/// entries go when there is no room for new ones.
///
/// The first five methods are BPF functions of their own in the kernel; their bodies
/// are in [`flow_lookup`](crate::datapath::flow_lookup).
pub trait FlowTables: FlowBuckets {
    /// The entry of a translated flow in one table.
    fn entry(&self, table: FlowTable, key: &FlowKey) -> Option<Entry>;

    /// The entry of a translated TCP flow, and the table that has it.
    fn connection(&self, key: &FlowKey) -> Option<Connection>;

    /// Adds a UDP flow to a bucket that has no entry of it, and keeps its ports; returns its
    /// [`Shares::udp_slot`](crate::map::bucket::Shares::udp_slot).
    ///
    /// # Errors
    ///
    /// [`Reason::TableFull`].
    fn insert(&self, bucket: Self::Bucket<'_>, flow: &NewFlow) -> Result<u32, Reason>;

    /// Adds or replaces the entry of a translated flow.
    ///
    /// # Errors
    ///
    /// [`Reason::TableFull`].
    fn set_flow(&self, table: FlowTable, key: &FlowKey, flow: &Flow) -> Result<(), Reason>;

    /// Removes the entry of a translated flow, if there is one.
    fn remove_flow(&self, table: FlowTable, key: &FlowKey);

    /// The client's own port of a translated flow that was given another one.
    fn own_port(&self, table: FlowTable, key: &FlowKey) -> Option<Port>;

    /// The client port that an original flow was given to avoid a collision.
    fn remap(&self, original: &FlowKey) -> Option<Port>;

    /// Gives an original flow another client port.
    ///
    /// # Errors
    ///
    /// [`Reason::TableFull`].
    fn set_remap(&self, original: &FlowKey, client_port: Port) -> Result<(), Reason>;

    /// Whether the client address and port of `key` may have been marked; a quick look
    /// at a Bloom filter.
    fn is_marked(&self, key: &FlowKey) -> bool;

    /// Marks the client address and port of `key`: its flows need more than a look at
    /// their own entry. [`Self::set_remap`] does so too.
    fn mark(&self, key: &FlowKey);
}

/// A UDP flow that a bucket has no entry of.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow {
    /// The hash of the translated flow.
    pub hash: Hash,
    /// The target port.
    pub target: Port,
    /// The flow, whose client has its own port.
    pub flow: Flow,
}

/// The kernel's socket for a TCP 4-tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// No socket, or at most a listener.
    None,
    /// A connection in `TIME_WAIT`: a new SYN may reuse its ports.
    TimeWait,
    /// A connection, also one that is being set up.
    Connection,
}

/// The entries of ports, the sockets and the clock of the host.
pub trait Host: FlowTables + ForwardTables {
    /// The entry of a port.
    fn port(&self, protocol: Protocol, port: Port) -> PortEntry;

    /// The socket of this 4-tuple.
    fn socket(&self, key: &FlowKey) -> Socket;

    /// Whether a socket would get a packet of this flow: a connection, or a listener.
    fn is_served(&self, key: &FlowKey) -> bool;

    /// `CLOCK_MONOTONIC` in nanoseconds, to some milliseconds.
    fn now_ns(&self) -> u64;

    /// 32 random bits.
    fn random(&self) -> u32;
}

/// The maps that rules with conditions are compiled into.
pub trait RuleMaps {
    /// The group of rules for an address of this host: `ADDRS`.
    fn addr_group(&self, key: &AddrKey) -> Option<u32>;

    /// The rules for a client, by the longest prefix: `SOURCES`.
    fn candidates(&self, key: &SourceKey) -> Option<&Candidates>;

    /// The mask of the lists of interfaces in rules that name this one: `IFACES`.
    fn iface_mask(&self, key: &IfaceKey) -> Option<u64>;
}

/// The rules, the local addresses and the counters.
pub trait Tables: Host {
    /// Whether a packet to this unicast address is delivered to this host.
    fn is_local(&self, addr: &Addr) -> bool;

    /// Whether this address is in the local address cache, which holds addresses that
    /// packets reach from anywhere; quick.
    fn is_in_local_addr_cache(&self, addr: &Addr) -> bool;

    /// Whether this host itself sent the packet.
    fn came_in_on_loopback(&self) -> bool;

    /// The rule for a packet to a port whose rules have conditions: a call of
    /// [`match_rule`](crate::datapath::rule_match::match_rule).
    fn match_rule(&self, entry: PortEntry, key: &FlowKey, dst_port: Port) -> Option<Choice>;

    /// The target ports that earlier rules had for a port.
    fn previous_targets(&self, entry: PortEntry, protocol: Protocol, port: Port)
    -> PreviousTargets;

    /// Notes the rule of a packet for who traces; the fast path does not trace.
    fn note_rule(&self, rule: u16);

    /// Counts a packet that a rule redirects.
    fn record(&self, hit: &Hit);

    /// Counts a reply that was rewritten.
    fn record_reply(&self, hit: &Hit);

    /// Counts an outcome of a flow of this rule.
    fn record_outcome(&self, rule: u16, outcome: Outcome);
}

/// The outcome of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A server accepted the connection.
    Accepted,
    /// The host answered with a RST, or with an ICMP error.
    Refused,
}

/// A packet that a rule redirects, or a reply to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The rule.
    pub rule: u16,
    /// The packets of the wire that this packet stands for; 0 where that is not known.
    pub segments: u32,
    /// The length of the packet in bytes, with all headers the hook saw.
    pub bytes: usize,
    /// [`FlowLookup::Inserted`] for the packet that begins its flow.
    pub flow: FlowLookup,
    /// The time, `CLOCK_MONOTONIC` in nanoseconds.
    pub at_ns: u64,
}

impl Hit {
    /// The time of a reply, which is not asked for: that would cost a nanosecond.
    pub const SOME_TIME: u64 = 1;

    /// A connection that begins; how many packets follow is not known.
    #[inline(always)]
    #[must_use]
    pub const fn connection(rule: u16, at_ns: u64) -> Self {
        Self {
            rule,
            segments: 0,
            bytes: 0,
            flow: FlowLookup::Inserted,
            at_ns,
        }
    }

    /// Whether the packet begins its flow.
    #[inline(always)]
    #[must_use]
    pub fn begins_flow(&self) -> bool {
        self.flow == FlowLookup::Inserted
    }
}

/// Calls of the parts of the datapath that the verifier walks only once, as BPF
/// functions of their own. Their bodies are in [`subprog`](crate::datapath::subprog).
pub trait Subprograms {
    /// Finds the target port of a packet whose rules have conditions or changed; `key`
    /// is the flow as the client knows it.
    ///
    /// # Errors
    ///
    /// The reason why the packet is not redirected.
    fn find_route(
        &self,
        key: &mut FlowKey,
        entry: PortEntry,
        flags: Flags,
    ) -> Result<Route, Reason>;

    /// The rule of a packet that goes to a target port, if its flow has begun already;
    /// `key` is its translated flow under the client's own port.
    fn has_begun(&self, key: &mut FlowKey, original: Original, flags: Flags) -> Option<u16>;

    /// Admits a packet to its target port.
    ///
    /// # Errors
    ///
    /// [`Reason::ForeignFlow`], [`Reason::NoFreePort`], [`Reason::TableFull`].
    fn admit(&self, key: &mut FlowKey, request: &Admission) -> Result<Admitted, Reason>;

    /// Finds the flow that a packet to a service belongs to. `key` is the flow as the client
    /// knows it, and becomes the translated one if it has begun.
    ///
    /// # Errors
    ///
    /// [`Reason::NoMatch`] when the service has no target of this IP version.
    fn find_forward(
        &self,
        key: &mut FlowKey,
        route: Route,
        segment: Segment,
    ) -> Result<ForwardFlow, Reason>;

    /// Begins a flow to a target. `key` is the flow as the client knows it, and becomes the
    /// translated one.
    ///
    /// # Errors
    ///
    /// [`Reason::NoTarget`], [`Reason::NoTargetDropped`], [`Reason::ForeignFlow`],
    /// [`Reason::NoFreePort`], [`Reason::TableFull`].
    fn begin_forward(
        &self,
        key: &mut FlowKey,
        slot: FreeSlot,
        flags: Flags,
    ) -> Result<Admitted, Reason>;
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The target port.
    pub target: Port,
    /// The rule, if there is one for the packet.
    pub rule: u16,
    /// Whether a rule redirects the packet; otherwise its client sent it to the target
    /// port itself.
    pub is_match: bool,
    /// Whether the rule leads to a service, of which [`Self::target`] is the number.
    pub is_forward: bool,
}

impl Route {
    /// To a port where nobody can listen: the kernel answers as a closed port does.
    pub const CLOSED: Self = Self {
        target: Port::CLOSED,
        rule: 0,
        is_match: true,
        is_forward: false,
    };

    /// Whether this is [`Self::CLOSED`].
    #[inline(always)]
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_match && self.target == Port::CLOSED
    }
}

/// The packet that [`Subprograms::admit`] decides on.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// The port of this host that the client connected to.
    pub dst_port: Port,
    /// Where the packet goes.
    pub route: Route,
    /// The segment, with the number that it acknowledges.
    pub segment: Segment,
}

/// The flow that is kept at a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The flow of the socket.
    Flow(Flow),
    /// Nothing yet.
    Nothing,
    /// There is no socket to keep a flow at, as it is not yet or no longer a connection.
    NoSocket,
    /// No socket of this host sends the packet.
    Forwarded,
}

/// The flow that was found for a TCP socket, kept at the socket itself, so
/// that a full flow table cannot cut a live connection.
pub trait SocketCache {
    /// The flow at the sending socket, if the socket has these ports, its own and that of
    /// its client: the addresses of a packet are those of its socket.
    fn cached(&self, ports: (Port, Port)) -> Cached;

    /// Keeps `flow` at the sending socket, if the socket is the one of `key`.
    fn cache(&self, key: &FlowKey, flow: &Flow);
}

/// The listening sockets, and what is done with one.
pub trait Listeners {
    /// Whether a connection looks for its listener, and came in on an interface that
    /// rules are for.
    fn is_in_scope(&self) -> bool;

    /// Whether a server that listens on 127.0.0.1 or `::1` alone may have the
    /// connection too.
    fn is_loopback_allowed(&self) -> bool;

    /// Gives the connection to the socket that is registered as `key`, if there
    /// is one that may have it.
    fn assign(&self, key: &ListenerKey) -> bool;
}

/// The listening socket for a connection that begins.
pub trait Assign {
    /// Gives the packet to the socket that listens for a flow, if there is one.
    fn assign_listener(&self, key: &FlowKey) -> bool;
}

/// The socket of a client on this host.
pub trait Client {
    /// Whether the client is in the network namespace of the rules.
    fn is_in_netns(&self) -> bool;

    /// The address that the socket is bound to; [`Addr::V4_ANY`] or [`Addr::V6_ANY`] when
    /// it is bound to none.
    fn bound_to(&self) -> Addr;

    /// Whether an IPv6 socket keeps out IPv4, as `IPV6_V6ONLY` says.
    fn is_v6_only(&self) -> bool;

    /// The port that the socket is bound to; 0 where it is not bound yet.
    fn own_port(&self) -> Port;

    /// Whether a SYN of the socket that comes to a port of a rule is given to the listener
    /// on the target, see [`assign`](crate::datapath::assign).
    fn is_syn_assigned(&self) -> bool;

    /// Whether the UDP socket that gets the packets of a flow is connected, so that it
    /// hears the client of the flow alone.
    fn is_connected_udp(&self, key: &FlowKey) -> bool;

    /// The port of the socket's one peer, when it hears no other.
    fn peer_port(&self) -> Option<Port>;

    /// The peers that are kept at the socket.
    fn peers(&mut self) -> Option<&mut ConnectedPeers>;

    /// The peers that are kept at the socket, of which there may be none yet. `None`
    /// without memory.
    fn peers_or_insert(&mut self) -> Option<&mut ConnectedPeers>;

    /// The targets with an address that are kept at the socket.
    fn forward_peers(&mut self) -> Option<&mut ForwardPeers>;

    /// The targets with an address that are kept at the socket, of which there may be none
    /// yet. `None` without memory.
    fn forward_peers_or_insert(&mut self) -> Option<&mut ForwardPeers>;

    /// Keeps the target with an address that the UDP socket connects to, where a process finds
    /// it by the cookie of the socket; `None` when it connects to it by the target's own name.
    fn keep_udp_peer(&mut self, peer: Option<&ForwardPeer>);
}

/// The present moment.
#[inline(always)]
pub(crate) fn now<H: Host>(host: &H) -> Epoch {
    Epoch::at(host.now_ns())
}
