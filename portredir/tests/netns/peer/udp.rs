//! A UDP server and client of requests, as with DNS: each answer is computed from
//! its request, so that it cannot be taken for the answer to another one.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lab::namespace::Namespace;
use crate::peer::conn::{Conn, Proto, uninterrupted};

/// Shorter datagrams get no answer.
const LEAST: usize = 8;

/// Answers on all addresses.
pub struct UdpServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    pub fn start(namespace: &Namespace, port: u16) -> Self {
        let any = (Ipv6Addr::UNSPECIFIED, port);
        let socket = namespace.bind(any);
        let timeout = Some(Duration::from_millis(50));
        socket.set_read_timeout(timeout).expect("a timeout");
        let stop = Arc::new(AtomicBool::default());
        let thread = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut question = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((len, peer)) = socket.recv_from(&mut question)
                        && len >= LEAST
                    {
                        // The client may be gone.
                        let _ = socket.send_to(&answer(&question[..len]), peer);
                    }
                }
            })
        };
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(question: &[u8]) -> Vec<u8> {
    // The number of the request, then bytes that only its answer has.
    let (number, name) = question.split_at(LEAST);
    let turned = name.iter().rev().map(|byte| !byte);
    number.iter().copied().chain(turned).collect()
}

/// Asks by a socket of its own.
pub struct UdpClient {
    socket: UdpSocket,
    number: u64,
    name: Vec<u8>,
}

impl UdpClient {
    /// `name` tells the askers of a test apart.
    pub fn new(namespace: &Namespace, from: u16, to: SocketAddr, name: &str) -> Self {
        let Conn::Udp(socket) = Conn::to(namespace, Proto::Udp, from, to) else {
            panic!("UDP was asked for")
        };
        Self {
            socket,
            number: 0,
            name: name.as_bytes().to_vec(),
        }
    }

    /// Makes a client that sends from one of several addresses.
    pub fn at(namespace: &Namespace, from: SocketAddr, to: SocketAddr, name: &str) -> Self {
        let socket = namespace.bind(from);
        socket.connect(to).expect("connect");
        Self {
            socket,
            number: 0,
            name: name.as_bytes().to_vec(),
        }
    }

    /// The client's own end.
    pub fn local(&self) -> SocketAddr {
        self.socket.local_addr().expect("an address")
    }

    /// Asks until there is an answer; how often it had to. Anything but answers to
    /// its own questions is wrong.
    pub fn request(&mut self, tries: usize, patience: Duration) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(patience))?;
        for number in 1..=tries {
            self.number += 1;
            let mut question = self.number.to_be_bytes().to_vec();
            question.extend(&self.name);
            self.socket.send(&question)?;
            if self.has_answer()? {
                return Ok(number);
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn has_answer(&self) -> io::Result<bool> {
        let mut buffer = [0; 2048];
        loop {
            let len = match uninterrupted(|| self.socket.recv(&mut buffer)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                received => received?,
            };
            // An answer may be late.
            let got = &buffer[..len];
            let number = got.get(..LEAST).and_then(|bytes| bytes.try_into().ok());
            let number = u64::from_be_bytes(number.expect("an answer"));
            let mut question = number.to_be_bytes().to_vec();
            question.extend(&self.name);
            let local = self.local();
            assert!(number <= self.number, "{local}: answer {number}");
            assert!(got == answer(&question), "{local}: not the answer: {got:?}");
            if number == self.number {
                return Ok(true);
            }
        }
    }
}
