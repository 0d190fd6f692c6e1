//! Targets that come up and go down, that are drained, and that are forgotten.
//!
//! Slots and targets lie in maps, so all stays as it is when the process that checks ends.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use portredir_common::flow::FlowTable;
use portredir_common::net::Addr;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Controller;
use super::change::Turn;
use super::checker::Checker;
use super::commit::Next;
use super::error::ControllerError;
use super::event::{Event, OnEvent};
use super::ways::Watch;
use crate::loader::chain;
use crate::rule::Rule;
use crate::ruleset::forwarding;
use crate::ruleset::health::{TargetChanged, Watched, watched};
use crate::ruleset::services::endpoint::{Endpoint, Selector};
use crate::ruleset::services::service::Service;
use crate::state::State;
use crate::sys::lock::Lock;

/// The interval of the search for targets whose flows have ended.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The time after which a failed change is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The care of a process that stays for the targets of its rules.
pub struct Care {
    checker: Checker,
    /// The targets that the checker knows; none when it has to be told again.
    told: Option<Vec<Watched>>,
    has_failed: bool,
    sweep: Interval,
    ways: Watch,
}

/// Something that has to be done about targets.
pub enum Due {
    /// Targets have come up or gone down.
    Changed(Vec<TargetChanged>),
    /// Flows of targets may have ended.
    Sweep,
    /// Ways to targets may have changed.
    Ways,
}

impl Care {
    /// Starts the checks. Must be called inside a runtime.
    #[must_use]
    pub fn start() -> Self {
        let mut sweep = interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            checker: Checker::start(),
            told: None,
            has_failed: false,
            sweep,
            ways: Watch::default(),
        }
    }

    /// Waits until something has to be done.
    ///
    /// Nothing is lost when the wait is given up before its end.
    pub async fn due(&mut self) -> Due {
        tokio::select! {
            changes = self.checker.changed() => Due::Changed(changes),
            _ = self.sweep.tick() => Due::Sweep,
            () = self.ways.due() => Due::Ways,
        }
    }

    /// Checks the targets of the rules that are valid now, and follows the ways to them.
    pub fn follow(&mut self, controller: &Controller) {
        self.ways.follow(&controller.state.settings.rules);
        let watched = controller.watched();
        if self.told.as_ref() != Some(&watched) {
            self.checker.watch(watched.clone());
            self.told = Some(watched);
        }
    }

    /// Does what is due. A failure is reported, and the work is tried again.
    pub async fn attend(&mut self, due: Due, controller: &mut Controller, on_event: OnEvent<'_>) {
        let result = match due {
            Due::Changed(changes) => controller.note_health(&changes, on_event).await,
            Due::Sweep => {
                if std::mem::take(&mut self.has_failed) {
                    // The checker tells again what the rules do not know.
                    self.told = None;
                }
                self.ways.look_again();
                controller.sweep_targets(on_event).await
            }
            Due::Ways => {
                let changed = controller.follow_ways(&mut self.ways, on_event).await;
                self.checker.hurry(changed);
                Ok(())
            }
        };
        if let Err(error) = result {
            log::warn!("{}", chain(&error));
            self.has_failed = true;
            self.sweep.reset_after(RETRY);
        }
    }
}

impl Controller {
    /// The targets of the rules that have a check.
    fn watched(&self) -> Vec<Watched> {
        if !self.has_services() {
            return Vec::new();
        }
        watched(&self.state.services, |service| {
            forwarding::check(self.rule_of(service)?)
        })
    }

    /// The rule of a service that no removed rule has.
    pub(super) fn rule_of(&self, service: &Service) -> Option<&Rule> {
        let ids = &self.state.ids;
        let place = ids.iter().position(|id| *id == service.rule)?;
        self.state.settings.rules.get(place)
    }

    /// The lock, unless this process holds it all the time.
    pub(super) async fn lock(&self) -> Result<Option<Lock>, ControllerError> {
        match self.pins {
            Some(_) => Ok(Some(Lock::wait().await?)),
            None => Ok(None),
        }
    }

    /// Makes what the checks have found valid: new flows begin elsewhere, or with a target
    /// again.
    async fn note_health(
        &mut self,
        changes: &[TargetChanged],
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        let _lock = self.lock().await?;
        self.reread()?;
        let now = Timestamp::now();
        let known = self.watched();
        let mut services = self.state.services.clone();
        let mut slots = self.datapath.slots()?;
        let mut turned = Vec::new();
        for change in changes {
            // A number may have gone to another target meanwhile.
            let is_news = known.iter().any(|target| {
                target.number == change.number
                    && target.probe == change.probe
                    && target.is_up == change.why.is_some()
            });
            if is_news && services.set_health(change.number, &change.health(now), &mut slots) {
                turned.push(change);
            }
        }
        if turned.is_empty() || self.state.is_ending {
            return Ok(());
        }
        let snapshot = self.netlink.snapshot().await?;
        let state = State {
            services,
            ..self.state.clone()
        };
        let slots = Some(slots);
        self.install(&snapshot, Next { state, slots }, on_event)?;
        self.end_flows(on_event)?;
        for change in turned {
            self.tell_turned(change, on_event);
        }
        Ok(())
    }

