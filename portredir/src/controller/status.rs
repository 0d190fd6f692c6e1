//! The answers of a redirect to questions.

use std::collections::HashMap;
use std::io;

use jiff::Timestamp;

use super::error::ControllerError;
use super::{Controller, Parts};
use crate::host::{features, filters};
use crate::ipc::client::{self, Answer, Reply, Request, Role, Who};
use crate::loader::flow_view::MapIds;
use crate::loader::pinned::{self, Found, PinnedError};
use crate::loader::{Sizes, chain};
use crate::observe::connections::{self, Filter, List, Redirect};
use crate::observe::metrics::{Metrics, Running};
use crate::observe::targets;
use crate::rule::Rule;
use crate::ruleset::forwarding;
use crate::state::State;
use crate::state::attachment::Attachment;
use crate::state::stamp::Stamp;
use crate::sys::bpffs::PinDir;

impl Controller {
    /// The answer of this process to a request.
    #[must_use]
    pub fn reply(&self, role: Role, request: Request) -> Reply {
        match request {
            Request::Status => self.answer(Some(role)).map_or_else(
                |error| Reply::Refused(chain(&error)),
                |answer| Reply::Answer(Box::new(answer)),
            ),
            Request::Flows => Reply::Flows(Box::new(Redirect {
                maps: self.datapath.map_ids(),
                ..redirect(&self.state, self.attachments.values())
            })),
            Request::Metrics => self.answer(Some(role)).map_or_else(
                |error| Reply::Refused(chain(&error)),
                |answer| Reply::Metrics(metrics(Some(answer))),
            ),
            Request::Targets => self.targets(Some(role)).map_or_else(
                |error| Reply::Refused(chain(&error)),
                |list| Reply::Targets(Box::new(list)),
            ),
            _ => Reply::Done(Who::this(role)),
        }
    }

    /// The time at which a process was last checking targets, if any are to be checked.
    fn checked_at(&self) -> Option<Timestamp> {
        let rules = &self.state.settings.rules;
        let is_wanted = rules.iter().any(|rule| forwarding::check(rule).is_some());
        pinned::checked_at(self.pins.as_ref().filter(|_| is_wanted)?)
    }

    /// The targets of the rules, with their states.
    fn targets(&self, role: Option<Role>) -> Result<targets::List, ControllerError> {
        let mut flows = HashMap::new();
        if self.has_services() {
            let forwards = self.datapath.forwards()?;
            let live = forwards.live().filter(|flow| flow.own != 0);
            for flow in live.filter(|flow| !flow.entry.is_by_rule()) {
                *flows.entry(flow.entry.flow().target).or_default() += 1;
            }
        }
        let checking = targets::Checking {
            is_on: role.is_some(),
            at: self.checked_at(),
        };
        let services = &self.state.services;
        let list = targets::list(services, Timestamp::now(), checking, |service, target| {
            let check = self.rule_of(service).and_then(Rule::forward);
            let check = check.and_then(|forward| forward.check.as_ref());
            let is_last = service.otherwise.target() == Some(target);
            targets::Known {
                // The target for when all are down is not checked.
                check: check.filter(|_| !is_last).map(|check| check.by.to_string()),
                flows: Some(flows.get(&target.number).copied().unwrap_or(0)),
                packets: None,
            }
        });
        Ok(list)
    }

    fn answer(&self, role: Option<Role>) -> Result<Answer, ControllerError> {
        Ok(Answer {
            role,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: self.state.settings.clone(),
            confirm_within: self.state.confirm_within().map(|left| left.as_secs()),
            silent: None,
            since: self.state.since.clone(),
            changed: self.state.changed.clone(),
            confirmed_ago: self.state.confirmed_ago().map(|ago| ago.as_secs()),
            rolled_back_ago: self.state.rolled_back_ago().map(|ago| ago.as_secs()),
            flow_tables: self.datapath.flows()?.fill(),
            // Other engines deliver to them.
            unregistered: if self.needs_listeners() {
                self.unregistered.clone()
            } else {
                Vec::new()
            },
            reconciled: role.map(|_| self.reconciled),
            checked_at: self.checked_at(),
            report: self.report()?,
        })
    }
}

/// Lists the flows of the running redirect that a filter wants, whether it is pinned or
/// belongs to a process in the foreground.
///
/// # Errors
///
/// [`ControllerError::NotRunning`], or this user may not read flows.
pub fn flows(filter: &Filter) -> Result<List, ControllerError> {
    let pins = PinDir::current().map_err(ControllerError::netns)?;
    match pinned::find(&pins)? {
        Found::Live(state) => {
            let redirect = redirect(&state, &pinned::attachments(&pins));
            Ok(connections::list(&redirect, Some(&pins), filter)?)
        }
        Found::Nothing | Found::Unfinished => {
            let redirect = from_process(client::flows(), ControllerError::NoFlows)?;
            Ok(connections::list(&redirect, None, filter)?)
        }
    }
}

