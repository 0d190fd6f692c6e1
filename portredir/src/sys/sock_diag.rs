//! TCP sockets of this network namespace, by sock_diag(7).

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use portredir_common::flow::FlowKey;
use portredir_common::net::Version;
use portredir_common::net::{Addr, Port, Protocol};
use thiserror::Error;

use crate::sys::netlink::{NetlinkError, ask};

/// The kind of sockets to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Servers that wait for connections.
    Listening,
    /// Connections, from the first SYN to the last ACK.
    Connected,
}

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// The addresses and ports of the socket, those of this host as the local ones.
    pub key: FlowKey,
    /// The interface that the socket is bound to, or 0.
    pub device: u32,
}

/// TCP sockets cannot be listed.
#[derive(Debug, Error)]
#[error("list TCP sockets (requires the kernel module tcp_diag)")]
pub struct SockDiagError(#[from] NetlinkError);

/// Lists all TCP sockets of a kind.
///
/// # Errors
///
/// [`SockDiagError`].
pub fn list(kind: Kind) -> Result<Vec<TcpSocket>, SockDiagError> {
    let states = match kind {
        Kind::Listening => StateFlags::LISTEN,
        Kind::Connected => {
            StateFlags::all() - StateFlags::LISTEN - StateFlags::CLOSE - StateFlags::TIME_WAIT
        }
    };
    let mut sockets = Vec::new();
    for (family, socket_id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: states.clone(),
            socket_id,
        };
        let request = SockDiagMessage::InetRequest(request);
        let answers = ask(NETLINK_SOCK_DIAG, request.into(), NLM_F_DUMP)?;
        sockets.extend(answers.iter().filter_map(|answer| match answer {
            SockDiagMessage::InetResponse(socket) => Some(tcp_socket(&socket.header.socket_id)),
            _ => None,
        }));
    }
    Ok(sockets)
}

fn tcp_socket(id: &SocketId) -> TcpSocket {
    // Dual-stack sockets have addresses like ::ffff:10.0.0.1.
    let is_v4 = id.source_address.to_canonical().is_ipv4();
    let version = if is_v4 { Version::V4 } else { Version::V6 };
    TcpSocket {
        key: FlowKey {
            client: Addr::from(id.destination_address),
            local: Addr::from(id.source_address),
            client_port: Port::new(id.destination_port),
            local_port: Port::new(id.source_port),
            protocol: Protocol::Tcp as u8,
            version: version as u8,
            pad: [0; 2],
        },
        device: id.interface_id,
    }
}
