//! Targets with an address, and the flows to them, for user space.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use aya::maps::{Array, HashMap as BpfHashMap, Map};
use portredir_common::flow::{Epoch, FlowTable, UDP_IDLE};
use portredir_common::map::bucket::{Bucket, Shares};
use portredir_common::map::ends::{Begun, Ends};
use portredir_common::map::entry::PLACES;
use portredir_common::map::forward::ForwardEntry;
use portredir_common::map::hash::Hash;
use portredir_common::map::targets::{
    OWN_ADDRS, SERVICES, SLOTS, Service, Slot, TARGETS, Target, service_index,
};
use portredir_common::net::{Addr, Protocol};
use portredir_common::packed::Packed as _;

use super::Datapath;
use super::error::{DatapathError, map_error};
use super::object::map_memory;
use super::rules::fill_hash;
use crate::sys::clock::monotonic_ns;
use crate::sys::mmap::Mapped;

/// The services, slots and targets as they were at one moment.
#[derive(Clone, Debug)]
pub struct ForwardCopy {
    services: Vec<Service>,
    slots: Vec<Slot>,
    /// All targets by number; empty where there are no services.
    targets: Vec<Target>,
}

impl ForwardCopy {
    pub(super) fn new(maps: &HashMap<&'static str, Map>) -> Result<Self, DatapathError> {
        let services = words(maps, "SERVICES", 2 * SERVICES)?;
        let slots = words(maps, "SLOTS", SLOTS)?;
        let name = "TARGETS";
        let map = Array::<_, Target>::try_from(&maps[name]).map_err(map_error(name))?;
        let is_used = services.iter().any(|word| word.load(Relaxed) != 0);
        let numbers = if is_used { 0..TARGETS } else { 0..0 };
        let targets = numbers.map(|number| map.get(&number, 0));
        Ok(Self {
            services: services.iter().map(unpack).collect(),
            slots: slots.iter().map(unpack).collect(),
            targets: targets.collect::<Result<_, _>>().map_err(map_error(name))?,
        })
    }

    /// The service of a number for an IP version; an unused one where there is none.
    #[must_use]
    pub fn service(&self, number: u16, version: u8) -> Service {
        let index = service_index(number, version) as usize;
        self.services.get(index).copied().unwrap_or_default()
    }

    /// A slot; an unused one where there is none.
    #[must_use]
    pub fn slot(&self, index: u32) -> Slot {
        self.slots.get(index as usize).copied().unwrap_or_default()
    }

    /// The target of a number.
    #[must_use]
    pub fn target(&self, number: u16) -> Option<&Target> {
        self.targets.get(usize::from(number))
    }
}

fn words(
    maps: &HashMap<&'static str, Map>,
    name: &'static str,
    len: u32,
) -> Result<Mapped<AtomicU64>, DatapathError> {
    map_memory(maps, name, len)
}

fn unpack<T: portredir_common::packed::Packed>(word: &AtomicU64) -> T {
    T::unpack(word.load(Relaxed))
}

/// A flow to a target with an address, or one whose server is elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardFlow {
    /// The protocol.
    pub protocol: Protocol,
    /// The number of the address that the client connected to; 0 of a direct flow.
    pub own: u16,
    /// The entry.
    pub entry: ForwardEntry,
    /// The ends, and when the flow began; none when another flow has taken the place since.
    pub begun: Option<Begun>,
}

/// The tables of forwarded flows.
#[derive(Debug)]
pub struct Forwards {
    buckets: Mapped<Bucket<AtomicU64>>,
    ends: Mapped<Ends<AtomicU64>>,
    shares: Shares,
}

impl Forwards {
    /// Finds the tables in the memory of their maps.
    pub(super) fn new(
        maps: &HashMap<&'static str, Map>,
        shares: Shares,
    ) -> Result<Self, DatapathError> {
        let buckets = map_memory(maps, "FORWARDS", shares.total())?;
        let ends = map_memory(maps, "FORWARD_ENDS", shares.known_places())?;
        Ok(Self::of(buckets, ends, shares))
    }

    /// The tables in this memory.
    pub(super) const fn of(
        buckets: Mapped<Bucket<AtomicU64>>,
        ends: Mapped<Ends<AtomicU64>>,
        shares: Shares,
    ) -> Self {
        Self {
            buckets,
            ends,
            shares,
        }
    }

    /// Whether a flow has this hash of its ends.
    #[must_use]
    pub fn is_of(&self, flow: &ForwardFlow, hash: Hash) -> bool {
        let table = match flow.protocol {
            Protocol::Tcp => FlowTable::Tcp,
            Protocol::Udp => FlowTable::Udp,
        };
        let bucket = &self.buckets[self.shares.index(table, hash) as usize];
        let found = bucket.find_forward(hash);
        found.is_some_and(|found| found.own == flow.own && found.entry.flow() == flow.entry.flow())
    }

