//! The switch from one set of rules to the next, between two packets.

use std::collections::{BTreeSet, HashSet};

use portredir_common::map::targets::{SLOTS, Slot, Target};

use super::Controller;
use super::error::ControllerError;
use super::event::{Event, OnEvent};
use super::reconcile::on_masks;
use crate::config::settings::Settings;
use crate::host::snapshot::Snapshot;
use crate::loader::chain;
use crate::loader::forward::Pointers;
use crate::loader::pinned::{self, Found};
use crate::rule::Rule;
use crate::ruleset::compile::{Table, TableError, TableOptions};
use crate::ruleset::forwarding::{self, Numbered};
use crate::ruleset::history::History;
use crate::ruleset::services::service::Service;
use crate::state::State;
use crate::state::stamp::Stamp;
use crate::sys::mmap;
use crate::sys::sock_diag::{self, Kind};

/// A state that is about to be valid, and all slots of its services; none where there are
/// no services.
pub(super) struct Next {
    pub(super) state: State,
    pub(super) slots: Option<Vec<Slot>>,
}

impl Controller {
    /// Makes rules, and the options that can change without attaching anew, valid: all of
    /// it between two packets. Established flows keep their targets.
    ///
    /// # Errors
    ///
    /// The rules need more than the tables hold, or the kernel refuses; then the old
    /// rules go on.
    pub(super) fn commit(
        &mut self,
        snapshot: &Snapshot,
        state: State,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        let next = self.with_live_services(state)?;
        self.install(snapshot, next, on_event)
    }

    /// A state with the services that its rules and the live flows need.
    ///
    /// # Errors
    ///
    /// Flows cannot be listed, or the rules need more than the tables hold.
    pub(super) fn with_live_services(&mut self, state: State) -> Result<Next, ControllerError> {
        let flows = self.flows_of_targets()?;
        self.with_services(state, &flows)
    }

    /// Makes a state valid, with its slots; see [`Self::commit`].
    pub(super) fn install(
        &mut self,
        snapshot: &Snapshot,
        next: Next,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        let Next { state, slots } = next;
        let table = compile(&state)?;
        let before = std::mem::replace(&mut self.table, table);
        let result = self.prepare(&state, slots.as_deref());
        let result = result.and_then(|next| self.try_commit(snapshot, &state, next, on_event));
        if let Err(error) = result {
            self.table = before;
            if slots.is_some() {
                let targets = self.state.services.map_contents().targets;
                if let Err(error) = self.datapath.set_targets(&targets) {
                    log::warn!("the targets before the change: {}", chain(&error));
                }
            }
            return Err(error);
        }
        self.state = state;
        if slots.is_some() {
            // Those that have come up are marked until the slots have turned.
            let targets = self.state.services.map_contents().targets;
            self.datapath.correct_targets(&targets)?;
        }
        mmap::give_back();
        if self.needs_listeners() {
            // This registers servers that began to listen before the switch.
            self.register(on_event)?;
        }
        Ok(())
    }

    fn try_commit(
        &mut self,
        snapshot: &Snapshot,
        state: &State,
        next: Option<Pointers>,
        on_event: OnEvent<'_>,
    ) -> Result<(), ControllerError> {
        if self.needs_listeners() {
            self.register(on_event)?;
        }
        // Flows of removed rules may still be counted; no reader uses these counts.
        let before = self.state.ids.iter().copied().collect();
        self.datapath.keep_counters(&before)?;
        let generation = self.datapath.fill(&self.table)?;
        self.datapath
            .set_on(generation, &on_masks(&self.table, snapshot))?;
        if self.pins.is_some() {
            self.datapath.set_state(generation, state)?;
        }
        // Between these two is no system call, at which a command could be killed.
        if let Some(next) = &next {
            next.write();
        }
        self.datapath.switch_to(generation);
        Ok(())
    }

    /// Whether a rule has a service, or a removed one still has.
    pub(super) fn has_services(&self) -> bool {
        self.state.services.iter().next().is_some()
    }

