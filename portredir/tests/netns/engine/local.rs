//! The host's own clients, under `--engine auto`: they are pointed at the
//! target, and told the port they dialled.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::Tests;
use crate::engine::socket::{talk, talk_server};
use crate::lab::namespace::Namespace;
use crate::lab::program::Redirector;
use crate::lab::{Family, Lab};
use crate::peer::conn::{Conn, PROTOS, Proto, is_refused, uninterrupted};
use crate::peer::echo::{self, Echo};
use crate::peer::listener::{Listen, meet, who};

pub fn add(tests: &mut Tests) {
    type Test = (&'static str, &'static [&'static str], fn(&Lab));
    const TESTS: [Test; 19] = [
        ("connected", &[], connected),
        ("unconnected", &[], unconnected),
        ("one_of_127", &[], one_of_127),
        ("bound_to_an_address", &[], bound_to_an_address),
        ("many_ports_by_one_socket", &[], many_ports_by_one_socket),
        ("connects_again", &[], connects_again),
        ("chained_rules", &[], chained_rules),
        ("refused", &[], refused),
        ("other_namespace", &[], other_namespace),
        ("other_host", &[], other_host),
        ("mptcp_client", &["python3"], mptcp_client),
        ("fast_open", &["python3"], fast_open),
        ("forking_server", &["python3"], forking_server),
        ("loopback_server", &[], loopback_server),
        ("udp_lite", &["python3"], udp_lite),
        ("connections_survive", &[], connections_survive),
        (
            "older_sockets_name_their_peer",
            &[],
            older_sockets_name_their_peer,
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
fn bind(at: &Namespace, addr: IpAddr) -> UdpSocket {
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
fn ask(socket: &UdpSocket, message: &str, to: SocketAddr) -> SocketAddr {
    socket.send_to(message.as_bytes(), to).expect("send");
    let mut answer = [0; 100];
    let (len, from) = uninterrupted(|| socket.recv_from(&mut answer)).expect("an answer");
    assert_eq!(&answer[..len], message.as_bytes());
    from
}

/// Whatever address the host is dialled by.
fn connected(lab: &Lab) {
    let server = Echo::start(&lab.host, 8080);
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
    assert_eq!(engines[0]["engine"], "socket");
    assert_eq!(report["rules"][0]["interfaces"]["lo"]["flows"], flows);
}

/// One socket talks to the dialled port, then to the target itself, and back.
fn unconnected(lab: &Lab) {
    let server = Echo::start(&lab.host, 8080);
    let redirector = start(lab, &["80:8080/both"]);
    let mut count = 0;
    for (addr, told) in addrs() {
        let socket = bind(&lab.host, any_like(addr));
        for (i, port) in [80, 80, 8080, 8080, 80, 8080, 80].into_iter().enumerate() {
            let message = format!("{i} to {addr}");
            let from = ask(&socket, &message, SocketAddr::new(addr, port));
            assert_eq!(from, SocketAddr::new(told, port), "{message}");
            server.peer(Proto::Udp, message.as_bytes());
        }
        count += 1;
    }
    let report = redirector.finish(lab);
    let rule = &report["rules"][0];
    // Each time that the port changes.
    assert_eq!(rule["flows"], 3 * count);
    assert_eq!(rule["packets"], 4 * count);
}

/// All of 127.0.0.0/8 is the host, and is answered from where it was dialled.
fn one_of_127(lab: &Lab) {
    let addr = IpAddr::from([127, 5, 5, 5]);
    let server = lab.host.enter(|| UdpSocket::bind((addr, 8080)));
    let server = server.expect("bind");
    let echo = std::thread::spawn(move || {
        let mut heard = [0; 100];
        loop {
            let (len, from) = uninterrupted(|| server.recv_from(&mut heard)).expect("a message");
            server.send_to(&heard[..len], from).expect("send");
            if &heard[..len] == b"the end" {
                return;
            }
        }
    });
    let _tcp = Listen::on(addr, 8080).start(&lab.host, "server");
    let redirector = start(lab, &["80:8080/both"]);
    let to = SocketAddr::new(addr, 80);
    assert_eq!(who(&lab.host, to).as_deref(), Some("server"));
    let (_, greeting) = meet(&lab.host, 0, to).expect("the server");
    assert_eq!(greeting.local, SocketAddr::new(addr, 8080));
    let mut conn = Conn::to(&lab.host, Proto::Udp, 0, to);
    conn.echo(b"connected");
    let socket = bind(&lab.host, Ipv4Addr::UNSPECIFIED.into());
    assert_eq!(ask(&socket, "the end", to), to);
    echo.join().expect("the server");
    redirector.finish(lab);
}

/// With an address of its own, a client that dials address zero gets that one.
fn bound_to_an_address(lab: &Lab) {
    let _server = Echo::start(&lab.host, 8080);
    let own = Family::V4.addr(1, 1);
    let zero = |port| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    let before = ask(&bind(&lab.host, own), "before", zero(8080));
    let redirector = start(lab, &["80:8080/both"]);
    let socket = bind(&lab.host, own);
    for port in [80, 8080, 80] {
        let from = ask(&socket, "while we are there", zero(port));
        assert_eq!(from, SocketAddr::new(before.ip(), port));
    }
    for proto in PROTOS {
        let mut conn = Conn::to(&lab.host, proto, 0, SocketAddr::new(own, 80));
        conn.echo(b"connected");
    }
    redirector.finish(lab);
}

fn many_ports_by_one_socket(lab: &Lab) {
    let ports = [(80, 8080), (81, 8181), (82, 8282), (83, 8383), (84, 8080)];
    let servers = ports[..4]
        .iter()
        .map(|(_, target)| Echo::start(&lab.host, *target));
    let servers: Vec<_> = servers.collect();
    let rules = ports.map(|(dialled, target)| format!("{dialled}:{target}/udp"));
    let rules: Vec<_> = rules.iter().map(String::as_str).collect();
    let redirector = start(lab, &rules);
    for addr in [
        Family::V4.addr(1, 1),
        Family::V6.addr(1, 1),
        mapped(Family::V4.addr(1, 1)),
    ] {
        let socket = bind(&lab.host, any_like(addr));
        for round in 0..5 {
            // The answers come when all is asked.
            let mut expected = Vec::new();
            for (i, (port, _)) in ports[..4].iter().enumerate() {
                let message = format!("{addr} {round} {port}");
                let to = SocketAddr::new(addr, *port);
                socket.send_to(message.as_bytes(), to).expect("send");
                servers[i].peer(Proto::Udp, message.as_bytes());
                expected.push((message.into_bytes(), to));
            }
            let mut heard: Vec<_> = (0..4)
                .map(|_| {
                    let mut answer = [0; 100];
                    let (len, from) =
                        uninterrupted(|| socket.recv_from(&mut answer)).expect("an answer");
                    (answer[..len].to_vec(), from)
                })
                .collect();
            heard.sort();
            assert_eq!(heard, expected);
        }
        // Two that lead to one.
        for port in [80, 84, 80, 84, 8080] {
            let to = SocketAddr::new(addr, port);
            assert_eq!(ask(&socket, "one target", to), to);
        }
    }
    redirector.finish(lab);
}

/// A UDP socket may be connected to another peer, and to none.
fn connects_again(lab: &Lab) {
    let _server = Echo::start(&lab.host, 8080);
    let redirector = start(lab, &["80:8080/udp"]);
    for addr in [
        Family::V4.addr(1, 1),
        Family::V6.addr(1, 1),
        mapped(Family::V4.addr(1, 1)),
    ] {
        let socket = bind(&lab.host, any_like(addr));
        for port in [80, 8080, 80, 80, 8080, 8080, 80] {
            let to = SocketAddr::new(addr, port);
            socket.connect(to).expect("connect");
            assert_eq!(socket.peer_addr().expect("a peer"), to);
            for message in [&b"one"[..], b"two"] {
                let mut answer = [0; 100];
                assert_eq!(socket.send(message).ok(), Some(3));
                let (len, from) =
                    uninterrupted(|| socket.recv_from(&mut answer)).expect("an answer");
                assert_eq!((&answer[..len], from), (message, to));
            }
            assert_eq!(socket.peer_addr().expect("a peer"), to);
        }
    }
    redirector.finish(lab);
}

/// `80:8080 8080:9090`: each redirects once.
fn chained_rules(lab: &Lab) {
    let servers = [8080, 9090].map(|port| Echo::start(&lab.host, port));
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
            let socket = bind(&lab.host, any_like(addr));
            let message = format!("to {to}");
            let from = ask(&socket, &message, to);
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

/// What it calls 127.0.0.1 is not ours, though it is in the same cgroup.
fn other_namespace(lab: &Lab) {
    let _ours = Echo::start(&lab.host, 8080);
    let other = lab.third();
    let [dialled, target] = [80, 8080].map(|port| Echo::start(&other, port));
    let redirector = start(lab, &["80:8080/both"]);
    for addr in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        for (port, server) in [(80, &dialled), (8080, &target)] {
            let to = SocketAddr::new(addr, port);
            for proto in PROTOS {
                let message = format!("to {to}");
                let mut conn = Conn::to(&other, proto, 0, to);
                conn.echo(message.as_bytes());
                server.peer(proto, message.as_bytes());
                assert_eq!(peer(&conn), to);
            }
            let socket = bind(&other, any_like(addr));
            let message = format!("without a connection to {to}");
            assert_eq!(ask(&socket, &message, to), to);
            server.peer(Proto::Udp, message.as_bytes());
        }
    }
    let report = redirector.finish(lab);
    assert_eq!(report["rules"][0]["flows"], 0);
    let passes = report["passes"].as_object().expect("passes");
    assert!(passes.values().all(|count| *count == 0), "{passes:?}");
}

/// A server on the dialled port of another host.
fn other_host(lab: &Lab) {
    let _ours = Echo::start(&lab.host, 8080);
    let [dialled, target] = [80, 8080].map(|port| Echo::start(&lab.client, port));
    let redirector = start(lab, &["80:8080/both"]);
    for family in Family::BOTH {
        for (port, server) in [(80, &dialled), (8080, &target)] {
            let to = SocketAddr::new(family.addr(1, 2), port);
            for proto in PROTOS {
                let message = format!("to {to}");
                let mut conn = Conn::to(&lab.host, proto, 0, to);
                conn.echo(message.as_bytes());
                server.peer(proto, message.as_bytes());
                assert_eq!(peer(&conn), to);
            }
            let socket = bind(&lab.host, any_like(to.ip()));
            assert_eq!(ask(&socket, "without a connection", to), to);
        }
    }
    let report = redirector.finish(lab);
    assert_eq!(report["rules"][0]["flows"], 0);
}

/// It is redirected, but the kernel asks us about one socket and the client about
/// another: it may be told the target.
fn mptcp_client(lab: &Lab) {
    let _server = Listen::on(Ipv6Addr::UNSPECIFIED, 8080).start(&lab.host, "server");
    let redirector = start(lab, &["80:8080"]);
    for family in Family::BOTH {
        let said = talk(&lab.host, "mptcp", family.host(80));
        let (peer, rest) = said.split_once('\n').expect("two lines");
        println!("{family:?}: an MPTCP client is told `{peer}`");
        assert!(["peer 80", "peer 8080"].contains(&peer), "{said}");
        assert!(rest.starts_with("server "), "{said}");
    }
    redirector.finish(lab);
}

fn fast_open(lab: &Lab) {
    lab.host.sysctl("ipv4/tcp_fastopen", "3");
    let redirector = start(lab, &["80:8080"]);
    for addr in [IpAddr::from(Ipv4Addr::LOCALHOST), Family::V6.addr(1, 1)] {
        let on = SocketAddr::new(any_like(addr), 8080);
        let _server = talk_server(&lab.host, "fast-open-server", on);
        let said = talk(&lab.host, "fast-open", SocketAddr::new(addr, 80));
        assert_eq!(said, "peer 80\n".repeat(3));
    }
    redirector.finish(lab);
}

fn forking_server(lab: &Lab) {
    let redirector = start(lab, &["80:8080"]);
    let on = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8080);
    let _server = talk_server(&lab.host, "forking-server", on);
    for _ in 0..3 {
        let (_, greeting) = meet(&lab.host, 0, SocketAddr::new(on.ip(), 80)).expect("the server");
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
        let served = who(&lab.host, SocketAddr::new(addr, 80));
        assert_eq!(served.as_deref(), Some("server"));
    }
    for family in Family::BOTH {
        assert_eq!(who(&lab.host, family.host(80)), None);
        assert_eq!(who(&lab.client, family.host(80)), None);
    }
    redirector.finish(lab);
}

/// Another protocol, with the same hooks.
fn udp_lite(lab: &Lab) {
    const ECHO: &str = r#"
import socket, sys
def udp_lite(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)
    s.settimeout(5)
    s.bind(("127.0.0.1", port))
    return s
try:
    client, dialled, target = udp_lite(0), udp_lite(80), udp_lite(8080)
except OSError as error:
    print("none:", error)
    sys.exit()
for _ in range(2):
    for server in dialled, target:
        client.sendto(b"hello", server.getsockname())
        assert server.recvfrom(10) == (b"hello", client.getsockname())
        server.sendto(b"hello", client.getsockname())
        assert client.recvfrom(10) == (b"hello", server.getsockname())
"#;
    let redirector = start(lab, &["80:8080/both"]);
    let said = lab.host.run(&[echo::python(), "-c", ECHO]);
    redirector.finish(lab);
    if said.starts_with("none") {
        crate::skip("needs UDP-Lite");
    }
}

/// One with a server on the dialled port when we come, and ours when we go.
fn connections_survive(lab: &Lab) {
    let [dialled, target] = [80, 8080].map(|port| Echo::start(&lab.host, port));
    let to = [Ipv4Addr::LOCALHOST.into(), Family::V6.addr(1, 1)].map(|a| SocketAddr::new(a, 80));
    let dial = |to| PROTOS.map(|proto| Conn::to(&lab.host, proto, 0, to));
    let say = |conns: &mut [[Conn; 2]; 2], words: &str, server: &Echo| {
        for (i, conn) in conns.iter_mut().flatten().enumerate() {
            let message = format!("{words} {i}");
            conn.echo(message.as_bytes());
            server.peer(PROTOS[i % 2], message.as_bytes());
        }
    };
    let mut old = to.map(dial);
    say(&mut old, "old, before", &dialled);
    let redirector = start(lab, &["80:8080/both"]);
    say(&mut old, "old, while we are there", &dialled);
    let mut new = to.map(dial);
    say(&mut new, "new, while we are there", &target);
    redirector.finish(lab);
    say(&mut old, "old, after", &dialled);
    say(&mut new, "new, after", &target);
    let mut newer = to.map(dial);
    say(&mut newer, "newer", &dialled);
}

/// With the address, or without on an IPv6 socket with an IPv4 peer, for which
/// the kernel names it.
fn older_sockets_name_their_peer(lab: &Lab) {
    let [dialled, target] = [80, 8080].map(|port| Echo::start(&lab.host, port));
    let sockets = [
        Ipv4Addr::LOCALHOST.into(),
        mapped(Ipv4Addr::LOCALHOST.into()),
    ]
    .map(|addr| {
        let socket = bind(&lab.host, any_like(addr));
        let to = SocketAddr::new(addr, 80);
        lab.host.enter(|| socket.connect(to)).expect("connect");
        (socket, to)
    });
    let say = |words: &str| {
        for (socket, to) in &sockets {
            let message = format!("{words} to {to}");
            assert_eq!(ask(socket, &message, *to), *to);
            dialled.peer(Proto::Udp, message.as_bytes());
            let message = format!("{words} without {to}");
            socket.send(message.as_bytes()).expect("send");
            let mut answer = [0; 100];
            let len = uninterrupted(|| socket.recv(&mut answer)).expect("an answer");
            assert_eq!(&answer[..len], message.as_bytes());
            dialled.peer(Proto::Udp, message.as_bytes());
        }
    };
    say("before");
    let redirector = start(lab, &["80:8080/udp"]);
    say("while we are there");
    let (_, to) = sockets[0];
    Conn::to(&lab.host, Proto::Udp, 0, to).echo(b"new");
    target.peer(Proto::Udp, b"new");
    redirector.finish(lab);
}

fn no_local(lab: &Lab) {
    let [dialled, target] = [80, 8080].map(|port| Echo::start(&lab.host, port));
    let redirector = start(lab, &["--no-local", "80:8080/both"]);
    for proto in PROTOS {
        for (addr, told) in addrs() {
            let mut conn = Conn::to(&lab.host, proto, 0, SocketAddr::new(addr, 80));
            let message = format!("{proto:?} to {addr}");
            conn.echo(message.as_bytes());
            dialled.peer(proto, message.as_bytes());
            assert_eq!(peer(&conn), SocketAddr::new(told, 80));
        }
        Conn::to(&lab.client, proto, 0, Family::V6.host(80)).echo(b"from outside");
        target.peer(proto, b"from outside");
    }
    let report = redirector.finish(lab);
    assert_eq!(report["rules"][0]["flows"], 2);
    assert_eq!(report["interfaces"].as_array().map(Vec::len), Some(1));
}

/// While a connection from outside is waited for, new ones go to the dialled
/// port, and known peers are known.
fn drain(lab: &Lab) {
    let [dialled, target] = [80, 8080].map(|port| Echo::start(&lab.host, port));
    let mut redirector = start(lab, &["--drain-timeout", "60", "80:8080/both"]);
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 80);
    let mut outside = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    outside.echo(b"outside");
    let mut old = PROTOS.map(|proto| Conn::to(&lab.host, proto, 0, to));
    old.iter_mut().for_each(|conn| conn.echo(b"before"));
    let socket = bind(&lab.host, Ipv4Addr::UNSPECIFIED.into());
    assert_eq!(ask(&socket, "before, without a connection", to), to);
    redirector.process.signal(Signal::SIGTERM);
    redirector.process.wait_for_words("waiting");
    for (conn, proto) in old.iter_mut().zip(PROTOS) {
        conn.echo(b"old at the end");
        target.peer(proto, b"old at the end");
        assert_eq!(peer(conn), to);
        let mut conn = Conn::to(&lab.host, proto, 0, to);
        conn.echo(b"new at the end");
        dialled.peer(proto, b"new at the end");
        assert_eq!(peer(&conn), to);
    }
    assert_eq!(ask(&socket, "at the end", to), to);
    target.peer(Proto::Udp, b"at the end");
    let new = bind(&lab.host, Ipv4Addr::UNSPECIFIED.into());
    assert_eq!(ask(&new, "new, without a connection", to), to);
    dialled.peer(Proto::Udp, b"new, without a connection");
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
    let server = Echo::start(&lab.host, 8080);
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
