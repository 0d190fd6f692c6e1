//! The socket engine: connections and datagrams are redirected where sockets
//! are looked up or named, and no packet is rewritten.
//!
//! * [`look_up`] gives a connection to the dialled port to the socket that
//!   listens on the target. The server sees the dialled port.
//! * [`dial`] points a client on this host at the target before there is a
//!   packet, and [`answered`] tells it the port it dialled. The server sees the
//!   target port.

use crate::abi::{Addr, Dialled, FlowKey, ListenerKey, Old, Peer, Port, PortEntry, Protocol};
use crate::redirect::{Tables, choose};
use crate::verdict::Reason;
use crate::wire::Version;

/// The listening sockets, and what is done with one.
pub trait Listeners {
    /// Whether the connection is looked up for its own sake, and came in by an
    /// interface that rules are for.
    fn is_in_scope(&self) -> bool;

    /// Gives the connection to the socket that is registered as `key`, if there
    /// is one that may have it.
    fn assign(&self, key: &ListenerKey) -> bool;
}

/// Finds the listener for a connection, named by what its client dialled.
///
/// With `is_loopback_allowed` a server that listens on 127.0.0.1 or `::1` alone
/// may have it as well.
#[inline(always)]
pub fn look_up<T: Tables + Listeners>(
    tables: &T,
    key: &FlowKey,
    is_loopback_allowed: bool,
) -> Reason {
    let (addr, port) = (key.local, key.local_port);
    let entry = tables.port(Protocol::Tcp, port);
    let is_wanted = entry.is_match() || entry.is_old() || entry.is_hidden();
    if !is_wanted || !tables.is_in_scope() {
        return Reason::NoRule;
    }
    // Transparent proxies look up sockets for the addresses of others.
    if !tables.is_local(&addr) {
        return Reason::NotLocal;
    }
    let Some(choice) = choose(tables, entry, key, port) else {
        return if entry.is_target() && entry.is_hidden() && !tables.is_from_here() {
            Reason::Hidden
        } else if entry.is_old() && !entry.is_target() {
            Reason::Draining
        } else {
            Reason::NoRule
        };
    };
    // The order of the kernel: the address itself, then servers on all
    // addresses; of these, one of the same family first.
    let is_v4 = key.version == Version::V4 as u8;
    let (any, loopback) = if is_v4 {
        (Addr::V4_ANY, Addr::V4_LOOPBACK)
    } else {
        (Addr::V6_ANY, Addr::V6_LOOPBACK)
    };
    let target = Port::new(choice.target);
    let is_found = assign(tables, addr, target)
        || assign(tables, any, target)
        || (is_v4 && assign(tables, Addr::V6_ANY, target))
        || (is_loopback_allowed && assign(tables, loopback, target));
    if !is_found {
        return if entry.is_if_listening() {
            Reason::NotListening
        } else {
            Reason::NoListener
        };
    }
    // How many packets follow is not known here.
    tables.hit(choice.rule, 0, 0, true, tables.now_ns());
    Reason::Redirected
}

#[inline(always)]
fn assign(listeners: &impl Listeners, addr: Addr, port: Port) -> bool {
    let mut key = ListenerKey {
        addr,
        port,
        slot: 0,
        pad: 0,
    };
    for slot in 0..ListenerKey::SLOTS {
        key.slot = slot;
        if listeners.assign(&key) {
            return true;
        }
    }
    false
}

/// What a client on this host does with its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dial {
    /// `connect`.
    Connect,
    /// `sendto` or `sendmsg`, with an address.
    Send,
}

/// The socket of a client on this host.
pub trait Client {
    /// Whether the client is in the network namespace of the rules.
    fn is_here(&self) -> bool;

    /// The IPv4 address that the socket is bound to, or [`Addr::V4_ANY`].
    fn bound_to(&self) -> Addr;

    /// The port of the socket's one peer, when it hears no other.
    fn peer_port(&self) -> Option<Port>;

    /// What is kept at the socket.
    fn dialled(&mut self) -> Option<&mut Dialled>;

    /// The same; begins to keep it if need be. `None` without memory.
    fn dialled_or_new(&mut self) -> Option<&mut Dialled>;
}

