//! Flows to targets with an address: the destination is rewritten on the way in, the source
//! of replies on the way out. Between the two the kernel routes, filters and forwards.
//!
//! The other two ways round would not work: a source that is rewritten on the way in is an
//! address of this host that comes from outside, which the kernel drops.

use crate::datapath::port_remap::{REMAP_TRIES, candidate};
use crate::datapath::rewrite::{Change, Rewrite, rewrite, set_addr};
use crate::datapath::{is_local_dst, not_local, own_flow};
use crate::flow::{Admitted, FlowKey, FlowLookup, FlowTable, Original, Segment};
use crate::kernel::forward::{ClientPacket, ForwardFlow, FreeSlot, Met, NewForward};
use crate::kernel::{Hit, Outcome, Route, Socket, Subprograms, Tables};
use crate::map::forward::{ForwardEntry, Forwarded, slot_key};
use crate::map::targets::{Service, Slot, Target};
use crate::net::{Addr, Flags, Port, Protocol, Version};
use crate::packed::Packed as _;
use crate::verdict::Reason;
use crate::wire::frame::{Check, Cover, Frame};
use crate::wire::headers::{End, Packet, segment};
use crate::wire::subprog::{self, Found};

/// Handles a packet that came in to a port whose rules may lead to a service; `None` for one
/// that no such rule is for, and for all others.
// It has a BPF stack frame of its own; the packet comes as one number.
#[inline(never)]
pub(super) fn ingress<F: Frame, T: Tables + Subprograms>(
    frame: &mut F,
    tables: &T,
    packet: u64,
) -> Option<Reason> {
    let found = Found::from_bits(packet);
    let packet = found.get().ok()?;
    let protocol = packet.protocol().ok()?;
    let (_, dst_port) = packet.ports(frame).ok()?;
    let entry = tables.port(protocol, dst_port);
    if !entry.is_forward() {
        return None;
    }
    let mut key = subprog::key(frame, found, End::Dst);
    if !is_local_dst(tables, &key) {
        return Some(not_local(entry));
    }
    // A fragment may end before the flags; it is not forwarded anyway.
    let segment = segment(frame, &packet, (protocol, End::Dst)).unwrap_or(Segment::LOOK);
    let route = match tables.find_route(&mut key, entry, segment.flags) {
        Ok(route) if route.is_forward => route,
        _ => return None,
    };
    // A packet of this host to itself has its route already, and would be a martian at the
    // target's; local clients are pointed at the target before there is a packet.
    if tables.came_in_on_loopback() {
        return Some(Reason::NoMatch);
    }
    if packet.is_fragment {
        return Some(Reason::FragmentForwarded);
    }
    // A packet that cannot be rewritten begins nothing.
    if let Err(reason) = subprog::check(frame, found) {
        return Some(reason);
    }
    let admitted = match tables.find_forward(&mut key, route, segment) {
        Ok(ForwardFlow::Admitted(admitted)) => Ok(admitted),
        Ok(ForwardFlow::Free(slot)) => tables.begin_forward(&mut key, slot, segment.flags),
        Err(reason) => Err(reason),
    };
    let flow = match admitted {
        Ok(admitted) => admitted.lookup(),
        Err(reason) => return Some(reason),
    };
    let reason = write(frame, found.bits(), (&key, End::Dst));
    if reason == Reason::Redirected {
        tables.note_rule(route.rule);
        tables.record(&Hit {
            rule: route.rule,
            segments: frame.segments(),
            bytes: frame.len(),
            flow,
            at_ns: tables.now_ns(),
        });
    }
    Some(reason)
}

/// Gives a packet the ends of a flow, `local` of which is the server's.
#[inline(never)]
fn write<F: Frame>(frame: &mut F, packet: u64, (key, local): (&FlowKey, End)) -> Reason {
    let found = Found::from_bits(packet);
    let mut write = || {
        let packet = found.get()?;
        let check = subprog::check(frame, found)?;
        let ports = packet.ports(frame)?;
        write_ends(frame, &packet, (ports, check), (key, local))
    };
    write().err().unwrap_or(Reason::Redirected)
}

/// Gives a packet, which has these ports, the ends of a flow, `local` of which is the
/// server's.
#[inline(always)]
pub(super) fn write_ends<F: Frame>(
    frame: &mut F,
    packet: &Packet,
    ((src_port, dst_port), check): ((Port, Port), Check),
    (key, local): (&FlowKey, End),
) -> Result<(), Reason> {
    set_addr(
        frame,
        packet,
        (local, check, Cover::PseudoHeader),
        key.local,
    )?;
    let ports = match local {
        End::Dst => (key.client_port, key.local_port),
        End::Src => (key.local_port, key.client_port),
    };
    let changes = Rewrite {
        offset: packet.transport,
        check,
        src: Change::new(src_port, ports.0),
        dst: Change::new(dst_port, ports.1),
    };
    rewrite(frame, changes)
}

