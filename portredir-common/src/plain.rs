//! The short way of nearly every packet: IP without options, extension headers
//! or fragments, of a flow that is known, or a first UDP packet, under rules
//! without conditions.
//!
//! It does what [`crate::redirect`] does with such a packet, at fixed offsets
//! and with one look at the flow tables. Whatever is not so plain it leaves to
//! that module, untouched.

use crate::abi::{Addr, Epoch, FlowKey, Port, PortEntry, Protocol};
use crate::csum;
use crate::flow::{Met, Original, Table};
use crate::redirect::{SocketCache, Tables, is_syn, restore, set_ports};
use crate::verdict::Reason;
use crate::wire::{Check, Frame, Link, Packet, Payload, Version};

/// What the headers of a plain packet say.
struct Plain {
    packet: Packet,
    protocol: Protocol,
    src: Addr,
    dst: Addr,
    /// The ports, and what comes behind them.
    transport: [u8; 8],
    /// Bytes from the transport header to the end of the IP packet.
    len: usize,
}

/// Which of the ports of a plain packet is the one of this host.
#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

/// Handles a packet that came in, if it is plain.
#[inline(always)]
pub(crate) fn ingress<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    link: Link,
) -> Option<Reason> {
    const ANY: u16 = PortEntry::MATCH | PortEntry::TARGET | PortEntry::OLD;
    let (version, entry) = peek(frame, tables, link, Direction::In)?;
    if entry.flags & ANY == 0 {
        return Some(Reason::NoRule);
    }
    match version {
        Version::V4 => redirect_v4(frame, tables, link, entry),
        Version::V6 => redirect_v6(frame, tables, link, entry),
    }
}

/// Handles a packet that goes out, if it is plain.
#[inline(always)]
pub(crate) fn egress<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    link: Link,
) -> Option<Reason> {
    let (version, entry) = peek(frame, tables, link, Direction::Out)?;
    if !entry.is_target() {
        return Some(Reason::NoRule);
    }
    match version {
        Version::V4 => reply_v4(frame, tables, link),
        Version::V6 => reply_v6(frame, tables, link),
    }
}

/// All that most traffic of the host costs: what rules say about its port.
#[inline(always)]
fn peek<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    link: Link,
    direction: Direction,
) -> Option<(Version, PortEntry)> {
    let network = network(link);
    let version = match link {
        Link::Ethernet => match frame.at(network - 2)? {
            [0x08, 0x00, version, _] if version >> 4 == 4 => version,
            [0x86, 0xdd, version, _] if version >> 4 == 6 => version,
            _ => return None,
        },
        Link::Ip => {
            let [version, _] = frame.at(network)?;
            version
        }
    };
    let (version, protocol, [a, b, c, d]) = if version == 0x45 {
        let bytes: [u8; V4 + 8] = frame.at(network)?;
        if is_fragment(&bytes) {
            return None;
        }
        let ports = [20, 21, 22, 23].map(|i| bytes[i]);
        (Version::V4, protocol(bytes[9])?, ports)
    } else if version >> 4 == 6 {
        let bytes: [u8; V6 + 8] = frame.at(network)?;
        let ports = [40, 41, 42, 43].map(|i| bytes[i]);
        (Version::V6, protocol(bytes[6])?, ports)
    } else {
        return None;
    };
    let port = match direction {
        Direction::In => Port([c, d]),
        Direction::Out => Port([a, b]),
    };
    Some((version, tables.port(protocol, port)))
}

// What follows runs for packets of rules alone. In functions of their own all
// offsets are numbers, and each has a BPF stack frame of its own.

#[inline(never)]
fn redirect_v4<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    link: Link,
    entry: PortEntry,
) -> Option<Reason> {
    let plain = v4(frame, network(link))?;
    redirect(frame, tables, &plain, entry)
}

#[inline(never)]
fn redirect_v6<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    link: Link,
    entry: PortEntry,
) -> Option<Reason> {
    let plain = v6(frame, network(link))?;
    redirect(frame, tables, &plain, entry)
}

#[inline(never)]
fn reply_v4<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    link: Link,
) -> Option<Reason> {
    let plain = v4(frame, network(link))?;
    reply(frame, tables, &plain)
}

#[inline(never)]
fn reply_v6<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    link: Link,
) -> Option<Reason> {
    let plain = v6(frame, network(link))?;
    reply(frame, tables, &plain)
}

#[inline(always)]
const fn network(link: Link) -> usize {
    match link {
        Link::Ethernet => 14,
        Link::Ip => 0,
    }
}

/// The sizes of plain IP headers.
const V4: usize = 20;
const V6: usize = 40;

/// More fragments follow, or it is not the first one.
#[inline(always)]
const fn is_fragment(header: &[u8; V4 + 8]) -> bool {
    u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0
}

/// An IPv4 packet whose header has 20 bytes.
#[inline(always)]
fn v4(frame: &mut impl Frame, network: usize) -> Option<Plain> {
    let bytes: [u8; V4 + 8] = frame.at(network)?;
    let protocol = protocol(bytes[9])?;
    let [a, b, c, d, e, f, g, h] = [12, 13, 14, 15, 16, 17, 18, 19].map(|i| bytes[i]);
    let total = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    Some(Plain {
        packet: packet(Version::V4, network, network + V4, protocol),
        protocol,
        src: Addr::v4([a, b, c, d]),
        dst: Addr::v4([e, f, g, h]),
        transport: [20, 21, 22, 23, 24, 25, 26, 27].map(|i| bytes[i]),
        len: total.wrapping_sub(V4),
    })
}

