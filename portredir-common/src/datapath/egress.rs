//! Packets that go out: all that the fast path leaves.

use crate::datapath::rewrite::{Change, Rewrite, rewrite};
use crate::datapath::{conntrack, elsewhere, forward, icmp, own_flow};
use crate::flow::{Epoch, Flow, FlowKey, FlowLookup};
use crate::kernel::{Cached, Hit, Outcome, SocketCache, Tables};
use crate::map::rules::PortEntry;
use crate::net::{Flags, Port, Protocol};
use crate::verdict::Reason;
use crate::wire::frame::{Check, Frame, Link};
use crate::wire::headers::{End, Packet, flags, segment};
use crate::wire::subprog::{self, Found};

/// Handles a packet that goes out.
#[inline(always)]
pub fn egress<F: Frame, T: Tables + SocketCache>(frame: &mut F, tables: &T, link: Link) -> Reason {
    let packet = subprog::find(frame, link);
    if Packet::is_icmp(packet) {
        return icmp::egress(frame, tables, packet);
    }
    match forward::egress(frame, tables, packet.bits()) {
        Some(reason) => reason,
        None => restore_bits(frame, tables, packet.bits()),
    }
}

// The rest runs for few packets. It is not inlined, to have a BPF stack frame of its
// own; the packet comes as one number.

#[inline(never)]
fn restore_bits<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    packet: u64,
) -> Reason {
    match restore(frame, tables, Found::from_bits(packet)) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn restore<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    found: Found,
) -> Result<Reason, Reason> {
    let packet = found.get()?;
    let protocol = packet.protocol()?;
    let ports = packet.ports(frame)?;
    let entry = tables.port(protocol, ports.0);
    if !entry.is_target() {
        if entry.is_match() {
            note_own_flow(frame, tables, found, entry);
        }
        return Err(Reason::NoRule);
    }
    let key = subprog::key(frame, found, End::Src);
    let flow = find_flow(frame, tables, found, &key)?;
    let is_udp = protocol == Protocol::Udp;
    let begins_here = |flow: &Flow| is_udp && entry.is_private() && flow.is_foreign(&key);
    let Some(flow) = flow.filter(|flow| !begins_here(flow)) else {
        if entry.is_private() {
            note_own_flow(frame, tables, found, entry);
        }
        return Err(Reason::Direct);
    };
    // A fragment that is too short to rewrite need not be rewritten.
    if flow.is_direct(&key) {
        return Err(Reason::Direct);
    }
    let check = subprog::check(frame, found)?;
    let reply = Reply {
        offset: packet.transport,
        check,
        ports,
    };
    tables.note_rule(flow.rule);
    let reason = restore_ports(frame, tables, &reply, &flow)?;
    if is_refusal(frame, found) && conntrack::is_unanswered(tables, &key) {
        tables.record_outcome(flow.rule, Outcome::Refused);
    }
    Ok(reason)
}

/// The flow that a packet belongs to, from its socket or from the flow tables.
#[inline(always)]
fn find_flow<F: Frame, T: Tables + SocketCache>(
    frame: &F,
    tables: &T,
    found: Found,
    key: &FlowKey,
) -> Result<Option<Flow>, Reason> {
    let packet = found.get()?;
    let protocol = packet.protocol()?;
    let ports = (key.local_port, key.client_port);
    let flow = match protocol {
        Protocol::Udp => conntrack::reply(tables, protocol, key),
        Protocol::Tcp => match tables.cached(ports) {
            Cached::Flow(flow) => Some(flow),
            Cached::NoSocket => conntrack::reply(tables, protocol, key),
            Cached::Forwarded => {
                let flow = conntrack::reply(tables, protocol, key);
                if let Some(flow) = &flow {
                    let segment = segment(frame, &packet, (protocol, End::Src))?;
                    elsewhere::note_reply(tables, key, segment, flow);
                }
                flow
            }
            Cached::Nothing => {
                let flow = conntrack::reply(tables, protocol, key);
                // Also direct connections that are older than the programs, so
                // that a forged packet cannot rename their replies later.
                // A SYN cookie was sent without a socket, as if the server were elsewhere.
                elsewhere::end(tables, key);
                match &flow {
                    Some(flow) => tables.cache(key, flow),
                    None => tables.cache(key, &Flow::direct(key, Epoch(0))),
                }
                flow
            }
        },
    };
    Ok(flow)
}

/// Whether a packet is the answer of a closed port to a SYN.
#[inline(always)]
fn is_refusal(frame: &mut impl Frame, found: Found) -> bool {
    protocol_and_flags(frame, found)
        .is_some_and(|(protocol, flags)| protocol == Protocol::Tcp && flags.is_refusal())
}

/// Notes the flow of a packet that is no reply of a redirected flow and leaves from a
/// port of a rule: its answers come to that port, and are not for the target.
///
/// A TCP socket of this host is there to be asked; the flows of containers behind a
/// masquerade have none here.
#[inline(always)]
fn note_own_flow<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    found: Found,
    entry: PortEntry,
) {
    let Some((protocol, flags)) = protocol_and_flags(frame, found) else {
        return;
    };
    let mut key = subprog::key(frame, found, End::Src);
    if protocol == Protocol::Tcp {
        let is_answer = flags.is_reset() || flags.is_syn_ack();
        let ports = (key.local_port, key.client_port);
        let cached = tables.cached(ports);
        if is_answer || !matches!(cached, Cached::NoSocket | Cached::Forwarded) {
            return;
        }
    }
    own_flow::note(tables, &mut key, entry);
}

#[inline(always)]
fn protocol_and_flags(frame: &mut impl Frame, found: Found) -> Option<(Protocol, Flags)> {
    let packet = found.get().ok()?;
    let protocol = packet.protocol().ok()?;
    Some((protocol, flags(frame, &packet, protocol).ok()?))
}

/// The ports of a reply, in the packet.
pub(super) struct Reply {
    /// The offset of the ports in the frame.
    pub offset: usize,
    /// The checksum that covers them.
    pub check: Check,
    /// The source and the destination port.
    pub ports: (Port, Port),
}

/// Gives a reply the ports that its client knows, and counts it.
#[inline(always)]
pub(super) fn restore_ports<T: Tables>(
    frame: &mut impl Frame,
    tables: &T,
    reply: &Reply,
    flow: &Flow,
) -> Result<Reason, Reason> {
    let (src_port, dst_port) = reply.ports;
    if flow.dst_port == src_port && flow.client_port == dst_port {
        return Err(Reason::Direct);
    }
    let changes = Rewrite {
        offset: reply.offset,
        check: reply.check,
        src: Change::new(src_port, flow.dst_port),
        dst: Change::new(dst_port, flow.client_port),
    };
    rewrite(frame, changes)?;
    tables.record_reply(&Hit {
        rule: flow.rule,
        segments: frame.segments(),
        bytes: frame.len(),
        flow: FlowLookup::Established,
        at_ns: Hit::SOME_TIME,
    });
    Ok(Reason::Restored)
}
