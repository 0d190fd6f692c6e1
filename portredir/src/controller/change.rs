//! A change: the way from the valid settings to the wanted ones, worked out once and
//! before anything is touched.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::error::ChangeError;
use crate::config::safety::ChangeOptions;
use crate::config::settings::{Settings, Takes};
use crate::host::features::{Features, Loaded};
use crate::host::snapshot::Snapshot;
use crate::host::way::Facts;
use crate::plan::lockout::{self, LockoutError};
use crate::plan::way::{WayRequest, Ways, checks};
use crate::plan::{Attached, Plan};
use crate::rule::{Labelled, Rule};
use crate::ruleset::services::Services;
use crate::ruleset::services::endpoint::Selector;
use crate::ruleset::services::service::Service;
use crate::ruleset::taken::TakenPorts;
use crate::state::{self, Pending, State};

/// The host, as far as a change depends on it.
#[derive(Clone, Debug)]
pub struct HostView {
    /// Interfaces and addresses.
    pub snapshot: Snapshot,
    /// The features of the kernel.
    pub features: Features,
    /// The interfaces that are attached, by index.
    pub attached: BTreeMap<u32, Attached>,
}

impl HostView {
    /// The host as these settings see it.
    #[must_use]
    pub fn new(snapshot: Snapshot, settings: &Settings, attached: BTreeMap<u32, Attached>) -> Self {
        Self {
            snapshot,
            features: Features::read(settings.cgroup.path()),
            attached,
        }
    }

    /// Plans where these settings would attach which programs.
    #[must_use]
    pub fn plan(&self, settings: &Settings) -> Plan {
        self.snapshot
            .plan(settings, &self.features, &self.attached, &Loaded)
    }

    /// The ways to the targets with an address of some rules, under a plan. The host is
    /// looked at only if there are any.
    fn ways(
        &self,
        settings: &Settings,
        (rules, plan): (&[Rule], &Plan),
    ) -> Result<Ways, ChangeError> {
        let wanted = self.snapshot.wanted_ways(rules, plan);
        let misled = checks::misled(&settings.rules, plan.local_engine());
        if wanted.is_empty() {
            return Ok(Ways::default().with(misled));
        }
        let request = WayRequest {
            wanted: &wanted,
            local: plan.local_engine(),
            may_enable: settings.enable_forwarding,
        };
        let facts = Facts::read(&self.snapshot, &request.targets(), &request.ingress());
        Ok(Ways::plan(&facts.map_err(ChangeError::Host)?, request).with(misled))
    }
}

/// The action that a caller wants.
#[derive(Clone, Debug)]
pub enum Action {
    /// `up` and the foreground run: these settings, even if programs have to be attached
    /// anew.
    Run(Settings),
    /// `add`, `rm` and `apply`: these settings, while all programs stay attached.
    Adjust(Settings),
    /// The agent: these settings, while all programs stay attached. Targets that the rules no
    /// longer have, have ended: their UDP flows go elsewhere.
    Follow(Settings),
    /// `drain` and `undrain`: new flows begin elsewhere, or with these targets again.
    Turn(Selector, Turn),
    /// `confirm`: the last change stays.
    Confirm,
    /// The last change was not confirmed in time.
    RollBack,
    /// The first step of `down`: no new flows, and a wait for the existing ones.
    Drain(Duration),
    /// The last step of `down`: no program attached, all settings of the host restored.
    Detach,
}

/// The turn of targets that an administrator names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Their flows stay, and new ones begin elsewhere.
    Drain,
    /// New flows begin with them again, while they are up.
    Undrain,
}

/// The wanted action and its options.
pub type Wanted = (Action, ChangeOptions);

/// The effect of a planned change.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Attach by the plan, replace programs, then switch to the settings.
    Attach(Box<Plan>),
    /// Switch to the settings.
    Switch,
    /// Switch to the settings, and end the UDP flows of targets that are removed.
    Follow,
    /// Keep the settings, and turn the slots of targets.
    Turn(Selector, Turn),
    /// Switch back to the settings before an unconfirmed change.
    RollBack,
    /// Keep the settings, and remove the way back.
    Keep,
    /// Switch to settings without rules, and wait.
    Drain(Duration),
    /// Remove everything.
    Remove,
}

/// A change that can be carried out: see [`super::Controller::apply`].
#[derive(Clone, Debug)]
pub struct Change {
    pub(super) step: Step,
    pub(super) host: HostView,
    pub(super) after: Settings,
    pub(super) pending: Option<Pending>,
    pub(super) ways: Ways,
    pub(super) taken: TakenPorts,
    diff: Diff,
    lockouts: Vec<LockoutError>,
    warnings: Vec<String>,
}

