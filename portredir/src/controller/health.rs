//! The faults of an active redirect, each with the command that mends it.

use super::change::HostView;
use super::error::ChangeError;
use crate::host::netlink::{HostError, Netlink};
use crate::ipc::client::Answer;
use crate::observe::faults::{self, Fault};
use crate::plan::Attached;
use crate::ruleset::forwarding;

/// The command that starts a watcher.
const WATCH: &str = "portredir watch";

/// The host of the redirect that answered.
///
/// # Errors
///
/// Interfaces or addresses cannot be listed.
pub async fn host(answer: &Answer) -> Result<HostView, HostError> {
    let attached = indexes(answer).map(|index| (index, Attached::SOMEHOW));
    let snapshot = Netlink::open()?.snapshot().await?;
    Ok(HostView::new(
        snapshot,
        &answer.settings,
        attached.collect(),
    ))
}

/// The faults of a redirect on this host.
#[must_use]
pub fn faults(answer: &Answer, host: &HostView) -> Vec<Fault> {
    let mut all: Vec<_> = watcher(answer).into_iter().collect();
    let plan = host.plan(&answer.settings);
    let interfaces = &answer.report.interfaces;
    all.extend(faults::of_interfaces(interfaces, &host.snapshot, &plan));
    let dead = host.snapshot.dead_rules(&answer.settings.rules, &plan);
    all.extend(dead.into_iter().map(|warning| Fault {
        what: warning.trim_start_matches("warning: ").to_owned(),
        fix: None,
    }));
    all
}

/// The faults of the ways to the targets of the rules, for which the kernel is asked now.
///
/// # Errors
///
/// [`ChangeError::Host`]: the kernel does not answer.
pub fn way_faults(answer: &Answer, host: &HostView) -> Result<Vec<Fault>, ChangeError> {
    let look = host.look_at_ways(&answer.settings)?;
    let findings = look.ways.into_iter().flat_map(|way| way.findings);
    let mut faults = Vec::new();
    for finding in findings {
        let fault = Fault::new(format!("{}: {}", finding.what, finding.why), &finding.fix);
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }
    Ok(faults)
}

fn indexes(answer: &Answer) -> impl Iterator<Item = u32> {
    let interfaces = answer.report.interfaces.iter();
    interfaces.map(|interface| interface.report.ifindex)
}

/// The fault of a watcher that is not alive.
fn watcher(answer: &Answer) -> Option<Fault> {
    if let Some(pid) = answer.silent {
        let fix = format!("kill -9 {pid}; {WATCH}");
        return Some(Fault::new(
            format!("the watcher, process {pid}, does not answer"),
            &fix,
        ));
    }
    answer.role.is_none().then(|| {
        let checks = match unchecked(answer) {
            Some(unchecked) => format!("; {unchecked}"),
            None => String::new(),
        };
        let what = "no watcher process tracks interfaces and addresses, or repairs what others \
                    detach";
        Fault::new(format!("{what}{checks}"), WATCH)
    })
}

