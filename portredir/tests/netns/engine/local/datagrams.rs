//! Local clients with UDP sockets, connected or not: every reply comes from the
//! address and port that the client sent to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{addrs, any_like, mapped, start, udp_echo, udp_socket};
use crate::lab::python::python;
use crate::lab::{Family, Lab};
use crate::peer::conn::{Conn, PROTOS, Proto, uninterrupted};
use crate::peer::echo::EchoServer;
use crate::peer::listener::{Listen, connect_and_greet, server_name};

/// One socket sends to the destination port, then to the target port itself, and
/// back.
pub fn unconnected(lab: &Lab) {
    let server = EchoServer::start(&lab.host, 8080);
    let redirector = start(lab, &["80:8080/both"]);
    let mut count = 0;
    for (addr, told) in addrs() {
        let socket = udp_socket(&lab.host, any_like(addr));
        for (i, port) in [80, 80, 8080, 8080, 80, 8080, 80].into_iter().enumerate() {
            let message = format!("{i} to {addr}");
            let from = udp_echo(&socket, &message, SocketAddr::new(addr, port));
            assert_eq!(from, SocketAddr::new(told, port), "{message}");
            server.peer(Proto::Udp, message.as_bytes());
        }
        count += 1;
    }
    let report = redirector.finish(lab);
    let rule = &report["rules"][0];
    // A flow is counted each time that the port changes.
    assert_eq!(rule["flows"], 3 * count);
    // No hook sees each packet of a connected socket, so none are counted.
    assert!(rule["interfaces"]["lo"]["packets"].is_null(), "{rule}");
}

/// Every address of 127.0.0.0/8 belongs to the host, and the reply comes from the
/// address that the client sent to.
pub fn one_of_127(lab: &Lab) {
    let addr = IpAddr::from([127, 5, 5, 5]);
    let server = lab.host.bind((addr, 8080));
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
    assert_eq!(server_name(&lab.host, to).as_deref(), Some("server"));
    let (_, greeting) = connect_and_greet(&lab.host, 0, to).expect("the server");
    assert_eq!(greeting.local, SocketAddr::new(addr, 8080));
    let mut conn = Conn::to(&lab.host, Proto::Udp, 0, to);
    conn.echo(b"connected");
    let socket = udp_socket(&lab.host, Ipv4Addr::UNSPECIFIED.into());
    assert_eq!(udp_echo(&socket, "the end", to), to);
    echo.join().expect("the server");
    redirector.finish(lab);
}

/// A client with a bound address that sends to address zero reaches its own
/// address.
pub fn bound_to_an_address(lab: &Lab) {
    let _server = EchoServer::start(&lab.host, 8080);
    let own = Family::V4.addr(1, 1);
    let zero = |port| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    let before = udp_echo(&udp_socket(&lab.host, own), "before", zero(8080));
    let redirector = start(lab, &["80:8080/both"]);
    let socket = udp_socket(&lab.host, own);
    for port in [80, 8080, 80] {
        let from = udp_echo(&socket, "while we are there", zero(port));
        assert_eq!(from, SocketAddr::new(before.ip(), port));
    }
    for proto in PROTOS {
        let mut conn = Conn::to(&lab.host, proto, 0, SocketAddr::new(own, 80));
        conn.echo(b"connected");
    }
    redirector.finish(lab);
}

pub fn many_ports_by_one_socket(lab: &Lab) {
    let ports = [(80, 8080), (81, 8181), (82, 8282), (83, 8383), (84, 8080)];
    let servers = ports[..4]
        .iter()
        .map(|(_, target)| EchoServer::start(&lab.host, *target));
    let servers: Vec<_> = servers.collect();
    let rules = ports.map(|(dst_server, target)| format!("{dst_server}:{target}/udp"));
    let rules: Vec<_> = rules.iter().map(String::as_str).collect();
    let redirector = start(lab, &rules);
    for addr in [
        Family::V4.addr(1, 1),
        Family::V6.addr(1, 1),
        mapped(Family::V4.addr(1, 1)),
    ] {
        let socket = udp_socket(&lab.host, any_like(addr));
        for round in 0..5 {
            // The answers are read after all requests.
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
        // Two destination ports with one target port.
        for port in [80, 84, 80, 84, 8080] {
            let to = SocketAddr::new(addr, port);
            assert_eq!(udp_echo(&socket, "one target", to), to);
        }
    }
    redirector.finish(lab);
}

/// A UDP socket may be connected to another peer, and to none.
pub fn connects_again(lab: &Lab) {
    let _server = EchoServer::start(&lab.host, 8080);
    let redirector = start(lab, &["80:8080/udp"]);
    for addr in [
        Family::V4.addr(1, 1),
        Family::V6.addr(1, 1),
        mapped(Family::V4.addr(1, 1)),
    ] {
        let socket = udp_socket(&lab.host, any_like(addr));
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

/// Another protocol, with the same hooks.
pub fn udp_lite(lab: &Lab) {
    const ECHO: &str = r#"
import socket, sys
def udp_lite(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)
    s.settimeout(5)
    s.bind(("127.0.0.1", port))
    return s
try:
    client, direct, target = udp_lite(0), udp_lite(80), udp_lite(8080)
except OSError as error:
    print("none:", error)
    sys.exit()
for _ in range(2):
    for server in direct, target:
        client.sendto(b"hello", server.getsockname())
        assert server.recvfrom(10) == (b"hello", client.getsockname())
        server.sendto(b"hello", client.getsockname())
        assert client.recvfrom(10) == (b"hello", server.getsockname())
"#;
    let redirector = start(lab, &["80:8080/both"]);
    let said = lab.host.run(&[python(), "-c", ECHO]);
    redirector.finish(lab);
    if said.starts_with("none") {
        crate::skip("needs UDP-Lite");
    }
}

/// With the address, or without on an IPv6 socket with an IPv4 peer, for which
/// the kernel names it.
pub fn older_sockets_name_their_peer(lab: &Lab) {
    let [dst_server, target] = [80, 8080].map(|port| EchoServer::start(&lab.host, port));
    let sockets = [
        Ipv4Addr::LOCALHOST.into(),
        mapped(Ipv4Addr::LOCALHOST.into()),
    ]
    .map(|addr| {
        let socket = udp_socket(&lab.host, any_like(addr));
        let to = SocketAddr::new(addr, 80);
        lab.host.enter(|| socket.connect(to)).expect("connect");
        (socket, to)
    });
    let say = |words: &str| {
        for (socket, to) in &sockets {
            let message = format!("{words} to {to}");
            assert_eq!(udp_echo(socket, &message, *to), *to);
            dst_server.peer(Proto::Udp, message.as_bytes());
            let message = format!("{words} without {to}");
            socket.send(message.as_bytes()).expect("send");
            let mut answer = [0; 100];
            let len = uninterrupted(|| socket.recv(&mut answer)).expect("an answer");
            assert_eq!(&answer[..len], message.as_bytes());
            dst_server.peer(Proto::Udp, message.as_bytes());
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
