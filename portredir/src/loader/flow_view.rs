//! The flows of a redirect for one who only reads: its maps, from the pins or by their IDs.
//! No object is parsed, and nothing is changed.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, MapError};
use portredir_common::flow::{Epoch, Flow, FlowKey, FlowTable, UDP_IDLE};
use portredir_common::map::bucket::Shares;
use portredir_common::map::ends::Ends;
use portredir_common::map::entry::Entry;
use portredir_common::map::hash::Seed;
use portredir_common::map::sockets::{ConnectedPeer, ConnectedPeers, ForwardPeer};
use portredir_common::net::{Addr, Port, Protocol};

use super::Datapath;
use super::error::{DatapathError, map_error};
use super::flows::{Flows, epochs};
use super::forward_view::{self, ForwardView, Forwarded};
use super::object::{Sizes, take};
use crate::sys::bpffs::PinDir;
use crate::sys::clock::monotonic;
use crate::sys::mmap::Mapped;
use crate::sys::sock_detail::Socket;

/// The maps that are read.
const NAMES: [&str; 13] = [
    "DIALLED",
    "FLOWS",
    "FORWARDS",
    "FORWARD_ENDS",
    "FORWARD_PEERS",
    "GIVEN",
    "GIVEN_TCP",
    "LISTENS_ON",
    "OWN_ADDRS",
    "SEED",
    "SOCKETS",
    "TARGETS",
    "UDP_ENDS",
];

/// The IDs of the maps of a process that has pinned none.
pub type MapIds = BTreeMap<String, u32>;

