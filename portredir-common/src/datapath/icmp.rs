//! ICMP errors about redirected flows (RFC 792, RFC 4443).
//!
//! An error quotes the packet it is about. From outside it quotes what we sent,
//! with the dialled port, and the socket has to find its own; from this host
//! it quotes what we rewrote, and the client has to find the port it dialled.
//! Without this, path MTU discovery fails and refusals are lost.
//!
//! Only the quoted ports and the ICMP checksum change. The checksum inside the
//! quote may be cut off, and nobody verifies it.

use crate::datapath::conntrack as flow;
use crate::datapath::rewrite::set_ports;
use crate::datapath::rule_match::choose;
use crate::flow::Original;
use crate::kernel::{Tables, is_here};
use crate::map::rules::Old;
use crate::net::{Port, Protocol, Version};
use crate::verdict::Reason;
use crate::wire::checksum;
use crate::wire::frame::{Check, Frame};
use crate::wire::headers::{End, Packet, Payload};

/// The packet that an ICMP error quotes.
struct Quote {
    packet: Packet,
    protocol: Protocol,
    /// Checksum of the ICMP message.
    check: Check,
    src_port: Port,
    dst_port: Port,
}

impl Quote {
    #[inline(always)]
    fn parse<F: Frame>(frame: &mut F, outer: &Packet) -> Result<Self, Reason> {
        let first = frame.half(outer.transport).ok_or(Reason::NoRule)?;
        let kind = u16::from_be(first) >> 8;
        let is_error = match outer.version {
            // Unreachable, source quench, time exceeded, parameter problem. A
            // redirect (5) is about routes alone.
            Version::V4 => matches!(kind, 3 | 4 | 11 | 12),
            // RFC 4443, 2.1: errors have the high bit clear; these four are defined.
            Version::V6 => matches!(kind, 1..=4),
        };
        // An error is never sent about, or in, more than one fragment.
        if !is_error || outer.is_fragment {
            return Err(Reason::NoRule);
        }
        let packet = Packet::network(frame, outer.transport + 8, outer.version)?;
        let Payload::Ports(protocol) = packet.payload else {
            return Err(Reason::IcmpForeign);
        };
        let (src_port, dst_port) = packet.ports(frame)?;
        // The frame may go on behind the message.
        if packet.transport + 4 > outer.transport + outer.transport_len(frame)? {
            return Err(Reason::Malformed);
        }
        let check = Check {
            offset: outer.transport + 2,
            kind: checksum::Kind::Plain,
        };
        Ok(Self {
            packet,
            protocol,
            check,
            src_port,
            dst_port,
        })
    }
}

/// Handles an error from elsewhere: it quotes a reply of ours as the wire saw it.
#[inline(never)]
pub(crate) fn ingress<F: Frame, T: Tables>(frame: &mut F, tables: &T, outer: u64) -> Reason {
    match try_ingress(frame, tables, outer) {
        Ok(reason) | Err(reason) => reason,
    }
}

/// Handles an error from this host: it quotes a client's packet as we rewrote it.
#[inline(never)]
pub(crate) fn egress<F: Frame, T: Tables>(frame: &mut F, tables: &T, outer: u64) -> Reason {
    match try_egress(frame, tables, outer) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn try_ingress<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    outer: u64,
) -> Result<Reason, Reason> {
    let outer = &Packet::from_word(outer)?;
    let quote = Quote::parse(frame, outer)?;
    let entry = tables.port(quote.protocol, quote.src_port);
    if entry.flags == 0 {
        return Err(Reason::IcmpForeign);
    }
    let reached = outer.addr(frame, End::Dst)?;
    let mut key = quote.packet.key(frame, End::Src, quote.protocol)?;
    if !tables.is_local(&reached) || !is_here(tables, &key) {
        return Err(Reason::IcmpForeign);
    }
    key.client_port = quote.dst_port;
    let mut original = Original {
        dialled_port: quote.src_port,
        client_port: quote.dst_port,
        rule: entry.rule,
    };
    let mut target = quote.src_port;
    let mut client_port = None;
    if entry.is_old() {
        let old = tables.old(entry, quote.protocol, quote.src_port);
        for i in 0..Old::COUNT {
            if old.targets[i] == 0 {
                break;
            }
            key.local_port = Port::new(old.targets[i]);
            client_port = flow::earlier_client_port(tables, quote.protocol, &mut key, original);
            if client_port.is_some() {
                target = key.local_port;
                break;
            }
        }
    }
    if client_port.is_none() {
        if let Some(choice) = choose(tables, entry, &key, quote.src_port) {
            target = Port::new(choice.target);
            original.rule = choice.rule;
        }
        key.local_port = target;
        client_port = flow::translated_client_port(tables, quote.protocol, &mut key, original);
    }
    let client_port = client_port.ok_or(Reason::IcmpForeign)?;
    set_ports(
        frame,
        quote.packet.transport,
        quote.check,
        (quote.src_port, target),
        (quote.dst_port, client_port),
    )?;
    Ok(Reason::IcmpTranslated)
}

#[inline(always)]
fn try_egress<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    outer: u64,
) -> Result<Reason, Reason> {
    let outer = &Packet::from_word(outer)?;
    let quote = Quote::parse(frame, outer)?;
    if !tables.port(quote.protocol, quote.dst_port).is_target() {
        return Err(Reason::IcmpForeign);
    }
    let mut key = quote.packet.key(frame, End::Dst, quote.protocol)?;
    key.client_port = quote.src_port;
    key.local_port = quote.dst_port;
    let flow = flow::reply(tables, quote.protocol, &key).ok_or(Reason::IcmpForeign)?;
    set_ports(
        frame,
        quote.packet.transport,
        quote.check,
        (quote.src_port, flow.client_port),
        (quote.dst_port, flow.dialled_port),
    )?;
    Ok(Reason::IcmpTranslated)
}
