//! Sockets of this host that were pointed at a target with an address.

use std::collections::HashMap;
use std::os::fd::AsFd as _;

use aya::maps::{HashMap as BpfHashMap, Map};
use portredir_common::map::sockets::ForwardPeer;
use portredir_common::net::Protocol;
use thiserror::Error;

use super::Datapath;
use super::error::{DatapathError, map_error};
use super::forward_view::peers;
use crate::sys::sock_destroy::{SockDestroyError, destroy};
use crate::sys::sock_detail::{Question, Socket, TcpState, each};
use crate::sys::sock_diag::SockDiagError;

/// The map of the targets of local clients, at their sockets.
const PEERS: &str = "FORWARD_PEERS";

/// The map of the targets of connected UDP sockets, by the cookie of the socket.
const UDP_PEERS: &str = "UDP_PEERS";

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
    /// A map cannot be read.
    #[error(transparent)]
    Map(#[from] DatapathError),
    /// A socket cannot be ended.
    #[error(transparent)]
    Destroy(#[from] SockDestroyError),
}

impl Datapath {
    /// Ends the TCP and the connected UDP sockets of this host whose present peer is a target
    /// that a program pointed them at, and for which a test holds. Returns their number.
    ///
    /// A socket that a process connected to the same address by itself is none of them: no
    /// program has kept a peer of it.
    ///
    /// # Errors
    ///
    /// [`EndSocketsError`].
    pub fn end_sockets(
        &self,
        is_dead: impl Fn(&ForwardPeer) -> bool,
    ) -> Result<usize, EndSocketsError> {
        let mut found = Vec::new();
        if let Some(Map::SkStorage(map)) = self.maps.get(PEERS) {
            let question = Question {
                protocol: Protocol::Tcp,
                states: &CONNECTED,
                storages: &[map.fd().as_fd()],
            };
            each(question, |socket| {
                let stored = socket.stored.first();
                let kept = stored.map(|(_, bytes)| peers(bytes)).unwrap_or_default();
                if kept
                    .iter()
                    .any(|peer| is_at(peer, &socket) && is_dead(peer))
                {
                    found.push(socket.handle);
                }
            })?;
        }
        let dead = self.udp_peers(is_dead)?;
        if !dead.is_empty() {
            let question = Question {
                protocol: Protocol::Udp,
                states: &[TcpState::Established],
                storages: &[],
            };
            each(question, |socket| {
                let peer = dead.get(&u64::from_ne_bytes(socket.handle.id.cookie));
                if peer.is_some_and(|peer| is_at(peer, &socket)) {
                    found.push(socket.handle);
                }
            })?;
        }
        let mut ended = 0;
        for handle in found {
            ended += usize::from(destroy(&handle)?);
        }
        Ok(ended)
    }

    /// The targets, by the cookie of the UDP socket that was connected to one, for which a
    /// test holds.
    fn udp_peers(
        &self,
        is_dead: impl Fn(&ForwardPeer) -> bool,
    ) -> Result<HashMap<u64, ForwardPeer>, DatapathError> {
        let Some(map) = self.maps.get(UDP_PEERS) else {
            return Ok(HashMap::new());
        };
        let map = BpfHashMap::<_, u64, ForwardPeer>::try_from(map).map_err(map_error(UDP_PEERS))?;
        // An entry that goes meanwhile is of no socket that could be ended.
        let kept = map.iter().filter_map(Result::ok);
        Ok(kept.filter(|(_, peer)| is_dead(peer)).collect())
    }
}

/// Whether a target is the present peer of a socket.
fn is_at(peer: &ForwardPeer, socket: &Socket) -> bool {
    peer.addr.is(socket.key.client) && peer.port == socket.key.client_port
}
