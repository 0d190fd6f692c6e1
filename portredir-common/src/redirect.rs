//! The datapath: DNAT of the destination port on the way in, and the way back.
//!
//! Decide first, write last: a packet that is refused leaves as it came.

use crate::abi::{Addr, Epoch, Flow, FlowKey, Old, Port, PortEntry, Protocol};
use crate::flow::{self, Admitted, Flags, Host, Met, Original, Socket, Table};
use crate::icmp;
use crate::verdict::Reason;
use crate::wire::{self, Check, End, Frame, Link, Packet, Payload, Version};

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

    /// Counts a packet that `rule` redirected now.
    fn hit(&self, rule: u16, segments: u32, bytes: usize, is_new: bool, now_ns: u64);

    /// [`find_route`], as the verifier walks it only once.
    #[inline(always)]
    fn find_route(&self, key: &mut FlowKey, entry: u64, flags: Flags) -> u64
    where
        Self: Sized,
    {
        find_route(self, key, entry, flags)
    }

    /// The same of [`flow::has_begun`].
    #[inline(always)]
    fn has_begun(&self, key: &mut FlowKey, original: Original, flags: Flags) -> u32
    where
        Self: Sized,
    {
        flow::has_begun(self, key, original, flags)
    }

    /// The same of [`admit`].
    #[inline(always)]
    fn admit(&self, key: &mut FlowKey, dialled_port: Port, route: u64, flags: Flags) -> u64
    where
        Self: Sized,
    {
        admit(self, key, dialled_port, route, flags)
    }
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
    let word = wire::find(frame, link);
    match look_up(frame, tables, word, Direction::In) {
        Ok(Some(entry)) => redirect(frame, tables, word, entry.to_word()),
        Ok(None) => icmp::ingress(frame, tables, word),
        Err(reason) => reason,
    }
}

/// Handles a packet that goes out.
#[inline(always)]
pub fn egress<F: Frame, T: Tables + SocketCache>(frame: &mut F, tables: &T, link: Link) -> Reason {
    let word = wire::find(frame, link);
    match look_up(frame, tables, word, Direction::Out) {
        Ok(Some(_)) => restore(frame, tables, word),
        Ok(None) => icmp::egress(frame, tables, word),
        Err(reason) => reason,
    }
}

/// Which of a packet's ports is the one of this host.
#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

/// All that most traffic of the host costs: the entry of its port, if some rule is
/// about that; `None` for ICMP.
#[inline(always)]
fn look_up<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    word: u64,
    direction: Direction,
) -> Result<Option<PortEntry>, Reason> {
    let packet = Packet::from_word(word)?;
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
    Ok(Some(entry))
}

// What follows runs for packets of rules alone. It is not inlined, to have BPF
// stack frames of its own; the packet and the entry come as one number each.

