//! Traffic made of bytes: whatever they are, they say which packets cross a
//! host, one after another, and what happens to it in between.
//!
//! A fuzzer that changes the bytes changes the packets, and random bytes are
//! random packets. What came out is answered: by the server, by the client, by
//! errors of routers and of this host; so what the host remembers matters.

mod damage;
mod frame;
pub mod random;
pub mod scene;
pub mod session;

use arbitrary::{Result, Unstructured};
use portredir_common::net::Protocol;
use portredir_common::wire::frame::Link;

use crate::packet::builder::{Body, Packet};
use crate::packet::scenario::Plan;
use crate::packet::{Hook, Iface};
use crate::reference::{self, Carried, Ends, Headers, Socket};
use frame::Source;
use scene::Scene;

/// Frames that are remembered, to be answered.
const MEMORY: usize = 8;

/// The next event on a host.
#[derive(Debug)]
pub enum Step {
    Frame(Hook, Iface, Vec<u8>),
    /// Time goes by.
    Wait(u64),
    /// A TCP connection comes or goes.
    Socket(Ends, Option<Socket>),
    /// The client port that a flow gets next, if it is free.
    Choice(u16),
    /// Targets come and go.
    Plan(&'static Plan),
}

/// The frames that cross a host, and the events in between.
pub struct Traffic {
    scene: &'static Scene,
    link: Link,
    /// The frames that came out, the latest last.
    out: Vec<(Hook, Vec<u8>)>,
    count: u32,
}

impl Traffic {
    pub fn new(scene: &'static Scene, link: Link) -> Self {
        Self {
            scene,
            link,
            out: Vec::new(),
            count: 0,
        }
    }

    /// A frame that went on. What was rewritten is remembered, and some of the
    /// rest.
    pub fn note(&mut self, hook: Hook, frame: &[u8], is_rewritten: bool) {
        self.count += 1;
        if !is_rewritten && !self.count.is_multiple_of(4) {
            return;
        }
        if self.out.len() == MEMORY {
            self.out.remove(0);
        }
        self.out.push((hook, frame.to_vec()));
    }

    /// The next step.
    ///
    /// # Errors
    ///
    /// The bytes are at their end.
    pub fn next(&mut self, bytes: &mut Unstructured<'_>) -> Result<Step> {
        let is_lo = bytes.ratio(1, 3)?;
        let iface = if is_lo { Iface::Lo } else { Iface::Other };
        let kind = bytes.int_in_range(0..=19_u8)?;
        let (hook, mut frame) = match kind {
            0 => return self.event(bytes),
            1..=6 => self.fresh(bytes)?,
            7..=8 => match self.remembered(bytes)? {
                Some((hook, frame)) => (hook, frame),
                None => self.fresh(bytes)?,
            },
            9..=15 => match self.answer(bytes)? {
                Some(answer) => answer,
                None => self.fresh(bytes)?,
            },
            _ => match self.error(bytes)? {
                Some(error) => error,
                None => self.fresh(bytes)?,
            },
        };
        if bytes.ratio(3, 10)? {
            for _ in 0..bytes.int_in_range(1..=3)? {
                damage::apply(bytes, self.scene, self.link, &mut frame)?;
            }
        }
        Ok(Step::Frame(hook, iface, frame))
    }

    /// A packet of a client, or of a server, that nothing led to.
    fn fresh(&self, bytes: &mut Unstructured<'_>) -> Result<(Hook, Vec<u8>)> {
        let hook = if bytes.ratio(3, 4)? {
            Hook::Ingress
        } else {
            Hook::Egress
        };
        let source = Source {
            ports: self.scene.ports,
            link: self.link,
            has_targets: !self.scene.plans.is_empty(),
        };
        let packet = source.packet(bytes, hook)?;
        Ok((hook, frame::with_bad_luck(bytes, &packet)?))
    }

    fn remembered(&self, bytes: &mut Unstructured<'_>) -> Result<Option<(Hook, Vec<u8>)>> {
        if self.out.is_empty() {
            return Ok(None);
        }
        // The latest is the likeliest.
        let back = bytes.int_in_range(0..=self.out.len() - 1)?;
        Ok(Some(self.out[self.out.len() - 1 - back].clone()))
    }

