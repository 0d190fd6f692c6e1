//! Decides which interfaces get programs, of which engine, and why. Pure: a snapshot and
//! features go in, and nothing is touched.

mod coverage;
pub mod dead;
mod driver;
mod engine;
pub mod finding;
mod firewall;
mod ipsec;
pub mod lockout;
mod replies;
mod report;
mod taken;
#[cfg(test)]
mod tests;
mod usage;
pub mod way;

use std::collections::BTreeMap;

use self::coverage::Coverage;
pub use self::dead::{DeadReason, DeadRule};
pub use self::engine::{Attached, Refused, Rejected};
use self::engine::{Chosen, EngineRequest};
pub use self::firewall::Firewall;
pub use self::ipsec::Ipsec;
pub use self::report::{Action, InterfacePlan, PlanReport};
pub use self::usage::UsageError;
use crate::config::engine::{Engine, EngineChoice};
use crate::config::selection::SelectedBy;
use crate::config::settings::Settings;
use crate::host::features::{Features, Programs};
use crate::host::snapshot::{Interface, Snapshot};

/// The reason why programs are not attached to `lo`.
const NO_LOCAL: &str = "local clients are not redirected (--no-local)";

/// The plan for one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The interface.
    pub interface: Interface,
    /// The way the interface was selected, an input of the next plan; `None` where nobody
    /// selected it, and replies may leave there.
    pub selected: Option<SelectedBy>,
    /// The engine that redirects its connections.
    pub engine: Engine,
    /// Whether another interface handles incoming packets, and only some outgoing packets
    /// pass here alone.
    pub is_egress_only: bool,
    /// The hook of that engine. Once it is attached, the mode is known better.
    pub hook: &'static str,
    /// The reason for this engine.
    pub why: String,
    /// The engines that would have come first.
    pub rejected: Vec<Rejected>,
    /// Notes for the user: warnings, programs of others.
    pub notes: Vec<String>,
}

impl Planned {
    /// The fallback when the kernel refused the planned engine.
    #[must_use]
    pub fn by_tc_instead(&self, features: &Features, why: &str) -> Self {
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
            hook: engine.hook(features.tcx),
            why: format!("{} mode failed: {why}", self.hook),
            rejected: [&self.rejected[..], &[refused]].concat(),
            notes,
            ..self.clone()
        }
    }
}

/// An interface that was considered and gets no programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The index of the interface.
    pub index: u32,
    /// The name of the interface.
    pub name: String,
    /// The reason.
    pub why: String,
    /// Whether the interface was selected, and another one handles its packets.
    pub is_covered: bool,
}

/// The whole plan. `Display` is a table for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The engine that was asked for.
    pub choice: EngineChoice,
    /// Canonical texts of the rules.
    pub rules: Vec<String>,
    /// The interfaces that get programs, by index.
    pub attach: BTreeMap<u32, Planned>,
    /// The other interfaces.
    pub skip: Vec<Skipped>,
    /// The interfaces on which the engine that was asked for is impossible.
    pub refuse: Vec<Refused>,
    /// The names in `--iface` that no interface has yet.
    pub absent: Vec<String>,
    /// The ports that a firewall must allow.
    pub firewall: Firewall,
    /// The consequence of IPsec policies.
    pub ipsec: Ipsec,
    /// Notes on the plan as a whole.
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

    /// The interfaces to attach to, in this order: a packet must not be redirected before
    /// its reply would be restored, on whichever interface.
    pub fn in_order(&self) -> impl Iterator<Item = &Planned> {
        let egress_only = self.attach.values().filter(|it| it.is_egress_only);
        let others = self.attach.values().filter(|it| !it.is_egress_only);
        egress_only.chain(others)
    }
}