    /// The numbers of the targets that have flows.
    pub(super) fn flows_of_targets(&self) -> Result<HashSet<u16>, ControllerError> {
        if !self.has_services() {
            return Ok(HashSet::new());
        }
        Ok(self.datapath.forwards()?.targets())
    }

    /// The state with the services that its rules need, and all slots where there are any.
    /// `flows` has the targets with flows.
    pub(super) fn with_services(
        &self,
        state: State,
        flows: &HashSet<u16>,
    ) -> Result<Next, ControllerError> {
        let has_flows = |key: &str| {
            let service = self.state.services.of_key(key);
            let mut targets = service.into_iter().flat_map(Service::all_targets);
            targets.any(|target| flows.contains(&target.number))
        };
        let wanted = forwarding::wanted(&state.rules(), &state.leaving, has_flows);
        if wanted.is_empty() && !self.has_services() {
            return Ok(Next { state, slots: None });
        }
        let mut slots = self.datapath.slots()?;
        // A flow may begin with a target of the present slots until these have changed: what
        // they lead to now is remembered whether it has flows or not.
        let mut services = self.state.services.clone();
        services.forget(|target| flows.contains(&target), &mut slots);
        let services = services.next(&wanted, &mut slots)?;
        Ok(Next {
            state: State { services, ..state },
            slots: Some(slots),
        })
    }

    /// Writes the targets of a state, and prepares its slots and services; none where there
    /// are no slots. A target that goes down is marked before the slots turn, one that comes
    /// up keeps its mark until then.
    fn prepare(
        &mut self,
        state: &State,
        slots: Option<&[Slot]>,
    ) -> Result<Option<Pointers>, ControllerError> {
        let Some(slots) = slots else {
            return Ok(None);
        };
        let before = self.state.services.map_contents().targets.into_iter();
        let dead: HashSet<_> = before
            .filter(|(_, target)| target.has(Target::DEAD))
            .map(|(number, _)| number)
            .collect();
        let mut targets = state.services.map_contents().targets;
        for (number, target) in &mut targets {
            if dead.contains(number) {
                target.flags |= Target::DEAD;
            }
        }
        self.datapath.set_targets(&targets)?;
        let services = forwarding::values(&state.services);
        Ok(Some(self.datapath.pointers(slots, &services)?))
    }

    /// Writes the targets, slots and services of the valid state again where a change was
    /// interrupted, as by a kill, after it had written some of its own.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) fn settle_targets(&mut self) -> Result<(), ControllerError> {
        if !self.has_services() {
            return Ok(());
        }
        let mut slots = self.datapath.slots()?;
        self.state.services.settle(&mut slots);
        let targets = self.state.services.map_contents().targets;
        self.datapath.correct_targets(&targets)?;
        let services = forwarding::values(&self.state.services);
        self.datapath.pointers(&slots, &services)?.write();
        Ok(())
    }

    /// The rules that are removed, while flows go on to their targets.
    fn leaving(&self, settings: &Settings) -> Result<Vec<Numbered>, ControllerError> {
        let stay: HashSet<_> = settings.rules.iter().map(Rule::listen_key).collect();
        let rules = self.state.rules().into_iter();
        let rules = rules.chain(self.state.leaving.iter().cloned());
        let mut gone: Vec<_> = rules
            .filter(|(_, rule)| rule.forward().is_some() && !stay.contains(&rule.listen_key()))
            .collect();
        if !gone.is_empty() {
            let flows = self.datapath.forwards()?.targets();
            gone.retain(|(_, rule)| {
                let services = &self.state.services;
                forwarding::has_target(services, rule, |number| flows.contains(&number))
            });
        }
        Ok(gone)
    }

    /// The state that comes after the present one, with other settings.
    ///
    /// # Errors
    ///
    /// When the connections of this host cannot be listed.
    pub(super) fn next(&self, settings: Settings) -> Result<State, ControllerError> {
        // To list all flows takes its time.
        let live = if self.state.history.is_empty() {
            HashSet::new()
        } else {
            self.datapath.live(&sock_diag::list(Kind::Connected)?)?
        };
        let history = self.state.history.after(
            &self.state.settings.rules,
            &settings.rules,
            |protocol, dst_port, target| live.contains(&(protocol, dst_port, target)),
        );
        let leaving = self.leaving(&settings)?;
        let next = self.state.next(settings, history);
        let stamp = Stamp::now();
        Ok(State {
            leaving,
            since: next.since.or_else(|| Some(stamp.clone())),
            changed: Some(stamp),
            ..next
        })
    }

    /// Reads the state that another process has committed.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) fn reread(&mut self) -> Result<(), ControllerError> {
        let Some(pins) = &self.pins else {
            return Ok(());
        };
        let Found::Live(state) = pinned::find(pins)? else {
            return Err(ControllerError::NotRunning);
        };
        self.table = compile(&state)?;
        self.state = *state;
        mmap::give_back();
        self.adopt();
        Ok(())
    }

    /// Whether engine `socket` is attached, so that servers have to be registered.
    #[must_use]
    pub const fn needs_listeners(&self) -> bool {
        self.datapath.needs_listeners()
    }

    /// Registers listening servers that are not registered yet.
    ///
    /// # Errors
    ///
    /// Listening sockets cannot be listed.
    pub fn register(&mut self, on_event: OnEvent<'_>) -> Result<(), ControllerError> {
        let listening = sock_diag::list(Kind::Listening)?;
        let mut told = BTreeSet::new();
        self.unregistered = self.datapath.register(&self.table, &listening)?;
        for &server in &self.unregistered {
            let line = format!("{} {}", server.port, server.why());
            if !self.told_servers.contains(&line) {
                on_event(Event::Unregistered {
                    engine: self.state.settings.engine,
                    server,
                });
            }
            told.insert(line);
        }
        self.told_servers = told;
        Ok(())
    }
}

