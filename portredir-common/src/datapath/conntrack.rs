//! Connection tracking: which flow a packet belongs to, and whether it may begin one.
//!
//! The functions here share one key per packet and change its ports in place:
//! the BPF stack has room for few keys.

use crate::datapath::flow_lookup::{Seen, lookup, lookup_and_refresh, lookup_protocol, refresh};
use crate::datapath::port_remap::remap;
use crate::datapath::{elsewhere, own_flow};
use crate::flow::{Admitted, Epoch, Flow, FlowKey, FlowTable, Original, Segment, UDP_IDLE};
use crate::kernel::forward::ForwardTables;
use crate::kernel::{FlowTables, Host, Socket, Tables, now};
use crate::net::{Flags, Port, Protocol};
use crate::verdict::Reason;

/// Admits a TCP packet that a rule sends to a target; `key` is its translated
/// flow under the client's own port.
///
/// # Errors
///
/// [`Reason::ForeignFlow`] when a server on the destination port holds the
/// connection, or when it began at that port, [`Reason::NoFreePort`],
/// [`Reason::TableFull`].
#[inline(always)]
pub fn redirect_tcp<T: Tables>(
    host: &T,
    key: &mut FlowKey,
    original: Original,
    segment: Segment,
) -> Result<Admitted, Reason> {
    let flags = segment.flags;
    let now = now(host);
    let found = lookup_protocol(host, Protocol::Tcp, key);
    let confirmed = match found {
        Some((FlowTable::Tcp, flow)) => Some(flow),
        _ => None,
    };
    if let Some(flow) = confirmed
        && original.is(&flow)
    {
        refresh(host, FlowTable::Tcp, key, Seen { flow, now });
        if flags.is_end() {
            elsewhere::note_end(host, key, original, segment);
        }
        // The client may use a port again; a repeated SYN has a socket.
        let is_new = flags.is_syn() && host.socket(key) != Socket::Connection;
        return Ok(admitted(original, is_new));
    }
    let begun = match found {
        Some((FlowTable::Syn, flow)) => Some(flow),
        Some(_) => lookup(host, FlowTable::Syn, key),
        None => None,
    };
    if let Some(begun) = begun
        && original.is(&begun)
    {
        confirm(host, key, begun, segment);
        return Ok(Admitted::established(original.client_port));
    }
    if let Some(client_port) = remapped_tcp(host, key, original, segment)? {
        return Ok(Admitted::established(client_port));
    }

    if is_foreign(host, key, original, flags) {
        return Err(Reason::ForeignFlow);
    }
    let is_known = (confirmed.is_some(), begun.is_some());
    begin_tcp(host, key, (original, flags), (now, is_known))
}

/// Begins a TCP flow of which nobody else has the client's port; `is_known` tells whether
/// there is an entry of a connection, and one of a flow that has begun, under its key.
#[inline(always)]
fn begin_tcp<T: Tables>(
    host: &T,
    key: &mut FlowKey,
    (original, flags): (Original, Flags),
    (now, (is_confirmed, is_begun)): (Epoch, (bool, bool)),
) -> Result<Admitted, Reason> {
    let flow = original.flow(now);
    let is_taken = host.socket(key) == Socket::Connection;
    if !flags.is_syn() && !is_taken && own_flow::is_tcp_answer(host, key, original, flags) {
        return Err(Reason::ForeignFlow);
    }
    if !flags.is_syn() && is_taken && !is_confirmed && !is_begun {
        // The entry was lost.
        host.set_flow(FlowTable::Tcp, key, &flow)?;
        return Ok(Admitted::established(original.client_port));
    }
    // The stack answers a packet that is no SYN with a RST from the destination port: this
    // is as much a flow as the one that a SYN begins. The client's port may be taken by a
    // connection to the target itself or by one to another destination port.
    if is_taken {
        return remap(host, FlowTable::Syn, key, &flow);
    }
    if is_confirmed {
        host.remove_flow(FlowTable::Tcp, key);
    }
    host.set_flow(FlowTable::Syn, key, &flow)?;
    Ok(admitted(original, flags.is_syn()))
}

/// Admits a packet under the client's own port.
#[inline(always)]
const fn admitted(original: Original, is_new: bool) -> Admitted {
    if is_new {
        Admitted::inserted(original.client_port)
    } else {
        Admitted::established(original.client_port)
    }
}

