//! The fast path: packets of a shape that most have, of flows that have begun.
//!
//! The fast path leaves every packet that it cannot decide on as it is, for
//! [`ingress`](super::ingress) and [`egress`](super::egress).

use crate::datapath::egress::{Reply, restore_ports};
use crate::datapath::flow_lookup::{FlowQuery, lookup_or_insert};
use crate::datapath::rule_match::plain_route;
use crate::datapath::{conntrack, fast_forward, is_cached_local_dst};
use crate::flow::{Epoch, Flow, FlowKey, FlowLookup, FlowTable, Original};
use crate::kernel::{Cached, Hit, Route, SocketCache, Tables};
use crate::map::rules::PortEntry;
use crate::net::{Flags, Port, Protocol, Version};
use crate::verdict::Reason;
use crate::wire::fields::ports;
use crate::wire::frame::{Frame, Link};
use crate::wire::headers::{End, Packet, flags};
use crate::wire::shape::{Shape, TcpV4, TcpV6, UdpV4, UdpV6, shape};

/// Handles a packet that came in, if it is of a flow that has begun, or begins a UDP
/// flow; `None` for all others.
#[inline(always)]
pub fn ingress<F: Frame, T: Tables>(frame: &mut F, tables: &T, link: Link) -> Option<Reason> {
    match shape(frame, link)? {
        (Version::V4, Protocol::Tcp) => redirect::<TcpV4, _, _>(frame, tables, link),
        (Version::V4, Protocol::Udp) => redirect::<UdpV4, _, _>(frame, tables, link),
        (Version::V6, Protocol::Tcp) => redirect::<TcpV6, _, _>(frame, tables, link),
        (Version::V6, Protocol::Udp) => redirect::<UdpV6, _, _>(frame, tables, link),
    }
}

/// Handles a packet that goes out; of TCP, unless its flow has to be kept at its
/// socket. `None` for all others.
#[inline(always)]
pub fn egress<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    link: Link,
) -> Option<Reason> {
    match shape(frame, link)? {
        (Version::V4, Protocol::Tcp) => restore::<TcpV4, _, _>(frame, tables, link),
        (Version::V4, Protocol::Udp) => restore::<UdpV4, _, _>(frame, tables, link),
        (Version::V6, Protocol::Tcp) => restore::<TcpV6, _, _>(frame, tables, link),
        (Version::V6, Protocol::Udp) => restore::<UdpV6, _, _>(frame, tables, link),
    }
}

#[inline(always)]
fn redirect<S: Shape, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    link: Link,
) -> Option<Reason> {
    let packet = S::packet(link);
    let (client_port, dst_port) = packet.ports(frame).ok()?;
    let entry = tables.port(S::PROTOCOL, dst_port);
    if !entry.is_dst_or_target() {
        return Some(Reason::NoRule);
    }
    if entry.is_quick_forward() {
        return fast_forward::ingress::<S, _, _>(frame, tables, (link, entry));
    }
    if !entry.is_plain() {
        return None;
    }
    let now_ns = tables.now_ns();
    let bytes = frame.linear_len();
    let check = packet.shape_check(frame, bytes, S::PROTOCOL)?;
    let flags = flags(frame, &packet, S::PROTOCOL).ok()?;
    if S::PROTOCOL == Protocol::Tcp && (flags.is_syn() || flags.is_end()) {
        return None;
    }
    let route = plain_route(entry, dst_port);
    let original = Original {
        dst_port,
        client_port,
        rule: route.rule,
    };
    let arrival = Arrival {
        packet,
        original,
        route,
        now: Epoch::at(now_ns),
    };
    let flow = match arrival.lookup::<S, _, _>(frame, tables) {
        FlowLookup::Inserted => FlowLookup::Inserted,
        FlowLookup::Established => FlowLookup::Established,
        // The packet may confirm the connection.
        FlowLookup::Unconfirmed | FlowLookup::SlowPath => return None,
    };
    if !route.is_match {
        return Some(Reason::Direct);
    }
    if dst_port != route.target
        && let Err(reason) =
            frame.set_port(packet.transport + ports::DST, dst_port, route.target, check)
    {
        return Some(reason);
    }
    tables.record(&Hit {
        rule: route.rule,
        segments: frame.segments(),
        bytes,
        flow,
        at_ns: now_ns,
    });
    Some(Reason::Redirected)
}

/// A packet that came in, and where its rule sends it.
#[derive(Clone, Copy)]
struct Arrival {
    packet: Packet,
    original: Original,
    route: Route,
    now: Epoch,
}

