//! Keeps attached programs in step with interfaces and addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use jiff::Timestamp;

use super::Controller;
use super::attach::lost;
use super::error::ControllerError;
use super::event::{DetachReason, Event, OnEvent};
use crate::config::engine::Engine;
use crate::host::snapshot::{Interface, Snapshot};
use crate::loader::chain;
use crate::plan::{Plan, Planned};
use crate::ruleset::compile::Table;

impl Controller {
    /// Attaches to interfaces that appeared, detaches from those that are gone or no
    /// longer selected, and updates the addresses of this host.
    ///
    /// # Errors
    ///
    /// Interfaces or addresses cannot be listed. A failure on a single interface is an
    /// event.
    pub async fn reconcile(&mut self, on_event: OnEvent<'_>) -> Result<(), ControllerError> {
        let began = Instant::now();
        self.follow_metrics(on_event);
        let result = self.try_reconcile(on_event).await;
        let succeeded = result.is_ok().then(Timestamp::now);
        self.reconciled.add(began.elapsed(), succeeded);
        result
    }

    async fn try_reconcile(&mut self, on_event: OnEvent<'_>) -> Result<(), ControllerError> {
        for index in self.netlink.take_left() {
            self.detach(index, DetachReason::InterfaceGone, on_event)
                .await;
        }
        let snapshot = self.netlink.snapshot().await?;
        self.clear_unfinished(&snapshot).await;
        self.set_local(&snapshot, on_event);
        let generation = self.datapath.generation();
        self.datapath
            .set_on(generation, &on_masks(&self.table, &snapshot))?;
        self.rename(&snapshot, on_event)?;
        let settings = self.state.settings.clone();
        let plan = self.view_of(snapshot.clone()).plan(&settings);
        self.tell_left_out(&plan, on_event);
        self.tell_ipsec(&plan, on_event);
        self.leave_ipsec(&plan, on_event);
        self.detach_turned(&plan, on_event).await;
        self.attach_new(&snapshot, &plan, on_event).await
    }

    /// Updates the addresses of this host. What fails is told once, and the rest of the host
    /// is followed all the same.
    fn set_local(&mut self, snapshot: &Snapshot, on_event: OnEvent<'_>) {
        let result = self.datapath.set_local(&snapshot.local);
        let failed = result.err().map(|error| chain(&error));
        if let Some(error) = failed.as_ref().filter(|_| self.told_local != failed) {
            on_event(Event::LocalIncomplete(error.clone()));
        }
        self.told_local = failed;
    }

    /// Reports the interfaces that get no programs, unless that was reported before.
    fn tell_left_out(&mut self, plan: &Plan, on_event: OnEvent<'_>) {
        let mut told = BTreeSet::new();
        for skipped in plan.skip.iter().filter(|skipped| skipped.is_covered) {
            let line = skipped.to_string();
            if !self.told_interfaces.contains(&line) {
                on_event(Event::Covered(Box::new(skipped.clone())));
            }
            told.insert(line);
        }
        for refused in &plan.refuse {
            let line = refused.to_string();
            if !self.told_interfaces.contains(&line) {
                on_event(Event::Refused(Box::new(refused.clone())));
            }
            told.insert(line);
        }
        self.told_interfaces = told;
    }

    /// Reports clients behind IPsec policies, unless that was reported before.
    fn tell_ipsec(&mut self, plan: &Plan, on_event: OnEvent<'_>) {
        let note = &plan.ipsec.note;
        if let Some(note) = note.as_ref().filter(|_| self.told_ipsec != *note) {
            on_event(Event::BehindIpsec(note.clone()));
        }
        self.told_ipsec.clone_from(note);
    }

    /// Detaches from interfaces that have got or lost a lower device, because they now
    /// see packets in another direction.
    async fn detach_turned(&mut self, plan: &Plan, on_event: OnEvent<'_>) {
        let is_egress_only = |index| plan.attach.get(index).map(|p| p.is_egress_only);
        let turned: Vec<_> = self
            .attachments
            .iter()
            .filter(|(index, attachment)| {
                is_egress_only(index).is_some_and(|now| now != attachment.is_egress_only)
            })
            .map(|(&index, _)| index)
            .collect();
        for index in turned {
            self.detach(index, DetachReason::Stopped, on_event).await;
        }
    }

