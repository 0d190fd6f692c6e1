//! What the datapath asks of the kernel.

use crate::datapath::{conntrack, subprog};
use crate::flow::{Epoch, Flow, FlowKey, Original, Table};
use crate::map::bucket::Hash;
use crate::map::rules::{Old, PortEntry};
use crate::map::sockets::{Dialled, ListenerKey};
use crate::net::{Addr, Flags, Port, Protocol, Version};
use crate::verdict::Reason;

/// What is known of a flow that a packet was met of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// It has its entry.
    Known,
    /// It has one now.
    New,
    /// It has one as a connection that no server has accepted yet.
    Begun,
    /// Neither is sure; nothing was changed.
    Unclear,
}

/// Where flow state is kept. Old entries go when there is no room for new ones.
pub trait FlowTables {
    /// The entry of a translated flow.
    fn flow(&self, table: Table, key: &FlowKey) -> Option<Flow>;

    /// The same in all tables of a protocol, and in which it is.
    #[inline(always)]
    fn find(&self, protocol: Protocol, key: &FlowKey) -> Option<(Table, Flow)> {
        let look = |table| self.flow(table, key).map(|flow| (table, flow));
        match protocol {
            Protocol::Tcp => look(Table::Tcp).or_else(|| look(Table::Syn)),
            Protocol::Udp => look(Table::Udp),
        }
    }

    /// Adds or replaces the entry of a translated flow.
    ///
    /// # Errors
    ///
    /// [`Reason::TableFull`].
    fn set_flow(&self, table: Table, key: &FlowKey, flow: &Flow) -> Result<(), Reason>;

    /// Forgets a translated flow, if it is there.
    fn remove_flow(&self, table: Table, key: &FlowKey);

    /// The client port that an original flow was given to avoid a collision.
    fn remap(&self, original: &FlowKey) -> Option<Port>;

    /// Gives an original flow another client port.
    ///
    /// # Errors
    ///
    /// [`Reason::TableFull`].
    fn set_remap(&self, original: &FlowKey, client_port: Port) -> Result<(), Reason>;

    /// Whether [`Self::remap`] may know a flow of this end of a client; quick.
    fn may_be_remapped(&self, key: &FlowKey) -> bool;

    /// Where [`Self::meet`] looks for a flow; computed apart, so that no more of the
    /// key has to be kept.
    #[inline(always)]
    fn hash(&self, _key: &FlowKey) -> Hash {
        Hash(0)
    }

    /// Refreshes the entry of a flow whose client has the port in its key; adds
    /// it where there is none, if the flow may begin: then it is told `again` what
    /// its key is, so that nothing has to be kept for that until then.
    #[inline(always)]
    fn meet(
        &self,
        table: Table,
        (key, _hash): (&FlowKey, Hash),
        original: Original,
        now: Epoch,
        again: impl FnOnce() -> Option<FlowKey>,
    ) -> Met {
        match self.flow(table, key) {
            Some(flow) if original.is(&flow) => {
                refresh(self, table, key, flow, now);
                Met::Known
            }
            None if table == Table::Tcp => match self.flow(Table::Syn, key) {
                Some(flow) if original.is(&flow) => Met::Begun,
                _ => Met::Unclear,
            },
            None => match again() {
                Some(key) if !self.may_be_remapped(&key) => {
                    match self.set_flow(table, &key, &original.flow(now)) {
                        Ok(()) => Met::New,
                        Err(_) => Met::Unclear,
                    }
                }
                _ => Met::Unclear,
            },
            _ => Met::Unclear,
        }
    }

    /// The entry of a flow, which a reply refreshes.
    #[inline(always)]
    fn recall(&self, table: Table, key: &FlowKey, now: Epoch) -> Option<Flow> {
        let flow = self.flow(table, key)?;
        refresh(self, table, key, flow, now);
        Some(flow)
    }
}

/// What the kernel knows about a TCP 4-tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Nobody, or at most a listener.
    None,
    /// A connection in `TIME_WAIT`: a new SYN may reuse its ports.
    TimeWait,
    /// A connection, also one that is being set up.
    Connection,
}

/// What the flow logic asks of the host.
pub trait Host: FlowTables {
    /// The entry of a port.
    fn port(&self, protocol: Protocol, port: Port) -> PortEntry;

    /// The socket of this 4-tuple.
    fn socket(&self, key: &FlowKey) -> Socket;

    /// Whether a socket would get a packet of this flow: a connection, or one
    /// that listens.
    fn is_served(&self, key: &FlowKey) -> bool;

    /// `CLOCK_MONOTONIC` in nanoseconds, to some milliseconds.
    fn now_ns(&self) -> u64;

