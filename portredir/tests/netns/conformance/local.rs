//! The places that traffic comes from: the host itself, containers, and clients
//! that talk past the host. Conversations that the host begins from a port of a rule, and
//! addresses that are local by a route, are here too.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket};

use nix::net::if_::if_nametoindex;

use super::case::{Case, tcp, udp};
use super::client::{Conversation, converse, converse_from};
use super::frame::SYN;
use super::ghost::Ghost;
use super::observe::{Observation, check, failure};
use super::site::Site;
use super::udp::{any, heard, socket_from};
use crate::lab::Family;
use crate::lab::namespace::Namespace;
use crate::peer::conn::Proto;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    tcp(63, "own_addresses", "the host connects to itself: by loopback, by its own address, by link-local", |site, family| own_addresses(site, family, Proto::Tcp)),
    tcp(64, "own_invalid_drop", "the same with `ct state invalid drop` on OUTPUT", own_invalid_drop),
    udp(65, "own_datagrams", "the host sends datagrams to itself", |site, family| own_addresses(site, family, Proto::Udp)),
    tcp(66, "container_to_host", "a container connects to the host: by its gateway, by its outer address", |site, family| container_to_host(site, family, Proto::Tcp)),
    tcp(67, "container_to_container", "a container connects to port 80 of another one on the same bridge", |site, family| converse(&site.a, Proto::Tcp, at(family, 3, 3, 80))),
    tcp(68, "forwarded", "the client connects to port 80 of the far host, through the host", |site, family| converse(&site.lab.client, Proto::Tcp, at(family, 2, 2, 80))),
    tcp(69, "other_namespace", "the client connects to itself", other_namespace),
    tcp(70, "from_target_port", "the host connects to the far host from port 8081, a target port", from_target_port),
    udp(137, "container_datagrams", "a container sends datagrams to the host", |site, family| container_to_host(site, family, Proto::Udp)),
    udp(138, "container_to_container_datagram", "a datagram from a container to another", |site, family| converse(&site.a, Proto::Udp, at(family, 3, 3, 80))),
    udp(139, "forwarded_datagram", "a datagram to the far host's port 80", |site, family| converse(&site.lab.client, Proto::Udp, at(family, 2, 2, 80))),
    tcp(140, "forwarded_target", "the client connects to port 8080 of the far host", |site, family| converse(&site.lab.client, Proto::Tcp, at(family, 2, 2, 8080))),
    tcp(141, "host_dials_out", "the host connects to port 80 of the far host", |site, family| converse(&site.lab.host, Proto::Tcp, at(family, 2, 2, 80))),
    tcp(142, "own_refused", "the host connects to its own port 81, where nothing listens on the target port", |site, family| converse(&site.lab.host, Proto::Tcp, SocketAddr::new(loopback(family), 81))),
    tcp(143, "own_direct", "the host connects to its own port 8080", |site, family| converse(&site.lab.host, Proto::Tcp, SocketAddr::new(loopback(family), 8080))),
    tcp(144, "mapped", "the host connects to `::ffff:127.0.0.1`", mapped).v6(),
    tcp(145, "unspecified", "the host connects to `0.0.0.0`, `::`", unspecified),
    tcp(146, "link_local", "the client connects to the host's link-local address", link_local).v6(),
    tcp(147, "martian", "SYN from the wire to a loopback address", |site, family| misaddressed(site, family, Wrong::Destination)),
    tcp(148, "own_source", "SYN from the wire with the host's own address as its source", |site, family| misaddressed(site, family, Wrong::Source)),
    udp(149, "own_refused_datagram", "the host sends a datagram to its own port 81", |site, family| converse(&site.lab.host, Proto::Udp, SocketAddr::new(loopback(family), 81))),
    udp(167, "own_questions", "the host asks the client's server from ports that rules name, by sendto and by a connected socket; servers listen on the target ports", own_questions),
    tcp(168, "own_connections", "the host connects to the client from ports that rules name; servers listen on the target ports", own_connections),
    tcp(169, "masqueraded", "a container behind the host's masquerade connects to the client from ports that rules name, which netfilter keeps", |site, family| masqueraded(site, family, Proto::Tcp)),
    udp(170, "masqueraded_datagram", "the same for datagrams", |site, family| masqueraded(site, family, Proto::Udp)),
    tcp(173, "local_routes", "addresses that the host has by routes of type `local`: one of a network, a single one; from the host itself", |site, family| local_routes(site, family, Proto::Tcp)),
    udp(174, "local_routes_datagram", "the same for datagrams; over IPv6 with `ip_nonlocal_bind` on the host", local_routes_datagram),
    udp(175, "local_route_without_bind", "a datagram to such an address without `ip_nonlocal_bind`", |site, family| converse(&site.lab.client, Proto::Udp, at(family, 7, 7, 80))).v6(),
];

