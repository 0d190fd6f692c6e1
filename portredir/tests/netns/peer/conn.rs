//! The client's end of a conversation. The socket is connected, also for UDP: a
//! reply from another address or port than the destination does not arrive.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::{Linger, ReuseAddr, SendTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::lab::namespace::Namespace;
use crate::lab::process::slow;

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    Tcp,
    Udp,
}

/// Both of them.
pub const PROTOS: [Proto; 2] = [Proto::Tcp, Proto::Udp];

/// How long a client waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(8);

/// A connected socket.
#[derive(Debug)]
pub enum Conn {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Conn {
    /// Connects to `to`, from the port `from` unless that is zero.
    pub fn connect(
        namespace: &Namespace,
        proto: Proto,
        from: u16,
        to: SocketAddr,
    ) -> io::Result<Self> {
        Self::connect_within(TIMEOUT, namespace, proto, (from, to))
    }

    /// Connects as [`Self::connect`] does, and waits no longer than `limit` for
    /// anything.
    pub fn connect_within(
        limit: Duration,
        namespace: &Namespace,
        proto: Proto,
        (from, to): (u16, SocketAddr),
    ) -> io::Result<Self> {
        let fd = namespace.enter(|| open(limit, proto, from, to))?;
        let conn = match proto {
            Proto::Tcp => Self::Tcp(fd.into()),
            Proto::Udp => Self::Udp(fd.into()),
        };
        conn.set_timeout(slow(limit))?;
        Ok(conn)
    }

    /// Connects, which has to succeed.
    pub fn to(namespace: &Namespace, proto: Proto, from: u16, to: SocketAddr) -> Self {
        Self::connect(namespace, proto, from, to)
            .unwrap_or_else(|error| panic!("{proto:?} from {from} to {to}: {error}"))
    }

    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Self::Udp(socket) => socket.set_read_timeout(Some(timeout)),
        }
    }

    /// This end.
    pub fn local(&self) -> SocketAddr {
        match self {
            Self::Tcp(stream) => stream.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        }
        .expect("an address")
    }

    /// Sends a message.
    pub fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(message),
            Self::Udp(socket) => socket.send(message).map(|_| ()),
        }
    }

    /// Receives `len` bytes, or one datagram.
    pub fn receive(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut answer = vec![0; len.max(65_536)];
        let len = match self {
            Self::Tcp(stream) => stream.read_exact(&mut answer[..len]).map(|()| len)?,
            // `read_exact` goes on after an interruption by itself.
            Self::Udp(socket) => uninterrupted(|| socket.recv(&mut answer))?,
        };
        answer.truncate(len);
        Ok(answer)
    }

    /// Ends a TCP connection at once, so that no end of it is left.
    pub fn reset(self) {
        let Self::Tcp(stream) = self else {
            panic!("datagrams have no end");
        };
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&stream, Linger, &linger).expect("SO_LINGER");
    }

    /// Sends a message, which an echo server has to answer.
    pub fn echo(&mut self, message: &[u8]) {
        let len = message.len();
        let local = self.local();
        let answer = self.send(message).and_then(|()| self.receive(len));
        let answer =
            answer.unwrap_or_else(|error| panic!("echo of {len} bytes to {local}: {error}"));
        assert!(
            answer == message,
            "echo of {len} bytes to {local}: other bytes came back"
        );
    }
}

fn open(limit: Duration, proto: Proto, from: u16, to: SocketAddr) -> io::Result<OwnedFd> {
    let (family, any) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, "0.0.0.0"),
        SocketAddr::V6(_) => (AddressFamily::Inet6, "::"),
    };
    let kind = match proto {
        Proto::Tcp => SockType::Stream,
        Proto::Udp => SockType::Datagram,
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // Linux also ends a `connect` after this time.
    let limit = i64::try_from(slow(limit).as_micros()).expect("a short time");
    setsockopt(&fd, SendTimeout, &TimeVal::microseconds(limit))?;
    if from != 0 {
        // For several conversations at once.
        setsockopt(&fd, ReuseAddr, &true)?;
        let from = SocketAddr::new(any.parse().expect("an address"), from);
        bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
    }
    // The second call waits for what the first has begun.
    uninterrupted(|| Ok(connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?))?;
    Ok(fd)
}

/// Goes on after an interruption: with a time limit a call ends when the process is
/// stopped and continued, say by a machine that is frozen for a moment (signal(7)).
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Whether the other host answers that nothing listens on the port.
pub fn is_refused(namespace: &Namespace, proto: Proto, to: SocketAddr) -> bool {
    probe(namespace, proto, to).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Whether a server answers there at once.
pub fn answers(namespace: &Namespace, proto: Proto, to: SocketAddr) -> bool {
    probe(namespace, proto, to).is_ok()
}

fn probe(namespace: &Namespace, proto: Proto, to: SocketAddr) -> io::Result<()> {
    let mut conn = Conn::connect(namespace, proto, 0, to)?;
    conn.set_timeout(slow(Duration::from_millis(100)))?;
    conn.send(b"anybody there?")?;
    conn.receive(14).map(|_| ())
}
