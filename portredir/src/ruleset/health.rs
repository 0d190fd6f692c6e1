//! Health checks: which target is checked when, and what the results mean.
//!
//! This module sends nothing. The caller hands in the time and the results, and makes the
//! probes that are due; targets with the same probe share one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portredir_common::net::Port;

use super::services::Services;
use super::services::service::{Health, Service};

/// The question to a target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Check {
    /// The port accepts a TCP connection.
    Tcp,
    /// Nobody answers that the port, or the host, cannot be reached.
    Udp,
    /// The server answers a GET with a status of 2xx or 3xx.
    Http {
        /// The path, and what follows it.
        path: String,
    },
}

/// The times and numbers of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// The interval between the beginnings of two probes; up to a tenth of it is left out
    /// by chance, so that probes do not come in step.
    pub every: Duration,
    /// The longest time of a probe.
    pub timeout: Duration,
    /// The good results in a row after which a target that was down is up.
    pub rise: u32,
    /// The bad results in a row after which a target that was up is down.
    pub fall: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        }
    }
}

/// A probe: the question, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// The address; `None` is this host.
    pub host: Option<IpAddr>,
    /// The port.
    pub port: Port,
    /// The question.
    pub check: Check,
    /// The times and numbers.
    pub timing: Timing,
}

/// A target that is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The number of the target.
    pub number: u16,
    /// The probe that tells whether the target is up.
    pub probe: Probe,
    /// Whether the target is up as far as is known.
    pub is_up: bool,
}

/// The check of the targets of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCheck {
    /// The question.
    pub check: Check,
    /// The port that is asked, if it is another one than that of the target.
    pub port: Option<Port>,
    /// The times and numbers.
    pub timing: Timing,
}

/// The targets that are to be checked; `check` tells how those of a service are, if at all.
///
/// Drained targets are checked too. The target that is used only while no other one is up is
/// not: there is nothing to use in its place. Of a range the first port is asked.
#[must_use]
pub fn watched(services: &Services, check: impl Fn(&Service) -> Option<RuleCheck>) -> Vec<Watched> {
    let services = services.iter().filter(|service| !service.is_removed);
    let checked = services.filter_map(|service| Some((service, check(service)?)));
    let watched = checked.flat_map(|(service, check)| {
        let targets = service.targets.iter();
        targets.map(move |target| Watched {
            number: target.number,
            probe: Probe {
                host: target.endpoint.host,
                port: check.port.unwrap_or(target.endpoint.port),
                check: check.check.clone(),
                timing: check.timing,
            },
            is_up: target.is_up(),
        })
    });
    watched.collect()
}

/// A target has come up or gone down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetChanged {
    /// The number of the target.
    pub number: u16,
    /// The probe that told.
    pub probe: Probe,
    /// The last failure in a few words; `None` if the target is up.
    pub why: Option<String>,
}

impl TargetChanged {
    /// The result for [`Services::set_health`](super::services::Services::set_health).
    #[must_use]
    pub fn health(&self, since: Timestamp) -> Health {
        match self.why.clone() {
            Some(why) => Health::Down { since, why },
            None => Health::Up { since: Some(since) },
        }
    }
}

/// The count of results of one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tally {
    is_up: bool,
    /// The results in a row that say otherwise.
    against: u32,
    /// Whether there was no result yet.
    is_new: bool,
}

impl Tally {
    const fn new(is_up: bool) -> Self {
        Self {
            is_up,
            against: 0,
            is_new: true,
        }
    }

    /// Counts a result. Returns whether the target has come up or gone down. A good first
    /// result counts at once: nothing speaks against it.
    const fn count(&mut self, is_good: bool, timing: &Timing) -> bool {
        let needed = match (self.is_up, self.is_new) {
            (true, _) => timing.fall,
            (false, true) => 1,
            (false, false) => timing.rise,
        };
        self.is_new = false;
        self.against = if is_good == self.is_up {
            0
        } else {
            self.against + 1
        };
        let is_change = self.against > 0 && self.against >= needed;
        if is_change {
            self.is_up = is_good;
            self.against = 0;
        }
        is_change
    }
}

/// The times of a probe, and the targets that it is for.
#[derive(Debug)]
struct Schedule {
    due: Instant,
    is_running: bool,
    /// The last failure in a few words.
    why: Option<String>,
    /// The number of probes without an answer that still mean nothing, see [`doubtful`].
    doubt: u32,
    tallies: BTreeMap<u16, Tally>,
}

/// The number of probes after a failure whose silence means nothing: a host sends one ICMP
/// error a second (`icmp_ratelimit` of ip-sysctl.rst), so where probes come more often, most
/// of those to a closed port get no answer either.
fn doubtful(timing: &Timing) -> u32 {
    // Probes come up to a tenth early, and the host may be late.
    const QUIET: Duration = Duration::from_millis(1200);
    let least = timing.every.mul_f64(0.9).max(Duration::from_millis(1));
    u32::try_from(QUIET.as_millis() / least.as_millis()).unwrap_or(u32::MAX)
}