    /// The answer of the other end to a packet that came out: the packet with its
    /// ends swapped and with the same checksum, which is a sum over both ends.
    fn answer(&self, bytes: &mut Unstructured<'_>) -> Result<Option<(Hook, Vec<u8>)>> {
        let Some((hook, mut frame)) = self.remembered(bytes)? else {
            return Ok(None);
        };
        let Some(packet) = reference::of(&frame, self.link) else {
            return Ok(None);
        };
        swap_ends(&mut frame, &packet);
        let hook = match hook {
            Hook::Ingress => Hook::Egress,
            Hook::Egress => Hook::Ingress,
        };
        let is_tcp = packet.carried == Carried::Ports(Protocol::Tcp);
        if is_tcp && bytes.ratio(1, 2)? {
            frame::set_flags(bytes, &mut frame, &packet)?;
        } else if is_tcp && !self.scene.plans.is_empty() {
            frame::go_on(&mut frame, &packet);
        }
        Ok(Some((hook, frame)))
    }

    /// An ICMP error about a packet that came out.
    fn error(&self, bytes: &mut Unstructured<'_>) -> Result<Option<(Hook, Vec<u8>)>> {
        let Some((hook, frame)) = self.remembered(bytes)? else {
            return Ok(None);
        };
        let Some(about) = reference::of(&frame, self.link) else {
            return Ok(None);
        };
        // A router says it to this host, or this host to the client.
        let hook = match hook {
            Hook::Ingress => Hook::Egress,
            Hook::Egress => Hook::Ingress,
        };
        let quote = &frame[about.ip..];
        let header = about.start - about.ip;
        let len = match bytes.int_in_range(0..=3_u8)? {
            0 => header + 8,
            1 => header + bytes.int_in_range(0..=40_usize)?,
            _ => quote.len(),
        };
        let kinds: &[u8] = if about.src.is_ipv4() {
            &[3, 3, 3, 11, 12, 4, 5, 8]
        } else {
            &[1, 1, 2, 2, 3, 4, 128, 137]
        };
        let body = Body::Icmp {
            kind: *bytes.choose(kinds)?,
            code: bytes.int_in_range(0..=4)?,
            rest: [0, 0, 5, 0x14],
        };
        let router = if bytes.ratio(1, 2)? {
            about.dst
        } else {
            frame::router(about.dst)
        };
        let mut packet = Packet::new(router, about.src, 0, body);
        packet.link = self.link;
        let quote = &quote[..len.min(quote.len()).min(1200)];
        Ok(Some((hook, packet.payload(quote).bytes())))
    }

    /// Something that is no packet.
    fn event(&self, bytes: &mut Unstructured<'_>) -> Result<Step> {
        const SECOND: u64 = 1_000_000_000;
        Ok(match bytes.int_in_range(0..=5_u8)? {
            // With steps of 25 s none is near the 120 s after which a UDP flow is
            // idle, by which the datapath may be a second or two off.
            0 => Step::Wait(*bytes.choose(&[25 * SECOND, SECOND / 1000, 300 * SECOND])?),
            1 => Step::Choice(*bytes.choose(&frame::CLIENT_PORTS)?),
            2 if !self.scene.plans.is_empty() => Step::Plan(bytes.choose(self.scene.plans)?),
            _ => {
                let state = *bytes.choose(&[Some(Socket::Open), None, Some(Socket::TimeWait)])?;
                let out = self.remembered(bytes)?;
                let ends = out.and_then(|(hook, frame)| self.ends(hook, &frame));
                match ends {
                    Some(ends) => Step::Socket(ends, state),
                    None => Step::Wait(SECOND / 1000),
                }
            }
        })
    }

    /// The connection that a frame which came out belongs to.
    fn ends(&self, hook: Hook, frame: &[u8]) -> Option<Ends> {
        let packet = reference::of(frame, self.link)?;
        let (src_port, dst_port) = packet.ports(frame)?;
        if packet.carried != Carried::Ports(Protocol::Tcp) {
            return None;
        }
        let ends = Ends {
            protocol: Protocol::Tcp,
            client: packet.src,
            client_port: src_port,
            local: packet.dst,
            local_port: dst_port,
        };
        Some(match hook {
            Hook::Ingress => ends,
            Hook::Egress => Ends {
                client: ends.local,
                client_port: ends.local_port,
                local: ends.client,
                local_port: ends.client_port,
                ..ends
            },
        })
    }
}

/// Has addresses and ports change places.
fn swap_ends(frame: &mut [u8], packet: &Headers) {
    let mut swap = |a: usize, b: usize, len: usize| {
        for i in 0..len {
            if b + i < frame.len() {
                frame.swap(a + i, b + i);
            }
        }
    };
    if packet.src.is_ipv4() {
        swap(packet.ip + 12, packet.ip + 16, 4);
    } else {
        swap(packet.ip + 8, packet.ip + 24, 16);
    }
    if packet.carried != Carried::Icmp {
        swap(packet.start, packet.start + 2, 2);
    }
}
