//! The fast path of flows to targets with an address: packets of a shape that most have, to
//! ports whose rule has no conditions.
//!
//! The decisions are those of [`forward`](super::forward). It also gets the packets of clients that
//! have, or may have, another client port or another target than a new flow would get.

use crate::datapath::forward::{client_view, known_target, point_at, slot_of, write_ends};
use crate::datapath::forward_lookup::{is_same_flow, meet_connection, note_reply, refresh};
use crate::datapath::is_cached_local_dst;
use crate::flow::{Epoch, FlowKey, FlowLookup, FlowTable, Segment};
use crate::kernel::forward::{ClientPacket, Met, NewForward, Reply};
use crate::kernel::{Hit, Outcome, Socket, Tables};
use crate::map::forward::Forwarded;
use crate::map::rules::PortEntry;
use crate::map::targets::{Service, Target};
use crate::net::{Addr, Port, Protocol, Version};
use crate::packed::Packed as _;
use crate::verdict::Reason;
use crate::wire::frame::{Frame, Link};
use crate::wire::headers::{End, Packet, segment};
use crate::wire::shape::Shape;

/// Handles a packet of a client, or leaves it as it is: `None`.
/// `entry` is that of its destination port, and is [quick](PortEntry::is_quick_forward).
#[inline(always)]
pub(super) fn ingress<S: Shape, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    (link, entry): (Link, PortEntry),
) -> Option<Reason> {
    match link {
        Link::Ethernet => redirect::<S, false, _, _>(frame, tables, entry.pack()),
        Link::Ip => redirect::<S, true, _, _>(frame, tables, entry.pack()),
    }
}

/// Handles a packet that leaves from the port of a target, or leaves it as it is: `None`.
#[inline(always)]
pub(super) fn egress<S: Shape, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    link: Link,
) -> Option<Reason> {
    match link {
        Link::Ethernet => restore::<S, false, _, _>(frame, tables),
        Link::Ip => restore::<S, true, _, _>(frame, tables),
    }
}

/// The headers of a packet of a shape, on a device with Ethernet headers or without.
#[inline(always)]
fn packet<S: Shape, const IP: bool>() -> Packet {
    S::packet(if IP { Link::Ip } else { Link::Ethernet })
}

/// The table of flows that have begun.
#[inline(always)]
const fn table<S: Shape>() -> FlowTable {
    match S::PROTOCOL {
        Protocol::Tcp => FlowTable::Tcp,
        Protocol::Udp => FlowTable::Udp,
    }
}

// Not inlined, to have BPF stack frames of their own.

#[inline(never)]
fn redirect<S: Shape, const IP: bool, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    entry: u64,
) -> Option<Reason> {
    let entry = PortEntry::unpack(entry);
    let packet = packet::<S, IP>();
    let ports = packet.ports(frame).ok()?;
    if tables.came_in_on_loopback() {
        return None;
    }
    let mut key = packet.key(frame, End::Dst, S::PROTOCOL).ok()?;
    (key.client_port, key.local_port) = ports;
    if !is_cached_local_dst(tables, &key) {
        return None;
    }
    let bytes = frame.len();
    let check = packet.shape_check(frame, bytes, S::PROTOCOL)?;
    let segment = segment(frame, &packet, (S::PROTOCOL, End::Dst)).ok()?;
    let at_ns = tables.now_ns();
    let flow = find::<S, _>(tables, &mut key, entry, (segment, Epoch::at(at_ns)))?;
    if let Err(reason) = write_ends(frame, &packet, (ports, check), (&key, End::Dst)) {
        return Some(reason);
    }
    tables.record(&Hit {
        rule: entry.rule,
        segments: frame.segments(),
        bytes,
        flow,
        at_ns,
    });
    Some(Reason::Redirected)
}

