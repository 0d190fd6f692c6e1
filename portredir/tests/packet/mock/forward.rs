//! The forwarded flows, and what leads to them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{LazyLock, Mutex, PoisonError};

use portredir_common::datapath::forward_lookup;
use portredir_common::flow::{Epoch, FlowKey, FlowTable, Segment};
use portredir_common::kernel::forward::{
    ClientPacket, ForwardMaps, ForwardPlace, ForwardTables, Met, NewForward, Reply,
};
use portredir_common::map::bucket::Bucket;
use portredir_common::map::forward::ForwardEntry;
use portredir_common::map::hash::Hash;
use portredir_common::map::targets::{Service, Slot, Target};
use portredir_common::net::{Addr, Port, Protocol};
use portredir_common::verdict::Reason;

use super::{FlowBucket, Mock};
use crate::packet::builder::{SERVER4, SERVER6};
use crate::packet::scenario::Plan;

/// A forwarded flow without what depends on the time: protocol, whether something is
/// translated, target, the port that the client connected to, whether the client has another
/// port at the target, and whether one end more would end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Live(u8, bool, u16, u16, [bool; 3]);

impl Live {
    pub fn of(protocol: Protocol, own: u16, entry: ForwardEntry) -> Self {
        let flow = entry.flow();
        let flags = [
            entry.is_remapped(),
            entry.ended_by_client().is_ended(),
            entry.ended_by_target().is_ended(),
        ];
        Self(
            protocol as u8,
            own != 0,
            flow.target,
            flow.dst_port.get(),
            flags,
        )
    }
}

/// The forwarded flows, by table and hash, and the maps that lead to them.
#[derive(Clone, Debug, Default)]
pub struct Forwards {
    flows: HashMap<(u8, u64), (u16, ForwardEntry)>,
    pub services: HashMap<(u16, u8), Service>,
    pub slots: HashMap<u32, Slot>,
    /// The addresses of the host; the number of one is its place, from 1.
    pub own: &'static [Addr],
    pub targets: &'static [Target],
    pub own_ports: HashMap<FlowKey, Port>,
}

impl Forwards {
    /// The number of connections that have not ended, and of UDP flows.
    pub fn live(&self) -> usize {
        self.live_flows().count()
    }

    /// The connections that have not ended, and the UDP flows.
    pub fn live_flows(&self) -> impl Iterator<Item = Live> {
        self.flows.iter().filter_map(|((table, _), (own, entry))| {
            let protocol = match table {
                table if *table == FlowTable::Udp as u8 => Protocol::Udp,
                table if *table == FlowTable::Tcp as u8 && !entry.is_ended() => Protocol::Tcp,
                _ => return None,
            };
            Some(Live::of(protocol, *own, *entry))
        })
    }
}

impl Mock {
    /// Writes the slots and targets of all rules.
    pub fn set_plan(&self, plan: &Plan) {
        let rules = u16::try_from(self.setup.rules.len()).expect("few");
        let mut forwards = self.forwards.borrow_mut();
        forwards.services = plan.services(rules).into_iter().collect();
        forwards.slots = plan.slots(rules).into_iter().collect();
        forwards.targets = known_targets(rules, plan);
        forwards.own = own_addrs();
    }
}

/// The addresses of this host that clients connect to.
fn own_addrs() -> &'static [Addr] {
    static OWN: LazyLock<[Addr; 3]> =
        LazyLock::new(|| [SERVER4, SERVER6, IpAddr::from([192, 0, 2, 2])].map(crate::packet::addr));
    &*OWN
}

/// The targets of a plan: the datapath borrows them for as long as it likes.
fn known_targets(rules: u16, plan: &Plan) -> &'static [Target] {
    static KNOWN: Mutex<BTreeMap<(u16, u16), &[Target]>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known
        .entry((rules, plan.of_f))
        .or_insert_with(|| plan.targets(rules).leak())
}

/// Keeps what the datapath wrote into a bucket.
pub(super) fn keep(bucket: &FlowBucket<'_>) {
    let found = bucket.bucket.find_forward(bucket.hash);
    let found = found.map(|found| (found.own, found.entry));
    let mut forwards = bucket.mock.forwards.borrow_mut();
    let key = (bucket.table as u8, bucket.hash.0);
    match found {
        Some(flow) => forwards.flows.insert(key, flow),
        None => forwards.flows.remove(&key),
    };
}

impl ForwardMaps for Mock {
    fn forward_bucket(&self, table: FlowTable, hash: Hash) -> Option<FlowBucket<'_>> {
        let bucket = Bucket::default();
        let known = self
            .forwards
            .borrow()
            .flows
            .get(&(table as u8, hash.0))
            .copied();
        if let Some((own, entry)) = known {
            bucket.add_forward(hash, own, entry);
        }
        Some(FlowBucket {
            mock: self,
            table,
            key: self.hashed.borrow()[&hash.0],
            hash,
            before: None,
            is_forward: true,
            bucket,
        })
    }

    fn keep_forward_ends(&self, place: ForwardPlace, key: &FlowKey) {
        assert_ne!(place.table, FlowTable::Syn);
        assert_eq!(self.hashed.borrow()[&place.hash.0], *key);
    }

    fn service(&self, number: u16, version: u8) -> Service {
        let forwards = self.forwards.borrow();
        let service = forwards.services.get(&(number, version));
        service.copied().unwrap_or_default()
    }

    fn slot(&self, index: u32) -> Slot {
        let forwards = self.forwards.borrow();
        forwards.slots.get(&index).copied().unwrap_or_default()
    }

    fn target(&self, number: u16) -> Option<&Target> {
        let targets = self.forwards.borrow().targets;
        targets.get(usize::from(number).checked_sub(1)?)
    }

    fn own_addr(&self, number: u16) -> Option<&Addr> {
        let own = self.forwards.borrow().own;
        own.get(usize::from(number).checked_sub(1)?)
    }

    fn own_number(&self, addr: &Addr) -> Option<u16> {
        let own = self.forwards.borrow().own;
        let place = own.iter().position(|own| own == addr)?;
        Some(u16::try_from(place + 1).expect("few"))
    }

    fn is_target_addr(&self, addr: &Addr) -> bool {
        let targets = self.forwards.borrow().targets;
        targets.iter().any(|target| target.addr == *addr)
    }
}

impl ForwardTables for Mock {
    fn meet(&self, key: &FlowKey, dialled: &Addr, packet: ClientPacket) -> Met {
        forward_lookup::meet(self, key, (dialled, packet), Epoch::at(self.now_ns))
    }

    fn begin(&self, key: &FlowKey, begun: NewForward) {
        forward_lookup::begin(self, key, begun, Epoch::at(self.now_ns));
    }

    fn meet_reply(&self, key: &FlowKey, segment: Segment) -> Option<Reply> {
        forward_lookup::meet_reply(self, key, segment, Epoch::at(self.now_ns))
    }

    fn set_own_port(&self, key: &FlowKey, client_port: Port) -> Result<(), Reason> {
        self.forwards
            .borrow_mut()
            .own_ports
            .insert(*key, client_port);
        Ok(())
    }
}
