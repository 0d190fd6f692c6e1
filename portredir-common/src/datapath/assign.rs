//! SYNs that the host sends to itself and that come to a port of a rule all the same: the
//! hooks of local clients have not pointed them at the target. They are given to the
//! listener there, which sees the destination port; no packet changes.

use crate::datapath::rule_match::choose;
use crate::kernel::{Assign, Hit, Socket, Tables};
use crate::map::rules::PortEntry;
use crate::net::{Port, Protocol, Version};
use crate::verdict::Reason;
use crate::wire::frame::{Frame, Link};
use crate::wire::headers::{End, flags};
use crate::wire::shape::{Shape, TcpV4, TcpV6, shape};
use crate::wire::subprog::{self, Found};

/// Gives a SYN to the listener on the target.
#[inline(always)]
pub fn assign<F: Frame, T: Tables + Assign>(frame: &mut F, tables: &T, link: Link) -> Reason {
    let may_be_syn = match shape(frame, link) {
        Some((Version::V4, Protocol::Tcp)) => is_syn::<TcpV4, _>(frame, link),
        Some((Version::V6, Protocol::Tcp)) => is_syn::<TcpV6, _>(frame, link),
        Some((_, Protocol::Udp)) => false,
        None => true,
    };
    if !may_be_syn {
        return Reason::NoRule;
    }
    let packet = subprog::find(frame, link);
    match assign_found(frame, tables, Found::from_bits(packet.bits())) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn is_syn<S: Shape, F: Frame>(frame: &F, link: Link) -> bool {
    flags(frame, &S::packet(link), Protocol::Tcp).is_ok_and(|flags| flags.is_syn())
}

#[inline(always)]
fn assign_found<F: Frame, T: Tables + Assign>(
    frame: &mut F,
    tables: &T,
    found: Found,
) -> Result<Reason, Reason> {
    let packet = found.get()?;
    let protocol = packet.protocol()?;
    let (_, dst_port) = packet.ports(frame)?;
    let entry = tables.port(protocol, dst_port);
    let is_meant = protocol == Protocol::Tcp && is_left_to_listener(entry);
    if !is_meant || !flags(frame, &packet, protocol)?.is_syn() {
        return Err(Reason::NoRule);
    }
    let mut key = subprog::key(frame, found, End::Dst);
    // A repeated SYN, and what is left of an earlier connection.
    if !tables.is_local(&key.local) || tables.socket(&key) != Socket::None {
        return Err(Reason::NoRule);
    }
    let choice = choose(tables, entry, &key, dst_port);
    // A rule to a service has no target port.
    let Some(choice) = choice.filter(|choice| !choice.is_forward) else {
        return Err(Reason::NoRule);
    };
    key.local_port = choice.target;
    // Not the connection that the same client has to the target itself.
    key.client_port = Port::CLOSED;
    if !tables.assign_listener(&key) {
        return Err(Reason::NoRule);
    }
    tables.record(&Hit::connection(choice.rule, tables.now_ns()));
    Ok(Reason::Redirected)
}

/// Whether a SYN to a port may be given to a listener: a port that is a target too gets
/// connections which the hooks of local clients have pointed there, and rules do not chain.
#[inline(always)]
pub(super) const fn is_left_to_listener(entry: PortEntry) -> bool {
    entry.is_match() && !entry.is_target()
}
