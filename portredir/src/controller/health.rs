//! The faults of an active redirect, each with the command that mends it.

use serde::Serialize;

use super::change::HostView;
use super::error::ControllerError;
use crate::config::selection::SelectedBy;
use crate::host::features::Features;
use crate::host::netlink::Netlink;
use crate::ipc::client::Answer;
use crate::observe::attached::{HookState, Interface};

/// The command that attaches everything again, with the running rules.
const ATTACH_AGAIN: &str = "portredir save - | portredir up --config -";

/// The command that starts a watcher.
const WATCH: &str = "portredir watch";

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The fault, as a sentence.
    pub what: String,
    /// The command that mends it, where there is one.
    pub fix: Option<String>,
}

impl Fault {
    fn new(what: impl Into<String>, fix: &str) -> Self {
        Self {
            what: what.into(),
            fix: Some(fix.to_owned()),
        }
    }
}

/// Finds the faults of the redirect that answered.
///
/// # Errors
///
/// Interfaces or addresses cannot be listed.
pub async fn examine(answer: &Answer) -> Result<Vec<Fault>, ControllerError> {
    let host = HostView {
        snapshot: Netlink::open()?.snapshot().await?,
        features: Features::read(answer.settings.cgroup.path()),
        attached: indexes(answer)
            .map(|index| (index, SelectedBy::Pattern))
            .collect(),
    };
    Ok(faults(answer, &host))
}

/// The faults of a redirect on this host.
#[must_use]
pub fn faults(answer: &Answer, host: &HostView) -> Vec<Fault> {
    let mut faults: Vec<_> = watcher(answer).into_iter().collect();
    let exists = |interface: &&Interface| {
        let index = interface.report.ifindex;
        host.snapshot.interfaces.contains_key(&index)
    };
    let interfaces = &answer.report.interfaces;
    faults.extend(interfaces.iter().filter(exists).flat_map(of_interface));
    let plan = host.plan(&answer.settings);
    for (index, planned) in &plan.attach {
        if !indexes(answer).any(|attached| attached == *index) {
            let name = &planned.interface.name;
            faults.push(Fault::new(format!("{name}: not attached"), ATTACH_AGAIN));
        }
    }
    let dead = host.snapshot.dead_rules(&answer.settings.rules, &plan);
    faults.extend(dead.into_iter().map(|warning| Fault {
        what: warning.trim_start_matches("warning: ").to_owned(),
        fix: None,
    }));
    faults
}

fn indexes(answer: &Answer) -> impl Iterator<Item = u32> {
    let interfaces = answer.report.interfaces.iter();
    interfaces.map(|interface| interface.report.ifindex)
}

/// The fault of a watcher that is not alive.
fn watcher(answer: &Answer) -> Option<Fault> {
    if let Some(pid) = answer.silent {
        let fix = format!("kill -9 {pid}; {WATCH}");
        return Some(Fault::new(
            format!("the watcher, process {pid}, does not answer"),
            &fix,
        ));
    }
    answer.role.is_none().then(|| {
        Fault::new(
            "no watcher process tracks interfaces and addresses, or repairs what others detach",
            WATCH,
        )
    })
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
