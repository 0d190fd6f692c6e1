//! The network namespace of this process.

use std::io;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket};

mod sockopt {
    use nix::{getsockopt_impl, sockopt_impl};

    sockopt_impl!(
        NetnsCookie,
        GetOnly,
        libc::SOL_SOCKET,
        libc::SO_NETNS_COOKIE,
        u64
    );
}

/// The cookie of the current network namespace: its unique number, since Linux 5.14.
///
/// # Errors
///
/// The kernel's error: before Linux 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    Ok(getsockopt(&socket, sockopt::NetnsCookie)?)
}
