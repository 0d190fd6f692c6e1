//! Clients with sockets of their own, and what their servers saw of them.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::site::Site;
use crate::conformance::client::{Conversation, greeting};
use crate::conformance::observe::{Observation, failure};
use crate::lab::namespace::Namespace;
use crate::peer::conn::{PROTOS, Proto, uninterrupted};

/// Connects, sends a message, and tells which server answered and whom it saw.
pub fn talk(site: &Site, at: &Namespace, proto: Proto, to: SocketAddr) -> Observation {
    match Conversation::begin(at, proto, 0, to) {
        Ok(mut conversation) => told(site, &mut conversation),
        Err(error) => Observation::of(failure(&error)),
    }
}

/// Talks as [`talk`] does, by TCP and by UDP.
pub fn talk_both(site: &Site, at: &Namespace, to: SocketAddr) -> Observation {
    let mut all = Observation::default();
    for proto in PROTOS {
        all = all.with(name(proto), &talk(site, at, proto, to));
    }
    all
}

/// The name of a protocol.
pub const fn name(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "TCP",
        Proto::Udp => "UDP",
    }
}

/// Tells whom a server saw, and whether it still answers.
pub fn told(site: &Site, conversation: &mut Conversation) -> Observation {
    let (peer, local) = (conversation.peer, conversation.local);
    let is_kept = peer.port() == conversation.conn.local().port();
    let facts = Observation::of(format!(
        "{} saw {}{} at {}:{}",
        conversation.name,
        site.name(peer.ip()),
        if is_kept { "" } else { " from another port" },
        site.name(local.ip()),
        local.port(),
    ));
    match still_talks(conversation) {
        Ok(()) => facts,
        Err(error) => facts.and(failure(&error)),
    }
}

/// Whether a message comes back.
pub fn still_talks(conversation: &mut Conversation) -> io::Result<()> {
    match conversation.echoes(b"the comparison with DNAT")? {
        true => Ok(()),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Tells in words whether a message comes back.
pub fn goes_on(conversation: &mut Conversation) -> String {
    match still_talks(conversation) {
        Ok(()) => "continues".to_owned(),
        Err(error) => failure(&error).to_owned(),
    }
}

/// How long a client waits where it may wait in vain.
const SHORT: Duration = Duration::from_millis(1200);

/// Connects from an address, or from any, and tells what the server saw. Waits for a short
/// time.
pub fn reach(site: &Site, at: &Namespace, proto: Proto, (from, to): Ends) -> Observation {
    match greeting_from(at, proto, (from, to)) {
        Ok(Some((name, local, peer, _))) => Observation::of(format!(
            "{name} saw {} at {}:{}",
            site.name(peer.ip()),
            site.name(local.ip()),
            local.port()
        )),
        Ok(None) => Observation::of("other words"),
        Err(error) => Observation::of(failure(&error)),
    }
}

/// The client's own address, if it has to be this one, and the destination.
pub type Ends = (Option<IpAddr>, SocketAddr);

type Greeting = (String, SocketAddr, SocketAddr, u16);

fn greeting_from(at: &Namespace, proto: Proto, (from, to): Ends) -> io::Result<Option<Greeting>> {
    let fd = at.enter(|| open(proto, from, to))?;
    let mut line = [0; 512];
    let len = match proto {
        Proto::Tcp => {
            let mut stream = TcpStream::from(fd);
            stream.set_read_timeout(Some(SHORT))?;
            uninterrupted(|| stream.read(&mut line))?
        }
        Proto::Udp => {
            let socket = UdpSocket::from(fd);
            socket.set_read_timeout(Some(SHORT))?;
            socket.send(b"hello")?;
            uninterrupted(|| socket.recv(&mut line))?
        }
    };
    Ok(greeting(&line[..len]))
}

fn open(proto: Proto, from: Option<IpAddr>, to: SocketAddr) -> io::Result<OwnedFd> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let kind = match proto {
        Proto::Tcp => SockType::Stream,
        Proto::Udp => SockType::Datagram,
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // Linux also ends a `connect` after this time.
    let limit = i64::try_from(SHORT.as_micros()).expect("a short time");
    setsockopt(&fd, SendTimeout, &TimeVal::microseconds(limit))?;
    if let Some(from) = from {
        bind(
            fd.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(from, 0)),
        )?;
    }
    uninterrupted(|| Ok(connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?))?;
    Ok(fd)
}
