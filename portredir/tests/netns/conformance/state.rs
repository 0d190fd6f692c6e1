//! Flows: two that look alike, their end, and what comes after it.

use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use super::case::{Case, own, tcp, udp};
use super::client::{Conversation, converse};
use super::decode::Body;
use super::frame::{ACK, FIN, RST, SYN, Tcp};
use super::ghost::{Connection, Ghost};
use super::observe::{Observation, check, failure};
use super::server::{Manner, Server};
use super::site::{GHOSTS, OUT, Offload, STRAY, Site, Subject};
use crate::lab::Family;
use crate::path::replies::sent;
use crate::peer::conn::{Conn, Proto};

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    tcp(51, "one_port_redirected_first", "one client port to 80, then to 8080", |site, family| twice(site, family, Proto::Tcp, (80, 8080))),
    tcp(52, "one_port_direct_first", "one client port to 8080, then to 80", |site, family| twice(site, family, Proto::Tcp, (8080, 80))),
    own(53, "evicted", "a server sends again, after thousands of other connections with the smallest tables", evicted).demands("received"),
    own(54, "syn_flood", "20 000 spoofed SYNs with the smallest tables, while 100 connections are idle; then the server sends", syn_flood),
    tcp(55, "late_fin", "the server closes the connection; the client's FIN comes twice", late_fin),
    tcp(56, "port_again", "the same client port while the server is in TIME_WAIT", port_again),
    tcp(57, "blind_rst", "RST with a sequence number out of the window", blind_rst),
    own(58, "older_connection", "a connection to a server on 80, older than the redirect", older_connection),
    own(59, "end_with_connections", "the redirect ends while a connection is open", end_with_connections),
    own(60, "upgrade", "`portredir up` again, while a connection is open", upgrade).demands("before: 8080 reached; the connection continues; new: 8080 reached"),
    tcp(61, "syn_cookies", "SYN cookies for every connection", syn_cookies),
    tcp(62, "asymmetric", "SYN that comes in on one interface, with the reply leaving by the other", asymmetric),
    udp(129, "datagrams_one_port", "one client port to 80, then to 8080, by UDP", |site, family| twice(site, family, Proto::Udp, (80, 8080))),
    udp(130, "datagrams_one_port_direct_first", "one client port to 8080, then to 80, by UDP", |site, family| twice(site, family, Proto::Udp, (8080, 80))),
    tcp(131, "one_port_one_target", "one client port to 86 and to 87, which have one target port", |site, family| twice(site, family, Proto::Tcp, (86, 87))),
    udp(132, "datagrams_one_target", "one client port to 86 and to 87, by UDP", |site, family| twice(site, family, Proto::Udp, (86, 87))),
    tcp(133, "right_rst", "RST in the window, then data", right_rst),
    tcp(134, "after_the_end", "data after the connection has ended", after_the_end),
    udp(135, "asymmetric_datagram", "a datagram that comes in on one interface, with the reply leaving by the other", asymmetric_datagram),
    tcp(136, "forged_segment", "a forged segment to 80 with the addresses of a connection to 8080", forged_segment),
    tcp(171, "unselected_interface", "a connection whose replies leave by interface 3, which `--iface` does not name", |site, family| unselected_interface(site, family, Proto::Tcp)),
    udp(172, "unselected_interface_datagram", "the same for datagrams", |site, family| unselected_interface(site, family, Proto::Udp)),
];

/// Two conversations at once from one port of the client.
fn twice(site: &Site, family: Family, proto: Proto, (first, second): (u16, u16)) -> Observation {
    let port = site.port();
    let begin = |to| Conversation::begin(&site.lab.client, proto, port, family.host(to));
    let mut all = Observation::default();
    let mut meetings = Vec::new();
    for to in [first, second] {
        match begin(to) {
            Ok(mut conversation) => {
                all = all.with(&to.to_string(), &conversation.facts());
                meetings.push(conversation);
            }
            Err(error) => all = all.with(&to.to_string(), &Observation::of(failure(&error))),
        }
    }
    let is_alive =
        |conversation: &mut Conversation| conversation.echoes(b"still there?").unwrap_or(false);
    let count = meetings.iter_mut().map(is_alive).filter(|is| *is).count();
    for conversation in meetings {
        if proto == Proto::Tcp {
            // Without the reset the next conversation from this port would have to wait.
            conversation.conn.reset();
        }
    }
    all.and(format!("{count} continue"))
}

/// Hosts whose redirector has the smallest tables.
fn small(subject: Subject) -> Site {
    let mut site = Site::idle(subject, Offload::Off);
    site.start_with(&["--max-tcp-flows", "1024", "--max-udp-flows", "1024"]);
    site
}