impl Arrival {
    /// The knowledge of the flow table; [`FlowLookup::SlowPath`] also when the packet may not be
    /// for this host.
    #[inline(always)]
    fn lookup<S: Shape, F: Frame, T: Tables>(self, frame: &F, tables: &T) -> FlowLookup {
        let Some(key) = self.key::<S, _>(frame) else {
            return FlowLookup::SlowPath;
        };
        let is_direct_tcp = S::PROTOCOL == Protocol::Tcp && !self.route.is_match;
        // The tables keep nothing of a direct TCP flow but another client port.
        if is_direct_tcp {
            return if !is_cached_local_dst(tables, &key) || tables.is_marked(&key) {
                FlowLookup::SlowPath
            } else {
                FlowLookup::Established
            };
        }
        let hash = tables.hash(&key);
        if !is_cached_local_dst(tables, &key) {
            return FlowLookup::SlowPath;
        }
        let table = match S::PROTOCOL {
            Protocol::Udp => FlowTable::Udp,
            Protocol::Tcp => FlowTable::Tcp,
        };
        let query = FlowQuery {
            key: &key,
            hash,
            original: self.original,
            now: self.now,
        };
        lookup_or_insert(tables, table, query, || self.key::<S, _>(frame))
    }

    /// The translated flow, under the client's own port.
    #[inline(always)]
    fn key<S: Shape, F: Frame>(self, frame: &F) -> Option<FlowKey> {
        let mut key = self.packet.key(frame, End::Dst, S::PROTOCOL).ok()?;
        key.client_port = self.original.client_port;
        key.local_port = self.route.target;
        Some(key)
    }
}

#[inline(always)]
fn restore<S: Shape, F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    link: Link,
) -> Option<Reason> {
    let packet = S::packet(link);
    let ports: (Port, Port) = packet.ports(frame).ok()?;
    let (local_port, client_port) = ports;
    let entry = tables.port(S::PROTOCOL, local_port);
    if !entry.is_quick_target() || S::PROTOCOL == Protocol::Udp && entry.is_remote() {
        return restore_remote::<S, _, _>(frame, tables, (link, entry));
    }
    let key = || {
        let key = packet.key(frame, End::Src, S::PROTOCOL).ok()?;
        Some(FlowKey {
            client_port,
            local_port,
            ..key
        })
    };
    let flow = match S::PROTOCOL {
        Protocol::Tcp => match tables.cached(ports) {
            Cached::Flow(flow) => Some(flow),
            Cached::Nothing => return None,
            _ if entry.is_remote() => {
                return restore_remote::<S, _, _>(frame, tables, (link, entry));
            }
            // A RST may refuse a connection, and begin and end of one are noted where no
            // socket tells.
            Cached::NoSocket if flags(frame, &packet, S::PROTOCOL).ok()?.is_reset() => return None,
            Cached::Forwarded if is_noted(flags(frame, &packet, S::PROTOCOL).ok()?) => return None,
            Cached::NoSocket | Cached::Forwarded => conntrack::reply(tables, S::PROTOCOL, &key()?),
        },
        Protocol::Udp => {
            let key = key()?;
            let begins_here = |flow: &Flow| entry.is_private() && flow.is_foreign(&key);
            conntrack::reply(tables, S::PROTOCOL, &key).filter(|flow| !begins_here(flow))
        }
    };
    let Some(flow) = flow else {
        return if entry.is_private() {
            None
        } else {
            Some(Reason::Direct)
        };
    };
    let check = packet.shape_check(frame, frame.len(), S::PROTOCOL)?;
    let reply = Reply {
        offset: packet.transport,
        check,
        ports,
    };
    match restore_ports(frame, tables, &reply, &flow) {
        Ok(reason) | Err(reason) => Some(reason),
    }
}

/// Handles a packet that leaves from a port which only targets with an address have, or
/// these too.
#[inline(always)]
fn restore_remote<S: Shape, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    (link, entry): (Link, PortEntry),
) -> Option<Reason> {
    if entry.is_quick_remote() {
        fast_forward::egress::<S, _, _>(frame, tables, link)
    } else if entry.is_match_or_traced() {
        // What begins at a port of a rule has to be noted.
        None
    } else {
        Some(Reason::NoRule)
    }
}

/// Whether a segment begins or ends a connection.
#[inline(always)]
const fn is_noted(flags: Flags) -> bool {
    flags.is_syn_ack() || flags.is_end()
}
