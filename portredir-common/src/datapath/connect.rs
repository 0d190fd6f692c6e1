//! Clients on this host: the socket engine points a client at the target port before
//! there is a packet, and tells it afterwards the port that it connected to. The server
//! sees the target port.

use crate::datapath::assign::is_left_to_listener;
use crate::datapath::peer::{hit, is_any};
use crate::datapath::rule_match::choose;
use crate::datapath::{connect_forward, not_local, own_flow, unmatched};
use crate::flow::{Flow, FlowKey, FlowTable};
use crate::kernel::{Client, Socket, Tables, now};
use crate::map::rules::{Choice, PortEntry, PreviousTargets};
use crate::map::sockets::ConnectedPeer;
use crate::net::{Addr, Port, Protocol};
use crate::verdict::Reason;

pub use crate::datapath::peer::{NamedPeer, PeerCall};

/// Points a client on this host that names a peer at the target: `peer` gets its port, and
/// its address where it has one, for [`Reason::Redirected`], and stays as it is for any other
/// reason.
///
/// The port is written in place because the verifier refuses a register that some way
/// leaves uninitialised, as the compiler does with the value of a `Result`.
#[inline(always)]
pub fn redirect_connect<T: Tables, C: Client>(
    tables: &T,
    client: &mut C,
    peer: &mut NamedPeer,
    call: PeerCall,
) -> Reason {
    let reason = redirect(tables, client, peer, call);
    if call == PeerCall::Send {
        note_own_flow(tables, client, peer);
    }
    reason
}

/// Notes the UDP flow of a client whose own port a rule names: the answers to it come to
/// that port, and are not for the target.
///
/// A socket that is connected needs no note, see [`is_answer`]; what goes to other hosts
/// is noted where it leaves.
#[inline(always)]
fn note_own_flow<T: Tables, C: Client>(tables: &T, client: &C, peer: &NamedPeer) {
    let own_port = client.own_port();
    let is_match = tables.port(peer.protocol, own_port).is_match();
    if !is_match || peer.protocol != Protocol::Udp || !client.is_in_netns() {
        return;
    }
    let bound_to = client.bound_to();
    let addr = routed_addr(peer.addr, bound_to);
    if !tables.is_local(&addr) {
        return;
    }
    let own_addr = if is_any(bound_to) { addr } else { bound_to };
    let key = own_key(own_addr, own_port, peer.port);
    tables.mark(&key);
    // Without room for it an answer is taken for a new flow.
    let _ = tables.set_flow(FlowTable::Udp, &key, &Flow::own(&key, now(tables)));
}

/// The key of the note about a flow between two sockets of this host. Which address the
/// other one answers from is not known, so the first one's stands for both.
#[inline(always)]
fn own_key(addr: Addr, own_port: Port, peer_port: Port) -> FlowKey {
    FlowKey {
        client: addr,
        local: addr,
        client_port: peer_port,
        local_port: own_port,
        protocol: Protocol::Udp as u8,
        version: if addr.is_v4() { 4 } else { 6 },
        pad: [0; 2],
    }
}

/// Whether a UDP socket of this host answers another one, whose port a rule names.
///
/// `key` is the flow with the socket that answers as its client.
#[inline(always)]
fn is_answer<T: Tables, C: Client>(tables: &T, client: &mut C, key: &FlowKey) -> bool {
    let own_port = client.own_port();
    if key.protocol != Protocol::Udp as u8 || own_port == Port::CLOSED {
        return false;
    }
    let noted = own_key(key.local, key.local_port, own_port);
    if tables.is_marked(&noted) && own_flow::is_live_udp(tables, &noted) {
        return true;
    }
    let asked = FlowKey {
        client_port: own_port,
        ..*key
    };
    client.is_connected_udp(&asked)
}

#[inline(always)]
fn redirect<T: Tables, C: Client>(
    tables: &T,
    client: &mut C,
    peer: &mut NamedPeer,
    call: PeerCall,
) -> Reason {
    let NamedPeer { protocol, port, .. } = *peer;
    let entry = tables.port(protocol, port);
    let is_named = entry.is_dst_or_target();
    if !is_named && !entry.is_remote() || !client.is_in_netns() {
        return Reason::NoRule;
    }
    let bound_to = client.bound_to();
    let addr = routed_addr(peer.addr, bound_to);
    // A socket that is connected hears nobody but its peer, which it may name
    // again: also by itself, as an IPv6 socket with an IPv4 peer does for each
    // packet (`udpv6_sendmsg` in net/ipv6/udp.c). The peer is what it was when the
    // socket connected, be that before the programs came.
    if call == PeerCall::Send && client.peer_port() == Some(port) {
        return if is_named {
            Reason::Direct
        } else {
            Reason::NoRule
        };
    }
    if !is_named || !tables.is_local(&addr) {
        connect_forward::forget(client, entry, (peer, call), addr);
        return if is_named {
            not_local(entry)
        } else {
            Reason::NoRule
        };
    }
    let mut key = key(peer, addr, bound_to);
    if entry.is_match() && is_answer(tables, client, &key) {
        return Reason::ForeignFlow;
    }
    if entry.is_old() && call == PeerCall::Send {
        if is_known_target(tables, client, entry, &mut key) {
            peer.port = key.local_port;
            return Reason::Redirected;
        }
        key.local_port = port;
    }
    let Some(choice) = choose(tables, entry, &key, port) else {
        return without_rule(client, entry, (peer, call), addr);
    };
    if choice.is_forward {
        return connect_forward::redirect(tables, client, (peer, call), (&key, choice));
    }
    redirect_here(tables, client, (peer, call), (addr, entry, key, choice))
}

