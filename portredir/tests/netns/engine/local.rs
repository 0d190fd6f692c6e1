//! Local clients under `--engine auto`: the cgroup hooks redirect connect(2) and
//! sendmsg(2), and the client still sees the port that it connected to.

mod beside;
mod datagrams;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::Tests;
use crate::lab::message::DRAINING;
use crate::lab::namespace::Namespace;
use crate::lab::program::Redirector;
use crate::lab::{Family, Lab};
use crate::peer::conn::{Conn, PROTOS, Proto, is_refused, uninterrupted};
use crate::peer::echo::EchoServer;
use crate::peer::listener::{Listen, connect_and_greet, server_name};
use crate::peer::tcp_variant;

pub fn add(tests: &mut Tests) {
    type Test = (&'static str, &'static [&'static str], fn(&Lab));
    const TESTS: [Test; 22] = [
        ("connected", &[], connected),
        ("unconnected", &[], datagrams::unconnected),
        ("one_of_127", &[], datagrams::one_of_127),
        ("bound_to_an_address", &[], datagrams::bound_to_an_address),
        (
            "many_ports_by_one_socket",
            &[],
            datagrams::many_ports_by_one_socket,
        ),
        ("connects_again", &[], datagrams::connects_again),
        ("bound_to_a_port", &[], beside::bound_to_a_port),
        (
            "bound_to_a_port_before_chained_rules",
            &[],
            beside::bound_to_a_port_before_chained_rules,
        ),
        ("raw_syn", &["tcpdump"], beside::raw_syn),
        ("chained_rules", &[], chained_rules),
        ("refused", &[], refused),
        ("other_namespace", &[], other_namespace),
        ("other_host", &[], other_host),
        ("mptcp_client", &["python3"], mptcp_client),
        ("fast_open", &["python3"], fast_open),
        ("forking_server", &["python3"], forking_server),
        ("loopback_server", &[], loopback_server),
        ("udp_lite", &["python3"], datagrams::udp_lite),
        ("connections_survive", &[], connections_survive),
        (
            "older_sockets_name_their_peer",
            &[],
            datagrams::older_sockets_name_their_peer,
        ),
        ("no_local", &[], no_local),
        ("drain", &[], drain),
    ];
    for (name, tools, test) in TESTS {
        tests.add(format!("local/{name}"), tools, move || test(&lab()));
    }
    tests.add("local/stateful_firewall", &["nft"], || {
        stateful_firewall(&lab());
    });
}

fn lab() -> Lab {
    Lab::new(&crate::Cell {
        engine: "auto",
        is_offloaded: true,
        family: Family::V4,
    })
}

fn start(lab: &Lab, rules: &[&str]) -> Redirector {
    Redirector::start(&lab.host, &[&["--iface", "all"], rules].concat())
}

fn mapped(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().into(),
        addr => addr,
    }
}

/// Addresses of the host, and the address that a client of each is told.
fn addrs() -> Vec<(IpAddr, IpAddr)> {
    let own4 = Family::V4.addr(1, 1);
    let own6 = Family::V6.addr(1, 1);
    let [lo4, lo6] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    vec![
        (own4, own4),
        (own6, own6),
        (lo4, lo4),
        (lo6, lo6),
        (Ipv4Addr::UNSPECIFIED.into(), lo4),
        (Ipv6Addr::UNSPECIFIED.into(), lo6),
        (mapped(own4), mapped(own4)),
        (mapped(lo4), mapped(lo4)),
    ]
}

fn peer(conn: &Conn) -> SocketAddr {
    match conn {
        Conn::Tcp(stream) => stream.peer_addr(),
        Conn::Udp(socket) => socket.peer_addr(),
    }
    .expect("a peer")
}

/// A socket that is not connected.
fn udp_socket(at: &Namespace, addr: IpAddr) -> UdpSocket {
    let socket = at.enter(|| UdpSocket::bind((addr, 0))).expect("bind");
    let timeout = Some(Duration::from_secs(5));
    socket.set_read_timeout(timeout).expect("set a timeout");
    socket
}

fn any_like(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Sends a message, which has to be said back; from where it was.
fn udp_echo(socket: &UdpSocket, message: &str, to: SocketAddr) -> SocketAddr {
    socket.send_to(message.as_bytes(), to).expect("send");
    let mut answer = [0; 100];
    let (len, from) = uninterrupted(|| socket.recv_from(&mut answer)).expect("an answer");
    assert_eq!(&answer[..len], message.as_bytes());
    from
}

/// Local clients are redirected at every address of the host.
fn connected(lab: &Lab) {
    let server = EchoServer::start(&lab.host, 8080);
    for (addr, _) in addrs() {
        for proto in PROTOS {
            assert!(is_refused(&lab.host, proto, SocketAddr::new(addr, 80)));
        }
    }
    let redirector = start(lab, &["80:8080/both"]);
    let mut flows = 0;
    let other = Ipv4Addr::new(127, 5, 5, 5).into();
    for (addr, told) in addrs().into_iter().chain([(other, other)]) {
        for proto in PROTOS {
            // The echo answers UDP from 127.0.0.1.
            if addr == other && proto == Proto::Udp {
                continue;
            }
            for port in [80, 8080] {
                let to = SocketAddr::new(addr, port);
                let mut conn = Conn::to(&lab.host, proto, 0, to);
                assert_eq!(peer(&conn), SocketAddr::new(told, port), "{proto:?} {to}");
                for round in 0..3 {
                    let message = format!("{round} to {to}");
                    conn.echo(message.as_bytes());
                    let from = server.peer(proto, message.as_bytes());
                    assert_eq!(from.port(), conn.local().port());
                    assert_eq!(peer(&conn), SocketAddr::new(told, port), "{proto:?} {to}");
                }
            }
            flows += 1;
        }
    }
    let report = redirector.finish(lab);
    assert_eq!(report["rules"][0]["flows"], flows);
    let engines = report["interfaces"].as_array().expect("a list");
    assert_eq!(engines[0]["name"], "lo");
    assert_eq!(engines[0]["engine"], "local");
    assert_eq!(report["rules"][0]["interfaces"]["lo"]["flows"], flows);
}

/// `80:8080 8080:9090`: each redirects once.
fn chained_rules(lab: &Lab) {
    let servers = [8080, 9090].map(|port| EchoServer::start(&lab.host, port));
    let redirector = start(lab, &["80:8080/both", "8080:9090/both"]);
    for (addr, told) in addrs() {
        for (port, server) in [80, 8080].into_iter().zip(&servers) {
            let to = SocketAddr::new(addr, port);
            for proto in PROTOS {
                let mut conn = Conn::to(&lab.host, proto, 0, to);
                for round in 0..2 {
                    let message = format!("{round} connected to {to}");
                    conn.echo(message.as_bytes());
                    server.peer(proto, message.as_bytes());
                    assert_eq!(peer(&conn), SocketAddr::new(told, port));
                }
            }
            let socket = udp_socket(&lab.host, any_like(addr));
            let message = format!("to {to}");
            let from = udp_echo(&socket, &message, to);
            assert_eq!(from, SocketAddr::new(told, port));
            server.peer(Proto::Udp, message.as_bytes());
        }
    }
    redirector.finish(lab);
}

fn refused(lab: &Lab) {
    let redirector = start(lab, &["80:8080/both"]);
    for (addr, _) in addrs() {
        for proto in PROTOS {
            let to = SocketAddr::new(addr, 80);
            assert!(is_refused(&lab.host, proto, to), "{proto:?} {to}");
        }
    }
    redirector.finish(lab);
}

/// The loopback address of another namespace is left alone, though its processes
/// are in the same cgroup.
fn other_namespace(lab: &Lab) {
    let _ours = EchoServer::start(&lab.host, 8080);
    let other = lab.third();
    let [dst_server, target] = [80, 8080].map(|port| EchoServer::start(&other, port));
    let redirector = start(lab, &["80:8080/both"]);
    for addr in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        for (port, server) in [(80, &dst_server), (8080, &target)] {
            let to = SocketAddr::new(addr, port);
            for proto in PROTOS {
                let message = format!("to {to}");
                let mut conn = Conn::to(&other, proto, 0, to);
                conn.echo(message.as_bytes());
                server.peer(proto, message.as_bytes());
                assert_eq!(peer(&conn), to);
            }
            let socket = udp_socket(&other, any_like(addr));
            let message = format!("without a connection to {to}");
            assert_eq!(udp_echo(&socket, &message, to), to);
            server.peer(Proto::Udp, message.as_bytes());
        }
    }
    let report = redirector.finish(lab);
    assert_eq!(report["rules"][0]["flows"], 0);
    let passes = report["passes"].as_object().expect("passes");
    assert!(passes.values().all(|count| *count == 0), "{passes:?}");
}

/// A connection to the destination port of another host is left alone.
fn other_host(lab: &Lab) {
    let _ours = EchoServer::start(&lab.host, 8080);
    let [dst_server, target] = [80, 8080].map(|port| EchoServer::start(&lab.client, port));
    let redirector = start(lab, &["80:8080/both"]);
    for family in Family::BOTH {
        for (port, server) in [(80, &dst_server), (8080, &target)] {
            let to = SocketAddr::new(family.addr(1, 2), port);
            for proto in PROTOS {
                let message = format!("to {to}");
                let mut conn = Conn::to(&lab.host, proto, 0, to);
                conn.echo(message.as_bytes());
                server.peer(proto, message.as_bytes());
                assert_eq!(peer(&conn), to);
            }
            let socket = udp_socket(&lab.host, any_like(to.ip()));
            assert_eq!(udp_echo(&socket, "without a connection", to), to);
        }
    }
    let report = redirector.finish(lab);
    assert_eq!(report["rules"][0]["flows"], 0);
}

/// An MPTCP client is redirected, but the cgroup hooks see another socket than the
/// client does: getpeername(2) may return the target port.
fn mptcp_client(lab: &Lab) {
    let _server = Listen::on(Ipv6Addr::UNSPECIFIED, 8080).start(&lab.host, "server");
    let redirector = start(lab, &["80:8080"]);
    for family in Family::BOTH {
        let said = tcp_variant::run_client(&lab.host, "mptcp", family.host(80));
        let (peer, rest) = said.split_once('\n').expect("two lines");
        assert_eq!(peer, "peer 80", "{said}");
        assert!(rest.starts_with("server "), "{said}");
    }
    redirector.finish(lab);
}

fn fast_open(lab: &Lab) {
    lab.host.sysctl("ipv4/tcp_fastopen", "3");
    let redirector = start(lab, &["80:8080"]);
    for addr in [IpAddr::from(Ipv4Addr::LOCALHOST), Family::V6.addr(1, 1)] {
        let on = SocketAddr::new(any_like(addr), 8080);
        let _server = tcp_variant::start_server(&lab.host, "fast-open-server", on);
        let said = tcp_variant::run_client(&lab.host, "fast-open", SocketAddr::new(addr, 80));
        assert_eq!(said, "peer 80\n".repeat(3));
    }
    redirector.finish(lab);
}

fn forking_server(lab: &Lab) {
    let redirector = start(lab, &["80:8080"]);
    let on = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8080);
    let _server = tcp_variant::start_server(&lab.host, "forking-server", on);
    for _ in 0..3 {
        let (_, greeting) =
            connect_and_greet(&lab.host, 0, SocketAddr::new(on.ip(), 80)).expect("the server");
        assert_eq!(greeting.name, "forking-server");
    }
    redirector.finish(lab);
}

