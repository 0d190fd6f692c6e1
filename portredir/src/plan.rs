//! Which interfaces get programs, of which engine, and why. Pure: a snapshot
//! and facts go in, nothing is touched.

mod coverage;
mod engine;
mod firewall;
pub mod lockout;
mod report;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::{BTreeMap, BTreeSet};

pub use self::engine::{Refused, Rejected};
pub use self::firewall::Firewall;
pub use self::report::{Action, InterfacePlan, PlanReport};
pub use self::usage::UsageError;
use crate::config::engine::{Engine, EngineChoice};
use crate::config::selection::SelectedBy;
use crate::config::settings::Settings;
use crate::host::features::{Facts, Programs};
use crate::host::snapshot::{Interface, Snapshot};

/// What will be done with one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The interface.
    pub interface: Interface,
    /// How it was selected; to be handed in with the next plan.
    pub selected: SelectedBy,
    /// How its connections are redirected.
    pub engine: Engine,
    /// Whether packets that come in are met elsewhere, and only what goes out
    /// may pass here alone.
    pub is_egress_only: bool,
    /// Where that engine will attach. When it is attached, the mode is known
    /// better.
    pub hook: &'static str,
    /// Why there.
    pub why: String,
    /// Engines that would have come first.
    pub rejected: Vec<Rejected>,
    /// What is to be known of it: warnings, programs of others.
    pub notes: Vec<String>,
}

impl Planned {
    /// What to do when the kernel refused the engine that was planned.
    #[must_use]
    pub fn by_tc_instead(&self, facts: &Facts, why: &str) -> Self {
        let engine = Engine::Tc;
        let mut notes = self.notes.clone();
        if self.interface.is_loopback() {
            notes.push(engine::LOOPBACK_WARNING.to_owned());
        }
        let refused = Rejected {
            engine: self.engine.name(),
            why: why.to_owned(),
        };
        Self {
            engine,
            hook: engine.hook(facts.tcx),
            why: format!("{} mode failed: {why}", self.hook),
            rejected: [&self.rejected[..], &[refused]].concat(),
            notes,
            ..self.clone()
        }
    }
}

/// Why an interface that was looked at gets no programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The reason.
    pub why: String,
    /// Whether it was meant, and its packets are met elsewhere.
    pub is_covered: bool,
}

/// The whole plan. `Display` is a table for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The engine that was asked for.
    pub choice: EngineChoice,
    /// Canonical texts of the rules.
    pub rules: Vec<String>,
    /// By interface index.
    pub attach: BTreeMap<u32, Planned>,
    /// The others.
    pub skip: Vec<Skipped>,
    /// Where the engine that was asked for is impossible.
    pub refuse: Vec<Refused>,
    /// What has to be open.
    pub firewall: Firewall,
    /// What is to be known of the plan as a whole.
    pub notes: Vec<String>,
}

impl Plan {
    /// Whether the engine that was asked for is possible everywhere.
    ///
    /// # Errors
    ///
    /// The first [`Refused`].
    pub fn check(&self) -> Result<(), Refused> {
        self.refuse.first().cloned().map_or(Ok(()), Err)
    }
}

impl Snapshot {
    /// Plans what to attach to.
    ///
    /// `attached` is what is attached now, and how it was selected: the XDP
    /// and TCX programs there are ours, and what was selected by its exact
    /// name is kept under another.
    ///
    /// What is impossible is in [`Plan::refuse`].
    #[must_use]
    pub fn plan(
        &self,
        settings: &Settings,
        facts: &Facts,
        attached: &BTreeMap<u32, SelectedBy>,
        programs: &dyn Programs,
    ) -> Plan {
        let mut plan = Plan {
            choice: settings.engine,
            rules: settings.rules.iter().map(ToString::to_string).collect(),
            firewall: Firewall::of(settings),
            ..Plan::default()
        };
        let selected = self.select(settings, attached, &mut plan.skip);
        let indexes: BTreeSet<_> = selected.keys().copied().collect();
        for (index, by) in selected {
            let interface = &self.interfaces[&index];
            if let Some(why) = self.covered(interface, settings, &indexes) {
                if interface.has_own_egress() {
                    let planned = interface.egress_only(by, settings.engine, facts, &why);
                    plan.attach.insert(index, planned);
                } else {
                    plan.skip.push(Skipped {
                        is_covered: true,
                        ..interface.skipped(why)
                    });
                }
                continue;
            }
            let is_ours = attached.contains_key(&index);
            match self.choose(interface, settings.engine, facts, attached, programs) {
                Ok(chosen) => {
                    let mut notes = chosen.notes;
                    let is_on_device = !matches!(chosen.engine, Engine::Lookup | Engine::Cgroup);
                    if is_on_device && !is_ours {
                        notes.extend(others(programs.tcx(&interface.name)));
                    }
                    let planned = Planned {
                        interface: interface.clone(),
                        selected: by,
                        engine: chosen.engine,
                        is_egress_only: false,
                        hook: chosen.engine.hook(facts.tcx),
                        why: chosen.why,
                        rejected: chosen.rejected,
                        notes,
                    };
                    plan.attach.insert(index, planned);
                }
                Err(refused) => plan.refuse.push(refused),
            }
        }
        plan.notes = self.notes(settings, facts, &plan);
        plan
    }

