//! The host of the datapath, made of hash maps: what the maps and helpers of
//! the kernel do, without a kernel.

pub mod forward;
mod sockets;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use portredir_common::datapath::{egress, fast, flow_lookup, ingress};
use portredir_common::flow::{Flow, FlowKey, FlowTable};
use portredir_common::kernel::{
    self, FlowBuckets, FlowTables, Hit, Host, NewFlow, Outcome, Socket,
};
use portredir_common::map::bucket::Bucket;
use portredir_common::map::entry::{Connection, Entry, PLACES};
use portredir_common::map::hash::{Hash, Seed};
use portredir_common::map::local;
use portredir_common::map::rules::{Choice, PortEntry, PreviousTargets};
use portredir_common::map::sockets::ListenerKey;
use portredir_common::net::{Addr, Port, Protocol};
use portredir_common::verdict::Reason;
use portredir_common::wire::frame::Link;

pub use super::bytes::{Bytes, Hex};
pub use super::tables::Tables;
use super::tables::show;
use super::{Hook, Iface, Setup};

/// The interface that is not `lo`.
pub const OTHER: &str = "other";

/// When the tests take place, on a clock that has run for a while.
pub const NOW_NS: u64 = 1_000_000_000_000_000;

/// The maps, the sockets and the clock of a host.
#[derive(Clone)]
pub struct Mock {
    pub setup: Setup,
    pub table: Arc<portredir::ruleset::compile::Table>,
    pub local: HashMap<[u8; 16], u8>,
    pub iface: Iface,
    pub tables: RefCell<Tables>,
    /// The forwarded flows.
    pub forwards: RefCell<forward::Forwards>,
    /// The seed of hashes, which choose the slots of clients.
    pub seed: Seed,
    /// Whether no socket of this host sends the packets that go out.
    pub is_forwarding: bool,
    pub sockets: HashMap<FlowKey, Socket>,
    /// Whether nobody listens.
    pub is_unserved: bool,
    /// The keys that were hashed, by their hash: an entry does not tell its key.
    pub hashed: RefCell<HashMap<u64, FlowKey>>,
    /// The clients' own ports of translated flows, kept before their entries.
    pub own_ports: RefCell<HashMap<FlowKey, Port>>,
    /// The flows that are kept at sockets, when packets come from a socket at all.
    pub cache: Option<RefCell<HashMap<FlowKey, Flow>>>,
    pub now_ns: u64,
    /// The number that the next call of `random` gives; one more each time.
    pub random: Cell<u32>,
    /// Whether the maps refuse new entries.
    pub is_full: bool,
    pub hits: RefCell<Vec<Hit>>,
    pub replies: RefCell<Vec<Hit>>,
    pub outcomes: RefCell<Vec<(u16, Outcome)>>,
    /// The rules that were noted for who traces.
    pub noted: RefCell<Vec<u16>>,
    /// Servers that take a connection when it is given to them.
    pub listeners: Vec<ListenerKey>,
    /// The servers that were asked for.
    pub asked: RefCell<Vec<ListenerKey>>,
    /// The flows that a listener was looked for.
    pub assigned: RefCell<Vec<FlowKey>>,
    /// Whether [`Self::listeners`] get the connections of this interface.
    pub is_in_scope: bool,
    /// Whether servers on loopback addresses may serve other hosts.
    pub is_loopback_allowed: Cell<bool>,
}

impl fmt::Debug for Mock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "host with {:?}, on {:?}, next random number {}",
            self.setup,
            self.iface,
            self.random.get()
        )?;
        write!(f, "{:?}", self.tables.borrow())?;
        for (key, socket) in &self.sockets {
            writeln!(f, "socket {} = {socket:?}", show(key))?;
        }
        Ok(())
    }
}

