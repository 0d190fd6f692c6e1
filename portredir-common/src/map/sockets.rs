//! Keys and values of the maps of sockets.

use crate::net::{Addr, Port};

/// A key of `LISTENERS`: the address and port that a server listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ListenerKey {
    /// The address that the socket is bound to: [`Addr::V4_ANY`] and [`Addr::V6_ANY`] for all.
    pub addr: Addr,
    /// The port that the socket is bound to.
    pub port: Port,
    /// The slot, below [`Self::SLOTS`]: sockets that share address and port by
    /// `SO_REUSEPORT` are one listener each.
    pub slot: u8,
    /// Padding, always zero.
    pub pad: u8,
}

impl ListenerKey {
    /// The number of sockets kept of a group, the last that came. The kernel balances over the
    /// whole group whichever is found, so one would do; the others are there when
    /// that one closes.
    pub const SLOTS: u8 = 4;
}

/// Values of `SCOPE`: who gives connections that come in by an interface to listeners.
pub mod scope {
    /// The socket lookup.
    pub const LOOKUP: u8 = 1;
    /// The program at ingress of `lo`, beside the hooks of local clients.
    pub const ASSIGN: u8 = 2;
}

/// A value of `DIALLED`, kept at a client's socket: the peers that the client knows by
/// another port than their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ConnectedPeers {
    /// The peers, in no order. Unused ones are all zero: nobody connects to port 0.
    pub peers: [ConnectedPeer; Self::PEERS],
    /// The index to use next when all are used.
    pub next: u32,
}

/// One peer of a client's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ConnectedPeer {
    /// The address of the peer.
    pub addr: Addr,
    /// The peer's own port.
    pub port: Port,
    /// The port that the client connected to.
    pub dst_port: Port,
}

impl ConnectedPeers {
    /// The greatest number of peers that are kept at a socket.
    pub const PEERS: usize = 4;

    /// Keeps a peer, in place of an earlier entry for the same peer; the result says whether
    /// the peer is new.
    #[inline(always)]
    pub fn insert(&mut self, peer: ConnectedPeer) -> bool {
        keep(&mut self.peers, &mut self.next, peer)
    }

    /// Removes a peer: the client knows it by its own port from now on.
    #[inline(always)]
    pub fn remove(&mut self, addr: Addr, port: Port) {
        if let Some(known) = self.known(addr, port) {
            *known = ConnectedPeer::default();
        }
    }

    /// The port that the client connected to, of a peer that is kept.
    #[inline(always)]
    pub fn dst_port_of(&mut self, addr: Addr, port: Port) -> Option<Port> {
        self.known(addr, port).map(|known| known.dst_port)
    }

    #[inline(always)]
    fn known(&mut self, addr: Addr, port: Port) -> Option<&mut ConnectedPeer> {
        self.peers
            .iter_mut()
            .find(|peer| peer.is_used() && peer.port == port && peer.addr.is(addr))
    }
}

/// A peer that is kept at a client's socket.
trait Peer {
    fn is_used(&self) -> bool;

    fn is_same(&self, other: &Self) -> bool;

    /// Whether the client named both alike.
    fn is_named_as(&self, other: &Self) -> bool;
}

impl Peer for ConnectedPeer {
    #[inline(always)]
    fn is_used(&self) -> bool {
        self.dst_port.get() != 0
    }

    #[inline(always)]
    fn is_same(&self, other: &Self) -> bool {
        self.is_used() && self.port == other.port && self.addr.is(other.addr)
    }

    #[inline(always)]
    fn is_named_as(&self, other: &Self) -> bool {
        self.dst_port == other.dst_port
    }
}

/// Keeps a peer: in place of an earlier entry for the same one, else in an unused place, else
/// in that of the oldest. The result says whether the peer is new under its name.
#[inline(always)]
fn keep<P: Peer, const N: usize>(peers: &mut [P; N], next: &mut u32, peer: P) -> bool {
    if let Some(known) = peers.iter_mut().find(|known| known.is_same(&peer)) {
        let is_new = !known.is_named_as(&peer);
        *known = peer;
        return is_new;
    }
    if let Some(unused) = peers.iter_mut().find(|known| !known.is_used()) {
        *unused = peer;
        return true;
    }
    if let Some(oldest) = peers.get_mut(*next as usize % N) {
        *oldest = peer;
    }
    *next = next.wrapping_add(1);
    true
}

/// A value of `FORWARD_PEERS`, kept at a client's socket: the targets with an address that
/// the client knows by another address and port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ForwardPeers {
    /// The targets, in no order. Unused ones are all zero: nobody connects to port 0.
    pub peers: [ForwardPeer; Self::PEERS],
    /// The index to use next when all are used.
    pub next: u32,
}

/// A target that a client's socket talks to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ForwardPeer {
    /// The address of the target.
    pub addr: Addr,
    /// The address that the client named.
    pub dialled: Addr,
    /// The port of the target.
    pub port: Port,
    /// The port that the client named.
    pub dst_port: Port,
    /// The number of the target.
    pub target: u16,
    /// Padding, always zero.
    pub pad: u16,
}

impl ForwardPeers {
    /// The greatest number of targets that are kept at a socket.
    pub const PEERS: usize = 4;

    /// Keeps a target, in place of an earlier entry for the same one; the result says whether
    /// it is new.
    #[inline(always)]
    pub fn insert(&mut self, peer: ForwardPeer) -> bool {
        keep(&mut self.peers, &mut self.next, peer)
    }

    /// Removes a target: the client knows it by its own address and port from now on.
    #[inline(always)]
    pub fn remove(&mut self, addr: Addr, port: Port) {
        let mut peers = self.peers.iter_mut();
        let known = peers.find(|peer| peer.is_used() && peer.port == port && peer.addr.is(addr));
        if let Some(known) = known {
            *known = ForwardPeer::default();
        }
    }

    /// The target with an address and port.
    #[inline(always)]
    pub fn by_target(&self, addr: Addr, port: Port) -> Option<&ForwardPeer> {
        self.peers
            .iter()
            .find(|peer| peer.is_used() && peer.port == port && peer.addr.is(addr))
    }
}

impl ForwardPeer {
    /// Whether the client reaches the target by an address and port.
    #[inline(always)]
    pub(crate) fn is_named(&self, addr: Addr, port: Port) -> bool {
        self.is_used() && self.dst_port == port && self.dialled.is(addr)
    }
}

impl Peer for ForwardPeer {
    #[inline(always)]
    fn is_used(&self) -> bool {
        self.dst_port.get() != 0
    }

    #[inline(always)]
    fn is_same(&self, other: &Self) -> bool {
        self.is_used() && self.port == other.port && self.addr.is(other.addr)
    }

    #[inline(always)]
    fn is_named_as(&self, other: &Self) -> bool {
        self.is_named(other.dialled, other.dst_port)
    }
}
