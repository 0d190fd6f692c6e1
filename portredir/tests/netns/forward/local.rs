//! Clients on the host itself, whose sockets are pointed at a target with an address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::Ipv6V6Only;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket,
};
use portredir::sys::sock_destroy;

use super::rules::Rule;
use super::site::{SENTINEL, Site};
use super::subject::{Layout, Place, Subject, Variant};
use super::talk::{goes_on, name, reach, still_talks};
use super::target::{target, wait_until};
use crate::conformance::client::{Conversation, greeting};
use crate::conformance::site::Offload;
use crate::lab::Family;
use crate::lab::extent::allow;
use crate::lab::program::PROGRAM;
use crate::peer::conn::{Conn, PROTOS, Proto};
use crate::{Tests, skip};

pub fn add(tests: &mut Tests) {
    type Test = (&'static str, fn(&mut Site));
    const TESTS: [Test; 6] = [
        ("address_zero", address_zero),
        ("bound_to_loopback", bound_to_loopback),
        ("ipv6_to_ipv4", ipv6_to_ipv4),
        ("ipv6_that_cannot", ipv6_that_cannot),
        ("sockets_are_ended", sockets_are_ended),
        ("sockets_stay", sockets_stay),
    ];
    for (name, test) in TESTS {
        tests.add(format!("forward/local/{name}"), &[], move || {
            allow(Duration::from_secs(60));
            let layout = Layout::Bridge(true);
            let offload = Offload::On;
            let variant = Variant { layout, offload };
            let mut site = Site::idle(Subject::Engine("auto"), variant);
            test(&mut site);
            site.finish();
        });
    }
}

const LOOPBACK4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Port 80 of every address leads to F, by IPv4.
fn start_to_f(site: &mut Site) {
    let f = target(site, Family::V4, Place::F);
    site.up(&[Rule::anywhere(80, &[f])]);
}

/// The count of a reason, as `metrics` prints it.
fn count(site: &Site, reason: &str) -> u64 {
    let metrics = site.lab.host.run(&[PROGRAM, "metrics"]);
    let label = format!("{{reason=\"{reason}\"}} ");
    let mut lines = metrics.lines();
    let found = lines.find_map(|line| Some(line.split_once(&label)?.1));
    let found = found.unwrap_or_else(|| panic!("metrics have no {reason}: {metrics}"));
    found.parse().expect("a number")
}

/// Linux takes 0.0.0.0 and `::` for this host, and says so when it is asked for the peer:
/// with a rule the socket is told the same as without.
fn address_zero(site: &mut Site) {
    start_to_f(site);
    let host = &site.lab.host;
    for zero in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
        for proto in PROTOS {
            let peer = |name: &str, port: u16| {
                let to = SocketAddr::new(zero, port);
                let begun = Conversation::begin(host, proto, 0, to);
                let flow = begun.unwrap_or_else(|error| panic!("{proto:?} to {to}: {error}"));
                assert_eq!(flow.name, name, "{proto:?} to {to}");
                let peer = match &flow.conn {
                    Conn::Tcp(stream) => stream.peer_addr(),
                    Conn::Udp(socket) => socket.peer_addr(),
                };
                peer.expect("a peer")
            };
            let without = peer("host", SENTINEL);
            assert!(without.ip().is_loopback(), "{without}");
            let with = SocketAddr::new(without.ip(), 80);
            assert_eq!(peer("F", 80), with, "{proto:?} to {zero}");
        }
    }
    let client = host.enter(|| UdpSocket::bind("0.0.0.0:0")).expect("a port");
    for _ in 0..2 {
        client.send_to(b"who?", "0.0.0.0:80").expect("send");
        let (len, from) = client.recv_from(&mut [0; 512]).expect("a reply");
        assert_eq!((len > 0, from), (true, SocketAddr::new(LOOPBACK4, 80)));
    }
}

/// A target would answer to an address that it cannot reach: the socket stays with what it
/// named, and nobody listens there.
fn bound_to_loopback(site: &mut Site) {
    start_to_f(site);
    let to = SocketAddr::new(LOOPBACK4, 80);
    let host = &site.lab.host;
    assert_eq!(count(site, "bound_to_loopback"), 0);
    for (counted, proto) in (1..).zip(PROTOS) {
        let seen = reach(site, host, proto, (Some(LOOPBACK4), to));
        assert_eq!(seen.to_string(), "refused", "{proto:?}");
        assert_eq!(count(site, "bound_to_loopback"), counted, "{proto:?}");
    }
    let status = host.run(&[PROGRAM, "status"]);
    assert!(status.contains("bound_to_loopback 2"), "{status}");
    let own = site.addr(Place::Host, Family::V4);
    for from in [None, Some(own)] {
        for proto in PROTOS {
            let seen = reach(site, host, proto, (from, to)).to_string();
            assert!(
                seen.starts_with("F saw host"),
                "{from:?}, {proto:?}: {seen}"
            );
        }
    }
    assert_eq!(count(site, "bound_to_loopback"), 2);
}

