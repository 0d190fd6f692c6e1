//! Attaching to interfaces and detaching from them, with a record of each step for the
//! process that continues after a kill.

use std::collections::BTreeSet;

use super::Controller;
use super::error::ControllerError;
use super::event::{DetachReason, Event, OnEvent};
use crate::config::engine::{Engine, EngineChoice};
use crate::config::selection::SelectedBy;
use crate::host::netlink::Netlink;
use crate::host::snapshot::Snapshot;
use crate::loader::{Datapath, chain};
use crate::observe::attached::Interface;
use crate::plan::{Plan, Planned};
use crate::state::attachment::{Attachment, InterfaceReport, Mode};
use crate::sys::ethtool::{self, Switch};

impl Controller {
    /// Restores what an interrupted attach or detach has changed on interfaces.
    pub(super) async fn clear_unfinished(&mut self, snapshot: &Snapshot) {
        for attachment in std::mem::take(&mut self.unfinished) {
            let index = attachment.report.ifindex;
            self.datapath.clear(attachment.engine, index);
            if let Some(interface) = snapshot.interfaces.get(&index) {
                Datapath::sweep(interface);
                restore(&self.netlink, &attachment).await;
            }
            self.datapath.remove_attachment(index);
        }
    }

    /// Attaches as planned, or not at all.
    ///
    /// # Errors
    ///
    /// The kernel refuses; programs that were attached before stay as they were.
    pub(super) async fn start(
        &mut self,
        snapshot: &Snapshot,
        plan: &Plan,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        self.clear_unfinished(snapshot).await;
        self.datapath.set_local(&snapshot.local)?;
        self.told_interfaces = plan.skip.iter().map(ToString::to_string).collect();
        let is_lookup = |planned: &Planned| planned.engine == Engine::Lookup;
        if plan.attach.values().any(is_lookup) {
            // This comes before the first connection looks for a server.
            self.register(on_event)?;
        }
        self.sweep_others(snapshot, plan).await;
        self.told_ipsec.clone_from(&plan.ipsec.note);
        self.leave_ipsec(plan, on_event);
        let choice = plan.choice;
        let mut attached = Vec::new();
        for planned in plan.in_order() {
            let index = planned.interface.index;
            if self.is_attached_as(planned) {
                continue;
            }
            self.detach(index, DetachReason::Stopped, on_event).await;
            match self.attach(planned, choice, on_event).await {
                Ok(instead) => {
                    attached.push(index);
                    if let Some(instead) = instead {
                        on_event(Event::Attached(Box::new(instead)));
                    }
                }
                // Nobody asked for this interface, which may also be gone by now.
                Err(error) if planned.selected.is_none() => {
                    let error = chain(&error);
                    self.told_failures.insert(error.clone());
                    on_event(Event::AttachFailed(error));
                }
                Err(error) => {
                    for index in attached {
                        self.detach(index, DetachReason::Stopped, on_event).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Removes filters that a killed run has left on interfaces that get no programs now.
    async fn sweep_others(&self, snapshot: &Snapshot, plan: &Plan) {
        for (index, interface) in &snapshot.interfaces {
            let is_used = plan.attach.contains_key(index) || self.attachments.contains_key(index);
            if !is_used && Datapath::sweep(interface) {
                // A qdisc without filters is of no use to others.
                let _ = self.netlink.remove_clsact(*index).await;
            }
        }
    }

    /// Replaces the programs that another process has left active with those of this
    /// process. Programs that cannot be replaced are detached, so that the plan attaches
    /// them again.
    pub(super) async fn upgrade(&mut self, on_event: OnEvent<'_>) {
        let attachments: Vec<_> = self.attachments.values().cloned().collect();
        for attachment in attachments {
            let name = &attachment.report.name;
            if let Err(error) = self.datapath.replace(name, &attachment.mode) {
                log::debug!("{}", chain(&error));
                self.detach(attachment.report.ifindex, DetachReason::Stopped, on_event)
                    .await;
            }
        }
        if let Err(error) = self.datapath.replace_ipsec() {
            log::debug!("{}", chain(&error));
            // The plan sets it anew.
            let _ = self.datapath.set_ipsec(&BTreeSet::new());
        }
    }

    /// Leaves the connections out of IPsec to listeners as planned. Where the kernel
    /// refuses, all others are redirected all the same.
    pub(super) fn leave_ipsec(&mut self, plan: &Plan, on_event: OnEvent<'_>) {
        let had_listeners = self.datapath.needs_listeners();
        let result = self.datapath.set_ipsec(&plan.ipsec.by_socket);
        let needs_listeners = self.datapath.needs_listeners() && !had_listeners;
        let registered = if needs_listeners {
            self.register(on_event)
        } else {
            Ok(())
        };
        let result = result.map_err(ControllerError::from).and(registered);
        let failed = result.err().map(|error| chain(&error));
        if let Some(error) = failed
            .as_ref()
            .filter(|_| self.told_ipsec_failure != failed)
        {
            on_event(Event::AttachFailed(error.clone()));
        }
        self.told_ipsec_failure = failed;
    }

    /// Attaches to an interface; returns the fallback that was used where the plan could
    /// not be carried out and has one.
    pub(super) async fn attach(
        &mut self,
        planned: &Planned,
        choice: EngineChoice,
        on_event: OnEvent<'_>,
    ) -> Result<Option<Planned>, ControllerError> {
        let mut instead = None;
        let mut result = self.try_attach(planned, on_event).await;
        let is_auto = choice == EngineChoice::Auto;
        let has_other_way = match planned.engine {
            Engine::Cgroup => true,
            Engine::XdpNative => is_auto,
            _ => false,
        };
        if has_other_way && let Err(error) = result {
            let why = chain(&error);
            let planned = instead.insert(planned.by_tc_instead(&self.features, &why));
            result = self.try_attach(planned, on_event).await;
        }
        result.map(|()| instead)
    }

    /// Attaches to an interface as planned. The settings to restore are written down
    /// first.
    async fn try_attach(
        &mut self,
        planned: &Planned,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        let interface = &planned.interface;
        let (index, name) = (interface.index, &interface.name);
        let may_use_clsact = self.features.tcx != Some(true) || planned.engine == Engine::TcClsact;
        let was_ours = Datapath::sweep(interface);
        let is_clsact_ours =
            was_ours || (may_use_clsact && !self.netlink.has_clsact(index).await?);
        let offloads = match planned.engine {
            Engine::XdpNative | Engine::XdpGeneric => {
                let on = ethtool::features_on(name).into_iter();
                on.map(str::to_owned).collect()
            }
            _ => Vec::new(),
        };
        let mut attachment = Attachment {
            report: report(planned),
            selected: planned.selected.unwrap_or(SelectedBy::Pattern),
            engine: planned.engine,
            is_egress_only: planned.is_egress_only,
            mode: Mode::default(),
            restore: offloads,
            is_clsact_ours,
        };
        self.write_down(&attachment)?;
        match self.datapath.attach(planned) {
            Ok(mode) => {
                log::info!("attached to {name} ({})", mode.name);
                attachment.report.mode.clone_from(&mode.name);
                attachment.mode = mode;
                let written = self.write_down(&attachment);
                self.attachments.insert(index, attachment);
                if written.is_err() {
                    self.detach(index, DetachReason::Stopped, on_event).await;
                }
                written
            }
            Err(error) => {
                restore(&self.netlink, &attachment).await;
                self.datapath.remove_attachment(index);
                Err(error.into())
            }
        }
    }

    pub(super) fn write_down(&mut self, attachment: &Attachment) -> Result<(), ControllerError> {
        if self.pins.is_some() {
            self.datapath.set_attachment(attachment)?;
        }
        Ok(())
    }

    /// Whether an interface is attached, and by the engine that is planned.
    fn is_attached_as(&self, planned: &Planned) -> bool {
        self.attachments
            .get(&planned.interface.index)
            .is_some_and(|attachment| {
                attachment.engine == planned.engine
                    && attachment.is_egress_only == planned.is_egress_only
            })
    }

    pub(super) async fn detach(&mut self, index: u32, reason: DetachReason, on_event: OnEvent<'_>) {
        let Some(mut attachment) = self.attachments.remove(&index) else {
            return;
        };
        // From here on the interface is unfinished, also for the next process.
        attachment.mode.programs.clear();
        if let Err(error) = self.write_down(&attachment) {
            log::warn!("{}", chain(&error));
        }
        let name = &attachment.report.name;
        self.datapath.detach(index, name);
        match reason {
            DetachReason::Stopped => restore(&self.netlink, &attachment).await,
            DetachReason::InterfaceGone => {
                if let Err(error) = self.datapath.forget_interface(index) {
                    log::warn!("cannot keep the counters of a removed interface: {error}");
                }
            }
        }
        self.datapath.remove_attachment(index);
        on_event(Event::Detached {
            interface: attachment.report.name,
            reason,
        });
    }

    /// Detaches from every interface.
    pub(super) async fn detach_all(&mut self, on_event: OnEvent<'_>) {
        let mut attached: Vec<_> = self.attachments.keys().copied().collect();
        // Replies are restored for as long as packets are redirected anywhere.
        attached.sort_by_key(|index| self.attachments[index].is_egress_only);
        for index in attached {
            self.detach(index, DetachReason::Stopped, on_event).await;
        }
        let _ = self.datapath.set_ipsec(&BTreeSet::new());
    }
}

/// An interface to which nothing could be attached, although the plan says so.
pub(super) fn lost(planned: &Planned, error: &ControllerError) -> Interface {
    Interface::lost(report(planned), chain(error))
}

/// The report of an interface that is not attached yet.
fn report(planned: &Planned) -> InterfaceReport {
    InterfaceReport {
        name: planned.interface.name.clone(),
        ifindex: planned.interface.index,
        engine: planned.engine.name().to_owned(),
        mode: String::new(),
        why: planned.why.clone(),
    }
}

/// Restores the settings of an interface, once no program is attached.
pub async fn restore(netlink: &Netlink, attachment: &Attachment) {
    let InterfaceReport { name, ifindex, .. } = &attachment.report;
    for feature in &attachment.restore {
        if let Err(error) = ethtool::set_feature(name, feature, Switch::On) {
            log::warn!("{name}: cannot restore offload {feature}: {error}");
        }
    }
    if attachment.is_clsact_ours
        && let Err(error) = netlink.remove_clsact(*ifindex).await
    {
        // The setting may be gone with its interface.
        log::debug!("{name}: {error:#}");
    }
}
