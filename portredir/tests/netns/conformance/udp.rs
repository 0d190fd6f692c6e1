//! UDP: datagrams of any length and checksum, and who answers them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;

use super::case::{Case, udp};
use super::client::{Conversation, PATIENCE, converse, converse_from, greeting};
use super::decode::Body;
use super::frame::{Ip, Sum, fold, pseudo, udp as datagram, words};
use super::ghost::Ghost;
use super::observe::{Observation, check, failure};
use super::site::Site;
use super::tcp::noise;
use crate::lab::Family;
use crate::lab::namespace::Namespace;
use crate::peer::conn::{Conn, Proto, uninterrupted};

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    udp(15, "datagram", "a datagram to 80", datagram_to_80),
    udp(16, "no_checksum", "a datagram without a checksum", no_checksum).v4(),
    udp(17, "sum_becomes_zero", "a datagram whose checksum becomes zero, which is sent as 0xffff", sum_becomes_zero),
    udp(18, "sum_is_ffff", "a datagram whose checksum is 0xffff", sum_is_ffff),
    udp(19, "bad_length", "a datagram with a length field of 4; with one beyond the packet", bad_length),
    udp(20, "padding", "20 bytes of Ethernet padding after the datagram", padding),
    udp(21, "broadcast", "broadcast and multicast to 93, where a server listens too", broadcast),
    udp(22, "refused", "a datagram to 81, where nothing listens on the target port, by a connected socket", refused),
    udp(23, "segments", "ten datagrams in one segmented send (UDP_SEGMENT)", segments),
    udp(24, "client_moves", "a client that continues from another port, as with QUIC", client_moves),
    udp(25, "late_reply", "a reply after conntrack has forgotten the flow", late_reply).v4(),
    udp(95, "no_checksum_v6", "a datagram without a checksum, which IPv6 forbids", no_checksum).v6(),
    udp(96, "bad_checksum", "a datagram with a wrong checksum", bad_checksum),
    udp(97, "empty", "a datagram without payload", empty),
    udp(98, "longest", "the longest datagram, 65 507 bytes", longest),
    udp(99, "unconnected", "a client whose socket is not connected", unconnected),
    udp(100, "burst", "100 datagrams at once", burst),
    udp(101, "any_address", "the host's second address; the server replies from the address that the kernel chooses", any_address),
    udp(102, "direct_datagram", "8080 itself, while 80 is redirected to it", direct),
    udp(103, "source_port_0", "a datagram from port 0", source_port_0),
    udp(104, "lowest_checksums", "1000 lengths and contents, one after another", lowest_checksums),
];

fn datagram_to_80(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let raw = ghost.ask(&ghost.udp(80, b"hello"));
    converse(&site.lab.client, Proto::Udp, family.host(80)).with("raw packet", &raw)
}

fn no_checksum(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.udp(80, b"no checksum");
    ip.sum = Sum::Is(0);
    ghost.ask(&ip)
}

/// A payload with which the checksum of a datagram to `dst` has this value.
fn payload_for(ghost: &Ghost, dst: u16, value: u16) -> Vec<u8> {
    let mut payload = b"computed..".to_vec();
    let end = payload.len() - 2;
    payload[end..].fill(0);
    let bytes = datagram(ghost.port, dst, &payload).bytes;
    let sum = fold(pseudo(ghost.addr, ghost.host(), 17, bytes.len()) + words(&bytes));
    // The field is the complement of the sum of all else.
    let rest = fold(u32::from(!value) + u32::from(!sum));
    payload[end..].copy_from_slice(&rest.to_be_bytes());
    payload
}

fn sum_becomes_zero(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    // With the target's port in it, the sum of all words has no bit clear.
    let payload = payload_for(&ghost, 8080, 0);
    let mut ip = ghost.udp(80, &payload);
    ip.sum = Sum::Right;
    ghost.ask(&ip)
}

fn sum_is_ffff(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let payload = payload_for(&ghost, 80, 0);
    let mut ip = ghost.udp(80, &payload);
    ip.sum = Sum::Right;
    assert_eq!(ip.sealed()[6..8], [0xff, 0xff]);
    ghost.ask(&ip)
}