/// An IPv6 socket that names an IPv6 address of this host.
fn ipv6_to_ipv4(site: &mut Site) {
    start_to_f(site);
    let own = site.addr(Place::Host, Family::V6);
    for addr in [LOOPBACK6, own] {
        let to = SocketAddr::new(addr, 80);
        for proto in PROTOS {
            let begun = Conversation::begin(&site.lab.host, proto, 0, to);
            let mut flow = begun.unwrap_or_else(|error| panic!("{to}, {proto:?}: {error}"));
            assert_eq!(flow.name, "F");
            assert_eq!(site.name(flow.peer.ip()), "host-inside");
            let (peer, from) = match &flow.conn {
                Conn::Tcp(stream) => (stream.peer_addr(), None),
                Conn::Udp(socket) => {
                    socket.send(b"again").expect("send");
                    let from = socket.recv_from(&mut [0; 512]).expect("a reply").1;
                    (socket.peer_addr(), Some(from))
                }
            };
            assert_eq!(peer.expect("a peer"), to, "{proto:?}");
            assert!(from.is_none_or(|from| from == to), "{from:?}");
            assert!(still_talks(&mut flow).is_ok(), "{to}, {proto:?}");
        }
    }
    assert_eq!(count(site, "cannot_reach_ipv4"), 0);
}

/// Sockets that the kernel lets reach IPv6 alone stay with what they named.
fn ipv6_that_cannot(site: &mut Site) {
    start_to_f(site);
    let host = &site.lab.host;
    let to = SocketAddr::new(LOOPBACK6, 80);
    let mut counted = 0;
    for proto in PROTOS {
        let refused = host.enter(|| v6_only(proto, to));
        assert_eq!(
            kind(&refused),
            io::ErrorKind::ConnectionRefused,
            "{proto:?}"
        );
        counted += 1;
        assert_eq!(count(site, "cannot_reach_ipv4"), counted, "{}", name(proto));
    }
    let own = site.addr(Place::Host, Family::V6);
    for proto in PROTOS {
        let seen = reach(site, host, proto, (Some(own), to));
        assert_eq!(seen.to_string(), "refused", "bound to {own}, {proto:?}");
        counted += 1;
        assert_eq!(count(site, "cannot_reach_ipv4"), counted, "{}", name(proto));
    }
    // A datagram that names its destination goes there, and not into an error.
    let here = host.enter(|| UdpSocket::bind(to)).expect("port 80");
    let client = host.enter(|| UdpSocket::bind("[::]:0")).expect("a port");
    client.send_to(b"who?", to).expect("send");
    let mut buffer = [0; 64];
    let (len, peer) = here.recv_from(&mut buffer).expect("a datagram");
    assert_eq!(&buffer[..len], b"who?");
    here.send_to(b"me", peer).expect("send");
    let (len, from) = client.recv_from(&mut buffer).expect("a reply");
    assert_eq!((&buffer[..len], from), (&b"me"[..], to));
    assert_eq!(count(site, "cannot_reach_ipv4"), counted + 1);
}

/// Connects by a socket for IPv6 alone, and exchanges a message.
fn v6_only(proto: Proto, to: SocketAddr) -> io::Result<String> {
    let kind = match proto {
        Proto::Tcp => SockType::Stream,
        Proto::Udp => SockType::Datagram,
    };
    let fd: OwnedFd = socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, Ipv6V6Only, &true)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    let mut line = [0; 512];
    let len = match proto {
        Proto::Tcp => io::Read::read(&mut TcpStream::from(fd), &mut line)?,
        Proto::Udp => {
            let socket = UdpSocket::from(fd);
            socket.send(b"hello")?;
            socket.recv(&mut line)?
        }
    };
    let (name, ..) = greeting(&line[..len]).ok_or(io::ErrorKind::InvalidData)?;
    Ok(name)
}

/// The kind of an error, which there has to be.
fn kind<T: std::fmt::Debug>(result: &io::Result<T>) -> io::ErrorKind {
    match result {
        Ok(value) => panic!("no error, but {value:?}"),
        Err(error) => error.kind(),
    }
}

/// Clients on the host with F and G each, and those that name F by its own address.
struct Clients {
    of_f: Vec<Conversation>,
    of_g: Vec<Conversation>,
    direct: Vec<Conversation>,
}