/// The place of the maps.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// The pins of a redirect that outlives its process.
    Pins(&'a PinDir),
    /// The maps of a process.
    Ids(&'a MapIds),
}

/// The flows of a redirect.
#[derive(Debug)]
pub struct FlowView {
    flows: Flows,
    /// An older program has no forwarded flows.
    forward: Option<ForwardView>,
    /// An older program keeps no ends.
    ends: Option<Mapped<Ends<AtomicU64>>>,
    maps: BTreeMap<&'static str, MapData>,
    given: [Option<Map>; 2],
}

/// A live UDP flow.
#[derive(Clone, Copy, Debug)]
pub struct UdpFlow {
    /// The flow, as the server knows it.
    pub key: FlowKey,
    /// The port that the client connected to.
    pub dst_port: Port,
    /// The client's own port, if it is known.
    pub client_port: Option<Port>,
    /// The number of the rule.
    pub rule: u16,
    /// The time since the first packet.
    pub age: Duration,
    /// The time since the last packet.
    pub idle: Duration,
}

/// The redirected TCP flow of a server's socket.
#[derive(Clone, Copy, Debug)]
pub struct Redirected {
    /// The port that the client connected to.
    pub dst_port: Port,
    /// The client's own port, if it is known.
    pub client_port: Option<Port>,
    /// The number of the rule.
    pub rule: u16,
    /// The time at which the server accepted the connection, where that is kept.
    pub accepted: Option<Epoch>,
}

impl FlowView {
    /// Opens the maps.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`], [`DatapathError::Memory`].
    pub fn open(place: Place<'_>, sizes: Sizes) -> Result<Self, DatapathError> {
        let mut maps = BTreeMap::new();
        for name in NAMES {
            let map = match place {
                Place::Pins(pins) => MapData::from_pin(pins.path(name)),
                Place::Ids(ids) => match ids.get(name) {
                    Some(id) => MapData::from_id(*id),
                    None => continue,
                },
            };
            match map {
                Ok(map) => _ = maps.insert(name, map),
                // An older program has no such map.
                Err(error) if is_missing(&error) && is_new(name) => {}
                Err(source) => return Err(DatapathError::Map { name, source }),
            }
        }
        let name = "SEED";
        let seed = Map::Array(take(&mut maps, name)?);
        let seed = Array::<_, Seed>::try_from(&seed).and_then(|seed| seed.get(&0, 0));
        let seed = seed.map_err(map_error(name))?;
        let shares = Shares::new(sizes.tcp_flows, sizes.udp_flows);
        let name = "FLOWS";
        let buckets = Mapped::new(take(&mut maps, name)?.fd().as_fd(), shares.total())
            .map_err(|source| DatapathError::Memory { name, source })?;
        let name = "UDP_ENDS";
        let ends = maps.remove(name);
        let ends = ends.map(|map| Mapped::new(map.fd().as_fd(), shares.udp_slots()));
        let ends = ends.transpose();
        let ends = ends.map_err(|source| DatapathError::Memory { name, source })?;
        let forward = ForwardView::open(&mut maps, sizes)?;
        let given = ["GIVEN", "GIVEN_TCP"].map(|name| maps.remove(name).map(Map::LruHashMap));
        Ok(Self {
            flows: Flows::new(buckets, shares, seed),
            forward,
            ends,
            maps,
            given,
        })
    }

    /// The maps of values at sockets, for [`crate::sys::sock_detail::each`].
    #[must_use]
    pub fn storages(&self) -> Vec<BorrowedFd<'_>> {
        self.maps.values().map(|map| map.fd().as_fd()).collect()
    }

    fn id(&self, name: &str) -> Option<u32> {
        Some(self.maps.get(name)?.info().ok()?.id())
    }

    /// The reader of values at sockets.
    #[must_use]
    pub fn stored(&self) -> Stored {
        Stored {
            dialled: self.id("DIALLED"),
            forward_peers: self.id("FORWARD_PEERS"),
            listens_on: self.id("LISTENS_ON"),
            sockets: self.id("SOCKETS"),
        }
    }

    /// The flow of a server's socket, if it is redirected by rewriting packets.
    #[must_use]
    pub fn redirected(&self, socket: &Socket, stored: &Stored) -> Option<Redirected> {
        let key = &socket.key;
        if let Some(flow) = stored.flow(socket) {
            return (flow.dst_port != key.local_port).then_some(Redirected {
                dst_port: flow.dst_port,
                client_port: Some(flow.client_port),
                rule: flow.rule,
                accepted: Some(flow.seen),
            });
        }
        let entry = self.flows.connection(key)?;
        let flow = entry.flow(key.client_port);
        (flow.dst_port != key.local_port).then(|| Redirected {
            dst_port: flow.dst_port,
            client_port: self.own_port(entry, key),
            rule: flow.rule,
            accepted: None,
        })
    }

    /// The client's own port, of a flow that may have been given another one.
    fn own_port(&self, entry: Entry, key: &FlowKey) -> Option<Port> {
        if entry.is_remapped() {
            self.given_port(key)
        } else {
            Some(key.client_port)
        }
    }

    /// The client's own port, of a flow that was given another one.
    fn given_port(&self, key: &FlowKey) -> Option<Port> {
        self.given.iter().flatten().find_map(|map| {
            let map = BpfHashMap::<_, FlowKey, [u8; 2]>::try_from(map).ok()?;
            let port = map.get(key, 0).ok()?;
            Some(Port::new(u16::from_be_bytes(port)))
        })
    }

    /// The live flows to targets with an address, and to servers elsewhere; and the number of
    /// UDP flows among them whose ends are not known.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn forwarded(&self) -> Result<(Vec<Forwarded>, usize), DatapathError> {
        match &self.forward {
            Some(view) => view.live(&self.flows, |key| self.given_port(key)),
            None => Ok((Vec::new(), 0)),
        }
    }

    /// The number of the rule of a target; `None` of a target that is there no more.
    #[must_use]
    pub fn rule_of_target(&self, number: u16) -> Option<u16> {
        self.forward.as_ref()?.rule_of_target(number)
    }

    /// The redirected UDP flows that are not idle, and the number of those whose ends are
    /// not known.
    #[must_use]
    pub fn udp(&self) -> (Vec<UdpFlow>, usize) {
        let now = monotonic();
        let epoch = Epoch::at(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        let mut flows = Vec::new();
        let mut unknown = 0;
        for (slot, target, entry) in self.flows.udp_entries() {
            let idle = epoch.since(entry.seen());
            if entry.dst_port() == target || idle >= UDP_IDLE {
                continue;
            }
            let ends = self
                .ends
                .as_ref()
                .and_then(|ends| ends.get(slot)?.read(Protocol::Udp));
            // Two processors may have written to one place, or an entry is being replaced.
            let is_its = |key: &FlowKey| {
                let found = self.flows.entry(FlowTable::Udp, key);
                found.is_some_and(|found| found.is_same_flow(entry))
            };
            let Some(begun) =
                ends.filter(|begun| begun.key.local_port == target && is_its(&begun.key))
            else {
                unknown += 1;
                continue;
            };
            let began = epochs(begun.since);
            flows.push(UdpFlow {
                key: begun.key,
                dst_port: entry.dst_port(),
                client_port: self.own_port(entry, &begun.key),
                rule: entry.flow(begun.key.client_port).rule,
                age: now.saturating_sub(began),
                idle: epochs(idle.into()),
            });
        }
        (flows, unknown)
    }
}

