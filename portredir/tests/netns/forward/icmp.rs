//! ICMP errors about forwarded flows, each way, and what is no error.

use std::net::IpAddr;

use super::case::{Case, shared};
use super::header::unfragmentable;
use super::packet::{Kind, SEQ};
use super::probe::Probe;
use super::site::{GHOST, NARROW, ROUTER, Site, network};
use super::subject::Place;
use super::talk::talk;
use crate::conformance::client::Conversation;
use crate::conformance::frame::{ACK, SYN, Sum, Tcp, icmp};
use crate::conformance::observe::{Observation, failure};
use crate::conformance::tcp::{echo_all, noise};
use crate::lab::Family;
use crate::peer::conn::Proto;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    shared(11, "ttl_1", "SYN and datagram with TTL or hop limit 1", |site, family| ttl(site, family, 1)),
    shared(12, "ttl_2", "SYN and datagram with TTL or hop limit 2", |site, family| ttl(site, family, 2)),
    shared(13, "target_is_down", "SYN to 83, whose target's host is not there", target_is_down),
    shared(14, "no_route", "SYN to 85, to whose target the host has no route", no_route),
    shared(15, "narrow_interface", "a datagram of 1428 bytes with DF; the host's interface to F has an MTU of 1300", narrow_interface),
    shared(16, "narrow_router", "a datagram of 1428 bytes with DF to 84: the router behind the host has an MTU of 1300", narrow_router),
    shared(17, "bulk_by_narrow_router", "300 KB to 84 and back, without TCP's own probing of the MTU", bulk_by_narrow_router),
    shared(18, "too_big_for_reply", "packet too big from a router on the client's side, about a SYN-ACK", too_big_for_reply),
    shared(19, "other_errors_for_reply", "host unreachable, the same way; for an unknown flow; redirect", other_errors_for_reply),
    shared(21, "echo", "echo request to the host's address", echo),
];

