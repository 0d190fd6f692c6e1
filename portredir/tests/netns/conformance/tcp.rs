//! TCP: from a SYN to the end of a connection.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send};

use super::case::{Case, tcp};
use super::client::{Conversation, converse};
use super::decode::Body;
use super::frame::{ACK, CWR, ECE, FIN, PSH, RST, SYN, Tcp, URG};
use super::ghost::Ghost;
use super::observe::{Observation, check, failure};
use super::site::{Offload, Site};
use crate::lab::Family;
use crate::peer::conn::{Conn, Proto};

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    tcp(1, "syn", "SYN to 80", |site, family| flags(site, family, SYN)),
    tcp(2, "connection", "a whole connection to 80, and the addresses and ports that the server sees", connection),
    tcp(3, "other_addresses", "the host's second address, and that of its other interface", other_addresses),
    tcp(4, "direct", "8080 itself, while 80 is redirected to it", direct),
    tcp(5, "bulk", "megabytes up and down at the same time", bulk),
    tcp(6, "stray_ack", "ACK to 80 without a connection", |site, family| flags(site, family, ACK)),
    tcp(7, "stray_rst", "RST to 80 without a connection", |site, family| flags(site, family, RST)),
    tcp(8, "xmas_and_null", "FIN, PSH and URG to 80; no flags at all", xmas_and_null),
    tcp(9, "ecn", "SYN that asks for ECN", |site, family| flags(site, family, SYN | ECE | CWR)),
    tcp(10, "ttl_1", "SYN with TTL or hop limit 1", ttl_1),
    tcp(11, "from_rule_ports", "SYN to 80 from the client's port 80, and from 8080", from_rule_ports),
    tcp(12, "no_listener", "SYN to 81, where nothing listens on the target port", no_listener),
    tcp(13, "options", "SYN with 40 bytes of options: MSS, SACK, timestamps, window scale, Fast Open, MPTCP", options),
    tcp(14, "keepalive", "keepalive probe; zero window; urgent data", keepalive),
    tcp(85, "stray_fin", "FIN to 80 without a connection; FIN and ACK", stray_fin),
    tcp(86, "syn_fin", "SYN and FIN at once", |site, family| flags(site, family, SYN | FIN)),
    tcp(87, "stray_syn_ack", "unsolicited SYN-ACK to 80", |site, family| flags(site, family, SYN | ACK)),
    tcp(88, "syn_with_data", "SYN with data and without Fast Open", syn_with_data),
    tcp(89, "syn_again", "the same SYN twice", syn_again),
    tcp(90, "odd_lengths", "segments of 1, 2, 3, 255 and 1111 bytes", odd_lengths),
    tcp(91, "half_close", "the client closes its direction, the server continues", half_close),
    tcp(92, "server_hangs_up", "the server ends the connection first", server_hangs_up),
    tcp(93, "client_resets", "the client resets, and connects again from the same port", client_resets),
    tcp(94, "many_connections", "200 connections of one client at once", many_connections),
];

/// A segment of no connection.
fn flags(site: &Site, family: Family, flags: u8) -> Observation {
    let ghost = Ghost::new(site, family);
    ghost.ask(&ghost.tcp(80, flags))
}

fn connection(site: &Site, family: Family) -> Observation {
    match Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(80)) {
        Ok(mut conversation) => {
            let facts = conversation.facts();
            let port = conversation.local.port();
            facts
                .and(conversation.addr_fact())
                .and(format!("server's local port is {port}"))
        }
        Err(error) => Observation::of(failure(&error)),
    }
}

fn other_addresses(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for (name, net, number) in [("second", 1, 11), ("other interface", 2, 1)] {
        let to = SocketAddr::new(family.addr(net, number), 80);
        let seen = match Conversation::begin(&site.lab.client, Proto::Tcp, 0, to) {
            Ok(mut conversation) => conversation.facts().and(conversation.addr_fact()),
            Err(error) => Observation::of(failure(&error)),
        };
        all = all.with(name, &seen);
    }
    all
}

fn direct(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let raw = ghost.ask(&ghost.tcp(8080, SYN));
    converse(&site.lab.client, Proto::Tcp, family.host(8080)).with("SYN", &raw)
}

