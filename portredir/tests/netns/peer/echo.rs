//! An echo server that remembers which client sent what.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lab::namespace::Namespace;
use crate::lab::process::wait_for;
use crate::peer::conn::Proto;

/// An echo server for TCP and UDP, IPv4 and IPv6.
pub struct EchoServer {
    port: u16,
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A message and the client that sent it.
struct Heard {
    proto: Proto,
    peer: SocketAddr,
    message: Vec<u8>,
}

impl EchoServer {
    /// Listens on all addresses.
    pub fn start(namespace: &Namespace, port: u16) -> Self {
        Self::at(namespace, Ipv6Addr::UNSPECIFIED.into(), port)
    }

    /// Listens on one address, and so also answers datagrams from it.
    pub fn at(namespace: &Namespace, addr: IpAddr, port: u16) -> Self {
        let at = (addr, port);
        let tcp = namespace.listen(at);
        let udp = namespace.bind(at);
        tcp.set_nonblocking(true).expect("nonblocking");
        udp.set_nonblocking(true).expect("nonblocking");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::default());
        let thread = {
            let (heard, stop) = (Arc::clone(&heard), Arc::clone(&stop));
            std::thread::spawn(move || serve(&tcp, &udp, &heard, &stop))
        };
        Self {
            port,
            heard,
            stop,
            thread: Some(thread),
        }
    }

    /// The client that said this, which is waited for.
    pub fn peer(&self, proto: Proto, message: &[u8]) -> SocketAddr {
        let what = format!(
            "`{}` by {proto:?} at port {}",
            String::from_utf8_lossy(message),
            self.port
        );
        wait_for(&what, || self.find(proto, message))
    }

    /// Whether a client sent this message.
    pub fn has_heard(&self, message: &[u8]) -> bool {
        let proto = [Proto::Tcp, Proto::Udp];
        proto
            .into_iter()
            .any(|proto| self.find(proto, message).is_some())
    }

    /// The client that sent this message, if there is one.
    pub fn find(&self, proto: Proto, message: &[u8]) -> Option<SocketAddr> {
        let heard = self.heard.lock().expect("no panic in the server");
        heard
            .iter()
            .find(|h| h.proto == proto && h.message == message)
            .map(|h| h.peer)
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(tcp: &TcpListener, udp: &UdpSocket, heard: &Mutex<Vec<Heard>>, stop: &AtomicBool) {
    let mut streams: Vec<(TcpStream, SocketAddr)> = Vec::new();
    let mut buffer = vec![0; 65_536];
    let hear = |proto, peer, message: &[u8]| {
        let message = message.to_vec();
        heard.lock().expect("no panic in the test").push(Heard {
            proto,
            peer,
            message,
        });
    };
    while !stop.load(Ordering::Relaxed) {
        let mut is_idle = true;
        if let Ok((stream, peer)) = tcp.accept() {
            is_idle = false;
            if stream.set_nonblocking(true).is_ok() {
                streams.push((stream, peer));
            }
        }
        if let Ok((len, peer)) = udp.recv_from(&mut buffer) {
            is_idle = false;
            hear(Proto::Udp, peer, &buffer[..len]);
            let _ = udp.send_to(&buffer[..len], peer);
        }
        streams.retain_mut(|(stream, peer)| match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(len) => {
                is_idle = false;
                hear(Proto::Tcp, *peer, &buffer[..len]);
                stream.write_all(&buffer[..len]).is_ok()
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
        if is_idle {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
