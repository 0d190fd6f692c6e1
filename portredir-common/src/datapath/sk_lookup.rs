//! The listener for a connection: the socket engine gives a connection to the
//! destination port to the socket that listens on the target port.

use crate::datapath::rule_match::choose;
use crate::datapath::unmatched;
use crate::flow::FlowKey;
use crate::kernel::{Hit, Listeners, Tables};
use crate::map::rules::PortEntry;
use crate::map::sockets::ListenerKey;
use crate::net::{Addr, Port, Protocol, Version};
use crate::verdict::Reason;

/// Gives a connection to its listener; `key` has the port that the client connected to.
#[inline(always)]
pub fn find_listener<T: Tables + Listeners>(tables: &T, key: &FlowKey) -> Reason {
    let port = key.local_port;
    let entry = tables.port(Protocol::Tcp, port);
    if !is_wanted(entry) || !tables.is_in_scope() {
        return Reason::NoRule;
    }
    // Transparent proxies look up sockets for the addresses of others.
    if !tables.is_local(&key.local) {
        return Reason::NotLocal;
    }
    let choice = choose(tables, entry, key, port);
    // A rule to a service has no target port.
    let Some(choice) = choice.filter(|choice| !choice.is_forward) else {
        return without_rule(tables, entry);
    };
    if !assign_any(tables, key, choice.target) {
        return if entry.is_if_listening() {
            Reason::NotListening
        } else {
            Reason::NoListener
        };
    }
    tables.record(&Hit::connection(choice.rule, tables.now_ns()));
    Reason::Redirected
}

/// Whether a rule may have a say in who gets connections to a port.
#[inline(always)]
#[must_use]
pub const fn is_wanted(entry: PortEntry) -> bool {
    entry.is_match() || entry.is_old() || entry.is_hidden()
}

/// The reason for a connection that no rule redirects.
#[inline(always)]
fn without_rule<T: Tables>(tables: &T, entry: PortEntry) -> Reason {
    if entry.is_target() && entry.is_hidden() && !tables.came_in_on_loopback() {
        Reason::Hidden
    } else if entry.is_target() {
        Reason::NoRule
    } else {
        unmatched(entry)
    }
}

/// Gives a connection to a listener on the target port, in the order of the kernel: on
/// the address itself, then on all addresses; of these, one of the same family first.
#[inline(always)]
fn assign_any(listeners: &impl Listeners, key: &FlowKey, target: Port) -> bool {
    let is_v4 = key.version == Version::V4 as u8;
    let (any, loopback) = if is_v4 {
        (Addr::V4_ANY, Addr::V4_LOOPBACK)
    } else {
        (Addr::V6_ANY, Addr::V6_LOOPBACK)
    };
    assign(listeners, key.local, target)
        || assign(listeners, any, target)
        || (is_v4 && assign(listeners, Addr::V6_ANY, target))
        || (listeners.is_loopback_allowed() && assign(listeners, loopback, target))
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
