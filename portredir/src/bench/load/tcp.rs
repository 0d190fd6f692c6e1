//! TCP load. A client that waits has given the processor to the server, so the time that
//! passes is the cost of both.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::bench::load::request::Target;
use crate::bench::schedule::Load;
use crate::bench::server::{DOWNLOAD, UPLOAD};
use crate::bench::traffic::{CHUNK_BYTES, receive, send};

/// The longest time to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Repeats an operation for a time; returns nanoseconds per operation.
fn repeat(
    length: Duration,
    mut operation: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut operations = 0_u32;
    loop {
        operation()?;
        operations += 1;
        let passed = start.elapsed();
        if passed >= length {
            return Ok(passed.as_secs_f64() * 1e9 / f64::from(operations));
        }
    }
}

fn connect(addr: SocketAddrV4) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(addr).context("connect")?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Connections that are made when they are first used.
struct Streams {
    addrs: Vec<SocketAddrV4>,
    streams: Vec<Option<TcpStream>>,
    /// The first byte, which is sent and answered before all else; none where it is 0.
    hello: u8,
}

impl Streams {
    fn new(targets: &[Target], hello: u8) -> Self {
        Self {
            addrs: targets.iter().map(|target| target.addr).collect(),
            streams: targets.iter().map(|_| None).collect(),
            hello,
        }
    }

    fn get(&mut self, target: usize) -> anyhow::Result<&mut TcpStream> {
        let slot = &mut self.streams[target];
        if slot.is_none() {
            let mut stream = connect(self.addrs[target])?;
            if self.hello != 0 {
                exchange(&mut stream, self.hello).context("begin a transfer")?;
            }
            *slot = Some(stream);
        }
        slot.as_mut().context("find the connection")
    }
}

fn exchange(stream: &mut TcpStream, byte: u8) -> anyhow::Result<()> {
    let mut answer = [0];
    stream.write_all(&[byte]).context("send")?;
    stream.read_exact(&mut answer).context("receive")?;
    ensure!(answer == [byte], "the answer is another one");
    Ok(())
}

/// The exchange of a byte and its answer, on one connection.
pub struct RequestResponse(Streams);

impl RequestResponse {
    pub fn new(targets: &[Target]) -> Self {
        Self(Streams::new(targets, 0))
    }
}

impl Load for RequestResponse {
    fn slice(&mut self, target: usize, length: Duration) -> anyhow::Result<f64> {
        let stream = self.0.get(target)?;
        repeat(length, || exchange(stream, b'x'))
    }
}

/// A connection, the exchange of a byte and its answer, and the end, by the client.
pub struct Connections(Vec<SocketAddrV4>);

impl Connections {
    pub fn new(targets: &[Target]) -> Self {
        Self(targets.iter().map(|target| target.addr).collect())
    }
}

impl Load for Connections {
    fn slice(&mut self, target: usize, length: Duration) -> anyhow::Result<f64> {
        let addr = self.0[target];
        repeat(length, || {
            // The socket has no options: each is a system call that all variants would
            // pay for.
            let mut stream = TcpStream::connect(addr).context("connect")?;
            exchange(&mut stream, b'x')
        })
    }
}

/// The direction of a bulk transfer.
#[derive(Clone, Copy)]
pub enum Direction {
    /// From the client to the server.
    Upload,
    /// From the server to the client.
    Download,
}

/// A transfer of a MiB in one direction, and of a byte in the other, on one connection.
pub struct Bulk {
    streams: Streams,
    direction: Direction,
    chunk: Box<[u8; CHUNK_BYTES]>,
}

impl Bulk {
    pub fn new(targets: &[Target], direction: Direction) -> Self {
        let first_byte = match direction {
            Direction::Upload => UPLOAD,
            Direction::Download => DOWNLOAD,
        };
        Self {
            streams: Streams::new(targets, first_byte),
            direction,
            chunk: Box::new([0; CHUNK_BYTES]),
        }
    }
}

impl Load for Bulk {
    fn slice(&mut self, target: usize, length: Duration) -> anyhow::Result<f64> {
        let stream = self.streams.get(target)?;
        repeat(length, || {
            let mut byte = [0];
            match self.direction {
                Direction::Upload => {
                    send(stream, &self.chunk).context("send")?;
                    stream.read_exact(&mut byte).context("receive")
                }
                Direction::Download => {
                    stream.write_all(&byte).context("send")?;
                    receive(stream, &mut self.chunk).context("receive")
                }
            }
        })
    }
}
