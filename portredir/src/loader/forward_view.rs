//! The flows to targets with an address, and those whose server is elsewhere, for one who
//! only reads.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd as _;
use std::time::Duration;

use aya::Pod;
use aya::maps::{Array, Map, MapData};
use portredir_common::flow::{Epoch, FlowKey, FlowTable};
use portredir_common::map::entry::Entry;
use portredir_common::map::forward::ForwardEntry;
use portredir_common::map::sockets::{ForwardPeer, ForwardPeers};
use portredir_common::map::targets::Target;
use portredir_common::net::{Addr, Port, Protocol};

use super::error::{DatapathError, map_error};
use super::flows::{Flows, epochs};
use super::forward::{ForwardFlow, Forwards};
use super::object::{Sizes, take};
use crate::sys::clock::monotonic;
use crate::sys::mmap::Mapped;

/// The maps that are read.
pub(super) const NAMES: [&str; 4] = ["FORWARDS", "FORWARD_ENDS", "OWN_ADDRS", "TARGETS"];

/// The flows of `FORWARDS`, and what their numbers mean.
#[derive(Debug)]
pub(super) struct ForwardView {
    forwards: Forwards,
    own_addrs: Map,
    targets: Map,
}

/// A live flow to a target with an address, or one whose server is elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded {
    /// The flow, as the target knows it.
    pub key: FlowKey,
    /// The protocol.
    pub protocol: Protocol,
    /// The client's own port, if it is known.
    pub client_port: Option<Port>,
    /// The address that the client connected to.
    pub dst_addr: Addr,
    /// The port that the client connected to.
    pub dst_port: Port,
    /// The number of the rule; none of a target that is there no more.
    pub rule: Option<u16>,
    /// Whether one end has ended the connection.
    pub is_ending: bool,
    /// The time since the first packet.
    pub age: Duration,
    /// The time since the last packet.
    pub idle: Duration,
}

impl ForwardView {
    /// Takes the maps; `None` when an older program has none.
    pub(super) fn open(
        maps: &mut BTreeMap<&'static str, MapData>,
        sizes: Sizes,
    ) -> Result<Option<Self>, DatapathError> {
        if !NAMES.iter().all(|name| maps.contains_key(name)) {
            maps.retain(|name, _| !NAMES.contains(name));
            return Ok(None);
        }
        let shares = sizes.forward_shares();
        let name = "FORWARDS";
        let memory = |name| move |source| DatapathError::Memory { name, source };
        let map = take(maps, name)?;
        let buckets = Mapped::new(map.fd().as_fd(), shares.total()).map_err(memory(name))?;
        let name = "FORWARD_ENDS";
        let map = take(maps, name)?;
        let ends = Mapped::new(map.fd().as_fd(), shares.known_places()).map_err(memory(name))?;
        Ok(Some(Self {
            forwards: Forwards::of(buckets, ends, shares),
            own_addrs: Map::Array(take(maps, "OWN_ADDRS")?),
            targets: Map::Array(take(maps, "TARGETS")?),
        }))
    }
}

/// The values of an array by number, each read once.
struct Known<'a, T: Pod> {
    array: Array<&'a MapData, T>,
    values: HashMap<u16, Option<T>>,
}

impl<'a, T: Pod> Known<'a, T> {
    fn new(map: &'a Map, name: &'static str) -> Result<Self, DatapathError> {
        let array = Array::try_from(map).map_err(map_error(name))?;
        Ok(Self {
            array,
            values: HashMap::new(),
        })
    }

    fn get(&mut self, number: u16) -> Option<T> {
        let value = self.values.entry(number);
        *value.or_insert_with(|| self.array.get(&number.into(), 0).ok())
    }
}

/// The targets that are kept at the socket of a client on this host.
pub(super) fn peers(bytes: &[u8]) -> Vec<ForwardPeer> {
    const LEN: usize = size_of::<ForwardPeer>();
    let peers = bytes.chunks_exact(LEN).take(ForwardPeers::PEERS);
    let peers = peers.filter_map(|peer| {
        let (addr, peer) = peer.split_first_chunk::<16>()?;
        let (dialled, numbers) = peer.split_first_chunk::<16>()?;
        let [a, b, c, d, e, f] = *numbers.first_chunk()?;
        Some(ForwardPeer {
            addr: Addr::new(*addr),
            dialled: Addr::new(*dialled),
            port: Port::new(u16::from_be_bytes([a, b])),
            dst_port: Port::new(u16::from_be_bytes([c, d])),
            target: u16::from_ne_bytes([e, f]),
            pad: 0,
        })
    });
    peers.filter(|peer| peer.dst_port != Port::CLOSED).collect()
}

