//! The quick way of packets that are of a shape that most have.

use crate::datapath::conntrack as flow;
use crate::datapath::egress::set_original_ports;
use crate::datapath::rule_match::Route;
use crate::flow::{Epoch, FlowKey, Original, Table};
use crate::kernel::{Cached, Met, SocketCache, Tables, may_be_here};
use crate::net::{Flags, Port, Protocol, Version};
use crate::verdict::Reason;
use crate::wire::frame::{Frame, Link};
use crate::wire::headers::{End, Packet, tcp_flags};

/// Runs a function on a packet of a shape that most have, with constants in place of
/// what it is: the code four times, and half of it to run. A macro, as the compiler
/// would not inline a closure so often.
macro_rules! plainly {
    ($function:ident, $frame:ident, $tables:ident, $link:ident) => {{
        use Protocol::{Tcp, Udp};
        use Version::{V4, V6};
        match Packet::plain($frame, $link)? {
            (V4, Tcp) => $function($frame, $tables, &Packet::of_plain($link, V4, Tcp), Tcp),
            (V4, Udp) => $function($frame, $tables, &Packet::of_plain($link, V4, Udp), Udp),
            (V6, Tcp) => $function($frame, $tables, &Packet::of_plain($link, V6, Tcp), Tcp),
            (V6, Udp) => $function($frame, $tables, &Packet::of_plain($link, V6, Udp), Udp),
        }
    }};
}

/// Handles a packet of a shape that most have, if it is of a flow that has begun,
/// or begins a UDP flow. All others are left as they are, for [`super::ingress`].
#[inline(always)]
pub fn quick_ingress<F: Frame, T: Tables>(frame: &mut F, tables: &T, link: Link) -> Option<Reason> {
    plainly!(quick, frame, tables, link)
}

#[inline(always)]
fn quick<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    packet: &Packet,
    protocol: Protocol,
) -> Option<Reason> {
    let (client_port, dialled_port) = packet.ports(frame).ok()?;
    let entry = tables.port(protocol, dialled_port);
    if !entry.is_dialled_or_target() {
        return Some(Reason::NoRule);
    }
    if !entry.is_plain() {
        return None;
    }
    let now_ns = tables.now_ns();
    let now = Epoch::at(now_ns);
    let bytes = frame.head_len();
    let check = packet.plain_check(frame, bytes, protocol)?;
    let flags = match protocol {
        Protocol::Udp => Flags::SYN,
        Protocol::Tcp => tcp_flags(frame, packet).ok()?,
    };
    if protocol == Protocol::Tcp && flags.is_syn() {
        return None;
    }
    let route = Route::of(entry, dialled_port);
    let target = Port::new(route.target);
    let read_key = |frame: &F| {
        let mut key = packet.key(frame, End::Dst, protocol).ok()?;
        (key.client_port, key.local_port) = (client_port, target);
        Some(key)
    };
    let key = read_key(frame)?;
    let hash = tables.hash(&key);
    if !may_be_here(&key) || !tables.is_own(&key.local) {
        return None;
    }
    let original = Original {
        dialled_port,
        client_port,
        rule: route.rule,
    };
    let met = match protocol {
        Protocol::Udp => tables.meet(Table::Udp, (&key, hash), original, now, || read_key(frame)),
        Protocol::Tcp if route.is_match => {
            tables.meet(Table::Tcp, (&key, hash), original, now, || None)
        }
        // Of a direct flow nothing is kept but another client port.
        Protocol::Tcp if tables.may_be_remapped(&key) => Met::Unclear,
        Protocol::Tcp => Met::Known,
    };
    let is_new = match met {
        Met::New => true,
        Met::Known => false,
        // Data may confirm it.
        Met::Begun if !flags.is_push() => false,
        Met::Begun | Met::Unclear => return None,
    };
    if !route.is_match {
        return Some(Reason::Direct);
    }
    if dialled_port != target
        && let Err(reason) = frame.set_port(packet.transport + 2, dialled_port, target, check)
    {
        return Some(reason);
    }
    tables.hit(route.rule, frame.segments(), bytes, is_new, now_ns);
    Some(Reason::Redirected)
}

/// The same for a packet that goes out; of TCP, unless its flow has to be kept at
/// its socket.
#[inline(always)]
pub fn quick_egress<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    link: Link,
) -> Option<Reason> {
    plainly!(quick_restore, frame, tables, link)
}

#[inline(always)]
fn quick_restore<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    packet: &Packet,
    protocol: Protocol,
) -> Option<Reason> {
    let ports = packet.ports(frame).ok()?;
    let (local_port, client_port) = ports;
    if !tables.port(protocol, local_port).is_target() {
        return Some(Reason::NoRule);
    }
    let key = packet.key(frame, End::Src, protocol).ok()?;
    let key = FlowKey {
        client_port,
        local_port,
        ..key
    };
    let flow = match protocol {
        Protocol::Tcp => match tables.cached(&key) {
            Cached::Flow(flow) => Some(flow),
            Cached::Nothing => return None,
            Cached::NoSocket => flow::reply(tables, protocol, &key),
        },
        Protocol::Udp => flow::reply(tables, protocol, &key),
    };
    let Some(flow) = flow else {
        return Some(Reason::Direct);
    };
    let check = packet.plain_check(frame, frame.len(), protocol)?;
    match set_original_ports(frame, packet.transport, check, ports, &flow) {
        Ok(reason) | Err(reason) => Some(reason),
    }
}
