//! The ways to targets with an address, followed while a redirect runs: routes, links and
//! neighbours that change, and interfaces that have to forward.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Controller;
use super::change::HostView;
use super::error::{ChangeError, ControllerError};
use super::event::{Event, News, OnEvent};
use crate::config::settings::Settings;
use crate::host::forwarding::{Forwarding, Saved};
use crate::host::way::{Facts, Neighbour};
use crate::host::way_changes::WayChanges;
use crate::loader::chain;
use crate::plan::way::WayRequest;
use crate::plan::way::present::{Forwarder, PresentWay, forwarders};
use crate::rule::{Forward, Rule};

/// The time between looks at ways, as a multiple of the time that a look takes.
const REST: u32 = 10;

/// The longest time between a change and the look at it.
const LONGEST: Duration = Duration::from_secs(5);

/// The ways to the targets of a redirect, as they were last seen.
#[derive(Default)]
pub(super) struct Watch {
    /// The notifications; none while no rule has a target with an address.
    changes: Option<WayChanges>,
    /// The addresses that are followed.
    targets: BTreeSet<IpAddr>,
    seen: BTreeMap<IpAddr, PresentWay>,
    /// The interfaces that had to forward at the last look. What somebody switches off
    /// afterwards stays off.
    forwarders: Option<BTreeSet<Forwarder>>,
    /// The time of the next look that need not wait for a change; none where all is known.
    look_at: Option<Instant>,
    /// The time before which no look is made.
    rest_until: Option<Instant>,
    told_failure: Option<String>,
}

impl Watch {
    /// Follows the ways to the targets of these rules from now on, and to no others.
    pub(super) fn follow(&mut self, rules: &[Rule]) {
        let targets = addresses(rules);
        if targets == self.targets {
            return;
        }
        self.targets = targets;
        if self.targets.is_empty() {
            *self = Self::default();
            return;
        }
        self.look_at = Some(Instant::now());
        if self.changes.is_none() {
            self.changes = WayChanges::open()
                .map_err(|error| log::warn!("cannot follow routes: {}", chain(&error)))
                .ok();
        }
    }

    /// Waits until it is time to look at the ways again.
    ///
    /// Nothing is lost when the wait is given up before its end.
    pub(super) async fn due(&mut self) {
        if self.look_at.is_none() {
            match &mut self.changes {
                Some(changes) => changes.changed().await,
                None => std::future::pending().await,
            }
            self.look_at = Some(Instant::now());
        }
        let rest_until = self.rest_until.unwrap_or_else(Instant::now);
        sleep_until(self.look_at.unwrap_or(rest_until).max(rest_until)).await;
    }

    /// Looks at the ways when nothing has changed as far as is known, for what makes no
    /// message.
    pub(super) fn look_again(&mut self) {
        if !self.targets.is_empty() {
            self.look_at = Some(Instant::now());
        }
    }

    /// Notes the present ways. Returns the news about ways that were known before.
    fn note(&mut self, ways: &[PresentWay]) -> Vec<(IpAddr, News)> {
        let mut news = Vec::new();
        let mut seen = BTreeMap::new();
        for mut way in ways.iter().cloned() {
            let addr = way.target.addr;
            if seen.contains_key(&addr) {
                continue;
            }
            if let Some(before) = self.seen.get(&addr) {
                keep_failure(&mut way, before);
                news.extend(differences(before, &way).map(|news| (addr, news)));
            }
            seen.insert(addr, way);
        }
        self.seen = seen;
        news
    }

    /// The targets with a way, and whether the first host on it has answered.
    fn answering(&self) -> BTreeMap<IpAddr, bool> {
        let states = self.seen.iter();
        let states = states.filter_map(|(addr, way)| Some((*addr, way.target.neighbour?)));
        let answers = states.map(|(addr, state)| {
            let answers = matches!(state, Neighbour::Reachable | Neighbour::Stale);
            (addr, answers)
        });
        answers.collect()
    }
}

/// The addresses of the targets of rules.
fn addresses(rules: &[Rule]) -> BTreeSet<IpAddr> {
    let forwards = rules.iter().filter_map(Rule::forward);
    let targets = forwards.flat_map(Forward::all_targets);
    targets.filter_map(|target| target.host).collect()
}

/// A host that did not answer is asked for again with each packet: until it answers, the
/// last result is the one that is known.
fn keep_failure(now: &mut PresentWay, before: &PresentWay) {
    let is_asked = matches!(
        now.target.neighbour,
        Some(Neighbour::Incomplete | Neighbour::Unknown)
    );
    let is_same = now.target.interface == before.target.interface
        && now.target.gateway == before.target.gateway;
    if is_asked && is_same && before.target.neighbour == Some(Neighbour::Failed) {
        now.target.neighbour = Some(Neighbour::Failed);
        if now.findings.is_empty() {
            now.findings.clone_from(&before.findings);
        }
    }
}