/// The answer to a probe that has not failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The server has answered.
    Some,
    /// Nobody has said anything, which is good enough where servers may be silent.
    None,
}

/// All probes, with the counts of their results.
#[derive(Debug)]
pub struct Monitor {
    probes: HashMap<Probe, Schedule>,
    chance: fastrand::Rng,
}

impl Monitor {
    /// A monitor without targets; `seed` decides what is left out of intervals.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            probes: HashMap::new(),
            chance: fastrand::Rng::with_seed(seed),
        }
    }

    /// Checks these targets from now on, and no others. Returns those that are known to be
    /// in another state than their caller believes. Counts go on for a target that keeps
    /// its probe; a new probe is due at once.
    pub fn watch(&mut self, targets: &[Watched], now: Instant) -> Vec<TargetChanged> {
        let mut before = std::mem::take(&mut self.probes);
        for target in targets {
            let known = before.get_mut(&target.probe);
            let tally = known.and_then(|known| known.tallies.remove(&target.number));
            let tally = tally.unwrap_or(Tally::new(target.is_up));
            let probe = self.probes.entry(target.probe.clone());
            let schedule = probe.or_insert_with(|| match before.get(&target.probe) {
                Some(known) => Schedule {
                    tallies: BTreeMap::new(),
                    why: known.why.clone(),
                    ..*known
                },
                None => Schedule {
                    due: now,
                    is_running: false,
                    why: None,
                    doubt: 0,
                    tallies: BTreeMap::new(),
                },
            });
            schedule.tallies.insert(target.number, tally);
        }
        let changed = targets.iter().filter_map(|target| {
            let schedule = &self.probes[&target.probe];
            let is_up = schedule.tallies[&target.number].is_up;
            (is_up != target.is_up).then(|| TargetChanged {
                number: target.number,
                probe: target.probe.clone(),
                why: schedule.why.clone().filter(|_| !is_up),
            })
        });
        changed.collect()
    }

    /// Makes the probes of some hosts due now. A probe that is running is made once more.
    pub fn hurry(&mut self, hosts: &BTreeSet<IpAddr>, now: Instant) {
        let is_hurried = |probe: &Probe| probe.host.is_some_and(|host| hosts.contains(&host));
        let probes = self.probes.iter_mut();
        for (_, schedule) in probes.filter(|(probe, _)| is_hurried(probe)) {
            schedule.due = schedule.due.min(now);
        }
    }

    /// The probes that are to be made now, those that wait longest first, and `most` at
    /// most. Each has to be followed by [`Self::finish`].
    pub fn begin(&mut self, now: Instant, most: usize) -> Vec<Probe> {
        let probes = self.probes.iter_mut();
        let mut due: Vec<_> = probes
            .filter(|(_, schedule)| !schedule.is_running && schedule.due <= now)
            .collect();
        due.sort_by_key(|(_, schedule)| schedule.due);
        due.truncate(most);
        let begun = due.into_iter().map(|(probe, schedule)| {
            let early = probe.timing.every.mul_f64(self.chance.f64() / 10.0);
            schedule.due = now + (probe.timing.every - early);
            schedule.is_running = true;
            probe.clone()
        });
        begun.collect()
    }

    /// The time at which the next probe is due, of those that are not running.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        let waiting = self.probes.values().filter(|schedule| !schedule.is_running);
        waiting.map(|schedule| schedule.due).min()
    }

    /// Counts the result of a probe: an answer, or a failure in a few words. Returns the
    /// targets that have come up or gone down.
    pub fn finish(&mut self, probe: &Probe, result: Result<Answer, String>) -> Vec<TargetChanged> {
        let Some(schedule) = self.probes.get_mut(probe) else {
            // Nobody asks any more.
            return Vec::new();
        };
        schedule.is_running = false;
        match result {
            Ok(Answer::None) if schedule.doubt > 0 => {
                schedule.doubt -= 1;
                return Vec::new();
            }
            Ok(_) => schedule.doubt = 0,
            Err(_) => schedule.doubt = doubtful(&probe.timing),
        }
        let is_good = result.is_ok();
        schedule.why = result.err();
        let why = &schedule.why;
        let tallies = schedule.tallies.iter_mut();
        let changed = tallies.filter_map(|(&number, tally)| {
            let is_change = tally.count(is_good, &probe.timing);
            is_change.then(|| TargetChanged {
                number,
                probe: probe.clone(),
                why: why.clone(),
            })
        });
        changed.collect()
    }
}

#[cfg(test)]
mod tests;
