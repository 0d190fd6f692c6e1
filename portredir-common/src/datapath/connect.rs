//! The socket engine: connections and datagrams are redirected where sockets
//! are looked up or named, and no packet is rewritten.
//!
//! * [`look_up`](super::sk_lookup::look_up) gives a connection to the dialled port to the socket that
//!   listens on the target. The server sees the dialled port.
//! * [`dial`] points a client on this host at the target before there is a
//!   packet, and [`answered`] tells it the port it dialled. The server sees the
//!   target port.

use crate::datapath::rule_match::choose;
use crate::flow::FlowKey;
use crate::kernel::{Client, Tables};
use crate::map::rules::{Old, PortEntry};
use crate::map::sockets::{Dialled, Peer};
use crate::net::{Addr, Port, Protocol};
use crate::verdict::Reason;

/// What a client on this host does with its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dial {
    /// `connect`.
    Connect,
    /// `sendto` or `sendmsg`, with an address.
    Send,
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
