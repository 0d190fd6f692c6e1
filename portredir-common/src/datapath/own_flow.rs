//! Flows that this host begins from a port that a rule names, or that a host behind its
//! masquerade begins: the answers come to that port and are nobody else's.
//!
//! netfilter knows such flows by their conntrack entries. Here they have an entry of a
//! direct flow to their own port, made when a packet leaves; an answer finds it before
//! it could begin a flow to the target.

use crate::datapath::flow_lookup::{Seen, lookup, lookup_protocol, refresh};
use crate::datapath::rule_match::choose;
use crate::flow::{Flow, FlowKey, FlowTable, Original, UDP_IDLE};
use crate::kernel::{Host, Socket, Tables, now};
use crate::map::rules::PortEntry;
use crate::net::{Flags, Port, Protocol};

/// Notes the flow of a packet that leaves from the local port of `key`.
///
/// An answer that came before the flow was known may have begun a redirected flow,
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
    tables.mark(key);
    // Without room for it an answer is taken for a new flow.
    let _ = tables.set_flow(table, key, &Flow::own(key, now));
    let own_port = key.local_port;
    let Some(choice) = choose(tables, entry, key, own_port) else {
        return;
    };
    key.local_port = choice.target;
    match lookup_protocol(tables, protocol, key) {
        Some((FlowTable::Udp, flow)) if flow.dst_port == own_port => {
            tables.remove_flow(FlowTable::Udp, key);
        }
        Some((_, flow)) if flow.dst_port == own_port && tables.socket(key) == Socket::None => {
            tables.remove_flow(FlowTable::Tcp, key);
            tables.remove_flow(FlowTable::Syn, key);
        }
        _ => {}
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
