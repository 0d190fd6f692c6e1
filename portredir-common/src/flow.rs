//! Flow state: which replies to restore, and to what.
//!
//! The rule says where a packet goes; state is needed for the way back, as a
//! client may also have dialled the target port itself. There is one entry per
//! flow, never a pair, so nothing can be half lost, and every packet of the
//! client puts a lost entry back. For TCP the kernel's sockets are the truth:
//! an entry only ever counts as alive when a socket stands behind it.
//!
//! Three tables, so that a flood of one kind costs no flow of another: `Syn`
//! for what anybody can send, `Tcp` for connections that a server has accepted,
//! `Udp`. `Tcp` has direct connections too, dialled by the target port itself:
//! so a forged packet to a dialled port cannot claim one.

use crate::abi::{Epoch, Flow, FlowKey, Port, PortEntry, Protocol};
use crate::bucket::Hash;
use crate::verdict::Reason;

/// A flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// TCP flows that no server has accepted yet: a SYN, or a packet that draws a
    /// RST.
    Syn,
    /// TCP connections.
    Tcp,
    /// UDP flows.
    Udp,
}

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

/// An idle UDP flow no longer defends its client port after this time, in units
/// of [`Epoch`]: 120 s, as long as netfilter keeps a UDP stream
/// (`nf_conntrack_udp_timeout_stream`).
pub const UDP_IDLE: u16 = 112;

/// Candidates for another client port, before the packet is dropped.
const REMAP_TRIES: u32 = 16;

/// The flags of a TCP segment, in host order (RFC 9293, 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u16);

impl Flags {
    /// A SYN's; a UDP packet counts as one.
    pub const SYN: Self = Self(0x02);
    const RST: u16 = 0x04;
    const PSH: u16 = 0x08;
    const ACK: u16 = 0x10;

    /// Whether it asks for a new connection.
    #[inline(always)]
    #[must_use]
    pub const fn is_syn(self) -> bool {
        self.0 & (Self::SYN.0 | Self::RST | Self::ACK) == Self::SYN.0
    }

    /// Whether it has data, or the end of some.
    #[inline(always)]
    pub(crate) const fn is_push(self) -> bool {
        self.0 & Self::PSH != 0
    }
}

/// What becomes of the client port of a packet that goes to a target.
///
/// One number: of two the compiler makes one anyway, and with what is left in a
/// register when there is an error the verifier sees a pointer in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted(u64);

impl Admitted {
    const NEW: u64 = 1 << 16;

    /// A packet of a flow that has begun.
    #[inline(always)]
    #[must_use]
    pub const fn known(client_port: Port) -> Self {
        Self(client_port.half() as u64)
    }

    /// A packet that began a flow, if `is_new`.
    #[inline(always)]
    #[must_use]
    pub const fn begun(client_port: Port, is_new: bool) -> Self {
        let new = if is_new { Self::NEW } else { 0 };
        Self(client_port.half() as u64 | new)
    }

    /// The client port the server sees.
    #[expect(clippy::cast_possible_truncation, reason = "16 bits of it")]
    #[inline(always)]
    #[must_use]
    pub const fn client_port(self) -> Port {
        Port::from_half(self.0 as u16)
    }

    /// Whether the packet began a flow.
    #[inline(always)]
    #[must_use]
    pub const fn is_new(self) -> bool {
        self.0 & Self::NEW != 0
    }

    #[inline(always)]
    pub(crate) const fn to_word(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }
}

/// The client's side of a flow: the ports it uses and sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// The port of this host that the client dialled.
    pub dialled_port: Port,
    /// The client's port.
    pub client_port: Port,
    /// The rule for the dialled port.
    pub rule: u16,
}

impl Original {
    /// It as the tables have it.
    #[inline(always)]
    #[must_use]
    pub const fn flow(self, now: Epoch) -> Flow {
        Flow {
            dialled_port: self.dialled_port,
            client_port: self.client_port,
            rule: self.rule,
            seen: now,
        }
    }

    /// Whether `flow` is this one translated.
    #[inline(always)]
    fn is(self, flow: &Flow) -> bool {
        self.dialled_port == flow.dialled_port && self.client_port == flow.client_port
    }

    /// The client port this flow was given on a collision.
    #[inline(always)]
    fn remapped(self, host: &impl FlowTables, key: &mut FlowKey) -> Option<Port> {
        let target = key.local_port;
        key.local_port = self.dialled_port;
        let client_port = host.remap(key);
        key.local_port = target;
        client_port
    }
}