    /// The same as flows remember it.
    #[inline(always)]
    fn now(&self) -> Epoch {
        Epoch::at(self.now_ns())
    }

    /// 32 random bits.
    fn random(&self) -> u32;
}

/// What the datapath asks of its surroundings beyond flow state.
pub trait Tables: Host {
    /// Whether a packet to this unicast address is delivered to this host.
    fn is_local(&self, addr: &Addr) -> bool;

    /// Whether it is for sure, and for packets from anywhere; quick.
    fn is_own(&self, addr: &Addr) -> bool;

    /// Whether the packet is of this host itself.
    fn is_from_here(&self) -> bool;

    /// The rule for a packet to a port whose rules have conditions.
    fn choose(&self, entry: PortEntry, key: &FlowKey, port: Port) -> Option<Choice>;

    /// Where earlier rules sent packets to a port.
    fn old(&self, entry: PortEntry, protocol: Protocol, port: Port) -> Old;

    /// Counts a packet that `rule` redirected now.
    fn hit(&self, rule: u16, segments: u32, bytes: usize, is_new: bool, now_ns: u64);

    /// [`subprog::find_route`], as the verifier walks it only once.
    #[inline(always)]
    fn find_route(&self, key: &mut FlowKey, entry: u64, flags: Flags) -> u64
    where
        Self: Sized,
    {
        subprog::find_route(self, key, entry, flags)
    }

    /// The same of [`conntrack::has_begun`].
    #[inline(always)]
    fn has_begun(&self, key: &mut FlowKey, original: Original, flags: Flags) -> u32
    where
        Self: Sized,
    {
        conntrack::has_begun(self, key, original, flags)
    }

    /// The same of [`subprog::admit`].
    #[inline(always)]
    fn admit(&self, key: &mut FlowKey, dialled_port: Port, route: u64, flags: Flags) -> u64
    where
        Self: Sized,
    {
        subprog::admit(self, key, dialled_port, route, flags)
    }
}

/// What a rule does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where it goes, in host order.
    pub target: u16,
    /// The rule.
    pub rule: u16,
}

/// What is kept at a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// Its flow.
    Flow(Flow),
    /// Nothing yet.
    Nothing,
    /// There is no socket to keep it at: none that sends, or one that is not yet
    /// or no longer a connection.
    NoSocket,
}

/// The flow that was found for a TCP socket, kept at the socket itself, so
/// that a full flow table cannot cut a live connection.
pub trait SocketCache {
    /// What is kept at the sending socket, if it is the one of `key`.
    fn cached(&self, key: &FlowKey) -> Cached;

    /// Keeps `flow` at the sending socket, if it is the one of `key`.
    fn cache(&self, key: &FlowKey, flow: &Flow);
}

/// Whether a packet to the local end of `key` is delivered to this host.
#[inline(always)]
pub(crate) fn is_here<T: Tables>(tables: &T, key: &FlowKey) -> bool {
    may_be_here(key) && tables.is_local(&key.local)
}

/// IPv4 addresses are written as IPv6 ones here; in an IPv6 header they are
/// nobody's (RFC 4291, 2.5.5.2).
#[inline(always)]
pub(crate) const fn may_be_here(key: &FlowKey) -> bool {
    key.version == Version::V4 as u8 || !key.local.is_v4()
}

/// The listening sockets, and what is done with one.
pub trait Listeners {
    /// Whether the connection is looked up for its own sake, and came in by an
    /// interface that rules are for.
    fn is_in_scope(&self) -> bool;

    /// Gives the connection to the socket that is registered as `key`, if there
    /// is one that may have it.
    fn assign(&self, key: &ListenerKey) -> bool;
}

/// The socket of a client on this host.
pub trait Client {
    /// Whether the client is in the network namespace of the rules.
    fn is_here(&self) -> bool;

    /// The IPv4 address that the socket is bound to, or [`Addr::V4_ANY`].
    fn bound_to(&self) -> Addr;

    /// The port of the socket's one peer, when it hears no other.
    fn peer_port(&self) -> Option<Port>;

    /// What is kept at the socket.
    fn dialled(&mut self) -> Option<&mut Dialled>;

    /// The same; begins to keep it if need be. `None` without memory.
    fn dialled_or_new(&mut self) -> Option<&mut Dialled>;
}

#[inline(always)]
pub(crate) fn refresh<T: FlowTables + ?Sized>(
    tables: &T,
    table: Table,
    key: &FlowKey,
    flow: Flow,
    now: Epoch,
) {
    // Once an epoch: saves a write per packet.
    if now.since(flow.seen) > 0 {
        // The entry is there already; if this fails the next packet tries again.
        let _ = tables.set_flow(table, key, &Flow { seen: now, ..flow });
    }
}
