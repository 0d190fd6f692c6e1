//! ICMP: errors about flows, each way, and what is no error.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::case::{Case, tcp, udp};
use super::frame::{ACK, Ip, PSH, SYN, Sum, icmp, udp as datagram};
use super::ghost::{Connection, Ghost};
use super::observe::{Observation, check, failure};
use super::site::{Site, Subject};
use crate::lab::Family;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    tcp(44, "too_big", "fragmentation needed, or packet too big: a router has an MTU of 1300", too_big),
    tcp(45, "too_big_for_direct", "the same error about a connection to 8080 itself, beside one to 80", too_big_beside),
    tcp(46, "unreachable_for_syn_ack", "host unreachable, time exceeded, for our SYN-ACK; then the ACK", unreachable_for_syn_ack),
    udp(47, "port_unreachable", "a datagram to 81, where nothing listens on the target port: what the error quotes", port_unreachable),
    tcp(48, "short_quotes", "packet too big with a quote of 8 bytes of TCP; with IPv4 options in it", short_quotes),
    tcp(49, "direct_quote", "packet too big about a connection to 8080 itself", direct_quote),
    tcp(50, "echo_and_redirect", "echo request; redirect", echo_and_redirect),
    udp(121, "datagram_too_big", "packet too big about a reply to a datagram", datagram_too_big),
    tcp(122, "unknown_flow", "packet too big about a connection that does not exist", unknown_flow),
    tcp(123, "bad_icmp_checksum", "packet too big with a wrong checksum", bad_icmp_checksum),
    tcp(124, "later_fragment", "packet too big that quotes a fragment without ports", later_fragment).v4(),
    tcp(125, "soft_error", "host unreachable about an established connection", soft_error),
    udp(126, "client_is_gone", "port unreachable about a reply of a server whose socket is connected", client_is_gone),
    tcp(127, "expired_in_transit", "SYN to the far host's port 80 with TTL or hop limit 1", expired_in_transit),
    udp(128, "forwarded_error", "a datagram to the far host's port 8081: what its error quotes", forwarded_error),
];

/// The MTU towards an address that the host has learned.
fn learned(site: &Site, addr: IpAddr) -> String {
    let route = site
        .lab
        .host
        .run(&["ip", "route", "get", &addr.to_string()]);
    let mut words = route.split_whitespace();
    match words.find(|word| *word == "mtu").and_then(|_| words.next()) {
        Some(mtu) => format!("MTU {mtu} learned"),
        None => "nothing learned".to_owned(),
    }
}

/// Connects from an address of its own, has `error` made of the connection, and
/// looks at what the host learns.
fn learns(
    site: &Site,
    family: Family,
    (number, dst): (u8, u16),
    error: impl Fn(&Ghost, &Connection) -> Ip,
) -> Observation {
    let ghost = Ghost::at(site, family, number);
    let Some(mut connection) = ghost.connect(dst) else {
        return Observation::of("no connection");
    };
    let error = error(&ghost, &connection);
    ghost.send(&error);
    // Once this is echoed, the kernel has processed the error.
    let goes_on = connection.echoes(b"and it goes on");
    Observation::of(learned(site, ghost.addr)).and(check(goes_on, "the connection continues"))
}

fn too_big(site: &Site, family: Family) -> Observation {
    learns(site, family, (201, 80), |ghost, connection| {
        ghost.too_big(1300, &connection.quote(500))
    })
}

fn too_big_beside(site: &Site, family: Family) -> Observation {
    let direct = Ghost::at(site, family, 202);
    let Some(mut beside) = direct.connect(8080) else {
        return Observation::of("no connection");
    };
    let seen = learns(site, family, (203, 80), |ghost, connection| {
        ghost.too_big(1300, &connection.quote(500))
    });
    seen.and(check(
        beside.echoes(b"me too"),
        "the direct connection continues",
    ))
    .with("its address", &Observation::of(learned(site, direct.addr)))
}

fn unreachable_for_syn_ack(site: &Site, family: Family) -> Observation {
    let kinds = match family {
        Family::V4 => [("host unreachable", 3, 1), ("time exceeded", 11, 0)],
        Family::V6 => [("host unreachable", 1, 3), ("time exceeded", 3, 0)],
    };
    let mut all = Observation::default();
    for (name, kind, code) in kinds {
        let ghost = Ghost::new(site, family);
        ghost.send(&ghost.tcp(80, SYN));
        let Some(theirs) = ghost.wait_for(|arrival| match arrival.body {
            super::decode::Body::Tcp { seq, ports, .. } if ports.1 == ghost.port => Some(seq),
            _ => None,
        }) else {
            return all.with(name, &Observation::of("no SYN-ACK"));
        };
        let quote = connection_of(&ghost, theirs).quote_from(theirs, 40);
        ghost.send(&ghost.ip(icmp(family, (kind, code), [0; 4], &quote)));
        let mut ip = ghost.tcp(80, ACK);
        ip.segment = connection_of(&ghost, theirs.wrapping_add(1)).segment(ACK, b"");
        ip.sum = Sum::Right;
        let seen = ghost.ask(&ip);
        all = all.with(name, &seen);
    }
    all
}

fn connection_of<'a>(ghost: &'a Ghost<'a>, ack: u32) -> Connection<'a> {
    Connection::unborn(ghost, 80, 0x1000_0001, ack)
}

