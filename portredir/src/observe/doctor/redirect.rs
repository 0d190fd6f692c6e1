//! Checks of the redirect itself: who watches it, where it is attached, whom it serves.

use super::subject::{Role, Running, State, Subject};
use crate::observe::faults;
use crate::observe::listening::{Kind, Listening};
use crate::plan::finding::{Diagnosis, Severity};
use crate::plan::{DeadReason, DeadRule, Plan};

/// Whether the redirect is watched, confirmed and whole.
pub fn running(running: &Running, diagnosis: &mut Diagnosis) {
    const WATCHER: &str = "watcher";
    const CHANGE: &str = "change";
    if let Some(pid) = running.silent {
        let what = format!("the watcher, process {pid}, does not answer");
        let why = "new interfaces and addresses are not redirected, and an unconfirmed change is \
                   not rolled back"
            .to_owned();
        let fix = format!("kill -9 {pid}; portredir watch");
        diagnosis.find(WATCHER, Severity::Error, [what, why, fix]);
    }
    match running.role {
        Role::Unwatched if running.silent.is_some() => {}
        Role::Unwatched => {
            let what = "no watcher process runs".to_owned();
            let why = "new interfaces and addresses are not redirected, and an unconfirmed change \
                       is not rolled back"
                .to_owned();
            let fix = "portredir watch, or: systemctl restart portredir".to_owned();
            diagnosis.find(WATCHER, Severity::Error, [what, why, fix]);
        }
        Role::Watched(pid) => diagnosis.pass(WATCHER, format!("process {pid} watches")),
        Role::Foreground(pid) => diagnosis.pass(WATCHER, format!("process {pid} redirects")),
    }
    if let Some(seconds) = running.confirm_within {
        let what = format!("the last change is rolled back in {seconds} s");
        let why = "nobody has confirmed it".to_owned();
        let fix = "portredir confirm".to_owned();
        diagnosis.find(CHANGE, Severity::Warning, [what, why, fix]);
    }
    diagnosis.pass(CHANGE, "no change waits for its confirmation");
}

/// Servers that the kernel does not let a socket lookup deliver to.
pub fn unregistered(running: &Running, diagnosis: &mut Diagnosis) {
    const CHECK: &str = "socket-lookup";
    for server in &running.unregistered {
        let port = server.port;
        let what = format!("the server on {port}/tcp is out of reach: {}", server.why());
        let why = "connections that --engine socket, or a rule for clients behind IPsec, sends \
                   there are refused"
            .to_owned();
        let fix = "portredir save - | portredir up --config - --engine auto; or: start the server \
                   without MPTCP"
            .to_owned();
        diagnosis.find(CHECK, Severity::Error, [what, why, fix]);
    }
    diagnosis.pass(CHECK, "no server is out of reach");
}

/// Filters that a killed run has left, which redirect by rules that nobody keeps.
pub fn left(interfaces: &[String], diagnosis: &mut Diagnosis) {
    const CHECK: &str = "leftovers";
    if !interfaces.is_empty() {
        let names = interfaces.join(", ");
        let what = format!("a killed run has left its tc filters on {names}");
        let why = "they may still redirect".to_owned();
        let fix = "portredir down".to_owned();
        diagnosis.find(CHECK, Severity::Error, [what, why, fix]);
    }
    diagnosis.pass(CHECK, "no filters of a killed run");
}

/// Whether programs are attached where the settings want them.
pub fn attached(subject: &Subject<'_>, plan: &Plan, diagnosis: &mut Diagnosis) {
    const CHECK: &str = "interfaces";
    for refused in &plan.refuse {
        let why = "clients on this interface are not redirected".to_owned();
        let fix = "portredir up --engine auto".to_owned();
        diagnosis.find(CHECK, Severity::Error, [refused.to_string(), why, fix]);
    }
    if let State::Running(running) = &subject.state {
        for fault in faults::of_interfaces(&running.interfaces, subject.host, plan) {
            let why = "clients on this interface are not redirected, or get no replies".to_owned();
            let fix = fault.fix.unwrap_or_default();
            diagnosis.find(CHECK, Severity::Error, [fault.what, why, fix]);
        }
    }
    let names: Vec<_> = plan
        .attach
        .values()
        .map(|p| p.interface.name.as_str())
        .collect();
    diagnosis.pass(CHECK, names.join(", "));
}

