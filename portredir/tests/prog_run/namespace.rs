//! A network namespace per test, and TCP connections in it.
//!
//! The programs look up sockets of the namespace that the test runs in, so a
//! connection of any client is one between two addresses of `lo`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt,
    socket, sockopt,
};
use portredir_common::flow::FlowKey;
use portredir_common::kernel::Socket;

/// Has a connection become a socket with its first data only.
#[derive(Clone, Copy, Debug)]
pub struct DeferAccept;

nix::setsockopt_impl!(
    DeferAccept,
    libc::IPPROTO_TCP,
    libc::TCP_DEFER_ACCEPT,
    u32,
    sockopt::SetStruct<u32>
);

/// The machine may be busy with other things.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The interface that is not `lo`, and its index.
pub const OTHER: &str = "other";
pub const OTHER_IFINDEX: u32 = 2;

thread_local! {
    /// Keeps flows of earlier rules alive, whose server must be there.
    static SERVERS: RefCell<Vec<UdpSocket>> = RefCell::default();
}

/// Moves this thread to a new namespace, with UDP servers on some targets.
pub fn enter() {
    unshare(CloneFlags::CLONE_NEWNET).expect("unshare the network namespace");
    let servers = [8080, 9090].map(|port| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)));
    SERVERS.replace(servers.map(|server| server.expect("bind")).into());
}

/// Adds an interface beside `lo`.
pub fn add_other() {
    let command = "link add other index 2 type veth peer name peer index 3";
    ip(&command.split(' ').collect::<Vec<_>>());
}

/// Makes `addrs` addresses of `lo`.
pub fn up(addrs: impl IntoIterator<Item = IpAddr>) {
    ip(&["link", "set", "lo", "up"]);
    for addr in addrs {
        let addr_text = addr.to_string();
        let mut args = vec!["addr", "add", &addr_text, "dev", "lo"];
        if addr.is_ipv6() {
            // Usable at once.
            args.push("nodad");
        }
        ip(&args);
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("run ip");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {errors}", args.join(" "));
}

/// Both ends of a connection, or a listener that made one.
#[expect(dead_code, reason = "held to stay open")]
pub enum Held {
    Connection(TcpStream, TcpStream),
    Listener(TcpListener),
}

/// Makes the sockets that a case is about.
pub fn open(sockets: &[(FlowKey, Socket)]) -> Vec<Held> {
    let ends = |key: &FlowKey| {
        let addr = |ip: [u8; 16], port| SocketAddr::new(IpAddr::from(ip).to_canonical(), port);
        let client = addr(key.client.octets(), key.client_port.get());
        (client, addr(key.local.octets(), key.local_port.get()))
    };
    let mut addrs = Vec::new();
    for (key, _) in sockets {
        let (client, local) = ends(key);
        addrs.extend([client.ip(), local.ip()]);
    }
    addrs.sort_unstable();
    addrs.dedup();
    up(addrs);
    let mut listeners = HashMap::new();
    let mut held = Vec::new();
    for (key, state) in sockets {
        let (client, local) = ends(key);
        let listener = listeners.entry(local).or_insert_with(|| server(local));
        let from_client = dial(client, local);
        let (from_server, _) = listener.accept().expect("accept");
        match state {
            Socket::Connection => held.push(Held::Connection(from_client, from_server)),
            Socket::TimeWait => end_by_server(from_client, from_server),
            Socket::None => panic!("a case with a socket that is not there"),
        }
    }
    // They stay: a listener is no connection, and the look-up has to see the
    // difference.
    held.extend(listeners.into_values().map(Held::Listener));
    held
}

/// Closes a connection so that the server's end is the one in `TIME_WAIT`.
pub fn end_by_server(mut from_client: TcpStream, from_server: TcpStream) {
    drop(from_server);
    from_client
        .set_read_timeout(Some(TIMEOUT))
        .expect("set a timeout");
    let end = from_client.read(&mut [0]).expect("read the end");
    assert_eq!(end, 0);
}

fn stream(addr: SocketAddr) -> OwnedFd {
    let family = if addr.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("socket");
    // Two connections may have one client port.
    setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    bind(fd.as_raw_fd(), &SockaddrStorage::from(addr)).expect("bind");
    fd
}

/// A listener on any port, also one that a connection still holds.
pub fn server(addr: SocketAddr) -> TcpListener {
    let fd = stream(addr);
    listen(&fd, Backlog::MAXALLOWABLE).expect("listen");
    fd.into()
}

/// A connection from a given port.
pub fn dial(from: SocketAddr, to: SocketAddr) -> TcpStream {
    let start = Instant::now();
    loop {
        let fd = stream(from);
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) => return fd.into(),
            // The kernel adds routes of IPv6 addresses in the background.
            Err(Errno::ENETUNREACH) if start.elapsed() < TIMEOUT => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("connect {from} to {to}: {error}"),
        }
    }
}