impl Mock {
    /// A host with these rules and addresses.
    pub fn new(rules: &'static [&'static str], local: &HashMap<[u8; 16], u8>) -> Self {
        Self::of(Setup::of(rules), local)
    }

    /// A host with this setup and these addresses.
    pub fn of(setup: Setup, local: &HashMap<[u8; 16], u8>) -> Self {
        Self {
            setup,
            table: setup.table(),
            local: local.clone(),
            iface: Iface::Lo,
            tables: RefCell::default(),
            forwards: RefCell::default(),
            // Of words that differ: else a flow and its reverse have one hash.
            seed: Seed::new(std::array::from_fn(|i| {
                0x9e37_79b9_7f4a_7c15_u64.rotate_left(u32::try_from(5 * i).expect("few"))
            })),
            is_forwarding: false,
            sockets: HashMap::new(),
            is_unserved: false,
            hashed: RefCell::default(),
            own_ports: RefCell::default(),
            cache: None,
            now_ns: NOW_NS,
            random: Cell::new(0),
            is_full: false,
            hits: RefCell::default(),
            replies: RefCell::default(),
            outcomes: RefCell::default(),
            noted: RefCell::default(),
            listeners: Vec::new(),
            asked: RefCell::default(),
            assigned: RefCell::default(),
            is_in_scope: true,
            is_loopback_allowed: Cell::default(),
        }
    }

    /// Takes the rules away: new flows are no longer redirected.
    pub fn draining(self) -> Self {
        let setup = self.setup.draining();
        Self {
            setup,
            table: setup.table(),
            ..self
        }
    }

    /// Runs the datapath on a packet and returns it as it goes on.
    ///
    /// # Panics
    ///
    /// When the quick way through it does something else than the slow one.
    pub fn run(&self, hook: Hook, link: Link, packet: &[u8]) -> (Reason, Vec<u8>) {
        let quick = self.clone();
        let mut quickly = packet.to_vec();
        let mut frame = Bytes(&mut quickly);
        let met = match hook {
            Hook::Ingress => fast::ingress(&mut frame, &quick, link),
            Hook::Egress => fast::egress(&mut frame, &quick, link),
        };
        let before = packet;
        let mut packet = packet.to_vec();
        let mut frame = Bytes(&mut packet);
        let reason = match hook {
            Hook::Ingress => ingress::ingress(&mut frame, self, link),
            Hook::Egress => egress::egress(&mut frame, self, link),
        };
        let is_same = match met {
            Some(met) => (met, &quickly) == (reason, &packet) && quick.state() == self.state(),
            None => quickly == before,
        };
        assert!(
            is_same,
            "{hook:?} of {:?}: slowly {reason:?}, {:?}\n{self:?}\nquickly {met:?}, {:?}\n{quick:?}",
            Hex(before),
            Hex(&packet),
            Hex(&quickly),
        );
        (reason, packet)
    }

    /// The state that packets change.
    fn state(&self) -> impl PartialEq {
        let cache = self.cache.as_ref().map(|cache| cache.borrow().clone());
        let (tables, hits) = (self.tables.borrow().clone(), self.hits.borrow().clone());
        let (replies, outcomes) = (
            self.replies.borrow().clone(),
            self.outcomes.borrow().clone(),
        );
        let forwarded = self.forwards.borrow().live();
        let random = self.random.get();
        (tables, forwarded, hits, replies, outcomes, cache, random)
    }

    /// [`Self::run`] for an Ethernet frame that comes in.
    pub fn ingress(&self, packet: &[u8]) -> (Reason, Vec<u8>) {
        self.run(Hook::Ingress, Link::Ethernet, packet)
    }

    /// [`Self::run`] for an Ethernet frame that goes out.
    pub fn egress(&self, packet: &[u8]) -> (Reason, Vec<u8>) {
        self.run(Hook::Egress, Link::Ethernet, packet)
    }

    /// The number for `random` that makes `client_port` the first candidate on
    /// a collision.
    pub fn random_for(client_port: Port) -> u32 {
        u32::from(client_port.get()).wrapping_sub(1024)
    }
}

/// The bucket of one flow, which is alone in it; what the datapath writes into the
/// bucket goes to the flow tables when the look-up ends.
pub struct FlowBucket<'a> {
    mock: &'a Mock,
    table: FlowTable,
    key: FlowKey,
    hash: Hash,
    before: Option<Entry>,
    /// Whether it is one of the forwarded flows.
    is_forward: bool,
    bucket: Bucket<AtomicU64>,
}

impl FlowBucket<'_> {
    fn entry(&self) -> Option<Entry> {
        let found = self.bucket.find(self.hash, self.key.local_port)?;
        Some(found.entry)
    }
}

impl Deref for FlowBucket<'_> {
    type Target = Bucket<AtomicU64>;

    fn deref(&self) -> &Self::Target {
        &self.bucket
    }
}