/// The body of [`Subprograms::find_forward`].
///
/// # Errors
///
/// [`Reason::NoMatch`].
#[inline(always)]
pub fn find<T: Tables>(
    tables: &T,
    key: &mut FlowKey,
    route: Route,
    segment: Segment,
) -> Result<ForwardFlow, Reason> {
    let service = tables.service(route.target.get(), key.version);
    if service.flags & Service::USED == 0 {
        return Err(Reason::NoMatch);
    }
    let slot = Slot::unpack(slot_bits(tables, key, service.pack()));
    let dialled = key.local;
    let (client_port, dst_port) = (key.client_port, key.local_port);
    let given = tables.remap(key);
    let mut is_taken = false;
    for i in 0..Slot::TARGETS {
        let Some(target) = known_target(tables, slot.0[i], key) else {
            continue;
        };
        point_at(key, target, &dialled, dst_port);
        let mut packet = ClientPacket {
            segment,
            dst_port,
            is_remapped: false,
        };
        let mut met = tables.meet(key, &dialled, packet);
        is_taken |= i == 0 && met == Met::Other;
        if let (Some(given), Met::Nothing | Met::Other) = (given, met) {
            packet.is_remapped = true;
            key.client_port = given;
            met = tables.meet(key, &dialled, packet);
        }
        if met == Met::Confirmed {
            tables.record_outcome(route.rule, Outcome::Accepted);
        }
        // A SYN that an earlier target has not answered may as well go to the present one.
        let is_free = i > 0 && met == Met::Opening && segment.flags.is_syn();
        if !is_free && matches!(met, Met::Begun | Met::Opening | Met::Confirmed) {
            return Ok(ForwardFlow::Admitted(Admitted::established(
                key.client_port,
            )));
        }
        key.client_port = client_port;
    }
    key.local = dialled;
    key.local_port = dst_port;
    Ok(ForwardFlow::Free(FreeSlot {
        target: slot.0[0],
        is_taken,
    }))
}

/// The slot of a client. Not inlined: the BPF stack is small.
#[inline(never)]
fn slot_bits<T: Tables>(tables: &T, key: &FlowKey, service: u64) -> u64 {
    slot_of(tables, key, Service::unpack(service)).pack()
}

/// The slot of a client.
#[inline(always)]
pub(super) fn slot_of<T: Tables>(tables: &T, key: &FlowKey, service: Service) -> Slot {
    let mut index = service.first_slot;
    if service.mask != 0 {
        let is_affine = service.flags & Service::AFFINITY != 0;
        let hash = tables.hash(&slot_key(key, is_affine)).0 >> 32;
        let hash = hash as u32;
        index = index.wrapping_add(hash & u32::from(service.mask));
    }
    tables.slot(index)
}

/// The target of a number, unless its flows have to go elsewhere.
#[inline(always)]
pub(super) fn known_target<'a, T: Tables>(
    tables: &'a T,
    number: u16,
    key: &FlowKey,
) -> Option<&'a Target> {
    if number == Slot::RESTS || number == Slot::DROPS {
        return None;
    }
    let target = tables.target(number)?;
    let is_udp = key.protocol == Protocol::Udp as u8;
    let is_gone = target.has(Target::DEAD) && (is_udp || target.has(Target::CUT));
    (!is_gone).then_some(target)
}

/// Makes the translated flow of a key.
#[inline(always)]
pub(super) fn point_at(key: &mut FlowKey, target: &Target, dialled: &Addr, dst_port: Port) {
    key.local = if target.has(Target::HERE) {
        *dialled
    } else {
        target.addr
    };
    key.local_port = target.port_of(dst_port);
}

/// Whether a server or a client on the destination port has the flow; `key` is the flow as
/// the client knows it.
#[inline(always)]
fn is_foreign<T: Tables>(tables: &T, key: &mut FlowKey, flags: Flags) -> bool {
    let original = Original {
        dst_port: key.local_port,
        client_port: key.client_port,
        rule: 0,
    };
    if key.protocol == Protocol::Udp as u8 {
        return own_flow::is_udp_answer(tables, key, original.dst_port);
    }
    let is_syn = flags.is_syn();
    match tables.socket(key) {
        Socket::Connection => true,
        Socket::TimeWait if !is_syn => true,
        // As in netfilter, a segment that neither asks for a connection nor acknowledges
        // something begins nothing (`tcp_conntracks` in net/netfilter/nf_conntrack_proto_tcp.c).
        _ => {
            let begins = is_syn || flags.is_acknowledgement();
            !begins || !is_syn && own_flow::is_tcp_answer(tables, key, original, flags)
        }
    }
}

