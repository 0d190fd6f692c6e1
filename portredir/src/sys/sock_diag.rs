//! Sockets of this network namespace, by sock_diag(7).

use std::net::IpAddr;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla,
};
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

/// A socket that waits for clients: a TCP socket that listens, or a UDP socket that is
/// bound and not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// The protocol.
    pub protocol: Protocol,
    /// The address that the socket is bound to, IPv4 as IPv4.
    pub addr: IpAddr,
    /// The port.
    pub port: Port,
    /// Whether a socket on `::` keeps out IPv4.
    pub is_v6_only: bool,
    /// The index of the interface that the socket is bound to, or 0.
    pub device: u32,
    /// The inode of the socket, by which its processes are found; 0 without one.
    pub inode: u32,
    /// The user who opened the socket.
    pub uid: u32,
}

/// Sockets cannot be listed.
#[derive(Debug, Error)]
#[error("list {} sockets (requires the kernel module {}_diag)", .protocol.to_uppercase(), .protocol)]
pub struct SockDiagError {
    protocol: &'static str,
    source: NetlinkError,
}

impl SockDiagError {
    pub(super) const fn new(protocol: Protocol, source: NetlinkError) -> Self {
        let protocol = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        Self { protocol, source }
    }
}

/// Lists all TCP sockets of a kind.
///
/// # Errors
///
/// [`SockDiagError`].
pub fn list(kind: Kind) -> Result<Vec<TcpSocket>, SockDiagError> {
    let states = match kind {
        Kind::Listening => StateFlags::LISTEN,
        Kind::Connected => connected(),
    };
    let sockets = dump(Protocol::Tcp, &states)?;
    let ids = sockets.iter().map(|socket| &socket.header.socket_id);
    Ok(ids.map(tcp_socket).collect())
}

/// Lists all TCP connections, each with the inode of its socket.
///
/// # Errors
///
/// [`SockDiagError`].
pub fn connections() -> Result<Vec<(u32, TcpSocket)>, SockDiagError> {
    let sockets = dump(Protocol::Tcp, &connected())?;
    let sockets = sockets.iter().map(|socket| &socket.header);
    Ok(sockets
        .map(|header| (header.inode, tcp_socket(&header.socket_id)))
        .collect())
}

fn connected() -> StateFlags {
    StateFlags::all() - StateFlags::LISTEN - StateFlags::CLOSE - StateFlags::TIME_WAIT
}

/// Lists all sockets of a protocol that wait for clients.
///
/// # Errors
///
/// [`SockDiagError`].
pub fn servers(protocol: Protocol) -> Result<Vec<Server>, SockDiagError> {
    let states = match protocol {
        Protocol::Tcp => StateFlags::LISTEN,
        // The kernel has no state for UDP sockets that are not connected.
        Protocol::Udp => StateFlags::CLOSE,
    };
    let sockets = dump(protocol, &states)?;
    let sockets = sockets.iter().map(|socket| server(protocol, socket));
    Ok(sockets
        .filter(|socket| socket.port != Port::CLOSED)
        .collect())
}

fn dump(protocol: Protocol, states: &StateFlags) -> Result<Vec<InetResponse>, SockDiagError> {
    let mut sockets = Vec::new();
    for (family, socket_id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let request = InetRequest {
            family,
            protocol: protocol as u8,
            extensions: ExtensionFlags::empty(),
            states: states.clone(),
            socket_id,
        };
        let request = SockDiagMessage::InetRequest(request);
        let answers = ask(NETLINK_SOCK_DIAG, request.into(), NLM_F_DUMP);
        let answers = answers.map_err(|source| SockDiagError::new(protocol, source))?;
        sockets.extend(answers.into_iter().filter_map(|answer| match answer {
            SockDiagMessage::InetResponse(socket) => Some(*socket),
            _ => None,
        }));
    }
    Ok(sockets)
}

fn server(protocol: Protocol, socket: &InetResponse) -> Server {
    let header = &socket.header;
    Server {
        protocol,
        addr: header.socket_id.source_address.to_canonical(),
        port: Port::new(header.socket_id.source_port),
        is_v6_only: socket.nlas.contains(&Nla::SkV6Only(true)),
        device: header.socket_id.interface_id,
        inode: header.inode,
        uid: header.uid,
    }
}

fn tcp_socket(id: &SocketId) -> TcpSocket {
    TcpSocket {
        key: key_of(id),
        device: id.interface_id,
    }
}

/// The ends of a socket, as the key of a TCP flow.
pub(super) fn key_of(id: &SocketId) -> FlowKey {
    // Dual-stack sockets have addresses like ::ffff:10.0.0.1.
    let is_v4 = id.source_address.to_canonical().is_ipv4();
    let version = if is_v4 { Version::V4 } else { Version::V6 };
    FlowKey {
        client: Addr::from(id.destination_address),
        local: Addr::from(id.source_address),
        client_port: Port::new(id.destination_port),
        local_port: Port::new(id.source_port),
        protocol: Protocol::Tcp as u8,
        version: version as u8,
        pad: [0; 2],
    }
}