fn both(
    site: &Site,
    family: Family,
    ask: impl Fn(&Probe<'_>, crate::conformance::frame::Segment) -> Observation,
) -> Observation {
    let tcp = Probe::new(site, family);
    let tcp = ask(&tcp, tcp.tcp(80, SYN));
    let udp = Probe::new(site, family);
    let udp = ask(&udp, udp.udp(80, b"abc"));
    Observation::default().with("TCP", &tcp).with("UDP", &udp)
}

fn ttl(site: &Site, family: Family, ttl: u8) -> Observation {
    both(site, family, |probe, segment| {
        let mut ip = probe.packet(segment);
        ip.ttl = ttl;
        probe.ask(&ip, &[Place::F])
    })
}

fn target_is_down(site: &Site, family: Family) -> Observation {
    let probe = Probe::new(site, family);
    probe.send(&probe.packet(probe.tcp(83, SYN)));
    let error = probe.wait_for(|sight| sight.kind == Kind::Other);
    let error = error.map_or("nothing".to_owned(), |sight| sight.words);
    let socket = talk(site, &site.lab.client, Proto::Tcp, site.own(family, 83));
    Observation::of(error).with("socket", &socket)
}

fn no_route(site: &Site, family: Family) -> Observation {
    let (host, net, router) = (&site.lab.host, network(family, 5), family.addr(3, 2));
    host.ip(&format!("route del {net} via {router}"));
    let probe = Probe::new(site, family);
    let seen = probe.ask(&probe.packet(probe.tcp(85, SYN)), &[]);
    host.ip(&format!("route add {net} via {router}"));
    seen
}

/// Asks with a datagram of 1428 bytes, and DF.
fn ask_big(probe: &Probe<'_>, dst: u16, target: Place) -> Observation {
    let mut ip = probe.packet(probe.udp(dst, &[b'q'; 1400]));
    ip.sum = Sum::Right;
    probe.send_packet(&unfragmentable(ip.whole()));
    probe.seen(&[target])
}

fn narrow_interface(site: &Site, family: Family) -> Observation {
    let set = |mtu| {
        let name = site.inside();
        site.lab.host.ip(&format!("link set {name} mtu {mtu}"));
    };
    set(1300);
    let seen = ask_big(&Probe::new(site, family), 80, Place::F);
    set(1500);
    seen
}

fn narrow_router(site: &Site, family: Family) -> Observation {
    ask_big(&Probe::new(site, family), 84, Place::Z)
}

fn bulk_by_narrow_router(site: &Site, family: Family) -> Observation {
    let client = &site.lab.client;
    let to = site.own(family, 84);
    let seen = match Conversation::begin(client, Proto::Tcp, 0, to) {
        Ok(conversation) => Observation::of(echo_all(
            &conversation,
            &noise(300_000),
            std::time::Duration::ZERO,
        )),
        Err(error) => Observation::of(failure(&error)),
    };
    let route = client.run(&["ip", "route", "get", &to.ip().to_string()]);
    let mut words = route.split_whitespace();
    let mtu = words.find(|word| *word == "mtu").and_then(|_| words.next());
    let learned = match mtu {
        Some(mtu) => format!("the client learned an MTU of {mtu}"),
        None => "the client learned no MTU".to_owned(),
    };
    for version in ["-4", "-6"] {
        client.run(&["ip", version, "route", "flush", "cache"]);
    }
    assert_eq!(NARROW, 1300, "what the document says");
    seen.and(learned)
}

/// The quote of the server's SYN-ACK, as a router on the client's side saw it, once that
/// has arrived.
fn syn_ack(probe: &Probe<'_>) -> Option<Vec<u8>> {
    probe.send(&probe.packet(probe.tcp(80, SYN)));
    let sight = probe.wait_for(|sight| matches!(sight.kind, Kind::SynAck { .. }))?;
    let Kind::SynAck { seq, .. } = sight.kind else {
        return None;
    };
    Some(quote_of_syn_ack(probe, seq))
}

fn quote_of_syn_ack(probe: &Probe<'_>, seq: u32) -> Vec<u8> {
    let segment = Tcp {
        ports: (80, probe.port),
        seq,
        ack: SEQ + 1,
        flags: SYN | ACK,
        options: &[],
        payload: &[],
    };
    probe.reply_to_quote(segment.segment())
}

fn too_big_for_reply(site: &Site, family: Family) -> Observation {
    let probe = Probe::new(site, family);
    let Some(quote) = syn_ack(&probe) else {
        return Observation::of("no SYN-ACK");
    };
    let kind = match family {
        Family::V4 => (3, 4),
        Family::V6 => (2, 0),
    };
    // 1280, the least MTU of IPv6.
    let seen = probe.ask(&probe.error(kind, [0, 0, 5, 0], &quote), &[Place::F]);
    end(&probe);
    seen
}

fn other_errors_for_reply(site: &Site, family: Family) -> Observation {
    let [unreachable, redirect] = match family {
        Family::V4 => [(3, 1), (5, 1)],
        Family::V6 => [(1, 3), (137, 0)],
    };
    let mut all = Observation::default();
    for (name, kind, is_known) in [
        ("host unreachable", unreachable, true),
        ("unknown flow", unreachable, false),
        ("redirect", redirect, true),
    ] {
        let probe = Probe::new(site, family);
        let quote = match is_known {
            true => syn_ack(&probe),
            false => Some(quote_of_syn_ack(&probe, 0x3000_0000)),
        };
        let Some(quote) = quote else {
            return all.with(name, &Observation::of("no SYN-ACK"));
        };
        let quote = match (name, family) {
            ("redirect", Family::V6) => redirected(&quote),
            _ => quote,
        };
        let seen = probe.ask(&probe.error(kind, [0; 4], &quote), &[Place::F]);
        all = all.with(name, &seen);
        end(&probe);
    }
    all
}

/// The body of a redirect of IPv6: the better router, the destination, and an option with
/// the quote (RFC 4861, 4.5 and 4.6.3).
fn redirected(quote: &[u8]) -> Vec<u8> {
    let [router, client] = [ROUTER, GHOST].map(|number| match Family::V6.addr(1, number) {
        IpAddr::V6(addr) => addr.octets(),
        IpAddr::V4(_) => unreachable!("an address of IPv6"),
    });
    let len = (8 + quote.len()).next_multiple_of(8);
    let mut option = vec![
        4,
        u8::try_from(len / 8).expect("a short quote"),
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    option.extend(quote);
    option.resize(len, 0);
    [&router[..], &client, &option].concat()
}

/// Resets the connection that [`syn_ack`] began.
fn end(probe: &Probe<'_>) {
    let reset = Tcp {
        ports: (probe.port, 80),
        seq: SEQ + 1,
        ack: 0,
        flags: crate::conformance::frame::RST,
        options: &[],
        payload: &[],
    };
    probe.send(&probe.packet(reset.segment()));
}

fn echo(site: &Site, family: Family) -> Observation {
    let probe = Probe::new(site, family);
    let kind = match family {
        Family::V4 => (8, 0),
        Family::V6 => (128, 0),
    };
    let [a, b] = probe.port.to_be_bytes();
    let request = icmp(family, kind, [a, b, 0, 1], b"hello");
    probe.ask(&probe.packet(request), &[Place::F])
}