    async fn attach_new(
        &mut self,
        snapshot: &Snapshot,
        plan: &Plan,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        let attached: Vec<_> = self.attachments.keys().copied().collect();
        let new: Vec<_> = plan
            .in_order()
            .filter(|planned| !attached.contains(&planned.interface.index))
            .collect();
        if new.iter().any(|planned| planned.engine == Engine::Lookup) && !self.needs_listeners() {
            self.register(on_event)?;
        }
        // A bridge may give way to its ports: no reply must leave in between.
        let mut refused = Vec::new();
        for planned in new {
            match self.attach(planned, plan.choice, on_event).await {
                Ok(instead) => tell_attached(planned, instead, on_event),
                Err(_) => refused.push(planned),
            }
        }
        for index in attached {
            if !plan.attach.contains_key(&index) && !is_irreplaceable(index, snapshot, plan) {
                let reason = if snapshot.interfaces.contains_key(&index) {
                    DetachReason::Stopped
                } else {
                    DetachReason::InterfaceGone
                };
                self.detach(index, reason, on_event).await;
            }
        }
        // The removed programs may have been the obstacle, or these interfaces are gone
        // themselves; if not, the others must work.
        let mut failed = BTreeSet::new();
        let mut not_attached = BTreeMap::new();
        for planned in refused {
            match self.attach(planned, plan.choice, on_event).await {
                Ok(instead) => tell_attached(planned, instead, on_event),
                Err(error) => {
                    failed.insert(chain(&error));
                    not_attached.insert(planned.interface.index, lost(planned, &error));
                }
            }
        }
        for error in failed.difference(&self.told_failures) {
            on_event(Event::AttachFailed(error.clone()));
        }
        self.told_failures = failed;
        self.lost = not_attached;
        Ok(())
    }

    fn rename(
        &mut self,
        snapshot: &Snapshot,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        let mut renamed = Vec::new();
        for (index, attachment) in &mut self.attachments {
            let now = snapshot.interfaces.get(index).map(|now| &now.name);
            if let Some(name) = now.filter(|name| **name != attachment.report.name) {
                on_event(Event::Renamed {
                    from: attachment.report.name.clone(),
                    to: name.clone(),
                });
                attachment.report.name.clone_from(name);
                renamed.push(attachment.clone());
            }
        }
        for attachment in renamed {
            self.write_down(&attachment)?;
        }
        Ok(())
    }
}

/// Whether the packets of an interface are those of a master that cannot have programs of
/// the engine that was asked for: what is attached is better than nothing.
fn is_irreplaceable(index: u32, snapshot: &Snapshot, plan: &Plan) -> bool {
    let is_refused = |master: &Interface| plan.refuse.iter().any(|it| it.index == master.index);
    snapshot.with_masters(index).skip(1).any(is_refused)
}

fn tell_attached(planned: &Planned, instead: Option<Planned>, on_event: OnEvent<'_>) {
    let planned = instead.unwrap_or_else(|| planned.clone());
    on_event(Event::Attached(Box::new(planned)));
}

/// The lists of interfaces in rules that each interface is in.
///
/// A packet that comes in on a port of a bridge, a bond or a VRF counts as coming in on
/// that device too, and on its master, on whichever of them a program sees it.
pub(super) fn on_masks(table: &Table, snapshot: &Snapshot) -> BTreeMap<u32, u64> {
    let matches = |list: &[String], name: &str| {
        list.iter()
            .any(|text| glob::Pattern::new(text).is_ok_and(|glob| glob.matches(name)))
    };
    let lists = table.on_lists();
    let masks = snapshot.interfaces.values().map(|interface| {
        let names: Vec<_> = snapshot.names(interface).collect();
        let mask = lists.iter().zip(1..).fold(0, |mask, (list, bit)| {
            let is_in = names.iter().any(|name| matches(list, name));
            mask | u64::from(is_in) << bit
        });
        (interface.index, mask)
    });
    masks.filter(|(_, mask)| *mask != 0).collect()
}