    /// The interfaces that `--iface` means. Those that it leaves out, and
    /// somebody could expect, go to `skip`.
    fn select(
        &self,
        settings: &Settings,
        attached: &BTreeMap<u32, SelectedBy>,
        skip: &mut Vec<Skipped>,
    ) -> BTreeMap<u32, SelectedBy> {
        let mut selected = BTreeMap::new();
        for interface in self.interfaces.values() {
            let name = &interface.name;
            if let Some(glob) = settings.iface.excludes(name) {
                skip.push(interface.skipped(format!("excluded by !{glob}")));
                continue;
            }
            let by = match attached.get(&interface.index) {
                Some(SelectedBy::Name) => Some(SelectedBy::Name),
                Some(SelectedBy::Pattern) | None => settings.iface.selects(name),
            };
            match by {
                None => {}
                Some(SelectedBy::Pattern) if !interface.is_up => {
                    skip.push(interface.skipped("interface is down; attached when it comes up"));
                }
                Some(_) if interface.is_loopback() && settings.no_local => {
                    skip.push(interface.skipped("local clients are not redirected (--no-local)"));
                }
                Some(by) => {
                    selected.insert(interface.index, by);
                }
            }
        }
        let is_used = |index: Option<u32>| {
            index
                .filter(|index| selected.contains_key(index))
                .is_some_and(|index| self.interfaces[&index].is_tracked_bridge)
        };
        // Who names a bridge means what comes in by its ports.
        let ports: Vec<_> = self
            .interfaces
            .values()
            .filter(|port| port.is_up && is_used(port.master))
            .filter(|port| settings.iface.excludes(&port.name).is_none())
            .map(|port| port.index)
            .collect();
        for index in ports {
            selected.entry(index).or_insert(SelectedBy::Pattern);
        }
        selected
    }

    fn notes(&self, settings: &Settings, facts: &Facts, plan: &Plan) -> Vec<String> {
        let mut notes = Vec::new();
        for glob in &settings.iface.globs {
            if !self.interfaces.values().any(|i| glob.matches(&i.name)) {
                notes.push(format!(
                    "`{glob}` matches no interface yet; matching interfaces are used when they \
                     appear"
                ));
            }
        }
        let is_tc = |planned: &Planned| planned.engine == Engine::Tc;
        if facts.tcx.is_none() && plan.attach.values().any(is_tc) {
            notes.push("cannot probe TCX without root; showing `tcx or clsact`".into());
        }
        notes
    }
}

impl Interface {
    fn egress_only(
        &self,
        selected: SelectedBy,
        choice: EngineChoice,
        facts: &Facts,
        why: &str,
    ) -> Planned {
        let engine = match choice {
            EngineChoice::TcClsact => Engine::TcClsact,
            _ => Engine::Tc,
        };
        Planned {
            interface: self.clone(),
            selected,
            engine,
            is_egress_only: true,
            hook: engine.hook(facts.tcx),
            why: format!("replies only; {why}"),
            rejected: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// The note on TCX programs that are not ours.
fn others(tcx: Vec<String>) -> Option<String> {
    let names = tcx.join(", ");
    (!names.is_empty())
        .then(|| format!("other TCX programs stay attached and run after portredir: {names}"))
}

impl Interface {
    fn skipped(&self, why: impl Into<String>) -> Skipped {
        Skipped {
            index: self.index,
            name: self.name.clone(),
            why: why.into(),
            is_covered: false,
        }
    }
}
