//! The lock of a network namespace: an abstract socket address, which the kernel frees
//! however the process ends.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use thiserror::Error;

use super::peer::Owner;

/// The reason why the lock cannot be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another instance runs in this network namespace.
    #[error(
        "portredir is already running in this network namespace{0}; stop it first: portredir down"
    )]
    Running(Holder),
    /// Another command takes too long.
    #[error(
        "another portredir command is running in this network namespace{0}; try again when it has \
         finished"
    )]
    Busy(Holder),
    /// Another process traces.
    #[error(
        "another process traces in this network namespace{0}; end that trace first (a redirect \
         that runs with -v traces itself)"
    )]
    Traced(Holder),
    /// The lock cannot be taken.
    #[error("lock this network namespace")]
    Lock(#[source] io::Error),
}

/// The holder of the lock, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holder(Option<Owner>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |owner| write!(f, " ({owner})"))
    }
}

/// The held lock; an instance holds it while it works in a network namespace.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its existence")] UnixListener);

impl Lock {
    const NAME: &str = "portredir";

    /// Waits for the lock of the current network namespace, for as long as a
    /// command may take.
    ///
    /// # Errors
    ///
    /// [`LockError::Busy`] when another instance still holds it.
    pub async fn wait() -> Result<Self, LockError> {
        const LONGEST: Duration = Duration::from_secs(10);
        const POLL: Duration = Duration::from_millis(10);
        let end = Instant::now() + LONGEST;
        loop {
            match bind(Self::NAME) {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    return Err(LockError::Lock(error));
                }
                Err(_) if Instant::now() >= end => {
                    return Err(LockError::Busy(holder(Self::NAME)));
                }
                Err(_) => tokio::time::sleep(POLL).await,
                Ok(socket) => return Ok(Self(socket)),
            }
        }
    }

    /// Takes the lock of the current network namespace.
    ///
    /// # Errors
    ///
    /// [`LockError::Running`] when another instance holds it.
    pub fn take() -> Result<Self, LockError> {
        bind(Self::NAME)
            .map(Self)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => LockError::Running(holder(Self::NAME)),
                _ => LockError::Lock(error),
            })
    }
}

/// The held lock of who traces: the records are for one reader.
#[derive(Debug)]
pub struct TraceLock(#[expect(dead_code, reason = "held for its existence")] UnixListener);

impl TraceLock {
    const NAME: &str = "portredir.trace";

    /// Takes the lock of the current network namespace.
    ///
    /// # Errors
    ///
    /// [`LockError::Traced`] when another process holds it.
    pub fn take() -> Result<Self, LockError> {
        bind(Self::NAME)
            .map(Self)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => LockError::Traced(holder(Self::NAME)),
                _ => LockError::Lock(error),
            })
    }
}

/// Binds the socket. An abstract socket address belongs to a network namespace, and the
/// kernel frees it however the process ends, so nothing can be left behind.
fn bind(name: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

fn holder(name: &str) -> Holder {
    let ask = || {
        // No process accepts connections, so the socket must not wait when others
        // have asked before.
        let socket = socket::socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        let addr = UnixAddr::new_abstract(name.as_bytes())?;
        socket::connect(socket.as_raw_fd(), &addr)?;
        Owner::of(&socket)
    };
    Holder(ask().ok())
}
