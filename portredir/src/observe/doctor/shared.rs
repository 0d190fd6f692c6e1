//! Programs of others on the hooks where portredir redirects, or would: XDP, TCX and the
//! filters of clsact. Those before ours see packets first; those behind ours see the target
//! port.

use std::collections::BTreeSet;

use crate::config::engine::Engine;
use crate::host::features::{Loaded, OURS, Programs as _};
use crate::host::filters::{self, Direction};
use crate::observe::attached::{HookState, Interface};
use crate::plan::finding::{Diagnosis, Severity};
use crate::plan::{Plan, Planned};

const CHECK: &str = "shared-hooks";

const BEFORE: &str = "it sees packets first: what it drops, sends on or changes is not redirected";

const BEHIND: &str = "it sees redirected packets with the target port, and replies before their \
                      port is restored";

/// The programs of others on the interfaces of a plan. `attached` has those of a redirect
/// that runs, with the order of programs.
pub fn check(attached: &[Interface], plan: &Plan, diagnosis: &mut Diagnosis) {
    let mut known = BTreeSet::new();
    for interface in attached {
        let hooks = interface.hooks.iter();
        for hook in hooks.filter(|hook| hook.state == HookState::Behind) {
            for other in &hook.others {
                let name = &interface.report.name;
                let what = format!(
                    "{name}: {other} runs before {} ({})",
                    hook.program, hook.hook
                );
                known.insert((name.clone(), other.to_string()));
                let fix = look(other.id);
                diagnosis.find(CHECK, Severity::Note, [what, BEFORE.to_owned(), fix]);
            }
        }
    }
    let is_running = !attached.is_empty();
    let planned = plan.attach.values();
    let on_device = planned.filter(|it| !matches!(it.engine, Engine::Lookup | Engine::Cgroup));
    for planned in on_device {
        let name = &planned.interface.name;
        let mut find = |program: String, place: &str, why: &str| {
            if known.insert((name.clone(), program.clone())) {
                let what = format!("{name}: {program} {place}");
                let fix = look(id_of(&program));
                diagnosis.find(CHECK, Severity::Note, [what, why.to_owned(), fix]);
            }
        };
        if let Some(program) = foreign_xdp(planned) {
            find(program, "runs before portredir (xdp)", BEFORE);
        }
        let place = if is_running {
            "runs behind portredir (tcx)"
        } else {
            "is on the hook of portredir (tcx)"
        };
        for program in Loaded.tcx(name) {
            find(program, place, BEHIND);
        }
        for program in foreign_filters(planned.interface.index) {
            find(program, "runs behind portredir (clsact)", BEHIND);
        }
    }
    diagnosis.pass(CHECK, "no program of others is on the hooks of portredir");
}

/// The XDP program of others on an interface where portredir uses another hook.
fn foreign_xdp(planned: &Planned) -> Option<String> {
    let is_xdp = matches!(planned.engine, Engine::XdpNative | Engine::XdpGeneric);
    let id = planned.interface.xdp.filter(|_| !is_xdp)?;
    let program = Loaded.name(id);
    (!program.starts_with(OURS)).then_some(program)
}

/// The clsact filters of others on an interface. An interface without the qdisc has none.
fn foreign_filters(index: u32) -> Vec<String> {
    let filters = [Direction::Ingress, Direction::Egress];
    let filters = filters
        .into_iter()
        .flat_map(|direction| filters::list(index, direction));
    let foreign = filters
        .flatten()
        .filter(|filter| !filter.name.starts_with(OURS));
    foreign
        .map(|filter| match filter.program {
            Some(id) => format!("{} (id {id})", filter.name),
            None => format!("filter {} with priority {}", filter.name, filter.priority),
        })
        .collect()
}

/// The ID at the end of a name such as `lb (id 9)`.
fn id_of(program: &str) -> Option<u32> {
    let (_, id) = program.rsplit_once("id ")?;
    id.trim_end_matches(')').parse().ok()
}

/// The command that shows a program.
fn look(id: Option<u32>) -> String {
    match id {
        Some(id) => format!("if it is not wanted there, find its owner: bpftool prog show id {id}"),
        None => {
            "if it is not wanted there, find its owner: tc filter show dev IFACE ingress".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_stands_at_the_end() {
        for (program, id) in [
            ("lb (id 9)", Some(9)),
            ("program id 12", Some(12)),
            ("filter flower with priority 1", None),
        ] {
            assert_eq!(id_of(program), id, "{program}");
        }
    }
}
