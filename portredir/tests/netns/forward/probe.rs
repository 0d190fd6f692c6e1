//! A client that is no socket: packets made by hand, from an address that no host has,
//! and what arrives of them at the client and at the targets.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::packet::{ACKED, HAND_MADE_ID, Kind, Reader, SEQ, Sight};
use super::site::{GHOST, ROUTER, SENTINEL, Site};
use super::subject::Place;
use crate::conformance::frame::{ACK, Ip, RST, Segment, Sum, Tcp, icmp, udp};
use crate::conformance::observe::Observation;
use crate::conformance::site::Offload;
use crate::conformance::wire::mac;
use crate::lab::Family;

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long what is on the way beside the sentinels' answers may take.
const GRACE: Duration = Duration::from_millis(10);

/// A longer time, where no sentinel can take the way of the packet.
const LONG_GRACE: Duration = Duration::from_millis(150);

/// One such client.
pub struct Probe<'a> {
    pub site: &'a Site,
    pub family: Family,
    pub addr: IpAddr,
    pub port: u16,
    /// The SYN-ACKs that came: the server's port, and the next sequence number.
    half_open: RefCell<Vec<(SocketAddr, u32)>>,
}

impl<'a> Probe<'a> {
    pub fn new(site: &'a Site, family: Family) -> Self {
        site.forget();
        Self {
            site,
            family,
            addr: family.addr(1, GHOST),
            port: site.port(),
            half_open: RefCell::default(),
        }
    }

    /// A packet to the address that clients connect to. Its checksum is left to the
    /// hardware where the hosts do that.
    pub fn packet(&self, segment: Segment) -> Ip {
        self.packet_to(self.site.addr(Place::Host, self.family), segment)
    }

    /// A packet to another address.
    pub fn packet_to(&self, to: IpAddr, segment: Segment) -> Ip {
        let mut ip = Ip::new(self.addr, to, segment);
        ip.id = HAND_MADE_ID;
        if self.site.variant.offload == Offload::On && ip.segment.check != 2 {
            ip.sum = Sum::Partial;
        }
        ip
    }

    /// A TCP segment without data.
    pub fn tcp(&self, dst: u16, flags: u8) -> Segment {
        Tcp {
            ports: (self.port, dst),
            seq: SEQ,
            ack: if flags & ACK == 0 { 0 } else { ACKED },
            flags,
            options: &[],
            payload: &[],
        }
        .segment()
    }

    /// A datagram.
    pub fn udp(&self, dst: u16, payload: &[u8]) -> Segment {
        udp(self.port, dst, payload)
    }

    /// An ICMP error of a router in the client's segment.
    pub fn error(&self, (kind, code): (u8, u8), rest: [u8; 4], quote: &[u8]) -> Ip {
        let segment = icmp(self.family, (kind, code), rest, quote);
        let to = self.site.addr(Place::Host, self.family);
        Ip::new(self.family.addr(1, ROUTER), to, segment)
    }

    pub fn send(&self, ip: &Ip) {
        let to = mac(&self.site.lab.host, "h0");
        self.site.wire(Place::Client).send_ip(to, ip);
    }

    /// Sends bytes from the IP header on.
    pub fn send_packet(&self, packet: &[u8]) {
        let to = mac(&self.site.lab.host, "h0");
        self.site.wire(Place::Client).send(to, packet);
    }

    /// Sends, and tells what arrived at the client and at these targets. Sentinels go the
    /// same ways: when they have been answered, all before has been dealt with.
    pub fn ask(&self, ip: &Ip, targets: &[Place]) -> Observation {
        self.send(ip);
        self.seen(targets)
    }

    /// Sends as [`Self::ask`] does, where packets to the targets may be lost.
    pub fn ask_in_vain(&self, ip: &Ip, targets: &[Place]) -> Observation {
        self.send(ip);
        let at_client = self.at_client(&[], LONG_GRACE);
        self.describe(&at_client, targets)
    }