/// An IPv6 packet without extension headers.
#[inline(always)]
fn v6(frame: &mut impl Frame, network: usize) -> Option<Plain> {
    let bytes: [u8; 8] = frame.at(network)?;
    let protocol = protocol(bytes[6])?;
    Some(Plain {
        packet: packet(Version::V6, network, network + V6, protocol),
        protocol,
        src: Addr(frame.at(network + 8)?),
        dst: Addr(frame.at(network + 24)?),
        transport: frame.at(network + V6)?,
        len: usize::from(u16::from_be_bytes([bytes[4], bytes[5]])),
    })
}

#[inline(always)]
const fn protocol(byte: u8) -> Option<Protocol> {
    match byte {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        _ => None,
    }
}

#[inline(always)]
const fn packet(version: Version, network: usize, transport: usize, protocol: Protocol) -> Packet {
    Packet {
        version,
        network,
        transport,
        payload: Payload::Ports(protocol),
        is_fragment: false,
    }
}

impl Plain {
    #[inline(always)]
    const fn src_port(&self) -> Port {
        Port([self.transport[0], self.transport[1]])
    }

    #[inline(always)]
    const fn dst_port(&self) -> Port {
        Port([self.transport[2], self.transport[3]])
    }

    /// The checksum that covers the ports, if all lengths are as they should
    /// be; see [`Packet::check`].
    #[inline(always)]
    fn check(&self, frame: &mut impl Frame) -> Option<Check> {
        let Self { packet, len, .. } = *self;
        let is_whole = len <= 0xffff && packet.transport + len <= frame.len();
        let (offset, kind, is_sound) = match self.protocol {
            Protocol::Tcp => {
                let header: [u8; 20] = frame.at(packet.transport)?;
                let header_len = usize::from(header[12] >> 4) * 4;
                (16, csum::Kind::Plain, header_len >= 20 && header_len <= len)
            }
            Protocol::Udp => {
                let datagram =
                    usize::from(u16::from_be_bytes([self.transport[4], self.transport[5]]));
                (6, csum::Kind::Udp, datagram >= 8 && datagram <= len)
            }
        };
        (is_whole && is_sound).then_some(Check {
            offset: packet.transport + offset,
            kind,
        })
    }
}

#[inline(always)]
fn redirect<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    plain: &Plain,
    entry: PortEntry,
) -> Option<Reason> {
    const RARE: u16 = PortEntry::OLD | PortEntry::IF_LISTENING;
    let (src_port, dst_port) = (plain.src_port(), plain.dst_port());
    let is_match = entry.is_match();
    if entry.flags & RARE != 0 || entry.set != 0 || (!is_match && entry.is_hidden()) {
        return None;
    }
    if !tables.is_local(&plain.dst) {
        return Some(if is_match {
            Reason::NotLocal
        } else {
            Reason::NoRule
        });
    }
    let check = plain.check(frame)?;
    let target = if is_match {
        Port::new(entry.target)
    } else {
        dst_port
    };
    let key = FlowKey {
        client: plain.src,
        local: plain.dst,
        client_port: src_port,
        local_port: target,
        protocol: plain.protocol as u8,
        version: plain.packet.version as u8,
        pad: [0; 2],
    };
    let original = Original {
        dialled_port: dst_port,
        client_port: src_port,
        rule: entry.rule,
    };
    let now_ns = tables.now_ns();
    let now = Epoch::at(now_ns);
    let met = match plain.protocol {
        Protocol::Udp => tables.meet(Table::Udp, &key, original, now, true),
        Protocol::Tcp if is_syn(frame, &plain.packet).ok()?.0 => Met::Unclear,
        Protocol::Tcp if is_match => tables.meet(Table::Tcp, &key, original, now, false),
        // Of a direct flow nothing is kept but another client port.
        Protocol::Tcp if tables.may_be_remapped(&key) => Met::Unclear,
        Protocol::Tcp => Met::Known,
    };
    if met == Met::Unclear {
        return None;
    }
    if !is_match {
        return Some(Reason::Direct);
    }
    let ports = (dst_port, target);
    let offset = plain.packet.transport;
    if let Err(reason) = set_ports(frame, offset, check, (src_port, src_port), ports) {
        return Some(reason);
    }
    let is_new = met == Met::New;
    tables.hit(entry.rule, frame.segments(), frame.len(), is_new, now_ns);
    Some(Reason::Redirected)
}

#[inline(always)]
fn reply<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    plain: &Plain,
) -> Option<Reason> {
    let (src_port, dst_port) = (plain.src_port(), plain.dst_port());
    let check = plain.check(frame)?;
    let key = FlowKey {
        client: plain.dst,
        local: plain.src,
        client_port: dst_port,
        local_port: src_port,
        protocol: plain.protocol as u8,
        version: plain.packet.version as u8,
        pad: [0; 2],
    };
    let restored = restore(
        frame,
        tables,
        plain.packet.transport,
        plain.protocol,
        &key,
        |_| Ok(check),
    );
    Some(match restored {
        Ok(reason) | Err(reason) => reason,
    })
}
