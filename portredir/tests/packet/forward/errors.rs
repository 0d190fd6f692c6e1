//! ICMP errors about flows to targets with an address.

use std::net::IpAddr;

use portredir_common::map::targets::Target;
use portredir_common::verdict::Reason;

use super::{TARGETS, TO_F, TWO_PORTS, from_own, to};
use crate::packet::builder::{Body, Packet};
use crate::packet::error::IcmpError;
use crate::packet::flows::Kind;
use crate::packet::icmp::errors;
use crate::packet::scenario::{GIVEN, Scenario};

/// The length of quotes: that of routers that quote little, and all.
const QUOTED: [usize; 2] = [8, usize::MAX];

pub fn scenarios(kind: Kind) -> Vec<Scenario> {
    let mut scenarios = vec![redirects(kind), foreign(kind), gone(kind)];
    for &(number, code) in errors(kind.is_ipv4) {
        for quoted in QUOTED {
            let error = Error {
                kind,
                number,
                code,
                quoted,
            };
            scenarios.extend([error.comes_in(), error.leaves()]);
        }
    }
    scenarios
}

#[derive(Clone, Copy)]
struct Error {
    kind: Kind,
    number: u8,
    code: u8,
    quoted: usize,
}

fn router(kind: Kind) -> IpAddr {
    if kind.is_ipv4 {
        IpAddr::from([203, 0, 113, 1])
    } else {
        IpAddr::from([0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1])
    }
}

/// Another address of this host.
fn second(kind: Kind) -> IpAddr {
    if kind.is_ipv4 {
        IpAddr::from([192, 0, 2, 2])
    } else {
        IpAddr::from(std::net::Ipv6Addr::LOCALHOST)
    }
}

/// A request and a reply, as the client and as the target knows them.
fn request(kind: Kind) -> [Packet; 2] {
    let request = kind.packet(80);
    [request.clone(), to(kind.f(), request)]
}

fn reply(kind: Kind) -> [Packet; 2] {
    let reply = kind.packet(8080).to(kind.f()).reply();
    [from_own(kind, 80, reply.clone()), reply]
}

impl Error {
    /// The first kind of error, with a whole packet in it.
    fn first(kind: Kind) -> Self {
        let (number, code) = errors(kind.is_ipv4)[0];
        Self {
            kind,
            number,
            code,
            quoted: usize::MAX,
        }
    }

    fn name(self, what: &str) -> String {
        let Self {
            kind,
            number,
            code,
            quoted,
        } = self;
        let quoted = if quoted == usize::MAX {
            "all".to_owned()
        } else {
            quoted.to_string()
        };
        let kind = kind.name;
        format!("forward icmp {kind}: {what} {number}/{code}, quoting {quoted}")
    }

    fn open(self, what: &str) -> Scenario {
        let kind = self.kind;
        Scenario::new(self.name(what), TARGETS, TO_F).opens(kind, 80, kind.f())
    }

    fn about(self, packet: &Packet) -> IcmpError {
        IcmpError::new(self.number, self.code, packet.clone()).quoted(self.quoted)
    }

    /// The error with a quote that has other ends: the checksum in the quote stays, which
    /// nobody verifies.
    fn with(self, error: &Packet, view: &Packet) -> Packet {
        let header = view.ip_header_len();
        let mut quote = view.ip_bytes();
        quote.truncate(header.saturating_add(self.quoted));
        quote[header + 4..].copy_from_slice(&error.payload[header + 4..]);
        error.clone().payload(&quote)
    }

    /// The error of a router on the client's side about a reply: it goes on to the target.
    fn comes_in(self) -> Scenario {
        let kind = self.kind;
        let [known, real] = reply(kind);
        let error = self.about(&known).router(router(kind)).packet();
        let out = self.with(&error, &real).to(kind.f());
        self.open("in")
            .arrives(error)
            .becomes(Reason::IcmpTranslated, out)
    }

    /// Errors about a request: of the target itself, of a router behind this host, and of
    /// this host, which has another address too. All have the address that the client knows.
    fn leaves(self) -> Scenario {
        let kind = self.kind;
        let [known, real] = request(kind);
        let own = known.dst;
        let is_refusal = match (kind.is_ipv4, self.number, self.code) {
            (true, 3, code) => code != 4,
            (false, 1, _) => true,
            _ => false,
        };
        let mut scenario = self.open("out");
        for from in [kind.f(), router(kind), own, second(kind)] {
            let error = self.about(&real).router(from).packet();
            let out = self.with(&error, &known).from(own, error.src_port);
            scenario = scenario.leaves(error).becomes(Reason::IcmpTranslated, out);
            if is_refusal {
                scenario = scenario.refuses();
            }
        }
        scenario.live(1)
    }
}

/// A redirect that quotes a packet.
fn redirect(kind: Kind, from: IpAddr, about: &Packet) -> Packet {
    let quote = about.ip_bytes();
    let (number, payload) = match (kind.f(), kind.g()) {
        (IpAddr::V6(f), IpAddr::V6(g)) => {
            let mut quote = quote;
            quote.resize(quote.len().next_multiple_of(8), 0);
            let units = u8::try_from(quote.len() / 8 + 1).expect("short");
            let option = [4, units, 0, 0, 0, 0, 0, 0];
            (
                137,
                [&g.octets()[..], &f.octets(), &option, &quote].concat(),
            )
        }
        _ => (5, quote),
    };
    let body = Body::Icmp {
        kind: number,
        code: 1,
        rest: [10, 0, 0, 6],
    };
    Packet::new(from, about.src, 0, body).payload(&payload)
}

/// Redirects would send a client to the target, or a target to the client, past this host.
fn redirects(kind: Kind) -> Scenario {
    let [_, to_target] = request(kind);
    let [to_client, _] = reply(kind);
    let name = format!("forward icmp {}: redirects", kind.name);
    Scenario::new(name, TARGETS, TO_F)
        .opens(kind, 80, kind.f())
        .leaves(redirect(kind, kind.packet(0).dst, &to_target))
        .unchanged(Reason::IcmpRedirect)
        .arrives(redirect(kind, router(kind), &to_client))
        .unchanged(Reason::IcmpRedirect)
        .live(1)
}

/// Errors about flows that are not there stay as they are.
fn foreign(kind: Kind) -> Scenario {
    let error = Error::first(kind);
    let [known, _] = reply(kind);
    let [_, real] = request(kind);
    let name = format!("forward icmp {}: no such flow", kind.name);
    Scenario::new(name, TARGETS, TO_F)
        .opens(kind, 80, kind.f())
        .arrives(error.about(&known.dst_port(41_001)).packet())
        .unchanged(Reason::IcmpForeign)
        .leaves(error.about(&real.src_port(41_001)).packet())
        .unchanged(Reason::IcmpForeign)
}

/// An error about a flow that had been given another client port, and whose target is dead:
/// no port is left that the error could be about.
fn gone(kind: Kind) -> Scenario {
    let error = Error::first(kind);
    let second = kind.first(81);
    let known = from_own(kind, 81, reply(kind)[1].clone());
    let name = format!("forward icmp {}: the flow is gone", kind.name);
    Scenario::new(name, TWO_PORTS, TO_F)
        .opens(kind, 80, kind.f())
        .arrives(second.clone())
        .redirected(to(kind.f(), second).src_port(GIVEN))
        .begins()
        .plan(TO_F.f_is(Target::DEAD | Target::CUT))
        .arrives(error.about(&known).packet())
        .unchanged(Reason::IcmpForeign)
}