// The functions below share one key per packet and change its ports in place:
// the BPF stack has room for few keys.

/// Admits a TCP packet that a rule sends to a target; `key` is its translated
/// flow under the client's own port.
///
/// # Errors
///
/// [`Reason::ForeignFlow`] when a server on the dialled port holds the
/// connection, [`Reason::NoFreePort`], [`Reason::TableFull`].
#[inline(always)]
pub fn redirect_tcp<H: Host>(
    host: &H,
    key: &mut FlowKey,
    original: Original,
    flags: Flags,
) -> Result<Admitted, Reason> {
    let now = host.now();
    let found = host.find(Protocol::Tcp, key);
    let confirmed = match found {
        Some((Table::Tcp, flow)) => Some(flow),
        _ => None,
    };
    if let Some(flow) = confirmed
        && original.is(&flow)
    {
        refresh(host, Table::Tcp, key, flow, now);
        // The client may use a port again; a repeated SYN has a socket.
        let is_new = flags.is_syn() && host.socket(key) != Socket::Connection;
        return Ok(Admitted::begun(original.client_port, is_new));
    }
    let begun = match found {
        Some((Table::Syn, flow)) => Some(flow),
        Some(_) => host.flow(Table::Syn, key),
        None => None,
    };
    if let Some(begun) = begun
        && original.is(&begun)
    {
        confirm(host, key, begun, flags);
        return Ok(Admitted::known(original.client_port));
    }
    if let Some(client_port) = remapped_tcp(host, key, original, flags)? {
        return Ok(Admitted::known(client_port));
    }

    // A server on the dialled port may hold the connection: one that is older
    // than we are, also if all of it that is there is a request.
    let target = key.local_port;
    key.local_port = original.dialled_port;
    let is_foreign = match host.socket(key) {
        Socket::None => false,
        Socket::TimeWait => !flags.is_syn(),
        Socket::Connection => true,
    };
    if is_foreign {
        return Err(Reason::ForeignFlow);
    }
    key.local_port = target;

    let flow = original.flow(now);
    let is_taken = host.socket(key) == Socket::Connection;
    if !flags.is_syn() && is_taken && confirmed.is_none() && begun.is_none() {
        // The entry was lost.
        host.set_flow(Table::Tcp, key, &flow)?;
        return Ok(Admitted::known(original.client_port));
    }
    // What is no SYN either, the stack will answer with a RST, which has to come
    // from the dialled port: as much a flow as what a SYN begins.
    // The client's port may be taken by a connection to the target itself or
    // by one through another dialled port.
    if is_taken {
        return remap(host, Table::Syn, key, &flow);
    }
    if confirmed.is_some() {
        host.remove_flow(Table::Tcp, key);
    }
    host.set_flow(Table::Syn, key, &flow)?;
    Ok(Admitted::begun(original.client_port, flags.is_syn()))
}

/// Admits a TCP packet that a client sent to a target port itself.
///
/// # Errors
///
/// [`Reason::NoFreePort`], [`Reason::TableFull`].
#[inline(always)]
pub fn direct_tcp<H: Host>(
    host: &H,
    key: &mut FlowKey,
    original: Original,
    flags: Flags,
) -> Result<Admitted, Reason> {
    if let Some(client_port) = remapped_tcp(host, key, original, flags)? {
        return Ok(Admitted::known(client_port));
    }
    if flags.is_syn()
        && let Some((_, flow)) = host.find(Protocol::Tcp, key)
        && !original.is(&flow)
    {
        if host.socket(key) == Socket::Connection {
            return remap(host, Table::Syn, key, &original.flow(host.now()));
        }
        // What is left of a redirected connection must not rename replies of
        // this one.
        host.remove_flow(Table::Tcp, key);
        host.remove_flow(Table::Syn, key);
    }
    Ok(Admitted::known(original.client_port))
}

/// The client port that a TCP flow was given on a collision, if it still has
/// it: the client may since use that port itself.
#[inline(always)]
fn remapped_tcp<H: Host>(
    host: &H,
    key: &mut FlowKey,
    original: Original,
    flags: Flags,
) -> Result<Option<Port>, Reason> {
    let Some(client_port) = original.remapped(host, key) else {
        return Ok(None);
    };
    key.client_port = client_port;
    if let Some((table, flow)) = host.find(Protocol::Tcp, key) {
        if original.is(&flow) {
            if table == Table::Tcp {
                refresh(host, table, key, flow, host.now());
            } else {
                confirm(host, key, flow, flags);
            }
            return Ok(Some(client_port));
        }
    } else {
        let is_taken = host.socket(key) == Socket::Connection;
        if !flags.is_syn() || !is_taken {
            // The entry was lost.
            let table = if is_taken { Table::Tcp } else { Table::Syn };
            host.set_flow(table, key, &original.flow(host.now()))?;
            return Ok(Some(client_port));
        }
    }
    key.client_port = original.client_port;
    Ok(None)
}