/// Whether a server on the destination port may hold the connection: one that is older
/// than the programs, also if all of it that is there is a request.
#[inline(always)]
fn is_foreign<H: Host>(host: &H, key: &mut FlowKey, original: Original, flags: Flags) -> bool {
    let target = key.local_port;
    key.local_port = original.dst_port;
    let is_foreign = match host.socket(key) {
        Socket::None => false,
        Socket::TimeWait => !flags.is_syn(),
        Socket::Connection => true,
    };
    key.local_port = target;
    is_foreign
}

/// Admits a TCP packet that a client sent to a target port itself.
///
/// # Errors
///
/// [`Reason::NoFreePort`], [`Reason::TableFull`].
#[inline(always)]
pub fn direct_tcp<T: Tables>(
    host: &T,
    key: &mut FlowKey,
    original: Original,
    segment: Segment,
) -> Result<Admitted, Reason> {
    let flags = segment.flags;
    if let Some(client_port) = remapped_tcp(host, key, original, segment)? {
        return Ok(Admitted::established(client_port));
    }
    if flags.is_syn()
        && let Some((_, flow)) = lookup_protocol(host, Protocol::Tcp, key)
        && !original.is(&flow)
    {
        if host.socket(key) == Socket::Connection {
            return remap(host, FlowTable::Syn, key, &original.flow(now(host)));
        }
        // What is left of a redirected connection must not rename replies of
        // this one.
        host.remove_flow(FlowTable::Tcp, key);
        host.remove_flow(FlowTable::Syn, key);
    }
    Ok(Admitted::established(original.client_port))
}

/// The client port that a TCP flow was given on a collision, if it still has
/// it: the client may since use that port itself.
#[inline(always)]
fn remapped_tcp<T: Tables>(
    host: &T,
    key: &mut FlowKey,
    original: Original,
    segment: Segment,
) -> Result<Option<Port>, Reason> {
    let flags = segment.flags;
    let Some(client_port) = original.remapped(host, key) else {
        return Ok(None);
    };
    key.client_port = client_port;
    if let Some((table, flow)) = lookup_protocol(host, Protocol::Tcp, key) {
        if original.is(&flow) {
            if table == FlowTable::Tcp {
                refresh(
                    host,
                    table,
                    key,
                    Seen {
                        flow,
                        now: now(host),
                    },
                );
            } else {
                confirm(host, key, flow, segment);
            }
            return Ok(Some(client_port));
        }
    } else {
        let is_taken = host.socket(key) == Socket::Connection;
        if !flags.is_syn() || !is_taken {
            // The entry was lost.
            let table = if is_taken {
                FlowTable::Tcp
            } else {
                FlowTable::Syn
            };
            host.set_flow(table, key, &original.flow(now(host)))?;
            return Ok(Some(client_port));
        }
    }
    key.client_port = original.client_port;
    Ok(None)
}

/// Makes a flow that has begun a connection, if it is one now: where the kernel
/// does not tell of connections, see [`accept`], the client's first data does. The
/// ACK before that anybody can send. Of a server elsewhere the handshake tells.
#[inline(always)]
fn confirm<T: Tables>(host: &T, key: &FlowKey, begun: Flow, segment: Segment) {
    let is_connection = if segment.flags.is_push() {
        host.socket(key) == Socket::Connection
    } else {
        false
    };
    if is_connection || elsewhere::is_confirmed(host, key, begun, segment) {
        // If this fails the next packet tries again.
        let seen = now(host);
        let _ = host.set_flow(FlowTable::Tcp, key, &Flow { seen, ..begun });
    }
}

/// Notes a connection that a server accepts now, also a direct one, and returns
/// how its client knows it.
///
/// The packet that completed it has come in just before, so what it began is
/// there, unless a flood has filled its bucket in between.
#[inline(always)]
pub fn accept<T: FlowTables + ForwardTables>(tables: &T, key: &FlowKey, now: Epoch) -> Flow {
    // A SYN cookie was sent without a socket, as if the server were elsewhere.
    elsewhere::end(tables, key);
    let flow = match lookup_protocol(tables, Protocol::Tcp, key) {
        Some((_, flow)) => Flow { seen: now, ..flow },
        None => Flow::direct(key, now),
    };
    // Where there is no room for it, it is kept at the socket alone.
    let _ = tables.set_flow(FlowTable::Tcp, key, &flow);
    flow
}