fn port_unreachable(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    ghost.ask(&ghost.udp(81, b"anybody there?"))
}

fn short_quotes(site: &Site, family: Family) -> Observation {
    let short = learns(site, family, (204, 80), |ghost, connection| {
        ghost.too_big(1300, &connection.quote(8))
    });
    let mut all = Observation::default().with("8 bytes", &short);
    if family == Family::V4 {
        let options = learns(site, family, (205, 80), |ghost, connection| {
            let quote = connection.quote(100);
            // No operation, four times.
            let mut longer = [&quote[..20], &[1; 4], &quote[20..]].concat();
            longer[0] = 0x46;
            ghost.too_big(1300, &longer)
        });
        all = all.with("options", &options);
    }
    all
}

fn direct_quote(site: &Site, family: Family) -> Observation {
    learns(site, family, (206, 8080), |ghost, connection| {
        ghost.too_big(1300, &connection.quote(500))
    })
}

fn echo_and_redirect(site: &Site, family: Family) -> Observation {
    let is_v4 = family == Family::V4;
    let ghost = Ghost::new(site, family);
    let (request, redirect) = if is_v4 { (8, 5) } else { (128, 137) };
    let echo = ghost.ask(&ghost.ip(icmp(family, (request, 0), [0, 80, 0, 1], b"hello")));
    let quote = connection_of(&ghost, 1).quote(100);
    let redirect = ghost.ask(&ghost.ip(icmp(family, (redirect, 1), [10, 9, 1, 9], &quote)));
    Observation::default()
        .with("echo", &echo)
        .with("redirect", &redirect)
}

fn datagram_too_big(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::at(site, family, 207);
    let first = ghost.ask(&ghost.udp(80, b"hello"));
    let reply = Ip::new(
        ghost.host(),
        ghost.addr,
        datagram(80, ghost.port, &[0; 1300]),
    );
    let quote = &reply.whole()[..reply.header_len() + 100];
    ghost.send(&ghost.too_big(1300, quote));
    ghost.answers();
    first.and(learned(site, ghost.addr))
}

fn unknown_flow(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::at(site, family, 208);
    let quote = connection_of(&ghost, 1).quote(500);
    ghost.send(&ghost.too_big(1300, &quote));
    ghost.answers();
    Observation::of(learned(site, ghost.addr))
}

fn bad_icmp_checksum(site: &Site, family: Family) -> Observation {
    learns(site, family, (209, 80), |ghost, connection| {
        let mut ip = ghost.too_big(1300, &connection.quote(500));
        ip.sum = Sum::Wrong;
        ip
    })
}

fn later_fragment(site: &Site, family: Family) -> Observation {
    learns(site, family, (211, 80), |ghost, connection| {
        let mut quote = connection.quote(500);
        quote[7] = 10;
        ghost.too_big(1300, &quote)
    })
}

fn soft_error(site: &Site, family: Family) -> Observation {
    let is_v4 = family == Family::V4;
    let (kind, code) = if is_v4 { (3, 1) } else { (1, 3) };
    learns(site, family, (212, 80), |ghost, connection| {
        ghost.ip(icmp(family, (kind, code), [0; 4], &connection.quote(100)))
    })
}

fn client_is_gone(site: &Site, family: Family) -> Observation {
    // A connected server sends from this address alone, so it has to be the
    // client's destination. REDIRECT may replace that address.
    let addr = match (site.subject, family) {
        (Subject::Nft, Family::V6) => family.addr(1, 11),
        _ => family.addr(1, 1),
    };
    let server = site.lab.host.bind(SocketAddr::new(addr, 8097));
    server
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    let ghost = Ghost::new(site, family);
    ghost.send(&ghost.udp(97, b"hello"));
    let mut buffer = [0; 100];
    let peer = match server.recv_from(&mut buffer) {
        Ok((_, peer)) => peer,
        Err(error) => return Observation::of(failure(&error)),
    };
    server.connect(peer).expect("connect");
    server.send(b"who is there?").expect("send");
    let seen = ghost.seen();
    let reply = Ip::new(
        ghost.host(),
        ghost.addr,
        datagram(97, ghost.port, b"who is there?"),
    );
    let (kind, code) = match family {
        Family::V4 => (3, 3),
        Family::V6 => (1, 4),
    };
    ghost.send(&ghost.ip(icmp(family, (kind, code), [0; 4], &reply.whole())));
    let told = match server.recv(&mut buffer) {
        Ok(_) => "not notified".to_owned(),
        Err(error) => failure(&error).to_owned(),
    };
    seen.with("the server's socket", &Observation::of(told))
}

fn expired_in_transit(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN | PSH);
    ip.dst = family.addr(2, 2);
    ip.sum = Sum::Right;
    ip.ttl = 1;
    ghost.ask(&ip)
}

fn forwarded_error(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.udp(8081, b"anybody there?");
    ip.dst = family.addr(2, 2);
    ip.sum = Sum::Right;
    ghost.send(&ip);
    // The error comes from another host, so the sentinel does not wait for it.
    let far = ip.dst;
    let answer = ghost.wait_for(|arrival| (arrival.src == far).then(|| arrival.clone()));
    ghost.describe(&answer.into_iter().collect::<Vec<_>>())
}
