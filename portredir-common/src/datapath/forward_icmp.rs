//! ICMP errors about flows to targets with an address.
//!
//! From the side of the client an error quotes a reply as the client got it; the target has
//! to find its own address and port, and the error goes on to it. On the way to the client
//! an error quotes a packet as the target got it, or would have got it, and the client has
//! to find the address and the port that it connected to.

use crate::datapath::forward::client_view;
use crate::datapath::is_local_dst;
use crate::datapath::quote::Quote;
use crate::datapath::rewrite::{Change, Rewrite, rewrite, set_addr};
use crate::flow::{FlowKey, Segment};
use crate::kernel::forward::ForwardFlow;
use crate::kernel::{Outcome, Subprograms, Tables};
use crate::net::{Addr, Flags, Port, Version};
use crate::verdict::Reason;
use crate::wire::checksum;
use crate::wire::fields::icmp;
use crate::wire::frame::{Check, Cover, Frame};
use crate::wire::headers::End;
use crate::wire::subprog::Found;

/// Handles an error from elsewhere whose quoted reply may be of a target; `None` when it is
/// not.
#[inline(never)]
pub(super) fn ingress<F: Frame, T: Tables + Subprograms>(
    frame: &mut F,
    tables: &T,
    outer: u64,
) -> Option<Reason> {
    let mut key = quoted(frame, outer, End::Src);
    let entry = tables.port(key.protocol().ok()?, key.local_port);
    if !entry.is_forward() {
        return None;
    }
    let dst = destination(frame, outer);
    if !tables.is_local(&dst) || !is_local_dst(tables, &key) {
        return None;
    }
    let route = tables.find_route(&mut key, entry, Flags::ACK_ALONE);
    let route = route.ok().filter(|route| route.is_forward)?;
    match tables.find_forward(&mut key, route, Segment::LOOK) {
        Ok(ForwardFlow::Admitted(_)) => {}
        _ => return None,
    }
    let reason = write(frame, outer, (&key, End::Src));
    if reason != Reason::IcmpTranslated {
        return Some(reason);
    }
    // The error goes on to the target.
    Some(write_outer(frame, outer, (&key, End::Dst)))
}

/// Handles an error on its way to a client whose quoted packet may be one that went to a
/// target; `None` when it is not.
#[inline(never)]
pub(super) fn egress<F: Frame, T: Tables>(frame: &mut F, tables: &T, outer: u64) -> Option<Reason> {
    let mut key = quoted(frame, outer, End::Dst);
    let protocol = key.protocol().ok()?;
    if !tables.port(protocol, key.local_port).is_remote() {
        return None;
    }
    let reply = tables.meet_reply(&key, Segment::LOOK)?;
    if reply.own == 0 {
        return None;
    }
    let rule = client_view(tables, &mut key, reply.own, reply.entry)?;
    let is_refusal = is_refusal(frame, outer);
    let reason = write(frame, outer, (&key, End::Dst));
    if is_refusal {
        tables.record_outcome(rule, Outcome::Refused);
    }
    if reason != Reason::IcmpTranslated {
        return Some(reason);
    }
    // As netfilter does, whoever sends the error (`nf_nat_icmp_reply_translation`).
    Some(write_outer(frame, outer, (&key, End::Src)))
}

/// The flow of the quoted packet, of which `local` is the server's end.
#[inline(never)]
fn quoted<F: Frame>(frame: &mut F, outer: u64, local: End) -> FlowKey {
    let mut read = || {
        let outer = Found::from_bits(outer).get()?;
        let quote = Quote::parse(frame, &outer)?;
        let mut key = quote.packet.key(frame, local, quote.protocol)?;
        (key.client_port, key.local_port) = match local {
            End::Dst => (quote.src_port, quote.dst_port),
            End::Src => (quote.dst_port, quote.src_port),
        };
        Ok::<_, Reason>(key)
    };
    read().unwrap_or(FlowKey::NOTHING)
}

/// Whether an error says that the quoted packet was refused.
#[inline(never)]
fn is_refusal<F: Frame>(frame: &mut F, outer: u64) -> bool {
    let mut read = || {
        let outer = Found::from_bits(outer).get()?;
        Quote::parse(frame, &outer)
    };
    read().is_ok_and(|quote| quote.is_refusal)
}

/// The destination of an error; an address that nobody has when there is none.
#[inline(never)]
fn destination<F: Frame>(frame: &F, outer: u64) -> Addr {
    let outer = Found::from_bits(outer).get();
    outer
        .and_then(|outer| outer.addr(frame, End::Dst))
        .unwrap_or(Addr::V6_ANY)
}

/// Gives the quoted packet the ends of a flow, `local` of which is the server's.
#[inline(never)]
fn write<F: Frame>(frame: &mut F, outer: u64, (key, local): (&FlowKey, End)) -> Reason {
    let mut write = || {
        let outer = Found::from_bits(outer).get()?;
        let quote = Quote::parse(frame, &outer)?;
        if quote.is_redirect {
            return Err(Reason::IcmpRedirect);
        }
        let cover = match outer.version {
            Version::V4 => Cover::Nothing,
            Version::V6 => Cover::Data,
        };
        set_addr(frame, &quote.packet, (local, quote.check, cover), key.local)?;
        let ports: (Port, Port) = match local {
            End::Src => (key.local_port, key.client_port),
            End::Dst => (key.client_port, key.local_port),
        };
        let changes = Rewrite {
            offset: quote.packet.transport,
            check: quote.check,
            src: Change::new(quote.src_port, ports.0),
            dst: Change::new(quote.dst_port, ports.1),
        };
        rewrite(frame, changes)
    };
    write().err().unwrap_or(Reason::IcmpTranslated)
}

/// Gives one end of the error itself the server's address.
#[inline(never)]
fn write_outer<F: Frame>(frame: &mut F, outer: u64, (key, end): (&FlowKey, End)) -> Reason {
    let mut write = || {
        let outer = Found::from_bits(outer).get()?;
        let check = Check {
            offset: outer.transport + icmp::CHECKSUM,
            kind: checksum::Kind::Plain,
        };
        let cover = match outer.version {
            Version::V4 => Cover::Nothing,
            Version::V6 => Cover::PseudoHeader,
        };
        set_addr(frame, &outer, (end, check, cover), key.local)
    };
    write().err().unwrap_or(Reason::IcmpTranslated)
}
