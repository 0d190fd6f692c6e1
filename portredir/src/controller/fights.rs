//! The back-off of repairs that somebody undoes again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The shared hooks, of the cgroup and of the network namespace, among interfaces by
/// index: no interface has this one.
pub(super) const SHARED: u32 = 0;

/// The pinned maps, among interfaces by index.
pub(super) const PINS: u32 = u32::MAX;

/// The repairs of each interface.
#[derive(Debug, Default)]
pub(super) struct Fights(BTreeMap<u32, Fight>);

/// The latest repairs of one interface.
#[derive(Debug, Default)]
struct Fight {
    /// The repairs of the last minute.
    repairs: Vec<Instant>,
    /// The time between repairs, once somebody fights them.
    wait: Duration,
}

impl Fights {
    /// Whether a repair may be made now.
    pub(super) fn is_due(&self, index: u32, now: Instant) -> bool {
        let fight = self.0.get(&index);
        fight.is_none_or(|fight| {
            fight
                .since_last(now)
                .is_none_or(|since| since >= fight.wait)
        })
    }

    /// Forgets interfaces that are gone.
    pub(super) fn retain(&mut self, exists: impl Fn(u32) -> bool) {
        self.0
            .retain(|&index, _| matches!(index, SHARED | PINS) || exists(index));
    }

    /// Counts a repair; returns the time to wait before the next one, if somebody undoes
    /// the repairs.
    pub(super) fn note(&mut self, index: u32, now: Instant) -> Option<Duration> {
        let fight = self.0.entry(index).or_default();
        fight.note(now)
    }
}

impl Fight {
    const WINDOW: Duration = Duration::from_secs(60);
    const MOST: usize = 3;
    const FIRST_WAIT: Duration = Duration::from_secs(10);
    const LONGEST_WAIT: Duration = Duration::from_secs(300);

    fn since_last(&self, now: Instant) -> Option<Duration> {
        let last = self.repairs.last()?;
        Some(now.saturating_duration_since(*last))
    }

    fn note(&mut self, now: Instant) -> Option<Duration> {
        let window = self.wait + Self::WINDOW;
        if self.since_last(now).is_some_and(|since| since > window) {
            *self = Self::default();
        }
        self.repairs
            .retain(|repair| now.saturating_duration_since(*repair) < window);
        self.repairs.push(now);
        if self.wait.is_zero() && self.repairs.len() < Self::MOST {
            return None;
        }
        self.wait = (self.wait * 2).clamp(Self::FIRST_WAIT, Self::LONGEST_WAIT);
        Some(self.wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fight_makes_repairs_rare() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut fights = Fights::default();
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..10 {
            while !fights.is_due(7, at(now)) {
                now += 1;
            }
            let wait = fights.note(7, at(now));
            waits.push(wait.map_or(0, |wait| wait.as_secs()));
            now += 1;
        }
        assert_eq!(waits, [0, 0, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert!(fights.is_due(8, at(now)), "another interface");
        // Peace.
        assert_eq!(fights.note(7, at(now + 400)), None);
        assert!(fights.is_due(7, at(now + 400)));
    }

    #[test]
    fn repairs_that_are_rare_are_no_fight() {
        let start = Instant::now();
        let mut fights = Fights::default();
        for number in 0..10 {
            let now = start + Duration::from_secs(number * 31);
            assert!(fights.is_due(7, now));
            assert_eq!(fights.note(7, now), None, "{number}");
        }
    }
}