/// Lists the targets of the running rules.
///
/// # Errors
///
/// [`ControllerError::NotRunning`], or this user may not read the pins.
pub fn targets() -> Result<targets::List, ControllerError> {
    let pins = PinDir::current().map_err(ControllerError::netns)?;
    match pinned::find(&pins)? {
        Found::Live(state) => {
            let controller = Controller::open(Parts::pinned(*state, pins)?)?;
            let who = client::ask(Request::Who).ok().flatten();
            controller.targets(who.map(|who| who.role))
        }
        Found::Nothing | Found::Unfinished => {
            from_process(client::targets(), ControllerError::NoTargets)
        }
    }
}

/// The answer of the process in the foreground.
fn from_process<T>(
    answer: io::Result<Option<T>>,
    other: impl FnOnce(io::Error) -> ControllerError,
) -> Result<T, ControllerError> {
    match answer {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(not_running()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(PinnedError::NotPermitted(error).into())
        }
        Err(error) => Err(other(error)),
    }
}

fn redirect<'a>(state: &State, attachments: impl IntoIterator<Item = &'a Attachment>) -> Redirect {
    let settings = &state.settings;
    let attachments = attachments.into_iter();
    let redirecting = attachments.filter(|attachment| !attachment.is_egress_only);
    Redirect {
        rules: state.rules(),
        engines: redirecting
            .map(|attachment| attachment.engine.name().to_owned())
            .collect(),
        sizes: Sizes {
            tcp_flows: settings.max_tcp_flows.get(),
            udp_flows: settings.max_udp_flows.get(),
        },
        since: state.since.as_ref().map(|since| since.time),
        maps: MapIds::new(),
    }
}

/// The text of the metrics of a redirect, or of none.
#[must_use]
pub fn metrics(answer: Option<Answer>) -> String {
    let version = answer.as_ref().map(|answer| answer.version.clone());
    let time = |stamp: &Stamp| stamp.time;
    let metrics = Metrics {
        version: version.unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
        running: answer.map(|answer| Running {
            is_watched: answer.role.is_some(),
            since: answer.since.as_ref().map(time),
            changed: answer.changed.as_ref().map(time),
            report: answer.report,
            flow_tables: answer.flow_tables,
            reconciled: answer.reconciled,
        }),
    };
    metrics.text()
}

/// Reads the running configuration: from the process that answers, else from the pins.
///
/// # Errors
///
/// [`ControllerError::NotRunning`], [`ControllerError::Ending`], or this user may
/// not read the pins.
pub fn read() -> Result<Answer, ControllerError> {
    let mut answer = ask()?;
    // The process that answers may have given up the right to read names.
    for interface in &mut answer.report.interfaces {
        interface.name_others(features::program_name);
    }
    Ok(answer)
}

fn ask() -> Result<Answer, ControllerError> {
    let refused = match client::status() {
        Ok(Some(answer)) => return Ok(answer),
        Ok(None) => None,
        // Root can still read the pins.
        Err(error) => Some(error),
    };
    let pins = PinDir::current().map_err(ControllerError::netns)?;
    match pinned::find(&pins)? {
        Found::Live(state) if state.is_ending => Err(ControllerError::Ending),
        Found::Live(state) => {
            let controller = Controller::open(Parts::pinned(*state, pins)?)?;
            let answer = controller.answer(None)?;
            let silent = refused.and_then(|_| client::pid().ok().flatten());
            Ok(Answer {
                silent: silent.and_then(|pid| pid.try_into().ok()),
                ..answer
            })
        }
        // A redirect runs, and does not answer this user.
        Found::Nothing | Found::Unfinished => {
            Err(refused.map_or_else(not_running, |error| PinnedError::NotPermitted(error).into()))
        }
    }
}

/// The error where nothing runs, with what a killed run may have left.
pub(super) fn not_running() -> ControllerError {
    match filters::carriers() {
        Ok(interfaces) if !interfaces.is_empty() => ControllerError::LeftFilters(interfaces),
        Ok(_) => ControllerError::NotRunning,
        Err(error) => {
            log::warn!("cannot look for filters of a killed run: {}", chain(&error));
            ControllerError::NotRunning
        }
    }
}
