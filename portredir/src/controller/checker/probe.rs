//! One probe: a TCP connection to a target, and a request over it; or a datagram.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::host::way;
use crate::ruleset::health::{Answer, Check, Probe};

/// The most bytes of an answer's body that are read.
const LONGEST: usize = 64 * 1024;

/// The most bytes of an answer's head.
const LONGEST_HEAD: usize = 64 * 1024;

/// The reason why a target counts as failed.
#[derive(Debug, Error)]
pub enum Failure {
    /// The host answers that nobody listens.
    #[error("refused")]
    Refused,
    /// The time is over.
    #[error("no answer in {}", words(*.0))]
    Timeout(Duration),
    /// This host has no route to the target.
    #[error("no route")]
    NoRoute,
    /// A router, or this host, cannot reach the target.
    #[error("host unreachable")]
    Unreachable,
    /// The host answers that nobody has the UDP port, by an ICMP error.
    #[error("port unreachable")]
    PortUnreachable,
    /// The first host on the way does not answer: ARP, or neighbour discovery, has failed.
    #[error("no neighbour")]
    NoNeighbour,
    /// The connection ended before the answer did.
    #[error("closed without an answer")]
    Closed,
    /// The server answers that it cannot serve.
    #[error("HTTP {0}")]
    Status(u16),
    /// The server answers something else.
    #[error("no HTTP answer")]
    NotHttp,
    /// The path cannot be asked for.
    #[error("the path is not valid")]
    Path,
    /// The kernel refuses something else.
    #[error("{0}")]
    Io(io::Error),
}

/// A time in words: `1 s`, `250 ms`.
fn words(time: Duration) -> String {
    if time.subsec_millis() == 0 {
        format!("{} s", time.as_secs())
    } else {
        format!("{} ms", time.as_millis())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::NetworkUnreachable => Self::NoRoute,
            io::ErrorKind::HostUnreachable => Self::Unreachable,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        if error.is_parse() {
            return Self::NotHttp;
        }
        Self::Closed
    }
}

/// Makes a probe.
///
/// # Errors
///
/// The target does not answer as it should, or not in time.
pub async fn make(probe: &Probe) -> Result<Answer, Failure> {
    let longest = probe.timing.timeout;
    if probe.check == Check::Udp {
        return ask_udp(probe).await;
    }
    let made = timeout(longest, ask_each(probe)).await;
    made.unwrap_or(Err(Failure::Timeout(longest)))?;
    Ok(Answer::Some)
}

/// Sends an empty datagram, and waits for an answer or an ICMP error. Silence is good, unless
/// the kernel cannot find the first host on the way.
async fn ask_udp(probe: &Probe) -> Result<Answer, Failure> {
    let longest = probe.timing.timeout;
    let port = probe.port.get();
    let Some(host) = probe.host else {
        let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        return match send(v4, longest).await {
            Err(Failure::PortUnreachable) => {
                let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
                // A host without IPv6: what IPv4 said counts.
                let again = send(v6, longest).await;
                again.map_err(|_| Failure::PortUnreachable)
            }
            done => done,
        };
    };
    match send(SocketAddr::new(host, port), longest).await {
        Ok(Answer::None) | Err(Failure::Unreachable) if way::is_neighbour_missing(host) => {
            Err(Failure::NoNeighbour)
        }
        done => done,
    }
}

/// Sends an empty datagram, and tells what comes back in this time.
async fn send(addr: SocketAddr, longest: Duration) -> Result<Answer, Failure> {
    let any: IpAddr = match addr {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let exchange = async {
        let socket = UdpSocket::bind((any, 0)).await?;
        // A connected socket gets ICMP errors.
        socket.connect(addr).await?;
        socket.send(&[]).await?;
        socket.recv(&mut [0; 1]).await
    };
    match timeout(longest, exchange).await {
        Err(_) => Ok(Answer::None),
        Ok(Ok(_)) => Ok(Answer::Some),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(Failure::PortUnreachable)
        }
        Ok(Err(error)) => Err(error.into()),
    }
}

/// Asks the target; on this host it may listen on one IP version alone.
async fn ask_each(probe: &Probe) -> Result<(), Failure> {
    let port = probe.port.get();
    let Some(host) = probe.host else {
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        return match ask(SocketAddr::new(v4, port), &probe.check).await {
            Err(Failure::Refused) => {
                let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
                let again = ask(SocketAddr::new(v6, port), &probe.check).await;
                again.map_err(|failure| match failure {
                    // A host without IPv6: what IPv4 said counts.
                    Failure::Io(_) | Failure::NoRoute | Failure::Unreachable => Failure::Refused,
                    other => other,
                })
            }
            done => done,
        };
    };
    ask(SocketAddr::new(host, port), &probe.check).await
}

async fn ask(addr: SocketAddr, check: &Check) -> Result<(), Failure> {
    let stream = connect(addr).await?;
    // The connection ends with an RST: thousands in TIME_WAIT would use up the ports.
    stream.set_zero_linger()?;
    match check {
        // Datagrams go their own way.
        Check::Tcp | Check::Udp => Ok(()),
        Check::Http { path } => get(stream, addr, path).await,
    }
}

/// Connects to a target. A socket that is bound to loopback is pointed at no target: else the
/// check of a port of this host, which may be the port of a rule, would ask another target.
async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    if !addr.ip().is_loopback() {
        return TcpStream::connect(addr).await;
    }
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.bind(SocketAddr::new(addr.ip(), 0))?;
    socket.connect(addr).await
}

/// Asks for a path by HTTP/1.1.
async fn get(stream: TcpStream, addr: SocketAddr, path: &str) -> Result<(), Failure> {
    let request = Request::get(path)
        .header(HOST, addr.to_string())
        .header(
            USER_AGENT,
            concat!("portredir/", env!("CARGO_PKG_VERSION"), " (health check)"),
        )
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| Failure::Path)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(LONGEST_HEAD)
        .handshake(TokioIo::new(stream))
        .await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        judge(response).await
    };
    let connection = async {
        if let Err(error) = connection.await {
            // The answer fails as well then, and tells more.
            log::debug!("health check of {addr}: {error}");
        }
        std::future::pending().await
    };
    tokio::select! {
        result = answer => result,
        never = connection => never,
    }
}

/// Judges an answer, whose body has to come as well.
async fn judge(response: Response<hyper::body::Incoming>) -> Result<(), Failure> {
    let status = response.status();
    if !status.is_success() && !status.is_redirection() {
        return Err(Failure::Status(status.as_u16()));
    }
    let mut body = response.into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        read += frame.data_ref().map_or(0, Bytes::len);
        if read >= LONGEST {
            break;
        }
    }
    Ok(())
}
