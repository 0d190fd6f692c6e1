//! The fate that a packet must have, decided the long way.
//!
//! The datapath is fast, works in place and knows flows by keys of 40 bytes;
//! here is what it promises, in slices, lists and words. It shares no code with
//! the datapath, so what both say of a packet is what the documentation says.
//! What is kept at sockets (`SocketCache`) it does not know.

mod flows;
mod forward;
mod forwarded;
mod headers;
mod rewrite;
mod rules;

use std::net::IpAddr;

use portredir_common::net::Protocol;
use portredir_common::wire::frame::Link;

pub use flows::{Ends, Socket};
pub use headers::{Carried, Headers, number, of_ethernet, of_ip};

use crate::packet::{Hook, Iface, Setup};
use flows::{Admission, Arrival, Flows, Ports};
use forward::Forwards;
use headers::Soundness;
use rewrite::with_ends;
use rules::Rules;

/// The fate of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The frame goes on with these bytes.
    Pass(Vec<u8>),
    Drop,
}

/// A frame on its way, and what the datapath made of it: where that is free to
/// choose a port, it is read from there.
#[derive(Clone, Copy, Debug)]
pub struct Passage<'a> {
    pub hook: Hook,
    pub iface: Iface,
    pub before: &'a [u8],
    pub after: &'a [u8],
    pub is_dropped: bool,
}

/// The headers of a frame.
pub fn of(frame: &[u8], link: Link) -> Option<Headers> {
    match link {
        Link::Ethernet => of_ethernet(frame),
        Link::Ip => of_ip(frame),
    }
}

/// A host with rules.
#[derive(Debug)]
pub struct Reference {
    rules: Rules,
    link: Link,
    pub flows: Flows,
    pub forwards: Forwards,
    /// Where servers listen.
    is_served: fn(Protocol, u16) -> bool,
    /// The last port that was chosen, until it is asked for.
    pub given: Option<u16>,
}

/// Why a frame goes on as it came, or does not go on.
enum Refusal {
    Untouched,
    Dropped,
    /// The datapath did something that cannot be right.
    Impossible(String),
}

use Refusal::{Dropped, Untouched};

impl Reference {
    pub fn new(setup: Setup, link: Link, is_served: fn(Protocol, u16) -> bool) -> Self {
        Self {
            rules: Rules::of(setup),
            link,
            flows: Flows::default(),
            forwards: Forwards::default(),
            is_served,
            given: None,
        }
    }

    /// Has time go by.
    pub fn wait(&mut self, ns: u64) {
        self.flows.now_ns += ns;
        self.forwards.wait(ns);
    }

    /// The fate that a frame must have.
    ///
    /// # Errors
    ///
    /// The datapath chose a port that it must not.
    pub fn fate(&mut self, passage: Passage<'_>) -> Result<Fate, String> {
        let frame = passage.before;
        let rewritten = match of(frame, self.link) {
            None => Err(Untouched),
            Some(packet) => self.forwarded(passage, &packet).unwrap_or_else(|| {
                match (packet.carried, passage.hook) {
                    (Carried::Ports(protocol), Hook::Ingress) => {
                        self.arrives(passage, &packet, protocol)
                    }
                    (Carried::Ports(protocol), Hook::Egress) => {
                        self.leaves(passage, &packet, protocol)
                    }
                    (Carried::Icmp, Hook::Ingress) => self.error_arrives(passage, &packet),
                    (Carried::Icmp, Hook::Egress) => self.error_leaves(frame, &packet),
                }
            }),
        };
        match rewritten {
            Ok(frame) => Ok(Fate::Pass(frame)),
            Err(Untouched) => Ok(Fate::Pass(frame.to_vec())),
            Err(Dropped) => Ok(Fate::Drop),
            Err(Refusal::Impossible(why)) => Err(why),
        }
    }