    /// Tells what arrived so far.
    pub fn seen(&self, targets: &[Place]) -> Observation {
        let at_client = self.at_client(targets, GRACE);
        self.describe(&at_client, targets)
    }

    /// Waits for a packet at the client.
    pub fn wait_for(&self, is_it: impl Fn(&Sight) -> bool) -> Option<Sight> {
        let end = Instant::now() + PATIENCE;
        let wire = self.site.wire(Place::Client);
        while let Some(received) = wire.receive(end.saturating_duration_since(Instant::now())) {
            let sight = self.reader().read(&received);
            if let Some(sight) = sight.filter(|sight| is_it(sight)) {
                return Some(sight);
            }
        }
        None
    }

    fn reader(&self) -> Reader<'a> {
        Reader {
            site: self.site,
            port: self.port,
        }
    }

    fn at_client(&self, ways: &[Place], grace: Duration) -> Vec<Sight> {
        let mut waiting = Vec::new();
        let servers = ways.iter().map(|place| (*place, 8080));
        for (place, dst) in servers.chain([(Place::Host, SENTINEL)]) {
            let port = self.site.port();
            let to = self.site.addr(place, self.family);
            self.send(&Ip::new(self.addr, to, udp(port, dst, b"sentinel")));
            waiting.push(port);
        }
        let wire = self.site.wire(Place::Client);
        let mut end = Instant::now() + PATIENCE;
        let mut sights: Vec<Sight> = Vec::new();
        while let Some(received) = wire.receive(end.saturating_duration_since(Instant::now())) {
            let is_answer = |port: &u16| {
                let site = self.site;
                let reader = Reader { site, port: *port };
                let sight = reader.read(&received);
                sight.is_some_and(|sight| sight.kind == Kind::Udp)
            };
            if let Some(at) = waiting.iter().position(is_answer) {
                waiting.remove(at);
                if waiting.is_empty() {
                    end = Instant::now() + grace;
                }
            }
            sights.extend(self.reader().read(&received));
        }
        assert!(waiting.is_empty(), "{} sentinels are lost", waiting.len());
        self.note_half_open(&sights);
        sights
    }

    fn note_half_open(&self, sights: &[Sight]) {
        for sight in sights {
            if let Kind::SynAck { from, ack, .. } = sight.kind {
                let host = self.site.addr(Place::Host, self.family);
                let mut half_open = self.half_open.borrow_mut();
                half_open.push((SocketAddr::new(host, from), ack));
            }
        }
    }

    fn describe(&self, at_client: &[Sight], targets: &[Place]) -> Observation {
        let mut all = Observation::default().with("client", &list(at_client));
        for place in targets {
            let wire = self.site.wire(*place);
            let mut sights = Vec::new();
            while let Some(received) = wire.receive(Duration::from_millis(1)) {
                sights.extend(self.reader().read(&received));
            }
            all = all.with(place.name(), &list(&sights));
        }
        all
    }

    /// A packet of the server, as the client got it, as far as an ICMP error quotes it.
    pub fn reply_to_quote(&self, segment: Segment) -> Vec<u8> {
        let host = self.site.addr(Place::Host, self.family);
        let ip = Ip::new(host, self.addr, segment);
        let whole = ip.whole();
        whole[..(ip.header_len() + 28).min(whole.len())].to_vec()
    }
}

/// Each once.
fn list(sights: &[Sight]) -> Observation {
    let mut facts: Vec<String> = Vec::new();
    for sight in sights {
        if !facts.contains(&sight.words) {
            facts.push(sight.words.clone());
        }
    }
    if facts.is_empty() {
        facts.push("nothing".to_owned());
    }
    Observation::of(facts.join(", then "))
}

impl Drop for Probe<'_> {
    /// Or the server would say it again, to clients that come later.
    fn drop(&mut self) {
        for (server, seq) in self.half_open.take() {
            let reset = Tcp {
                ports: (self.port, server.port()),
                seq,
                ack: 0,
                flags: RST,
                options: &[],
                payload: &[],
            };
            self.send(&self.packet_to(server.ip(), reset.segment()));
        }
    }
}
