//! Checks that a variant works before it is measured: a variant that is fast because it
//! does not work must not win.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use portredir_common::net::Protocol;

use crate::bench::variant::OTHER_PORT;
use crate::rule::Protocols;

/// The longest time until the first answer; proxies take a moment to start.
const PATIENCE: Duration = Duration::from_secs(5);

/// A time that is longer than any answer takes.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The number of datagrams that all have to be answered.
const DATAGRAMS: u32 = 1000;

/// The number of datagrams that are under way at a time; a socket holds some hundreds.
const WINDOW: u32 = 20;

/// The line that `bench verify` prints when all is as it should be.
pub const VERIFIED: &str = "verified";

/// Checks that TCP, and UDP if `protocols` has it, is answered at `addr`, from the
/// destination port, and that a port without a rule is not. The caller is a thread of a
/// client.
///
/// # Errors
///
/// When a check fails; the error names it.
pub fn verify(addr: SocketAddrV4, protocols: Protocols) -> anyhow::Result<()> {
    tcp(addr).with_context(|| format!("TCP to port {}", addr.port()))?;
    if protocols.each().contains(&Protocol::Udp) {
        udp(addr).with_context(|| format!("UDP to port {}", addr.port()))?;
    }
    let other = SocketAddrV4::new(*addr.ip(), OTHER_PORT.get());
    silence(other).with_context(|| format!("port {}, which no rule is about", OTHER_PORT.get()))
}

/// A connection sees only packets from its destination port.
fn tcp(addr: SocketAddrV4) -> anyhow::Result<()> {
    let start = Instant::now();
    let echo = || -> anyhow::Result<()> {
        let mut stream = TcpStream::connect_timeout(&addr.into(), TIMEOUT).context("connect")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let sent: [u8; 64] = std::array::from_fn(|_| b'v');
        stream.write_all(&sent).context("send")?;
        let mut received = [0; 64];
        stream.read_exact(&mut received).context("receive")?;
        ensure!(sent == received, "the answer is another one");
        Ok(())
    };
    loop {
        match echo() {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A connected socket sees only packets from its destination port.
fn udp(addr: SocketAddrV4) -> anyhow::Result<()> {
    let socket = client(addr)?;
    let mut answered = 0;
    for first in (0..DATAGRAMS).step_by(WINDOW as usize) {
        for number in first..first + WINDOW {
            socket.send(&number.to_be_bytes()).context("send")?;
        }
        let mut missing: Vec<_> = (first..first + WINDOW).collect();
        while !missing.is_empty() {
            let mut number = [0; 4];
            let received = socket.recv(&mut number);
            let what = || format!("{} of {} datagrams are answered", answered, first + WINDOW);
            received.with_context(what)?;
            let number = u32::from_be_bytes(number);
            let count = missing.len();
            missing.retain(|missing| *missing != number);
            ensure!(
                missing.len() < count,
                "an answer to nothing, or one too many"
            );
            answered += 1;
        }
    }
    Ok(())
}

fn client(addr: SocketAddrV4) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).context("bind")?;
    socket.connect(addr).context("connect")?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

fn silence(addr: SocketAddrV4) -> anyhow::Result<()> {
    match TcpStream::connect_timeout(&SocketAddr::from(addr), TIMEOUT) {
        Ok(_) => bail!("TCP is answered"),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        Err(error) => return Err(error).context("connect"),
    }
    let socket = client(addr)?;
    socket.send(b"v").context("send")?;
    match socket.recv(&mut [0]) {
        Ok(_) => bail!("UDP is answered"),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error).context("receive"),
    }
}
