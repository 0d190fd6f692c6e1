//! Reads and removes counters.

use std::collections::{BTreeSet, HashMap};

use aya::maps::{MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use portredir_common::map::counters::{Counter, CounterKey, Hits};

use super::Datapath;
use super::error::{DatapathError, map_error};

impl Datapath {
    /// The counters of all rules on all interfaces, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn counters(&self) -> Result<Vec<(CounterKey, Counter)>, DatapathError> {
        let name = "COUNTERS";
        let map = self.map(name);
        let map = PerCpuHashMap::<&MapData, CounterKey, Counter>::try_from(map)
            .map_err(map_error(name))?;
        let mut counters = HashMap::<CounterKey, Counter>::new();
        for entry in map.iter() {
            let (key, per_cpu) = entry.map_err(map_error(name))?;
            let sum = counters.entry(key).or_default();
            per_cpu.iter().for_each(|cpu| sum.add(cpu));
        }
        let name = "HITS";
        let map = self.map(name);
        let map = PerCpuArray::<&MapData, Hits>::try_from(map).map_err(map_error(name))?;
        for per_cpu in map.iter() {
            let per_cpu = per_cpu.map_err(map_error(name))?;
            for hits in per_cpu.iter().filter(|hits| hits.counter.last_hit_ns != 0) {
                counters.entry(hits.key).or_default().add(&hits.counter);
            }
        }
        Ok(counters.into_iter().collect())
    }

    /// Frees the places of some counters in `HITS`, and returns their counts.
    fn take_hits(
        &mut self,
        is_meant: impl Fn(&CounterKey) -> bool,
    ) -> Result<Vec<(CounterKey, Counter)>, DatapathError> {
        let name = "HITS";
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
        let is_meant = |key: &CounterKey| key.ifindex == index;
        let mut sums = HashMap::<u32, Counter>::new();
        for (key, counter) in self.take_counters(is_meant)? {
            sums.entry(key.rule).or_default().add(&counter);
        }
        let name = "COUNTERS";
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
        let is_other =
            |key: &CounterKey| !u16::try_from(key.rule).is_ok_and(|id| rules.contains(&id));
        self.take_counters(is_other).map(drop)
    }

    /// Removes counters, and returns their counts.
    fn take_counters(
        &mut self,
        is_meant: impl Fn(&CounterKey) -> bool,
    ) -> Result<Vec<(CounterKey, Counter)>, DatapathError> {
        let mut taken = self.take_hits(&is_meant)?;
        let name = "COUNTERS";
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

    /// The number of packets for each [`Reason`](portredir_common::verdict::Reason), in
    /// the order of reasons.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`].
    pub fn reasons(&self) -> Result<Vec<u64>, DatapathError> {
        let name = "REASONS";
        let map = self.map(name);
        let map = PerCpuArray::<&MapData, u64>::try_from(map).map_err(map_error(name))?;
        map.iter()
            .map(|per_cpu| Ok(per_cpu?.iter().sum()))
            .collect::<Result<_, MapError>>()
            .map_err(map_error(name))
    }
}
