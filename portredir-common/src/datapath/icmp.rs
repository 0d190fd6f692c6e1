//! ICMP errors about redirected flows (RFC 792, RFC 4443).
//!
//! An error quotes the packet it is about. From outside it quotes a packet that this
//! host sent, with the port that the client connected to, and the socket has to find its
//! own port; from this host it quotes a packet that the datapath rewrote, and the client
//! has to find the port it connected to. Without this, path MTU discovery fails and
//! refusals are lost.
//!
//! Only the quoted ports and the ICMP checksum change. The checksum inside the
//! quote may be cut off, and nobody verifies it.

use crate::datapath::quote::Quote;
use crate::datapath::rule_match::choose;
use crate::datapath::{conntrack, forward_icmp, is_local_dst};
use crate::flow::{FlowKey, Original};
use crate::kernel::{Outcome, Subprograms, Tables};
use crate::map::rules::{PortEntry, PreviousTargets};
use crate::net::Port;
use crate::verdict::Reason;
use crate::wire::frame::Frame;
use crate::wire::headers::End;
use crate::wire::subprog::Found;

/// Handles an error from elsewhere: it quotes a reply of this host as the wire saw it.
#[inline(always)]
pub(super) fn ingress<F: Frame, T: Tables + Subprograms>(
    frame: &mut F,
    tables: &T,
    outer: Found,
) -> Reason {
    match forward_icmp::ingress(frame, tables, outer.bits()) {
        Some(reason) => reason,
        None => ingress_bits(frame, tables, outer.bits()),
    }
}

/// Handles an error from this host: it quotes a client's packet as the datapath rewrote
/// it.
#[inline(always)]
pub(super) fn egress<F: Frame, T: Tables>(frame: &mut F, tables: &T, outer: Found) -> Reason {
    match forward_icmp::egress(frame, tables, outer.bits()) {
        Some(reason) => reason,
        None => egress_bits(frame, tables, outer.bits()),
    }
}

#[inline(never)]
fn ingress_bits<F: Frame, T: Tables>(frame: &mut F, tables: &T, outer: u64) -> Reason {
    match try_ingress(frame, tables, Found::from_bits(outer)) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(never)]
fn egress_bits<F: Frame, T: Tables>(frame: &mut F, tables: &T, outer: u64) -> Reason {
    match try_egress(frame, tables, Found::from_bits(outer)) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn try_ingress<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    outer: Found,
) -> Result<Reason, Reason> {
    let outer = &outer.get()?;
    let quote = Quote::parse_error(frame, outer)?;
    let entry = tables.port(quote.protocol, quote.src_port);
    if entry.flags == 0 {
        return Err(Reason::IcmpForeign);
    }
    let dst = outer.addr(frame, End::Dst)?;
    let mut key = quote.packet.key(frame, End::Src, quote.protocol)?;
    if !tables.is_local(&dst) || !is_local_dst(tables, &key) {
        return Err(Reason::IcmpForeign);
    }
    key.client_port = quote.dst_port;
    key.local_port = quote.src_port;
    let client_port = translate(tables, entry, &mut key).ok_or(Reason::IcmpForeign)?;
    quote.rewrite(frame, key.local_port, client_port)
}

/// The client port of the flow that a reply belongs to; the target port is left in
/// `key`, which is the flow as the client knows it.
#[inline(always)]
fn translate<T: Tables>(tables: &T, entry: PortEntry, key: &mut FlowKey) -> Option<Port> {
    let protocol = key.protocol().ok()?;
    let dst_port = key.local_port;
    let mut original = Original {
        dst_port,
        client_port: key.client_port,
        rule: entry.rule,
    };
    if entry.is_old() {
        let previous = tables.previous_targets(entry, protocol, dst_port);
        for i in 0..PreviousTargets::COUNT {
            let Some(target) = previous.target(i) else {
                break;
            };
            key.local_port = target;
            let client_port = conntrack::earlier_client_port(tables, protocol, key, original);
            if client_port.is_some() {
                return client_port;
            }
        }
        key.local_port = dst_port;
    }
    if let Some(choice) = choose(tables, entry, key, dst_port) {
        // A rule to a service has no target port.
        if choice.is_forward {
            return None;
        }
        key.local_port = choice.target;
        original.rule = choice.rule;
    }
    conntrack::translated_client_port(tables, protocol, key, original)
}

#[inline(always)]
fn try_egress<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    outer: Found,
) -> Result<Reason, Reason> {
    let outer = &outer.get()?;
    let quote = Quote::parse_error(frame, outer)?;
    if !tables.port(quote.protocol, quote.dst_port).is_target() {
        return Err(Reason::IcmpForeign);
    }
    let mut key = quote.packet.key(frame, End::Dst, quote.protocol)?;
    key.client_port = quote.src_port;
    key.local_port = quote.dst_port;
    let flow = conntrack::reply(tables, quote.protocol, &key).ok_or(Reason::IcmpForeign)?;
    let reason = quote.rewrite(frame, flow.client_port, flow.dst_port)?;
    if quote.is_refusal && !flow.is_direct(&key) {
        tables.record_outcome(flow.rule, Outcome::Refused);
    }
    Ok(reason)
}
