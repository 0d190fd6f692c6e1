//! The state of the agent itself, for probes, metrics and conditions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The time after which the loop counts as stuck.
const STUCK: Duration = Duration::from_secs(60);

/// The time for which a failure of a watch counts, unless objects come again earlier. A
/// watch that goes on without news says nothing, and a broken one fails at least this often.
const RECENT: Duration = Duration::from_secs(90);

/// The state of the agent, shared by its tasks.
#[derive(Clone, Debug)]
pub struct Health {
    facts: Arc<Mutex<Facts>>,
    stale_after: Duration,
}

#[derive(Debug)]
struct Facts {
    /// When the loop was last alive.
    beat: Instant,
    /// Whether rules are in force.
    is_programmed: bool,
    /// When the API server last answered.
    contact: Instant,
    /// The last failure of each task, until it succeeds.
    failures: BTreeMap<&'static str, (Instant, String)>,
    passes: u64,
    failed_passes: u64,
    status_writes: u64,
    /// The numbers of rules by reason.
    reasons: BTreeMap<String, u64>,
}

/// The numbers for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// The passes over the whole state.
    pub passes: u64,
    /// The passes whose rules could not be applied.
    pub failed_passes: u64,
    /// The writes of the status of the node.
    pub status_writes: u64,
    /// The rules of the API by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Whether rules are in force.
    pub is_ready: bool,
    /// Whether something fails.
    pub is_degraded: bool,
}

impl Health {
    /// The state at the start. The node is not ready `stale_after` the last answer of the
    /// API server.
    #[must_use]
    pub fn new(stale_after: Duration) -> Self {
        let now = Instant::now();
        let facts = Facts {
            beat: now,
            is_programmed: false,
            contact: now,
            failures: BTreeMap::new(),
            passes: 0,
            failed_passes: 0,
            status_writes: 0,
            reasons: BTreeMap::new(),
        };
        Self {
            facts: Arc::new(Mutex::new(facts)),
            stale_after,
        }
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop is alive.
    pub fn beat(&self) {
        self.facts().beat = Instant::now();
    }

    /// The API server has answered.
    pub fn contact(&self) {
        self.facts().contact = Instant::now();
    }

    /// Rules are in force, with or without the API server.
    pub fn programmed(&self) {
        self.facts().is_programmed = true;
    }

    /// A pass is over, with these numbers of rules by reason.
    pub fn passed(&self, reasons: BTreeMap<String, u64>) {
        let mut facts = self.facts();
        facts.passes += 1;
        facts.reasons = reasons;
    }

    /// A pass could not apply its rules.
    pub fn pass_failed(&self) {
        self.facts().failed_passes += 1;
    }

    /// The status of the node was written.
    pub fn status_written(&self) {
        self.facts().status_writes += 1;
    }

    /// A task fails. The log has each failure once.
    pub fn failed(&self, task: &'static str, why: String) {
        let mut facts = self.facts();
        let before = facts.failures.get(task);
        if before.is_none_or(|(_, before)| *before != why) {
            log::warn!("{task}: {why}");
        }
        facts.failures.insert(task, (Instant::now(), why));
    }

    /// A task works.
    pub fn works(&self, task: &'static str) {
        self.facts().failures.remove(task);
    }

    /// Whether the loop is alive.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.facts().beat.elapsed() < STUCK
    }

    /// Whether rules are in force, and not older than they may be.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let facts = self.facts();
        facts.is_programmed && facts.contact.elapsed() < self.stale_after
    }

    /// How long the API server has been silent, if that is too long.
    #[must_use]
    pub fn silence(&self) -> Option<Duration> {
        let silence = self.facts().contact.elapsed();
        (silence >= self.stale_after).then_some(silence)
    }

    /// The failures of now, in sentences.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let facts = self.facts();
        let recent = facts.failures.iter();
        let recent = recent.filter(|(_, (since, _))| since.elapsed() < RECENT);
        recent
            .map(|(task, (_, why))| format!("{task}: {why}"))
            .collect()
    }

    /// The numbers for metrics.
    #[must_use]
    pub fn numbers(&self) -> Numbers {
        let (is_ready, is_degraded) = (self.is_ready(), !self.failures().is_empty());
        let facts = self.facts();
        Numbers {
            passes: facts.passes,
            failed_passes: facts.failed_passes,
            status_writes: facts.status_writes,
            reasons: facts.reasons.clone(),
            is_ready,
            is_degraded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_rules_in_force_and_an_api_that_is_not_stale() {
        let health = Health::new(Duration::from_secs(600));
        assert!(health.is_live() && !health.is_ready());
        health.programmed();
        assert!(health.is_ready());
        let stale = Health::new(Duration::ZERO);
        stale.programmed();
        assert!(!stale.is_ready());
        assert!(stale.silence().is_some() && health.silence().is_none());
    }

    #[test]
    fn a_failure_lasts_until_its_task_works() {
        let health = Health::new(Duration::from_secs(600));
        health.failed("watch Services", "forbidden".into());
        health.failed("watch Pods", "forbidden".into());
        health.works("watch Services");
        assert_eq!(health.failures(), ["watch Pods: forbidden"]);
        assert!(health.numbers().is_degraded);
        health.works("watch Pods");
        assert!(!health.numbers().is_degraded);
    }
}
