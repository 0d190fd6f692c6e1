//! The programs once more, with maps of their own: a packet is tried on them, and the
//! redirect that runs does not notice. Rules and addresses are copies of those in force;
//! flow tables are empty, so each packet is the first one of its flow.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap as BpfHashMap, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp, loaded_programs};
use portredir_common::flow::FlowKey;
use portredir_common::map::counters::{CounterKey, Hits};
use portredir_common::map::hash::Seed;
use portredir_common::map::packet_path::TRACED;
use portredir_common::map::rules::{Candidates, SourceKey};
use portredir_common::net::LOOPBACK_IFINDEX;
use portredir_common::verdict::{Reason, Verdict};

use super::error::{DatapathError, map_error};
use super::flows::Flows;
use super::forward::Forwards;
use super::live::RuleCopy;
use super::rules::fill_hash;
use super::{Datapath, Options, Sizes, program};
use crate::host::snapshot::LocalAddrs;

/// Room for the one flow of a packet.
const SIZES: Sizes = Sizes {
    tcp_flows: 64,
    udp_flows: 64,
};

/// The bytes that the kernel takes for an Ethernet header, before the header that a program
/// finds by the offset of the network header.
const OUTER_LEN: usize = 14;

/// The programs with maps of their own.
#[derive(Debug)]
pub struct Trial {
    datapath: Datapath,
    flows: Flows,
    forwards: Forwards,
    seed: Seed,
    reasons: Vec<u64>,
}

/// A packet, and the program and interface that it comes to.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// The name of the program.
    pub program: &'a str,
    /// The ifindex of the interface.
    pub ifindex: u32,
    /// The packet, from the header on that frames of the interface begin with.
    pub frame: &'a [u8],
    /// The number of the rule that is expected to match.
    pub rule: Option<u16>,
}

/// The packet that a program has left.
#[derive(Clone, Debug)]
pub struct Departure {
    /// The verdict of the program.
    pub verdict: Verdict,
    /// The reason that the program counted.
    pub reason: Reason,
    /// The number of the rule that counted the packet.
    pub rule: Option<u16>,
    /// The packet as it goes on.
    pub frame: Vec<u8>,
}

