//! A client that is no socket: packets made by hand, from an address that no
//! host has, and all that is answered.

use std::cell::RefCell;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::client::greeting;
use super::decode::{Arrival, Body, quoted_ports};
use super::frame::{ACK, Ip, RST, SYN, Segment, Sum, Tcp, icmp, udp};
use super::observe::Observation;
use super::site::{GHOST, Offload, STRAY, Site};
use super::wire::{Received, Wire, ethernet, mac};
use crate::lab::Family;

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long what is on the way beside the sentinel's answer may take.
const GRACE: Duration = Duration::from_millis(4);

/// One such client.
pub struct Ghost<'a> {
    site: &'a Site,
    pub family: Family,
    /// By which it hears.
    hears: &'a Wire,
    to_mac: [u8; 6],
    pub addr: IpAddr,
    pub port: u16,
    /// The SYN-ACKs that came: the ports, and the next sequence number.
    half_open: RefCell<Vec<(u16, u16, u32)>>,
}

impl<'a> Ghost<'a> {
    pub fn new(site: &'a Site, family: Family) -> Self {
        Self::at(site, family, GHOST)
    }

    /// The one whose answers go another way.
    pub fn stray(site: &'a Site, family: Family) -> Self {
        let mut ghost = Self::at(site, family, STRAY);
        ghost.hears = &site.wires[1];
        ghost.hears.forget();
        ghost
    }

    /// At another address.
    pub fn at(site: &'a Site, family: Family, number: u8) -> Self {
        let hears = &site.wires[0];
        hears.forget();
        Self {
            site,
            family,
            hears,
            to_mac: mac(&site.lab.host, "h0"),
            addr: family.addr(1, number),
            port: site.port(),
            half_open: RefCell::default(),
        }
    }

    /// From another port from now on.
    pub fn move_to(&mut self, port: u16) {
        self.port = port;
    }

    /// The host's address.
    pub fn host(&self) -> IpAddr {
        self.family.addr(1, 1)
    }

    /// A packet to the host; its checksum is left to the hardware where the
    /// hosts do that.
    pub fn ip(&self, segment: Segment) -> Ip {
        let mut ip = Ip::new(self.addr, self.host(), segment);
        // What is left of one packet's fragments must not meet another's.
        ip.id = self.port;
        if self.site.offload == Offload::On && ip.segment.check != 2 {
            ip.sum = Sum::Partial;
        }
        ip
    }

    /// A TCP segment of no connection.
    pub fn tcp(&self, dst: u16, flags: u8) -> Ip {
        self.ip(self.stray_segment(dst, flags))
    }

    fn stray_segment(&self, dst: u16, flags: u8) -> Segment {
        let tcp = Tcp {
            ports: (self.port, dst),
            seq: 0x1000_0000,
            ack: if flags & ACK == 0 { 0 } else { 0x2000_0000 },
            flags,
            options: &[],
            payload: &[],
        };
        tcp.segment()
    }

    /// A datagram.
    pub fn udp(&self, dst: u16, payload: &[u8]) -> Ip {
        self.ip(udp(self.port, dst, payload))
    }

    /// An ICMP error of a router, about a packet that the host sent: `quote` is
    /// that packet. Unreachable, and to IPv6 packet too big, by this MTU.
    pub fn too_big(&self, mtu: u16, quote: &[u8]) -> Ip {
        let [high, low] = mtu.to_be_bytes();
        let (kind, code) = match self.family {
            Family::V4 => (3, 4),
            Family::V6 => (2, 0),
        };
        self.ip(icmp(self.family, (kind, code), [0, 0, high, low], quote))
    }

    pub fn send(&self, ip: &Ip) {
        self.wire().send_ip(self.to_mac, ip);
    }

    /// Sends bytes from the IP header on.
    pub fn send_packet(&self, packet: &[u8]) {
        self.wire().send(self.to_mac, packet);
    }

    /// Sends to another Ethernet address.
    pub fn send_to(&self, mac: [u8; 6], ip: &Ip) {
        self.wire().send_ip(mac, ip);
    }

    /// Sends the first bytes of a frame.
    pub fn send_part(&self, packet: &[u8], len: usize) {
        let frame = ethernet(self.to_mac, self.wire().mac(), packet);
        self.wire().send_frame(&frame[..len.min(frame.len())], None);
    }

    pub fn send_frame(&self, frame: &[u8]) {
        self.wire().send_frame(frame, None);
    }

    pub fn macs(&self) -> ([u8; 6], [u8; 6]) {
        (self.to_mac, self.wire().mac())
    }

