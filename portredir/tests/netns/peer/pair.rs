//! TCP connections of which the test holds both ends, so that it decides which end
//! sends, and when.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::{Ipv6V6Only, Linger, ReuseAddr};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
};

use crate::lab::namespace::Namespace;
use crate::lab::process::wait_for;
use crate::peer::conn::{Conn, Proto};

/// How long either end waits for the other.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A server that only accepts.
pub struct Acceptor(TcpListener);

impl Acceptor {
    /// Listens on all addresses.
    pub fn start(namespace: &Namespace, port: u16) -> Self {
        let open = || -> io::Result<TcpListener> {
            let flags = SockFlag::SOCK_CLOEXEC;
            let fd: OwnedFd = socket(AddressFamily::Inet6, SockType::Stream, flags, None)?;
            setsockopt(&fd, Ipv6V6Only, &false)?;
            setsockopt(&fd, ReuseAddr, &true)?;
            let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            bind(fd.as_raw_fd(), &SockaddrStorage::from(any))?;
            listen(&fd, Backlog::MAXALLOWABLE)?;
            Ok(fd.into())
        };
        let listener = namespace.enter(open).expect("listen");
        listener.set_nonblocking(true).expect("nonblocking");
        Self(listener)
    }

    /// The next connection.
    pub fn accept(&self) -> (TcpStream, SocketAddr) {
        let (stream, peer) = wait_for("a connection", || self.0.accept().ok());
        stream.set_nonblocking(false).expect("blocking");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        (
            stream,
            SocketAddr::new(peer.ip().to_canonical(), peer.port()),
        )
    }
}

/// Both ends of a connection.
pub struct TcpPair {
    client: TcpStream,
    server: TcpStream,
    /// The client, as the server sees it.
    pub peer: SocketAddr,
    /// The client's own end.
    pub local: SocketAddr,
    to: SocketAddr,
    /// Bytes so far, to the client and to the server.
    counts: [usize; 2],
}

impl TcpPair {
    /// Connects; the next accepted connection is the other end, as no other client
    /// connects.
    pub fn open(
        client: &Namespace,
        acceptor: &Acceptor,
        from: u16,
        to: SocketAddr,
    ) -> io::Result<Self> {
        let Conn::Tcp(stream) = Conn::connect(client, Proto::Tcp, from, to)? else {
            panic!("TCP was asked for")
        };
        stream.set_read_timeout(Some(TIMEOUT))?;
        let local = stream.local_addr()?;
        let (server, peer) = acceptor.accept();
        Ok(Self {
            client: stream,
            server,
            peer,
            local,
            to,
            counts: [0; 2],
        })
    }

    /// Opens a connection, which has to succeed.
    pub fn new(client: &Namespace, acceptor: &Acceptor, from: u16, to: SocketAddr) -> Self {
        Self::open(client, acceptor, from, to)
            .unwrap_or_else(|error| panic!("from {from} to {to}: {error}"))
    }

    /// The server sends, the client gets the same.
    pub fn try_push(&mut self, len: usize) -> io::Result<()> {
        let place = self.counts[0];
        carry(&mut self.server, &mut self.client, place, len)?;
        self.counts[0] += len;
        Ok(())
    }

    /// The client sends, the server gets the same.
    pub fn try_pull(&mut self, len: usize) -> io::Result<()> {
        let place = self.counts[1];
        carry(&mut self.client, &mut self.server, place, len)?;
        self.counts[1] += len;
        Ok(())
    }

    /// Waits no longer than this for what was sent.
    pub fn set_patience(&self, time: Duration) {
        for end in [&self.client, &self.server] {
            end.set_read_timeout(Some(time)).expect("a timeout");
        }
    }

    /// Both ways, the server first.
    pub fn exchange(&mut self, len: usize, when: &str) {
        let pushed = self.try_push(len);
        let Self { local, to, .. } = *self;
        pushed.unwrap_or_else(|error| panic!("{to} to {local}, {when}: {error}"));
        let pulled = self.try_pull(len);
        pulled.unwrap_or_else(|error| panic!("{local} to {to}, {when}: {error}"));
    }

    /// The servers of all of them speak, then the clients; those who do not
    /// understand each other within some time.
    pub fn broken(pairs: &mut [Self], patience: Duration) -> Vec<SocketAddr> {
        const LEN: usize = 300;
        let mut broken = Vec::new();
        let end = Instant::now() + patience;
        // Bytes of one pair are on their way while another pair is waited for.
        let speak = |pair: &mut Self| {
            let bytes = bytes(pair.counts[0], LEN);
            pair.server.write_all(&bytes)
        };
        let spoken: Vec<_> = pairs.iter_mut().map(speak).collect();
        for (pair, spoken) in pairs.iter_mut().zip(spoken) {
            let left = end.saturating_duration_since(Instant::now());
            pair.set_patience(left.max(Duration::from_millis(5)));
            let heard = spoken.and_then(|()| receive(&mut pair.client, pair.counts[0], LEN));
            pair.counts[0] += LEN;
            if heard.and_then(|()| pair.try_pull(LEN)).is_err() {
                broken.push(pair.to);
            }
            pair.set_patience(TIMEOUT);
        }
        broken
    }

    /// Ends it.
    pub fn close(self, end: End) {
        match end {
            End::Client => {
                drop(self.client);
                drop(self.server);
            }
            End::Server => {
                drop(self.server);
                drop(self.client);
            }
            End::Reset => {
                let linger = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&self.client, Linger, &linger).expect("SO_LINGER");
            }
        }
    }
}

/// The end that closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client says that it is done, and so the server.
    Client,
    /// The server, whose socket stays in `TIME_WAIT`.
    Server,
    /// The client, by a RST.
    Reset,
}

/// Sends the bytes that belong at a place of a stream, and looks what arrives.
fn carry(from: &mut TcpStream, to: &mut TcpStream, place: usize, len: usize) -> io::Result<()> {
    from.write_all(&bytes(place, len))?;
    receive(to, place, len)
}

fn receive(to: &mut TcpStream, place: usize, len: usize) -> io::Result<()> {
    let mut got = vec![0; len];
    to.read_exact(&mut got)?;
    assert!(got == bytes(place, len), "other bytes arrived at {place}");
    Ok(())
}

fn bytes(place: usize, len: usize) -> Vec<u8> {
    (place..place + len).map(byte).collect()
}

fn byte(place: usize) -> u8 {
    // Neither a short period nor one that packets have.
    let mixed = (place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}
