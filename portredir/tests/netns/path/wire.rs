//! Traffic over a plain wire: for each engine, with and without checksum
//! offload, for IPv4 and IPv6.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};

use crate::lab::capture::Capture;
use crate::lab::checksum::ChecksumWatch;
use crate::lab::namespace::Namespace;
use crate::lab::program::{Redirector, packets};
use crate::lab::{Family, Far, Lab};
use crate::peer::conn::{Conn, PROTOS, Proto, is_refused, uninterrupted};
use crate::peer::dns::dns_server;
use crate::peer::echo::EchoServer;
use crate::peer::http::http_server;
use crate::peer::http::{get, noise, put};
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    tests.add_matrix("http", &["curl", "python3"], http);
    tests.add_matrix("udp_echo", &[], udp_echo);
    tests.add_matrix("dns", &["dnsmasq", "dig"], dns);
    tests.add_matrix("direct_beside_redirected", &[], direct_beside_redirected);
    tests.add_matrix("two_ports_one_target", &[], two_ports_one_target);
    tests.add_matrix("one_client_port", &[], one_client_port);
    tests.add_matrix("refused", &[], refused);
    tests.add_matrix("path_mtu", &["curl", "python3"], path_mtu);
    tests.add_matrix("routed", &[], routed);
    tests.add_matrix("broadcast", &[], broadcast);
    tests.add_matrix("older_connection", &[], older_connection);
}

fn http(cell: &Cell) {
    let lab = Lab::new(cell);
    let is_long = cell.is_offloaded && cell.family == Family::V4;
    let (file, noise) = noise(&lab.dir, if is_long { 30_000_000 } else { 5_000_000 });
    let _server = http_server(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080"]);
    let watch = ChecksumWatch::start(cell, &lab.client, "c0");
    put(&lab.client, &file, cell.family.host(80));
    let answer = get(&lab.client, &lab.dir, cell.family.host(80));
    // Other bytes mean that the upload or the download was wrong.
    assert!(answer == noise, "{} bytes came back", answer.len());
    watch.finish();
    let report = redirector.finish(&lab);
    assert!(packets(&report, 0) > 100, "{report}");
    assert_eq!(report["rules"][0]["flows"], 2);
}

fn udp_echo(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 7778);
    let redirector = Redirector::of(cell, &lab, &["7777:7778/udp"]);
    let watch = ChecksumWatch::start(cell, &lab.client, "c0");
    let mut conn = Conn::to(&lab.client, Proto::Udp, 0, cell.family.host(7777));
    let (_, noise) = noise(&lab.dir, 20_000);
    // The last two lengths need fragments.
    for len in [1, 1400, 4000, 20_000] {
        conn.echo(&noise[..len]);
        let peer = server.peer(Proto::Udp, &noise[..len]);
        assert_eq!(peer.port(), conn.local().port());
    }
    watch.finish();
    redirector.finish(&lab);
}

fn dns(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = dns_server(&lab, 5353);
    let redirector = Redirector::of(cell, &lab, &["53:5353/both"]);
    let at = format!("@{}", cell.family.addr(1, 1));
    for transport in ["+notcp", "+tcp"] {
        for port in ["53", "5353"] {
            for (kind, answer) in [("A", "192.0.2.7"), ("AAAA", "2001:db8::7")] {
                let out = lab.client.run(&[
                    "dig",
                    &at,
                    "-p",
                    port,
                    transport,
                    "+short",
                    "+tries=1",
                    "+time=5",
                    "name.test",
                    kind,
                ]);
                assert_eq!(out.trim(), answer, "{transport} port {port} {kind}");
            }
        }
    }
    redirector.finish(&lab);
}

fn direct_beside_redirected(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    for proto in PROTOS {
        let connect = |port| Conn::to(&lab.client, proto, 0, cell.family.host(port));
        let mut conns: Vec<_> = [80, 8080].repeat(4).into_iter().map(connect).collect();
        for round in 0..5 {
            for (i, conn) in conns.iter_mut().enumerate() {
                let message = format!("round {round} of {i}");
                conn.echo(message.as_bytes());
                let peer = server.peer(proto, message.as_bytes());
                assert_eq!(peer.port(), conn.local().port(), "nobody was in the way");
            }
        }
    }
    redirector.finish(&lab);
}