    fn wire(&self) -> &Wire {
        &self.site.wires[0]
    }

    fn next(&self, limit: Duration) -> Option<Received> {
        self.hears.receive(limit)
    }

    /// Whether this packet is for this client, not for one before it.
    fn is_for_us(&self, arrival: &Arrival) -> bool {
        let is_for = |port| port == self.port || !self.site.has_given(port);
        arrival.dst == self.addr
            && match &arrival.body {
                Body::Tcp { ports, .. } | Body::Udp { ports, .. } => is_for(ports.1),
                // An error may take seconds, when an address is not found.
                Body::Icmp { quote, .. } => {
                    quoted_ports(arrival.src.is_ipv4(), quote).is_none_or(|(src, _)| is_for(src))
                }
                Body::Other => true,
            }
    }

    /// The next packet to this client for which `is_it` has something.
    pub fn wait_for<T>(&self, is_it: impl Fn(&Arrival) -> Option<T>) -> Option<T> {
        let end = Instant::now() + PATIENCE;
        while let Some(received) = self.next(end.saturating_duration_since(Instant::now())) {
            let arrival = Arrival::read(&received);
            if let Some(found) = arrival
                .filter(|a| self.is_for_us(a))
                .and_then(|a| is_it(&a))
            {
                return Some(found);
            }
        }
        None
    }

    /// All that was answered so far. A sentinel goes the same way, to a server on
    /// the target port: when that has answered, all before it has been dealt
    /// with, by the stack and by that server.
    pub fn answers(&self) -> Vec<Arrival> {
        let port = self.site.port();
        let mut ip = Ip::new(self.addr, self.host(), udp(port, 8080, b"sentinel"));
        ip.id = port;
        self.send(&ip);
        let mut answers: Vec<Arrival> = Vec::new();
        let end = Instant::now() + PATIENCE;
        let mut last = None;
        loop {
            let limit = last
                .unwrap_or(end)
                .saturating_duration_since(Instant::now());
            let Some(received) = self.next(limit) else {
                assert!(last.is_some(), "the sentinel was not answered");
                return answers;
            };
            let Some(arrival) = Arrival::read(&received) else {
                continue;
            };
            match &arrival.body {
                Body::Udp { ports, .. } if ports.1 == port => {
                    last = Some(Instant::now() + GRACE);
                }
                // The same packet, sent again.
                _ if answers.contains(&arrival) => {}
                _ if self.is_for_us(&arrival) => {
                    if let Body::Tcp {
                        ports, ack, flags, ..
                    } = arrival.body
                        && flags & (SYN | ACK) == SYN | ACK
                    {
                        let mut half_open = self.half_open.borrow_mut();
                        half_open.push((ports.1, ports.0, ack));
                    }
                    answers.push(arrival);
                }
                _ => {}
            }
        }
    }

    /// The replies, in words: each once, a datagram with the server that sent it.
    pub fn seen(&self) -> Observation {
        self.describe(&self.answers())
    }

    /// Sends, and tells what was answered.
    pub fn ask(&self, ip: &Ip) -> Observation {
        self.send(ip);
        self.seen()
    }

    /// Answers in words.
    pub fn describe(&self, answers: &[Arrival]) -> Observation {
        let mut facts: Vec<String> = Vec::new();
        for arrival in answers {
            let mut fact = arrival.words();
            if let Body::Udp { ports, payload } = &arrival.body {
                if let Some((name, ..)) = greeting(payload) {
                    fact = format!("{name} reached; {fact}");
                }
                if ports.1 != self.port {
                    fact += " to another port";
                }
            }
            if arrival.src != self.host() {
                fact += match arrival.src == self.family.addr(2, 2) {
                    true => " at the far host",
                    false => " at another address",
                };
            }
            if !facts.contains(&fact) {
                facts.push(fact);
            }
        }
        if facts.is_empty() {
            facts.push("no reply".to_owned());
        }
        facts.into_iter().collect()
    }

    /// Opens a TCP connection.
    pub fn connect(&self, dst: u16) -> Option<Connection<'_>> {
        let seq = 0x1000_0000;
        let syn = Tcp {
            ports: (self.port, dst),
            seq,
            ack: 0,
            flags: SYN,
            // The MSS of Ethernet; Linux would take a small one for itself.
            options: &[2, 4, 5, 0xa0],
            payload: &[],
        };
        self.send(&self.ip(syn.segment()));
        let theirs = self.wait_for(|arrival| match &arrival.body {
            Body::Tcp {
                ports, seq, flags, ..
            } if ports.1 == self.port && *flags & SYN != 0 && ports.0 == dst => Some(*seq),
            _ => None,
        })?;
        let mut connection = Connection {
            ghost: self,
            dst,
            seq: seq + 1,
            ack: theirs.wrapping_add(1),
        };
        connection.send(ACK, b"");
        connection.hear(|heard| heard.contains(&b'\n'))?;
        // A SYN-ACK may have come twice.
        self.hears.forget();
        Some(connection)
    }
}

