//! Clients with sockets of their own, and what they are told.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use super::observe::{Observation, failure};
use crate::lab::namespace::Namespace;
use crate::peer::conn::{Conn, Proto};

/// How long a client waits for an answer. Long enough for a busy machine: what
/// is refused is refused at once, and few cases wait in vain.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The ports of clients that ask for none. They are below those that the kernel gives
/// (`ip_local_port_range`), and above those that cases give.
const FRESH_PORTS: std::ops::Range<u16> = 24_000..32_000;

/// A port that no other conversation has had for long.
///
/// REDIRECT changes the address too, so conversations with two addresses of the host become
/// one where the kernel gives both the same port; conntrack then replaces the port of the
/// second (`nf_nat_setup_info`). Which ports the kernel gives depends on a secret of the
/// boot (`inet_hash_connect`).
fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = FRESH_PORTS.end - FRESH_PORTS.start;
    FRESH_PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % count
}

/// A conversation that has begun.
pub struct Conversation {
    pub conn: Conn,
    /// The destination of the client.
    pub to: SocketAddr,
    /// The name of the server.
    pub name: String,
    /// The server's own end, as the server saw it.
    pub local: SocketAddr,
    /// The client's end, as the server saw it.
    pub peer: SocketAddr,
    /// The port that `SO_ORIGINAL_DST` tells the server; zero when it tells none.
    pub original: u16,
}

impl Conversation {
    /// Connects and reads the greeting; `port` is the client's port, or zero for one that no
    /// other conversation has had for long.
    pub fn begin(at: &Namespace, proto: Proto, port: u16, to: SocketAddr) -> io::Result<Self> {
        let port = if port == 0 { fresh_port() } else { port };
        let conn = Conn::connect_within(PATIENCE, at, proto, (port, to))?;
        Self::over(conn, to)
    }

    /// Reads the greeting over a socket that is connected to a destination.
    pub fn over(mut conn: Conn, to: SocketAddr) -> io::Result<Self> {
        let line = match &mut conn {
            Conn::Tcp(stream) => {
                let mut line = Vec::new();
                while line.last() != Some(&b'\n') {
                    let mut byte = [0];
                    stream.read_exact(&mut byte)?;
                    line.extend(byte);
                }
                line
            }
            Conn::Udp(_) => {
                conn.send(b"")?;
                conn.receive(0)?
            }
        };
        Self::told(conn, to, &line).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn told(conn: Conn, to: SocketAddr, line: &[u8]) -> Option<Self> {
        let (name, local, peer, original) = greeting(line)?;
        Some(Self {
            conn,
            to,
            name,
            local,
            peer,
            original,
        })
    }

    /// Sends a message, and whether it came back.
    pub fn echoes(&mut self, message: &[u8]) -> io::Result<bool> {
        self.conn.send(message)?;
        match self.conn {
            Conn::Tcp(_) => Ok(self.conn.receive(message.len())? == message),
            Conn::Udp(_) => {
                let reply = self.conn.receive(0)?;
                let said = reply.iter().position(|byte| *byte == b'\n');
                Ok(said.is_some_and(|at| &reply[at + 1..] == message))
            }
        }
    }

    /// The name of the server, and whether it saw the client's own port.
    pub fn facts(&mut self) -> Observation {
        let mut facts = Observation::of(format!("{} reached", self.name));
        if self.peer.port() != self.conn.local().port() {
            facts = facts.and("client port replaced");
        }
        match self.echoes(b"the conformance suite") {
            Ok(true) => facts,
            Ok(false) => facts.and("other bytes came back"),
            Err(error) => facts.and(failure(&error)),
        }
    }

    /// The address that the server saw as its own.
    pub fn addr_fact(&self) -> String {
        if self.local.ip() == self.to.ip().to_canonical() {
            "destination address kept".to_owned()
        } else {
            // Which address it is depends on the order in which the host got them.
            "destination address replaced".to_owned()
        }
    }
}

/// Reads the greeting of a server: its name, its end, the client's end, and the
/// original port.
pub fn greeting(line: &[u8]) -> Option<(String, SocketAddr, SocketAddr, u16)> {
    let end = line.iter().position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&line[..end]).ok()?;
    let mut words = line.rsplitn(4, ' ');
    let original = words.next()?.parse().ok()?;
    let addr = |text: &str| {
        let addr: SocketAddr = text.parse().ok()?;
        Some(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    };
    let peer = addr(words.next()?)?;
    let local = addr(words.next()?)?;
    Some((words.next()?.to_owned(), local, peer, original))
}

/// Connects once, sends a message, and observes which server answered.
pub fn converse(at: &Namespace, proto: Proto, to: SocketAddr) -> Observation {
    converse_from(at, proto, 0, to)
}

/// Observes as [`converse`] does, from this client port.
pub fn converse_from(at: &Namespace, proto: Proto, port: u16, to: SocketAddr) -> Observation {
    match Conversation::begin(at, proto, port, to) {
        Ok(mut conversation) => conversation.facts(),
        Err(error) => Observation::of(failure(&error)),
    }
}