/// Admits a UDP packet that goes to a target, by a rule or because the client
/// sent it there; `key` is its translated flow under the client's own port.
///
/// Direct flows have entries too: there is no socket that could tell that a
/// client talks to both ports from one port of its own.
///
/// # Errors
///
/// [`Reason::ForeignFlow`] when this host began the flow at the destination port,
/// [`Reason::NoFreePort`], [`Reason::TableFull`].
#[inline(always)]
pub fn admit_udp<H: Host>(
    host: &H,
    key: &mut FlowKey,
    original: Original,
) -> Result<Admitted, Reason> {
    let now = now(host);
    let holder = lookup(host, FlowTable::Udp, key);
    if let Some(flow) = holder
        && original.is(&flow)
    {
        refresh(host, FlowTable::Udp, key, Seen { flow, now });
        return Ok(Admitted::established(original.client_port));
    }
    if own_flow::is_udp_answer(host, key, original.dst_port) {
        return Err(Reason::ForeignFlow);
    }
    let is_taken = holder.is_some_and(|holder| !is_idle(&holder, now));
    let flow = original.flow(now);
    if let Some(client_port) = original.remapped(host, key) {
        key.client_port = client_port;
        let is_free = match lookup(host, FlowTable::Udp, key) {
            Some(other) => original.is(&other) || is_idle(&other, now),
            None => true,
        };
        if is_free {
            host.set_flow(FlowTable::Udp, key, &flow)?;
            return Ok(Admitted::established(client_port));
        }
        key.client_port = original.client_port;
    }
    if is_taken {
        return remap(host, FlowTable::Udp, key, &flow);
    }
    host.set_flow(FlowTable::Udp, key, &flow)?;
    Ok(Admitted::inserted(original.client_port))
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
        Protocol::Udp => lookup_and_refresh(host, FlowTable::Udp, key, now(host)),
        Protocol::Tcp => lookup_protocol(host, protocol, key).map(|(_, flow)| flow),
    }
}

/// Whether a TCP flow has begun, and no server has accepted it.
#[inline(always)]
pub(super) fn is_unanswered<H: Host>(host: &H, key: &FlowKey) -> bool {
    matches!(
        lookup_protocol(host, Protocol::Tcp, key),
        Some((FlowTable::Syn, _))
    )
}

/// The rule of a packet that goes to a target port, if its flow has begun already; `key`
/// is its translated flow under the client's own port.
///
/// When the flow has not begun, nothing is left that would redirect what follows it.
#[inline(always)]
pub(super) fn has_begun<H: Host>(
    host: &H,
    key: &mut FlowKey,
    original: Original,
    flags: Flags,
) -> Option<u16> {
    key.protocol().ok()?;
    let mut rule = None;
    // Under the client's own port, then under one that it was given.
    for client_port in [Some(original.client_port), original.remapped(host, key)] {
        let Some(client_port) = client_port else {
            break;
        };
        key.client_port = client_port;
        rule = has_begun_as(host, key, original, flags);
        if rule.is_some() {
            break;
        }
    }
    key.client_port = original.client_port;
    rule
}

/// The rule of a packet under the client port of `key`, if its flow has begun.
#[inline(always)]
fn has_begun_as<H: Host>(host: &H, key: &FlowKey, original: Original, flags: Flags) -> Option<u16> {
    let protocol = key.protocol().ok()?;
    let mut rule = original.rule;
    let mut is_known = false;
    let found = lookup_protocol(host, protocol, key);
    if let Some((_, flow)) = found
        && original.is(&flow)
    {
        is_known = protocol == Protocol::Tcp || !is_idle(&flow, now(host));
        rule = flow.rule;
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
                    host.remove_flow(FlowTable::Tcp, key);
                    host.remove_flow(FlowTable::Syn, key);
                }
                is_known && !flags.is_syn()
            }
        }
    };
    has_begun.then_some(rule)
}

/// The client port that a flow of earlier rules has behind one of its former target
/// ports; `None` when the flow has another target port.
#[inline(always)]
pub fn earlier_client_port<H: Host>(
    host: &H,
    protocol: Protocol,
    key: &mut FlowKey,
    original: Original,
) -> Option<Port> {
    if let Some((_, flow)) = lookup_protocol(host, protocol, key)
        && original.is(&flow)
    {
        return Some(original.client_port);
    }
    let client_port = original.remapped(host, key)?;
    key.client_port = client_port;
    let is_its = lookup_protocol(host, protocol, key).is_some_and(|(_, flow)| original.is(&flow));
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
    match lookup_protocol(host, protocol, key) {
        Some((_, flow)) if original.is(&flow) => Some(original.client_port),
        _ => original.remapped(host, key),
    }
}
