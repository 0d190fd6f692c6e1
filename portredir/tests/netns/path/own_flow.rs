//! Conversations that the host, or a container behind it, begins from a port that a
//! rule names: their answers are not for the target.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::lab::namespace::Namespace;
use crate::lab::process::wait_for;
use crate::lab::program::Redirector;
use crate::lab::{Family, Far, Lab};
use crate::peer::conn::{Conn, PROTOS, Proto, is_refused, uninterrupted};
use crate::peer::echo::EchoServer;
use crate::{Cell, Tests};

/// The engines that redirect datagrams, with clients on the host by their sockets or by
/// their packets.
const ENGINES: [&str; 5] = ["auto", "xdp", "xdp-generic", "tc", "tc-clsact"];

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "own_questions", &[], own_questions);
    tests.add_for(&ENGINES, "own_questions_to_itself", &[], to_itself);
    tests.add_for(&ENGINES, "servers_do_not_talk", &[], servers_do_not_talk);
    tests.add_for(&ENGINES, "masqueraded", &["nft"], masqueraded);
    tests.add_for(&ENGINES, "hidden_server_asks", &[], hidden_server_asks);
}

fn start(cell: &Cell, lab: &Lab, args: &[&str]) -> Redirector {
    let options = ["--iface", "all", "--engine", cell.engine];
    Redirector::start(&lab.host, &[&options, args].concat())
}

fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Asks a server some questions from one port, by a socket that is not connected and by
/// one that is.
fn ask(from: &Namespace, local: (IpAddr, u16), to: SocketAddr) {
    for is_connected in [false, true] {
        let socket = from.bind(local);
        let timeout = Some(Duration::from_secs(5));
        socket.set_read_timeout(timeout).expect("set a timeout");
        if is_connected {
            socket.connect(to).expect("connect");
        }
        for round in 0..5 {
            let question = format!("{round} from {local:?} to {to}");
            if is_connected {
                socket.send(question.as_bytes()).expect("send");
            } else {
                socket.send_to(question.as_bytes(), to).expect("send");
            }
            let mut answer = [0; 200];
            let (len, peer) = uninterrupted(|| socket.recv_from(&mut answer))
                .unwrap_or_else(|error| panic!("{question}: {error}"));
            assert_eq!((&answer[..len], peer), (question.as_bytes(), to));
        }
    }
}

/// A range has the ports that the host asks from, a single port both ends of NTP.
const RULES: [&str; 2] = ["20000-50000:443/udp", "123:1123/udp"];

/// The host asks another one, from a port of a range and from a single port.
fn own_questions(cell: &Cell) {
    let lab = Lab::new(cell);
    let target = EchoServer::start(&lab.host, 443);
    let _time = EchoServer::start(&lab.client, 123);
    let _names = EchoServer::start(&lab.client, 53);
    let redirector = start(cell, &lab, &RULES);
    for family in Family::BOTH {
        let client = family.addr(1, 2);
        ask(
            &lab.host,
            (any(family), 30_000),
            SocketAddr::new(client, 53),
        );
        ask(&lab.host, (any(family), 123), SocketAddr::new(client, 123));
        // A client that begins is redirected, also from the port that was asked.
        let mut conn = Conn::to(&lab.client, Proto::Udp, 0, family.host(30_000));
        let message = format!("{family:?} begins");
        conn.echo(message.as_bytes());
        target.peer(Proto::Udp, message.as_bytes());
    }
    redirector.finish(&lab);
}

/// The host asks itself: the server's answer goes to a port of a rule.
fn to_itself(cell: &Cell) {
    let lab = Lab::new(cell);
    let target = EchoServer::start(&lab.host, 443);
    let redirector = start(cell, &lab, &RULES);
    for family in Family::BOTH {
        let loopback: IpAddr = match family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        for addr in [loopback, family.addr(1, 1)] {
            let server = EchoServer::at(&lab.host, addr, 5353);
            for bound_to in [any(family), addr] {
                ask(&lab.host, (bound_to, 30_001), SocketAddr::new(addr, 5353));
            }
            drop(server);
            let mut conn = Conn::to(&lab.host, Proto::Udp, 0, SocketAddr::new(addr, 30_001));
            let message = format!("{addr} begins");
            conn.echo(message.as_bytes());
            target.peer(Proto::Udp, message.as_bytes());
        }
    }
    drop(redirector);
}

/// A datagram from a port of a rule to a server elsewhere: its answer must not reach
/// the target, whose own answer would go back, and so on.
fn servers_do_not_talk(cell: &Cell) {
    let lab = Lab::new(cell);
    let target = EchoServer::start(&lab.host, 4433);
    let elsewhere = EchoServer::start(&lab.client, 7);
    let redirector = start(cell, &lab, &["30000:4433/udp"]);
    for family in Family::BOTH {
        let socket = lab.host.bind((any(family), 30_000));
        let message = format!("{family:?} begins");
        let to = SocketAddr::new(family.addr(1, 2), 7);
        socket.send_to(message.as_bytes(), to).expect("send");
        elsewhere.peer(Proto::Udp, message.as_bytes());
        wait_for("the answer", || {
            socket.set_nonblocking(true).expect("nonblocking");
            socket.recv(&mut [0; 100]).ok()
        });
        assert!(!target.has_heard(message.as_bytes()));
    }
    redirector.finish(&lab);
}

/// A container behind the host's masquerade begins, by TCP and UDP.
fn masqueraded(cell: &Cell) {
    let lab = Lab::with_far(cell, Far::BehindHost);
    lab.host.run(&[
        "nft",
        "add table ip m; add chain ip m p { type nat hook postrouting priority 100; }; \
         add rule ip m p oifname h0 masquerade",
    ]);
    let target = EchoServer::start(&lab.host, 8080);
    let server = EchoServer::start(&lab.client, 443);
    let redirector = start(cell, &lab, &["20000-39999:8080/both", "40005:8080/both"]);
    for proto in PROTOS {
        for port in [30_000, 40_005] {
            let to = SocketAddr::new(Family::V4.addr(1, 2), 443);
            let mut conn = Conn::to(lab.far(), proto, port, to);
            for round in 0..5 {
                let message = format!("{round} {proto:?} from {port}");
                conn.echo(message.as_bytes());
                let peer = server.peer(proto, message.as_bytes());
                assert_eq!(peer.port(), port, "netfilter keeps the port");
                assert!(!target.has_heard(message.as_bytes()));
            }
            if proto == Proto::Tcp {
                conn.reset();
            }
        }
    }
    redirector.finish(&lab);
}

/// A server on a hidden port talks to others too; strangers find it closed.
fn hidden_server_asks(cell: &Cell) {
    let lab = Lab::new(cell);
    let _names = EchoServer::start(&lab.client, 53);
    let redirector = start(cell, &lab, &["--hide-target", "80:8080/both"]);
    for family in Family::BOTH {
        let to = SocketAddr::new(family.addr(1, 2), 53);
        ask(&lab.host, (any(family), 8080), to);
        let server = EchoServer::at(&lab.host, family.addr(1, 1), 8080);
        for proto in PROTOS {
            assert!(is_refused(&lab.client, proto, family.host(8080)));
            let mut conn = Conn::to(&lab.client, proto, 0, family.host(80));
            conn.echo(b"by the rule");
        }
        drop(server);
    }
    assert!(redirector.stop()["drops"]["hidden"].as_u64() >= Some(4));
    lab.check_checksums();
}