impl ForwardView {
    /// The number of the rule of a target.
    pub(super) fn rule_of_target(&self, number: u16) -> Option<u16> {
        let mut targets = Known::<Target>::new(&self.targets, "TARGETS").ok()?;
        let target = targets.get(number)?;
        (target != Target::default()).then_some(target.rule)
    }

    /// The live flows, and the number of UDP flows among them whose ends are not known. A
    /// connection whose ends are not known has just been made, or its place is being taken.
    /// `others` are the other tables; `given_port` tells the client's own port of a flow that
    /// was given another one.
    pub(super) fn live(
        &self,
        others: &Flows,
        given_port: impl Fn(&FlowKey) -> Option<Port>,
    ) -> Result<(Vec<Forwarded>, usize), DatapathError> {
        let mut flows = Vec::new();
        let mut unknown = 0;
        let mut own_addrs = Known::<Addr>::new(&self.own_addrs, "OWN_ADDRS")?;
        let mut targets = Known::<Target>::new(&self.targets, "TARGETS")?;
        let now = monotonic();
        // Direct flows are noted there as well.
        for flow in self.forwards.live().filter(|flow| flow.own != 0) {
            let Some(begun) = flow
                .begun
                .filter(|begun| self.is_its(&flow, &begun.key, others))
            else {
                unknown += usize::from(flow.protocol == Protocol::Udp);
                continue;
            };
            let Some(dst_addr) = own_addrs.get(flow.own) else {
                continue;
            };
            let forwarded = flow.entry.flow();
            let rule = if flow.entry.is_by_rule() {
                Some(forwarded.target)
            } else {
                targets.get(forwarded.target).map(|target| target.rule)
            };
            flows.push(Forwarded {
                key: begun.key,
                protocol: flow.protocol,
                client_port: if flow.entry.is_remapped() {
                    given_port(&begun.key)
                } else {
                    Some(begun.key.client_port)
                },
                dst_addr,
                dst_port: forwarded.dst_port,
                rule,
                is_ending: is_ending(flow.entry),
                age: now.saturating_sub(epochs(begun.since)),
                idle: idle(&flow, now, others.entry(FlowTable::Tcp, &begun.key)),
            });
        }
        Ok((flows, unknown))
    }

    /// Whether a flow has these ends: two processors may have written to one place, or the
    /// entry is being replaced.
    fn is_its(&self, flow: &ForwardFlow, key: &FlowKey, others: &Flows) -> bool {
        let (_, hash) = others.bucket(FlowTable::Tcp, key);
        self.forwards.is_of(flow, hash)
    }
}

/// The time since a packet of a flow was seen. Packets to a server elsewhere are noted in
/// the other tables too.
fn idle(flow: &ForwardFlow, now: Duration, other: Option<Entry>) -> Duration {
    let epoch = Epoch::at(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    let idle = epoch.since(flow.entry.seen());
    let other = other.filter(|_| flow.entry.is_by_rule());
    let idle = other.map_or(idle, |other| idle.min(epoch.since(other.seen())));
    epochs(idle.into())
}

/// Whether one end has ended the connection: an end of the other one would be the last.
const fn is_ending(entry: ForwardEntry) -> bool {
    entry.ended_by_client().is_ended() || entry.ended_by_target().is_ended()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_read_as_programs_write_them() {
        let peer = ForwardPeer {
            addr: Addr::new([7; 16]),
            dialled: Addr::new([9; 16]),
            port: Port::new(8080),
            dst_port: Port::new(80),
            target: 513,
            pad: 0,
        };
        let mut all = ForwardPeers::default();
        assert!(all.insert(peer));
        let mut bytes = Vec::new();
        for peer in &all.peers {
            bytes.extend(peer.addr.octets());
            bytes.extend(peer.dialled.octets());
            bytes.extend(peer.port.bytes());
            bytes.extend(peer.dst_port.bytes());
            bytes.extend(peer.target.to_ne_bytes());
            bytes.extend(peer.pad.to_ne_bytes());
        }
        bytes.extend(all.next.to_ne_bytes());
        assert_eq!(bytes.len(), size_of::<ForwardPeers>());
        assert_eq!(peers(&bytes), [peer]);
    }
}
