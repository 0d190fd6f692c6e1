//! The datapath: DNAT of the destination port on the way in, and the way back.
//!
//! Decide first, write last: a packet that is refused leaves as it came.

use crate::abi::{Addr, Epoch, Flow, FlowKey, Old, Port, PortEntry, Protocol};
use crate::flow::{self, Admitted, Flags, Host, Met, Original, Socket, Table};
use crate::icmp;
use crate::verdict::{self, Reason};
use crate::wire::{self, Check, End, Frame, Link, Packet, Version};

/// What the datapath asks of its surroundings beyond flow state.
pub trait Tables: Host {
    /// Whether a packet to this unicast address is delivered to this host.
    fn is_local(&self, addr: &Addr) -> bool;

    /// Whether it is for sure, and for packets from anywhere; quick.
    fn is_own(&self, addr: &Addr) -> bool;

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

/// What is kept at a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// Its flow.
    Flow(Flow),
    /// Nothing yet.
    Nothing,
    /// There is no socket to keep it at: none that sends, or one that is not yet
    /// or no longer a connection.
    NoSocket,
}

/// The flow that was found for a TCP socket, kept at the socket itself, so
/// that a full flow table cannot cut a live connection.
pub trait SocketCache {
    /// What is kept at the sending socket, if it is the one of `key`.
    fn cached(&self, key: &FlowKey) -> Cached;

    /// Keeps `flow` at the sending socket, if it is the one of `key`.
    fn cache(&self, key: &FlowKey, flow: &Flow);
}

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
/// or begins a UDP flow. All others are left as they are, for [`ingress`].
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
    let admitted = Admitted::from_word(verdict::from_word(admitted)?);
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

/// Whether a packet to the local end of `key` is delivered to this host.
#[inline(always)]
pub(crate) fn is_here<T: Tables>(tables: &T, key: &FlowKey) -> bool {
    may_be_here(key) && tables.is_local(&key.local)
}

/// IPv4 addresses are written as IPv6 ones here; in an IPv6 header they are
/// nobody's (RFC 4291, 2.5.5.2).
#[inline(always)]
const fn may_be_here(key: &FlowKey) -> bool {
    key.version == Version::V4 as u8 || !key.local.is_v4()
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
        let word = verdict::from_word(word)?;
        Ok(Self {
            target: word as u16,
            rule: (word >> 16) as u16,
            is_match: word & Self::MATCH != 0,
        })
    }
}

/// Where a packet goes whose rules have conditions or changed, or the reason why
/// it does not, as one number; `key` is the flow as the client knows it.
#[inline(always)]
pub fn find_route<T: Tables>(tables: &T, key: &mut FlowKey, entry: u64, flags: Flags) -> u64 {
    let route = try_find_route(tables, key, PortEntry::from_word(entry), flags);
    verdict::to_word(route.map(Route::to_word))
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
    verdict::to_word(admitted.map(Admitted::to_word))
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
fn set_original_ports(
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