/// The time since an epoch, if the redirect is so young that the number of the epoch means
/// one moment only.
#[must_use]
pub fn age(accepted: Epoch, redirect_age: Option<Duration>) -> Option<Duration> {
    let now = monotonic();
    let longest = epochs(u32::from(u16::MAX) - 0x200);
    let youngest = redirect_age.map_or(now, |age| age.min(now));
    let epoch = Epoch::at(u64::try_from(now.as_nanos()).ok()?);
    (youngest < longest).then(|| epochs(epoch.since(accepted).into()))
}

/// Reads values at sockets.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    dialled: Option<u32>,
    forward_peers: Option<u32>,
    listens_on: Option<u32>,
    sockets: Option<u32>,
}

impl Stored {
    /// The flow that is kept at a server's socket.
    fn flow(&self, socket: &Socket) -> Option<Flow> {
        let [a, b, c, d, e, f, g, h] = *socket.stored(self.sockets?)?.first_chunk()?;
        Some(Flow {
            dst_port: Port::new(u16::from_be_bytes([a, b])),
            client_port: Port::new(u16::from_be_bytes([c, d])),
            rule: u16::from_ne_bytes([e, f]),
            seen: Epoch(u16::from_ne_bytes([g, h])),
        })
    }

    /// The port that the listener of a connection is bound to, where it is another one than
    /// that of the connection.
    #[must_use]
    pub fn target(&self, socket: &Socket) -> Option<Port> {
        let bytes = socket.stored(self.listens_on?)?;
        let port = Port::new(u16::from_be_bytes(bytes.try_into().ok()?));
        (port != socket.key.local_port).then_some(port)
    }

    /// The target that a connected client on this host knows by another address, or by another
    /// port, than its own.
    #[must_use]
    pub fn target_of_client(&self, socket: &Socket) -> Option<ForwardPeer> {
        let bytes = socket.stored(self.forward_peers?)?;
        let (addr, port) = (socket.key.client, socket.key.client_port);
        let mut peers = forward_view::peers(bytes).into_iter();
        peers.find(|peer| peer.addr.is(addr) && peer.port == port)
    }

    /// The peers that a client on this host knows by another port than their own.
    pub fn peers(&self, socket: &Socket) -> impl Iterator<Item = ConnectedPeer> + use<> {
        const LEN: usize = size_of::<ConnectedPeer>();
        let bytes = self.dialled.and_then(|map| socket.stored(map));
        let bytes = bytes.unwrap_or_default();
        let peers = bytes.chunks_exact(LEN).take(ConnectedPeers::PEERS);
        let peers = peers.filter_map(|peer| {
            let (addr, ports) = peer.split_first_chunk::<16>()?;
            let [a, b, c, d] = *ports.first_chunk()?;
            Some(ConnectedPeer {
                addr: Addr::new(*addr),
                port: Port::new(u16::from_be_bytes([a, b])),
                dst_port: Port::new(u16::from_be_bytes([c, d])),
            })
        });
        let peers: Vec<_> = peers.filter(|peer| peer.dst_port != Port::CLOSED).collect();
        peers.into_iter()
    }
}

/// Whether versions before this one lack a map.
fn is_new(name: &str) -> bool {
    matches!(name, "FORWARD_PEERS" | "LISTENS_ON" | "UDP_ENDS")
        || forward_view::NAMES.contains(&name)
}

fn is_missing(error: &MapError) -> bool {
    let MapError::SyscallError(error) = error else {
        return false;
    };
    error.io_error.kind() == std::io::ErrorKind::NotFound
}

impl Datapath {
    /// The IDs of the maps of this process, for one who reads flows.
    #[must_use]
    pub fn map_ids(&self) -> MapIds {
        let id = |name: &str| {
            let (Map::Array(map) | Map::LruHashMap(map) | Map::SkStorage(map)) = self.map(name)
            else {
                return None;
            };
            Some((name.to_owned(), map.info().ok()?.id()))
        };
        NAMES.iter().filter_map(|name| id(name)).collect()
    }
}
