//! The network namespace of this process.

use std::io;

/// The file that stands for the network namespace of this process.
pub const NETNS: &str = "/proc/self/ns/net";

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

/// The kernel's cookie of the current network namespace, since Linux 5.14.
///
/// # Errors
///
/// `ENOPROTOOPT` before Linux 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket};
    socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .and_then(|socket| getsockopt(&socket, sockopt::NetnsCookie))
    .map_err(Into::into)
}
