//! The process that owns the other end of a socket.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use caps::{CapSet, Capability};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::Uid;

/// The process that listens on a socket.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// The process ID.
    pub pid: i32,
    uid: Uid,
}

impl Owner {
    /// Reads the owner of the socket that `socket` is connected to.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let peer = getsockopt(socket, PeerCredentials)?;
        Ok(Self {
            pid: peer.pid(),
            uid: Uid::from_raw(peer.uid()),
        })
    }

    /// Whether the process has the privileges that redirecting needs.
    #[must_use]
    pub fn may_redirect(self) -> bool {
        let has_rights = || caps::has_cap(Some(self.pid), CapSet::Effective, Capability::CAP_BPF);
        self.uid.is_root() || self.uid == Uid::effective() || has_rights().unwrap_or(false)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of user {}", self.pid, self.uid)
    }
}