#[inline(never)]
fn redirect<F: Frame, T: Tables>(frame: &mut F, tables: &T, packet: u64, entry: u64) -> Reason {
    match try_redirect(frame, tables, packet, PortEntry::from_word(entry)) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn try_redirect<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    packet: u64,
    entry: PortEntry,
) -> Result<Reason, Reason> {
    let packet = Packet::from_word(packet)?;
    let protocol = packet.protocol()?;
    let (client_port, dialled_port) = packet.ports(frame)?;
    let mut key = packet.key(frame, End::Dst, protocol)?;
    key.client_port = client_port;
    if !is_here(tables, &key) {
        return Err(if entry.is_match() || entry.is_old() {
            Reason::NotLocal
        } else {
            Reason::NoRule
        });
    }
    let check = match packet.check(frame, protocol) {
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
        key.local_port = dialled_port;
        Route::from_word(tables.find_route(&mut key, entry.to_word(), flags))?
    };
    let target = Port::new(route.target);
    key.local_port = target;
    let original = Original {
        dialled_port,
        client_port,
        rule: route.rule,
    };
    let now_ns = tables.now_ns();
    let now = Epoch::at(now_ns);
    let met = match protocol {
        Protocol::Udp => tables.meet(Table::Udp, &key, original, now, true),
        Protocol::Tcp if flags.is_syn() => Met::Unclear,
        Protocol::Tcp if route.is_match => tables.meet(Table::Tcp, &key, original, now, false),
        // Of a direct flow nothing is kept but another client port.
        Protocol::Tcp if tables.may_be_remapped(&key) => Met::Unclear,
        Protocol::Tcp => Met::Known,
    };
    let admitted = match met {
        Met::Known | Met::New => Admitted::begun(client_port, met == Met::New),
        Met::Unclear => Admitted::from_word(checked(tables.admit(
            &mut key,
            dialled_port,
            route.to_word(),
            flags,
        ))?),
    };
    set_ports(
        frame,
        packet.transport,
        check,
        (client_port, admitted.client_port()),
        (dialled_port, target),
    )?;
    if route.is_match {
        let (segments, bytes) = (frame.segments(), frame.len());
        tables.hit(route.rule, segments, bytes, admitted.is_new(), now_ns);
        Ok(Reason::Redirected)
    } else if admitted.client_port() == client_port {
        Ok(Reason::Direct)
    } else {
        Ok(Reason::DirectRemapped)
    }
}

/// Whether a packet to the local end of `key` is delivered to this host.
///
/// IPv4 addresses are written as IPv6 ones here; in an IPv6 header they are
/// nobody's (RFC 4291, 2.5.5.2).
#[inline(always)]
pub(crate) fn is_here<T: Tables>(tables: &T, key: &FlowKey) -> bool {
    let is_v4 = key.version == Version::V4 as u8;
    (is_v4 || !key.local.is_v4()) && tables.is_local(&key.local)
}

/// Where a packet goes.
#[derive(Clone, Copy)]
struct Route {
    /// Host order.
    target: u16,
    /// The rule, if there is one for it.
    rule: u16,
    /// Whether a rule redirects it, else it goes to a target by itself.
    is_match: bool,
}

impl Route {
    const MATCH: u64 = 1 << 32;

    /// By a port whose rule is for everybody.
    #[inline(always)]
    const fn of(entry: PortEntry, dialled_port: Port) -> Self {
        let is_match = entry.is_match();
        Self {
            target: if is_match {
                entry.target
            } else {
                dialled_port.get()
            },
            rule: entry.rule,
            is_match,
        }
    }

    #[inline(always)]
    fn to_word(self) -> u64 {
        let is_match = if self.is_match { Self::MATCH } else { 0 };
        u64::from(self.target) | u64::from(self.rule) << 16 | is_match
    }

    #[expect(clippy::cast_possible_truncation, reason = "16 bits of it")]
    #[inline(always)]
    fn from_word(word: u64) -> Result<Self, Reason> {
        let word = checked(word)?;
        Ok(Self {
            target: word as u16,
            rule: (word >> 16) as u16,
            is_match: word & Self::MATCH != 0,
        })
    }
}

/// Set in a number that stands for a [`Reason`].
const FAILED: u64 = 1 << 63;

#[inline(always)]
const fn failed(reason: Reason) -> u64 {
    FAILED | reason as u64
}

#[expect(clippy::cast_possible_truncation, reason = "reasons are few")]
#[inline(always)]
const fn checked(word: u64) -> Result<u64, Reason> {
    if word & FAILED == 0 {
        Ok(word)
    } else {
        Err(Reason::from_number(word as u32))
    }
}

/// Where a packet goes whose rules have conditions or changed, or the reason why
/// it does not, as one number; `key` is the flow as the client knows it.
#[inline(always)]
pub fn find_route<T: Tables>(tables: &T, key: &mut FlowKey, entry: u64, flags: Flags) -> u64 {
    match try_find_route(tables, key, PortEntry::from_word(entry), flags) {
        Ok(route) => route.to_word(),
        Err(reason) => failed(reason),
    }
}

