//! Packets of flows to targets with an address.

use portredir_common::net::Protocol;

use super::flows::{Ends, Socket};
use super::forward::{Request, Segment, Way};
use super::headers::{Carried, Headers, Soundness};
use super::rewrite::{with_addrs, with_ends};
use super::{Passage, Reference, Refusal, is_ours};
use crate::packet::{Hook, Iface};

use Refusal::{Dropped, Untouched};

type Fate = Result<Vec<u8>, Refusal>;

/// The ends of a packet to a server, or of one from it.
fn ends(packet: &Headers, protocol: Protocol, (ports, hook): ((u16, u16), Hook)) -> Ends {
    let (client, local) = match hook {
        Hook::Ingress => ((packet.src, ports.0), (packet.dst, ports.1)),
        Hook::Egress => ((packet.dst, ports.1), (packet.src, ports.0)),
    };
    Ends {
        protocol,
        client: client.0,
        client_port: client.1,
        local: local.0,
        local_port: local.1,
    }
}

/// The segment of a packet, if the frame has one.
fn segment(frame: &[u8], packet: &Headers, protocol: Protocol) -> Option<Segment> {
    if protocol == Protocol::Udp {
        return Some(Segment::Datagram);
    }
    let word = |at: usize| {
        let bytes = frame.get(packet.start + at..packet.start + at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().expect("four bytes")))
    };
    Some(Segment::Tcp {
        sequence: word(4)?,
        acknowledged: word(8)?,
        flags: *frame.get(packet.start + 13)?,
    })
}

impl Ends {
    /// Source and destination of a packet of the client.
    fn of_request(self) -> ((std::net::IpAddr, u16), (std::net::IpAddr, u16)) {
        (
            (self.client, self.client_port),
            (self.local, self.local_port),
        )
    }

    /// Source and destination of a packet of the server.
    fn of_reply(self) -> ((std::net::IpAddr, u16), (std::net::IpAddr, u16)) {
        let (client, server) = self.of_request();
        (server, client)
    }
}

impl Reference {
    /// The fate of a frame that targets with an address have to do with.
    pub(super) fn forwarded(&mut self, passage: Passage<'_>, packet: &Headers) -> Option<Fate> {
        match (packet.carried, passage.hook) {
            (Carried::Ports(protocol), Hook::Ingress) => {
                self.request_arrives(passage, packet, protocol)
            }
            (Carried::Ports(protocol), Hook::Egress) => {
                self.reply_leaves(passage.before, packet, protocol)
            }
            (Carried::Icmp, Hook::Ingress) => self.error_to_target(passage, packet),
            (Carried::Icmp, Hook::Egress) => self.error_to_client(passage.before, packet),
        }
    }

    fn request_arrives(
        &mut self,
        passage: Passage<'_>,
        packet: &Headers,
        protocol: Protocol,
    ) -> Option<Fate> {
        let frame = passage.before;
        let known = ends(packet, protocol, (packet.ports(frame)?, Hook::Ingress));
        let is_its =
            is_ours(packet.dst, passage.iface) && self.rules.forwards(known, passage.iface);
        if !is_its {
            return None;
        }
        // Local clients are pointed at the target before there is a packet.
        if passage.iface == Iface::Lo {
            return Some(Err(Untouched));
        }
        if packet.is_fragment {
            return Some(Err(Dropped));
        }
        let Some(segment) = segment(frame, packet, protocol) else {
            return Some(Err(Untouched));
        };
        if packet.soundness(frame, protocol) != Soundness::Sound {
            return Some(Err(Untouched));
        }
        let Some(after) = super::of(passage.after, self.link) else {
            return Some(Err(Untouched));
        };
        let ports = after.ports(passage.after)?;
        let after = ends(&after, protocol, (ports, Hook::Ingress));
        let request = Request {
            known,
            segment,
            is_foreign: self.is_foreign(known, segment),
        };
        let sockets = &self.flows.sockets;
        let is_connected = |ends: Ends| sockets.get(&ends) == Some(&Socket::Open);
        let arrived = self.forwards.arrives(request, after, &is_connected);
        if request.is_foreign && matches!(arrived, Ok((Way::Past, _))) {
            self.flows.answers(known);
        }
        match arrived {
            Ok((Way::Behind(behind), given)) => {
                if let Some(port) = given {
                    self.flows.remember(known, port);
                }
                self.given = given;
                Some(Ok(with_ends(frame, packet, packet, behind.of_request())))
            }
            Ok((Way::Dropped, _)) => Some(Err(Dropped)),
            Ok(_) => Some(Err(Untouched)),
            Err(why) => Some(Err(Refusal::Impossible(why))),
        }
    }

