//! The planner: selects interfaces, and decides for each.

use std::collections::{BTreeMap, BTreeSet};

use super::coverage::covered;
use super::engine::choose;
use super::firewall::Firewall;
use super::input::Input;
use super::planned::{Plan, Planned, Skipped};
use crate::config::engine::{Engine, EngineChoice};
use crate::config::selection::SelectedBy;
use crate::config::settings::Settings;
use crate::host::features::{Features, Programs};
use crate::host::snapshot::{Interface, Snapshot};

impl Snapshot {
    /// Plans what to attach to.
    ///
    /// `attached` has the interfaces with programs of ours, and how each was selected: an
    /// interface that was selected by its exact name stays selected when it is renamed.
    /// [`Plan::refuse`] has the interfaces on which the requested engine is not available.
    #[must_use]
    pub fn plan(
        &self,
        settings: &Settings,
        features: &Features,
        attached: &BTreeMap<u32, SelectedBy>,
        programs: &dyn Programs,
    ) -> Plan {
        plan(Input {
            snapshot: self,
            settings,
            features,
            attached,
            programs,
        })
    }
}

fn plan(input: Input<'_>) -> Plan {
    let mut plan = Plan {
        choice: input.settings.engine,
        rules: input
            .settings
            .rules
            .iter()
            .map(ToString::to_string)
            .collect(),
        firewall: Firewall::of(input.settings),
        ..Plan::default()
    };
    let selected = select(input, &mut plan.skip);
    let indexes: BTreeSet<_> = selected.keys().copied().collect();
    for (index, by) in selected {
        let interface = &input.snapshot.interfaces[&index];
        match covered(input, interface, &indexes) {
            Some(why) if interface.has_own_egress() => {
                plan.attach
                    .insert(index, egress_only(input, (interface, by), &why));
            }
            Some(why) => plan.skip.push(Skipped {
                is_covered: true,
                ..Skipped::new(interface, why)
            }),
            None => add(input, (interface, by), &mut plan),
        }
    }
    plan.notes = notes(input, &plan);
    plan
}

/// Adds a selected interface whose packets no other interface redirects.
fn add(input: Input<'_>, (interface, selected): (&Interface, SelectedBy), plan: &mut Plan) {
    let chosen = match choose(input, interface) {
        Ok(chosen) => chosen,
        Err(refused) => {
            plan.refuse.push(refused);
            return;
        }
    };
    let mut notes = chosen.notes;
    let is_on_device = !matches!(chosen.engine, Engine::Lookup | Engine::Cgroup);
    if is_on_device && !input.is_attached(interface) {
        notes.extend(other_tcx_programs(&input.programs.tcx(&interface.name)));
    }
    let planned = Planned {
        interface: interface.clone(),
        selected,
        engine: chosen.engine,
        is_egress_only: false,
        hook: chosen.engine.hook(input.features.tcx),
        why: chosen.why,
        rejected: chosen.rejected,
        notes,
    };
    plan.attach.insert(interface.index, planned);
}

fn egress_only(
    input: Input<'_>,
    (interface, selected): (&Interface, SelectedBy),
    why: &str,
) -> Planned {
    let engine = match input.settings.engine {
        EngineChoice::TcClsact => Engine::TcClsact,
        _ => Engine::Tc,
    };
    Planned {
        interface: interface.clone(),
        selected,
        engine,
        is_egress_only: true,
        hook: engine.hook(input.features.tcx),
        why: format!("replies only; {why}"),
        rejected: Vec::new(),
        notes: Vec::new(),
    }
}

/// Selects interfaces by `--iface`. Interfaces that are not selected, although a user
/// could expect them, go to `skip`.
fn select(input: Input<'_>, skip: &mut Vec<Skipped>) -> BTreeMap<u32, SelectedBy> {
    let mut selected = BTreeMap::new();
    for interface in input.interfaces() {
        match select_one(input, interface) {
            Some(Ok(by)) => {
                selected.insert(interface.index, by);
            }
            Some(Err(skipped)) => skip.push(skipped),
            None => {}
        }
    }
    for port in ports_of_tracked_bridges(input, &selected) {
        selected.entry(port).or_insert(SelectedBy::Pattern);
    }
    selected
}

fn select_one(input: Input<'_>, interface: &Interface) -> Option<Result<SelectedBy, Skipped>> {
    let settings = input.settings;
    let skipped = |why: &str| Some(Err(Skipped::new(interface, why)));
    if let Some(glob) = settings.iface.excludes(&interface.name) {
        return skipped(&format!("excluded by !{glob}"));
    }
    let by = match input.attached.get(&interface.index) {
        Some(SelectedBy::Name) => SelectedBy::Name,
        Some(SelectedBy::Pattern) | None => settings.iface.selects(&interface.name)?,
    };
    if by == SelectedBy::Pattern && !interface.is_up {
        return skipped("interface is down; attached when it comes up");
    }
    if interface.is_loopback() && settings.no_local {
        return skipped("local clients are not redirected (--no-local)");
    }
    Some(Ok(by))
}

/// The ports of selected bridges whose packets `br_netfilter` shows to conntrack: a user
/// who names such a bridge means what comes in by its ports.
fn ports_of_tracked_bridges(input: Input<'_>, selected: &BTreeMap<u32, SelectedBy>) -> Vec<u32> {
    let is_selected_and_tracked = |index: u32| {
        selected.contains_key(&index) && input.snapshot.interfaces[&index].is_tracked_bridge
    };
    input
        .interfaces()
        .filter(|port| port.is_up && port.master.is_some_and(is_selected_and_tracked))
        .filter(|port| input.settings.iface.excludes(&port.name).is_none())
        .map(|port| port.index)
        .collect()
}

fn notes(input: Input<'_>, plan: &Plan) -> Vec<String> {
    let mut notes = Vec::new();
    for glob in &input.settings.iface.globs {
        if !input.interfaces().any(|i| glob.matches(&i.name)) {
            notes.push(format!(
                "`{glob}` matches no interface yet; matching interfaces are used when they appear"
            ));
        }
    }
    let is_tc = |planned: &Planned| planned.engine == Engine::Tc;
    if input.features.tcx.is_none() && plan.attach.values().any(is_tc) {
        notes.push("cannot probe TCX without root; showing `tcx or clsact`".into());
    }
    notes
}

/// The note on TCX programs that are not ours.
fn other_tcx_programs(tcx: &[String]) -> Option<String> {
    let names = tcx.join(", ");
    (!names.is_empty())
        .then(|| format!("other TCX programs stay attached and run after portredir: {names}"))
}