/// A server that is for the host alone is reached by the host alone.
fn loopback_server(lab: &Lab) {
    let addrs = [
        Ipv4Addr::LOCALHOST.into(),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ];
    let _servers = addrs.map(|addr| Listen::on(addr, 8080).start(&lab.host, "server"));
    let redirector = start(lab, &["80:8080"]);
    for addr in addrs {
        let served = server_name(&lab.host, SocketAddr::new(addr, 80));
        assert_eq!(served.as_deref(), Some("server"));
    }
    for family in Family::BOTH {
        assert_eq!(server_name(&lab.host, family.host(80)), None);
        assert_eq!(server_name(&lab.client, family.host(80)), None);
    }
    redirector.finish(lab);
}

/// A connection to a server on the destination port survives the start of the
/// program, and a redirected one survives its end.
fn connections_survive(lab: &Lab) {
    let [dst_server, target] = [80, 8080].map(|port| EchoServer::start(&lab.host, port));
    let to = [Ipv4Addr::LOCALHOST.into(), Family::V6.addr(1, 1)].map(|a| SocketAddr::new(a, 80));
    let connect = |to| PROTOS.map(|proto| Conn::to(&lab.host, proto, 0, to));
    let say = |conns: &mut [[Conn; 2]; 2], words: &str, server: &EchoServer| {
        for (i, conn) in conns.iter_mut().flatten().enumerate() {
            let message = format!("{words} {i}");
            conn.echo(message.as_bytes());
            server.peer(PROTOS[i % 2], message.as_bytes());
        }
    };
    let mut old = to.map(connect);
    say(&mut old, "old, before", &dst_server);
    let redirector = start(lab, &["80:8080/both"]);
    say(&mut old, "old, while we are there", &dst_server);
    let mut new = to.map(connect);
    say(&mut new, "new, while we are there", &target);
    redirector.finish(lab);
    say(&mut old, "old, after", &dst_server);
    say(&mut new, "new, after", &target);
    let mut newer = to.map(connect);
    say(&mut newer, "newer", &dst_server);
}