/// A server that does not speak until it is told to.
fn quiet(site: &Site) -> TcpListener {
    let any = (Ipv6Addr::UNSPECIFIED, 8095);
    site.lab.host.listen(any)
}

/// Connects to a quiet server: both ends.
fn pair(site: &Site, listener: &TcpListener, family: Family) -> TcpPair {
    let conn = Conn::to(&site.lab.client, Proto::Tcp, 0, family.host(95));
    let (stream, _) = listener.accept().expect("accept");
    (conn, stream)
}

fn evicted(subject: Subject) -> Observation {
    let mut site = small(subject);
    let listener = quiet(&site);
    let mut pairs = Family::BOTH.map(|family| pair(&site, &listener, family));
    let spoken = pairs.iter_mut().all(|pair| is_heard(pair, b"welcome"));
    assert!(spoken, "a connection");
    for _ in 0..2500 {
        let conn = Conn::to(&site.lab.client, Proto::Tcp, 0, Family::V4.host(80));
        conn.reset();
    }
    let is_heard = pairs.iter_mut().all(|pair| is_heard(pair, b"surprise"));
    site.finish();
    Observation::of(if is_heard { "received" } else { "reset" })
}

/// The client's end of a connection, and the server's.
type TcpPair = (Conn, TcpStream);

/// Whether the client hears what the server says.
fn is_heard((conn, stream): &mut TcpPair, message: &[u8]) -> bool {
    stream.write_all(message).is_ok()
        && conn
            .receive(message.len())
            .is_ok_and(|heard| heard == message)
}

fn syn_flood(subject: Subject) -> Observation {
    let mut site = small(subject);
    let listener = quiet(&site);
    let mut pairs: Vec<_> = (0..100)
        .map(|i| pair(&site, &listener, Family::BOTH[i % 2]))
        .collect();
    for number in GHOSTS.filter(|number| *number != STRAY).take(20) {
        for family in Family::BOTH {
            let mut ghost = Ghost::at(&site, family, number);
            for port in 1024..1524 {
                ghost.move_to(port);
                ghost.send(&ghost.tcp(80, SYN));
            }
        }
    }
    let is_heard = |pair: &mut TcpPair| is_heard(pair, b"surprise");
    let count = pairs.iter_mut().map(is_heard).filter(|is| *is).count();
    let seen = Observation::of(format!("{count} of 100 receive it"));
    let new = converse(&site.lab.client, Proto::Tcp, Family::V4.host(80));
    site.finish();
    seen.with("new", &new)
}

/// Has the server hang up, and says so too.
fn part<'a>(ghost: &'a Ghost<'a>) -> Option<Connection<'a>> {
    let mut connection = ghost.connect(94)?;
    // It is sent until it is acknowledged.
    let next = ghost.wait_for(|arrival| match &arrival.body {
        Body::Tcp {
            ports,
            seq,
            flags,
            payload,
            ..
        } if *ports == (94, ghost.port) && flags & FIN != 0 => {
            Some(seq.wrapping_add(u32::try_from(payload.len()).expect("short") + 1))
        }
        _ => None,
    })?;
    connection.ack = next;
    connection.send(FIN | ACK, b"");
    ghost.answers();
    Some(connection)
}

fn late_fin(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let Some(mut connection) = part(&ghost) else {
        return Observation::of("no end");
    };
    connection.seq -= 1;
    connection.send(FIN | ACK, b"");
    ghost.seen()
}

fn port_again(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let Some(connection) = part(&ghost) else {
        return Observation::of("no end");
    };
    let syn = Tcp {
        ports: (ghost.port, 94),
        seq: connection.seq.wrapping_add(1_000_000),
        ack: 0,
        flags: SYN,
        options: &[],
        payload: &[],
    };
    ghost.ask(&ghost.ip(syn.segment()))
}

fn blind_rst(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let Some(mut connection) = ghost.connect(80) else {
        return Observation::of("no connection");
    };
    let seq = connection.seq;
    connection.seq = seq.wrapping_add(0x4000_0000);
    let reset = connection.segment(RST, b"");
    connection.seq = seq;
    let seen = ghost.ask(&ghost.ip(reset));
    seen.and(check(
        connection.echoes(b"still there?"),
        "the connection continues",
    ))
}

