//! The datapath: DNAT of the destination port on the way in, and the way back.
//!
//! Decide first, write last: a packet that is refused leaves as it came.

use crate::abi::{Addr, Flow, FlowKey, Old, Port, PortEntry, Protocol};
use crate::flow::{self, Admitted, Host, IsSyn, Original, Socket};
use crate::icmp;
use crate::verdict::Reason;
use crate::wire::{Check, End, Frame, Link, Packet, Payload};

/// What the datapath asks of its surroundings beyond flow state.
pub trait Tables: Host {
    /// Whether a packet to this unicast address is delivered to this host.
    fn is_local(&self, addr: &Addr) -> bool;

    /// Whether the packet is of this host itself.
    fn is_from_here(&self) -> bool;

    /// The rule for a packet to a port whose rules have conditions.
    fn choose(&self, entry: PortEntry, key: &FlowKey, port: Port) -> Option<Choice>;

    /// Where earlier rules sent packets to a port.
    fn old(&self, entry: PortEntry, protocol: Protocol, port: Port) -> Old;

    /// Counts a packet that `rule` redirected.
    fn hit(&self, rule: u16, segments: u32, bytes: usize, is_new: bool);
}

/// What a rule does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where it goes, in host order.
    pub target: u16,
    /// The rule.
    pub rule: u16,
}

/// The rule for a packet to a port, if there is one for it.
#[inline(always)]
pub(crate) fn choose<T: Tables>(
    tables: &T,
    entry: PortEntry,
    key: &FlowKey,
    port: Port,
) -> Option<Choice> {
    if !entry.is_match() {
        None
    } else if entry.set == 0 {
        Some(Choice {
            target: entry.target,
            rule: entry.rule,
        })
    } else {
        tables.choose(entry, key, port)
    }
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
    let mut packet = match Packet::parse(frame, link) {
        Ok(packet) => packet,
        Err(reason) => return reason,
    };
    match Hit::look_up(frame, tables, &mut packet, Direction::In) {
        Ok(None) => icmp::ingress(frame, tables, &packet),
        Ok(Some(hit)) => redirect(frame, tables, &packet, &hit),
        Err(reason) => reason,
    }
}

/// Handles a packet that goes out.
#[inline(always)]
pub fn egress<F: Frame, T: Tables + SocketCache>(frame: &mut F, tables: &T, link: Link) -> Reason {
    let mut packet = match Packet::parse(frame, link) {
        Ok(packet) => packet,
        Err(reason) => return reason,
    };
    match Hit::look_up(frame, tables, &mut packet, Direction::Out) {
        Ok(None) => icmp::egress(frame, tables, &packet),
        Ok(Some(hit)) => restore(frame, tables, &packet, &hit),
        Err(reason) => reason,
    }
}

/// Which of a packet's ports is the one of this host.
#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

/// A TCP or UDP packet whose port of this host some rule is about.
///
/// Apart from the packet, which ICMP needs as well: a BPF program has 512 bytes
/// of stack for all its calls, and Linux 6.1 counts each in multiples of 32
/// (`check_max_stack_depth_subprog` in kernel/bpf/verifier.c).
struct Hit {
    protocol: Protocol,
    src_port: Port,
    dst_port: Port,
    entry: PortEntry,
}

impl Hit {
    /// All that most traffic of the host costs; `None` for ICMP.
    #[inline(always)]
    fn look_up<F: Frame, T: Tables>(
        frame: &mut F,
        tables: &T,
        packet: &mut Packet,
        direction: Direction,
    ) -> Result<Option<Self>, Reason> {
        let Payload::Ports(protocol) = packet.payload else {
            return Ok(None);
        };
        let (src_port, dst_port) = packet.ports(frame)?;
        let (port, is_wanted) = match direction {
            Direction::In => (
                dst_port,
                PortEntry::MATCH | PortEntry::TARGET | PortEntry::OLD,
            ),
            Direction::Out => (src_port, PortEntry::TARGET),
        };
        let entry = tables.port(protocol, port);
        if entry.flags & is_wanted == 0 {
            return Err(Reason::NoRule);
        }
        *packet = packet.opaque(frame);
        Ok(Some(Self {
            protocol,
            src_port,
            dst_port,
            entry,
        }))
    }
}