    /// The connections that have not ended, and the UDP flows that are not idle.
    pub fn live(&self) -> impl Iterator<Item = ForwardFlow> {
        let now = Epoch::at(monotonic_ns());
        let buckets = (0..).zip(&*self.buckets);
        buckets.flat_map(move |(index, bucket): (u32, _)| {
            let table = self.shares.table(index);
            let flows = bucket.forwards().filter_map(move |(place, own, entry)| {
                let protocol = match table {
                    FlowTable::Syn => return None,
                    FlowTable::Tcp => Protocol::Tcp,
                    FlowTable::Udp => Protocol::Udp,
                };
                let is_live = match protocol {
                    Protocol::Tcp => !entry.is_ended(),
                    Protocol::Udp => now.since(entry.seen()) < UDP_IDLE,
                };
                is_live.then(|| ForwardFlow {
                    protocol,
                    own,
                    entry,
                    begun: self.begun(index, place, protocol),
                })
            });
            flows.collect::<Vec<_>>()
        })
    }

    fn begun(&self, bucket: u32, place: usize, protocol: Protocol) -> Option<Begun> {
        let index = bucket as usize * PLACES + place;
        self.ends.get(index)?.read(protocol)
    }

    /// Removes the flows that a test accepts, also those that are being opened.
    pub fn remove(&self, is_gone: impl Fn(FlowTable, u16, ForwardEntry) -> bool) {
        for (index, bucket) in (0..).zip(&*self.buckets) {
            let table = self.shares.table(index);
            bucket.remove_forwards(|own, entry| is_gone(table, own, entry));
        }
    }

    /// The numbers of the targets that have flows.
    #[must_use]
    pub fn targets(&self) -> HashSet<u16> {
        let flows = self.live().filter(|flow| flow.own != 0);
        let flows = flows.filter(|flow| !flow.entry.is_by_rule());
        flows.map(|flow| flow.entry.flow().target).collect()
    }
}

impl Datapath {
    /// The tables of forwarded flows.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Memory`].
    pub fn forwards(&self) -> Result<Forwards, DatapathError> {
        Forwards::new(&self.maps, self.globals.forward_shares)
    }

    /// The number of forwarded connections of which a packet was seen lately: no socket tells
    /// when a client or a target has vanished.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Memory`].
    pub fn count_forwarded(&self) -> Result<usize, DatapathError> {
        const LATELY: u16 = 300;
        let flows = self.flows()?;
        let now = Epoch::at(monotonic_ns());
        let is_lately = |flow: &ForwardFlow| {
            // The way to a server elsewhere is in the other tables.
            let other = flow.begun.filter(|_| flow.entry.is_by_rule());
            let other = other.and_then(|begun| flows.entry(FlowTable::Tcp, &begun.key));
            let other = other.map(|entry| now.since(entry.seen()));
            let age = now.since(flow.entry.seen());
            other.map_or(age, |other| age.min(other)) < LATELY
        };
        let forwards = self.forwards()?;
        let connections = forwards
            .live()
            .filter(|flow| flow.protocol == Protocol::Tcp && flow.own != 0 && is_lately(flow));
        Ok(connections.count())
    }

    /// The slots of all services.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Memory`].
    pub fn slots(&self) -> Result<Vec<Slot>, DatapathError> {
        let words = words(&self.maps, "SLOTS", SLOTS)?;
        Ok(words.iter().map(unpack).collect())
    }

    /// Prepares slots and services to be written at one moment. Services that are not named
    /// are unused from then on.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Memory`].
    pub fn pointers(
        &self,
        slots: &[Slot],
        services: &[((u16, u8), Service)],
    ) -> Result<Pointers, DatapathError> {
        let mut wanted = vec![0; 2 * SERVICES as usize];
        for ((number, version), service) in services {
            wanted[service_index(*number, *version) as usize] = service.pack();
        }
        let slots = slots.iter().map(|slot| slot.pack());
        Ok(Pointers {
            slots: Changes::new(words(&self.maps, "SLOTS", SLOTS)?, slots),
            services: Changes::new(words(&self.maps, "SERVICES", 2 * SERVICES)?, wanted),
        })
    }