impl Drop for FlowBucket<'_> {
    fn drop(&mut self) {
        if self.is_forward {
            return forward::keep(self);
        }
        let entry = self.entry();
        if entry == self.before {
            return;
        }
        let mut tables = self.mock.tables.borrow_mut();
        let flows = tables.get_mut(self.table);
        let Some(entry) = entry else {
            flows.remove(&self.key);
            return;
        };
        let own_port = if entry.is_remapped() {
            let own_ports = self.mock.own_ports.borrow();
            let own_port = own_ports.get(&self.key).copied();
            own_port
                .or_else(|| flows.get(&self.key).map(|flow| flow.client_port))
                .expect("the client's own port")
        } else {
            self.key.client_port
        };
        flows.insert(self.key, entry.flow(own_port));
    }
}

impl FlowBuckets for Mock {
    type Word = AtomicU64;
    type Bucket<'a> = FlowBucket<'a>;

    fn hash(&self, key: &FlowKey) -> Hash {
        let hash = self.seed.hash(key);
        self.hashed.borrow_mut().insert(hash.0, *key);
        hash
    }

    fn bucket(&self, table: FlowTable, hash: Hash) -> Option<FlowBucket<'_>> {
        let key = self.hashed.borrow()[&hash.0];
        let bucket = Bucket::default();
        if let Some(flow) = self.tables.borrow().get(table).get(&key) {
            bucket.put(hash, key.local_port, entry_of(hash, &key, flow));
        }
        let mut bucket = FlowBucket {
            mock: self,
            table,
            key,
            hash,
            before: None,
            is_forward: false,
            bucket,
        };
        bucket.before = bucket.entry();
        Some(bucket)
    }

    fn udp_slot(&self, hash: Hash, place: usize) -> u32 {
        assert!(place < PLACES && self.hashed.borrow().contains_key(&hash.0));
        u32::try_from(place).expect("small")
    }

    fn keep_ports(&self, _slot: u32, client_port: Port, target: Port) {
        let ends = |key: &FlowKey| (key.client_port, key.local_port);
        let known = self.hashed.borrow();
        assert!(known.values().any(|key| ends(key) == (client_port, target)));
    }

    fn keep_addrs(&self, _slot: u32, key: &FlowKey) {
        // What is kept must be the flow that was inserted.
        let known = self.hashed.borrow();
        assert!(known.values().any(|known| known == key), "{key:?}");
        assert_eq!(key.protocol, Protocol::Udp as u8);
    }
}

/// The entry of a flow.
fn entry_of(hash: Hash, key: &FlowKey, flow: &Flow) -> Entry {
    let entry = Entry::new(hash, flow);
    if flow.client_port == key.client_port {
        entry
    } else {
        entry.remapped()
    }
}

impl FlowTables for Mock {
    fn entry(&self, table: FlowTable, key: &FlowKey) -> Option<Entry> {
        flow_lookup::entry(self, table, key)
    }

    fn connection(&self, key: &FlowKey) -> Option<Connection> {
        flow_lookup::connection(self, key)
    }

    fn insert(&self, bucket: FlowBucket<'_>, new: &NewFlow) -> Result<u32, Reason> {
        if self.is_full {
            return Err(Reason::TableFull);
        }
        let entry = Entry::new(new.hash, &new.flow);
        let place = bucket.add(new.hash, new.target, entry);
        let slot = self.udp_slot(new.hash, place);
        self.keep_ports(slot, new.flow.client_port, new.target);
        Ok(slot)
    }

    fn set_flow(&self, table: FlowTable, key: &FlowKey, flow: &Flow) -> Result<(), Reason> {
        let is_new = !self.tables.borrow().get(table).contains_key(key);
        if self.is_full && is_new {
            return Err(Reason::TableFull);
        }
        self.own_ports.borrow_mut().insert(*key, flow.client_port);
        flow_lookup::put(self, table, key, flow);
        Ok(())
    }

    fn remove_flow(&self, table: FlowTable, key: &FlowKey) {
        flow_lookup::remove(self, table, key);
    }

    fn own_port(&self, table: FlowTable, key: &FlowKey) -> Option<Port> {
        let tables = self.tables.borrow();
        let kept = tables.get(table).get(key).map(|flow| flow.client_port);
        kept.or_else(|| self.forwards.borrow().own_ports.get(key).copied())
    }

