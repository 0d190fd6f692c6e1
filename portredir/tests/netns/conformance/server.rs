//! Servers that tell each client who they are and what they saw of it. Their
//! threads sleep until a client comes: many of them run at a time.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{
    Ip6tOriginalDst, Ipv4PacketInfo, Ipv6RecvPacketInfo, Ipv6V6Only, OriginalDst, ReceiveTimeout,
    ReuseAddr, ReusePort,
};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag,
    SockType, SockaddrStorage, bind, getsockopt, listen, recvmsg, sendmsg, setsockopt, shutdown,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::lab::namespace::Namespace;
use crate::lab::process::wait_for;

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// The server echoes, from the destination address of the request.
    Echo,
    /// The server closes the connection after its greeting.
    HangsUp,
    /// The server shares its port with others.
    Shared,
    /// UDP is answered from whatever address the kernel takes.
    AnyAddress,
}

/// Stops when dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// How soon a server notices that it shall stop.
const TICK: i64 = 200;

impl Server {
    /// TCP and UDP on all addresses of both IP versions.
    pub fn start(at: &Namespace, name: &str, port: u16, manner: Manner) -> Self {
        let any4 = (Ipv4Addr::UNSPECIFIED, port).into();
        let any6 = (Ipv6Addr::UNSPECIFIED, port).into();
        let mut server = Self::new();
        for addr in [any4, any6] {
            server.add_tcp(at, name, addr, manner);
            server.add_udp(at, name, addr, manner);
        }
        server
    }

    /// TCP on one address.
    pub fn tcp(at: &Namespace, name: &str, addr: SocketAddr) -> Self {
        let mut server = Self::new();
        server.add_tcp(at, name, addr, Manner::Echo);
        server
    }

    /// TCP for both IP versions by one socket.
    pub fn dual_stack(at: &Namespace, name: &str, port: u16) -> Self {
        let mut server = Self::new();
        let any = (Ipv6Addr::UNSPECIFIED, port).into();
        let fd = at
            .enter(|| open(SockType::Stream, any, Stack::Dual, Manner::Echo))
            .unwrap_or_else(|error| panic!("listen on {port}: {error}"));
        server.serve_tcp(fd, name, Manner::Echo);
        server
    }

    fn new() -> Self {
        Self {
            stop: Arc::default(),
            threads: Vec::new(),
        }
    }

    fn add_tcp(&mut self, at: &Namespace, name: &str, addr: SocketAddr, manner: Manner) {
        let fd = at
            .enter(|| open(SockType::Stream, addr, Stack::Single, manner))
            .unwrap_or_else(|error| panic!("listen on {addr}: {error}"));
        self.serve_tcp(fd, name, manner);
    }

    fn serve_tcp(&mut self, fd: OwnedFd, name: &str, manner: Manner) {
        listen(&fd, Backlog::MAXALLOWABLE).expect("listen");
        let listener = TcpListener::from(fd);
        let stop = Arc::clone(&self.stop);
        let name = name.to_owned();
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((stream, peer)) = listener.accept() else {
                    continue;
                };
                let (name, stop) = (name.clone(), Arc::clone(&stop));
                std::thread::spawn(move || {
                    // The client sees an error as well.
                    let _ = serve(&name, (stream, peer), manner, &stop);
                });
            }
            // A program that is about to start may have a copy for a while.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        }));
    }

    fn add_udp(&mut self, at: &Namespace, name: &str, addr: SocketAddr, manner: Manner) {
        let fd = at
            .enter(|| open(SockType::Datagram, addr, Stack::Single, manner))
            .unwrap_or_else(|error| panic!("bind {addr}: {error}"));
        if manner != Manner::AnyAddress {
            match addr {
                SocketAddr::V4(_) => setsockopt(&fd, Ipv4PacketInfo, &true),
                SocketAddr::V6(_) => setsockopt(&fd, Ipv6RecvPacketInfo, &true),
            }
            .expect("ask for the destination address");
        }
        let stop = Arc::clone(&self.stop);
        let name = name.to_owned();
        self.threads.push(std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                // Without a message or without its answer the client will say so.
                let _ = answer(&fd, &name, addr, &mut buffer);
            }
        }));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The IP versions that an IPv6 socket serves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stack {
    Single,
    Dual,
}