    /// A packet to this host.
    fn arrives(
        &mut self,
        passage: Passage<'_>,
        packet: &Headers,
        protocol: Protocol,
    ) -> Result<Vec<u8>, Refusal> {
        let frame = passage.before;
        let (client_port, dialled) = packet.ports(frame).ok_or(Untouched)?;
        if !is_ours(packet.dst, passage.iface) {
            return Err(Untouched);
        }
        let ends = Ends {
            protocol,
            client: packet.src,
            client_port,
            local: packet.dst,
            local_port: dialled,
        };
        match packet.soundness(frame, protocol) {
            Soundness::Sound => {}
            // It would reach the dialled port, and the rest of it the target.
            Soundness::TooShort if self.rules.target(ends, passage.iface).is_some() => {
                return Err(Dropped);
            }
            Soundness::TooShort | Soundness::Broken => return Err(Untouched),
        }
        let to = |local_port| Arrival {
            ports: Ports {
                client: client_port,
                dialled,
            },
            ends: Ends { local_port, ..ends },
            is_syn: protocol == Protocol::Tcp && is_syn(frame, packet),
            is_syn_ack: protocol == Protocol::Tcp && is_syn_ack(frame, packet),
        };
        let (target, admission) = self.admit(passage.iface, ends, to)?;
        let client_port = match admission {
            Admission::As(port) => port,
            Admission::NotOurs => return Err(Untouched),
            Admission::AsAnother => {
                let chosen = number(passage.after, packet.start).ok_or(Untouched)?;
                let given = self.flows.give(to(target), chosen);
                given.map_err(Refusal::Impossible)?;
                self.forwards.remember(ends, chosen);
                self.given = Some(chosen);
                chosen
            }
        };
        Ok(with_ports(frame, packet, packet, (client_port, target)))
    }

    /// Where a packet goes, and by which client port.
    fn admit(
        &mut self,
        iface: Iface,
        ends: Ends,
        to: impl Fn(u16) -> Arrival,
    ) -> Result<(u16, Admission), Refusal> {
        let Ends {
            protocol,
            local_port: dialled,
            ..
        } = ends;
        let is_served = self.is_served;
        // What has begun goes on.
        for target in self.rules.earlier(protocol, dialled) {
            let is_served = |ends: Ends| is_served(protocol, ends.local_port);
            if self.flows.has_begun(to(target), is_served) {
                return Ok((target, self.flows.redirect(to(target))));
            }
        }
        let target = self.rules.target(ends, iface);
        if let Some(target) = target {
            let is_open = self.flows.sockets.get(&to(target).ends) == Some(&Socket::Open);
            if self.rules.if_listening && !is_open && !is_served(protocol, target) {
                let is_known =
                    protocol == Protocol::Tcp && self.flows.has_begun(to(target), |_| false);
                if !is_known {
                    return Err(Untouched);
                }
            }
            return Ok((target, self.flows.redirect(to(target))));
        }
        if !self.rules.was_target(protocol, dialled) {
            return Err(Untouched);
        }
        if self.rules.is_hidden(protocol, dialled) && iface != Iface::Lo {
            let arrival = to(dialled);
            let is_open = self.flows.sockets.get(&arrival.ends) == Some(&Socket::Open);
            let is_ours = match protocol {
                // What began here goes on.
                Protocol::Udp => self.flows.answers(arrival.ends),
                // As does a connection that is older than the rules.
                Protocol::Tcp => !arrival.is_syn || is_open,
            };
            if !is_ours {
                return Ok((CLOSED, self.flows.redirect(to(CLOSED))));
            }
        }
        Ok((dialled, self.flows.direct(to(dialled))))
    }

    /// A packet of this host.
    fn leaves(
        &mut self,
        passage: Passage<'_>,
        packet: &Headers,
        protocol: Protocol,
    ) -> Result<Vec<u8>, Refusal> {
        let (frame, iface) = (passage.before, passage.iface);
        let (local_port, client_port) = packet.ports(frame).ok_or(Untouched)?;
        let was_target = self.rules.was_target(protocol, local_port);
        let is_private =
            self.rules.is_dst(protocol, local_port) || self.rules.is_hidden(protocol, local_port);
        if !was_target && !is_private {
            return Err(Untouched);
        }
        let ends = Ends {
            protocol,
            client: packet.dst,
            client_port,
            local: packet.src,
            local_port,
        };
        let ports = self.flows.of_reply(ends).filter(|_| was_target);
        let is_udp = protocol == Protocol::Udp;
        let is_direct = |ports: Ports| (ports.dialled, ports.client) == (local_port, client_port);
        let Some(ports) = ports.filter(|&ports| !(is_udp && is_private && is_direct(ports))) else {
            if is_private && (is_udp || begins(frame, packet)) {
                let rules = &self.rules;
                let target = rules.target(ends, iface);
                let is_hidden = rules.is_hidden(protocol, local_port);
                let target = target.or_else(|| is_hidden.then_some(CLOSED));
                self.flows.begin(ends, target);
            }
            return Err(Untouched);
        };
        if is_direct(ports) {
            return Err(Untouched);
        }
        match packet.soundness(frame, protocol) {
            Soundness::Sound => Ok(with_ports(
                frame,
                packet,
                packet,
                (ports.dialled, ports.client),
            )),
            Soundness::TooShort => Err(Dropped),
            Soundness::Broken => Err(Untouched),
        }
    }