    fn remap(&self, original: &FlowKey) -> Option<Port> {
        self.tables.borrow().remap.get(original).copied()
    }

    fn set_remap(&self, original: &FlowKey, client_port: Port) -> Result<(), Reason> {
        if self.is_full {
            return Err(Reason::TableFull);
        }
        let mut tables = self.tables.borrow_mut();
        tables.remap.insert(*original, client_port);
        Ok(())
    }

    fn is_marked(&self, key: &FlowKey) -> bool {
        self.tables.borrow().is_marked(key)
    }

    fn mark(&self, key: &FlowKey) {
        self.tables.borrow_mut().mark(key);
    }
}

impl Host for Mock {
    fn port(&self, protocol: Protocol, port: Port) -> PortEntry {
        self.table.ports[PortEntry::index(protocol, port) as usize]
    }

    fn is_served(&self, key: &FlowKey) -> bool {
        !self.is_unserved || self.socket(key) == Socket::Connection
    }

    fn socket(&self, key: &FlowKey) -> Socket {
        self.sockets.get(key).copied().unwrap_or(Socket::None)
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn random(&self) -> u32 {
        let random = self.random.get();
        self.random.set(random.wrapping_add(1));
        random
    }
}

impl kernel::Tables for Mock {
    fn is_local(&self, addr: &Addr) -> bool {
        let is_loopback = matches!(addr.octets(), [.., 0xff, 0xff, 127, _, _, _])
            && addr.octets()[..10] == [0; 10];
        match self.local.get(&addr.octets()) {
            Some(&local::ANYWHERE) => true,
            Some(_) => self.iface == Iface::Lo,
            None => is_loopback && self.iface == Iface::Lo,
        }
    }

    fn is_in_local_addr_cache(&self, addr: &Addr) -> bool {
        self.local.get(&addr.octets()) == Some(&local::ANYWHERE)
    }

    fn came_in_on_loopback(&self) -> bool {
        self.iface == Iface::Lo
    }

    /// In its own way, by the words of the documentation: what compiles the
    /// conditions is under test too.
    fn match_rule(&self, _: PortEntry, key: &FlowKey, port: Port) -> Option<Choice> {
        let ip = |addr: Addr| IpAddr::from(addr.octets()).to_canonical();
        let (local, client) = (ip(key.local), ip(key.client));
        let iface = if self.iface == Iface::Lo { "lo" } else { OTHER };
        let rules = self.setup.parsed();
        let matching = (0..).zip(&rules).filter(|(_, rule)| {
            let protocols = rule.protocols.each().iter();
            rule.redirects(port)
                && protocols.into_iter().any(|p| *p as u8 == key.protocol)
                && rule.addr.is_none_or(|addr| addr == local)
                && rule.from.is_none_or(|from| from.contains(&client))
                && (rule.on.is_empty() || rule.on.iter().any(|name| name == iface))
        });
        // Of equals `min_by_key` takes the first.
        let (id, rule) = matching.min_by_key(|(_, rule)| {
            let prefix = rule.from.map_or(0, |from| i16::from(from.prefix_len()) + 1);
            (rule.addr.is_none(), -prefix)
        })?;
        let is_forward = rule.forward().is_some();
        // The number of its service, as of all rules of a `Setup`.
        let service = is_forward.then(|| Port::new(id + 1));
        Some(Choice {
            target: service.or_else(|| rule.target_of(port))?,
            rule: id,
            is_forward,
        })
    }

    fn previous_targets(&self, _: PortEntry, protocol: Protocol, port: Port) -> PreviousTargets {
        let index = PortEntry::index(protocol, port);
        self.table.old.get(&index).copied().unwrap_or_default()
    }

    fn note_rule(&self, rule: u16) {
        self.noted.borrow_mut().push(rule);
    }

    fn record(&self, hit: &Hit) {
        assert_eq!(hit.at_ns, self.now_ns);
        self.hits.borrow_mut().push(*hit);
    }

    fn record_reply(&self, hit: &Hit) {
        self.replies.borrow_mut().push(*hit);
    }

    fn record_outcome(&self, rule: u16, outcome: Outcome) {
        self.outcomes.borrow_mut().push((rule, outcome));
    }
}