fn open(kind: SockType, addr: SocketAddr, stack: Stack, manner: Manner) -> io::Result<OwnedFd> {
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, ReceiveTimeout, &TimeVal::milliseconds(TICK))?;
    setsockopt(&fd, ReuseAddr, &(kind == SockType::Stream))?;
    if addr.is_ipv6() {
        setsockopt(&fd, Ipv6V6Only, &(stack == Stack::Single))?;
    }
    if manner == Manner::Shared {
        setsockopt(&fd, ReusePort, &true)?;
    }
    // A program that was about to start may have a copy of the one before.
    wait_for("a port", || {
        match bind(fd.as_raw_fd(), &SockaddrStorage::from(addr)) {
            Err(Errno::EADDRINUSE) => None,
            bound => Some(bound),
        }
    })?;
    Ok(fd)
}

fn serve(
    name: &str,
    (mut stream, peer): (TcpStream, SocketAddr),
    manner: Manner,
    stop: &AtomicBool,
) -> io::Result<()> {
    let original = original_port(&stream);
    let greeting = format!("{name} {} {peer} {original}\n", stream.local_addr()?);
    stream.write_all(greeting.as_bytes())?;
    if manner == Manner::HangsUp {
        return Ok(());
    }
    stream.set_read_timeout(Some(Duration::from_millis(TICK.unsigned_abs())))?;
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => stream.write_all(&buffer[..len])?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The port that `SO_ORIGINAL_DST` returns; zero if there is none.
fn original_port(stream: &TcpStream) -> u16 {
    let port = match stream.local_addr() {
        Ok(SocketAddr::V4(_)) => getsockopt(stream, OriginalDst).map(|addr| addr.sin_port),
        _ => getsockopt(stream, Ip6tOriginalDst).map(|addr| addr.sin6_port),
    };
    port.map_or(0, u16::from_be)
}

/// Answers one datagram: who is here, the address that was asked, who asked,
/// and what was said. What begins with `late` is answered after some
/// milliseconds.
fn answer(fd: &OwnedFd, name: &str, bound: SocketAddr, buffer: &mut [u8]) -> io::Result<()> {
    let mut space = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let (len, peer, info) = {
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            fd.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        )?;
        let info = message.cmsgs()?.next();
        (message.bytes, message.address, info)
    };
    let info = info.map(by_any_way);
    let peer = peer.ok_or(io::ErrorKind::InvalidData)?;
    let local = match &info {
        Some(ControlMessageOwned::Ipv4PacketInfo(info)) => {
            IpAddr::from(u32::from_be(info.ipi_addr.s_addr).to_be_bytes())
        }
        Some(ControlMessageOwned::Ipv6PacketInfo(info)) => info.ipi6_addr.s6_addr.into(),
        _ => bound.ip(),
    };
    let said = buffer[..len].to_vec();
    let peer_addr = plain(&peer).ok_or(io::ErrorKind::InvalidData)?;
    let local = SocketAddr::new(local, bound.port());
    let mut reply = format!("{name} {local} {peer_addr} 0\n").into_bytes();
    reply.extend(&said);
    reply.truncate(65_507);
    let fd = fd.as_fd().try_clone_to_owned()?;
    let send = move || {
        let parts = [IoSlice::new(&reply)];
        let control = match &info {
            Some(ControlMessageOwned::Ipv4PacketInfo(info)) => {
                Some(ControlMessage::Ipv4PacketInfo(info))
            }
            Some(ControlMessageOwned::Ipv6PacketInfo(info)) => {
                Some(ControlMessage::Ipv6PacketInfo(info))
            }
            _ => None,
        };
        let control: Vec<_> = control.into_iter().collect();
        sendmsg(
            fd.as_raw_fd(),
            &parts,
            &control,
            MsgFlags::empty(),
            Some(&peer),
        )
    };
    let delay = said.strip_prefix(b"late ").map(|rest| rest[0]);
    if let Some(tenths) = delay {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100 * u64::from(tenths - b'0')));
            let _ = send();
        });
    } else {
        send()?;
    }
    Ok(())
}

/// The reply leaves by the interface that the route says.
fn by_any_way(info: ControlMessageOwned) -> ControlMessageOwned {
    match info {
        ControlMessageOwned::Ipv4PacketInfo(mut info) => {
            info.ipi_ifindex = 0;
            ControlMessageOwned::Ipv4PacketInfo(info)
        }
        ControlMessageOwned::Ipv6PacketInfo(mut info) => {
            let addr = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            if !addr.is_unicast_link_local() {
                info.ipi6_ifindex = 0;
            }
            if addr.is_multicast() {
                // A multicast address cannot be a source.
                info.ipi6_addr.s6_addr = [0; 16];
            }
            ControlMessageOwned::Ipv6PacketInfo(info)
        }
        other => other,
    }
}

fn plain(addr: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = addr
        .as_sockaddr_in()
        .map(|a| SocketAddr::from((a.ip(), a.port())));
    let v6 = addr
        .as_sockaddr_in6()
        .map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or(v6)
}
