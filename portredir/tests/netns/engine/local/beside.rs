//! Local clients that the connect hook does not redirect: the socket lookup gives their
//! connections to the listener on the target.

use std::net::{IpAddr, SocketAddr};

use super::{addrs, peer, start};
use crate::lab::Lab;
use crate::lab::capture::Capture;
use crate::peer::listener::{Listen, Server, connect_and_greet, server_name};
use crate::peer::raw::{RawSender, Segment, tcp};

const ANY: IpAddr = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);

/// Addresses that are not mapped.
fn plain_addrs() -> impl Iterator<Item = IpAddr> {
    addrs()
        .into_iter()
        .filter(|(addr, told)| addr == told && addr.to_canonical() == *addr)
        .map(|(addr, _)| addr)
}

/// One source port is used to two ports that lead to one target, in both orders.
pub fn bound_to_a_port(lab: &Lab) {
    let _server = Listen::on(ANY, 8080).start(&lab.host, "server");
    let redirector = start(lab, &["80:8080", "81:8080"]);
    let mut client_port = 5550;
    for addr in plain_addrs() {
        for ports in [[80, 8080], [8080, 80], [80, 81]] {
            client_port += 1;
            let connected = ports.map(|port| {
                let to = SocketAddr::new(addr, port);
                let connected = connect_and_greet(&lab.host, client_port, to);
                connected.unwrap_or_else(|error| panic!("{client_port} to {to}: {error}"))
            });
            for ((conn, greeting), port) in connected.iter().zip(ports) {
                assert_eq!(greeting.name, "server");
                assert_eq!(peer(conn), SocketAddr::new(addr, port));
            }
        }
    }
    redirector.finish(lab);
}

/// Rules do not chain, also for a client that is bound to a port.
pub fn bound_to_a_port_before_chained_rules(lab: &Lab) {
    let servers = [(8080, "first"), (9090, "second")];
    let _servers: Vec<Server> = servers
        .map(|(port, name)| Listen::on(ANY, port).start(&lab.host, name))
        .into();
    let redirector = start(lab, &["80:8080", "8080:9090"]);
    let mut client_port = 5650;
    for addr in plain_addrs() {
        for (port, name) in [(80, "first"), (8080, "second"), (9090, "second")] {
            client_port += 1;
            let to = SocketAddr::new(addr, port);
            let (_, greeting) = connect_and_greet(&lab.host, client_port, to).expect("a server");
            assert_eq!(greeting.name, name, "{to}, bound");
            assert_eq!(server_name(&lab.host, to).as_deref(), Some(name), "{to}");
        }
    }
    redirector.finish(lab);
}

/// A SYN of a raw socket, as scanners send it, is answered as a server there answers it.
pub fn raw_syn(lab: &Lab) {
    let _server = Listen::on(ANY, 8080).start(&lab.host, "server");
    let redirector = start(lab, &["80:8080"]);
    let sender = RawSender::new(&lab.host);
    let mut client_port = 40_000;
    for addr in plain_addrs() {
        client_port += 1;
        let [from, to] = [client_port, 80].map(|port| SocketAddr::new(addr, port));
        let capture = Capture::start(&lab.host, "lo", &format!("dst port {client_port}"));
        sender.send(addr, &[tcp(from, to, Segment::Syn, (1, 0))]);
        let flags = capture.wait_for(&format!("an answer to {to}"), |frame| {
            // Ethernet, then IP without options.
            let transport = if addr.is_ipv4() { 34 } else { 54 };
            frame.get(transport + 13).copied()
        });
        assert_eq!(flags & 0x17, 0x12, "{to}: SYN-ACK");
    }
    let report = redirector.finish(lab);
    assert_eq!(report["rules"][0]["flows"], u64::from(client_port - 40_000));
}