#[inline(always)]
fn try_find_route<T: Tables>(
    tables: &T,
    key: &mut FlowKey,
    entry: PortEntry,
    flags: Flags,
) -> Result<Route, Reason> {
    let protocol = key.protocol()?;
    let dialled_port = key.local_port;
    let original = Original {
        dialled_port,
        client_port: key.client_port,
        rule: entry.rule,
    };
    if entry.is_old() {
        let old = tables.old(entry, protocol, dialled_port);
        for i in 0..Old::COUNT {
            let target = old.targets[i];
            if target == 0 {
                break;
            }
            key.local_port = Port::new(target);
            let rule = tables.has_begun(key, original, flags);
            if rule != flow::NOT_BEGUN {
                #[expect(clippy::cast_possible_truncation, reason = "not NOT_BEGUN")]
                let rule = rule as u16;
                return Ok(Route {
                    target,
                    rule,
                    is_match: true,
                });
            }
        }
    }
    let Some(Choice { target, rule }) = choose(tables, entry, key, dialled_port) else {
        if !entry.is_target() {
            return Err(if entry.is_old() {
                Reason::Draining
            } else {
                Reason::NoRule
            });
        }
        key.local_port = dialled_port;
        if entry.is_hidden() && !tables.is_from_here() {
            let is_connected = protocol == Protocol::Tcp
                && (!flags.is_syn() || tables.socket(key) == Socket::Connection);
            if !is_connected {
                return Err(Reason::Hidden);
            }
        }
        return Ok(Route {
            target: dialled_port.get(),
            rule: entry.rule,
            is_match: false,
        });
    };
    key.local_port = Port::new(target);
    if entry.is_if_listening() && !tables.is_served(key) {
        let has_begun =
            protocol == Protocol::Tcp && tables.has_begun(key, original, flags) != flow::NOT_BEGUN;
        if !has_begun {
            return Err(Reason::NotListening);
        }
    }
    Ok(Route {
        target,
        rule,
        is_match: true,
    })
}

/// [`Admitted`] or the reason why not, as one number, for what a look at the flow
/// tables does not settle.
#[inline(always)]
pub fn admit<T: Tables>(
    tables: &T,
    key: &mut FlowKey,
    dialled_port: Port,
    route: u64,
    flags: Flags,
) -> u64 {
    let admitted = Route::from_word(route).and_then(|route| {
        let original = Original {
            dialled_port,
            client_port: key.client_port,
            rule: route.rule,
        };
        match key.protocol()? {
            Protocol::Udp => flow::admit_udp(tables, key, original),
            Protocol::Tcp if route.is_match => flow::redirect_tcp(tables, key, original, flags),
            Protocol::Tcp => flow::direct_tcp(tables, key, original, flags),
        }
    });
    match admitted {
        Ok(admitted) => admitted.to_word(),
        Err(reason) => failed(reason),
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
    packet: u64,
) -> Result<Reason, Reason> {
    let packet = Packet::from_word(packet)?;
    let protocol = packet.protocol()?;
    let (src_port, dst_port) = packet.ports(frame)?;
    let mut key = packet.key(frame, End::Src, protocol)?;
    key.local_port = src_port;
    key.client_port = dst_port;
    let flow = match protocol {
        Protocol::Udp => flow::reply(tables, protocol, &key),
        Protocol::Tcp => match tables.cached(&key) {
            Some(flow) => Some(flow),
            None => {
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

/// The flags of a TCP packet.
#[inline(always)]
fn tcp_flags(frame: &impl Frame, packet: &Packet) -> Result<Flags, Reason> {
    let field = frame.half(packet.transport + 12).ok_or(Reason::Malformed)?;
    Ok(Flags(u16::from_be(field) & 0xff))
}
