//! Targets that go down and come up, that are drained, and that have ended.

use jiff::Timestamp;
use portredir_common::map::targets::Slot;

use super::endpoint::Selector;
use super::service::{Health, Target};
use super::{Services, settle};

impl Services {
    /// Records the result of the health checks of a target. Returns whether there is such
    /// a target, and it has come up or gone down.
    pub fn set_health(&mut self, number: u16, health: &Health, slots: &mut [Slot]) -> bool {
        let changed = self.update(slots, |target| {
            let is_news = target.number == number && target.is_up() != health.is_up();
            if is_news {
                target.health = health.clone();
            }
            is_news
        });
        !changed.is_empty()
    }

    /// Marks the targets that no rule has any more as down: whoever removed them knows that
    /// they have ended. So their UDP flows go elsewhere with their next packet. Where a rule
    /// cuts the connections of what is down, its targets stay as they are.
    pub fn end_removed(&mut self, since: Timestamp) {
        for service in self.0.iter_mut().filter(|service| !service.cut) {
            let is_removed = service.is_removed;
            let targets = service.targets.iter_mut();
            let targets = targets.filter(|target| is_removed || target.weight == 0);
            let ended = targets.chain(&mut service.removed);
            for target in ended.filter(|target| target.is_up()) {
                let why = "removed".to_owned();
                target.health = Health::Down { since, why };
            }
        }
    }

    /// Drains targets: their flows stay, and new ones begin elsewhere. Returns the numbers
    /// of the targets that were not drained before.
    pub fn drain(&mut self, which: &Selector, since: Timestamp, slots: &mut [Slot]) -> Vec<u16> {
        self.update(slots, |target| {
            let is_news = which.matches(&target.endpoint) && target.drained.is_none();
            if is_news {
                target.drained = Some(since);
            }
            is_news
        })
    }

    /// Lets new flows begin with targets that were drained. Returns their numbers.
    pub fn undrain(&mut self, which: &Selector, slots: &mut [Slot]) -> Vec<u16> {
        self.update(slots, |target| {
            which.matches(&target.endpoint) && target.drained.take().is_some()
        })
    }

    /// Changes the targets that rules name, and turns the slots of services in which a
    /// target has changed.
    fn update(
        &mut self,
        slots: &mut [Slot],
        mut change: impl FnMut(&mut Target) -> bool,
    ) -> Vec<u16> {
        let mut all = Vec::new();
        for service in self.0.iter_mut().filter(|service| !service.is_removed) {
            let targets = service.wanted_targets_mut();
            let changed = targets.filter_map(|target| change(target).then_some(target.number));
            let changed: Vec<_> = changed.collect();
            if !changed.is_empty() {
                settle(service, &mut slots[service.region()]);
            }
            all.extend(changed);
        }
        all
    }
}