impl Snapshot {
    /// Plans the programs for all interfaces.
    ///
    /// `attached` has the interfaces with attached programs: the XDP and TCX programs there
    /// are ours, and an interface that was selected by its exact name is kept under another
    /// name.
    ///
    /// Impossible requests are in [`Plan::refuse`].
    #[must_use]
    pub fn plan(
        &self,
        settings: &Settings,
        features: &Features,
        attached: &BTreeMap<u32, Attached>,
        programs: &dyn Programs,
    ) -> Plan {
        let mut plan = Plan {
            choice: settings.engine,
            rules: settings.rules.iter().map(ToString::to_string).collect(),
            firewall: Firewall::of(settings),
            ..Plan::default()
        };
        let request = EngineRequest {
            choice: settings.engine,
            features,
            attached,
            programs,
        };
        let selected = self.select(settings, attached, &mut plan.skip);
        let kept = attached.keys().copied().collect();
        let coverage = Coverage::new(self, settings, selected, kept);
        for (&index, &by) in coverage.selected() {
            let interface = &self.interfaces[&index];
            if let Some(why) = coverage.reason(interface) {
                if interface.has_own_egress() && coverage.is_handled_below(interface) {
                    let why = format!("replies only; {why}");
                    let planned = interface.egress_only(Some(by), request, why);
                    plan.attach.insert(index, planned);
                } else {
                    plan.skip.push(Skipped {
                        is_covered: true,
                        ..interface.skipped(why)
                    });
                }
                continue;
            }
            match self.choose(interface, request) {
                Ok(mut chosen) => {
                    let is_on_device = !matches!(chosen.engine, Engine::Lookup | Engine::Cgroup);
                    if is_on_device && !request.is_ours(interface) {
                        chosen.notes.extend(others(programs.tcx(&interface.name)));
                    }
                    let planned = interface.planned(by, chosen, features);
                    plan.attach.insert(index, planned);
                }
                Err(refused) => plan.refuse.push(refused),
            }
        }
        plan.ipsec = self.ipsec(settings, &coverage);
        self.add_exits(&mut plan, coverage, settings, request);
        plan.absent = self.absent(settings);
        plan.notes = self.notes(settings, features, &plan);
        plan.notes.extend(plan.ipsec.note.clone());
        plan.notes.extend(self.dead_rules(&settings.rules, &plan));
        plan
    }

    /// The interfaces that `--iface` selects. Interfaces that it leaves out, and that a
    /// user could expect, go to `skip`.
    fn select(
        &self,
        settings: &Settings,
        attached: &BTreeMap<u32, Attached>,
        skip: &mut Vec<Skipped>,
    ) -> BTreeMap<u32, SelectedBy> {
        let mut selected = BTreeMap::new();
        for interface in self.interfaces.values() {
            let name = &interface.name;
            if let Some(glob) = settings.iface.excludes(name) {
                skip.push(interface.skipped(format!("excluded by !{glob}")));
                continue;
            }
            let attached = attached.get(&interface.index);
            let is_attached = attached.is_some();
            let by = match attached.map(|attached| attached.selected) {
                Some(SelectedBy::Name) => Some(SelectedBy::Name),
                Some(SelectedBy::Pattern) | None => settings.iface.selects(name),
            };
            match by {
                None => {}
                // What is attached stays: a link that comes back finds its connections.
                Some(SelectedBy::Pattern) if !interface.is_up && !is_attached => {
                    skip.push(interface.skipped("interface is down; attached when it comes up"));
                }
                Some(_) if interface.is_loopback() && settings.no_local => {
                    skip.push(interface.skipped(NO_LOCAL));
                }
                Some(by) => {
                    selected.insert(interface.index, by);
                }
            }
        }
        selected
    }

    fn absent(&self, settings: &Settings) -> Vec<String> {
        let exists = |name: &str| self.interfaces.values().any(|i| i.name == name);
        let names = settings.iface.names.iter();
        names
            .filter(|name| !exists(name) && settings.iface.excludes(name).is_none())
            .cloned()
            .collect()
    }

    fn notes(&self, settings: &Settings, features: &Features, plan: &Plan) -> Vec<String> {
        let absent = plan.absent.iter().map(|name| self.absent_note(name));
        let mut notes: Vec<_> = absent.collect();
        for glob in &settings.iface.globs {
            if !self.interfaces.values().any(|i| glob.matches(&i.name)) {
                notes.push(format!(
                    "`{glob}` matches no interface yet; matching interfaces are used when they \
                     appear"
                ));
            }
        }
        let is_tc = |planned: &Planned| planned.engine == Engine::Tc;
        if features.tcx.is_none() && plan.attach.values().any(is_tc) {
            notes.push("cannot probe TCX without root; showing `tcx or clsact`".into());
        }
        notes
    }
}

impl Interface {
    fn planned(&self, selected: SelectedBy, chosen: Chosen, features: &Features) -> Planned {
        Planned {
            interface: self.clone(),
            selected: Some(selected),
            engine: chosen.engine,
            is_egress_only: false,
            hook: chosen.engine.hook(features.tcx),
            why: chosen.why,
            rejected: chosen.rejected,
            notes: chosen.notes,
        }
    }

    fn egress_only(
        &self,
        selected: Option<SelectedBy>,
        request: EngineRequest<'_>,
        why: String,
    ) -> Planned {
        let engine = match request.choice {
            EngineChoice::TcClsact => Engine::TcClsact,
            _ => Engine::Tc,
        };
        Planned {
            interface: self.clone(),
            selected,
            engine,
            is_egress_only: true,
            hook: engine.hook(request.features.tcx),
            why,
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
