//! Headers as they arrive at the target and at the client, and whole connections.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::case::{Case, shared};
use super::probe::Probe;
use super::rules::any_port;
use super::site::Site;
use super::subject::Place;
use super::talk::{talk, talk_both, told};
use crate::conformance::client::Conversation;
use crate::conformance::frame::{ACK, CWR, ECE, FIN, PSH, RST, SYN, Sum, options_header};
use crate::conformance::observe::{Observation, failure};
use crate::conformance::site::Offload;
use crate::conformance::tcp::{echo_all, noise};
use crate::lab::Family;
use crate::lab::process::wait_for;
use crate::peer::conn::Proto;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    shared(1, "server_sees", "TCP and UDP to 80: whom the server sees", server_sees),
    shared(2, "header", "SYN and datagram with TTL 64, DF, TOS 0xb8", header),
    shared(3, "second_address", "the host's second address: a rule for the first one, and a rule for all", second_address),
    shared(4, "no_listener", "to 82, where nothing listens on the target port", no_listener),
    shared(5, "stray", "segments of no connection: ACK, RST, SYN-ACK, FIN-PSH-URG", stray),
    shared(6, "half_close", "the client closes its direction, the server continues; then the same client port again, three times", half_close),
    shared(7, "bulk", "megabytes up and down at the same time", bulk),
    shared(8, "udp_checksums", "a datagram without a checksum; one with a wrong one", udp_checksums),
    shared(9, "options", "SYN and datagram with IP options: record route; hop-by-hop and destination options", options),
    shared(10, "ecn", "SYN that asks for ECN", ecn),
    shared(46, "ranges", "a range of ports to a range of target ports", ranges),
];

fn server_sees(site: &Site, family: Family) -> Observation {
    talk_both(site, &site.lab.client, site.own(family, 80))
}

fn header(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for name in ["TCP", "UDP"] {
        let probe = Probe::new(site, family);
        let mut ip = match name {
            "TCP" => probe.packet(probe.tcp(80, SYN)),
            _ => probe.packet(probe.udp(80, b"abc")),
        };
        ip.tos = 0xb8;
        // DF is not among what `frame` makes, so it is set by hand.
        all = all.with(name, &ask_unfragmentable(&probe, &mut ip));
    }
    all
}

/// Sends with DF, which only IPv4 has; the checksum is complete then.
fn ask_unfragmentable(probe: &Probe<'_>, ip: &mut crate::conformance::frame::Ip) -> Observation {
    ip.sum = Sum::Right;
    probe.send_packet(&unfragmentable(ip.whole()));
    probe.seen(&[Place::F])
}

/// Sets DF in a packet of IPv4.
pub fn unfragmentable(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[6] |= 0x40;
        let len = usize::from(packet[0] & 0x0f) * 4;
        packet[10..12].copy_from_slice(&[0; 2]);
        let sum =
            !crate::conformance::frame::fold(crate::conformance::frame::words(&packet[..len]));
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn second_address(site: &Site, family: Family) -> Observation {
    let second = family.addr(1, 11);
    let mut all = Observation::default();
    let client = &site.lab.client;
    for (name, port) in [
        ("rule for the first", 80),
        ("rule for all", any_port(family)),
    ] {
        let seen = talk_both(site, client, SocketAddr::new(second, port));
        all = all.with(name, &seen);
    }
    let probe = Probe::new(site, family);
    let ip = probe.packet_to(second, probe.tcp(any_port(family), SYN));
    all.with("SYN", &probe.ask(&ip, &[Place::F]))
}

fn no_listener(site: &Site, family: Family) -> Observation {
    let tcp = Probe::new(site, family);
    let tcp = tcp.ask(&tcp.packet(tcp.tcp(82, SYN)), &[Place::F]);
    let udp = Probe::new(site, family);
    let udp = udp.ask(&udp.packet(udp.udp(82, b"anybody there?")), &[Place::F]);
    let sockets = talk_both(site, &site.lab.client, site.own(family, 82));
    Observation::default()
        .with("TCP", &tcp)
        .with("UDP", &udp)
        .with("sockets", &sockets)
}

fn stray(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for (name, flags) in [
        ("ACK", ACK),
        ("RST", RST),
        ("SYN-ACK", SYN | ACK),
        ("FIN-PSH-URG", FIN | PSH | crate::conformance::frame::URG),
    ] {
        let probe = Probe::new(site, family);
        let seen = probe.ask(&probe.packet(probe.tcp(80, flags)), &[Place::F]);
        all = all.with(name, &seen);
    }
    all
}

fn half_close(site: &Site, family: Family) -> Observation {
    let (client, to) = (&site.lab.client, site.own(family, 80));
    let port = site.port();
    let mut all = match Conversation::begin(client, Proto::Tcp, port, to) {
        Ok(conversation) => {
            let echo = echo_all(&conversation, b"the last words", Duration::ZERO);
            Observation::of(echo)
        }
        Err(error) => Observation::of(failure(&error)),
    };
    // The server is in TIME_WAIT or the client is, as it closed first.
    for name in ["again", "and again", "once more"] {
        // A process that another test begins has a copy of all sockets until it is a program,
        // so the port may be in use for a moment longer.
        let begun = wait_for("the client port", || {
            match Conversation::begin(client, Proto::Tcp, port, to) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
                begun => Some(begun),
            }
        });
        let seen = match begun {
            Ok(mut conversation) => {
                let seen = told(site, &mut conversation);
                conversation.conn.reset();
                seen
            }
            Err(error) => Observation::of(failure(&error)),
        };
        all = all.with(name, &seen);
    }
    all
}

fn bulk(site: &Site, family: Family) -> Observation {
    let len = match site.variant.offload {
        Offload::On => 8_000_000,
        Offload::Off => 2_000_000,
    };
    let to = site.own(family, 80);
    match Conversation::begin(&site.lab.client, Proto::Tcp, 0, to) {
        Ok(conversation) => Observation::of(echo_all(&conversation, &noise(len), Duration::ZERO)),
        Err(error) => Observation::of(failure(&error)),
    }
}

fn udp_checksums(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for (name, sum) in [("none", Sum::Is(0)), ("wrong", Sum::Wrong)] {
        let probe = Probe::new(site, family);
        let mut ip = probe.packet(probe.udp(80, b"abc"));
        ip.sum = sum;
        all = all.with(name, &probe.ask(&ip, &[Place::F]));
    }
    all
}

fn options(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for name in ["TCP", "UDP"] {
        let probe = Probe::new(site, family);
        let mut ip = match name {
            "TCP" => probe.packet(probe.tcp(80, SYN)),
            _ => probe.packet(probe.udp(80, b"abc")),
        };
        match family {
            // Record route, with room for three addresses.
            Family::V4 => ip.options = [&[7, 15, 4][..], &[0; 12], &[0]].concat(),
            Family::V6 => {
                ip.extensions = vec![(0, options_header(1)), (60, options_header(2))];
            }
        }
        all = all.with(name, &probe.ask(&ip, &[Place::F]));
    }
    all
}

fn ecn(site: &Site, family: Family) -> Observation {
    let probe = Probe::new(site, family);
    probe.ask(&probe.packet(probe.tcp(80, SYN | ECE | CWR)), &[Place::F])
}

fn ranges(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for port in [8000, 8001, 8005] {
        let to = site.own(family, port);
        for proto in [Proto::Tcp, Proto::Udp] {
            let name = format!("{port} by {}", super::talk::name(proto));
            all = all.with(&name, &talk(site, &site.lab.client, proto, to));
        }
    }
    all
}