/// Points a client on this host that dials `port` of `addr` at the target, for
/// [`Reason::Redirected`]; else `target` stays as it is.
#[inline(always)]
pub fn dial<T: Tables, C: Client>(
    tables: &T,
    client: &mut C,
    protocol: Protocol,
    addr: Addr,
    target: &mut Port,
    dial: Dial,
) -> Reason {
    let port = *target;
    let entry = tables.port(protocol, port);
    let wanted = PortEntry::MATCH | PortEntry::TARGET | PortEntry::OLD;
    if entry.flags & wanted == 0 || !client.is_here() {
        return Reason::NoRule;
    }
    // Linux takes these for the host itself: for the client's own address, if it
    // has chosen one (`ip_route_output_key_hash_rcu` in net/ipv4/route.c).
    let addr = if addr.is(Addr::V4_ANY) {
        let own = client.bound_to();
        if own.is(Addr::V4_ANY) {
            Addr::V4_LOOPBACK
        } else {
            own
        }
    } else if addr.is(Addr::V6_ANY) {
        Addr::V6_LOOPBACK
    } else {
        addr
    };
    // A socket that is connected hears nobody but its peer, which it may name
    // again: also by itself, as an IPv6 socket with an IPv4 peer does for each
    // packet (`udpv6_sendmsg` in net/ipv6/udp.c). It is what it was when it
    // connected, be that before we came.
    if dial == Dial::Send && client.peer_port() == Some(port) {
        return Reason::Direct;
    }
    if !tables.is_local(&addr) {
        return if entry.is_match() || entry.is_old() {
            Reason::NotLocal
        } else {
            Reason::NoRule
        };
    }
    let own = client.bound_to();
    let mut key = FlowKey {
        // Which address the kernel will choose is not known yet; nearly always
        // it is the one that is dialled.
        client: if own.is(Addr::V4_ANY) { addr } else { own },
        local: addr,
        client_port: Port::new(0),
        local_port: port,
        protocol: protocol as u8,
        version: if addr.is_v4() { 4 } else { 6 },
        pad: [0; 2],
    };
    // A peer that the socket knows by earlier rules.
    if entry.is_old() && dial == Dial::Send {
        let old = tables.old(entry, protocol, port);
        for i in 0..Old::COUNT {
            if old.targets[i] == 0 {
                break;
            }
            key.local_port = Port::new(old.targets[i]);
            let is_known = |dialled: &mut Dialled| dialled.find(addr, key.local_port) == Some(port);
            if client.dialled().is_some_and(is_known) && tables.is_served(&key) {
                *target = key.local_port;
                return Reason::Redirected;
            }
        }
    }
    let Some(choice) = choose(tables, entry, &key, port) else {
        if !entry.is_target() {
            return if entry.is_old() {
                Reason::Draining
            } else {
                Reason::NoRule
            };
        }
        // From now on this peer is known by its own port.
        if let Some(dialled) = client.dialled() {
            dialled.forget(addr, port);
        }
        return Reason::Direct;
    };
    key.local_port = Port::new(choice.target);
    if entry.is_if_listening() && !tables.is_served(&key) {
        return Reason::NotListening;
    }
    let Some(dialled) = client.dialled_or_new() else {
        return Reason::TableFull;
    };
    let is_new = dialled.remember(Peer {
        addr,
        port: key.local_port,
        dialled_port: port,
    });
    let (packets, is_new) = match dial {
        Dial::Connect => (0, true),
        Dial::Send => (1, is_new),
    };
    tables.hit(choice.rule, packets, 0, is_new, tables.now_ns());
    *target = key.local_port;
    Reason::Redirected
}

/// The port that a client on this host knows its peer by, when it dialled
/// another one.
#[inline(always)]
pub fn answered<T: Tables, C: Client>(
    tables: &T,
    client: &mut C,
    protocol: Protocol,
    (addr, port): (Addr, Port),
) -> Result<Port, Reason> {
    if !tables.port(protocol, port).is_target() || !client.is_here() {
        return Err(Reason::NoRule);
    }
    client
        .dialled()
        .and_then(|dialled| dialled.find(addr, port))
        .ok_or(Reason::Direct)
}

impl Dialled {
    /// How many peers a socket has that it knows by another port.
    pub const PEERS: usize = 4;

    /// Keeps a peer, in place of what was kept of it; says whether it is new.
    #[inline(always)]
    pub fn remember(&mut self, peer: Peer) -> bool {
        if let Some(known) = self.known(peer.addr, peer.port) {
            let is_new = known.dialled_port != peer.dialled_port;
            known.dialled_port = peer.dialled_port;
            return is_new;
        }
        let unused = self.peers.iter_mut().find(|known| !known.is_used());
        if let Some(unused) = unused {
            *unused = peer;
            return true;
        }
        if let Some(oldest) = self.peers.get_mut(self.next as usize % Self::PEERS) {
            *oldest = peer;
        }
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Stops knowing a peer by another port.
    #[inline(always)]
    pub fn forget(&mut self, addr: Addr, port: Port) {
        if let Some(known) = self.known(addr, port) {
            *known = Peer::default();
        }
    }

    /// The port by which the client knows a peer.
    #[inline(always)]
    pub fn find(&mut self, addr: Addr, port: Port) -> Option<Port> {
        self.known(addr, port).map(|known| known.dialled_port)
    }

    #[inline(always)]
    fn known(&mut self, addr: Addr, port: Port) -> Option<&mut Peer> {
        self.peers
            .iter_mut()
            .find(|peer| peer.is_used() && peer.port == port && peer.addr.is(addr))
    }
}

impl Peer {
    #[inline(always)]
    const fn is_used(&self) -> bool {
        self.dialled_port.get() != 0
    }
}
