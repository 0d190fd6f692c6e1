//! Packets that come in: all that the fast path leaves.

use crate::datapath::rewrite::{Change, Rewrite, rewrite};
use crate::datapath::rule_match::{choose, plain_route};
use crate::datapath::{forward, icmp, is_local_dst, not_local};
use crate::flow::Admitted;
use crate::kernel::{Admission, Hit, Route, Subprograms, Tables};
use crate::verdict::Reason;
use crate::wire::frame::{Frame, Link};
use crate::wire::headers::{End, Packet, flags, segment};
use crate::wire::subprog::{self, Found};

/// Handles a packet that came in.
#[inline(always)]
pub fn ingress<F: Frame, T: Tables + Subprograms>(frame: &mut F, tables: &T, link: Link) -> Reason {
    let packet = subprog::find(frame, link);
    if Packet::is_icmp(packet) {
        return icmp::ingress(frame, tables, packet);
    }
    match forward::ingress(frame, tables, packet.bits()) {
        Some(reason) => reason,
        None => redirect_bits(frame, tables, packet.bits()),
    }
}

// The rest runs for few packets. It is not inlined, to have a BPF stack frame of its
// own; the packet comes as one number.

#[inline(never)]
fn redirect_bits<F: Frame, T: Tables + Subprograms>(
    frame: &mut F,
    tables: &T,
    packet: u64,
) -> Reason {
    match redirect(frame, tables, Found::from_bits(packet)) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn redirect<F: Frame, T: Tables + Subprograms>(
    frame: &mut F,
    tables: &T,
    found: Found,
) -> Result<Reason, Reason> {
    let packet = found.get()?;
    let protocol = packet.protocol()?;
    let (client_port, dst_port) = packet.ports(frame)?;
    let entry = tables.port(protocol, dst_port);
    if !entry.is_dst_or_target() {
        return Err(Reason::NoRule);
    }
    let mut key = subprog::key(frame, found, End::Dst);
    if !is_local_dst(tables, &key) {
        return Err(not_local(entry));
    }
    let check = match subprog::check(frame, found) {
        // Traffic that no rule is for is not ours to drop.
        Err(Reason::FragmentTooShort) if choose(tables, entry, &key, dst_port).is_none() => {
            return Err(Reason::Direct);
        }
        check => check?,
    };
    let route = if entry.is_plain() {
        plain_route(entry, dst_port)
    } else {
        let flags = flags(frame, &packet, protocol)?;
        tables.find_route(&mut key, entry, flags)?
    };
    key.local_port = route.target;
    let request = Admission {
        dst_port,
        route,
        segment: segment(frame, &packet, (protocol, End::Dst))?,
    };
    let admitted = tables.admit(&mut key, &request)?;
    let changes = Rewrite {
        offset: packet.transport,
        check,
        src: Change::new(client_port, admitted.client_port()),
        dst: Change::new(dst_port, route.target),
    };
    rewrite(frame, changes)?;
    if route.is_closed() {
        Ok(Reason::Hidden)
    } else if route.is_match {
        tables.note_rule(route.rule);
        tables.record(&hit(frame, tables, route, admitted));
        Ok(Reason::Redirected)
    } else if admitted.client_port() == client_port {
        Ok(Reason::Direct)
    } else {
        Ok(Reason::DirectRemapped)
    }
}

/// The packet as it is counted for its rule.
#[inline(always)]
fn hit<F: Frame, T: Tables>(frame: &F, tables: &T, route: Route, admitted: Admitted) -> Hit {
    Hit {
        rule: route.rule,
        segments: frame.segments(),
        bytes: frame.len(),
        flow: admitted.lookup(),
        at_ns: tables.now_ns(),
    }
}