// What follows runs for packets of rules alone. It is not inlined, to have a
// BPF stack frame of its own. It returns what fits in a register: behind a
// result that does not, the verifier may find a stack pointer in that register.

#[inline(never)]
fn redirect<F: Frame, T: Tables>(frame: &mut F, tables: &T, packet: &Packet, hit: &Hit) -> Reason {
    match try_redirect(frame, tables, packet, hit) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(never)]
fn restore<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    packet: &Packet,
    hit: &Hit,
) -> Reason {
    match try_restore(frame, tables, packet, hit) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn try_redirect<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    packet: &Packet,
    hit: &Hit,
) -> Result<Reason, Reason> {
    let Hit {
        protocol,
        src_port,
        dst_port,
        entry,
    } = *hit;
    let mut key = packet.key(frame, End::Dst, protocol)?;
    if !tables.is_local(&key.local) {
        return Err(if entry.is_match() || entry.is_old() {
            Reason::NotLocal
        } else {
            Reason::NoRule
        });
    }
    let check = match packet.check(frame, protocol) {
        // Traffic of the target itself is not ours to drop.
        Err(Reason::FragmentTooShort) if !entry.is_match() || entry.set != 0 => {
            return Err(Reason::Direct);
        }
        check => check?,
    };
    key.client_port = src_port;
    let syn = match protocol {
        Protocol::Udp => IsSyn(true),
        Protocol::Tcp => is_syn(frame, packet)?,
    };
    let mut original = Original {
        dialled_port: dst_port,
        client_port: src_port,
        rule: entry.rule,
    };
    let mut target = 0;
    let mut is_old = false;
    if entry.is_old() {
        let old = tables.old(entry, protocol, dst_port);
        for i in 0..Old::COUNT {
            if old.targets[i] == 0 {
                break;
            }
            key.local_port = Port::new(old.targets[i]);
            let rule = flow::has_begun(tables, protocol, &mut key, original, syn);
            if rule != flow::NOT_BEGUN {
                target = old.targets[i];
                #[expect(clippy::cast_possible_truncation, reason = "not NOT_BEGUN")]
                let rule = rule as u16;
                original.rule = rule;
                is_old = true;
                break;
            }
        }
    }
    if !is_old && let Some(choice) = choose(tables, entry, &key, dst_port) {
        target = choice.target;
        original.rule = choice.rule;
    }
    let is_match = target != 0;
    if !is_match {
        if !entry.is_target() {
            return Err(if entry.is_old() {
                Reason::Draining
            } else {
                Reason::NoRule
            });
        }
        target = dst_port.get();
    }
    key.local_port = Port::new(target);
    if !is_match && entry.is_hidden() && !tables.is_from_here() {
        let is_connected =
            protocol == Protocol::Tcp && (!syn.0 || tables.socket(&key) == Socket::Connection);
        if !is_connected {
            return Err(Reason::Hidden);
        }
    }
    if is_match && !is_old && entry.is_if_listening() && !tables.is_served(&key) {
        let has_begun = protocol == Protocol::Tcp
            && flow::has_begun(tables, protocol, &mut key, original, syn) != flow::NOT_BEGUN;
        if !has_begun {
            return Err(Reason::NotListening);
        }
    }
    let target = key.local_port;
    let Admitted {
        client_port,
        is_new,
    } = match protocol {
        Protocol::Udp => flow::admit_udp(tables, &mut key, original)?,
        Protocol::Tcp => {
            if is_match {
                flow::redirect_tcp(tables, &mut key, original, syn)?
            } else {
                flow::direct_tcp(tables, &mut key, original, syn)?
            }
        }
    };
    set_ports(
        frame,
        packet.transport,
        check,
        (src_port, client_port),
        (dst_port, target),
    )?;
    if is_match {
        tables.hit(original.rule, frame.segments(), frame.len(), is_new);
        Ok(Reason::Redirected)
    } else if client_port == src_port {
        Ok(Reason::Direct)
    } else {
        Ok(Reason::DirectRemapped)
    }
}

#[inline(always)]
fn try_restore<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    packet: &Packet,
    hit: &Hit,
) -> Result<Reason, Reason> {
    let Hit {
        protocol,
        src_port,
        dst_port,
        ..
    } = *hit;
    let mut key = packet.key(frame, End::Src, protocol)?;
    key.local_port = src_port;
    key.client_port = dst_port;
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