/// The rules of a state, in the form of the maps.
///
/// # Errors
///
/// The rules need more than the maps hold.
fn compile(state: &State) -> Result<Table, TableError> {
    let Settings {
        hide_target,
        if_listening,
        ..
    } = state.settings;
    let options = TableOptions {
        hide_target,
        if_listening,
        taken: Some(&state.taken),
    };
    let mut rules = state.rules();
    rules.extend(state.leaving.iter().cloned());
    Table::compile(&rules, &state.history, options, |place| {
        forwarding::number(&state.services, &rules[place].1)
    })
}

/// Checks that rules fit into the maps, as a run does that begins with empty ones.
///
/// # Errors
///
/// The rules need more than the maps hold.
pub fn check_limits(settings: &Settings) -> Result<(), ControllerError> {
    let empty = State::empty(Settings::default());
    let mut state = empty.next(settings.clone(), History::default());
    let wanted = forwarding::wanted(&state.rules(), &[], |_| false);
    if !wanted.is_empty() {
        let mut slots = vec![Slot::default(); SLOTS as usize];
        state.services = state.services.next(&wanted, &mut slots)?;
    }
    Ok(compile(&state).map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::tests::rule;

    fn checked(rules: impl Iterator<Item = String>) -> Option<String> {
        let settings = Settings {
            rules: rules.map(|text| rule(&text)).collect(),
            ..Settings::default()
        };
        check_limits(&settings).err().map(|error| error.to_string())
    }

    #[test]
    fn targets_with_an_address_have_limits() {
        let rules = |count: u16| {
            (1..=count).map(|port| format!("{port}:10.{}.{}.1:8080", port >> 8, port & 255))
        };
        assert_eq!(checked(rules(2047)), None);
        let error = checked(rules(2048)).expect("too many services");
        assert!(error.contains("2047"), "{error}");
        let targets = |count: u16| (0..count).map(|at| format!("10.0.{}.{}", at >> 8, at & 255));
        let wide =
            |port: u16, count| format!("{port}:{}", targets(count).collect::<Vec<_>>().join(","));
        assert_eq!(checked([wide(80, 2)].into_iter()), None);
        let many = checked((1..=2047).map(|port| wide(port, 3)));
        assert!(many.expect("too many targets").contains("4095"));
    }
}
