//! Flows to a port of this host whose server is elsewhere: netfilter or IPVS sends what is
//! rewritten here on to another address, as kube-proxy does for a node port.
//!
//! No socket of this host tells whether such a connection lives. Beside its entry in the
//! flow tables it has one among the forwarded flows, for its handshake and its end.

use crate::flow::{Flow, FlowKey, Original, Segment};
use crate::kernel::forward::{ClientPacket, ForwardTables, Met, NewForward};
use crate::kernel::{Outcome, Tables};
use crate::map::forward::Forwarded;
use crate::net::{Flags, Port};

/// Notes a segment that no socket of this host sends, and that belongs to a flow.
#[inline(always)]
pub(super) fn note_reply<T: Tables>(tables: &T, key: &FlowKey, segment: Segment, flow: &Flow) {
    let known = tables.meet_reply(key, segment).is_some();
    if segment.flags.is_syn_ack()
        && !known
        && !flow.is_direct(key)
        && let Some(own) = tables.own_number(&key.local)
    {
        let begun = NewForward {
            own,
            flow: Forwarded {
                target: flow.rule,
                dst_port: flow.dst_port,
            },
            is_by_rule: true,
            is_remapped: flow.client_port != key.client_port,
            answered: Some(segment.number.wrapping_add(1)),
        };
        tables.begin(key, begun);
    }
}

/// Ends what is known of a flow whose server turned out to be a socket of this host.
#[inline(always)]
pub(super) fn end<T: ForwardTables>(tables: &T, key: &FlowKey) {
    let reset = Segment {
        flags: Flags::RESET,
        number: 0,
    };
    let _ = tables.meet_reply(key, reset);
}

/// Whether a segment of a client makes a connection of a flow whose server is elsewhere.
#[inline(always)]
pub(super) fn is_confirmed<T: Tables>(
    tables: &T,
    key: &FlowKey,
    flow: Flow,
    segment: Segment,
) -> bool {
    let is_confirmed = segment.flags.is_acknowledgement()
        && meet(tables, key, (flow.dst_port, flow.client_port), segment) == Met::Confirmed;
    if is_confirmed {
        tables.record_outcome(flow.rule, Outcome::Accepted);
    }
    is_confirmed
}

/// Notes that a client ends its connection.
#[inline(always)]
pub(super) fn note_end<T: Tables>(tables: &T, key: &FlowKey, original: Original, segment: Segment) {
    let ports = (original.dst_port, original.client_port);
    let _ = meet(tables, key, ports, segment);
}

#[inline(always)]
fn meet<T: Tables>(
    tables: &T,
    key: &FlowKey,
    (dst_port, client_port): (Port, Port),
    segment: Segment,
) -> Met {
    let packet = ClientPacket {
        segment,
        dst_port,
        is_remapped: client_port != key.client_port,
    };
    tables.meet(key, &key.local, packet)
}
