//! The datapath: DNAT of the destination port on the way in, and the way back.
//!
//! Decide first, write last: a packet that is refused leaves as it came.

use crate::abi::{Addr, Flow, FlowKey, Port, Protocol};
use crate::flow::{self, Admitted, Host, IsSyn, Original};
use crate::icmp;
use crate::verdict::Reason;
use crate::wire::{Check, Frame, Link, Packet, Payload};

/// What the datapath asks of its surroundings beyond flow state.
pub trait Tables: Host {
    /// Whether a packet to this unicast address is delivered to this host.
    fn is_local(&self, addr: &Addr) -> bool;

    /// Counts a packet that `rule` redirected.
    fn hit(&self, rule: u16, segments: u32, bytes: usize, is_new: bool);
}

/// The flow that was found for a TCP socket, kept at the socket itself, so
/// that a full flow table cannot cut a live connection.
pub trait SocketCache {
    /// What is kept at the sending socket, if it is the one of `key`.
    fn cached(&self, key: &FlowKey) -> Option<Flow>;

    /// Keeps `flow` at the sending socket, if it is the one of `key`.
    fn cache(&self, key: &FlowKey, flow: &Flow);
}

/// Handles a packet that came in.
#[inline(always)]
pub fn ingress<F: Frame, T: Tables>(frame: &mut F, tables: &T, link: Link) -> Reason {
    match try_ingress(frame, tables, link) {
        Ok(reason) | Err(reason) => reason,
    }
}

/// Handles a packet that goes out.
#[inline(always)]
pub fn egress<F: Frame, T: Tables + SocketCache>(frame: &mut F, tables: &T, link: Link) -> Reason {
    match try_egress(frame, tables, link) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn try_ingress<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    link: Link,
) -> Result<Reason, Reason> {
    let packet = Packet::parse(frame, link)?;
    let Payload::Ports(protocol) = packet.payload else {
        return icmp::ingress(frame, tables, &packet);
    };
    let (src_port, dst_port) = packet.ports(frame)?;
    let entry = tables.port(protocol, dst_port);
    if entry.flags == 0 {
        return Err(Reason::NoRule);
    }

    let packet = packet.opaque(frame);
    let (src, dst) = packet.addrs(frame)?;
    let mut key = key(dst, src, dst_port, src_port, protocol);
    if !tables.is_local(&key.local) {
        return Err(if entry.is_match() { Reason::NotLocal } else { Reason::NoRule });
    }
    let check = match packet.check(frame, protocol) {
        // Traffic of the target itself is not ours to drop.
        Err(Reason::FragmentTooShort) if !entry.is_match() => return Err(Reason::Direct),
        check => check?,
    };
    let original = Original { dialled_port: dst_port, client_port: src_port, rule: entry.rule };
    let target = if entry.is_match() { Port::new(entry.target) } else { dst_port };
    key.local_port = target;
    let Admitted { client_port, is_new } = match protocol {
        Protocol::Udp => flow::admit_udp(tables, &mut key, original)?,
        Protocol::Tcp => {
            let syn = is_syn(frame, &packet)?;
            if entry.is_match() {
                flow::redirect_tcp(tables, &mut key, original, syn)?
            } else {
                flow::direct_tcp(tables, &mut key, original, syn)?
            }
        }
    };
    set_ports(frame, packet.transport, check, (src_port, client_port), (dst_port, target))?;
    if entry.is_match() {
        tables.hit(entry.rule, frame.segments(), frame.len(), is_new);
        Ok(Reason::Redirected)
    } else if client_port == src_port {
        Ok(Reason::Direct)
    } else {
        Ok(Reason::DirectRemapped)
    }
}

#[inline(always)]
fn try_egress<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    link: Link,
) -> Result<Reason, Reason> {
    let packet = Packet::parse(frame, link)?;
    let Payload::Ports(protocol) = packet.payload else {
        return icmp::egress(frame, tables, &packet);
    };
    let (src_port, dst_port) = packet.ports(frame)?;
    if !tables.port(protocol, src_port).is_target() {
        return Err(Reason::NoRule);
    }

    let packet = packet.opaque(frame);
    let (src, dst) = packet.addrs(frame)?;
    let key = key(src, dst, src_port, dst_port, protocol);
    let flow = match protocol {
        Protocol::Udp => flow::reply(tables, protocol, &key),
        Protocol::Tcp => match tables.cached(&key) {
            Some(flow) => Some(flow),
            None => {
                let flow = flow::reply(tables, protocol, &key);
                // Direct connections are remembered as such, so that a forged
                // packet to a dialled port cannot rename their replies later.
                let direct = Flow {
                    dialled_port: src_port,
                    client_port: dst_port,
                    ..Flow::default()
                };
                tables.cache(&key, &flow.unwrap_or(direct));
                flow
            }
        },
    };
    let Some(flow) = flow else {
        return Err(Reason::Direct);
    };
    if flow.dialled_port == src_port && flow.client_port == dst_port {
        return Err(Reason::Direct);
    }
    let check = packet.check(frame, protocol)?;
    set_ports(
        frame,
        packet.transport,
        check,
        (src_port, flow.dialled_port),
        (dst_port, flow.client_port),
    )?;
    Ok(Reason::Restored)
}

/// Flow key of a packet between the `local` and the remote end.
#[inline(always)]
pub(crate) const fn key(
    local: Addr,
    client: Addr,
    local_port: Port,
    client_port: Port,
    protocol: Protocol,
) -> FlowKey {
    FlowKey { client, local, client_port, local_port, protocol: protocol as u8, pad: [0; 3] }
}

/// Writes the ports that change: `(from, to)` of the source, then of the
/// destination port, which stand at `offset`.
#[inline(always)]
pub(crate) fn set_ports(
    frame: &mut impl Frame,
    offset: usize,
    check: Check,
    src: (Port, Port),
    dst: (Port, Port),
) -> Result<(), Reason> {
    if src.0 != src.1 {
        frame.set_port(offset, src.0, src.1, check)?;
    }
    if dst.0 != dst.1 {
        frame.set_port(offset + 2, dst.0, dst.1, check)?;
    }
    Ok(())
}

/// Whether a TCP packet asks for a new connection.
#[inline(always)]
fn is_syn(frame: &mut impl Frame, packet: &Packet) -> Result<IsSyn, Reason> {
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;
    let [_, flags] = frame.at(packet.transport + 12).ok_or(Reason::Malformed)?;
    Ok(IsSyn(flags & (SYN | RST | ACK) == SYN))
}