fn two_ports_one_target(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both", "81:8080/both"]);
    let ends = Ends {
        cell,
        lab: &lab,
        server: &server,
    };
    for proto in PROTOS {
        two_at_once(&ends, proto, (0, 0), (80, 81));
        two_at_once(&ends, proto, (40_001, 40_001), (80, 81));
    }
    redirector.finish(&lab);
}

/// One client port connects to the destination port and to the target port.
fn one_client_port(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    let ends = Ends {
        cell,
        lab: &lab,
        server: &server,
    };
    for proto in PROTOS {
        two_at_once(&ends, proto, (40_001, 40_001), (80, 8080));
        two_at_once(&ends, proto, (40_002, 40_002), (8080, 80));
    }
    redirector.finish(&lab);
}

/// The client and the server of a conversation.
struct Ends<'a> {
    cell: &'a Cell,
    lab: &'a Lab,
    server: &'a EchoServer,
}

/// Two conversations at once, which the server sees as two.
fn two_at_once(ends: &Ends<'_>, proto: Proto, from: (u16, u16), to: (u16, u16)) {
    let Ends { cell, lab, server } = ends;
    let mut peers = Vec::new();
    let mut exchange = |conn: &mut Conn, words: &str| {
        let message = format!("{words} from {from:?} to {to:?}");
        conn.echo(message.as_bytes());
        peers.push(server.peer(proto, message.as_bytes()));
    };
    let mut first = Conn::to(&lab.client, proto, from.0, cell.family.host(to.0));
    exchange(&mut first, "first");
    let mut second = Conn::to(&lab.client, proto, from.1, cell.family.host(to.1));
    exchange(&mut second, "second");
    exchange(&mut first, "first again");
    exchange(&mut second, "second again");
    assert_eq!(peers[0].port(), first.local().port());
    assert_ne!(peers[0], peers[1]);
    assert_eq!(peers[0], peers[2]);
    assert_eq!(peers[1], peers[3]);
}

fn refused(cell: &Cell) {
    let lab = Lab::new(cell);
    let redirector = Redirector::of(cell, &lab, &["80:8080/tcp", "7777:7778/udp"]);
    let watch = ChecksumWatch::start(cell, &lab.client, "c0");
    let (errors, quote) = match cell.family {
        Family::V4 => ("icmp[0] == 3", 14 + 20 + 8 + 20),
        Family::V6 => ("icmp6 and ip6[40] == 1", 14 + 40 + 8 + 40),
    };
    let capture = Capture::start(&lab.client, "c0", errors);
    for (proto, port) in [(Proto::Tcp, 80), (Proto::Udp, 7777)] {
        let to = cell.family.host(port);
        assert!(is_refused(&lab.client, proto, to), "{proto:?}");
    }
    let quoted = capture.wait_for("port unreachable", |frame| {
        let port = frame.get(quote + 2..quote + 4)?;
        Some(u16::from_be_bytes(port.try_into().expect("two bytes")))
    });
    assert_eq!(quoted, 7777, "the port that the ICMP error quotes");
    watch.finish();
    let report = redirector.finish(&lab);
    assert_eq!(report["passes"]["icmp_translated"], 1);
}

fn path_mtu(cell: &Cell) {
    let lab = Lab::with_far(cell, Far::BehindClient(1300));
    let _server = http_server(&lab.host, 8080);
    let (file, noise) = noise(&lab.dir, 300_000);
    put(&lab.host, &file, cell.family.host(8080));
    let redirector = Redirector::of(cell, &lab, &["80:8080"]);
    let far = cell.family.addr(2, 2).to_string();
    let route = || lab.host.run(&["ip", "route", "get", &far]);
    assert!(!route().contains("mtu"), "{}", route());
    let watch = ChecksumWatch::start(cell, &lab.client, "c0");
    let answer = get(lab.far(), &lab.dir, cell.family.host(80));
    watch.finish();
    assert!(answer == noise, "{} bytes came back", answer.len());
    assert!(route().contains("mtu 1300"), "{}", route());
    let report = redirector.finish(&lab);
    assert_ne!(report["passes"]["icmp_translated"], 0);
}

