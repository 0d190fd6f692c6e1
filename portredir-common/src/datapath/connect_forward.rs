//! Clients on this host whose rule leads to targets with an address: they are pointed at the
//! target's address and port, and no packet is rewritten.

use crate::datapath::peer::{NamedPeer, PeerCall, hit, is_any};
use crate::flow::FlowKey;
use crate::kernel::{Client, Tables};
use crate::map::forward::slot_key;
use crate::map::rules::{Choice, PortEntry};
use crate::map::sockets::{ForwardPeer, ForwardPeers};
use crate::map::targets::{Service, Slot, Target};
use crate::net::{Addr, Port, Protocol, Version};
use crate::verdict::Reason;

/// Points a client at a target of a service: `peer` gets its address and port for
/// [`Reason::Redirected`], and stays as it is for any other reason. `key` is the flow as the
/// client knows it.
#[inline(always)]
pub(super) fn redirect<T: Tables, C: Client>(
    tables: &T,
    client: &mut C,
    (peer, call): (&mut NamedPeer, PeerCall),
    (key, choice): (&FlowKey, Choice),
) -> Reason {
    let bound_to = client.bound_to();
    if bound_to.is_v4_loopback() || bound_to.is(Addr::V6_LOOPBACK) {
        return Reason::BoundToLoopback;
    }
    let (service, is_mapped) = service_of(tables, key, choice);
    if service.flags & Service::USED == 0 {
        return Reason::NoMatch;
    }
    if is_mapped && !can_reach_v4(client, call, bound_to) {
        return Reason::CannotReachIpv4;
    }
    let number = number(tables, client, (key, call), (service, bound_to));
    match number {
        Slot::RESTS => return Reason::NoTarget,
        Slot::DROPS => return Reason::NoTargetDropped,
        _ => {}
    }
    let Some(target) = tables.target(number) else {
        return Reason::NoTarget;
    };
    let addr = if target.has(Target::HERE) {
        key.local
    } else {
        target.addr
    };
    if addr.is_v4() != (key.local.is_v4() || is_mapped) {
        return Reason::NoMatch;
    }
    let port = target.port_of(peer.port);
    let Some(peers) = client.forward_peers_or_insert() else {
        return Reason::TableFull;
    };
    let pointed_at = ForwardPeer {
        addr,
        // A client that names 0.0.0.0 is told 127.0.0.1, as without a rule.
        dialled: key.local,
        port,
        dst_port: peer.port,
        target: number,
        pad: 0,
    };
    let is_new = peers.insert(pointed_at);
    if is_udp_connect(peer, call) {
        client.keep_udp_peer(Some(&pointed_at));
    }
    tables.record(&hit(choice.rule, call, is_new, tables.now_ns()));
    peer.addr = addr;
    peer.port = port;
    Reason::Redirected
}

/// The service that a choice leads to, and whether it is the one of IPv4 for a client that
/// names an IPv6 address.
#[inline(always)]
fn service_of<T: Tables>(tables: &T, key: &FlowKey, choice: Choice) -> (Service, bool) {
    let service = tables.service(choice.target.get(), key.version);
    if service.flags & Service::USED != 0 || key.local.is_v4() {
        return (service, false);
    }
    (tables.service(choice.target.get(), Version::V4 as u8), true)
}

/// Whether an IPv6 socket that names an IPv6 address can be pointed at an IPv4 one, as
/// `::ffff:a.b.c.d`.
///
/// The kernel refuses that where the socket is for IPv6 alone (`tcp_v6_connect`,
/// `__ip6_datagram_connect`), and where a program does it to a datagram that names its
/// destination (`udpv6_sendmsg`, "currently unsupported"). A socket that is bound to an IPv6
/// address has none to send from.
#[inline(always)]
fn can_reach_v4<C: Client>(client: &C, call: PeerCall, bound_to: Addr) -> bool {
    call == PeerCall::Connect && is_any(bound_to) && !client.is_v6_only()
}

/// The number of the target that a client gets, or one of a slot without a target. `key` has
/// the port that the client names.
#[inline(always)]
fn number<T: Tables, C: Client>(
    tables: &T,
    client: &mut C,
    (key, call): (&FlowKey, PeerCall),
    (service, bound_to): (Service, Addr),
) -> u16 {
    let known = match call {
        PeerCall::Connect => None,
        PeerCall::Send => last_target(tables, client, (key.local, key.local_port)),
    };
    match known {
        Some(number) => number,
        None => slot(tables, key, (service, bound_to)).0[0],
    }
}

/// The target that a socket sends to already by an address and port, unless it is dead.
#[inline(always)]
fn last_target<T: Tables, C: Client>(
    tables: &T,
    client: &mut C,
    (addr, port): (Addr, Port),
) -> Option<u16> {
    let peers = client.forward_peers()?;
    for i in 0..ForwardPeers::PEERS {
        let known = &peers.peers[i];
        if known.is_named(addr, port)
            && let Some(target) = tables.target(known.target)
            && !target.has(Target::DEAD)
        {
            return Some(known.target);
        }
    }
    None
}

/// The slot of a client: one by chance, or that of its own address.
#[inline(always)]
fn slot<T: Tables>(tables: &T, key: &FlowKey, (service, bound_to): (Service, Addr)) -> Slot {
    let is_affine = service.flags & Service::AFFINITY != 0;
    let number = if is_affine && !is_any(bound_to) {
        (tables.hash(&slot_key(key, is_affine)).0 >> 32) as u32
    } else if is_affine {
        0
    } else {
        tables.random()
    };
    tables.slot(
        service
            .first_slot
            .wrapping_add(number & u32::from(service.mask)),
    )
}

/// Forgets a target that a client names by its own address and port: the client knows it by
/// these from now on.
#[inline(always)]
pub(super) fn forget<C: Client>(
    client: &mut C,
    entry: PortEntry,
    (peer, call): (&NamedPeer, PeerCall),
    addr: Addr,
) {
    if !entry.is_remote() {
        return;
    }
    if let Some(peers) = client.forward_peers() {
        peers.remove(addr, peer.port);
    }
    if is_udp_connect(peer, call) {
        client.keep_udp_peer(None);
    }
}

/// Whether a UDP socket gets a peer that all its datagrams go to.
#[inline(always)]
fn is_udp_connect(peer: &NamedPeer, call: PeerCall) -> bool {
    peer.protocol == Protocol::Udp && call == PeerCall::Connect
}

/// Gives a peer the address and port that a client named; whether the client named others
/// than the peer's own.
#[inline(always)]
pub(super) fn restore<C: Client>(client: &mut C, peer: &mut NamedPeer) -> bool {
    let named = client.forward_peers().and_then(|peers| {
        let named = peers.by_target(peer.addr, peer.port)?;
        Some((named.dialled, named.dst_port))
    });
    let Some((dialled, dst_port)) = named else {
        return false;
    };
    peer.addr = dialled;
    peer.port = dst_port;
    true
}