    /// An error about what this host sent.
    fn error_arrives(
        &mut self,
        passage: Passage<'_>,
        packet: &Headers,
    ) -> Result<Vec<u8>, Refusal> {
        let (frame, iface) = (passage.before, passage.iface);
        let quoted = packet.quoted(frame).ok_or(Untouched)?;
        let Carried::Ports(protocol) = quoted.carried else {
            return Err(Untouched);
        };
        let (dialled, client_port) = quoted.ports(&frame[..packet.end]).ok_or(Untouched)?;
        if !is_ours(packet.dst, iface) || !is_ours(quoted.src, iface) {
            return Err(Untouched);
        }
        let ports = Ports {
            client: client_port,
            dialled,
        };
        let ends = |local_port| Ends {
            protocol,
            client: quoted.dst,
            client_port,
            local: quoted.src,
            local_port,
        };
        let rules = &self.rules;
        let earlier = rules.earlier(protocol, dialled);
        if earlier.is_empty()
            && !rules.is_dst(protocol, dialled)
            && !rules.was_target(protocol, dialled)
        {
            return Err(Untouched);
        }
        let mut found = None;
        for target in earlier {
            let port = self.flows.still_behind(ports, ends(target));
            found = found.or(port.map(|port| (target, port)));
        }
        if found.is_none() {
            let target = rules.target(ends(dialled), iface);
            let target = target.unwrap_or(dialled);
            let port = self.flows.behind(ports, ends(target));
            found = port.map(|port| (target, port));
        }
        let (target, client_port) = found.ok_or(Untouched)?;
        Ok(with_ports(frame, packet, &quoted, (target, client_port)))
    }

    /// An error of this host about what it received.
    fn error_leaves(&mut self, frame: &[u8], packet: &Headers) -> Result<Vec<u8>, Refusal> {
        let quoted = packet.quoted(frame).ok_or(Untouched)?;
        let Carried::Ports(protocol) = quoted.carried else {
            return Err(Untouched);
        };
        let (client_port, local_port) = quoted.ports(&frame[..packet.end]).ok_or(Untouched)?;
        if !self.rules.was_target(protocol, local_port) {
            return Err(Untouched);
        }
        let ends = Ends {
            protocol,
            client: quoted.src,
            client_port,
            local: quoted.dst,
            local_port,
        };
        let ports = self.flows.of_reply(ends).ok_or(Untouched)?;
        Ok(with_ports(
            frame,
            packet,
            &quoted,
            (ports.client, ports.dialled),
        ))
    }
}

/// Whether an address is this host's, on an interface.
fn is_ours(addr: IpAddr, iface: Iface) -> bool {
    use crate::packet::builder::{SERVER4, SERVER6};
    let is_loopback = addr.is_loopback() && iface == Iface::Lo;
    [SERVER4, SERVER6, IpAddr::from([192, 0, 2, 2])].contains(&addr) || is_loopback
}

/// The port that answers as a closed one: nobody can listen there.
const CLOSED: u16 = 0;

/// Whether a TCP segment that leaves may be of a flow that began here: it neither
/// resets one, nor agrees to one.
fn begins(frame: &[u8], packet: &Headers) -> bool {
    let flags = frame.get(packet.start + 13);
    flags.is_some_and(|flags| flags & 0b0_0100 == 0) && !is_syn_ack(frame, packet)
}

/// Whether a TCP segment agrees to a new connection: SYN and ACK without RST.
fn is_syn_ack(frame: &[u8], packet: &Headers) -> bool {
    frame[packet.start + 13] & 0b1_0110 == 0b1_0010
}

/// Whether a TCP segment asks for a new connection: SYN without ACK or RST.
fn is_syn(frame: &[u8], packet: &Headers) -> bool {
    frame[packet.start + 13] & 0b1_0110 == 0b0_0010
}

/// The frame with this source and destination port in `at`, which is `packet` itself or what
/// it quotes.
fn with_ports(frame: &[u8], packet: &Headers, at: &Headers, ports: (u16, u16)) -> Vec<u8> {
    with_ends(frame, packet, at, ((at.src, ports.0), (at.dst, ports.1)))
}