impl Change {
    /// Works out a change. Without `before` no redirect runs yet.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]: the wanted settings are impossible here, need `up`, lock an
    /// administrator out without `force`, or another change waits for its confirmation.
    pub fn plan(
        before: Option<&State>,
        wanted: Wanted,
        host: HostView,
    ) -> Result<Self, ChangeError> {
        let mut change = Self::plan_action(before, wanted, host)?;
        if change.after.if_listening {
            let none = TakenPorts::default();
            let taken = before.map_or(&none, |state| &state.taken);
            change.taken = change.host.snapshot.read_taken(&change.after.rules, taken);
        }
        Ok(change)
    }

    fn plan_action(
        before: Option<&State>,
        wanted: Wanted,
        host: HostView,
    ) -> Result<Self, ChangeError> {
        let (action, options) = wanted;
        let running = before.map(|state| &state.settings);
        let pending = before.and_then(|state| state.pending.as_ref());
        match action {
            Action::Run(after) => Self::run(before, after, options, host),
            Action::Adjust(after) => Self::adjust(before, after, options, host),
            Action::Follow(after) => Ok(Self {
                step: Step::Follow,
                ..Self::adjust(before, after, options, host)?
            }),
            Action::Turn(which, turn) => {
                if let Some(state) = before {
                    find_targets(&state.services, which)?;
                }
                let after = running.cloned().unwrap_or_default();
                Ok(Self::new(Step::Turn(which, turn), running, after, host))
            }
            Action::Confirm if pending.is_none() => Err(ChangeError::NothingPending),
            Action::Confirm => {
                let after = running.cloned().unwrap_or_default();
                Ok(Self::new(Step::Keep, running, after, host))
            }
            Action::RollBack => match pending.ok_or(ChangeError::NothingPending)? {
                Pending {
                    before: Some(settings),
                    ..
                } => Ok(Self::new(Step::RollBack, running, settings.clone(), host)),
                Pending { before: None, .. } => {
                    Ok(Self::new(Step::Remove, running, Settings::default(), host))
                }
            },
            Action::Drain(timeout) => {
                let after = Settings {
                    rules: Vec::new(),
                    ..running.cloned().unwrap_or_default()
                };
                Ok(Self::new(Step::Drain(timeout), running, after, host))
            }
            Action::Detach => Ok(Self::new(Step::Remove, running, Settings::default(), host)),
        }
    }