/// Ports that a range and a single rule name, with the target port of each.
const PORTS: [(&str, u16, u16); 2] = [("range", 9005, 9105), ("single", 97, 8097)];

fn at(family: Family, net: u8, host: u8, port: u16) -> SocketAddr {
    SocketAddr::new(family.addr(net, host), port)
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The host's link-local address on the link to the client.
fn on_link(from: &Namespace, interface: &str, port: u16) -> SocketAddr {
    let scope = from.enter(|| if_nametoindex(interface)).expect(interface);
    let addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    SocketAddrV6::new(addr, port, 0, scope).into()
}

fn meet(from: &Namespace, proto: Proto, to: SocketAddr) -> Observation {
    match Conversation::begin(from, proto, 0, to) {
        Ok(mut conversation) => conversation.facts().and(conversation.addr_fact()),
        Err(error) => Observation::of(failure(&error)),
    }
}

fn own_addresses(site: &Site, family: Family, proto: Proto) -> Observation {
    let host = &site.lab.host;
    let mut to = vec![
        ("loopback", SocketAddr::new(loopback(family), 80)),
        ("its own", family.host(80)),
    ];
    match family {
        Family::V4 => to.push(("127.5.5.5", "127.5.5.5:80".parse().expect("an address"))),
        Family::V6 => to.push(("link-local", on_link(host, "h0", 80))),
    }
    let mut all = Observation::default();
    for (name, to) in to {
        all = all.with(name, &meet(host, proto, to));
    }
    all
}

const INVALID_DROP: &str = "
    chain output {
        type filter hook output priority 0
        ct state invalid drop
    }";

fn own_invalid_drop(site: &Site, family: Family) -> Observation {
    let _filter = site.filter(INVALID_DROP);
    converse(
        &site.lab.host,
        Proto::Tcp,
        SocketAddr::new(loopback(family), 80),
    )
}

fn container_to_host(site: &Site, family: Family, proto: Proto) -> Observation {
    Observation::default()
        .with("gateway", &converse(&site.a, proto, at(family, 3, 1, 80)))
        .with("outer", &converse(&site.a, proto, at(family, 1, 1, 80)))
}

fn other_namespace(site: &Site, family: Family) -> Observation {
    let to = SocketAddr::new(loopback(family), 80);
    converse(&site.lab.client, Proto::Tcp, to)
}

fn from_target_port(site: &Site, family: Family) -> Observation {
    let to = at(family, 2, 2, 80);
    meet_from(&site.lab.host, Proto::Tcp, 8081, to).0
}

/// Talks from a port, and tells which port the server saw; its address is returned too.
fn meet_from(
    from: &Namespace,
    proto: Proto,
    port: u16,
    to: SocketAddr,
) -> (Observation, Option<IpAddr>) {
    match Conversation::begin(from, proto, port, to) {
        Ok(mut conversation) => {
            let peer = conversation.peer;
            let seen = conversation
                .facts()
                .and(format!("source port {}", peer.port()));
            if proto == Proto::Tcp {
                // Without the reset the port would stay in use.
                conversation.conn.reset();
            }
            (seen, Some(peer.ip()))
        }
        Err(error) => (Observation::of(failure(&error)), None),
    }
}

/// Sockets on a target port, which must hear nothing.
struct Target {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Target {
    fn listen(site: &Site, family: Family, port: u16) -> Self {
        let addr = any(family, port);
        let (tcp, udp) = (site.lab.host.listen(addr), site.lab.host.bind(addr));
        tcp.set_nonblocking(true).expect("nonblocking");
        udp.set_nonblocking(true).expect("nonblocking");
        Self { tcp, udp }
    }

    fn fact(&self) -> String {
        let is_empty = |kind| kind == ErrorKind::WouldBlock;
        let has_no_client = self.tcp.accept().is_err_and(|error| is_empty(error.kind()));
        let received = self.udp.recv(&mut [0]);
        let has_no_datagram = received.is_err_and(|error| is_empty(error.kind()));
        check(has_no_client && has_no_datagram, "nothing at the target")
    }
}

fn own_questions(site: &Site, family: Family) -> Observation {
    let host = &site.lab.host;
    let to = at(family, 1, 2, 8080);
    let mut all = Observation::default();
    for (name, port, target) in PORTS {
        let target = Target::listen(site, family, target);
        let socket = socket_from(host, any(family, port));
        socket.send_to(b"a question", to).expect("send");
        let sendto = answer(&socket, to);
        // Another socket might find the port taken: a process that is about to start has a
        // copy of this one for a moment.
        socket.connect(to).expect("connect");
        socket.send(b"a question").expect("send");
        let seen = Observation::default()
            .with("sendto", &sendto)
            .with("connected", &answer(&socket, to))
            .and(target.fact());
        all = all.with(name, &seen);
    }
    all
}

/// The server whose answer a socket gets.
fn answer(socket: &UdpSocket, to: SocketAddr) -> Observation {
    match heard(socket) {
        Ok((from, name)) => Observation::of(format!("{name} reached"))
            .and(check(from == to, "from the address that was asked")),
        Err(error) => Observation::of(error),
    }
}

fn own_connections(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for (name, port, target) in PORTS {
        let target = Target::listen(site, family, target);
        let to = at(family, 1, 2, 8080);
        let (seen, _) = meet_from(&site.lab.host, Proto::Tcp, port, to);
        all = all.with(name, &seen.and(target.fact()));
    }
    all
}

const MASQUERADE: &str = "
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname h0 masquerade
    }";

fn masqueraded(site: &Site, family: Family, proto: Proto) -> Observation {
    let _masquerade = site.filter(MASQUERADE);
    let mut all = Observation::default();
    for (name, port, target) in PORTS {
        let target = Target::listen(site, family, target);
        // Conntrack may still have what the host itself asked on 8080.
        let (seen, addr) = meet_from(&site.a, proto, port, at(family, 1, 2, 80));
        let container = family.addr(3, 2);
        let is_masked = addr.is_some_and(|addr| addr != container);
        let seen = seen
            .and(check(is_masked, "the container's address replaced"))
            .and(target.fact());
        all = all.with(name, &seen);
    }
    all
}

fn local_routes(site: &Site, family: Family, proto: Proto) -> Observation {
    let (network, single) = (at(family, 7, 7, 80), at(family, 9, 9, 80));
    let (client, host) = (&site.lab.client, &site.lab.host);
    Observation::default()
        .with("network", &converse(client, proto, network))
        .with("single", &converse(client, proto, single))
        .with("itself", &converse(host, proto, network))
}

fn local_routes_datagram(site: &Site, family: Family) -> Observation {
    // Otherwise no server may answer from there (`ip6_datagram_send_ctl`).
    let _tuned = site.tune("ipv6/ip_nonlocal_bind", "1");
    local_routes(site, family, Proto::Udp)
}

fn mapped(site: &Site, _: Family) -> Observation {
    let to = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    converse(&site.lab.host, Proto::Tcp, (to, 80).into())
}

fn unspecified(site: &Site, family: Family) -> Observation {
    converse(&site.lab.host, Proto::Tcp, any(family, 80))
}

fn link_local(site: &Site, _: Family) -> Observation {
    let to = on_link(&site.lab.client, "c0", 80);
    converse_from(&site.lab.client, Proto::Tcp, 0, to)
}

/// The address of a SYN that no honest host sends.
#[derive(Clone, Copy)]
enum Wrong {
    Destination,
    Source,
}

/// Sends a SYN that no honest host sends.
fn misaddressed(site: &Site, family: Family, wrong: Wrong) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.tcp(80, SYN);
    ip.sum = super::frame::Sum::Right;
    match wrong {
        Wrong::Destination => ip.dst = loopback(family),
        Wrong::Source => ip.src = ghost.host(),
    }
    ghost.ask(&ip)
}
