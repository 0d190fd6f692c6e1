//! The listener for a connection, by the port that its client dialled.

use crate::datapath::rule_match::choose;
use crate::flow::FlowKey;
use crate::kernel::{Listeners, Tables};
use crate::map::sockets::ListenerKey;
use crate::net::{Addr, Port, Protocol, Version};
use crate::verdict::Reason;

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