/// Rules that match nothing.
pub fn dead(dead: &[DeadRule], diagnosis: &mut Diagnosis) {
    const CHECK: &str = "rules";
    for dead in dead {
        let rule = &dead.rule;
        let what = dead.to_string();
        let why = "the rule redirects no client there".to_owned();
        let fix = match &dead.reason {
            DeadReason::ForeignAddr(addr) => {
                format!("ip addr add {addr} dev INTERFACE; or: portredir rm '{rule}'")
            }
            DeadReason::NoInterface { .. } => format!("portredir rm '{rule}'"),
            DeadReason::Unhooked { name, .. } => format!(
                "let --iface select {name}, or the interface that handles its packets; or: \
                 portredir rm '{rule}'"
            ),
        };
        diagnosis.find(CHECK, Severity::Warning, [what, why, fix]);
    }
    diagnosis.pass(CHECK, "every rule can match");
}

/// Servers that are missing or refuse clients, and servers that lose theirs.
pub fn listening(all: &[Listening], diagnosis: &mut Diagnosis) {
    const CHECK: &str = "listeners";
    for listening in all {
        for finding in &listening.findings {
            let (severity, why) = match finding.kind {
                Kind::Nobody { rests: false } => (
                    Severity::Warning,
                    "clients are refused until a server listens",
                ),
                Kind::Nobody { rests: true } => (
                    Severity::Note,
                    "clients reach the destination port itself meanwhile",
                ),
                Kind::LoopbackOnly { .. } => (
                    Severity::Error,
                    "the server accepts clients of this host only",
                ),
                Kind::NotBy(_) | Kind::SomeAddresses { .. } | Kind::OneDevice(_) => (
                    Severity::Warning,
                    "the server accepts only a part of the clients of the rule",
                ),
                Kind::Shadowed { .. } => (
                    Severity::Warning,
                    "the server looks as if it ran well, and gets no new clients",
                ),
            };
            let what = format!("{}: {finding}", listening.rule);
            diagnosis.find(CHECK, severity, [what, why.to_owned(), finding.fix()]);
        }
    }
    diagnosis.pass(CHECK, "every target port has a server for all clients");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::loader::Unregistered;

    #[test]
    fn a_redirect_without_a_watcher_is_a_finding() {
        for (role, confirm_within, checks) in [
            (Role::Watched(7), None, &[][..]),
            (Role::Foreground(7), None, &[]),
            (Role::Unwatched, None, &["watcher"]),
            (Role::Watched(7), Some(20), &["change"]),
        ] {
            let mut diagnosis = Diagnosis::default();
            let is_running = Running {
                role,
                confirm_within,
                interfaces: Vec::new(),
                silent: None,
                flow_tables: Vec::new(),
                unregistered: Vec::new(),
                drops: BTreeMap::new(),
            };
            running(&is_running, &mut diagnosis);
            let found: Vec<_> = diagnosis.findings.iter().map(|f| f.check).collect();
            assert_eq!(found, checks);
        }
    }

    #[test]
    fn a_server_that_the_kernel_refuses_is_a_finding() {
        let mut running = Running {
            role: Role::Watched(7),
            confirm_within: None,
            interfaces: Vec::new(),
            silent: None,
            flow_tables: Vec::new(),
            unregistered: Vec::new(),
            drops: BTreeMap::new(),
        };
        let mut diagnosis = Diagnosis::default();
        unregistered(&running, &mut diagnosis);
        assert_eq!((diagnosis.findings.len(), diagnosis.passed.len()), (0, 1));
        let errno = libc::EOPNOTSUPP;
        running
            .unregistered
            .push(Unregistered { port: 8080, errno });
        unregistered(&running, &mut diagnosis);
        assert!(
            diagnosis.findings[0]
                .what
                .contains("8080/tcp is out of reach: the server uses MPTCP")
        );
    }

    #[test]
    fn filters_of_a_killed_run_are_a_finding() {
        let mut diagnosis = Diagnosis::default();
        left(&[], &mut diagnosis);
        assert!(diagnosis.findings.is_empty() && diagnosis.passed.len() == 1);
        left(&["eth0".to_owned()], &mut diagnosis);
        assert_eq!(diagnosis.findings[0].fix, "portredir down");
    }

    #[test]
    fn dead_rules_have_a_cure() {
        let rule: crate::rule::Rule = "192.0.2.1:80:8080".parse().expect("a rule");
        let addr = "192.0.2.1".parse().expect("an address");
        let reason = DeadReason::ForeignAddr(addr);
        let mut diagnosis = Diagnosis::default();
        dead(&[DeadRule { rule, reason }], &mut diagnosis);
        assert_eq!(
            diagnosis.findings[0].fix,
            "ip addr add 192.0.2.1 dev INTERFACE; or: portredir rm '192.0.2.1:80:8080'"
        );
    }
}
