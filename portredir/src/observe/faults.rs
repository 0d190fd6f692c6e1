//! The faults of attached programs, by what the kernel answers, each with the command that
//! mends it. `status` and the doctor report the same ones.

use std::collections::BTreeSet;

use serde::Serialize;

use super::attached::{HookState, Interface};
use crate::host::snapshot::Snapshot;
use crate::plan::Plan;

/// The command that attaches everything again, with the running rules.
pub const ATTACH_AGAIN: &str = "portredir save - | portredir up --config -";

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The fault, as a sentence.
    pub what: String,
    /// The command that mends it, where there is one.
    pub fix: Option<String>,
}

impl Fault {
    /// A fault that a command mends.
    pub fn new(what: impl Into<String>, fix: &str) -> Self {
        Self {
            what: what.into(),
            fix: Some(fix.to_owned()),
        }
    }
}

/// The programs that are missing or replaced, and the interfaces of the plan that have
/// none. Interfaces that are gone are left out.
#[must_use]
pub fn of_interfaces(interfaces: &[Interface], host: &Snapshot, plan: &Plan) -> Vec<Fault> {
    let index = |interface: &Interface| interface.report.ifindex;
    let exists = |it: &&Interface| host.interfaces.contains_key(&index(it));
    let mut faults: Vec<_> = interfaces
        .iter()
        .filter(exists)
        .flat_map(of_interface)
        .collect();
    let attached: BTreeSet<_> = interfaces.iter().map(index).collect();
    let planned = plan.attach.iter();
    let missing = planned.filter(|(index, _)| !attached.contains(index));
    faults.extend(missing.map(|(_, planned)| {
        let name = &planned.interface.name;
        Fault::new(format!("{name}: not attached"), ATTACH_AGAIN)
    }));
    faults
}

fn of_interface(interface: &Interface) -> Vec<Fault> {
    let name = &interface.report.name;
    let lost = interface
        .error
        .iter()
        .map(|error| Fault::new(format!("{name}: not attached: {error}"), ATTACH_AGAIN));
    let hooks = interface.hooks.iter().filter(|hook| hook.state.is_fault());
    let hooks = hooks.map(|hook| {
        let fix = match (hook.state, hook.others.first().and_then(|other| other.id)) {
            (HookState::Replaced, Some(id)) => {
                format!("remove that program (bpftool prog show id {id}), then: {ATTACH_AGAIN}")
            }
            _ => ATTACH_AGAIN.to_owned(),
        };
        Fault::new(format!("{name}: {hook}"), &fix)
    });
    lost.chain(hooks).collect()
}
