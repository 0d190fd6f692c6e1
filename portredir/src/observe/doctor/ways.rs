//! The ways to targets with an address: routes, links, neighbours, forwarding, packet filters
//! and the way back.

use super::subject::{State, Subject};
use crate::host::packet_filter::Rulesets;
use crate::host::way::Facts;
use crate::plan::Plan;
use crate::plan::finding::{Diagnosis, Severity};
use crate::plan::way::{FAMILY, FIREWALL, ROUTE, WayRequest, Ways, checks};
use crate::rule::{Forward, Rule};

/// Looks at the ways to the targets of all rules.
pub fn check(subject: &Subject<'_>, (plan, filters): (&Plan, Rulesets), diagnosis: &mut Diagnosis) {
    let Subject {
        settings,
        state,
        host,
        ..
    } = subject;
    for rule in settings.rules.iter().filter(|rule| has_own_target(rule)) {
        let why = format!("not evaluated: packet filters for the own ports of {rule}");
        diagnosis.not_checked(FIREWALL, why);
    }
    let misled = checks::misled(&settings.rules, plan.local_engine());
    diagnosis.findings.extend(misled);
    let wanted = host.wanted_ways(&settings.rules, plan);
    if wanted.is_empty() {
        return;
    }
    // What runs was allowed to switch forwarding on: what is off now, `up` has to mend.
    let is_running = matches!(state, State::Running(_));
    let request = WayRequest {
        wanted: &wanted,
        local: plan.local_engine(),
        may_enable: settings.enable_forwarding && !is_running,
    };
    match Facts::without_filters(host, &request.targets(), &request.ingress()) {
        Ok(facts) => add(&Facts { filters, ..facts }, request, diagnosis),
        Err(error) => diagnosis.not_checked(ROUTE, error),
    }
}

/// Adds what the plan of the ways says.
fn add(facts: &Facts, request: WayRequest<'_>, diagnosis: &mut Diagnosis) {
    let ways = Ways::plan(facts, request).diagnosis;
    let findings = ways.findings.into_iter();
    // A rule for one IP version is no fault of a host.
    let findings = findings.filter(|it| it.check != FAMILY || it.severity != Severity::Note);
    diagnosis.findings.extend(findings);
    diagnosis.unchecked.extend(ways.unchecked);
    diagnosis.passed.extend(ways.passed);
}

/// Whether a rule has a port of this host among other targets.
fn has_own_target(rule: &Rule) -> bool {
    let mut targets = rule.forward().into_iter().flat_map(Forward::all_targets);
    targets.any(|target| target.host.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::tests::rule;

    #[test]
    fn own_ports_among_targets_are_named() {
        for (text, has_own) in [
            ("80:8080", false),
            ("80:10.0.0.5:8080", false),
            ("80:10.0.0.5:8080,8080", true),
            ("80:8080,8081", true),
            ("80:10.0.0.5:8080 else 9090", true),
        ] {
            assert_eq!(has_own_target(&rule(text)), has_own, "{text}");
        }
    }
}