/// Makes a flow that has begun a connection, if it is one now: where the kernel
/// does not tell of connections, see [`accept`], the client's first data does. The
/// ACK before that anybody can send.
#[inline(always)]
fn confirm<H: Host>(host: &H, key: &FlowKey, begun: Flow, flags: Flags) {
    if flags.is_push() && host.socket(key) == Socket::Connection {
        // If this fails the next packet tries again.
        let seen = host.now();
        let _ = host.set_flow(Table::Tcp, key, &Flow { seen, ..begun });
    }
}

/// Notes a connection that a server accepts now, also a direct one, and returns
/// how its client knows it.
///
/// The packet that completed it has come in just before, so what it began is
/// there, unless a flood has filled its bucket in between.
#[inline(always)]
pub fn accept<T: FlowTables>(tables: &T, key: &FlowKey, now: Epoch) -> Flow {
    let flow = match tables.find(Protocol::Tcp, key) {
        Some((_, flow)) => Flow { seen: now, ..flow },
        None => direct(key, now),
    };
    // Where there is no room for it, it is kept at the socket alone.
    let _ = tables.set_flow(Table::Tcp, key, &flow);
    flow
}

/// A flow of which nothing is translated.
#[inline(always)]
pub(crate) fn direct(key: &FlowKey, now: Epoch) -> Flow {
    Flow {
        dialled_port: key.local_port,
        client_port: key.client_port,
        rule: 0,
        seen: now,
    }
}

/// Admits a UDP packet that goes to a target, by a rule or because the client
/// sent it there; `key` is its translated flow under the client's own port.
///
/// Direct flows have entries too: there is no socket that could tell that a
/// client talks to both ports from one port of its own.
///
/// # Errors
///
/// [`Reason::NoFreePort`], [`Reason::TableFull`].
#[inline(always)]
pub fn admit_udp<H: Host>(
    host: &H,
    key: &mut FlowKey,
    original: Original,
) -> Result<Admitted, Reason> {
    let now = host.now();
    let holder = host.flow(Table::Udp, key);
    if let Some(flow) = holder
        && original.is(&flow)
    {
        refresh(host, Table::Udp, key, flow, now);
        return Ok(Admitted::known(original.client_port));
    }
    let is_taken = holder.is_some_and(|holder| !is_idle(&holder, now));
    let flow = original.flow(now);
    if let Some(client_port) = original.remapped(host, key) {
        key.client_port = client_port;
        let is_free = match host.flow(Table::Udp, key) {
            Some(other) => original.is(&other) || is_idle(&other, now),
            None => true,
        };
        if is_free {
            host.set_flow(Table::Udp, key, &flow)?;
            return Ok(Admitted::known(client_port));
        }
        key.client_port = original.client_port;
    }
    if is_taken {
        return remap(host, Table::Udp, key, &flow);
    }
    host.set_flow(Table::Udp, key, &flow)?;
    Ok(Admitted::begun(original.client_port, true))
}

#[inline(always)]
const fn is_idle(flow: &Flow, now: Epoch) -> bool {
    now.since(flow.seen) >= UDP_IDLE
}

/// The flow that a reply from a target belongs to; `None` for direct traffic.
#[inline(always)]
pub fn reply<H: Host>(host: &H, protocol: Protocol, key: &FlowKey) -> Option<Flow> {
    match protocol {
        // A server that goes on talking keeps the flow.
        Protocol::Udp => host.recall(Table::Udp, key, host.now()),
        Protocol::Tcp => host.find(protocol, key).map(|(_, flow)| flow),
    }
}

/// No rule.
pub const NOT_BEGUN: u32 = u32::MAX;

/// The rule of a packet that goes to a target, if its flow has begun already,
/// else [`NOT_BEGUN`]; `key` is its translated flow under the client's own port.
///
/// When it has not, nothing is left that would redirect what follows it.
#[inline(always)]
pub fn has_begun<H: Host>(host: &H, key: &mut FlowKey, original: Original, flags: Flags) -> u32 {
    let Ok(protocol) = key.protocol() else {
        return NOT_BEGUN;
    };
    let mut rule = NOT_BEGUN;
    // Under the client's own port, then under one that it was given.
    for client_port in [Some(original.client_port), original.remapped(host, key)] {
        let Some(client_port) = client_port else {
            break;
        };
        key.client_port = client_port;
        rule = has_begun_as(host, protocol, key, original, flags);
        if rule != NOT_BEGUN {
            break;
        }
    }
    key.client_port = original.client_port;
    rule
}