fn bad_length(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for (name, len) in [("4", 4_u16), ("more", 100)] {
        let ghost = Ghost::new(site, family);
        let mut ip = ghost.udp(80, b"hello");
        ip.sum = Sum::Right;
        ip.segment.bytes[4..6].copy_from_slice(&len.to_be_bytes());
        all = all.with(name, &ghost.ask(&ip));
    }
    all
}

fn padding(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.udp(80, b"hello");
    ip.sum = Sum::Right;
    ip.padding = 20;
    ghost.ask(&ip)
}

fn broadcast(site: &Site, family: Family) -> Observation {
    let groups: &[(&str, &str, [u8; 6])] = match family {
        Family::V4 => &[
            ("subnet", "10.9.1.255", [0xff; 6]),
            ("all", "255.255.255.255", [0xff; 6]),
            ("multicast", "224.0.0.1", [1, 0, 0x5e, 0, 0, 1]),
        ],
        Family::V6 => &[("multicast", "ff02::1", [0x33, 0x33, 0, 0, 0, 1])],
    };
    let mut all = Observation::default();
    for (name, dst, mac) in groups {
        let ghost = Ghost::new(site, family);
        let mut ip = ghost.udp(93, b"hello");
        ip.dst = dst.parse::<IpAddr>().expect("an address");
        ip.sum = Sum::Right;
        ghost.send_to(*mac, &ip);
        // A reply of another server than the sentinel's.
        let seen = ghost.wait_for(|arrival| match &arrival.body {
            Body::Udp { ports, payload } => {
                let name = greeting(payload)?.0;
                Some(format!("{name} reached; datagram from {}", ports.0))
            }
            _ => Some(arrival.words()),
        });
        let seen = seen.unwrap_or_else(|| "no reply".to_owned());
        all = all.with(name, &Observation::of(seen));
    }
    all
}

fn refused(site: &Site, family: Family) -> Observation {
    converse(&site.lab.client, Proto::Udp, family.host(81))
}

/// A socket that is not connected.
pub fn socket(at: &Namespace, family: Family) -> UdpSocket {
    socket_from(at, any(family, 0))
}

