//! Repairs what others detached, with a back-off where somebody detaches it again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Controller;
use super::attach::Lost;
use super::error::ControllerError;
use super::event::{DetachReason, Event, OnEvent};
use crate::loader::chain;
use crate::loader::pinned::{self, Found};
use crate::observe::attached::{HookReport, HookState, Interface};
use crate::plan::Plan;
use crate::sys::lock::Lock;

/// The shared hooks, of the cgroup and of the network namespace, among interfaces by
/// index: no interface has this one.
const SHARED: u32 = 0;

/// The pinned maps, among interfaces by index.
const PINS: u32 = u32::MAX;

/// Something that has to be attached again.
struct Broken {
    /// The index of the interface, or [`SHARED`].
    index: u32,
    /// The interface, or the name of the shared hook.
    name: String,
    /// The hooks, in words.
    hooks: Vec<String>,
    state: HookState,
}

impl Broken {
    fn of(interface: &Interface) -> Vec<Self> {
        let name = &interface.report.name;
        let broken = interface.hooks.iter().filter(|hook| hook.state.is_fault());
        let (shared, own): (Vec<_>, Vec<_>) = broken.partition(|hook| hook.is_shared());
        let broken = |index, name: &str, hooks: Vec<&HookReport>| {
            let state = hooks.iter().map(|hook| hook.state).max()?;
            let hooks = hooks.iter().map(ToString::to_string).collect();
            let name = name.to_owned();
            Some(Self {
                index,
                name,
                hooks,
                state,
            })
        };
        let lost = interface.error.as_ref().map(|error| Self {
            index: interface.report.ifindex,
            name: name.clone(),
            hooks: vec![error.clone()],
            state: HookState::Missing,
        });
        let own = broken(interface.report.ifindex, name, own);
        let shared = broken(SHARED, "all interfaces", shared);
        [lost, own, shared].into_iter().flatten().collect()
    }
}

impl Controller {
    /// The broken hooks that may be repaired now, by interface.
    fn broken(&self, now: Instant) -> BTreeMap<u32, Broken> {
        let interfaces = self.inspect();
        let broken = interfaces.iter().flat_map(Broken::of);
        broken
            .filter(|broken| self.fights.is_due(broken.index, now))
            .map(|broken| (broken.index, broken))
            .collect()
    }

    /// Attaches again what others have detached, and pins again what others have removed.
    /// Nothing is done while another command works. Returns the time that the kernel took
    /// to answer what is attached.
    pub async fn mend(&mut self, on_event: OnEvent<'_>) -> Duration {
        let now = Instant::now();
        let has_pins = self.pins.as_ref().is_none_or(pinned::has_maps);
        let is_whole = has_pins && self.broken(now).is_empty();
        let inspection = now.elapsed();
        if !is_whole && let Err(error) = self.try_mend(now, on_event).await {
            log::warn!("{}", chain(&error));
        }
        inspection
    }

    async fn try_mend(
        &mut self,
        now: Instant,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        let Some(pins) = self.pins.clone() else {
            // The process in the foreground holds the lock.
            return self.repair(now, on_event).await;
        };
        let Ok(_lock) = Lock::take() else {
            return Ok(());
        };
        if !matches!(pinned::find(&pins), Ok(Found::Live(_))) || !pinned::has_maps(&pins) {
            if !self.fights.is_due(PINS, now) {
                return Ok(());
            }
            if self.datapath.held_state(&pins)?.is_ending {
                return Err(ControllerError::NotRunning);
            }
            self.datapath.pin_again(&pins)?;
            on_event(Event::PinnedAgain(pins.dir().display().to_string()));
            self.note_repair(PINS, "the pins", on_event);
        }
        self.reread()?;
        self.repair(now, on_event).await
    }

    async fn repair(&mut self, now: Instant, on_event: OnEvent<'_>) -> Result<(), ControllerError> {
        let broken = self.broken(now);
        if broken.is_empty() {
            return Ok(());
        }
        let snapshot = self.netlink.snapshot().await?;
        let settings = self.state.settings.clone();
        let mut view = self.view_of(snapshot);
        for broken in broken.values() {
            if broken.state == HookState::Replaced {
                // The XDP program there is none of ours any more.
                view.attached.remove(&broken.index);
            }
        }
        let plan = view.plan(&settings);
        self.lost.retain(|index, _| plan.attach.contains_key(index));
        self.fights.retain(|index| plan.attach.contains_key(&index));
        for (index, broken) in broken {
            if index != SHARED && !plan.attach.contains_key(&index) {
                continue;
            }
            match self.repair_one(&broken, &plan).await {
                Ok(()) => on_event(Event::Repaired {
                    interface: broken.name.clone(),
                    hooks: broken.hooks,
                }),
                Err(error) => {
                    let error = chain(&error);
                    if self.told_failures.insert(error.clone()) {
                        on_event(Event::AttachFailed(error));
                    }
                }
            }
            self.note_repair(index, &broken.name, on_event);
        }
        Ok(())
    }

    async fn repair_one(&mut self, broken: &Broken, plan: &Plan) -> Result<(), ControllerError> {
        if broken.index == SHARED {
            return Ok(self.datapath.renew_shared()?);
        }
        let planned = &plan.attach[&broken.index];
        self.detach(broken.index, DetachReason::Stopped, &mut |_| {})
            .await;
        match self.attach(planned, plan.choice, &mut |_| {}).await {
            Ok(_) => {
                self.lost.remove(&broken.index);
                Ok(())
            }
            Err(error) => {
                self.lost.insert(broken.index, Lost::new(planned, &error));
                Err(error)
            }
        }
    }

    /// Counts a repair, and tells of a fight.
    fn note_repair(&mut self, index: u32, name: &str, on_event: OnEvent<'_>) {
        if let Some(wait) = self.fights.note(index, Instant::now()) {
            on_event(Event::Fought {
                interface: name.to_owned(),
                wait,
            });
        }
    }
}

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
    fn is_due(&self, index: u32, now: Instant) -> bool {
        let fight = self.0.get(&index);
        fight.is_none_or(|fight| {
            fight
                .since_last(now)
                .is_none_or(|since| since >= fight.wait)
        })
    }

    /// Forgets interfaces that are gone.
    fn retain(&mut self, exists: impl Fn(u32) -> bool) {
        self.0
            .retain(|&index, _| matches!(index, SHARED | PINS) || exists(index));
    }

    /// Counts a repair; returns the time to wait before the next one, if somebody undoes
    /// the repairs.
    fn note(&mut self, index: u32, now: Instant) -> Option<Duration> {
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
