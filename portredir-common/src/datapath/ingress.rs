//! Packets that come in.

use crate::datapath::icmp;
use crate::datapath::rewrite::set_ports;
use crate::datapath::rule_match::{Route, choose};
use crate::flow::Admitted;
use crate::kernel::{Tables, is_here};
use crate::net::{Flags, Port, Protocol};
use crate::packed;
use crate::verdict::Reason;
use crate::wire::frame::{Frame, Link};
use crate::wire::headers::{End, Packet, tcp_flags};
use crate::wire::subprog as wire;

/// Handles a packet that came in.
#[inline(always)]
pub fn ingress<F: Frame, T: Tables>(frame: &mut F, tables: &T, link: Link) -> Reason {
    let word = wire::find_apart(frame, link);
    if Packet::is_icmp(word) {
        icmp::ingress(frame, tables, word)
    } else {
        redirect(frame, tables, word)
    }
}

// What follows runs for few packets. It is not inlined, to have BPF stack frames of
// its own; the packet comes as one number.

#[inline(never)]
fn redirect<F: Frame, T: Tables>(frame: &mut F, tables: &T, packet: u64) -> Reason {
    match try_redirect(frame, tables, packet) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn try_redirect<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    word: u64,
) -> Result<Reason, Reason> {
    let packet = Packet::from_word(word)?;
    let protocol = packet.protocol()?;
    let (client_port, dialled_port) = packet.ports(frame)?;
    let entry = tables.port(protocol, dialled_port);
    if !entry.is_dialled_or_target() {
        return Err(Reason::NoRule);
    }
    let mut key = wire::key_apart(frame, word, End::Dst);
    if !is_here(tables, &key) {
        return Err(if entry.is_match() || entry.is_old() {
            Reason::NotLocal
        } else {
            Reason::NoRule
        });
    }
    let check = match wire::check_apart(frame, word) {
        // Traffic that no rule is for is not ours to drop.
        Err(Reason::FragmentTooShort) if choose(tables, entry, &key, dialled_port).is_none() => {
            return Err(Reason::Direct);
        }
        check => check?,
    };
    let flags = match protocol {
        Protocol::Udp => Flags::SYN,
        Protocol::Tcp => tcp_flags(frame, &packet)?,
    };
    let route = if entry.is_plain() {
        Route::of(entry, dialled_port)
    } else {
        Route::from_word(tables.find_route(&mut key, entry.to_word(), flags))?
    };
    let target = Port::new(route.target);
    key.local_port = target;
    let route_word = route.to_word();
    let admitted = tables.admit(&mut key, dialled_port, route_word, flags);
    let admitted = Admitted::from_word(packed::from_word(admitted)?);
    set_ports(
        frame,
        packet.transport,
        check,
        (client_port, admitted.client_port()),
        (dialled_port, target),
    )?;
    if route.is_match {
        let (segments, bytes) = (frame.segments(), frame.len());
        let now_ns = tables.now_ns();
        tables.hit(route.rule, segments, bytes, admitted.is_new(), now_ns);
        Ok(Reason::Redirected)
    } else if admitted.client_port() == client_port {
        Ok(Reason::Direct)
    } else {
        Ok(Reason::DirectRemapped)
    }
}
