//! Packets that go out.

use crate::datapath::conntrack as flow;
use crate::datapath::icmp;
use crate::datapath::rewrite::set_ports;
use crate::flow::{Epoch, Flow};
use crate::kernel::{Cached, SocketCache, Tables};
use crate::net::{Port, Protocol};
use crate::verdict::Reason;
use crate::wire::frame::{Check, Frame, Link};
use crate::wire::headers::{End, Packet};
use crate::wire::subprog as wire;

/// Handles a packet that goes out.
#[inline(always)]
pub fn egress<F: Frame, T: Tables + SocketCache>(frame: &mut F, tables: &T, link: Link) -> Reason {
    let word = wire::find_apart(frame, link);
    if Packet::is_icmp(word) {
        icmp::egress(frame, tables, word)
    } else {
        restore(frame, tables, word)
    }
}

#[inline(never)]
fn restore<F: Frame, T: Tables + SocketCache>(frame: &mut F, tables: &T, packet: u64) -> Reason {
    match try_restore(frame, tables, packet) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn try_restore<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    word: u64,
) -> Result<Reason, Reason> {
    let packet = Packet::from_word(word)?;
    let protocol = packet.protocol()?;
    let ports = packet.ports(frame)?;
    if !tables.port(protocol, ports.0).is_target() {
        return Err(Reason::NoRule);
    }
    let key = wire::key_apart(frame, word, End::Src);
    let flow = match protocol {
        Protocol::Udp => flow::reply(tables, protocol, &key),
        Protocol::Tcp => match tables.cached(&key) {
            Cached::Flow(flow) => Some(flow),
            Cached::NoSocket => flow::reply(tables, protocol, &key),
            Cached::Nothing => {
                let flow = flow::reply(tables, protocol, &key);
                // Of connections that are older than we are: direct ones too, so
                // that a forged packet cannot rename their replies later.
                tables.cache(&key, &flow.unwrap_or(flow::direct(&key, Epoch(0))));
                flow
            }
        },
    };
    let Some(flow) = flow else {
        return Err(Reason::Direct);
    };
    let check = wire::check_apart(frame, word)?;
    set_original_ports(frame, packet.transport, check, ports, &flow)
}

/// Gives a reply the ports that its client knows.
#[inline(always)]
pub(super) fn set_original_ports(
    frame: &mut impl Frame,
    offset: usize,
    check: Check,
    (src_port, dst_port): (Port, Port),
    flow: &Flow,
) -> Result<Reason, Reason> {
    if flow.dialled_port == src_port && flow.client_port == dst_port {
        return Err(Reason::Direct);
    }
    let src = (src_port, flow.dialled_port);
    let dst = (dst_port, flow.client_port);
    set_ports(frame, offset, check, src, dst)?;
    Ok(Reason::Restored)
}