impl Clients {
    /// Connects by TCP and UDP: to 127.0.0.1, `::1` and the host's own address.
    fn connect(site: &Site) -> Self {
        let host = &site.lab.host;
        let begin = |proto, to| {
            let begun = Conversation::begin(host, proto, 0, to);
            begun.unwrap_or_else(|error| panic!("{proto:?} to {to}: {error}"))
        };
        let own = site.addr(Place::Host, Family::V4);
        let target_f = target(site, Family::V4, Place::F);
        let mut clients = Self {
            of_f: Vec::new(),
            of_g: Vec::new(),
            direct: Vec::new(),
        };
        for proto in PROTOS {
            for addr in [LOOPBACK4, LOOPBACK6, own] {
                let to = SocketAddr::new(addr, 80);
                // Two to each target by chance, but for one time in ten million.
                let flows = (0..30).map(|_| begin(proto, to));
                let (mut of_f, mut of_g): (Vec<_>, Vec<_>) =
                    flows.partition(|flow| flow.name == "F");
                let both = of_f.pop().zip(of_g.pop());
                let (f, g) = both.expect("flows to both targets");
                clients.of_f.push(f);
                clients.of_g.push(g);
                let again = of_f.pop().and_then(|flow| renamed(flow, target_f));
                clients.direct.extend(again);
            }
            clients.direct.push(begin(proto, target_f));
        }
        clients
    }
}

/// A UDP client of a target that connects once more, by the target's own address.
fn renamed(flow: Conversation, target: SocketAddr) -> Option<Conversation> {
    let Conn::Udp(socket) = flow.conn else {
        return None;
    };
    let name = match (socket.local_addr().expect("an address"), target.ip()) {
        (SocketAddr::V6(_), IpAddr::V4(addr)) => IpAddr::V6(addr.to_ipv6_mapped()),
        (_, addr) => addr,
    };
    let name = SocketAddr::new(name, target.port());
    socket.connect(name).expect("another name");
    Conversation::over(Conn::Udp(socket), target).ok()
}

/// Redirects 80 to F and G, and connects.
fn start_clients(site: &mut Site, options: &'static str) -> Clients {
    let targets = [Place::F, Place::G].map(|place| target(site, Family::V4, place));
    site.up(&[Rule::anywhere(80, &targets).with(options)]);
    for target in targets {
        wait_until(site, target, "up");
    }
    Clients::connect(site)
}

/// F's host is gone and tells nobody. An idle socket with F is ended; one that names F by its
/// own address is none of ours, and neither is one with G.
fn sockets_are_ended(site: &mut Site) {
    match sock_destroy::is_supported() {
        Ok(true) => {}
        Ok(false) => skip("needs CONFIG_INET_DIAG_DESTROY"),
        Err(error) => panic!("{error}"),
    }
    let mut clients = start_clients(site, "check tcp every 200ms cut");
    let f = target(site, Family::V4, Place::F);
    site.lab.host.ip("link set port-f down");
    wait_until(site, f, "down");
    assert_eq!((clients.of_f.len(), clients.direct.len()), (6, 5));
    for mut flow in clients.of_f {
        let ended = flow.conn.receive(1);
        let kind = kind(&ended);
        assert_eq!(kind, io::ErrorKind::ConnectionAborted, "{:?}", flow.conn);
        if let Conn::Udp(socket) = flow.conn {
            // The socket is as before it was connected, and can be connected anew.
            let error = socket.send(b"again").expect_err("no peer");
            assert_eq!(error.raw_os_error(), Some(libc::EDESTADDRREQ));
            socket.connect(flow.to).expect("connect anew");
            let anew = Conversation::over(Conn::Udp(socket), flow.to).expect("a target");
            assert_eq!(anew.name, "G");
        }
    }
    site.lab.host.ip("link set port-f up");
    wait_until(site, f, "up");
    for flow in clients.direct.iter_mut().chain(&mut clients.of_g) {
        assert_eq!(goes_on(flow), "continues", "with {}", flow.name);
    }
}

/// Without `cut` an idle connection is there when F is back.
fn sockets_stay(site: &mut Site) {
    let mut clients = start_clients(site, "check tcp every 200ms");
    let f = target(site, Family::V4, Place::F);
    site.lab.host.ip("link set port-f down");
    wait_until(site, f, "down");
    site.lab.host.ip("link set port-f up");
    wait_until(site, f, "up");
    let all = clients.of_f.iter_mut().chain(&mut clients.of_g);
    for flow in all.chain(&mut clients.direct) {
        assert_eq!(goes_on(flow), "continues", "with {}", flow.name);
    }
}
