//! Workers, each of which sends one kind of traffic over and over, and fails at the
//! first wrong byte, reset or missing answer.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use crate::lab::process::note;
use crate::lab::{Family, Lab};
use crate::message;
use crate::peer::conn::{Conn, Proto};
use crate::peer::udp::UdpClient;
use crate::stress::soak::PATIENCE;

/// One kind of traffic, and how often it was sent.
struct Worker<'a> {
    name: &'static str,
    count: Arc<AtomicU64>,
    thread: ScopedJoinHandle<'a, ()>,
}

pub struct Workers<'a>(Vec<Worker<'a>>);

impl<'a> Workers<'a> {
    pub fn start<'env>(scope: &'a Scope<'a, 'env>, lab: &'env Lab, stop: &'env AtomicBool) -> Self {
        type Work = fn(&Lab, &AtomicBool, &AtomicU64);
        const WORK: [(&str, Work); 6] = [
            ("HTTP requests", keep_alive),
            ("short connections", short_connections),
            ("questions", udp_requests),
            ("questions by new sockets", udp_requests_by_new_sockets),
            ("chunks of 64 KiB both ways", bulk),
            ("words after a silence", idle_connections),
        ];
        let workers = WORK.map(|(name, work)| {
            let count = Arc::new(AtomicU64::new(0));
            let thread = {
                let count = Arc::clone(&count);
                scope.spawn(move || work(lab, stop, &count))
            };
            Worker {
                name,
                count,
                thread,
            }
        });
        Self(workers.into())
    }

    /// Fails as soon as one has.
    pub fn look(&mut self) {
        if let Some(i) = self.0.iter().position(|worker| worker.thread.is_finished()) {
            self.0.swap_remove(i).end();
            panic!("a worker has ended");
        }
    }

    pub fn end(self) {
        self.0.into_iter().for_each(Worker::end);
    }
}

impl Worker<'_> {
    fn end(self) {
        let Self {
            name,
            count,
            thread,
        } = self;
        if let Err(panic) = thread.join() {
            let what = message(&*panic).unwrap_or("?");
            panic!("{name}: {what}");
        }
        let count = count.load(Ordering::Relaxed);
        note(&format!("{count} {name}"));
        assert!(count > 0, "no {name}");
    }
}

fn is_over(stop: &AtomicBool) -> bool {
    stop.load(Ordering::Relaxed)
}

