//! Look-ups of forwarded flows, and the life of their entries: the one body of each, over
//! buckets.
//!
//! netfilter knows a connection by its handshake; so does this. A SYN makes an entry in the
//! table of those that are being opened. The answer of the target is noted there, and the
//! segment that acknowledges it makes a connection of it, in a table that a flood of SYNs
//! cannot fill. From then on the target's own segments keep it, which nobody else can send
//! through this host.

use crate::flow::{Epoch, FlowKey, FlowTable, Segment, UDP_IDLE};
use crate::kernel::forward::{ClientPacket, ForwardMaps, ForwardPlace, Met, NewForward, Reply};
use crate::map::entry::Word;
use crate::map::forward::{ForwardEntry, FoundForward};
use crate::map::hash::Hash;
use crate::net::{Addr, Protocol};

/// The body of [`ForwardTables::meet`](crate::kernel::forward::ForwardTables::meet).
#[inline(always)]
pub fn meet<T: ForwardMaps>(
    tables: &T,
    key: &FlowKey,
    (dialled, packet): (&Addr, ClientPacket),
    now: Epoch,
) -> Met {
    let Ok(protocol) = key.protocol() else {
        return Met::Nothing;
    };
    let hash = tables.hash(key);
    let is_same = |own, entry| is_same_flow(tables, (own, entry), dialled, packet);
    if protocol == Protocol::Udp {
        return meet_udp(tables, hash, packet.segment, (now, is_same));
    }
    let other = if let Some(bucket) = tables.forward_bucket(FlowTable::Tcp, hash)
        && let Some(found) = bucket.find_forward(hash)
    {
        if is_same(found.own, found.entry) {
            return meet_connection(&found, packet.segment, now);
        }
        !found.entry.is_ended()
    } else {
        false
    };
    if let Some(bucket) = tables.forward_bucket(FlowTable::Syn, hash)
        && let Some(found) = bucket.find_forward(hash)
    {
        if !is_same(found.own, found.entry) {
            return if other || is_opening(found.own, found.entry, now) {
                Met::Other
            } else {
                Met::Nothing
            };
        }
        let Segment { flags, number } = packet.segment;
        if flags.is_syn() && found.entry.is_ended() {
            found.remove();
            return Met::Ended;
        }
        if flags.is_acknowledgement() && found.entry.is_acknowledged_by(number) {
            let entry = found.entry.confirmed(hash).seen_at(now);
            put(tables, FlowTable::Tcp, key, (hash, found.own, entry));
            found.remove();
            return Met::Confirmed;
        }
        if !packet.segment.is_look() {
            refresh(&found, Protocol::Tcp, now);
        }
        return if found.entry.is_answered() {
            Met::Begun
        } else {
            Met::Opening
        };
    }
    if other { Met::Other } else { Met::Nothing }
}

/// Whether the entry of an address is that of a packet, and not of another flow which became
/// one with it.
#[inline(always)]
pub(super) fn is_same_flow<T: ForwardMaps>(
    tables: &T,
    (own, entry): (u16, ForwardEntry),
    dialled: &Addr,
    packet: ClientPacket,
) -> bool {
    entry.flow().dst_port == packet.dst_port
        && entry.is_remapped() == packet.is_remapped
        && tables.own_addr(own).is_some_and(|addr| addr.is(*dialled))
}

/// Whether a connection that is being opened, or one that nothing is translated of, may have
/// come to life.
#[inline(always)]
const fn is_opening(own: u16, entry: ForwardEntry, now: Epoch) -> bool {
    // `nf_conntrack_tcp_timeout_syn_sent` is 120 s.
    let is_recent = own == 0 || now.since(entry.seen()) < UDP_IDLE;
    is_recent && !entry.is_ended()
}

/// [`meet`] for a UDP packet.
#[inline(always)]
fn meet_udp<T: ForwardMaps>(
    tables: &T,
    hash: Hash,
    segment: Segment,
    (now, is_same): (Epoch, impl Fn(u16, ForwardEntry) -> bool),
) -> Met {
    let Some(bucket) = tables.forward_bucket(FlowTable::Udp, hash) else {
        return Met::Nothing;
    };
    let Some(found) = bucket.find_forward(hash) else {
        return Met::Nothing;
    };
    let age = now.since(found.entry.seen());
    if !is_same(found.own, found.entry) {
        return if age < UDP_IDLE {
            Met::Other
        } else {
            Met::Nothing
        };
    }
    if !segment.is_look() {
        refresh(&found, Protocol::Udp, now);
    }
    Met::Begun
}

/// Notes a packet of a client that neither begins nor ends its flow.
#[inline(always)]
pub(super) fn refresh<W: Word>(found: &FoundForward<'_, W>, protocol: Protocol, now: Epoch) {
    let entry = found.entry;
    if now.since(entry.seen()) > 0 {
        found.set(match protocol {
            Protocol::Tcp => entry.seen_at(now),
            Protocol::Udp => entry.seen_again_at(now),
        });
    }
}

