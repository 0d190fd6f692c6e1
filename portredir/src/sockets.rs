//! TCP sockets of this network namespace, by sock_diag(7).

use anyhow::Context as _;
use futures_util::StreamExt as _;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_proto::ConnectionHandle;
use netlink_proto::sys::protocols::NETLINK_SOCK_DIAG;
use netlink_proto::sys::{SocketAddr, TokioSocket};
use portredir_common::abi::{Addr, FlowKey, Port, Protocol};
use portredir_common::wire::Version;

use crate::interface::to_bytes;

/// What is asked about.
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
    /// Its addresses and ports, this host's as the local ones.
    pub key: FlowKey,
    /// The interface it is bound to, or 0.
    pub device: u32,
}

/// A netlink socket for asking.
#[derive(Clone, Debug)]
pub struct Sockets(ConnectionHandle<SockDiagMessage>);

impl Sockets {
    /// Opens it in the current network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the socket. Must be called inside a runtime.
    pub fn open() -> anyhow::Result<Self> {
        let (connection, handle, _) =
            netlink_proto::new_connection_with_socket::<_, TokioSocket>(NETLINK_SOCK_DIAG)
                .context("open a sock_diag socket")?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Lists all sockets of a kind.
    ///
    /// # Errors
    ///
    /// When the dump fails.
    pub async fn list(&self, kind: Kind) -> anyhow::Result<Vec<TcpSocket>> {
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
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
            let mut answers = self
                .0
                .clone()
                .request(message, SocketAddr::new(0, 0))
                .context("ask for TCP sockets")?;
            while let Some(answer) = answers.next().await {
                match answer.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
                        sockets.push(tcp_socket(&socket.header.socket_id));
                    }
                    NetlinkPayload::Error(error) => {
                        return Err(error.to_io())
                            .context("list TCP sockets; is the kernel module tcp_diag there?");
                    }
                    _ => {}
                }
            }
        }
        Ok(sockets)
    }
}

fn tcp_socket(id: &SocketId) -> TcpSocket {
    // Sockets of both families have addresses like ::ffff:10.0.0.1.
    let is_v4 = id.source_address.to_canonical().is_ipv4();
    let version = if is_v4 { Version::V4 } else { Version::V6 };
    TcpSocket {
        key: FlowKey {
            client: Addr(to_bytes(id.destination_address)),
            local: Addr(to_bytes(id.source_address)),
            client_port: Port::new(id.destination_port),
            local_port: Port::new(id.source_port),
            protocol: Protocol::Tcp as u8,
            version: version as u8,
            pad: [0; 2],
        },
        device: id.interface_id,
    }
}
