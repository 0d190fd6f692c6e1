//! Flows that this host begins from a port that a rule names, or that a host behind its
//! masquerade begins: the answers come to that port and are nobody else's.
//!
//! netfilter knows such flows by their conntrack entries. Here they have an entry of a
//! direct flow to their own port, made when a packet leaves; an answer finds it before
//! it could begin a flow to the target.

use crate::datapath::flow_lookup::{Seen, lookup, lookup_protocol, refresh};
use crate::datapath::rule_match::choose;
use crate::flow::{Flow, FlowKey, FlowTable, Original, UDP_IDLE};
use crate::kernel::{Host, Tables, now};
use crate::map::rules::PortEntry;
use crate::net::{Flags, Port, Protocol};

/// Notes the flow of a packet that leaves from the local port of `key`.
///
/// An answer that came before the flow was known may have begun a redirected UDP flow,
/// which ends here.
#[inline(always)]
pub(super) fn note<T: Tables>(tables: &T, key: &mut FlowKey, entry: PortEntry) {
    let Ok(protocol) = key.protocol() else {
        return;
    };
    let now = now(tables);
    let found = lookup_protocol(tables, protocol, key);
    let table = match found {
        Some((table, flow)) if flow.is_own(key) => {
            refresh(tables, table, key, Seen { flow, now });
            return;
        }
        // The reply of a redirected flow.
        Some((_, flow)) if !flow.is_direct(key) => return,
        Some((table, _)) => table,
        None if protocol == Protocol::Tcp => FlowTable::Syn,
        None => FlowTable::Udp,
    };
    if is_reply_on_its_way(tables, key, entry) {
        return;
    }
    tables.mark(key);
    // Without room for it an answer is taken for a new flow.
    let _ = tables.set_flow(table, key, &Flow::own(key, now));
}

/// Whether the packet is the reply of a redirected flow, which was rewritten on another
/// device on its way out. Not inlined: the BPF stack is small.
#[inline(never)]
fn is_reply_on_its_way<T: Tables>(tables: &T, key: &mut FlowKey, entry: PortEntry) -> bool {
    let own_port = key.local_port;
    let target = match choose(tables, entry, key, own_port) {
        // Replies of targets with an address come from other ends.
        Some(choice) if choice.is_forward => return false,
        Some(choice) => choice.target,
        // Its refusals come from there.
        None if entry.is_hidden() => Port::CLOSED,
        None => return false,
    };
    key.local_port = target;
    let is_reply = is_redirected_from(tables, key, own_port);
    key.local_port = own_port;
    is_reply
}

/// Whether a flow to the port of `key` was redirected from another port. A UDP reply has
/// refreshed its flow just now; one that was not is of an answer that was stolen, and
/// ends.
#[inline(always)]
fn is_redirected_from<T: Tables>(tables: &T, key: &FlowKey, dst_port: Port) -> bool {
    const JUST_NOW: u16 = 1;
    let Ok(protocol) = key.protocol() else {
        return false;
    };
    match lookup_protocol(tables, protocol, key) {
        Some((FlowTable::Udp, flow)) if flow.dst_port == dst_port => {
            let is_fresh = now(tables).since(flow.seen) <= JUST_NOW;
            if !is_fresh {
                tables.remove_flow(FlowTable::Udp, key);
            }
            is_fresh
        }
        Some((_, flow)) => flow.dst_port == dst_port,
        None => false,
    }
}

/// Whether a UDP packet that a rule would redirect answers a flow that began at its
/// destination port; `key` has the target port.
#[inline(always)]
pub(super) fn is_udp_answer<H: Host>(host: &H, key: &mut FlowKey, dst_port: Port) -> bool {
    if !host.is_marked(key) {
        return false;
    }
    let target = key.local_port;
    key.local_port = dst_port;
    let is_answer = is_live_udp(host, key);
    key.local_port = target;
    is_answer
}

/// Whether a UDP flow began at the local port of `key`; an answer keeps it. Not inlined:
/// it is rare, and the BPF stack is small.
#[inline(never)]
pub(super) fn is_live_udp<H: Host>(host: &H, key: &FlowKey) -> bool {
    let now = now(host);
    match lookup(host, FlowTable::Udp, key) {
        Some(flow) if flow.is_own(key) && now.since(flow.seen) < UDP_IDLE => {
            refresh(host, FlowTable::Udp, key, Seen { flow, now });
            true
        }
        _ => false,
    }
}

/// Whether a TCP segment that is no SYN belongs to a flow that began at its destination
/// port; `key` has the target port.
///
/// A SYN-ACK is for somebody behind this host; if it is for nobody, the stack resets it.
/// Any other answer makes the flow a connection: from elsewhere nobody could have begun
/// it.
#[inline(always)]
pub(super) fn is_tcp_answer<H: Host>(
    host: &H,
    key: &mut FlowKey,
    original: Original,
    flags: Flags,
) -> bool {
    if flags.is_syn_ack() {
        return true;
    }
    if !host.is_marked(key) {
        return false;
    }
    let target = key.local_port;
    key.local_port = original.dst_port;
    let found = lookup_protocol(host, Protocol::Tcp, key);
    let is_answer = match found {
        Some((table, flow)) if flow.is_own(key) => {
            let seen = now(host);
            if table == FlowTable::Syn {
                let _ = host.set_flow(FlowTable::Tcp, key, &Flow { seen, ..flow });
            } else {
                refresh(host, table, key, Seen { flow, now: seen });
            }
            true
        }
        _ => false,
    };
    key.local_port = target;
    is_answer
}