    /// Whether a server or a client on the port that was dialled has a packet, or nobody.
    fn is_foreign(&self, known: Ends, segment: Segment) -> bool {
        if known.protocol == Protocol::Udp {
            return self.flows.is_answer(known);
        }
        match self.flows.sockets.get(&known) {
            Some(Socket::Open) => return true,
            Some(Socket::TimeWait) if !segment.is_syn() => return true,
            _ => {}
        }
        // As in netfilter, other segments begin nothing.
        !segment.is_syn() && (!segment.is_ack() || self.flows.is_answer(known))
    }

    fn reply_leaves(&mut self, frame: &[u8], packet: &Headers, protocol: Protocol) -> Option<Fate> {
        let behind = ends(packet, protocol, (packet.ports(frame)?, Hook::Egress));
        if !self.forwards.is_target(behind.local_port) {
            return None;
        }
        let segment = segment(frame, packet, protocol)?;
        let known = self.forwards.leaves(behind, segment)?;
        Some(match packet.soundness(frame, protocol) {
            Soundness::Sound => Ok(with_ends(frame, packet, packet, known.of_reply())),
            Soundness::TooShort => Err(Dropped),
            Soundness::Broken => Err(Untouched),
        })
    }

    /// An error about a reply comes from the side of the client.
    fn error_to_target(&mut self, passage: Passage<'_>, packet: &Headers) -> Option<Fate> {
        let frame = passage.before;
        let redirected = packet.redirected(frame);
        let is_redirect = redirected.is_some();
        let quoted = packet.quoted(frame).or(redirected)?;
        let Carried::Ports(protocol) = quoted.carried else {
            return None;
        };
        let message = &frame[..packet.end];
        let known = ends(&quoted, protocol, (quoted.ports(message)?, Hook::Egress));
        let iface = passage.iface;
        let is_its = is_ours(packet.dst, iface)
            && is_ours(quoted.src, iface)
            && self.rules.forwards(known, iface);
        if !is_its {
            return None;
        }
        let places = self.forwards.behind(known);
        if is_redirect {
            // It may depend on the slot whether there is such a flow.
            let is_certain = places.contains(&None) != places.iter().any(Option::is_some);
            let is_dropped = if is_certain {
                places[0].is_some()
            } else {
                passage.is_dropped
            };
            let fate = if is_dropped { Dropped } else { Untouched };
            return Some(Err(fate));
        }
        let written = super::of(passage.after, self.link)
            .and_then(|after| after.quoted(passage.after))
            .and_then(|quoted| {
                let ports = quoted.ports(passage.after)?;
                Some(ends(&quoted, protocol, (ports, Hook::Egress)))
            });
        let behind = match places.iter().find(|place| **place == written) {
            Some(place) => *place,
            None if places.contains(&None) => None,
            None => places[0],
        };
        let Some(behind) = behind else {
            return Some(Err(Untouched));
        };
        let new = with_ends(frame, packet, &quoted, behind.of_reply());
        Some(Ok(with_addrs(&new, packet, (packet.src, behind.local))))
    }

    /// An error about a request is on its way to the client.
    fn error_to_client(&mut self, frame: &[u8], packet: &Headers) -> Option<Fate> {
        let redirected = packet.redirected(frame);
        let is_redirect = redirected.is_some();
        let quoted = packet.quoted(frame).or(redirected)?;
        let Carried::Ports(protocol) = quoted.carried else {
            return None;
        };
        let message = &frame[..packet.end];
        let behind = ends(&quoted, protocol, (quoted.ports(message)?, Hook::Ingress));
        if !self.forwards.is_target(behind.local_port) {
            return None;
        }
        let known = self.forwards.known_of(behind)?;
        if is_redirect {
            return Some(Err(Dropped));
        }
        let new = with_ends(frame, packet, &quoted, known.of_request());
        Some(Ok(with_addrs(&new, packet, (known.local, packet.dst))))
    }
}