    fn tell_turned(&self, change: &TargetChanged, on_event: OnEvent<'_>) {
        let Some((service, target)) = self.state.services.target(change.number) else {
            return;
        };
        if let Some(rule) = self.rule_of(service) {
            on_event(Event::TargetTurned {
                target: target.endpoint.to_string(),
                rule: Box::new(rule.clone()),
                why: change.why.clone(),
            });
        }
    }

    /// Removes the flows of targets that are down: all of UDP, and those of TCP where the
    /// rule says `cut`. So nothing flips back when a target comes up.
    pub(super) fn end_flows(&mut self, on_event: OnEvent<'_>) -> Result<(), ControllerError> {
        let services = || self.state.services.iter();
        let dead = |service: &'_ Service| {
            let targets = service.all_targets();
            let dead = targets.filter(|target| !target.is_up());
            dead.map(|target| target.number).collect::<Vec<_>>()
        };
        let all: HashSet<_> = services().flat_map(dead).collect();
        if all.is_empty() {
            return Ok(());
        }
        let cut: HashMap<_, _> = services()
            .filter(|service| service.cut)
            .flat_map(Service::all_targets)
            .filter(|target| !target.is_up())
            .map(|target| (target.number, target.endpoint))
            .collect();
        let forwards = self.datapath.forwards()?;
        forwards.remove(|table, own, entry| {
            let target = entry.flow().target;
            let is_ours = own != 0 && !entry.is_by_rule();
            is_ours
                && match table {
                    FlowTable::Udp | FlowTable::Syn => all.contains(&target),
                    FlowTable::Tcp => cut.contains_key(&target),
                }
        });
        if !cut.is_empty() {
            self.end_sockets(&cut, on_event);
        }
        Ok(())
    }

    /// Ends the sockets of this host that are connected to these targets by a rule. A failure
    /// is told once.
    fn end_sockets(&mut self, dead: &HashMap<u16, Endpoint>, on_event: OnEvent<'_>) {
        // A number may have gone to another target since the socket connected.
        let ended = self.datapath.end_sockets(|peer| {
            dead.get(&peer.target).is_some_and(|endpoint| {
                let addr = endpoint.host.map_or(peer.dialled, Addr::from);
                let is_port = endpoint.range.is_some() || endpoint.port == peer.port;
                addr == peer.addr && is_port
            })
        });
        match ended {
            Ok(0) => {}
            Ok(sockets) => on_event(Event::SocketsEnded { sockets }),
            Err(error) if !self.told_sockets => {
                self.told_sockets = true;
                on_event(Event::SocketsStay(error));
            }
            Err(error) => log::debug!("{}", chain(&error)),
        }
    }

    /// Forgets targets without flows, and removed rules whose flows have ended.
    async fn sweep_targets(&mut self, on_event: OnEvent<'_>) -> Result<(), ControllerError> {
        if !self.has_services() {
            return Ok(());
        }
        if self.pins.is_some() && !self.watched().is_empty() {
            self.datapath.set_checked_at(Timestamp::now())?;
        }
        self.end_flows(on_event)?;
        if self.swept()?.is_none() {
            return Ok(());
        }
        let _lock = self.lock().await?;
        self.reread()?;
        // Flows may have begun until the lock was there.
        let Some(next) = self.swept()? else {
            return Ok(());
        };
        let snapshot = self.netlink.snapshot().await?;
        self.install(&snapshot, next, on_event)
    }

    /// The state without what has no flows any more; none where that is the present one.
    fn swept(&self) -> Result<Option<Next>, ControllerError> {
        if self.state.is_ending {
            return Ok(None);
        }
        let flows = self.flows_of_targets()?;
        let mut leaving = self.state.leaving.clone();
        leaving.retain(|(_, rule)| {
            let services = &self.state.services;
            forwarding::has_target(services, rule, |number| flows.contains(&number))
        });
        let state = State {
            leaving,
            ..self.state.clone()
        };
        let next = self.with_services(state, &flows)?;
        let is_other = next.state != self.state
            || match &next.slots {
                Some(slots) => *slots != self.datapath.slots()?,
                None => false,
            };
        Ok(is_other.then_some(next))
    }

    /// The state in which targets are drained, or are so no more.
    pub(super) fn turned(&self, which: &Selector, turn: Turn) -> Result<Next, ControllerError> {
        let mut services = self.state.services.clone();
        let mut slots = self.datapath.slots()?;
        match turn {
            Turn::Drain => services.drain(which, Timestamp::now(), &mut slots),
            Turn::Undrain => services.undrain(which, &mut slots),
        };
        services.settle(&mut slots);
        let state = State {
            services,
            ..self.state.clone()
        };
        let slots = Some(slots);
        Ok(Next { state, slots })
    }
}
