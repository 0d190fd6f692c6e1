//! The lock of a network namespace.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use thiserror::Error;

use crate::sys::peer::Owner;

/// The lock cannot be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another instance runs in this network namespace.
    #[error(
        "portredir is already running in this network namespace{0}; stop it first: portredir down"
    )]
    Running(Holder),
    /// Another command has held the lock for too long.
    #[error(
        "another portredir command is running in this network namespace{0}; try again when it \
         has finished"
    )]
    Busy(Holder),
    /// The kernel refuses the socket.
    #[error("lock this network namespace")]
    Lock(#[source] io::Error),
}

/// The process that holds the lock, if it is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holder(Option<Owner>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |owner| write!(f, " ({owner})"))
    }
}

/// The lock of a network namespace, until the value is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its existence")] UnixListener);

impl Lock {
    const NAME: &str = "portredir";

    /// Waits for the lock of the current network namespace, for as long as a
    /// command may take.
    ///
    /// # Errors
    ///
    /// [`LockError::Busy`]: another instance still holds the lock.
    pub async fn wait() -> Result<Self, LockError> {
        const LONGEST: Duration = Duration::from_secs(10);
        const POLL: Duration = Duration::from_millis(10);
        let end = Instant::now() + LONGEST;
        loop {
            match Self::bind() {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    return Err(LockError::Lock(error));
                }
                Err(_) if Instant::now() >= end => {
                    return Err(LockError::Busy(Self::holder()));
                }
                Err(_) => tokio::time::sleep(POLL).await,
                Ok(lock) => return Ok(lock),
            }
        }
    }

    /// Takes the lock of the current network namespace.
    ///
    /// # Errors
    ///
    /// [`LockError::Running`]: another instance holds the lock.
    pub fn take() -> Result<Self, LockError> {
        Self::bind().map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => LockError::Running(Self::holder()),
            _ => LockError::Lock(error),
        })
    }

    /// Binds an abstract socket address. The address belongs to a network namespace, and
    /// the kernel frees it however the process ends, so no lock remains.
    fn bind() -> io::Result<Self> {
        let addr = SocketAddr::from_abstract_name(Self::NAME)?;
        UnixListener::bind_addr(&addr).map(Self)
    }

    fn holder() -> Holder {
        let ask = || {
            // No process accepts the connection, so the call must not block when the
            // backlog is full.
            let socket = socket::socket(
                AddressFamily::Unix,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                None,
            )?;
            let addr = UnixAddr::new_abstract(Self::NAME.as_bytes())?;
            socket::connect(socket.as_raw_fd(), &addr)?;
            Owner::of(&socket)
        };
        Holder(ask().ok())
    }
}
