//! The end of sockets of other processes, by `SOCK_DESTROY` of sock_diag(7). The kernel needs
//! `CONFIG_INET_DIAG_DESTROY`, and the caller `CAP_NET_ADMIN`.

use std::io;

use netlink_packet_core::{
    DecodeError, Emitable as _, NLM_F_ACK, NetlinkDeserializable, NetlinkHeader, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_sock_diag::constants::AF_INET;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use portredir_common::net::Protocol;
use thiserror::Error;

use crate::sys::netlink::{NetlinkError, ask};

/// `include/uapi/linux/sock_diag.h`.
const SOCK_DESTROY: u16 = 21;

/// The name by which the kernel knows a socket: the ends and a cookie, which no later socket
/// has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    /// The protocol.
    pub protocol: Protocol,
    /// The address family of the socket.
    pub family: u8,
    /// The ends and the cookie.
    pub id: SocketId,
}

/// A socket cannot be ended.
#[derive(Debug, Error)]
pub enum SockDestroyError {
    /// The kernel lacks the option.
    #[error("this kernel cannot end sockets of processes (CONFIG_INET_DIAG_DESTROY is not set)")]
    Unsupported,
    /// The kernel gives another reason.
    #[error("end a socket")]
    Kernel(#[source] NetlinkError),
}

/// Ends a socket: its process gets `ECONNABORTED`, and the peer of a TCP connection an RST.
/// The result says whether the socket was still there.
///
/// # Errors
///
/// [`SockDestroyError`].
pub fn destroy(handle: &Handle) -> Result<bool, SockDestroyError> {
    let request = InetRequest {
        family: handle.family,
        protocol: handle.protocol as u8,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: handle.id.clone(),
    };
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut bytes);
    let payload = NetlinkPayload::InnerMessage(Question(bytes));
    let Err(error) = ask(NETLINK_SOCK_DIAG, payload, NLM_F_ACK) else {
        return Ok(true);
    };
    match errno(&error) {
        // The cookie of another socket is `ESTALE`.
        Some(libc::ENOENT | libc::ESTALE) => Ok(false),
        Some(libc::EOPNOTSUPP) => Err(SockDestroyError::Unsupported),
        _ => Err(SockDestroyError::Kernel(error)),
    }
}

/// Whether the kernel can end sockets: asks for the end of one that no process can have.
///
/// # Errors
///
/// [`SockDestroyError::Kernel`]: the kernel does not say.
pub fn is_supported() -> Result<bool, SockDestroyError> {
    let nobody = Handle {
        protocol: Protocol::Tcp,
        family: AF_INET,
        id: SocketId::new_v4(),
    };
    match destroy(&nobody) {
        Ok(_) => Ok(true),
        Err(SockDestroyError::Unsupported) => Ok(false),
        Err(error) => Err(error),
    }
}

fn errno(error: &NetlinkError) -> Option<i32> {
    let source: &io::Error = match error {
        NetlinkError::Kernel { source, .. } => source,
        _ => return None,
    };
    source.raw_os_error()
}

/// The bytes of a request. Answers are errors alone.
#[derive(Debug)]
struct Question(Vec<u8>);

impl NetlinkSerializable for Question {
    fn message_type(&self) -> u16 {
        SOCK_DESTROY
    }

    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
}

impl NetlinkDeserializable for Question {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self(payload.to_vec()))
    }
}