fn differences(before: &PresentWay, now: &PresentWay) -> impl Iterator<Item = News> {
    let faults = now.findings.iter();
    let new = faults.filter(|fault| !before.findings.iter().any(|old| old.what == fault.what));
    let mut news: Vec<_> = new.cloned().map(News::Fault).collect();
    let way = || now.target.path();
    if now.findings.is_empty() {
        if !before.findings.is_empty() {
            news.push(News::Mended(way()));
        } else if before.target.path() != way() {
            news.push(News::Turned(way()));
        }
    }
    news.into_iter()
}

/// The ways to the targets of rules that run.
pub struct Look {
    /// The ways.
    pub ways: Vec<PresentWay>,
    /// The interfaces that have to forward; none where that may not be switched on.
    forwarders: Vec<Forwarder>,
}

impl HostView {
    /// Looks at the present ways to the targets of settings that run. Packet filters are not
    /// looked at.
    ///
    /// # Errors
    ///
    /// [`ChangeError::Host`].
    pub fn look_at_ways(&self, settings: &Settings) -> Result<Look, ChangeError> {
        let plan = self.plan(settings);
        let wanted = self.snapshot.wanted_ways(&settings.rules, &plan);
        if wanted.is_empty() {
            let (ways, forwarders) = (Vec::new(), Vec::new());
            return Ok(Look { ways, forwarders });
        }
        let request = WayRequest {
            wanted: &wanted,
            local: plan.local_engine(),
            may_enable: settings.enable_forwarding,
        };
        let (targets, ingress) = (request.targets(), request.ingress());
        let facts = Facts::without_filters(&self.snapshot, &targets, &ingress);
        let facts = facts.map_err(ChangeError::Host)?;
        Ok(Look {
            ways: PresentWay::all(&facts, request),
            forwarders: if request.may_enable {
                forwarders(&facts, request)
            } else {
                Vec::new()
            },
        })
    }
}

impl Look {
    /// The switches that are off, of interfaces that did not have to forward before.
    fn new_switches(&self, known: Option<&BTreeSet<Forwarder>>, saved: &Saved) -> Forwarding {
        let is_new = |forwarder: &&Forwarder| match known {
            Some(known) => !known.contains(forwarder),
            None => !saved.has(&forwarder.switch),
        };
        let off = self.forwarders.iter().filter(|it| !it.is_on);
        let mut switches: Vec<_> = off.filter(is_new).map(|it| it.switch.clone()).collect();
        switches.sort_unstable();
        switches.dedup();
        Forwarding { switches }
    }
}

impl Controller {
    /// Looks at the ways to targets: tells what has changed, and switches forwarding on where
    /// the settings ask for it. Returns the targets that are to be checked at once.
    pub(super) async fn follow_ways(
        &mut self,
        watch: &mut Watch,
        on_event: OnEvent<'_>,
    ) -> BTreeSet<IpAddr> {
        let began = Instant::now();
        watch.look_at = None;
        let looked = self.try_follow_ways(watch, on_event).await;
        let rest = began.elapsed().saturating_mul(REST).min(LONGEST);
        watch.rest_until = Some(Instant::now() + rest);
        let (changed, failed) = match looked {
            Ok(changed) => (changed, None),
            Err(error) => (BTreeSet::new(), Some(chain(&error))),
        };
        if let Some(error) = failed.as_ref().filter(|_| watch.told_failure != failed) {
            log::warn!("{error}");
        }
        watch.told_failure = failed;
        changed
    }

    async fn try_follow_ways(
        &mut self,
        watch: &mut Watch,
        on_event: OnEvent<'_>,
    ) -> Result<BTreeSet<IpAddr>, ControllerError> {
        let look = self.look_at_ways().await?;
        let before = watch.answering();
        let news = watch.note(&look.ways);
        // A neighbour that answers after it was asked for is news to the checks alone.
        let mut changed = watch.answering();
        changed.retain(|target, answers| before.get(target).is_some_and(|was| was != answers));
        let mut changed: BTreeSet<_> = changed.into_keys().collect();
        for (target, news) in news {
            changed.insert(target);
            on_event(Event::WayChanged { target, news });
        }
        self.follow_forwarding(watch, look).await?;
        Ok(changed)
    }

    async fn look_at_ways(&self) -> Result<Look, ControllerError> {
        let host = self.host_view().await?;
        Ok(host.look_at_ways(&self.state.settings)?)
    }

    /// Switches forwarding on for interfaces that came later.
    async fn follow_forwarding(
        &mut self,
        watch: &mut Watch,
        mut look: Look,
    ) -> Result<(), ControllerError> {
        let is_new = |controller: &Self, look: &Look| {
            look.new_switches(watch.forwarders.as_ref(), &controller.saved_forwarding())
        };
        if !is_new(self, &look).switches.is_empty() {
            let _lock = self.lock().await?;
            self.reread()?;
            if self.state.is_ending {
                return Ok(());
            }
            // Others may have changed the rules, and with them what has to forward.
            look = self.look_at_ways().await?;
            let new = is_new(self, &look);
            self.enable_forwarding(&new)?;
        }
        watch.forwarders = Some(look.forwarders.into_iter().map(Forwarder::key).collect());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