/// Bytes of this length without a pattern.
pub fn noise(len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

/// Sends all of it to an echo and compares what comes back; `pause` is how
/// long nothing is read.
pub fn echo_all(conversation: &Conversation, bytes: &[u8], pause: Duration) -> String {
    let Conn::Tcp(stream) = &conversation.conn else {
        unreachable!("a TCP connection")
    };
    let (mut up, mut down): (TcpStream, TcpStream) = (
        stream.try_clone().expect("a socket"),
        stream.try_clone().expect("a socket"),
    );
    down.set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    let answer = std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let sent = up.write_all(bytes);
            let _ = up.shutdown(Shutdown::Write);
            sent
        });
        std::thread::sleep(pause);
        let mut answer = Vec::new();
        let read = down.read_to_end(&mut answer);
        let sent = writer.join().expect("no panic");
        read.and(sent).map(|()| answer)
    });
    match answer {
        Ok(answer) => check(answer == bytes, "every byte arrived"),
        Err(error) => failure(&error).to_owned(),
    }
}

fn bulk(site: &Site, family: Family) -> Observation {
    let len = if site.offload == Offload::On {
        8_000_000
    } else {
        2_000_000
    };
    match Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(80)) {
        Ok(conversation) => Observation::of(echo_all(&conversation, &noise(len), Duration::ZERO)),
        Err(error) => Observation::of(failure(&error)),
    }
}

fn xmas_and_null(site: &Site, family: Family) -> Observation {
    let xmas = flags(site, family, FIN | PSH | URG);
    let null = flags(site, family, 0);
    Observation::default()
        .with("XMAS", &xmas)
        .with("NULL", &null)
}

fn ttl_1(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN);
    ip.ttl = 1;
    ghost.ask(&ip)
}

fn from_rule_ports(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for port in [80, 8080] {
        let mut ghost = Ghost::new(site, family);
        ghost.move_to(port);
        let answers = {
            ghost.send(&ghost.tcp(80, SYN));
            ghost.answers()
        };
        let is_to_it = answers.iter().all(|arrival| match &arrival.body {
            Body::Tcp { ports, .. } => ports.1 == port,
            _ => false,
        });
        let seen = ghost
            .describe(&answers)
            .and(check(is_to_it, "to the client's port"));
        all = all.with(&format!("from {port}"), &seen);
    }
    all
}

fn no_listener(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    ghost.send(&ghost.tcp(81, SYN));
    let answers = ghost.answers();
    let is_right = answers
        .iter()
        .all(|arrival| matches!(arrival.body, Body::Tcp { ack, .. } if ack == 0x1000_0001));
    ghost
        .describe(&answers)
        .and(check(is_right, "SYN acknowledged"))
        .with(
            "socket",
            &converse(&site.lab.client, Proto::Tcp, family.host(81)),
        )
}

fn options(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let options = [
        &[2, 4, 5, 0xb4][..],                    // MSS 1460
        &[4, 2],                                 // SACK
        &[8, 10, 1, 2, 3, 4, 0, 0, 0, 0],        // timestamps
        &[1, 3, 3, 7],                           // window scale
        &[34, 2],                                // Fast Open, asks for a cookie
        &[30, 12, 1, 1, 9, 9, 9, 9, 9, 9, 9, 9], // MPTCP, capable
        &[1, 1, 1, 1, 1, 1],
    ]
    .concat();
    assert_eq!(options.len(), 40);
    let syn = Tcp {
        ports: (ghost.port, 80),
        seq: 0x1000_0000,
        ack: 0,
        flags: SYN,
        options: &options,
        payload: &[],
    };
    ghost.send(&ghost.ip(syn.segment()));
    let answers = ghost.answers();
    let mut seen = ghost.describe(&answers);
    for arrival in &answers {
        if let Body::Tcp { options, .. } = &arrival.body {
            let has = |part: &[u8]| options.windows(part.len()).any(|window| window == part);
            let echoed = has(&[1, 2, 3, 4]);
            let all = has(&[2, 4]) && has(&[4, 2, 8, 10]) && has(&[3, 3]);
            seen = seen
                .and(check(
                    all,
                    "MSS, SACK, timestamps and window scale negotiated",
                ))
                .and(check(echoed, "our timestamp echoed"));
        }
    }
    seen
}

fn keepalive(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let Some(mut connection) = ghost.connect(80) else {
        return Observation::of("no connection");
    };
    // The sequence number before the next one, without data.
    connection.seq -= 1;
    connection.send(ACK, b"");
    connection.seq += 1;
    let probe = ghost.seen();
    let goes_on = check(
        connection.echoes(b"and it goes on"),
        "the connection continues",
    );
    drop(connection);
    let conversation = Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(80));
    let window = match &conversation {
        Ok(conversation) => echo_all(conversation, &noise(4_000_000), Duration::from_millis(250)),
        Err(error) => failure(error).to_owned(),
    };
    Observation::default()
        .with("keepalive", &probe.and(goes_on))
        .with("zero window", &Observation::of(window))
        .with("urgent", &urgent(site, family))
}