/// [`meet`] for a segment of a connection.
#[inline(always)]
pub(super) fn meet_connection<W: Word>(
    found: &FoundForward<'_, W>,
    segment: Segment,
    now: Epoch,
) -> Met {
    let entry = found.entry;
    if segment.is_look() {
        return Met::Begun;
    }
    let flags = segment.flags;
    if flags.is_reset() {
        found.set(entry.reset());
    } else if flags.is_syn() && entry.is_ended() {
        found.remove();
        return Met::Ended;
    } else if flags.is_last() {
        found.set(entry.ended_by_client().seen_at(now));
    } else {
        refresh(found, Protocol::Tcp, now);
    }
    Met::Begun
}

/// The body of [`ForwardTables::begin`](crate::kernel::forward::ForwardTables::begin).
#[inline(always)]
pub fn begin<T: ForwardMaps>(tables: &T, key: &FlowKey, begun: NewForward, now: Epoch) {
    let hash = tables.hash(key);
    let mut entry = ForwardEntry::new(hash, begun.flow, now);
    if begun.is_by_rule {
        entry = entry.by_rule();
    }
    if begun.is_remapped {
        entry = entry.remapped();
    }
    if let Some(expected) = begun.answered {
        entry = entry.answered(expected);
    }
    let table = if key.protocol == Protocol::Udp as u8 {
        FlowTable::Udp
    } else {
        remove_ended(tables, hash);
        FlowTable::Syn
    };
    put(tables, table, key, (hash, begun.own, entry));
}

/// Removes a connection that has ended, whose ends another one has from now on: the replies
/// of that one would be taken for its own.
#[inline(always)]
fn remove_ended<T: ForwardMaps>(tables: &T, hash: Hash) {
    if let Some(bucket) = tables.forward_bucket(FlowTable::Tcp, hash)
        && let Some(found) = bucket.find_forward(hash)
        && found.entry.is_ended()
    {
        found.remove();
    }
}

/// Adds an entry, in place of one with the same key.
#[inline(always)]
fn put<T: ForwardMaps>(
    tables: &T,
    table: FlowTable,
    key: &FlowKey,
    (hash, own, entry): (Hash, u16, ForwardEntry),
) {
    if let Some(bucket) = tables.forward_bucket(table, hash) {
        if let Some(found) = bucket.find_forward(hash) {
            found.remove();
        }
        let place = bucket.add_forward(hash, own, entry);
        if table != FlowTable::Syn {
            tables.keep_forward_ends(ForwardPlace { table, hash, place }, key);
        }
    }
}

/// The body of [`ForwardTables::meet_reply`](crate::kernel::forward::ForwardTables::meet_reply).
#[inline(always)]
pub fn meet_reply<T: ForwardMaps>(
    tables: &T,
    key: &FlowKey,
    segment: Segment,
    now: Epoch,
) -> Option<Reply> {
    let protocol = key.protocol().ok()?;
    let hash = tables.hash(key);
    let table = match protocol {
        Protocol::Tcp => FlowTable::Tcp,
        Protocol::Udp => FlowTable::Udp,
    };
    // What has ended has nothing to agree to: the segment is of a connection that is new.
    let is_of = |entry: ForwardEntry| !(entry.is_ended() && segment.flags.is_syn_ack());
    if let Some(bucket) = tables.forward_bucket(table, hash)
        && let Some(found) = bucket.find_forward(hash)
        && is_of(found.entry)
    {
        note_reply(&found, segment, (protocol, now));
        return Some(Reply {
            own: found.own,
            entry: found.entry,
            is_refusal: false,
        });
    }
    if protocol == Protocol::Udp {
        return None;
    }
    let bucket = tables.forward_bucket(FlowTable::Syn, hash)?;
    let found = bucket
        .find_forward(hash)
        .filter(|found| is_of(found.entry))?;
    if segment.flags.is_syn_ack() && found.own != 0 {
        found.set(found.entry.answered(segment.number.wrapping_add(1)));
    } else if segment.flags.is_reset() {
        found.set(found.entry.reset());
    }
    Some(Reply {
        own: found.own,
        entry: found.entry,
        is_refusal: segment.flags.is_refusal() && !found.entry.is_answered(),
    })
}

/// Notes a packet of a target.
#[inline(always)]
pub(super) fn note_reply<W: Word>(
    found: &FoundForward<'_, W>,
    segment: Segment,
    (protocol, now): (Protocol, Epoch),
) {
    let (entry, flags) = (found.entry, segment.flags);
    let is_tcp = protocol == Protocol::Tcp;
    // A repeated answer tells that no acknowledgement has come.
    if segment.is_look() || is_tcp && flags.is_syn_ack() {
        return;
    }
    if is_tcp && flags.is_reset() {
        found.set(entry.reset());
    } else if is_tcp && flags.is_last() {
        found.set(entry.seen_again_at(now).ended_by_target());
    } else if now.since(entry.seen()) > 0 || is_tcp && !entry.is_seen_again() {
        found.set(entry.seen_again_at(now));
    }
}
