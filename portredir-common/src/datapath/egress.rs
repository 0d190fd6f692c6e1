//! Packets that go out: all that the fast path leaves.

use crate::datapath::rewrite::{Change, Rewrite, rewrite};
use crate::datapath::{conntrack, icmp};
use crate::flow::{Epoch, Flow};
use crate::kernel::{Cached, SocketCache, Tables};
use crate::net::{Port, Protocol};
use crate::verdict::Reason;
use crate::wire::frame::{Check, Frame, Link};
use crate::wire::headers::{End, Packet};
use crate::wire::subprog::{self, Found};

/// Handles a packet that goes out.
#[inline(always)]
pub fn egress<F: Frame, T: Tables + SocketCache>(frame: &mut F, tables: &T, link: Link) -> Reason {
    let packet = subprog::find(frame, link);
    if Packet::is_icmp(packet) {
        icmp::egress(frame, tables, packet)
    } else {
        restore_bits(frame, tables, packet.bits())
    }
}

// The rest runs for few packets. It is not inlined, to have a BPF stack frame of its
// own; the packet comes as one number.

#[inline(never)]
fn restore_bits<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    packet: u64,
) -> Reason {
    match restore(frame, tables, Found::from_bits(packet)) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn restore<F: Frame, T: Tables + SocketCache>(
    frame: &mut F,
    tables: &T,
    found: Found,
) -> Result<Reason, Reason> {
    let packet = found.get()?;
    let protocol = packet.protocol()?;
    let ports = packet.ports(frame)?;
    if !tables.port(protocol, ports.0).is_target() {
        return Err(Reason::NoRule);
    }
    let key = subprog::key(frame, found, End::Src);
    let flow = match protocol {
        Protocol::Udp => conntrack::reply(tables, protocol, &key),
        Protocol::Tcp => match tables.cached(&key) {
            Cached::Flow(flow) => Some(flow),
            Cached::NoSocket => conntrack::reply(tables, protocol, &key),
            Cached::Nothing => {
                let flow = conntrack::reply(tables, protocol, &key);
                // Also direct connections that are older than the programs, so
                // that a forged packet cannot rename their replies later.
                match &flow {
                    Some(flow) => tables.cache(&key, flow),
                    None => tables.cache(&key, &Flow::direct(&key, Epoch(0))),
                }
                flow
            }
        },
    };
    let Some(flow) = flow else {
        return Err(Reason::Direct);
    };
    let check = subprog::check(frame, found)?;
    let reply = Reply {
        offset: packet.transport,
        check,
        ports,
    };
    restore_ports(frame, &reply, &flow)
}

/// The ports of a reply, in the packet.
pub(super) struct Reply {
    /// The offset of the ports in the frame.
    pub offset: usize,
    /// The checksum that covers them.
    pub check: Check,
    /// The source and the destination port.
    pub ports: (Port, Port),
}

/// Gives a reply the ports that its client knows.
#[inline(always)]
pub(super) fn restore_ports(
    frame: &mut impl Frame,
    reply: &Reply,
    flow: &Flow,
) -> Result<Reason, Reason> {
    let (src_port, dst_port) = reply.ports;
    if flow.dst_port == src_port && flow.client_port == dst_port {
        return Err(Reason::Direct);
    }
    let changes = Rewrite {
        offset: reply.offset,
        check: reply.check,
        src: Change::new(src_port, flow.dst_port),
        dst: Change::new(dst_port, flow.client_port),
    };
    rewrite(frame, changes)?;
    Ok(Reason::Restored)
}