impl Trial {
    /// Loads the object; each program is loaded when a packet comes to it. The hashes have the
    /// seed of the redirect that runs, so a client has the same target.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn load(seed: Seed) -> Result<Self, DatapathError> {
        let options = Options {
            seed: Some(seed),
            ..SIZES.into()
        };
        let datapath = Datapath::load(options, None)?;
        Ok(Self {
            reasons: datapath.reasons()?,
            flows: datapath.flows()?,
            forwards: datapath.forwards()?,
            seed,
            datapath,
        })
    }

    /// Whether the hashes of the programs have this seed.
    #[must_use]
    pub fn has_seed(&self, seed: &Seed) -> bool {
        self.seed == *seed
    }

    /// Replaces rules, targets and addresses.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`], [`DatapathError::Memory`].
    pub fn fill(&mut self, rules: &RuleCopy) -> Result<(), DatapathError> {
        let hot = &self.datapath.hot[0];
        let ports = hot.ports.as_flattened().iter();
        for (word, value) in ports.zip(rules.ports.as_flattened()) {
            word.store(*value, Relaxed);
        }
        let addrs = rules.local.iter();
        self.datapath.set_local(&LocalAddrs {
            addrs: addrs.map(|(addr, reach)| (addr.octets(), *reach)).collect(),
            networks: rules.networks.clone(),
        })?;
        let hot = &self.datapath.hot[0];
        let slots = hot.local_addrs.as_flattened().iter();
        for (word, value) in slots.zip(rules.local_addrs.as_flattened()) {
            word.store(*value, Relaxed);
        }
        self.datapath.copy_forward(&rules.forward)?;
        self.replace("OLD", &rules.old)?;
        self.replace("ADDRS", &rules.addrs)?;
        self.replace("IFACES", &rules.ifaces)?;
        let name = "SOURCES";
        let map = self.datapath.map_mut(name);
        let mut map =
            LpmTrie::<_, SourceKey, Candidates>::try_from(map).map_err(map_error(name))?;
        let keys: Vec<_> = map.keys().filter_map(Result::ok).collect();
        for key in &keys {
            map.remove(key).map_err(map_error(name))?;
        }
        for ((prefix, key), candidates) in &rules.sources {
            let key = Key::new(*prefix, *key);
            map.insert(&key, candidates, 0).map_err(map_error(name))?;
        }
        let generation = &self.datapath.hot[0].generation;
        // Nobody traces what is tried here.
        generation.store(rules.generation & !TRACED, Relaxed);
        Ok(())
    }

    fn replace<K, V>(
        &mut self,
        name: &'static str,
        entries: &HashMap<K, V>,
    ) -> Result<(), DatapathError>
    where
        K: aya::Pod + Eq + std::hash::Hash,
        V: aya::Pod,
    {
        let is_gone = |key: &K| !entries.contains_key(key);
        let entries = entries.iter().map(|(key, value)| (*key, *value));
        fill_hash(self.datapath.map_mut(name), is_gone, entries).map_err(map_error(name))
    }

    /// Runs a program on a packet.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`] when the kernel does not run it, [`DatapathError::Map`].
    pub fn run(&mut self, arrival: &Arrival<'_>) -> Result<Departure, DatapathError> {
        let name = program::known(arrival.program)
            .ok_or_else(|| DatapathError::Unknown(arrival.program.to_owned()))?;
        self.forget()?;
        let before = self.hits(arrival)?;
        let outer: &[u8] = if program::is_outer(name) {
            // The begin of an IP header.
            &[0x45; OUTER_LEN]
        } else {
            &[]
        };
        let packet = [outer, arrival.frame].concat();
        let mut out = vec![0; packet.len() + 64];
        let ctx = context(name, arrival.ifindex, packet.len());
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut out),
            ctx_in: ctx.as_deref(),
            ..TestRunOptions::new()
        };
        let result = if program::is_xdp(name) {
            self.datapath.program::<Xdp>(name)?.test_run(options)
        } else {
            let program = self.datapath.program::<SchedClassifier>(name)?;
            program.test_run(options)
        };
        let result = result.map_err(|source| DatapathError::Program { name, source })?;
        out.truncate(usize::try_from(result.data_size_out).unwrap_or(usize::MAX));
        let is_counted = self.hits(arrival)? > before;
        let counted = self.counted()?;
        Ok(Departure {
            verdict: verdict(name, result.return_value)?,
            reason: counted.unwrap_or(if is_counted {
                Reason::Redirected
            } else {
                Reason::NoRule
            }),
            rule: arrival.rule.filter(|_| is_counted),
            frame: out.split_off(outer.len().min(out.len())),
        })
    }

    /// Whether one of the programs with these IDs has the same instructions as the copy of a
    /// program; `None` when the kernel does not tell.
    #[must_use]
    pub fn is_copy(&mut self, program: &str, ids: &[u32]) -> Option<bool> {
        let name = program::known(program)?;
        self.datapath.program_fd(name).ok()?;
        let copy = self.datapath.object().ok()?.program(name)?;
        let own = copy.info().ok()?.tag();
        let mut others = loaded_programs().filter_map(Result::ok);
        Some(others.any(|info| ids.contains(&info.id()) && info.tag() == own))
    }

    /// Forgets the flow of the packet before.
    fn forget(&mut self) -> Result<(), DatapathError> {
        self.flows.clear();
        self.forwards.remove(|_, _, _| true);
        for name in ["REMAP", "GIVEN", "REMAP_TCP", "GIVEN_TCP"] {
            let map = self.datapath.map_mut(name);
            let mut map =
                BpfHashMap::<_, FlowKey, [u8; 2]>::try_from(map).map_err(map_error(name))?;
            let keys: Vec<_> = map.keys().filter_map(Result::ok).collect();
            for key in keys {
                map.remove(&key).map_err(map_error(name))?;
            }
        }
        Ok(())
    }

    /// The number of packets that the expected rule has counted.
    fn hits(&self, arrival: &Arrival<'_>) -> Result<u64, DatapathError> {
        let Some(rule) = arrival.rule else {
            return Ok(0);
        };
        let key = CounterKey {
            ifindex: arrival.ifindex,
            rule: rule.into(),
        };
        let name = "HITS";
        let map = PerCpuArray::<_, Hits>::try_from(self.datapath.map(name));
        let per_cpu = map.and_then(|map| map.get(&key.place(), 0));
        let per_cpu = per_cpu.map_err(map_error(name))?;
        let own = per_cpu.iter().filter(|hits| hits.key == key);
        let counted = own.map(|hits| hits.counter.packets).sum();
        Ok(counted)
    }

    /// The reason that was counted since the last packet.
    fn counted(&mut self) -> Result<Option<Reason>, DatapathError> {
        let now = self.datapath.reasons()?;
        let both = self.reasons.iter().zip(&now);
        let new = both
            .zip(Reason::ALL)
            .find(|((before, now), _)| before < now);
        let reason = new.map(|(_, reason)| *reason);
        self.reasons = now;
        Ok(reason)
    }
}

/// The context that says which interface the packet came in on; a run without one is on
/// `lo`. Offsets are those of `struct xdp_md` and `struct __sk_buff`
/// (include/uapi/linux/bpf.h).
fn context(name: &str, ifindex: u32, len: usize) -> Option<Vec<u8>> {
    const XDP_LEN: usize = 24;
    const XDP_DATA_END: Range<usize> = 4..8;
    const XDP_IFINDEX: Range<usize> = 12..16;
    const SKB_LEN: usize = 192;
    const SKB_IFINDEX: Range<usize> = 40..44;
    if ifindex == LOOPBACK_IFINDEX {
        return None;
    }
    if program::is_xdp(name) {
        let mut ctx = vec![0; XDP_LEN];
        let len = u32::try_from(len).ok()?;
        ctx[XDP_DATA_END].copy_from_slice(&len.to_ne_bytes());
        ctx[XDP_IFINDEX].copy_from_slice(&ifindex.to_ne_bytes());
        Some(ctx)
    } else {
        let mut ctx = vec![0; SKB_LEN];
        ctx[SKB_IFINDEX].copy_from_slice(&ifindex.to_ne_bytes());
        Some(ctx)
    }
}

/// The verdict of an action: `XDP_DROP` and `XDP_PASS`, or `TCX_DROP` and `TCX_NEXT`.
fn verdict(name: &'static str, action: u32) -> Result<Verdict, DatapathError> {
    match (program::is_xdp(name), action) {
        (true, 1) | (false, 2) => Ok(Verdict::Drop),
        (true, 2) | (false, u32::MAX) => Ok(Verdict::Pass),
        _ => Err(DatapathError::Action { name, action }),
    }
}
