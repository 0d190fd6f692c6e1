//! Where flows really arrive: servers that say on which of their sockets a client came in,
//! and clients with any address and port.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::sockopt::{Linger, SendTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::lab::namespace::Namespace;
use crate::lab::process::{slow, wait_for};
use crate::peer::conn::Proto;

/// The port of the datagram that comes after all others.
const FENCE: u16 = 9999;

/// The server of one address alone.
pub const ONE: (IpAddr, u16) = (IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 1, 1)), 8083);

/// The ports with servers for all addresses.
pub const SERVED: [u16; 8] = [80, 81, 82, 83, 84, 8080, 8081, 8082];

/// Whether a server gets what reaches a port of an address.
pub fn is_served(addr: IpAddr, port: u16) -> bool {
    SERVED.contains(&port) || (addr, port) == ONE
}

/// Servers on [`SERVED`], on [`ONE`] and on [`FENCE`].
pub struct Servers {
    /// The port on which a datagram arrived, by the number in it.
    heard: Arc<Mutex<HashMap<u32, u16>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    pub fn start(namespace: &Namespace) -> Self {
        let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        let places = SERVED.iter().map(|port| (any, *port));
        let places = places.chain([ONE, (any, FENCE)]);
        let sockets: Vec<_> = places
            .map(|at| {
                let (tcp, udp) = (namespace.listen(at), namespace.bind(at));
                tcp.set_nonblocking(true).expect("nonblocking");
                udp.set_nonblocking(true).expect("nonblocking");
                (at.1, tcp, udp)
            })
            .collect();
        let heard = Arc::new(Mutex::new(HashMap::new()));
        let stop = Arc::new(AtomicBool::default());
        let thread = {
            let (heard, stop) = (Arc::clone(&heard), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    serve(&sockets, &heard);
                    std::thread::sleep(Duration::from_micros(200));
                }
            })
        };
        Self {
            heard,
            stop,
            thread: Some(thread),
        }
    }

    /// The port on which a datagram arrived.
    pub fn heard(&self, number: u32) -> Option<u16> {
        self.heard
            .lock()
            .expect("the servers")
            .get(&number)
            .copied()
    }

    /// Waits until all that was sent from a namespace has arrived.
    pub fn settle(&self, from: &Namespace, to: IpAddr, number: u32) {
        let socket = from.bind(("::", 0));
        let to = match to {
            IpAddr::V4(addr) => addr.to_ipv6_mapped(),
            IpAddr::V6(addr) => addr,
        };
        let bytes = number.to_be_bytes();
        let sent = socket.send_to(&bytes, (to, FENCE));
        sent.expect("send the last datagram");
        wait_for("the last datagram", || self.heard(number));
        std::thread::sleep(slow(Duration::from_millis(20)));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(sockets: &[(u16, TcpListener, UdpSocket)], heard: &Mutex<HashMap<u32, u16>>) {
    for (port, tcp, udp) in sockets {
        while let Ok((mut stream, _)) = tcp.accept() {
            let _ = stream.write_all(&port.to_be_bytes());
        }
        let mut number = [0; 4];
        while udp.recv(&mut number).is_ok_and(|len| len == 4) {
            let mut heard = heard.lock().expect("the clients");
            heard.insert(u32::from_be_bytes(number), *port);
        }
    }
}

/// A client's own end, which it binds to unless it is unspecified.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    pub addr: Option<IpAddr>,
    pub port: u16,
}

/// A socket that is bound to the client's own end and connected.
pub fn open(proto: Proto, own: Own, to: SocketAddr) -> io::Result<OwnedFd> {
    let (family, any) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, IpAddr::from([0; 4])),
        SocketAddr::V6(_) => (AddressFamily::Inet6, IpAddr::from([0; 16])),
    };
    let kind = match proto {
        Proto::Tcp => SockType::Stream,
        Proto::Udp => SockType::Datagram,
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, SendTimeout, &TimeVal::seconds(5))?;
    if own.addr.is_some() || own.port != 0 {
        let at = SocketAddr::new(own.addr.unwrap_or(any), own.port);
        bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    }
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket)
}

/// The port on which a connection arrives; `None` when it is refused.
pub fn arrives_by_tcp(from: &Namespace, own: Own, to: SocketAddr) -> Option<u16> {
    let socket = match from.enter(|| open(Proto::Tcp, own, to)) {
        Ok(socket) => socket,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return None,
        Err(error) => panic!("tcp {own:?} to {to}: {error}"),
    };
    let mut stream = TcpStream::from(socket);
    let mut port = [0; 2];
    stream
        .set_read_timeout(Some(slow(Duration::from_secs(5))))
        .expect("a timeout");
    stream
        .read_exact(&mut port)
        .expect("the port of the server");
    // Nothing of the connection is left.
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, Linger, &linger).expect("SO_LINGER");
    Some(u16::from_be_bytes(port))
}

/// Sends a datagram with a number.
pub fn send_by_udp(from: &Namespace, own: Own, to: SocketAddr, number: u32) {
    let socket = from.enter(|| open(Proto::Udp, own, to));
    let socket = UdpSocket::from(socket.unwrap_or_else(|error| panic!("udp to {to}: {error}")));
    socket.send(&number.to_be_bytes()).expect("send a datagram");
}
