//! Servers that listen already are registered by a program that user space
//! runs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;

use aya::maps::SockHash;
use nix::sys::socket::sockopt::{BindToDevice, Ipv6V6Only, ReuseAddr, ReusePort};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
};
use portredir::loader::Datapath;
use portredir::sys::sock_diag::TcpSocket;
use portredir_common::map::sockets::ListenerKey;
use portredir_common::net::Protocol;

use crate::namespace::{self, OTHER, OTHER_IFINDEX};
use crate::packet::Setup;
use crate::packet::{RULES, addr, key};
use crate::rig::SIZES;
use crate::table::Rigs;

const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Listens, perhaps on a device, and says how sock_diag would tell of it.
fn serve(ip: IpAddr, port: u16, device: Option<(&str, u32)>) -> (TcpListener, TcpSocket) {
    let family = match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("socket");
    setsockopt(&fd, ReuseAddr, &true).expect("SO_REUSEADDR");
    setsockopt(&fd, ReusePort, &true).expect("SO_REUSEPORT");
    if ip.is_ipv6() {
        setsockopt(&fd, Ipv6V6Only, &true).expect("IPV6_V6ONLY");
    }
    if let Some((name, _)) = device {
        setsockopt(&fd, BindToDevice, &name.into()).expect("SO_BINDTODEVICE");
    }
    bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(ip, port)),
    )
    .expect("bind");
    listen(&fd, Backlog::MAXALLOWABLE).expect("listen");
    let socket = TcpSocket {
        key: key(Protocol::Tcp, (ip, 0), (ip, port)),
        device: device.map_or(0, |(_, index)| index),
    };
    (fd.into(), socket)
}

fn table() -> std::sync::Arc<portredir::ruleset::compile::Table> {
    Setup::of(RULES).table()
}

fn datapath() -> Datapath {
    namespace::enter();
    namespace::add_other();
    let mut datapath = Datapath::load(SIZES.into(), None).expect("load the object");
    datapath.commit(&table()).expect("fill the maps");
    datapath
}

/// How many sockets are registered, by their address.
fn registered(datapath: &mut Datapath) -> BTreeMap<[u8; 16], usize> {
    let map = datapath.map("LISTENERS");
    let map = SockHash::<_, ListenerKey>::try_from(map).expect("of sockets");
    let mut count = BTreeMap::new();
    for key in map.keys() {
        let key = key.expect("a key");
        assert_eq!(key.port.get(), 8080);
        *count.entry(key.addr.octets()).or_default() += 1;
    }
    count
}

#[track_caller]
fn expect(datapath: &mut Datapath, expected: &[(IpAddr, usize)]) {
    let expected = expected
        .iter()
        .map(|(ip, count)| (addr(*ip).octets(), *count));
    assert_eq!(registered(datapath), expected.collect());
}

#[track_caller]
fn register(datapath: &mut Datapath, sockets: &[TcpSocket]) {
    assert_eq!(datapath.register(&table(), sockets).expect("register"), []);
}

pub fn one_by_one(_: &mut Rigs) {
    let mut datapath = datapath();
    register(&mut datapath, &[]);
    expect(&mut datapath, &[]);
    let (v4, at_v4) = serve(ANY4, 8080, None);
    let (v6, at_v6) = serve(ANY6, 8080, None);
    let (_other, at_other) = serve(ANY4, 9090, None);
    for _ in 0..2 {
        register(&mut datapath, &[at_other, at_v4, at_v6]);
        expect(&mut datapath, &[(ANY4, 1), (ANY6, 1)]);
    }
    drop(v4);
    expect(&mut datapath, &[(ANY6, 1)]);
    // It is listed, but has gone meanwhile.
    register(&mut datapath, &[at_v4]);
    expect(&mut datapath, &[(ANY6, 1)]);
    let (_again, at_v4) = serve(ANY4, 8080, None);
    register(&mut datapath, &[at_v4, at_v6]);
    expect(&mut datapath, &[(ANY4, 1), (ANY6, 1)]);
    drop(v6);
    expect(&mut datapath, &[(ANY4, 1)]);
}

/// No member takes the slot of another: as long as one of those that are
/// registered is there, the group is found.
pub fn group(_: &mut Rigs) {
    for ip in [ANY4, ANY6] {
        let mut datapath = datapath();
        let (mut servers, sockets): (Vec<_>, Vec<_>) =
            (0..4).map(|_| serve(ip, 8080, None)).unzip();
        register(&mut datapath, &sockets);
        expect(&mut datapath, &[(ip, 4)]);
        for left in (1..4).rev() {
            servers.pop();
            expect(&mut datapath, &[(ip, left)]);
        }
        let (mut more, sockets): (Vec<_>, Vec<_>) = (0..7).map(|_| serve(ip, 8080, None)).unzip();
        register(&mut datapath, &[&sockets[..], &sockets[..1]].concat());
        expect(&mut datapath, &[(ip, 4)]);
        // Others of a larger group take the place of those that go.
        while more.len() > 3 {
            more.remove(0);
            register(&mut datapath, &sockets[..=more.len()]);
            expect(&mut datapath, &[(ip, 4)]);
        }
    }
}

/// Each device has a server of its own.
pub fn devices(_: &mut Rigs) {
    let mut datapath = datapath();
    let (lo, other) = (("lo", 1), (OTHER, OTHER_IFINDEX));
    let (first, at_first) = serve(ANY4, 8080, Some(other));
    register(&mut datapath, &[at_first]);
    expect(&mut datapath, &[(ANY4, 1)]);
    let (second, at_second) = serve(ANY4, 8080, Some(lo));
    register(&mut datapath, &[at_first, at_second]);
    expect(&mut datapath, &[(ANY4, 2)]);
    drop(first);
    expect(&mut datapath, &[(ANY4, 1)]);
    let (_third, at_third) = serve(ANY4, 8080, Some(other));
    register(&mut datapath, &[at_second, at_third]);
    expect(&mut datapath, &[(ANY4, 2)]);
    drop(second);
    expect(&mut datapath, &[(ANY4, 1)]);
}