fn no_local(lab: &Lab) {
    let [dst_server, target] = [80, 8080].map(|port| EchoServer::start(&lab.host, port));
    let redirector = start(lab, &["--no-local", "80:8080/both"]);
    for proto in PROTOS {
        for (addr, told) in addrs() {
            let mut conn = Conn::to(&lab.host, proto, 0, SocketAddr::new(addr, 80));
            let message = format!("{proto:?} to {addr}");
            conn.echo(message.as_bytes());
            dst_server.peer(proto, message.as_bytes());
            assert_eq!(peer(&conn), SocketAddr::new(told, 80));
        }
        Conn::to(&lab.client, proto, 0, Family::V6.host(80)).echo(b"from outside");
        target.peer(proto, b"from outside");
    }
    let report = redirector.finish(lab);
    assert_eq!(report["rules"][0]["flows"], 2);
    assert_eq!(report["interfaces"].as_array().map(Vec::len), Some(1));
}

/// While the program drains a connection from outside, new connections reach the
/// destination port, and old sockets still see the peer that they connected to.
fn drain(lab: &Lab) {
    let [dst_server, target] = [80, 8080].map(|port| EchoServer::start(&lab.host, port));
    let mut redirector = start(lab, &["--drain-timeout", "60", "80:8080/both"]);
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 80);
    let mut outside = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    outside.echo(b"outside");
    let mut old = PROTOS.map(|proto| Conn::to(&lab.host, proto, 0, to));
    old.iter_mut().for_each(|conn| conn.echo(b"before"));
    let socket = udp_socket(&lab.host, Ipv4Addr::UNSPECIFIED.into());
    assert_eq!(udp_echo(&socket, "before, without a connection", to), to);
    redirector.process.signal(Signal::SIGTERM);
    redirector.process.wait_for_words(DRAINING);
    for (conn, proto) in old.iter_mut().zip(PROTOS) {
        conn.echo(b"old at the end");
        target.peer(proto, b"old at the end");
        assert_eq!(peer(conn), to);
        let mut conn = Conn::to(&lab.host, proto, 0, to);
        conn.echo(b"new at the end");
        dst_server.peer(proto, b"new at the end");
        assert_eq!(peer(&conn), to);
    }
    assert_eq!(udp_echo(&socket, "at the end", to), to);
    target.peer(Proto::Udp, b"at the end");
    let new = udp_socket(&lab.host, Ipv4Addr::UNSPECIFIED.into());
    assert_eq!(udp_echo(&new, "new, without a connection", to), to);
    dst_server.peer(Proto::Udp, b"new, without a connection");
    drop(outside);
    assert_eq!(redirector.process.wait().code(), Some(0));
    old.iter_mut().for_each(|conn| conn.echo(b"after"));
}

