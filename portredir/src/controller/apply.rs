//! Carrying out a change.

use jiff::Timestamp;

use super::change::{Action, Change, HostView, Step};
use super::error::ControllerError;
use super::event::OnEvent;
use super::{Controller, transaction, watcher};
use crate::config::safety::ChangeOptions;
use crate::host::snapshot::Snapshot;
use crate::plan::Plan;
use crate::state::{self, State};

impl Controller {
    /// Carries out a change. The switch is atomic: a process that is killed before it has
    /// changed nothing that is valid.
    ///
    /// # Errors
    ///
    /// The kernel refuses, or [`ControllerError::Change`] where the plan is impossible.
    /// What was valid before stays valid.
    pub async fn apply(
        &mut self,
        change: Change,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        change.check()?;
        // Nothing is redirected to a target before packets to it are forwarded.
        let forwarding = self.enable_forwarding(&change.ways.forwarding)?;
        let result = self.carry_out(change, on_event).await;
        if result.is_err() {
            self.disable_forwarding(&forwarding);
        }
        result
    }

    async fn carry_out(
        &mut self,
        change: Change,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        let Change {
            step,
            host,
            after,
            pending,
            taken,
            ..
        } = change;
        let changed = |next: State| State {
            pending,
            taken,
            ..next
        };
        match step {
            Step::Attach(plan) => {
                self.attach_all(&host, &plan, on_event).await?;
                let state = self.next(after).map(changed);
                let result = state.and_then(|state| self.switch(&host, state, on_event));
                self.after_attaching(result, on_event).await
            }
            Step::Switch => self.switch(&host, changed(self.next(after)?), on_event),
            Step::Follow => self.follow(&host, changed(self.next(after)?), on_event),
            Step::Turn(which, turn) => {
                let next = self.turned(&which, turn)?;
                self.notify();
                self.install(&host.snapshot, next, on_event)
            }
            Step::RollBack => {
                let state = State {
                    rolled_back_ms: Some(state::now_ms()),
                    ..changed(self.next(after)?)
                };
                self.commit(&host.snapshot, state, on_event)
            }
            Step::Keep => self.switch(&host, self.state.confirmed(), on_event),
            Step::Drain(timeout) => {
                let state = State {
                    is_ending: true,
                    ..self.next(after)?
                };
                self.commit(&host.snapshot, state, on_event)?;
                self.drain(timeout, on_event).await
            }
            Step::Remove => match self.pins.clone() {
                Some(pins) => transaction::remove_all(&pins, &self.netlink, &host.snapshot).await,
                None => {
                    self.detach_all(on_event).await;
                    self.restore_forwarding();
                    Ok(())
                }
            },
        }
    }

    /// Plans an action on the present state, without options, and carries it out.
    ///
    /// # Errors
    ///
    /// The host cannot be read, or as [`Change::plan`] and [`Self::apply`].
    pub async fn act(
        &mut self,
        action: Action,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        let host = match (&action, &self.pins) {
            // The process has its own record of what it attached. So programs are
            // detached and offloads are restored also where the host cannot be read.
            (Action::Detach, None) => self.view_of(Snapshot::default()),
            _ => self.host_view().await?,
        };
        let wanted = (action, ChangeOptions::default());
        let change = Change::plan(Some(&self.state), wanted, host)?;
        self.apply(change, on_event).await
    }

    /// Replaces the programs that another process has left, and attaches to the other
    /// interfaces of the plan.
    async fn attach_all(
        &mut self,
        host: &HostView,
        plan: &Plan,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        if self.pins.is_some() && !self.state.settings.rules.is_empty() {
            // What is attached anew redirects by the old rules until the switch.
            self.reread()?;
        }
        self.upgrade(on_event).await;
        self.start(&host.snapshot, plan, on_event).await
    }

    /// Detaches everything where the switch failed in the foreground; else detaches the
    /// programs that are no longer wanted, which comes last.
    async fn after_attaching(
        &mut self,
        switched: Result<(), ControllerError>,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        if self.pins.is_some() {
            switched?;
            return self.reconcile(on_event).await;
        }
        if switched.is_err() {
            self.detach_all(on_event).await;
        }
        switched
    }

    /// Makes a state valid, and has the watcher read it. The watcher is told before
    /// the switch: a command that is killed right after it must not leave a watcher
    /// that does not know.
    fn switch(
        &mut self,
        host: &HostView,
        state: State,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        self.notify();
        self.commit(&host.snapshot, state, on_event)
    }

    /// [`Self::switch`], after which removed targets have no UDP flows.
    fn follow(
        &mut self,
        host: &HostView,
        state: State,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        self.notify();
        let mut next = self.with_live_services(state)?;
        next.state.services.end_removed(Timestamp::now());
        self.install(&host.snapshot, next, on_event)?;
        self.end_flows(on_event)
    }

    fn notify(&mut self) {
        if self.pins.is_some() {
            self.notified = Some(watcher::notify());
        }
    }
}
