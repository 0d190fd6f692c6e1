//! Health checks of own ports that a rule leads elsewhere: the process that checks is a
//! client of this host like others.

use std::net::{IpAddr, Ipv4Addr};

use portredir_common::net::{Port, Protocol};

use super::Ways;
use crate::config::engine::Engine;
use crate::plan::finding::{Finding, Severity};
use crate::rule::target::CheckBy;
use crate::rule::{Forward, Rule};

/// The check of health checks.
pub const CHECK: &str = "target-check";

/// The health checks of own ports that another rule redirects, where some engine redirects
/// clients of this host.
///
/// Sockets of checks are bound to loopback, so a rule with targets leaves them alone. A rule
/// with one port of this host does not.
#[must_use]
pub fn misled(rules: &[Rule], local: Option<Engine>) -> Vec<Finding> {
    if local.is_none() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for rule in rules {
        for port in checked_here(rule) {
            let other = rules.iter().find(|other| takes(other, port));
            findings.extend(other.map(|other| finding(rule, port, other)));
        }
    }
    findings
}

/// The ports of this host that the health checks of a rule ask.
fn checked_here(rule: &Rule) -> impl Iterator<Item = Port> {
    let forward = rule.forward().filter(|forward| forward.check.is_some());
    forward.into_iter().flat_map(|forward: &Forward| {
        let asked = match forward.check.as_ref().map(|check| &check.by) {
            Some(CheckBy::Tcp(port)) => *port,
            _ => None,
        };
        // The target of `else` is not checked.
        let own = forward
            .targets
            .iter()
            .filter(|target| target.host.is_none());
        own.map(move |target| asked.unwrap_or(Port::new(target.ports.first)))
    })
}

/// Whether a rule redirects a connection of this host to its own port.
fn takes(rule: &Rule, port: Port) -> bool {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    rule.here().is_some()
        && rule.protocols.each().contains(&Protocol::Tcp)
        && rule.redirects(port)
        && rule.addr.is_none_or(|addr| addr == loopback)
        && rule.from.is_none_or(|from| from.contains(&loopback))
        && (rule.on.is_empty() || rule.on.iter().any(|name| name == "lo"))
}

fn finding(rule: &Rule, port: Port, other: &Rule) -> Finding {
    let port = port.get();
    Finding {
        severity: Severity::Warning,
        check: CHECK,
        what: format!("the health check of own port {port} in rule `{rule}` asks another server"),
        why: format!(
            "the check is a client of this host, and rule `{other}` redirects it as all others"
        ),
        fix: "give that server a port that no rule has; or check another port: check tcp:PORT"
            .to_owned(),
    }
}

impl Ways {
    /// Adds findings.
    #[must_use]
    pub fn with(mut self, findings: Vec<Finding>) -> Self {
        self.diagnosis.findings.extend(findings);
        self.diagnosis
            .findings
            .sort_by_key(|finding| finding.severity);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::tests::rule;

    #[test]
    fn checks_that_another_rule_takes_are_found() {
        for (checked, other, is_found) in [
            ("80:8080,10.0.0.5:8080", "8080:9090", true),
            ("80:8080,8081", "8000-8100:9090", true),
            ("80:8080,10.0.0.5:8080", "127.0.0.1:8080:9090", true),
            ("80:8080,10.0.0.5:8080", "8080:9090 on lo", true),
            // A rule with targets leaves what is bound to loopback alone.
            ("80:8080,10.0.0.5:8080", "8080:10.0.0.6:9090", false),
            ("80:80,10.0.0.5:80", "81:8081", false),
            ("80:8080,10.0.0.5:8080 check none", "8080:9090", false),
            ("80:8080,10.0.0.5:8080 check tcp:8081", "8080:9090", false),
            ("80:9000,10.0.0.5:8080 check tcp:8080", "8080:9090", true),
            ("80:10.0.0.5:8080,10.0.0.6:8080", "8080:9090", false),
            ("80:8080,10.0.0.5:8080", "8080:9090/udp", false),
            ("80:8080,10.0.0.5:8080", "192.0.2.1:8080:9090", false),
            (
                "80:8080,10.0.0.5:8080",
                "8080:9090 from 192.0.2.0/24",
                false,
            ),
            ("80:8080,10.0.0.5:8080", "8080:9090 on eth0", false),
        ] {
            let rules = [rule(checked), rule(other)];
            let found = misled(&rules, Some(Engine::Cgroup));
            assert_eq!(!found.is_empty(), is_found, "{checked} {other}: {found:?}");
            assert_eq!(misled(&rules, None), []);
        }
    }
}