/// All addresses of an IP version, with a port.
pub fn any(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        Family::V6 => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// A socket that is not connected, with an address and a port of its own.
pub fn socket_from(at: &Namespace, local: SocketAddr) -> UdpSocket {
    let socket = at.bind(local);
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

/// Receives one datagram: who sent it, and who that says it is.
pub fn heard(socket: &UdpSocket) -> Result<(SocketAddr, String), &'static str> {
    let mut buffer = vec![0; 65_536];
    match uninterrupted(|| socket.recv_from(&mut buffer)) {
        Ok((len, from)) => {
            let name = greeting(&buffer[..len]).map_or("nobody".to_owned(), |g| g.0);
            Ok((from, name))
        }
        Err(error) => Err(failure(&error)),
    }
}

fn segments(site: &Site, family: Family) -> Observation {
    let socket = socket(&site.lab.client, family);
    socket.connect(family.host(80)).expect("connect");
    setsockopt(&socket, UdpGsoSegment, &1000).expect("UDP_SEGMENT");
    socket.send(&noise(10_000)).expect("send");
    let names: Vec<_> = (0..10).map(|_| heard(&socket)).collect();
    let count = names.iter().flatten().filter(|(_, name)| name == "8080");
    Observation::of(format!("{} of 10 answered by 8080", count.count()))
}

fn client_moves(site: &Site, family: Family) -> Observation {
    let at = &site.lab.client;
    (0..3)
        .map(|_| converse_from(at, Proto::Udp, site.port(), family.host(80)).to_string())
        .collect()
}

fn late_reply(site: &Site, family: Family) -> Observation {
    let settings = ["", "_stream"].map(|kind| match kind {
        "" => "netfilter/nf_conntrack_udp_timeout",
        _ => "netfilter/nf_conntrack_udp_timeout_stream",
    });
    // A host that has no use for conntrack has no such settings either.
    let has = |key: &&str| {
        let path = std::path::Path::new("/proc/sys/net").join(key);
        site.lab.host.enter(|| path.exists())
    };
    let _tuned: Vec<_> = settings
        .iter()
        .filter(|key| has(key))
        .map(|key| site.tune(key, "1"))
        .collect();
    let ghost = Ghost::new(site, family);
    // After 2.2 seconds.
    ghost.send(&ghost.udp(80, b"late F"));
    let reply = ghost.wait_for(|arrival| Some(arrival.clone()));
    ghost.describe(&reply.into_iter().collect::<Vec<_>>())
}

fn bad_checksum(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    let mut ip = ghost.udp(80, b"hello");
    ip.sum = Sum::Wrong;
    ghost.ask(&ip)
}

fn empty(site: &Site, family: Family) -> Observation {
    let ghost = Ghost::new(site, family);
    ghost.ask(&ghost.udp(80, b""))
}

fn longest(site: &Site, family: Family) -> Observation {
    let socket = socket(&site.lab.client, family);
    socket.connect(family.host(80)).expect("connect");
    socket.send(&noise(65_507)).expect("send");
    let mut buffer = vec![0; 65_536];
    Observation::of(match uninterrupted(|| socket.recv(&mut buffer)) {
        // The greeting comes first, and the end of a long message is cut off.
        Ok(len) => {
            let at = buffer.iter().position(|byte| *byte == b'\n').unwrap_or(0) + 1;
            check(
                len == 65_507 && buffer[at..len] == noise(65_507)[..len - at],
                "every byte arrived",
            )
        }
        Err(error) => failure(&error).to_owned(),
    })
}

fn unconnected(site: &Site, family: Family) -> Observation {
    let socket = socket(&site.lab.client, family);
    socket.send_to(b"hello", family.host(80)).expect("send");
    match heard(&socket) {
        Ok((from, name)) => {
            Observation::of(format!("{name} reached")).and(format!("reply from {}", from.port()))
        }
        Err(error) => Observation::of(error),
    }
}

fn burst(site: &Site, family: Family) -> Observation {
    let socket = socket(&site.lab.client, family);
    socket.connect(family.host(80)).expect("connect");
    for number in 0..100_u8 {
        socket.send(&[number]).expect("send");
    }
    let mut buffer = vec![0; 1000];
    let mut numbers = Vec::new();
    for _ in 0..100 {
        match uninterrupted(|| socket.recv(&mut buffer)) {
            Ok(len) => numbers.push(buffer[len - 1]),
            Err(error) => return Observation::of(failure(&error)),
        }
    }
    numbers.sort_unstable();
    Observation::of(check(numbers.into_iter().eq(0..100), "all are answered"))
}

fn any_address(site: &Site, family: Family) -> Observation {
    let socket = socket(&site.lab.client, family);
    let to = SocketAddr::new(family.addr(2, 1), 101);
    socket.send_to(b"hello", to).expect("send");
    match heard(&socket) {
        Ok((from, name)) => Observation::of(format!("{name} reached"))
            .and(format!("reply from {}", from.port()))
            .and(if from.ip() == to.ip() {
                "from the destination address"
            } else {
                "from another address"
            }),
        Err(error) => Observation::of(error),
    }
}

fn direct(site: &Site, family: Family) -> Observation {
    converse(&site.lab.client, Proto::Udp, family.host(8080))
}

fn source_port_0(site: &Site, family: Family) -> Observation {
    let mut ghost = Ghost::new(site, family);
    ghost.move_to(0);
    ghost.ask(&ghost.udp(80, b"hello"))
}

fn lowest_checksums(site: &Site, family: Family) -> Observation {
    let mut conversation =
        match Conversation::begin(&site.lab.client, Proto::Udp, 0, family.host(80)) {
            Ok(conversation) => conversation,
            Err(error) => return Observation::of(failure(&error)),
        };
    assert!(matches!(conversation.conn, Conn::Udp(_)));
    let noise = noise(1200);
    let mut good = 0;
    for len in 0..1000 {
        match conversation.echoes(&noise[len % 200..][..len]) {
            Ok(is_same) => good += u32::from(is_same),
            Err(error) => return Observation::of(failure(&error)),
        }
    }
    Observation::of(format!("{good} of 1000 echoed"))
}

/// A packet in pieces, in the order in which they shall arrive.
pub fn send_all(ghost: &Ghost, pieces: impl IntoIterator<Item = Vec<u8>>) {
    for piece in pieces {
        ghost.send_packet(&piece);
    }
}

/// A datagram whose checksum is there from the beginning: it is cut in pieces.
pub fn whole(ghost: &Ghost, dst: u16, payload: &[u8]) -> Ip {
    let mut ip = ghost.udp(dst, payload);
    ip.sum = Sum::Right;
    ip
}