/// The body of [`Subprograms::begin_forward`].
///
/// # Errors
///
/// [`Reason::NoTarget`], [`Reason::NoTargetDropped`], [`Reason::NoMatch`],
/// [`Reason::ForeignFlow`], [`Reason::NoFreePort`], [`Reason::TableFull`].
#[inline(always)]
pub fn begin<T: Tables>(
    tables: &T,
    key: &mut FlowKey,
    slot: FreeSlot,
    flags: Flags,
) -> Result<Admitted, Reason> {
    if is_foreign(tables, key, flags) {
        return Err(Reason::ForeignFlow);
    }
    match slot.target {
        Slot::RESTS => return Err(Reason::NoTarget),
        Slot::DROPS => return Err(Reason::NoTargetDropped),
        _ => {}
    }
    let own = tables.own_number(&key.local).ok_or(Reason::TableFull)?;
    let target = tables.target(slot.target).ok_or(Reason::NoTarget)?;
    let is_v4 = key.version == Version::V4 as u8;
    if !target.has(Target::HERE) && target.addr.is_v4() != is_v4 {
        return Err(Reason::NoMatch);
    }
    let dialled = key.local;
    let (client_port, dst_port) = (key.client_port, key.local_port);
    point_at(key, target, &dialled, dst_port);
    let is_remapped = slot.is_taken || is_connection_here(tables, key, target);
    if is_remapped {
        find_free_port(tables, key, (target, dst_port))?;
        tables.set_own_port(key, client_port)?;
        let given = key.client_port;
        key.local = dialled;
        (key.client_port, key.local_port) = (client_port, dst_port);
        tables.set_remap(key, given)?;
        point_at(key, target, &dialled, dst_port);
        key.client_port = given;
    }
    let begun = NewForward {
        own,
        flow: Forwarded {
            target: slot.target,
            dst_port,
        },
        is_by_rule: false,
        is_remapped,
        answered: None,
    };
    tables.begin(key, begun);
    Ok(Admitted::inserted(key.client_port))
}

/// Whether the client has a connection to a target on this host from the same port.
#[inline(always)]
fn is_connection_here<T: Tables>(tables: &T, key: &FlowKey, target: &Target) -> bool {
    target.has(Target::HERE)
        && key.protocol == Protocol::Tcp as u8
        && tables.socket(key) == Socket::Connection
}

/// Finds a client port under which nobody talks to the target, as netfilter does when two
/// flows would become one, and leaves it in `key`.
#[inline(always)]
fn find_free_port<T: Tables>(
    tables: &T,
    key: &mut FlowKey,
    (target, dst_port): (&Target, Port),
) -> Result<(), Reason> {
    let start = tables.random();
    let look = ClientPacket {
        segment: Segment::LOOK,
        dst_port,
        is_remapped: true,
    };
    for i in 0..REMAP_TRIES {
        key.client_port = candidate(start, i);
        // No client connects to its own address: what is met is another's.
        let is_free = tables.meet(key, &key.client, look) == Met::Nothing;
        if is_free && !is_connection_here(tables, key, target) {
            return Ok(());
        }
    }
    Err(Reason::NoFreePort)
}

/// Handles a packet that leaves from the port of a target of a service; `None` for one that
/// belongs to no flow to a target.
// It has a BPF stack frame of its own; the packet comes as one number.
#[inline(never)]
pub(super) fn egress<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    packet: u64,
) -> Option<Reason> {
    let found = Found::from_bits(packet);
    let packet = found.get().ok()?;
    let protocol = packet.protocol().ok()?;
    let (src_port, _) = packet.ports(frame).ok()?;
    if !tables.port(protocol, src_port).is_remote() {
        return None;
    }
    let mut key = subprog::key(frame, found, End::Src);
    let segment = segment(frame, &packet, (protocol, End::Src)).ok()?;
    let Some(reply) = tables.meet_reply(&key, segment) else {
        note_direct(tables, &key, segment);
        return None;
    };
    if reply.own == 0 {
        return Some(Reason::Direct);
    }
    let rule = client_view(tables, &mut key, reply.own, reply.entry)?;
    if reply.is_refusal {
        tables.record_outcome(rule, Outcome::Refused);
    }
    let reason = write(frame, found.bits(), (&key, End::Src));
    tables.note_rule(rule);
    if reason != Reason::Redirected {
        return Some(reason);
    }
    tables.record_reply(&Hit {
        rule,
        segments: frame.segments(),
        bytes: frame.len(),
        flow: FlowLookup::Established,
        at_ns: Hit::SOME_TIME,
    });
    Some(Reason::Restored)
}

/// Makes the flow as the client knows it of a translated one; returns the rule.
#[inline(always)]
pub(super) fn client_view<T: Tables>(
    tables: &T,
    key: &mut FlowKey,
    own: u16,
    entry: ForwardEntry,
) -> Option<u16> {
    let Forwarded { target, dst_port } = entry.flow();
    let rule = if entry.is_by_rule() {
        target
    } else {
        tables.target(target)?.rule
    };
    if entry.is_remapped() {
        key.client_port = tables.own_port(FlowTable::Udp, key)?;
    }
    key.local = *tables.own_addr(own)?;
    key.local_port = dst_port;
    Some(rule)
}

/// Notes the flow of a client that talks to a target by the target's own address: a flow
/// that a rule would give the same ends gets another client port then.
#[inline(always)]
fn note_direct<T: Tables>(tables: &T, key: &FlowKey, segment: Segment) {
    let begins = key.protocol == Protocol::Udp as u8 || segment.flags.is_syn_ack();
    if begins && tables.is_target_addr(&key.local) {
        let begun = NewForward {
            own: 0,
            flow: Forwarded {
                target: 0,
                dst_port: key.local_port,
            },
            is_by_rule: false,
            is_remapped: false,
            answered: None,
        };
        tables.begin(key, begun);
    }
}
