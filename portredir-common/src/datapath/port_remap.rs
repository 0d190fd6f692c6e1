//! Another client port for a flow that would become one with another.

use crate::datapath::flow_lookup::{lookup, lookup_protocol};
use crate::flow::{Admitted, Flow, FlowKey, FlowTable, Original};
use crate::kernel::{FlowTables, Host, Socket};
use crate::net::{Port, Protocol};
use crate::verdict::Reason;

/// Candidates for another client port, before the packet is dropped.
pub(super) const REMAP_TRIES: u32 = 16;

/// One of the candidates for another client port; `start` is a random number.
#[inline(always)]
pub(super) const fn candidate(start: u32, i: u32) -> Port {
    // Unprivileged ports; the odd step visits far apart ones.
    const FIRST: u32 = 1024;
    const COUNT: u32 = 65536 - FIRST;
    const STEP: u32 = 7919;
    let candidate = FIRST + start.wrapping_add(i.wrapping_mul(STEP)) % COUNT;
    #[expect(clippy::cast_possible_truncation, reason = "FIRST + COUNT is 65536")]
    Port::new(candidate as u16)
}

/// Gives a flow a client port under which nobody talks to the target, as
/// netfilter does when two flows would become one.
#[inline(always)]
pub(super) fn remap<H: Host>(
    host: &H,
    table: FlowTable,
    key: &mut FlowKey,
    flow: &Flow,
) -> Result<Admitted, Reason> {
    let client_port = free_client_port(host, table, key)?;
    host.set_flow(table, key, flow)?;
    key.client_port = flow.client_port;
    key.local_port = flow.dst_port;
    host.set_remap(key, client_port)?;
    Ok(Admitted::inserted(client_port))
}

/// Finds that port and leaves it in `key`. Not inlined: it is rare, and the
/// BPF stack is small.
#[inline(never)]
fn free_client_port<H: Host>(
    host: &H,
    table: FlowTable,
    key: &mut FlowKey,
) -> Result<Port, Reason> {
    let start = host.random();
    for i in 0..REMAP_TRIES {
        let client_port = candidate(start, i);
        key.client_port = client_port;
        let is_free = match table {
            FlowTable::Udp => lookup(host, table, key).is_none(),
            FlowTable::Tcp | FlowTable::Syn => {
                lookup_protocol(host, Protocol::Tcp, key).is_none()
                    && host.socket(key) == Socket::None
            }
        };
        if is_free {
            return Ok(client_port);
        }
    }
    Err(Reason::NoFreePort)
}

impl Original {
    /// The client port this flow was given on a collision.
    #[inline(always)]
    pub(super) fn remapped(self, host: &impl FlowTables, key: &mut FlowKey) -> Option<Port> {
        let target = key.local_port;
        key.local_port = self.dst_port;
        let client_port = host.remap(key);
        key.local_port = target;
        client_port
    }
}
