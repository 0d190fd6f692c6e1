//! Finds the interfaces that nobody selected and by which replies may leave.
//!
//! Routes decide by which interface a reply leaves, and that need not be the one by which
//! the request came in: routing is asymmetric, requests come out of a tunnel, the address
//! is on `lo`. So an interface whose outgoing packets cross none of our programs gets a
//! program for outgoing packets. That program changes replies of redirected flows alone,
//! and nothing that comes in there is redirected.

use std::collections::BTreeSet;

use super::coverage::Coverage;
use super::engine::EngineRequest;
use super::{Plan, Planned};
use crate::config::engine::Engine;
use crate::config::settings::Settings;
use crate::host::snapshot::{Interface, Snapshot};

/// The reason for programs on an interface that nobody selected.
const WHY: &str = "replies only; --iface does not select it";

impl Snapshot {
    /// Adds the interfaces by which replies may leave to a plan that has those by which
    /// requests come in. An interface that the user excludes is left alone, and the plan
    /// says so.
    pub(super) fn add_exits(
        &self,
        plan: &mut Plan,
        coverage: Coverage<'_>,
        settings: &Settings,
        request: EngineRequest<'_>,
    ) {
        let on_wire = plan.attach.values().filter(|planned| planned.is_on_wire());
        let standing: BTreeSet<_> = on_wire.clone().map(|it| it.interface.index).collect();
        // What `lo` receives is answered through `lo`.
        if on_wire.filter(|planned| !planned.is_egress_only).count() == 0 {
            return;
        }
        let is_refused = |index| plan.refuse.iter().any(|refused| refused.index == index);
        let may_leave = self.interfaces.values().filter(|interface| {
            let is_used = interface.is_up || request.attached.contains_key(&interface.index);
            is_used && !interface.is_loopback() && !is_refused(interface.index)
        });
        let (excluded, exits): (Vec<_>, Vec<_>) =
            may_leave.partition(|it| settings.iface.excludes(&it.name).is_some());
        let indexes = exits.iter().map(|interface| interface.index).collect();
        let coverage = coverage.with_exits(standing.clone(), &indexes);
        let is_exit = |interface: &&Interface| {
            coverage.is_hooked(interface) || coverage.has_exit_to_siblings(interface)
        };
        for interface in exits.into_iter().filter(is_exit) {
            if !standing.contains(&interface.index) {
                let planned = interface.egress_only(None, request, WHY.to_owned());
                plan.attach.insert(interface.index, planned);
            }
        }
        for interface in excluded {
            let skipped = plan.skip.iter_mut().find(|it| it.index == interface.index);
            if let Some(skipped) = skipped.filter(|_| coverage.reason(interface).is_none()) {
                skipped.why += "; a reply that leaves here keeps the target port";
            }
        }
    }
}

impl Planned {
    /// Whether the packets of a device are rewritten, which `lo` is none of.
    fn is_on_wire(&self) -> bool {
        let is_rewriting = !matches!(self.engine, Engine::Lookup | Engine::Cgroup);
        is_rewriting && !self.interface.is_loopback()
    }
}