/// The same for the client port of `key`.
#[inline(always)]
fn has_begun_as<H: Host>(
    host: &H,
    protocol: Protocol,
    key: &FlowKey,
    original: Original,
    flags: Flags,
) -> u32 {
    let mut rule = u32::from(original.rule);
    let mut is_known = false;
    let found = host.find(protocol, key);
    if let Some((_, flow)) = found
        && original.is(&flow)
    {
        is_known = protocol == Protocol::Tcp || !is_idle(&flow, host.now());
        rule = u32::from(flow.rule);
    }
    let has_begun = match protocol {
        // A server that is gone must not keep its clients.
        Protocol::Udp => is_known && host.is_served(key),
        Protocol::Tcp => {
            if host.socket(key) == Socket::Connection {
                // Without an entry it was lost, but a SYN would collide.
                is_known || (!flags.is_syn() && found.is_none())
            } else {
                // What is left of an earlier connection.
                if is_known && flags.is_syn() {
                    host.remove_flow(Table::Tcp, key);
                    host.remove_flow(Table::Syn, key);
                }
                is_known && !flags.is_syn()
            }
        }
    };
    if has_begun { rule } else { NOT_BEGUN }
}

/// The same for a flow of earlier rules, which is told from one to another
/// target.
#[inline(always)]
pub fn earlier_client_port<H: Host>(
    host: &H,
    protocol: Protocol,
    key: &mut FlowKey,
    original: Original,
) -> Option<Port> {
    if let Some((_, flow)) = host.find(protocol, key)
        && original.is(&flow)
    {
        return Some(original.client_port);
    }
    let client_port = original.remapped(host, key)?;
    key.client_port = client_port;
    let is_its = host
        .find(protocol, key)
        .is_some_and(|(_, flow)| original.is(&flow));
    key.client_port = original.client_port;
    is_its.then_some(client_port)
}

/// The client port that a flow has behind its target, for an ICMP error that
/// quotes a reply; `None` when there is no such flow.
#[inline(always)]
pub fn translated_client_port<H: Host>(
    host: &H,
    protocol: Protocol,
    key: &mut FlowKey,
    original: Original,
) -> Option<Port> {
    match host.find(protocol, key) {
        Some((_, flow)) if original.is(&flow) => Some(original.client_port),
        _ => original.remapped(host, key),
    }
}

#[inline(always)]
fn refresh<T: FlowTables + ?Sized>(
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

/// Gives a flow a client port under which nobody talks to the target, as
/// netfilter does when two flows would become one.
#[inline(always)]
fn remap<H: Host>(
    host: &H,
    table: Table,
    key: &mut FlowKey,
    flow: &Flow,
) -> Result<Admitted, Reason> {
    let client_port = free_client_port(host, table, key)?;
    host.set_flow(table, key, flow)?;
    key.client_port = flow.client_port;
    key.local_port = flow.dialled_port;
    host.set_remap(key, client_port)?;
    Ok(Admitted::begun(client_port, true))
}

/// Finds that port and leaves it in `key`. Not inlined: it is rare, and the
/// BPF stack is small.
#[inline(never)]
fn free_client_port<H: Host>(host: &H, table: Table, key: &mut FlowKey) -> Result<Port, Reason> {
    // Unprivileged ports; the odd step visits far apart ones.
    const FIRST: u32 = 1024;
    const COUNT: u32 = 65536 - FIRST;
    const STEP: u32 = 7919;
    let start = host.random();
    for i in 0..REMAP_TRIES {
        let candidate = FIRST + start.wrapping_add(i.wrapping_mul(STEP)) % COUNT;
        #[expect(clippy::cast_possible_truncation, reason = "FIRST + COUNT is 65536")]
        let client_port = Port::new(candidate as u16);
        key.client_port = client_port;
        let is_free = match table {
            Table::Udp => host.flow(table, key).is_none(),
            Table::Tcp | Table::Syn => {
                host.find(Protocol::Tcp, key).is_none() && host.socket(key) == Socket::None
            }
        };
        if is_free {
            return Ok(client_port);
        }
    }
    Err(Reason::NoFreePort)
}