fn older_connection(subject: Subject) -> Observation {
    let mut site = Site::idle(subject, Offload::Off);
    let _old = Server::start(&site.lab.host, "80", 80, Manner::Echo);
    let mut all = Observation::default();
    let mut meetings = Vec::new();
    for family in Family::BOTH {
        let begun = Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(80));
        meetings.push(begun.expect("the server"));
    }
    site.start();
    for conversation in &mut meetings {
        all = all.and(match conversation.echoes(b"after") {
            Ok(is_same) => check(is_same, "the connection continues"),
            Err(error) => failure(&error).to_owned(),
        });
    }
    for family in Family::BOTH {
        let new = converse(&site.lab.client, Proto::Tcp, family.host(80));
        all = all.with("new", &new);
    }
    drop(meetings);
    site.finish();
    all
}

fn end_with_connections(subject: Subject) -> Observation {
    let mut site = Site::idle(subject, Offload::Off);
    site.start_with(&["--drain-timeout", "10"]);
    let mut meetings = Vec::new();
    for family in Family::BOTH {
        let begun = Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(80));
        meetings.push(begun.expect("the server"));
    }
    site.begin_to_end();
    let mut all = Observation::default();
    for conversation in &mut meetings {
        all = all.and(match conversation.echoes(b"after") {
            Ok(is_same) => check(is_same, "the connection continues"),
            Err(error) => failure(&error).to_owned(),
        });
    }
    let new = converse(&site.lab.client, Proto::Tcp, Family::V4.host(80));
    drop(meetings);
    site.finish();
    all.with("new", &new)
}

fn upgrade(subject: Subject) -> Observation {
    let site = Site::idle(subject, Offload::Off);
    let Subject::Engine(engine) = subject else {
        unreachable!("nft is not asked")
    };
    let args = ["up", "--iface", "all", "--engine", engine, "80:8080"];
    let mut up = site.command(&args);
    assert!(up.wait().success(), "{}", up.err());
    let _down = site.down_later();
    let mut conversation =
        match Conversation::begin(&site.lab.client, Proto::Tcp, 0, Family::V4.host(80)) {
            Ok(conversation) => conversation,
            Err(error) => return Observation::of(failure(&error)),
        };
    let before = conversation.facts();
    let mut again = site.command(&args);
    assert!(again.wait().success(), "{}", again.err());
    let goes_on = conversation.echoes(b"after").unwrap_or(false);
    let new = converse(&site.lab.client, Proto::Tcp, Family::V4.host(80));
    Observation::default()
        .with("before", &before)
        .and(check(goes_on, "the connection continues"))
        .with("new", &new)
}

fn syn_cookies(site: &Site, family: Family) -> Observation {
    let _tuned = site.tune("ipv4/tcp_syncookies", "2");
    let ghost = Ghost::new(site, family);
    let by_hand = ghost.connect(80).is_some();
    (0..3)
        .map(|_| converse(&site.lab.client, Proto::Tcp, family.host(80)).to_string())
        .chain([check(by_hand, "raw packets too")])
        .collect()
}

fn asymmetric(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::stray(site, family);
    ghost.ask(&ghost.tcp(80, SYN))
}

fn asymmetric_datagram(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::stray(site, family);
    ghost.ask(&ghost.udp(80, b"hello"))
}

fn unselected_interface(site: &Site, family: Family, proto: Proto) -> Observation {
    let before = sent(&site.lab, OUT);
    let to = SocketAddr::new(family.addr(5, 1), 80);
    let seen = converse(&site.lab.client, proto, to);
    // A greeting and an echo at least.
    let has_left = sent(&site.lab, OUT) >= before + 2;
    seen.and(check(has_left, "by interface 3"))
}

fn right_rst(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let Some(mut connection) = ghost.connect(80) else {
        return Observation::of("no connection");
    };
    connection.send(RST, b"");
    let silence = ghost.seen();
    connection.send(ACK, b"too late");
    Observation::default()
        .with("RST", &silence)
        .with("data", &ghost.seen())
}

fn after_the_end(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let Some(mut connection) = ghost.connect(80) else {
        return Observation::of("no connection");
    };
    connection.send(FIN | ACK, b"");
    let Some(next) = ghost.wait_for(|arrival| match arrival.body {
        Body::Tcp {
            ports, seq, flags, ..
        } if ports == (80, ghost.port) && flags & FIN != 0 => Some(seq.wrapping_add(1)),
        _ => None,
    }) else {
        return Observation::of("no end");
    };
    connection.ack = next;
    connection.send(ACK, b"");
    ghost.answers();
    // The server's end is closed: nothing is left of it.
    connection.send(ACK, b"too late");
    ghost.seen()
}

fn forged_segment(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let Some(mut connection) = ghost.connect(8080) else {
        return Observation::of("no connection");
    };
    let forged = ghost.ask(&ghost.tcp(80, ACK));
    let goes_on = check(
        connection.echoes(b"still there?"),
        "the direct connection continues",
    );
    Observation::default().with("forged", &forged).and(goes_on)
}
