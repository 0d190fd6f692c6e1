//! Repairs what others detached, with a back-off where somebody detaches it again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Controller;
use super::attach::lost;
use super::error::ControllerError;
use super::event::{DetachReason, Event, OnEvent};
use super::fights::{PINS, SHARED};
use crate::config::engine::EngineChoice;
use crate::loader::chain;
use crate::loader::pinned::{self, Found};
use crate::observe::attached::{HookReport, HookState, Interface};
use crate::plan::Plan;
use crate::sys::lock::Lock;

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

/// Whether a program of others is at XDP, and no other engine may be used instead: then
/// only that program can go.
fn is_taken(interface: &Interface, choice: EngineChoice) -> bool {
    let is_replaced = |hook: &HookReport| hook.state == HookState::Replaced && hook.hook == "xdp";
    choice != EngineChoice::Auto && interface.hooks.iter().any(is_replaced)
}

impl Controller {
    /// The broken hooks that may be repaired now, by interface.
    fn broken(&self, now: Instant) -> BTreeMap<u32, Broken> {
        let interfaces = self.inspect();
        let choice = self.state.settings.engine;
        let broken = interfaces.iter().filter(|it| !is_taken(it, choice));
        broken
            .flat_map(Broken::of)
            .filter(|broken| self.fights.is_due(broken.index, now))
            .map(|broken| (broken.index, broken))
            .collect()
    }

    /// Attaches again what others have detached, and pins again what others have removed.
    /// Nothing is done while another command works. Returns the time that the kernel took
    /// to answer what is attached; `None` where the redirect has ended.
    pub async fn mend(&mut self, on_event: OnEvent<'_>) -> Option<Duration> {
        self.follow_metrics(on_event);
        let now = Instant::now();
        let has_pins = self.pins.as_ref().is_none_or(pinned::has_maps);
        let is_whole = has_pins && self.broken(now).is_empty();
        let inspection = now.elapsed();
        if !is_whole && let Err(error) = self.try_mend(now, on_event).await {
            log::warn!("{}", chain(&error));
        }
        (has_pins || !self.has_ended()).then_some(inspection)
    }

    /// Whether `down` has ended the redirect that this process watches. It does not see a
    /// watcher that has opened the maps and does not listen yet.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let Some(pins) = self.pins.as_ref().filter(|pins| !pinned::has_maps(pins)) else {
            return false;
        };
        let state = self.datapath.held_state(pins);
        state.is_ok_and(|state| state.is_ending)
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
            if self.has_ended() {
                return Ok(());
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
                // The interface may be about to go; nobody fights for it.
                let _ = self.fights.note(index, now);
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
                self.lost.insert(broken.index, lost(planned, &error));
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