    fn new(step: Step, before: Option<&Settings>, mut after: Settings, host: HostView) -> Self {
        after.labels.keep(&after.rules);
        Self {
            diff: Diff::between(before.unwrap_or(&Settings::default()), &after),
            step,
            host,
            after,
            taken: TakenPorts::default(),
            ways: Ways::default(),
            pending: None,
            lockouts: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn run(
        before: Option<&State>,
        after: Settings,
        options: ChangeOptions,
        host: HostView,
    ) -> Result<Self, ChangeError> {
        host.snapshot.check(&after)?;
        let lockouts = lockout::findings(&after.rules, after.hide_target);
        refuse_lockout(&lockouts, options)?;
        refuse_pending(before)?;
        let plan = host.plan(&after);
        let ways = host.ways(&after, (&after.rules, &plan))?;
        let running = before.map(|state| &state.settings);
        Ok(Self {
            pending: pending(running, options),
            lockouts,
            ways,
            ..Self::new(Step::Attach(Box::new(plan)), running, after, host)
        })
    }

    fn adjust(
        before: Option<&State>,
        after: Settings,
        options: ChangeOptions,
        host: HostView,
    ) -> Result<Self, ChangeError> {
        refuse_pending(before)?;
        let empty = Settings::default();
        let running = before.map_or(&empty, |state| &state.settings);
        let needs_up = |(option, takes)| (takes == Takes::Attach).then_some(option);
        let mut differences = running.differences(&after).into_iter();
        if let Some(option) = differences.find_map(needs_up) {
            return Err(ChangeError::NeedsUp(option));
        }
        host.snapshot.check(&after)?;
        let new: Vec<_> = missing_in(&running.rules, &after.rules).cloned().collect();
        let plan = host.plan(&after);
        let warnings = host.snapshot.dead_rules(&new, &plan);
        let ways = host.ways(&after, (&new, &plan))?;
        // The lock-outs of the running rules were allowed when these came.
        let lockouts = if after.hide_target && !running.hide_target {
            lockout::findings(&after.rules, after.hide_target)
        } else {
            lockout::findings(&new, after.hide_target)
        };
        refuse_lockout(&lockouts, options)?;
        Ok(Self {
            pending: pending(Some(running), options),
            lockouts,
            ways,
            warnings,
            ..Self::new(Step::Switch, Some(running), after, host)
        })
    }

    /// The plan of programs and interfaces; `None` when all programs stay attached as
    /// they are.
    #[must_use]
    pub const fn plan_of_interfaces(&self) -> Option<&Plan> {
        match &self.step {
            Step::Attach(plan) => Some(plan),
            _ => None,
        }
    }

    /// The host that the change was planned for.
    #[must_use]
    pub const fn host(&self) -> &HostView {
        &self.host
    }

    /// The settings after the change.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.after
    }

    /// The differences from the running settings.
    #[must_use]
    pub const fn diff(&self) -> &Diff {
        &self.diff
    }

    /// The rules that take over a port by which the host is administered. They are
    /// allowed by `force`.
    #[must_use]
    pub fn lockouts(&self) -> &[LockoutError] {
        &self.lockouts
    }

    /// Warnings about new rules that match nothing now; those of a run are in its plan.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The ways to targets with an address: of all rules of a run, else of new rules.
    #[must_use]
    pub const fn ways(&self) -> &Ways {
        &self.ways
    }

    /// The target ports on which no server has to listen; known with `--if-listening` alone.
    #[must_use]
    pub const fn taken(&self) -> &TakenPorts {
        &self.taken
    }

    /// Whether the plan can be carried out.
    ///
    /// # Errors
    ///
    /// [`ChangeError::Refused`], [`ChangeError::NoInterface`], [`ChangeError::Way`].
    pub fn check(&self) -> Result<(), ChangeError> {
        if let Step::Attach(plan) = &self.step {
            plan.check()?;
            let may_come = self.after.iface.is_open() || !plan.absent.is_empty();
            if plan.attach.is_empty() && !may_come {
                return Err(ChangeError::NoInterface);
            }
        }
        Ok(self.ways.check()?)
    }
}

/// Refuses a name that no target has.
fn find_targets(services: &Services, which: Selector) -> Result<(), ChangeError> {
    if services.selected(which).next().is_some() {
        return Ok(());
    }
    let services = services.iter().filter(|service| !service.is_removed);
    let targets = services.flat_map(Service::wanted_targets);
    let mut known: Vec<_> = targets.map(|target| target.endpoint.to_string()).collect();
    known.sort();
    known.dedup();
    Err(ChangeError::NoTarget { which, known })
}

fn refuse_lockout(lockouts: &[LockoutError], options: ChangeOptions) -> Result<(), ChangeError> {
    match lockouts.first() {
        Some(lockout) if !options.force => Err(lockout.clone().into()),
        _ => Ok(()),
    }
}

fn refuse_pending(before: Option<&State>) -> Result<(), ChangeError> {
    match before.and_then(State::confirm_within) {
        Some(left) => Err(ChangeError::Pending(left.as_secs())),
        None => Ok(()),
    }
}

fn pending(before: Option<&Settings>, options: ChangeOptions) -> Option<Pending> {
    options.confirm.map(|within| Pending {
        deadline_ms: state::now_ms() + u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
        before: before.cloned(),
    })
}

/// The differences between two settings, as far as `add`, `rm` and `apply` change them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// The removed rules.
    pub removed: Vec<Labelled>,
    /// The added rules.
    pub added: Vec<Labelled>,
    /// The rules that get another label, before and after.
    pub relabelled: Vec<(Labelled, Labelled)>,
    /// Options that are switched, by name, and whether they are on afterwards.
    pub switched: Vec<(String, bool)>,
}

impl Diff {
    /// Compares settings.
    #[must_use]
    pub fn between(before: &Settings, after: &Settings) -> Self {
        let switched = before.differences(after).into_iter();
        let labels = |rule: &Rule| (before.labels.label(rule), after.labels.label(rule));
        Self {
            removed: missing_in(&after.rules, &before.rules)
                .map(|rule| labels(rule).0)
                .collect(),
            added: missing_in(&before.rules, &after.rules)
                .map(|rule| labels(rule).1)
                .collect(),
            relabelled: if before.labels == after.labels {
                Vec::new()
            } else {
                let known: HashSet<_> = before.rules.iter().collect();
                let kept = after.rules.iter().filter(|rule| known.contains(rule));
                kept.map(labels).filter(|(old, new)| old != new).collect()
            },
            switched: switched
                .filter_map(|(name, takes)| match takes {
                    Takes::Switch(is_on) => Some((name, is_on)),
                    Takes::Attach | Takes::Nothing => None,
                })
                .collect(),
        }
    }
}

/// The rules of `rules` that are not among others.
fn missing_in<'a>(others: &'a [Rule], rules: &'a [Rule]) -> impl Iterator<Item = &'a Rule> {
    let others: HashSet<_> = others.iter().collect();
    rules.iter().filter(move |rule| !others.contains(rule))
}