/// Rules that drop what conntrack cannot make sense of are common.
fn stateful_firewall(lab: &Lab) {
    const RULES: &str = "table inet lab {\n\
        chain out { type filter hook output priority 0; ct state invalid counter drop; }\n\
        chain in { type filter hook input priority 0; ct state invalid counter drop; }\n\
        }\n";
    let path = lab.dir.0.join("rules.nft");
    std::fs::write(&path, RULES).expect("write a file");
    let path = path.to_str().expect("text");
    if !lab.host.succeeds(&["nft", "-f", path]) {
        crate::skip("needs conntrack");
    }
    let server = EchoServer::start(&lab.host, 8080);
    let redirector = start(lab, &["80:8080/both"]);
    let other = IpAddr::from([127, 5, 5, 5]);
    for (addr, told) in addrs().into_iter().chain([(other, other)]) {
        for proto in PROTOS {
            if addr == other && proto == Proto::Udp {
                continue;
            }
            let mut conn = Conn::to(&lab.host, proto, 0, SocketAddr::new(addr, 80));
            assert_eq!(peer(&conn), SocketAddr::new(told, 80));
            let message = format!("{proto:?} to {addr}");
            (0..3).for_each(|_| conn.echo(message.as_bytes()));
            server.peer(proto, message.as_bytes());
        }
    }
    redirector.finish(lab);
    let rules = lab.host.run(&["nft", "list", "ruleset"]);
    assert_eq!(
        rules.matches("counter packets 0 bytes 0").count(),
        2,
        "{rules}"
    );
}
