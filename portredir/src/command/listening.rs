//! The servers of the rules, as people read them.

use std::collections::HashSet;

use super::say;
use crate::config::settings::Settings;
use crate::controller::change::Change;
use crate::host::snapshot::Snapshot;
use crate::loader::chain;
use crate::observe::doctor;
use crate::observe::listening::{self, Listeners, Listening};
use crate::ruleset::taken::TakenPorts;

/// The servers of all rules. Where sockets cannot be listed there are none, and a warning.
pub fn of(settings: &Settings, host: &Snapshot, taken: &TakenPorts) -> Vec<Listening> {
    match Listeners::read(&settings.rules) {
        Ok(listeners) => listening::of_rules(&listeners, settings, host, taken),
        Err(error) => {
            say(&format!(
                "cannot check who listens on the target ports: {}",
                chain(&error)
            ));
            Vec::new()
        }
    }
}

/// The servers of all rules that run.
pub fn of_running(settings: &Settings, host: &Snapshot) -> Vec<Listening> {
    let none = TakenPorts::default();
    if settings.if_listening {
        of(settings, host, &host.read_taken(&settings.rules, &none))
    } else {
        of(settings, host, &none)
    }
}

/// The servers of all rules after a change.
pub fn of_change(change: &Change) -> Vec<Listening> {
    let host = &change.host().snapshot;
    of(change.settings(), host, change.taken())
}

/// A line for each server and each finding. Of very many rules, the first findings alone.
pub fn text(listening: &[Listening]) -> String {
    const MOST: usize = 20;
    let all: Vec<_> = listening.iter().flat_map(Listening::lines).collect();
    if all.len() <= MOST {
        return all.into_iter().map(|line| line + "\n").collect();
    }
    let findings = listening.iter().flat_map(Listening::finding_lines);
    let findings: Vec<_> = findings.collect();
    let shown = findings.iter().take(MOST).map(|line| format!("{line}\n"));
    let mut text: String = shown.collect();
    if let Some(more) = findings.len().checked_sub(MOST).filter(|more| *more > 0) {
        text += &format!("and {more} more, which `portredir doctor --json` lists\n");
    }
    text
}

/// Says which programs a change attaches where, and who serves its rules.
pub fn say_plan(change: &Change) {
    if let Some(plan) = change.plan_of_interfaces() {
        say(plan.to_string().trim_end());
    }
    say_ways(change);
    say_lines(&of_change(change));
}

/// Says which rules of packet filters concern the redirect. This runs other programs, for
/// which no client has to wait: it is for the time when the rules are in force.
pub fn say_packet_filters(settings: &Settings) {
    const MOST: usize = 10;
    for finding in doctor::packet_filters(settings).into_iter().take(MOST) {
        say(&format!("{}; fix: {}", finding.what, finding.fix));
    }
}

/// Says by which ways packets get to targets with an address.
fn say_ways(change: &Change) {
    let text = change.ways().to_string();
    if !text.is_empty() {
        say(text.trim_end());
    }
}

/// Says who serves the rules that a change adds.
pub fn say_new(change: &Change) {
    say_ways(change);
    let added = &change.diff().added;
    if added.is_empty() {
        return;
    }
    let added: HashSet<_> = added.iter().map(|added| added.rule.to_string()).collect();
    let mut listening = of_change(change);
    listening.retain(|listening| added.contains(&listening.rule));
    say_lines(&listening);
}

fn say_lines(listening: &[Listening]) {
    let text = text(listening);
    if !text.is_empty() {
        say(text.trim_end());
    }
}