/// Packets that the host forwards are left alone.
fn routed(cell: &Cell) {
    let lab = Lab::with_far(cell, Far::BehindHost);
    let servers = [80, 8080].map(|port| EchoServer::start(lab.far(), port));
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    let addr = cell.family.addr(2, 2);
    let [sent, arrived] = [(&lab.client, "c0"), (lab.far(), "f0")]
        .map(|(at, interface)| Capture::start(at, interface, "udp and dst port 80"));
    for proto in PROTOS {
        for (port, server) in [80, 8080].into_iter().zip(&servers) {
            let mut conn = Conn::to(&lab.client, proto, 0, SocketAddr::new(addr, port));
            let message = format!("for {port}");
            conn.echo(message.as_bytes());
            assert_eq!(
                server.peer(proto, message.as_bytes()).port(),
                conn.local().port()
            );
        }
    }
    let [sent, arrived] = [sent, arrived].map(|capture| {
        let packet = |frame: &[u8]| Some(frame[14..].to_vec());
        capture.wait_for("the datagram", packet)
    });
    // The router counts down: TTL and, for IPv4, the header's checksum.
    let as_routed = |mut packet: Vec<u8>| match cell.family {
        Family::V4 => {
            packet[8] -= 1;
            packet[10..12].fill(0);
            packet
        }
        Family::V6 => {
            packet[7] -= 1;
            packet
        }
    };
    let mut expected = as_routed(sent);
    if cell.family == Family::V4 {
        expected[10..12].copy_from_slice(&arrived[10..12]);
    }
    assert_eq!(arrived, expected);
    let report = redirector.finish(&lab);
    assert_eq!(packets(&report, 0), 0);
    assert_ne!(report["passes"]["not_local"], 0);
}

/// Broadcast and multicast go to all who listen, on the port they name.
fn broadcast(cell: &Cell) {
    let lab = Lab::new(cell);
    let any: SocketAddr = match cell.family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED, 0).into(),
        Family::V6 => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let bind = |at: &Namespace, port| {
        let addr = SocketAddr::new(any.ip(), port);
        at.bind(addr)
    };
    let dst_server = bind(&lab.host, 7777);
    let target = EchoServer::start(&lab.host, 7778);
    let redirector = Redirector::beside(cell, &lab, &["7777:7778/udp"]);
    let client = bind(&lab.client, 0);
    client.set_broadcast(true).expect("allow broadcast");
    setsockopt(&client, BindToDevice, &"c0".into()).expect("choose c0");
    let send = |addr: SocketAddr, message: &str| {
        client.send_to(message.as_bytes(), addr).expect("send");
    };
    send(cell.family.host(7777), "unicast");
    target.peer(Proto::Udp, b"unicast");
    let index = lab.client.enter(|| if_nametoindex("c0")).expect("c0");
    let groups: &[SocketAddr] = match cell.family {
        Family::V4 => &[[10, 9, 1, 255], [255; 4], [224, 0, 0, 1]].map(|a| (a, 7777).into()),
        Family::V6 => {
            let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            &[SocketAddrV6::new(all_nodes, 7777, 0, index).into()]
        }
    };
    for group in groups {
        let message = format!("to {group}");
        send(*group, &message);
        let mut heard = [0; 64];
        let timeout = Some(Duration::from_secs(5));
        dst_server.set_read_timeout(timeout).expect("set a timeout");
        let len = uninterrupted(|| dst_server.recv(&mut heard)).expect(&message);
        assert_eq!(&heard[..len], message.as_bytes());
        assert_eq!(target.find(Proto::Udp, message.as_bytes()), None);
    }
    let report = redirector.finish(&lab);
    assert_eq!(packets(&report, 0), 1);
}

/// A connection to a server on the destination port is older than the program.
fn older_connection(cell: &Cell) {
    let lab = Lab::new(cell);
    let [dst_server, target] = [80, 8080].map(|port| EchoServer::start(&lab.host, port));
    let connect = || Conn::to(&lab.client, Proto::Tcp, 0, cell.family.host(80));
    let mut old = connect();
    old.echo(b"before");
    dst_server.peer(Proto::Tcp, b"before");
    let redirector = Redirector::beside(cell, &lab, &["80:8080"]);
    old.echo(b"after");
    dst_server.peer(Proto::Tcp, b"after");
    connect().echo(b"new");
    target.peer(Proto::Tcp, b"new");
    old.echo(b"at the end");
    dst_server.peer(Proto::Tcp, b"at the end");
    let report = redirector.finish(&lab);
    assert_eq!(report["rules"][0]["flows"], 1);
}
