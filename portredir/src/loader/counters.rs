//! Reads and removes counters.

use std::collections::{BTreeSet, HashMap};

use aya::maps::{MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use portredir_common::map::counters::{Counter, CounterKey, Hits, Outcomes};
use portredir_common::verdict::Reason;

use super::Datapath;
use super::error::{DatapathError, map_error};

/// The counters of rules, summed over the CPUs.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// The packets that were redirected, by rule and ingress interface.
    pub requests: HashMap<CounterKey, Counter>,
    /// The replies that were rewritten, by rule and egress interface.
    pub replies: HashMap<CounterKey, Counter>,
    /// The outcomes of flows, by the number of the rule.
    pub outcomes: HashMap<u32, Outcomes>,
}

/// The two maps that count the packets of one direction.
#[derive(Clone, Copy)]
struct Direction {
    places: &'static str,
    more: &'static str,
}

const REQUESTS: Direction = Direction {
    places: "HITS",
    more: "COUNTERS",
};

const REPLIES: Direction = Direction {
    places: "REPLIES",
    more: "REPLIES_MORE",
};

const OUTCOMES: &str = "OUTCOMES";
const REASONS: &str = "REASONS";

impl Datapath {
    /// The counters of all rules on all interfaces.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        Ok(Counters {
            requests: self.counters_of(REQUESTS)?,
            replies: self.counters_of(REPLIES)?,
            outcomes: self.outcomes()?,
        })
    }

    fn counters_of(
        &self,
        direction: Direction,
    ) -> Result<HashMap<CounterKey, Counter>, DatapathError> {
        let name = direction.more;
        let map = self.map(name);
        let map = PerCpuHashMap::<&MapData, CounterKey, Counter>::try_from(map)
            .map_err(map_error(name))?;
        let mut counters = HashMap::<CounterKey, Counter>::new();
        for entry in map.iter() {
            let (key, per_cpu) = entry.map_err(map_error(name))?;
            let sum = counters.entry(key).or_default();
            per_cpu.iter().for_each(|cpu| sum.add(cpu));
        }
        let name = direction.places;
        let map = self.map(name);
        let map = PerCpuArray::<&MapData, Hits>::try_from(map).map_err(map_error(name))?;
        for per_cpu in map.iter() {
            let per_cpu = per_cpu.map_err(map_error(name))?;
            for hits in per_cpu.iter().filter(|hits| hits.counter.last_hit_ns != 0) {
                counters.entry(hits.key).or_default().add(&hits.counter);
            }
        }
        Ok(counters)
    }

    fn outcomes(&self) -> Result<HashMap<u32, Outcomes>, DatapathError> {
        let map = self.map(OUTCOMES);
        let map =
            PerCpuHashMap::<&MapData, u32, Outcomes>::try_from(map).map_err(map_error(OUTCOMES))?;
        let mut outcomes = HashMap::<u32, Outcomes>::new();
        for entry in map.iter() {
            let (rule, per_cpu) = entry.map_err(map_error(OUTCOMES))?;
            let sum = outcomes.entry(rule).or_default();
            per_cpu.iter().for_each(|cpu| sum.add(cpu));
        }
        Ok(outcomes)
    }

    /// Frees the places of some counters, and returns their counts.
    fn take_places(
        &mut self,
        name: &'static str,
        is_meant: impl Fn(&CounterKey) -> bool,
    ) -> Result<Vec<(CounterKey, Counter)>, DatapathError> {
        let mut map =
            PerCpuArray::<_, Hits>::try_from(self.map_mut(name)).map_err(map_error(name))?;
        let mut taken = Vec::new();
        for place in 0..Hits::PLACES {
            let mut per_cpu = map.get(&place, 0).map_err(map_error(name))?.to_vec();
            let before = taken.len();
            for hits in &mut per_cpu {
                if hits.counter.last_hit_ns != 0 && is_meant(&hits.key) {
                    taken.push((hits.key, hits.counter));
                    *hits = Hits::default();
                }
            }
            if taken.len() > before {
                // Other counters that share the place, on other CPUs, may lose the counts
                // of this moment.
                let per_cpu = PerCpuValues::try_from(per_cpu).expect("one for each CPU");
                map.set(place, per_cpu, 0).map_err(map_error(name))?;
            }
        }
        Ok(taken)
    }

    /// Keeps the counts of an interface that is gone, but no longer by its index: a host
    /// may see any number of interfaces.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn forget_interface(&mut self, index: u32) -> Result<(), DatapathError> {
        self.forget_interface_of(REQUESTS, index)?;
        self.forget_interface_of(REPLIES, index)
    }

    fn forget_interface_of(
        &mut self,
        direction: Direction,
        index: u32,
    ) -> Result<(), DatapathError> {
        let is_meant = |key: &CounterKey| key.ifindex == index;
        let mut sums = HashMap::<u32, Counter>::new();
        for (key, counter) in self.take_counters(direction, is_meant)? {
            sums.entry(key.rule).or_default().add(&counter);
        }
        let name = direction.more;
        let map = self.map_mut(name);
        let mut map =
            PerCpuHashMap::<_, CounterKey, Counter>::try_from(map).map_err(map_error(name))?;
        for (rule, sum) in sums {
            let key = CounterKey {
                ifindex: CounterKey::UNKNOWN_IFINDEX,
                rule,
            };
            let mut per_cpu: Vec<_> = match map.get(&key, 0) {
                Ok(per_cpu) => per_cpu.to_vec(),
                Err(_) => {
                    let cpus = nr_cpus().map_err(|(path, source)| DatapathError::Open {
                        path: path.to_owned(),
                        source,
                    })?;
                    vec![Counter::default(); cpus]
                }
            };
            per_cpu[0].add(&sum);
            let per_cpu = PerCpuValues::try_from(per_cpu).expect("one for each CPU");
            map.insert(key, per_cpu, 0).map_err(map_error(name))?;
        }
        Ok(())
    }

    /// Removes the counters of all rules but these, by their numbers: those of removed
    /// rules, and those that had the numbers of new ones before.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn keep_counters(&mut self, rules: &BTreeSet<u16>) -> Result<(), DatapathError> {
        let is_other = |rule: u32| !u16::try_from(rule).is_ok_and(|id| rules.contains(&id));
        self.take_counters(REQUESTS, |key| is_other(key.rule))?;
        let replies = self.take_counters(REPLIES, |key| is_other(key.rule))?;
        // The sum of all replies goes on.
        self.add_restored(replies.iter().map(|(_, counter)| counter.packets).sum())?;
        let map = self.map_mut(OUTCOMES);
        let mut map =
            PerCpuHashMap::<_, u32, Outcomes>::try_from(map).map_err(map_error(OUTCOMES))?;
        let gone: Vec<_> = map.keys().filter_map(Result::ok).collect();
        for rule in gone.into_iter().filter(|rule| is_other(*rule)) {
            map.remove(&rule).map_err(map_error(OUTCOMES))?;
        }
        Ok(())
    }

    /// Counts replies that belong to no rule any more.
    fn add_restored(&mut self, packets: u64) -> Result<(), DatapathError> {
        let restored = Reason::Restored as u32;
        let map = self.map_mut(REASONS);
        let mut map = PerCpuArray::<_, u64>::try_from(map).map_err(map_error(REASONS))?;
        if packets > 0 {
            let mut per_cpu = map.get(&restored, 0).map_err(map_error(REASONS))?.to_vec();
            per_cpu[0] += packets;
            let per_cpu = PerCpuValues::try_from(per_cpu).expect("one for each CPU");
            map.set(restored, per_cpu, 0).map_err(map_error(REASONS))?;
        }
        Ok(())
    }

    /// Removes counters, and returns their counts.
    fn take_counters(
        &mut self,
        direction: Direction,
        is_meant: impl Fn(&CounterKey) -> bool,
    ) -> Result<Vec<(CounterKey, Counter)>, DatapathError> {
        let mut taken = self.take_places(direction.places, &is_meant)?;
        let name = direction.more;
        let map = self.map_mut(name);
        let mut map =
            PerCpuHashMap::<_, CounterKey, Counter>::try_from(map).map_err(map_error(name))?;
        let keys: Vec<_> = map.keys().filter_map(Result::ok).collect();
        for key in keys.into_iter().filter(is_meant) {
            let per_cpu = map.get(&key, 0).map_err(map_error(name))?;
            taken.extend(per_cpu.iter().map(|counter| (key, *counter)));
            map.remove(&key).map_err(map_error(name))?;
        }
        Ok(taken)
    }

    /// The number of packets for each [`Reason`], in the order of reasons; replies count in
    /// [`Counters::replies`] instead.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn reasons(&self) -> Result<Vec<u64>, DatapathError> {
        let map = self.map(REASONS);
        let map = PerCpuArray::<&MapData, u64>::try_from(map).map_err(map_error(REASONS))?;
        map.iter()
            .map(|per_cpu| Ok(per_cpu?.iter().sum()))
            .collect::<Result<_, MapError>>()
            .map_err(map_error(REASONS))
    }
}