/// Points a client at a port of this host. `key` is the flow as the client knows it.
#[inline(always)]
fn redirect_here<T: Tables, C: Client>(
    tables: &T,
    client: &mut C,
    (peer, call): (&mut NamedPeer, PeerCall),
    (addr, entry, mut key, choice): (Addr, PortEntry, FlowKey, Choice),
) -> Reason {
    let port = peer.port;
    let may_be_assigned = may_be_assigned(tables, client, entry, &key);
    key.local_port = choice.target;
    if entry.is_if_listening() && !tables.is_served(&key) {
        return Reason::NotListening;
    }
    if may_be_assigned && tables.is_served(&key) {
        // The connection is counted where its SYN is given to the listener.
        return Reason::NoRule;
    }
    let Some(is_new) = keep_peer(client, addr, (key.local_port, port)) else {
        return Reason::TableFull;
    };
    tables.record(&hit(choice.rule, call, is_new, tables.now_ns()));
    peer.port = key.local_port;
    Reason::Redirected
}

/// Keeps a peer at the socket of a client, with its own port and the one that the client
/// connected to; whether it is new. `None` without memory.
#[inline(always)]
fn keep_peer<C: Client>(client: &mut C, addr: Addr, ports: (Port, Port)) -> Option<bool> {
    let (port, dst_port) = ports;
    let peer = ConnectedPeer {
        addr,
        port,
        dst_port,
    };
    Some(client.peers_or_insert()?.insert(peer))
}

/// Whether the TCP connection of a socket with a port of its own may be left to the
/// listener on the target: pointed at the target port, it could not exist beside a
/// connection from the same port to the target itself, or to another port with this target.
///
/// `key` has the port that the client names.
#[inline(always)]
fn may_be_assigned<T: Tables, C: Client>(
    tables: &T,
    client: &C,
    entry: PortEntry,
    key: &FlowKey,
) -> bool {
    let own_port = client.own_port();
    let is_bound = key.protocol == Protocol::Tcp as u8 && own_port != Port::CLOSED;
    if !is_bound || !is_left_to_listener(entry) || !client.is_syn_assigned() {
        return false;
    }
    // What is left of an earlier connection would get the SYN.
    let earlier = FlowKey {
        client_port: own_port,
        ..*key
    };
    tables.socket(&earlier) == Socket::None
}

/// The flow of a client to the port that it names, as far as it is known.
#[inline(always)]
fn key(peer: &NamedPeer, addr: Addr, bound_to: Addr) -> FlowKey {
    FlowKey {
        // Which address the kernel will choose is not known yet; nearly always
        // it is the destination address.
        client: if is_any(bound_to) { addr } else { bound_to },
        local: addr,
        client_port: Port::new(0),
        local_port: peer.port,
        protocol: peer.protocol as u8,
        version: if addr.is_v4() { 4 } else { 6 },
        pad: [0; 2],
    }
}

/// The address that the kernel routes to. Linux takes 0.0.0.0 and `::` for the host
/// itself: for the client's own address, if the client has chosen one
/// (`ip_route_output_key_hash_rcu` in net/ipv4/route.c).
#[inline(always)]
fn routed_addr(addr: Addr, bound_to: Addr) -> Addr {
    if addr.is(Addr::V4_ANY) {
        if is_any(bound_to) {
            Addr::V4_LOOPBACK
        } else {
            bound_to
        }
    } else if addr.is(Addr::V6_ANY) {
        Addr::V6_LOOPBACK
    } else {
        addr
    }
}

/// Whether the socket knows the peer by earlier rules; `key`, the flow as the client knows
/// it, gets their target port.
#[inline(always)]
fn is_known_target<T: Tables, C: Client>(
    tables: &T,
    client: &mut C,
    entry: PortEntry,
    key: &mut FlowKey,
) -> bool {
    let (addr, port) = (key.local, key.local_port);
    let Ok(protocol) = key.protocol() else {
        return false;
    };
    let previous = tables.previous_targets(entry, protocol, port);
    for i in 0..PreviousTargets::COUNT {
        let Some(target) = previous.target(i) else {
            break;
        };
        key.local_port = target;
        let is_known = client
            .peers()
            .is_some_and(|peers| peers.dst_port_of(addr, target) == Some(port));
        if is_known && tables.is_served(key) {
            return true;
        }
    }
    false
}

/// The reason for a client that no rule redirects.
#[inline(always)]
fn without_rule<C: Client>(
    client: &mut C,
    entry: PortEntry,
    (peer, call): (&NamedPeer, PeerCall),
    addr: Addr,
) -> Reason {
    connect_forward::forget(client, entry, (peer, call), addr);
    if !entry.is_target() {
        return unmatched(entry);
    }
    // From now on the socket knows this peer by its own port.
    if let Some(peers) = client.peers() {
        peers.remove(addr, peer.port);
    }
    Reason::Direct
}

/// Gives a peer the address and port that a client on this host knows it by, when the client
/// named others than the peer's own.
///
/// # Errors
///
/// [`Reason::NoRule`], [`Reason::Direct`]: the peer stays as it is.
#[inline(always)]
pub fn restore_peer<T: Tables, C: Client>(
    tables: &T,
    client: &mut C,
    peer: &mut NamedPeer,
) -> Result<(), Reason> {
    let entry = tables.port(peer.protocol, peer.port);
    if !entry.is_target() && !entry.is_remote() || !client.is_in_netns() {
        return Err(Reason::NoRule);
    }
    if entry.is_remote() && connect_forward::restore(client, peer) {
        return Ok(());
    }
    peer.port = client
        .peers()
        .and_then(|peers| peers.dst_port_of(peer.addr, peer.port))
        .ok_or(Reason::Direct)?;
    Ok(())
}
