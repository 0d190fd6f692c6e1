//! The table of connections that netfilter tracks.

use anyhow::Context as _;
use netlink_sys::{Socket, SocketAddr};

/// Deletes all tracked connections of this network namespace, as `conntrack -F` does.
///
/// # Errors
///
/// When the kernel does not let us.
pub fn flush() -> anyhow::Result<()> {
    // include/uapi/linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
    const NETLINK_NETFILTER: isize = 12;
    const NFNL_SUBSYS_CTNETLINK: u16 = 1;
    const IPCTNL_MSG_CT_DELETE: u16 = 2;
    const NLM_F_REQUEST: u16 = 1;
    const NLM_F_ACK: u16 = 4;
    // `struct nlmsghdr`, and `struct nfgenmsg`, of which all fields are 0.
    let mut message = [0; 20];
    message[..4].copy_from_slice(&20_u32.to_ne_bytes());
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE;
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    let ask = || {
        let socket = Socket::new(NETLINK_NETFILTER)?;
        socket.send_to(&message, &SocketAddr::new(0, 0), 0)?;
        let (answer, _) = socket.recv_from_full()?;
        // `struct nlmsgerr`
        let errno = answer.get(16..20).and_then(|bytes| bytes.try_into().ok());
        match errno.map(i32::from_ne_bytes) {
            Some(0) => Ok(()),
            Some(errno) => Err(std::io::Error::from_raw_os_error(-errno)),
            None => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    };
    ask().context("forget tracked connections")
}
