//! Flows to targets with an address.

mod errors;
mod hostile;
mod life;
mod several;

use std::net::{IpAddr, Ipv6Addr};

use portredir_common::verdict::Reason;

use super::builder::{ACK, CLIENT_PORT, MoreFragments, Packet, SYN, syn4, syn6};
use super::flows::{KINDS, Kind};
use super::scenario::{F, G, Plan, Scenario, To};

/// A rule with two targets in each version of IP.
const TARGETS: &[&str] =
    &["80:10.0.0.5:8080,10.0.0.6:8080,[2001:db8:5::5]:8080,[2001:db8:5::6]:8080/both"];

/// Two rules with the same targets.
const TWO_PORTS: &[&str] = &[
    "80:10.0.0.5:8080,10.0.0.6:8080,[2001:db8:5::5]:8080,[2001:db8:5::6]:8080/both",
    "81:10.0.0.5:8080,10.0.0.6:8080,[2001:db8:5::5]:8080,[2001:db8:5::6]:8080/both",
];

/// A rule with a port of this host and one of another.
const MIXED: &[&str] = &["80:8080,10.0.0.5:8080,[2001:db8:5::5]:8080/both"];

/// The first number of the target's segments.
const FIRST: u32 = 0x1234_5678;

/// All new flows go to F.
const TO_F: Plan = Plan::new(&[&[To::F]]);

/// Every sequence. Names are unique.
pub fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for kind in KINDS {
        scenarios.extend(life::scenarios(kind));
        scenarios.extend(several::scenarios(kind));
        scenarios.extend(errors::scenarios(kind));
        scenarios.extend(hostile::scenarios(kind));
        scenarios.push(fragment(kind));
        scenarios.push(other_host(kind));
    }
    scenarios
}

impl Kind {
    pub fn target(self, halves: [[u16; 8]; 2]) -> IpAddr {
        let addr = Ipv6Addr::from(halves[usize::from(!self.is_ipv4)]);
        IpAddr::from(addr).to_canonical()
    }

    fn f(self) -> IpAddr {
        self.target(F)
    }

    fn g(self) -> IpAddr {
        self.target(G)
    }

    /// The first packet of a flow.
    pub fn first(self, dst_port: u16) -> Packet {
        match (self.is_tcp(), self.is_ipv4) {
            (false, _) => self.packet(dst_port),
            (true, true) => syn4(dst_port),
            (true, false) => syn6(dst_port),
        }
    }

    /// The answer to the first packet, as it comes from a target.
    fn answer(self, from: IpAddr) -> Packet {
        let packet = self.first(8080).to(from).reply();
        if self.is_tcp() {
            packet.flags(SYN | ACK).numbers(FIRST, 0x0102_0305)
        } else {
            packet
        }
    }

    fn is_tcp(self) -> bool {
        self.protocol == portredir_common::net::Protocol::Tcp
    }

    /// The packet of the client after the answer.
    fn next(self, dst_port: u16) -> Packet {
        let packet = self.packet(dst_port);
        if self.is_tcp() {
            let empty = packet.flags(ACK).payload(&[]);
            empty.numbers(0x0102_0305, FIRST + 1)
        } else {
            packet
        }
    }
}

/// A packet as a target gets it.
fn to(target: IpAddr, packet: Packet) -> Packet {
    packet.to(target).dst_port(8080)
}

/// A packet of a target as the client gets it.
fn from_own(kind: Kind, port: u16, packet: Packet) -> Packet {
    packet.from(kind.packet(port).dst, port)
}

impl Scenario {
    /// A client begins a flow to a port, and the target answers.
    fn opens(self, kind: Kind, port: u16, target: IpAddr) -> Self {
        self.opens_from(kind, (CLIENT_PORT, port), target)
    }

    fn opens_from(self, kind: Kind, (client_port, port): (u16, u16), target: IpAddr) -> Self {
        let first = kind.first(port).src_port(client_port);
        let answer = kind.answer(target).dst_port(client_port);
        let next = kind.next(port).src_port(client_port);
        self.arrives(first.clone())
            .redirected(to(target, first))
            .begins()
            .leaves(answer.clone())
            .restored(from_own(kind, port, answer))
            .arrives(next.clone())
            .redirected(to(target, next))
    }

    /// Packets go both ways.
    fn goes_on(self, kind: Kind, (client_port, port): (u16, u16), target: IpAddr) -> Self {
        let request = kind.packet(port).src_port(client_port);
        let reply = kind.packet(8080).to(target).src_port(client_port).reply();
        self.arrives(request.clone())
            .redirected(to(target, request))
            .leaves(reply.clone())
            .restored(from_own(kind, port, reply))
    }
}

/// Fragments have no ports behind the first one, so none is forwarded.
fn fragment(kind: Kind) -> Scenario {
    let first = kind
        .packet(80)
        .payload(&[9; 80])
        .fragment(0, 64, MoreFragments::Yes);
    Scenario::new(
        format!("forward {}: a first fragment", kind.name),
        TARGETS,
        TO_F,
    )
    .arrives(first)
    .unchanged(Reason::FragmentForwarded)
    .live(0)
}

fn other_host(kind: Kind) -> Scenario {
    let elsewhere = kind.first(80).to(kind.g());
    Scenario::new(
        format!("forward {}: a packet to another host", kind.name),
        TARGETS,
        TO_F,
    )
    .arrives(elsewhere)
    .unchanged(Reason::NotLocal)
    .live(0)
}
