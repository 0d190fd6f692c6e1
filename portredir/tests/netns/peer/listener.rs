//! TCP servers that listen in a particular way, and send their name.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::sockopt::{BindToDevice, Ipv6V6Only, ReuseAddr, ReusePort};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, bind, listen,
    setsockopt, shutdown, socket,
};

use crate::lab::namespace::Namespace;
use crate::peer::conn::{Conn, Proto};

/// How a server listens.
#[derive(Clone, Copy, Debug)]
pub struct Listen<'a> {
    pub addr: IpAddr,
    pub port: u16,
    /// Whether a socket on an IPv6 address keeps out IPv4.
    pub is_v6_only: bool,
    /// Whether others may share address and port.
    pub is_shared: bool,
    pub device: &'a str,
    /// Whether the server closes each connection after its greeting.
    pub hangs_up: bool,
}

impl Listen<'static> {
    pub fn on(addr: impl Into<IpAddr>, port: u16) -> Self {
        Self {
            addr: addr.into(),
            port,
            is_v6_only: false,
            is_shared: false,
            device: "",
            hangs_up: false,
        }
    }
}

impl Listen<'_> {
    pub fn v6_only(mut self) -> Self {
        self.is_v6_only = true;
        self
    }

    pub fn shared(mut self) -> Self {
        self.is_shared = true;
        self
    }

    pub fn hanging_up(mut self) -> Self {
        self.hangs_up = true;
        self
    }

    /// Starts to listen. The server greets with its name, its own address and the
    /// client's, then echoes.
    pub fn start(self, namespace: &Namespace, name: &str) -> Server {
        let listener = namespace
            .enter(|| self.open())
            .unwrap_or_else(|error| panic!("{self:?}: {error}"));
        let stop = Arc::new(AtomicBool::default());
        let thread = {
            let (name, stop) = (name.to_owned(), Arc::clone(&stop));
            std::thread::spawn(move || serve(&name, listener, self.hangs_up, &stop))
        };
        Server {
            stop,
            thread: Some(thread),
        }
    }

    fn open(&self) -> io::Result<TcpListener> {
        let family = match self.addr {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, ReuseAddr, &true)?;
        if self.addr.is_ipv6() {
            setsockopt(&fd, Ipv6V6Only, &self.is_v6_only)?;
        }
        if self.is_shared {
            setsockopt(&fd, ReusePort, &true)?;
        }
        if !self.device.is_empty() {
            setsockopt(&fd, BindToDevice, &self.device.into())?;
        }
        let addr = SocketAddr::new(self.addr, self.port);
        bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
        listen(&fd, Backlog::MAXALLOWABLE)?;
        Ok(fd.into())
    }
}

/// A running server, which stops and closes its connections when dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(name: &str, listener: TcpListener, hangs_up: bool, stop: &AtomicBool) {
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut buffer = vec![0; 65_536];
    listener.set_nonblocking(true).expect("nonblocking");
    while !stop.load(Ordering::Relaxed) {
        let mut is_idle = true;
        while let Ok((mut stream, peer)) = listener.accept() {
            is_idle = false;
            let Ok(local) = stream.local_addr() else {
                continue;
            };
            let greeting = format!("{name} {local} {peer}\n");
            let is_greeted = stream.write_all(greeting.as_bytes()).is_ok();
            if is_greeted && !hangs_up && stream.set_nonblocking(true).is_ok() {
                streams.push(stream);
            }
        }
        streams.retain_mut(|stream| match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(len) => {
                is_idle = false;
                stream.write_all(&buffer[..len]).is_ok()
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
        if is_idle {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // A program that another test is about to start may have a copy of the
    // socket for a while.
    shutdown(listener.as_raw_fd(), Shutdown::Both).expect("stop to listen");
}

/// The greeting of a server: its name, and the connection as the server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub name: String,
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

/// Connects to `to`, and returns the connection and the greeting.
pub fn connect_and_greet(
    from: &Namespace,
    port: u16,
    to: SocketAddr,
) -> io::Result<(Conn, Greeting)> {
    let conn = Conn::connect(from, Proto::Tcp, port, to)?;
    let Conn::Tcp(stream) = &conn else {
        unreachable!("a TCP connection")
    };
    let mut line = String::new();
    // The server sends no more before it receives something.
    BufReader::new(stream).read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let greeting = (|| {
        let addr = |text: &str| {
            let addr: SocketAddr = text.parse().ok()?;
            Some(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
        };
        Some(Greeting {
            name: words.next()?.to_owned(),
            local: addr(words.next()?)?,
            peer: addr(words.next()?)?,
        })
    })();
    let greeting = greeting.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((conn, greeting))
}

/// The name of who is there.
pub fn server_name(from: &Namespace, to: SocketAddr) -> Option<String> {
    match connect_and_greet(from, 0, to) {
        Ok((_, greeting)) => Some(greeting.name),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => None,
        Err(error) => panic!("{to}: {error}"),
    }
}