/// Connects, from a port of its own where it is not zero.
fn tcp(lab: &Lab, from: u16, to: SocketAddr) -> TcpStream {
    let Conn::Tcp(stream) = Conn::to(&lab.client, Proto::Tcp, from, to) else {
        panic!("TCP was asked for")
    };
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Bytes of a stream, from a place on.
fn bytes(place: usize, len: usize) -> Vec<u8> {
    let byte = |place: usize| {
        (place as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_be_bytes()[0]
    };
    (place..place + len).map(byte).collect()
}

fn keep_alive(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) {
    let body = bytes(0, 20_000);
    let mut turn = 0;
    while !is_over(stop) {
        let to = Family::BOTH[turn % 2].host(82);
        turn += 1;
        let mut stream = BufReader::new(tcp(lab, 0, to));
        for request in 0..50 {
            let (head, content): (_, &[u8]) = match request {
                0 => (
                    format!(
                        "PUT / HTTP/1.1\r\nHost: lab\r\nContent-Length: {}",
                        body.len()
                    ),
                    &body,
                ),
                _ => ("GET / HTTP/1.1\r\nHost: lab".into(), b""),
            };
            let answer = request_once(&mut stream, &head, content);
            let answer =
                answer.unwrap_or_else(|error| panic!("request {request} to {to}: {error}"));
            let expected: &[u8] = if request == 0 { b"" } else { &body };
            assert!(answer == expected, "other bytes in answer {request}");
            count.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
            if is_over(stop) {
                break;
            }
        }
    }
}

fn request_once(stream: &mut BufReader<TcpStream>, head: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut request = format!("{head}\r\n\r\n").into_bytes();
    request.extend(body);
    stream.get_mut().write_all(&request)?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    assert!(line.starts_with("HTTP/1.1 200"), "{line:?}");
    let mut len = 0;
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line)?;
        if let Some(value) = line.strip_prefix("Content-Length:") {
            len = value.trim().parse().expect("a length");
        }
    }
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn short_connections(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) {
    let ways = [80, 90, 8080, 80, 90].map(|port| Family::BOTH.map(|family| family.host(port)));
    for to in ways.as_flattened().iter().cycle() {
        if is_over(stop) {
            break;
        }
        let place = count.fetch_add(1, Ordering::Relaxed);
        let words = bytes(usize::try_from(place).expect("a place") * 100, 700);
        // A port is used again after more than the time of TIME_WAIT.
        let from = 12_000 + u16::try_from(place % 20_000).expect("a port");
        let mut stream = tcp(lab, from, *to);
        let mut heard = vec![0; words.len()];
        let exchange = stream
            .write_all(&words)
            .and_then(|()| stream.read_exact(&mut heard));
        exchange.unwrap_or_else(|error| panic!("a short connection to {to}: {error}"));
        assert!(heard == words, "other bytes from {to}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The ways to ask, by old and by new sockets.
fn udp_clients(lab: &Lab) -> Vec<UdpClient> {
    let ways = [80, 90, 8080].map(|port| Family::BOTH.map(|family| family.host(port)));
    let udp_client = |to: &SocketAddr| UdpClient::new(&lab.client, 0, *to, &format!("asks {to}"));
    ways.as_flattened().iter().map(udp_client).collect()
}

fn request_all(udp_clients: &mut [UdpClient], count: &AtomicU64) {
    for udp_client in udp_clients {
        if let Err(error) = udp_client.request(1, PATIENCE) {
            panic!("a question of {}: {error}", udp_client.local());
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn udp_requests(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) {
    let mut udp_clients = udp_clients(lab);
    while !is_over(stop) {
        request_all(&mut udp_clients, count);
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn udp_requests_by_new_sockets(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) {
    while !is_over(stop) {
        request_all(&mut udp_clients(lab), count);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Two streams, each on its way in both directions at a time.
fn bulk(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) {
    const CHUNK: usize = 65_536;
    let mut streams = [(11_000, Family::V4, 80), (11_001, Family::V6, 90)]
        .map(|(from, family, port)| tcp(lab, from, family.host(port)));
    for round in 0.. {
        if is_over(stop) {
            break;
        }
        let chunk = bytes(round * CHUNK, CHUNK);
        for stream in &mut streams {
            let written = stream.write_all(&chunk);
            written.unwrap_or_else(|error| panic!("send chunk {round}: {error}"));
        }
        for stream in &mut streams {
            let mut heard = vec![0; CHUNK];
            let read = stream.read_exact(&mut heard);
            read.unwrap_or_else(|error| panic!("receive chunk {round}: {error}"));
            assert!(heard == chunk, "other bytes in chunk {round}");
            count.fetch_add(1, Ordering::Relaxed);
        }
        // Other tests use these processors as well.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Connections that say little, and are there all the time.
fn idle_connections(lab: &Lab, stop: &AtomicBool, count: &AtomicU64) {
    let ways = [80, 90, 8080].map(|port| Family::BOTH.map(|family| family.host(port)));
    let ends = (10_000..).zip(ways.as_flattened());
    let mut streams: Vec<_> = ends.map(|(from, to)| tcp(lab, from, *to)).collect();
    while !is_over(stop) {
        for stream in &mut streams {
            let words = count.fetch_add(1, Ordering::Relaxed).to_be_bytes();
            let mut heard = [0; 8];
            let exchange = stream
                .write_all(&words)
                .and_then(|()| stream.read_exact(&mut heard));
            exchange.unwrap_or_else(|error| panic!("after a silence: {error}"));
            assert_eq!(heard, words);
        }
        std::thread::sleep(Duration::from_secs(2));
    }
}