impl Drop for Ghost<'_> {
    /// Or the host would say it again, to clients that come later.
    fn drop(&mut self) {
        for (src, dst, seq) in self.half_open.take() {
            let reset = Tcp {
                ports: (src, dst),
                seq,
                ack: 0,
                flags: RST,
                options: &[],
                payload: &[],
            };
            self.send(&self.ip(reset.segment()));
        }
    }
}

/// The client's end of a TCP connection, whose state it keeps by hand.
pub struct Connection<'a> {
    ghost: &'a Ghost<'a>,
    dst: u16,
    /// The next sequence numbers of both sides.
    pub seq: u32,
    pub ack: u32,
}

impl<'a> Connection<'a> {
    /// One that has not been opened.
    pub const fn unborn(ghost: &'a Ghost<'a>, dst: u16, seq: u32, ack: u32) -> Self {
        Self {
            ghost,
            dst,
            seq,
            ack,
        }
    }

    /// A segment of the connection.
    pub fn segment(&self, flags: u8, payload: &[u8]) -> Segment {
        let tcp = Tcp {
            ports: (self.ghost.port, self.dst),
            seq: self.seq,
            ack: self.ack,
            flags,
            options: &[],
            payload,
        };
        tcp.segment()
    }

    /// Sends a segment, which takes its place in the sequence.
    pub fn send(&mut self, flags: u8, payload: &[u8]) {
        self.ghost
            .send(&self.ghost.ip(self.segment(flags, payload)));
        self.advance(flags, payload.len());
    }

    /// Counts what was sent another way.
    pub fn advance(&mut self, flags: u8, len: usize) {
        let len = u32::try_from(len).expect("short");
        let control = u32::from(flags & super::frame::FIN != 0);
        self.seq = self.seq.wrapping_add(len + control);
    }

    /// Takes data, until there is enough, and acknowledges it.
    pub fn hear(&mut self, is_enough: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let mut heard = Vec::new();
        while !is_enough(&heard) {
            let expected = self.ack;
            let (port, dst) = (self.ghost.port, self.dst);
            let payload = self.ghost.wait_for(|arrival| match &arrival.body {
                Body::Tcp {
                    ports,
                    seq,
                    payload,
                    flags,
                    ..
                } if *ports == (dst, port) => {
                    let is_end = *flags & RST != 0;
                    let is_next = *seq == expected && !payload.is_empty();
                    (is_end || is_next).then(|| payload.clone())
                }
                _ => None,
            })?;
            if payload.is_empty() {
                return None;
            }
            self.ack = self.ack.wrapping_add(u32::try_from(payload.len()).ok()?);
            heard.extend(payload);
            self.send(ACK, b"");
        }
        Some(heard)
    }

    /// Whether the server echoes a message.
    pub fn echoes(&mut self, message: &[u8]) -> bool {
        self.send(ACK | super::frame::PSH, message);
        self.is_said_back(message)
    }

    /// Whether it says this back.
    pub fn is_said_back(&mut self, message: &[u8]) -> bool {
        let heard = self.hear(|heard| heard.len() >= message.len());
        heard.is_some_and(|heard| heard == message)
    }

    /// A packet that the host has sent, as the wire saw it, as far as an ICMP
    /// error quotes it: the newest that is not acknowledged, or what comes next.
    pub fn quote(&self, len: usize) -> Vec<u8> {
        self.quote_from(self.ack, len)
    }

    /// Quotes a segment with another sequence number.
    pub fn quote_from(&self, seq: u32, len: usize) -> Vec<u8> {
        let tcp = Tcp {
            ports: (self.dst, self.ghost.port),
            seq,
            ack: self.seq,
            flags: ACK,
            options: &[],
            payload: &[0; 1200],
        };
        let ip = Ip::new(self.ghost.host(), self.ghost.addr, tcp.segment());
        let whole = ip.whole();
        whole[..(ip.header_len() + len).min(whole.len())].to_vec()
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        let reset = self.segment(RST | ACK, b"");
        self.ghost.send(&self.ghost.ip(reset));
    }
}