    /// Writes targets as [`Self::set_targets`] does, unless they have these values already.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn correct_targets(&mut self, targets: &[(u16, Target)]) -> Result<(), DatapathError> {
        let name = "TARGETS";
        let map = Array::<_, Target>::try_from(self.map(name)).map_err(map_error(name))?;
        for (number, target) in targets {
            let present = map.get(&u32::from(*number), 0).map_err(map_error(name))?;
            if present != *target {
                return self.set_targets(targets);
            }
        }
        Ok(())
    }

    /// Writes all that a copy has.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`], [`DatapathError::Memory`].
    pub(super) fn copy_forward(&mut self, copy: &ForwardCopy) -> Result<(), DatapathError> {
        let targets: Vec<_> = (0..).zip(copy.targets.iter().copied()).collect();
        let numbers = (0..2 * SERVICES).map(|index| {
            let version = if index < SERVICES { 4 } else { 6 };
            let number = u16::try_from(index % SERVICES).expect("below SERVICES");
            (number, version)
        });
        let services: Vec<_> = numbers.zip(copy.services.iter().copied()).collect();
        self.set_targets(&targets)?;
        self.pointers(&copy.slots, &services)?.write();
        Ok(())
    }

    /// Writes targets.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn set_targets(&mut self, targets: &[(u16, Target)]) -> Result<(), DatapathError> {
        let addrs: HashSet<Addr> = targets.iter().map(|(_, target)| target.addr).collect();
        let name = "TARGET_ADDRS";
        fill_hash(
            self.map_mut(name),
            |addr: &Addr| !addrs.contains(addr),
            addrs.iter().map(|addr| (*addr, 1_u32)),
        )
        .map_err(map_error(name))?;
        let name = "TARGETS";
        let mut map = Array::<_, Target>::try_from(self.map_mut(name)).map_err(map_error(name))?;
        for (number, target) in targets {
            map.set(u32::from(*number), target, 0)
                .map_err(map_error(name))?;
        }
        Ok(())
    }

    /// Gives each of these addresses a number, which it keeps; addresses of others may have
    /// theirs taken away when there are too few.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub(super) fn number_addrs(&mut self, addrs: &HashSet<Addr>) -> Result<(), DatapathError> {
        let known = &self.own_numbers;
        if addrs.iter().all(|addr| known.contains_key(addr)) {
            return Ok(());
        }
        let used: HashSet<u32> = known.values().copied().collect();
        let mut free = (1..OWN_ADDRS).filter(|number| !used.contains(number));
        let left = known.iter().filter(|(addr, _)| !addrs.contains(addr));
        let mut left = left.map(|(addr, number)| (*addr, *number));
        let mut given = Vec::new();
        for addr in addrs.iter().filter(|addr| !known.contains_key(addr)) {
            let (gone, number) = match free.next() {
                Some(number) => (None, number),
                None => match left.next() {
                    Some((gone, number)) => (Some(gone), number),
                    // Clients of this address are not served by such rules.
                    None => break,
                },
            };
            given.push((gone, number, *addr));
        }
        for (gone, number, addr) in given {
            self.number_addr(gone, number, addr)?;
        }
        Ok(())
    }

    /// Gives an address a number, which another one may have had.
    fn number_addr(
        &mut self,
        gone: Option<Addr>,
        number: u32,
        addr: Addr,
    ) -> Result<(), DatapathError> {
        let numbers = "OWN_NUMBERS";
        if let Some(gone) = gone {
            BpfHashMap::<_, Addr, u32>::try_from(self.map_mut(numbers))
                .and_then(|mut map| map.remove(&gone))
                .map_err(map_error(numbers))?;
            self.own_numbers.remove(&gone);
        }
        let addrs = "OWN_ADDRS";
        Array::<_, Addr>::try_from(self.map_mut(addrs))
            .and_then(|mut map| map.set(number, addr, 0))
            .map_err(map_error(addrs))?;
        BpfHashMap::<_, Addr, u32>::try_from(self.map_mut(numbers))
            .and_then(|mut map| map.insert(addr, number, 0))
            .map_err(map_error(numbers))?;
        self.own_numbers.insert(addr, number);
        Ok(())
    }

    /// The numbers that an earlier process may have given.
    pub(super) fn left_numbers(&self) -> Result<HashMap<Addr, u32>, DatapathError> {
        let name = "OWN_NUMBERS";
        let map = BpfHashMap::<_, Addr, u32>::try_from(self.map(name)).map_err(map_error(name))?;
        Ok(map.iter().filter_map(Result::ok).collect())
    }
}

/// Slots and services that are about to be valid.
#[derive(Debug)]
pub struct Pointers {
    slots: Changes,
    services: Changes,
}

impl Pointers {
    /// Writes the slots, then the services, so that nothing leads to what is not there yet.
    /// Targets have to be there before. No system call is made, at which this process could
    /// be killed half way.
    pub fn write(&self) {
        self.slots.write();
        self.services.write();
    }
}

/// Words of a map, by their indexes, and the values that they will have.
#[derive(Debug)]
struct Changes(Vec<(usize, u64)>, Mapped<AtomicU64>);

impl Changes {
    /// The words that have other values now.
    fn new(words: Mapped<AtomicU64>, wanted: impl IntoIterator<Item = u64>) -> Self {
        let pairs = words.iter().zip(wanted).enumerate();
        let changes = pairs.filter(|(_, (word, value))| word.load(Relaxed) != *value);
        let changes = changes.map(|(at, (_, value))| (at, value)).collect();
        Self(changes, words)
    }

    fn write(&self) {
        let Self(changes, words) = self;
        for (at, value) in changes {
            words[*at].store(*value, Relaxed);
        }
    }
}