/// The urgent byte is no part of the stream.
fn urgent(site: &Site, family: Family) -> Observation {
    let mut conversation =
        match Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(80)) {
            Ok(conversation) => conversation,
            Err(error) => return Observation::of(failure(&error)),
        };
    let Conn::Tcp(stream) = &conversation.conn else {
        unreachable!("a TCP connection")
    };
    send(stream.as_raw_fd(), b"abU", MsgFlags::MSG_OOB).expect("send");
    send(stream.as_raw_fd(), b"cd", MsgFlags::empty()).expect("send");
    let heard = conversation.conn.receive(4);
    Observation::of(match heard {
        Ok(heard) => check(heard == b"abcd", "left out of the stream"),
        Err(error) => failure(&error).to_owned(),
    })
}

fn stray_fin(site: &Site, family: Family) -> Observation {
    let fin = flags(site, family, FIN);
    let fin_ack = flags(site, family, FIN | ACK);
    Observation::default()
        .with("FIN", &fin)
        .with("FIN-ACK", &fin_ack)
}

fn syn_with_data(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let syn = Tcp {
        ports: (ghost.port, 80),
        seq: 0x1000_0000,
        ack: 0,
        flags: SYN,
        options: &[],
        payload: b"too early",
    };
    ghost.send(&ghost.ip(syn.segment()));
    let answers = ghost.answers();
    let is_syn_alone = answers
        .iter()
        .all(|arrival| matches!(arrival.body, Body::Tcp { ack, .. } if ack == 0x1000_0001));
    ghost
        .describe(&answers)
        .and(check(is_syn_alone, "the data is not acknowledged"))
}

fn syn_again(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    ghost.send(&ghost.tcp(80, SYN));
    let first = ghost.answers();
    ghost.send(&ghost.tcp(80, SYN));
    let second = ghost.answers();
    let seq = |answers: &[super::decode::Arrival]| {
        answers.iter().find_map(|arrival| match arrival.body {
            Body::Tcp { seq, .. } => Some(seq),
            _ => None,
        })
    };
    ghost.describe(&second).and(check(
        seq(&first).is_some() && seq(&first) == seq(&second),
        "the same answer",
    ))
}

fn odd_lengths(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let Some(mut connection) = ghost.connect(80) else {
        return Observation::of("no connection");
    };
    let noise = noise(1111);
    let is_right = [1, 2, 3, 255, 1111]
        .into_iter()
        .all(|len| connection.echoes(&noise[..len]));
    Observation::of(check(is_right, "every byte arrived"))
}

fn half_close(site: &Site, family: Family) -> Observation {
    match Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(80)) {
        Ok(conversation) => {
            Observation::of(echo_all(&conversation, b"the last words", Duration::ZERO))
        }
        Err(error) => Observation::of(failure(&error)),
    }
}

fn server_hangs_up(site: &Site, family: Family) -> Observation {
    match Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(94)) {
        Ok(mut conversation) => {
            let name = conversation.name.clone();
            let end = conversation.conn.receive(1).expect_err("it hangs up");
            Observation::of(format!("{name} reached")).and(failure(&end))
        }
        Err(error) => Observation::of(failure(&error)),
    }
}

fn client_resets(site: &Site, family: Family) -> Observation {
    let port = site.port();
    let mut all = Observation::default();
    for name in ["first", "second", "third"] {
        let begin = || Conversation::begin(&site.lab.client, Proto::Tcp, port, family.host(80));
        let mut begun = begin();
        // The own port can be held for some ms, with and without a redirector: perhaps by
        // a process that another thread starts, which has the socket until it runs.
        for _ in 0..100 {
            let is_held = |error: &io::Error| error.kind() == io::ErrorKind::AddrNotAvailable;
            if !begun.as_ref().is_err_and(is_held) {
                break;
            }
            thread::sleep(Duration::from_millis(10));
            begun = begin();
        }
        all = match begun {
            Ok(mut conversation) => {
                let facts = conversation.facts();
                conversation.conn.reset();
                all.with(name, &facts)
            }
            Err(error) => all.with(name, &Observation::of(failure(&error))),
        };
    }
    all
}

fn many_connections(site: &Site, family: Family) -> Observation {
    let begin = |_| Conversation::begin(&site.lab.client, Proto::Tcp, 0, family.host(80));
    let mut meetings: Vec<_> = (0..200).map(begin).collect();
    let mut good = 0;
    for (i, conversation) in meetings.iter_mut().enumerate() {
        if let Ok(conversation) = conversation {
            let is_said_back = conversation.echoes(format!("I am number {i}").as_bytes());
            good += u32::from(is_said_back.unwrap_or(false));
        }
    }
    Observation::of(format!("{good} of 200 exchange data"))
}