/// The flow of a packet, which begins if there is none; `key` becomes the translated one.
/// `None` where [`forward`](super::forward) has to look further.
#[inline(always)]
fn find<S: Shape, T: Tables>(
    tables: &T,
    key: &mut FlowKey,
    entry: PortEntry,
    (segment, now): (Segment, Epoch),
) -> Option<FlowLookup> {
    let service = tables.service(entry.target.get(), key.version);
    if service.flags & Service::USED == 0 {
        return None;
    }
    let [number, previous, ..] = slot_of(tables, key, service).0;
    let target = known_target(tables, number, key)?;
    let (dialled, dst_port) = (key.local, key.local_port);
    point_at(key, target, &dialled, dst_port);
    let packet = ClientPacket {
        segment,
        dst_port,
        is_remapped: false,
    };
    let hash = tables.hash(key);
    if let Some(found) = tables
        .forward_bucket(table::<S>(), hash)?
        .find_forward(hash)
    {
        if !is_same_flow(tables, (found.own, found.entry), &dialled, packet) {
            return None;
        }
        match S::PROTOCOL {
            Protocol::Udp => refresh(&found, S::PROTOCOL, now),
            Protocol::Tcp if segment.flags.is_syn() => return None,
            Protocol::Tcp => _ = meet_connection(&found, segment, now),
        }
        return Some(FlowLookup::Established);
    }
    if previous != 0 || tables.is_marked(key) {
        return None;
    }
    if S::PROTOCOL == Protocol::Tcp {
        let met = tables.meet(key, &dialled, packet);
        if met == Met::Confirmed {
            tables.record_outcome(entry.rule, Outcome::Accepted);
        }
        match met {
            Met::Other => return None,
            Met::Nothing | Met::Ended => {}
            Met::Begun | Met::Opening | Met::Confirmed => return Some(FlowLookup::Established),
        }
    }
    let is_syn = S::PROTOCOL == Protocol::Udp || segment.flags.is_syn();
    if !is_syn || target.has(Target::HERE) {
        return None;
    }
    begin::<S, _>(tables, key, (dialled, dst_port, number))
}

/// Begins a flow, unless a server or a client on the destination port has it.
#[inline(always)]
fn begin<S: Shape, T: Tables>(
    tables: &T,
    key: &mut FlowKey,
    (dialled, dst_port, target): (Addr, Port, u16),
) -> Option<FlowLookup> {
    // The target may be one of the other IP version.
    if key.local.is_v4() != (S::VERSION == Version::V4) {
        return None;
    }
    if S::PROTOCOL == Protocol::Tcp {
        let ends = (key.local, key.local_port);
        (key.local, key.local_port) = (dialled, dst_port);
        if tables.socket(key) == Socket::Connection {
            return None;
        }
        (key.local, key.local_port) = ends;
    }
    let begun = NewForward {
        own: tables.own_number(&dialled)?,
        flow: Forwarded { target, dst_port },
        is_by_rule: false,
        is_remapped: false,
        answered: None,
    };
    tables.begin(key, begun);
    Some(FlowLookup::Inserted)
}

#[inline(never)]
fn restore<S: Shape, const IP: bool, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
) -> Option<Reason> {
    let packet = packet::<S, IP>();
    let ports = packet.ports(frame).ok()?;
    let mut key = packet.key(frame, End::Src, S::PROTOCOL).ok()?;
    (key.local_port, key.client_port) = ports;
    let bytes = frame.len();
    let check = packet.shape_check(frame, bytes, S::PROTOCOL)?;
    let segment = segment(frame, &packet, (S::PROTOCOL, End::Src)).ok()?;
    let reply = find_reply::<S, _>(tables, &key, segment)?;
    if reply.own == 0 {
        return Some(Reason::Direct);
    }
    let rule = client_view(tables, &mut key, reply.own, reply.entry)?;
    if reply.is_refusal {
        tables.record_outcome(rule, Outcome::Refused);
    }
    if let Err(reason) = write_ends(frame, &packet, (ports, check), (&key, End::Src)) {
        return Some(reason);
    }
    tables.record_reply(&Hit {
        rule,
        segments: frame.segments(),
        bytes,
        flow: FlowLookup::Established,
        at_ns: Hit::SOME_TIME,
    });
    Some(Reason::Restored)
}

/// The flow of a packet of a target.
#[inline(always)]
fn find_reply<S: Shape, T: Tables>(tables: &T, key: &FlowKey, segment: Segment) -> Option<Reply> {
    let hash = tables.hash(key);
    let bucket = tables.forward_bucket(table::<S>(), hash)?;
    match bucket.find_forward(hash) {
        Some(found) if S::PROTOCOL == Protocol::Udp || !segment.flags.has_syn() => {
            note_reply(&found, segment, (S::PROTOCOL, Epoch::at(tables.now_ns())));
            Some(Reply {
                own: found.own,
                entry: found.entry,
                is_refusal: false,
            })
        }
        _ if S::PROTOCOL == Protocol::Udp => None,
        _ => tables.meet_reply(key, segment),
    }
}
