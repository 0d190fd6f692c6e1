//! The examination of a redirect and of its host: everything that stands between clients
//! and servers. Nothing is changed.
//!
//! Each check adds findings, or the reason why it cannot be made, or the state that it saw.

mod firewall;
mod host;
mod ipvs;
mod redirect;
mod shared;
mod subject;
mod tables;
#[cfg(test)]
mod tests;
mod ways;

use std::collections::BTreeMap;
use std::fs;
use std::io;

use self::firewall::{FIREWALL, REDIRECTS};
pub use self::subject::{Role, Running, State, Subject};
use crate::config::settings::Settings;
use crate::host::features::Loaded;
use crate::host::filters;
use crate::host::ipvs as host_ipvs;
use crate::host::packet_filter::Rulesets;
use crate::observe::listening::{self, Listeners};
use crate::plan::Attached;
pub use crate::plan::finding::{Diagnosis, Finding, Passed, Severity, Unchecked};

/// Makes all checks.
#[must_use]
pub fn examine(subject: &Subject<'_>) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    let Subject {
        settings,
        state,
        host,
        features,
    } = subject;
    self::host::check(settings, features, &mut diagnosis);
    match state {
        State::Running(running) => {
            redirect::running(running, &mut diagnosis);
            redirect::unregistered(running, &mut diagnosis);
            tables::check(running, settings, &mut diagnosis);
        }
        State::Other => {}
        State::Nothing => match filters::carriers() {
            Ok(interfaces) => redirect::left(&interfaces, &mut diagnosis),
            Err(error) => diagnosis.not_checked("leftovers", error),
        },
    }
    if !settings.rules.is_empty() {
        let interfaces = match state {
            State::Running(running) => running.interfaces.as_slice(),
            State::Other | State::Nothing => &[],
        };
        let attached: BTreeMap<_, _> = interfaces
            .iter()
            .map(|interface| (interface.report.ifindex, Attached::SOMEHOW))
            .collect();
        let plan = host.plan(settings, features, &attached, &Loaded);
        redirect::attached(subject, &plan, &mut diagnosis);
        shared::check(interfaces, &plan, &mut diagnosis);
        self::host::xdp(&plan, features, &mut diagnosis);
        self::host::conntrack(settings, conntrack_count(), &mut diagnosis);
        redirect::dead(&host.dead(&settings.rules, &plan), &mut diagnosis);
        let filters = rulesets(&mut diagnosis);
        let rulesets = &filters.rulesets;
        let services = host_ipvs::read();
        match Listeners::read(&settings.rules) {
            Ok(listeners) => {
                let taken = host.taken(&settings.rules, rulesets, &services);
                let all = listening::of_rules(&listeners, settings, host, &taken);
                redirect::listening(&all, &mut diagnosis);
            }
            Err(error) => diagnosis.not_checked("listeners", error),
        }
        firewall::check(rulesets, settings, &mut diagnosis);
        ipvs::check(&services, settings, &mut diagnosis);
        diagnosis.pass(FIREWALL, "no rule drops clients");
        diagnosis.pass(REDIRECTS, "no rule of another tool redirects these ports");
        ways::check(subject, (&plan, filters), &mut diagnosis);
    }
    diagnosis.findings.sort_by_key(|finding| finding.severity);
    diagnosis
}

/// The findings about packet filters alone, for rules that are to run: what some clients
/// lose by them.
#[must_use]
pub fn packet_filters(settings: &Settings) -> Vec<Finding> {
    let mut diagnosis = Diagnosis::default();
    let filters = rulesets(&mut diagnosis);
    firewall::check(&filters.rulesets, settings, &mut diagnosis);
    // Clients that somebody else leads on are served.
    let findings = diagnosis.findings.into_iter();
    findings
        .filter(|finding| finding.severity != Severity::Note)
        .collect()
}

/// The rules of all packet filters that can be read.
fn rulesets(diagnosis: &mut Diagnosis) -> Rulesets {
    let read = Rulesets::read();
    for why in &read.unread {
        diagnosis.not_checked(FIREWALL, why);
        diagnosis.not_checked(REDIRECTS, why);
    }
    read
}

/// The number of connections that the kernel tracks in this network namespace.
fn conntrack_count() -> io::Result<String> {
    fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")
}
