//! Listeners, routes and ports that are out of the ordinary. The table in
//! [`crate::engine::coexist`] names the tests for rows of the conformance suite.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sys::signal::Signal;
use nix::sys::socket::sockopt::{Ipv6V6Only, ReusePort};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
};
use serde_json::Value;

use crate::lab::capture::Capture;
use crate::lab::namespace::Namespace;
use crate::lab::process::wait_for;
use crate::lab::program::{Redirector, attached};
use crate::lab::{Family, Lab, link};
use crate::peer::conn::{Conn, PROTOS, Proto, is_refused};
use crate::peer::echo::EchoServer;
use crate::{Cell, ENGINES, Tests};

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "stop_with_live_connection", &[], |cell| {
        stop_with_live_connection(cell);
    });
    tests.add_for(&ENGINES, "asymmetric_route", &[], asymmetric_route);
    tests.add_for(&ENGINES, "link_local", &[], link_local);
    tests.add_for(&["auto"], "other_namespace", &[], other_namespace);
    tests.add_for(&ENGINES, "from_target_port", &[], from_target_port);
    tests.add_for(&ENGINES, "server_restart", &[], server_restart);
    tests.add_for(&ENGINES, "target_on_loopback", &[], target_on_loopback);
    tests.add_for(&ENGINES, "reuseport_group", &[], reuseport_group);
    tests.add_for(&ENGINES, "ipv6_only", &[], ipv6_only);
}

/// SIGTERM ends what is not there yet: new connections are no longer
/// redirected, old ones go on until they end, and then so does the program.
fn stop_with_live_connection(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 8080);
    let mut redirector = Redirector::of(cell, &lab, &["80:8080"]);
    let connect = |port| Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(port));
    let mut conns = [connect(80), connect(80)];
    for conn in &mut conns {
        conn.echo(b"before");
    }
    redirector.process.signal(Signal::SIGTERM);
    wait_for("the end of the redirect", || {
        is_refused(&lab.client, Proto::Tcp, Family::V4.host(80)).then_some(())
    });
    let [mut first, mut second] = conns;
    for round in 0..5 {
        let message = format!("after, round {round}");
        for conn in [&mut first, &mut second] {
            conn.echo(message.as_bytes());
        }
        server.peer(Proto::Tcp, message.as_bytes());
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(first);
    second.echo(b"the other one is gone");
    drop(second);
    assert!(redirector.process.wait().success());
    assert_eq!(attached(&lab.host), [""; 0]);
}

/// A packet comes in on one interface, and its reply leaves by another.
fn asymmetric_route(cell: &Cell) {
    let lab = Lab::new(cell);
    link((&lab.host, "h1", (4, 1)), (&lab.client, "c1", (4, 2)));
    for (at, interface) in [(&lab.host, "h1"), (&lab.client, "c1")] {
        at.run(&["ethtool", "-K", interface, "tx", "off"]);
    }
    for at in [&lab.host, &lab.client] {
        at.sysctl("ipv4/conf/all/rp_filter", "0");
        for interface in ["h0", "h1", "c0", "c1"] {
            if at.enter(|| if_nametoindex(interface)).is_ok() {
                at.sysctl(&format!("ipv4/conf/{interface}/rp_filter"), "0");
            }
        }
    }
    for family in Family::BOTH {
        // The echo answers UDP from the address that the route says.
        let [client, via, host] = [(1, 2), (4, 2), (1, 1)].map(|(net, at)| family.addr(net, at));
        lab.host
            .ip(&format!("route add {client} via {via} dev h1 src {host}"));
    }
    let server = EchoServer::start(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    let answers = Capture::start(&lab.client, "c1", "src port 80");
    for family in Family::BOTH {
        for proto in PROTOS {
            let message = format!("{family:?} {proto:?} around");
            // With the address of c0: with that of c1 the route would not be asymmetric.
            let mut conn = Conn::to(&lab.client, proto, 0, family.host(80));
            assert_eq!(conn.local().ip(), family.addr(1, 2));
            conn.echo(message.as_bytes());
            server.peer(proto, message.as_bytes());
            answers.wait_for("the answer by the other way", |frame| {
                let is_it = |bytes: &[u8]| bytes == message.as_bytes();
                frame.windows(message.len()).any(is_it).then_some(())
            });
        }
    }
    let report = redirector.finish(&lab);
    let by = |name, key| &report["rules"][0]["interfaces"][name][key];
    assert!(by("h0", "packets").as_u64() > Some(0), "{report}");
    assert_eq!(*by("h0", "packets_out"), 0, "{report}");
    assert_eq!(*by("h1", "packets"), 0, "{report}");
    assert!(by("h1", "packets_out").as_u64() > Some(0), "{report}");
}

/// An address without a network of its own, from outside and from the host.
fn link_local(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 8080);
    let args = ["--iface", "all", "--engine", cell.engine, "80:8080/both"];
    let redirector = Redirector::start(&lab.host, &args);
    let shown = lab
        .host
        .run(&["ip", "-json", "-6", "addr", "show", "h0", "scope", "link"]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let infos = shown[0]["addr_info"].as_array().expect("addresses");
    let addr = infos.iter().find_map(|info| info["local"].as_str());
    let addr: Ipv6Addr = addr.and_then(|a| a.parse().ok()).expect("an address");
    for (at, interface) in [(&lab.client, "c0"), (&lab.host, "h0")] {
        let scope = at.enter(|| if_nametoindex(interface)).expect(interface);
        let to: SocketAddr = SocketAddrV6::new(addr, 80, 0, scope).into();
        for proto in PROTOS {
            let message = format!("{proto:?} {to}");
            Conn::to(at, proto, 0, to).echo(message.as_bytes());
            server.peer(proto, message.as_bytes());
        }
    }
    redirector.finish(&lab);
}

/// Local traffic of another network namespace is left alone.
fn other_namespace(_: &Cell) {
    let lab = Lab::new(&Cell {
        engine: "auto",
        is_offloaded: true,
        family: Family::V4,
    });
    let [dst_server, target] = [80, 8080].map(|port| EchoServer::start(&lab.client, port));
    let here = EchoServer::start(&lab.host, 8080);
    let redirector = Redirector::start(&lab.host, &["--iface", "all", "80:8080/both"]);
    for proto in PROTOS {
        for to in ["127.0.0.1", "::1", "10.9.1.2", "fd09:0:0:1::2"] {
            let message = format!("{proto:?} {to}");
            let to = SocketAddr::new(to.parse().expect("an address"), 80);
            Conn::to(&lab.client, proto, 0, to).echo(message.as_bytes());
            dst_server.peer(proto, message.as_bytes());
            for other in [&target, &here] {
                assert_eq!(other.find(proto, message.as_bytes()), None);
            }
        }
    }
    redirector.finish(&lab);
}

/// The host connects to another host from the ports of a rule.
fn from_target_port(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.client, 9000);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    for family in Family::BOTH {
        for proto in PROTOS {
            for from in [8080, 80] {
                // A packet that comes in for port 80 is redirected, unless a
                // socket holds that connection. UDP has none.
                if (proto, from) == (Proto::Udp, 80) {
                    continue;
                }
                let message = format!("{family:?} {proto:?} from {from}");
                let to = SocketAddr::new(family.addr(1, 2), 9000);
                let mut conn = Conn::to(&lab.host, proto, from, to);
                (0..3).for_each(|_| conn.echo(message.as_bytes()));
                let peer = server.peer(proto, message.as_bytes());
                assert_eq!(peer.port(), from, "{message}");
            }
        }
    }
    redirector.finish(&lab);
}

