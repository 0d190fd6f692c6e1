//! What is a BPF function of its own.

use crate::datapath::conntrack as flow;
use crate::datapath::rule_match::{Route, try_find_route};
use crate::flow::{Admitted, FlowKey, Original};
use crate::kernel::Tables;
use crate::map::rules::PortEntry;
use crate::net::{Flags, Port, Protocol};
use crate::packed;

/// Where a packet goes whose rules have conditions or changed, or the reason why
/// it does not, as one number; `key` is the flow as the client knows it.
#[inline(always)]
pub fn find_route<T: Tables>(tables: &T, key: &mut FlowKey, entry: u64, flags: Flags) -> u64 {
    let route = try_find_route(tables, key, PortEntry::from_word(entry), flags);
    packed::to_word(route.map(Route::to_word))
}

/// [`Admitted`] or the reason why not, as one number, for what a look at the flow
/// tables does not settle.
#[inline(always)]
pub fn admit<T: Tables>(
    tables: &T,
    key: &mut FlowKey,
    dialled_port: Port,
    route: u64,
    flags: Flags,
) -> u64 {
    let admitted = Route::from_word(route).and_then(|route| {
        let original = Original {
            dialled_port,
            client_port: key.client_port,
            rule: route.rule,
        };
        match key.protocol()? {
            Protocol::Udp => flow::admit_udp(tables, key, original),
            Protocol::Tcp if route.is_match => flow::redirect_tcp(tables, key, original, flags),
            Protocol::Tcp => flow::direct_tcp(tables, key, original, flags),
        }
    });
    packed::to_word(admitted.map(Admitted::to_word))
}
