//! The forwarded flows, and what leads to them.

use std::collections::HashMap;

use portredir_common::datapath::forward_lookup;
use portredir_common::flow::{Epoch, FlowKey, FlowTable, Segment};
use portredir_common::kernel::forward::{
    ClientPacket, ForwardMaps, ForwardPlace, ForwardTables, Met, NewForward, Reply,
};
use portredir_common::map::bucket::Bucket;
use portredir_common::map::forward::ForwardEntry;
use portredir_common::map::hash::Hash;
use portredir_common::map::targets::{Service, Slot, Target};
use portredir_common::net::{Addr, Port};
use portredir_common::verdict::Reason;

use super::{FlowBucket, Mock};

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
        let flows = self.flows.iter();
        let live = flows.filter(|((table, _), (_, entry))| {
            *table == FlowTable::Udp as u8 || *table == FlowTable::Tcp as u8 && !entry.is_ended()
        });
        live.count()
    }
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
