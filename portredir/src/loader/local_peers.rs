//! Sockets of this host that were pointed at a target with an address.

use std::mem::offset_of;
use std::os::fd::AsFd as _;

use aya::maps::Map;
use portredir_common::map::sockets::{ForwardPeer, ForwardPeers};
use portredir_common::net::{Addr, Port, Protocol};
use thiserror::Error;

use super::Datapath;
use crate::sys::sock_destroy::{SockDestroyError, destroy};
use crate::sys::sock_detail::{Question, Socket, TcpState, each};
use crate::sys::sock_diag::SockDiagError;

/// The map of the targets of local clients.
const PEERS: &str = "FORWARD_PEERS";

/// The states of connections that a process can still notice.
const CONNECTED: [TcpState; 8] = [
    TcpState::SynSent,
    TcpState::SynRecv,
    TcpState::Established,
    TcpState::FinWait1,
    TcpState::FinWait2,
    TcpState::CloseWait,
    TcpState::LastAck,
    TcpState::Closing,
];

/// Sockets of this host cannot be ended.
#[derive(Debug, Error)]
pub enum EndSocketsError {
    /// The sockets cannot be listed.
    #[error(transparent)]
    List(#[from] SockDiagError),
    /// A socket cannot be ended.
    #[error(transparent)]
    Destroy(#[from] SockDestroyError),
}

impl Datapath {
    /// Ends the TCP sockets of this host whose present peer is a target that a program pointed
    /// them at, and for which a test holds. Returns their number.
    ///
    /// A socket that a process connected to the same address by itself is none of them: no
    /// program has kept a peer at it. The kernel tells no such values at UDP sockets
    /// (`inet_sk_diag_fill` of net/ipv4/inet_diag.c), so these stay.
    ///
    /// # Errors
    ///
    /// [`EndSocketsError`].
    pub fn end_sockets(
        &self,
        is_dead: impl Fn(&ForwardPeer) -> bool,
    ) -> Result<usize, EndSocketsError> {
        let Some(Map::SkStorage(map)) = self.maps.get(PEERS) else {
            return Ok(0);
        };
        let mut found = Vec::new();
        let question = Question {
            protocol: Protocol::Tcp,
            states: &CONNECTED,
            storages: &[map.fd().as_fd()],
        };
        each(question, |socket| {
            if present(&socket).is_some_and(|peer| is_dead(&peer)) {
                found.push(socket.handle);
            }
        })?;
        let mut ended = 0;
        for handle in found {
            ended += usize::from(destroy(&handle)?);
        }
        Ok(ended)
    }
}

/// The target that a socket is connected to, of those that a program keeps at it.
fn present(socket: &Socket) -> Option<ForwardPeer> {
    let (_, bytes) = socket.stored.first()?;
    let peers = bytes.chunks_exact(size_of::<ForwardPeer>());
    let mut peers = peers.take(ForwardPeers::PEERS).filter_map(read);
    peers.find(|peer| {
        let is_used = peer.dst_port != Port::CLOSED;
        is_used && peer.addr.is(socket.key.client) && peer.port == socket.key.client_port
    })
}

/// Reads a target as the programs keep it.
fn read(bytes: &[u8]) -> Option<ForwardPeer> {
    let addr = |at: usize| Some(Addr::new(*bytes.get(at..)?.first_chunk()?));
    let half = |at: usize| bytes.get(at..)?.first_chunk::<2>().copied();
    let port = |at| Some(Port::new(u16::from_be_bytes(half(at)?)));
    Some(ForwardPeer {
        addr: addr(offset_of!(ForwardPeer, addr))?,
        dialled: addr(offset_of!(ForwardPeer, dialled))?,
        port: port(offset_of!(ForwardPeer, port))?,
        dst_port: port(offset_of!(ForwardPeer, dst_port))?,
        target: u16::from_ne_bytes(half(offset_of!(ForwardPeer, target))?),
        pad: 0,
    })
}