/// The words about targets that no process checks, where some are to be checked.
#[must_use]
pub fn unchecked(answer: &Answer) -> Option<String> {
    let rules = &answer.settings.rules;
    let has_checks = rules.iter().any(|rule| forwarding::check(rule).is_some());
    if answer.role.is_some() || !has_checks {
        return None;
    }
    let since = answer.checked_at.map_or_else(String::new, |at| {
        format!(" since {}", at.strftime("%Y-%m-%dT%H:%M:%SZ"))
    });
    Some(format!(
        "nobody checks targets{since}, and all stay as they were"
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use portredir_common::wire::frame::Link;

    use super::*;
    use crate::config::settings::Settings;
    use crate::host::features::Features;
    use crate::host::snapshot::{Interface as HostInterface, Snapshot};
    use crate::ipc::client::Role;
    use crate::loader::counters::Counters;
    use crate::loader::inspect::Occupant;
    use crate::observe::attached::sample;
    use crate::observe::report::Report;
    use crate::rule::tests::rule;

    fn host_with(names: &[&str]) -> HostView {
        let interface = |(index, name): (u32, &&str)| {
            let interface = HostInterface {
                name: (*name).to_owned(),
                is_up: true,
                mtu: 1500,
                ..HostInterface::new(index, Link::Ethernet)
            };
            (index, interface)
        };
        HostView {
            snapshot: Snapshot {
                interfaces: (2..).zip(names).map(interface).collect(),
                ..Snapshot::default()
            },
            features: Features {
                cgroup: None,
                tcx: Some(true),
                page_bytes: 4096,
            },
            attached: BTreeMap::from([(2, Attached::SOMEHOW)]),
        }
    }

    fn answer(rule: &str, ours: Option<u32>, instead: Option<Occupant>) -> Answer {
        let interfaces = vec![sample("eth0", 2, ours, instead)];
        Answer {
            role: Some(Role::Watcher),
            pid: 8,
            version: String::new(),
            settings: Settings {
                rules: vec![rule.parse().expect("a rule")],
                ..Settings::default()
            },
            silent: None,
            since: None,
            changed: None,
            confirmed_ago: None,
            confirm_within: None,
            rolled_back_ago: None,
            flow_tables: Vec::new(),
            unregistered: Vec::new(),
            reconciled: None,
            checked_at: None,
            report: Report::new(&[], interfaces, &Counters::default(), &[]),
        }
    }

    fn whats(answer: &Answer, host: &HostView) -> Vec<String> {
        let faults = faults(answer, host).into_iter();
        faults.map(|fault| fault.what).collect()
    }

    #[test]
    fn each_fault_is_found_and_nothing_else() {
        let good = answer("80:8080", Some(7), None);
        let eth0 = host_with(&["eth0"]);
        assert!(faults(&good, &eth0).is_empty());

        let missing = answer("80:8080", None, None);
        let expected = "eth0: tcx ingress portredir_in: missing";
        assert_eq!(whats(&missing, &eth0), [expected]);
        assert_eq!(
            faults(&missing, &eth0)[0].fix.as_deref(),
            Some("portredir save - | portredir up --config -")
        );

        let replaced = answer("80:8080", None, Some(9.into()));
        let expected = "eth0: tcx ingress portredir_in: replaced by program id 9";
        assert_eq!(whats(&replaced, &eth0), [expected]);
        let fix = faults(&replaced, &eth0)[0].fix.clone();
        assert!(fix.expect("a fix").contains("bpftool prog show id 9"));

        assert_eq!(
            whats(&good, &host_with(&["eth0", "eth1"])),
            ["eth1: not attached"]
        );
        assert!(
            whats(&missing, &host_with(&[])).is_empty(),
            "the interface went"
        );

        let dead = answer("80:8080 on wg0", Some(7), None);
        let said = whats(&dead, &eth0);
        assert!(said[0].contains("`wg0` does not exist yet"), "{said:?}");
    }

    #[test]
    fn a_watcher_has_to_answer() {
        let eth0 = host_with(&["eth0"]);
        let mut answer = answer("80:8080", Some(7), None);
        answer.role = None;
        assert!(whats(&answer, &eth0)[0].starts_with("no watcher process"));
        assert!(!whats(&answer, &eth0)[0].contains("targets"));
        answer.settings.rules = vec![rule("80:10.0.0.5:8080,10.0.0.6:8080")];
        answer.checked_at = Some(Timestamp::UNIX_EPOCH);
        let said = whats(&answer, &eth0);
        let expected =
            "nobody checks targets since 1970-01-01T00:00:00Z, and all stay as they were";
        assert!(said[0].ends_with(expected), "{said:?}");
        answer.silent = Some(812);
        assert_eq!(
            faults(&answer, &eth0),
            [Fault::new(
                "the watcher, process 812, does not answer",
                "kill -9 812; portredir watch"
            )]
        );
    }
}