/// No operator has to do anything.
fn server_restart(cell: &Cell) {
    let lab = Lab::new(cell);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    for round in 0..3 {
        for proto in PROTOS {
            assert!(is_refused(&lab.client, proto, Family::V4.host(80)));
        }
        let server = EchoServer::start(&lab.host, 8080);
        for proto in PROTOS {
            let message = format!("{proto:?} in round {round}");
            Conn::to(&lab.client, proto, 0, Family::V4.host(80)).echo(message.as_bytes());
            server.peer(proto, message.as_bytes());
        }
    }
    redirector.finish(&lab);
}

/// A server on 127.0.0.1 is reached from the host and not from outside.
fn target_on_loopback(cell: &Cell) {
    let lab = Lab::new(cell);
    let listener = lab.host.listen("127.0.0.1:8080");
    let args = ["--iface", "all", "--engine", cell.engine, "80:8080"];
    let redirector = Redirector::start(&lab.host, &args);
    assert!(is_refused(&lab.client, Proto::Tcp, Family::V4.host(80)));
    let to = "127.0.0.1:80".parse().expect("an address");
    let conn = Conn::to(&lab.host, Proto::Tcp, 0, to);
    let (_, peer) = listener.accept().expect("accept");
    assert_eq!(peer, conn.local());
    redirector.finish(&lab);
}

/// Connections are spread over all that share the target port.
fn reuseport_group(cell: &Cell) {
    let lab = Lab::new(cell);
    let listeners = [(); 4].map(|()| listen_on(&lab.host, 8080, Stack::Dual));
    let redirector = Redirector::of(cell, &lab, &["80:8080"]);
    let mut conns = Vec::new();
    for family in Family::BOTH {
        conns.extend((0..60).map(|_| Conn::to(&lab.client, Proto::Tcp, 0, family.host(80))));
    }
    let mut accepted = [0; 4];
    wait_for("all connections", || {
        for (listener, count) in listeners.iter().zip(&mut accepted) {
            while listener.accept().is_ok() {
                *count += 1;
            }
        }
        (accepted.iter().sum::<usize>() == conns.len()).then_some(())
    });
    // One listener gets no connection by chance once in 10^12 runs.
    assert!(accepted.iter().all(|count| *count > 0), "{accepted:?}");
    redirector.finish(&lab);
}

/// IPv4 is refused, as it is by the target itself.
fn ipv6_only(cell: &Cell) {
    let lab = Lab::new(cell);
    let listener = listen_on(&lab.host, 8080, Stack::V6Only);
    let redirector = Redirector::of(cell, &lab, &["80:8080"]);
    assert!(is_refused(&lab.client, Proto::Tcp, Family::V4.host(80)));
    let conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V6.host(80));
    let (_, peer) = wait_for("the connection", || listener.accept().ok());
    assert_eq!(peer, conn.local());
    redirector.finish(&lab);
}

/// The IP versions that an IPv6 socket serves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stack {
    Dual,
    V6Only,
}

/// Listens on all addresses, of IPv6 alone or of both, with others.
fn listen_on(namespace: &Namespace, port: u16, stack: Stack) -> TcpListener {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let open = || socket(AddressFamily::Inet6, SockType::Stream, flags, None);
    let fd = namespace.enter(open).expect("a socket");
    setsockopt(&fd, ReusePort, &true).expect("share the port");
    setsockopt(&fd, Ipv6V6Only, &(stack == Stack::V6Only)).expect("choose the IP version");
    let addr = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    bind(fd.as_raw_fd(), &SockaddrStorage::from(addr)).expect("bind");
    listen(&fd, Backlog::new(128).expect("a backlog")).expect("listen");
    fd.into()
}
