//! The words of the agent for the API: the state of its node, and the summary of an object.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::crd::{
    NodeCounts, PortRedirect, PortRedirectNode, PortRedirectNodeStatus, PortRedirectStatus,
    Protocol, RedirectRule, RedirectState, RuleState,
};
use super::desired::{Desired, Outcome, RuleOutcome};
use super::listing::{self, Unlisted};

/// The most texts of rules in the state of one rule: a rule may stand for a thousand.
const MOST_TEXTS: usize = 8;

/// The state of the node.
#[must_use]
pub fn of_node(desired: &Desired, failures: &[String]) -> PortRedirectNodeStatus {
    let all = desired.outcomes().count();
    let failed = desired
        .outcomes()
        .filter(|outcome| !outcome.reason.is_programmed())
        .count();
    let programmed = all - failed;
    let ready = if failed == 0 {
        condition(
            "Ready",
            "Programmed",
            format!("all {all} rules are in force"),
        )
    } else {
        condition(
            "Ready",
            "SomeRejected",
            format!("{programmed} of {all} rules are in force"),
        )
    };
    let degraded = if failures.is_empty() {
        condition("Degraded", "Works", "nothing fails".to_owned())
    } else {
        condition("Degraded", "Failing", failures.join("; "))
    };
    let mut redirects: Vec<_> = desired.redirects.iter().map(redirect).collect();
    let unlisted = listing::fit(&mut redirects, listing::MOST_BYTES);
    PortRedirectNodeStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel(),
        programmed: count(programmed),
        failed: count(failed),
        conditions: vec![
            is(ready, failed == 0),
            is(degraded, !failures.is_empty()),
            complete(unlisted),
        ],
        redirects,
        unlisted: count(unlisted.redirects),
    }
}

/// The condition that tells whether the state has everything.
fn complete(unlisted: Unlisted) -> Condition {
    let Unlisted { rules, redirects } = unlisted;
    let is_whole = unlisted == Unlisted::default();
    let (reason, text) = if is_whole {
        ("Listed", "all rules are listed".to_owned())
    } else {
        let text = format!(
            "{rules} rules, and {redirects} whole PortRedirects, are not listed, because the object \
             would be too large; on the node, `portredir rules` prints what is in force"
        );
        ("TooLarge", text)
    };
    is(condition("Complete", reason, text), is_whole)
}

/// The release of the running kernel; empty where it cannot be told.
fn kernel() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    text.unwrap_or_default().trim().to_owned()
}

fn redirect(outcome: &Outcome) -> RedirectState {
    RedirectState {
        name: outcome.name.clone(),
        generation: outcome.generation,
        rules: outcome.rules.iter().map(rule).collect(),
        unlisted: 0,
    }
}

fn rule(outcome: &RuleOutcome) -> RuleState {
    let texts = outcome.rules.iter().take(MOST_TEXTS);
    RuleState {
        name: outcome.name.clone(),
        programmed: outcome.reason.is_programmed(),
        reason: outcome.reason.to_string(),
        message: outcome.message.clone(),
        rules: texts.map(ToString::to_string).collect(),
    }
}

/// The status of an object, from the states of the nodes, which may come in any order. A
/// node that has seen an older generation only is not counted as programmed.
#[must_use]
pub fn of_redirect(
    redirect: &PortRedirect,
    nodes: &[impl AsRef<PortRedirectNode>],
) -> PortRedirectStatus {
    let generation = redirect.metadata.generation.unwrap_or_default();
    let name = redirect.name_any();
    let mut states = BTreeMap::new();
    for node in nodes.iter().map(AsRef::as_ref) {
        let all = node.status.iter().flat_map(|status| &status.redirects);
        if let Some(state) = all.into_iter().find(|state| state.name == name) {
            states.insert(node.name_any(), state);
        }
    }
    let failed: Vec<_> = states
        .iter()
        .filter_map(|(node, state)| failure(node, state, generation))
        .collect();
    let selected = states.len();
    let mut lists = nodes.iter().map(AsRef::as_ref);
    let is_cut = |node: &&PortRedirectNode| {
        let status = node.status.as_ref();
        status.is_some_and(|status| status.unlisted > 0)
    };
    let (reason, message) = match (failed.first(), lists.find(is_cut)) {
        (Some((reason, message)), _) => (reason.clone(), message.clone()),
        (None, Some(node)) if selected == 0 => (
            "NotListed".to_owned(),
            format!("{}: too many PortRedirects; see its state", node.name_any()),
        ),
        (None, _) if selected == 0 => (
            "NoNodes".to_owned(),
            "no node that runs an agent is selected".to_owned(),
        ),
        (None, _) => (
            "Programmed".to_owned(),
            format!("all rules are in force on {selected} nodes"),
        ),
    };
    let ready = condition("Ready", &reason, message);
    PortRedirectStatus {
        observed_generation: Some(generation),
        summary: summary(&redirect.spec.rules),
        nodes: Some(NodeCounts {
            selected: count(selected),
            programmed: count(selected - failed.len()),
            failed: count(failed.len()),
        }),
        conditions: vec![Condition {
            observed_generation: Some(generation),
            ..is(ready, failed.is_empty() && selected > 0)
        }],
    }
}

/// The reason why a node does not have all rules in force, if it does not.
fn failure(node: &str, state: &RedirectState, generation: i64) -> Option<(String, String)> {
    if state.generation != generation {
        let text = format!("{node}: generation {generation} is not in force yet");
        return Some(("Pending".to_owned(), text));
    }
    let rule = state.rules.iter().find(|rule| !rule.programmed)?;
    let text = format!("{node}: rule {}: {}", rule.name, rule.message);
    Some((rule.reason.clone(), text))
}

/// The ports as `80,443/both,10000-20000/udp`, cut where there are very many.
#[must_use]
pub fn summary(rules: &[RedirectRule]) -> String {
    const LONGEST: usize = 60;
    let mut text = String::new();
    for rule in rules {
        let suffix = match rule.protocol {
            Protocol::Tcp => "",
            Protocol::Udp => "/udp",
            Protocol::Both => "/both",
        };
        let ports = match rule.end_port {
            Some(end) => format!("{}-{end}{suffix}", rule.port),
            None => format!("{}{suffix}", rule.port),
        };
        if text.len() + ports.len() > LONGEST {
            return text + ",…";
        }
        if !text.is_empty() {
            text.push(',');
        }
        text += &ports;
    }
    text
}

/// Gives new conditions the times of the old ones, where the status stays.
pub fn keep_times(new: &mut [Condition], old: &[Condition]) {
    for condition in new {
        let before = old.iter().find(|old| old.type_ == condition.type_);
        if let Some(before) = before.filter(|before| before.status == condition.status) {
            condition.last_transition_time = before.last_transition_time.clone();
        }
    }
}

fn condition(kind: &str, reason: &str, message: String) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: "False".to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: Time(Timestamp::now()),
        observed_generation: None,
    }
}

/// The condition with its status.
fn is(condition: Condition, holds: bool) -> Condition {
    let status = if holds { "True" } else { "False" };
    Condition {
        status: status.to_owned(),
        ..condition
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::agent::reason::{Reason, Rejection};

    fn redirect(rules: Value) -> PortRedirect {
        serde_json::from_value(json!({
            "apiVersion": "portredir.io/v1alpha1", "kind": "PortRedirect",
            "metadata": {"name": "ingress", "generation": 2}, "spec": {"rules": rules},
        }))
        .expect("an object")
    }

    fn web() -> PortRedirect {
        redirect(json!([{"name": "web", "port": 80, "to": {"port": 8080}}]))
    }

    /// The state that a node has written.
    fn node(name: &str, generation: i64, reason: Reason) -> Arc<PortRedirectNode> {
        let mut outcome = RuleOutcome {
            name: "web".to_owned(),
            reason: Reason::Programmed,
            message: String::new(),
            rules: vec!["80:8080".parse().expect("a rule")],
        };
        if !reason.is_programmed() {
            outcome.reject(Rejection::new(reason, "why"));
        }
        let desired = Desired {
            redirects: vec![Outcome {
                name: "ingress".to_owned(),
                uid: String::new(),
                generation,
                rules: vec![outcome],
            }],
        };
        let status = of_node(&desired, &[]);
        Arc::new(
            serde_json::from_value(json!({
                "apiVersion": "portredir.io/v1alpha1", "kind": "PortRedirectNode",
                "metadata": {"name": name}, "spec": {}, "status": status,
            }))
            .expect("an object"),
        )
    }

    fn ready(status: &PortRedirectStatus) -> String {
        let ready = &status.conditions[0];
        format!("{} {} {}", ready.status, ready.reason, ready.message)
    }

    #[test]
    fn the_summary_names_the_first_node_that_fails() {
        let good = node("n1", 2, Reason::Programmed);
        let bad = node("n2", 2, Reason::Conflicted);
        let old = node("n3", 1, Reason::Programmed);
        let status = of_redirect(&web(), &[bad.clone(), good.clone()]);
        assert_eq!(ready(&status), "False Conflicted n2: rule web: why");
        assert_eq!(status, {
            let mut other = of_redirect(&web(), &[good.clone(), bad]);
            keep_times(&mut other.conditions, &status.conditions);
            other
        });
        let counts = status.nodes.expect("numbers");
        assert_eq!(
            (counts.selected, counts.programmed, counts.failed),
            (2, 1, 1)
        );
        let status = of_redirect(&web(), &[good.clone(), old]);
        assert!(ready(&status).starts_with("False Pending n3"), "{status:?}");
        let status = of_redirect(&web(), &[good]);
        assert!(ready(&status).starts_with("True Programmed"), "{status:?}");
        let status = of_redirect(&web(), &[] as &[Arc<PortRedirectNode>]);
        assert!(ready(&status).starts_with("False NoNodes"), "{status:?}");
    }

    #[test]
    fn a_failure_degrades_a_node_whose_rules_are_in_force() {
        let status = of_node(&Desired::default(), &["watch Pods: forbidden".to_owned()]);
        let all = status.conditions.iter();
        let all: Vec<_> = all.map(|one| (&*one.type_, &*one.status)).collect();
        let expected = [
            ("Ready", "True"),
            ("Degraded", "True"),
            ("Complete", "True"),
        ];
        assert_eq!(all, expected);
        assert_eq!(status.conditions[1].message, "watch Pods: forbidden");
    }

    #[test]
    fn ports_are_shown_in_one_line() {
        let object = redirect(json!([
            {"name": "a", "port": 80, "to": {"port": 8080}},
            {"name": "b", "port": 443, "protocol": "Both", "to": {"port": 8443}},
            {"name": "c", "port": 10000, "endPort": 20000, "protocol": "UDP", "to": {"port": 1}},
        ]));
        assert_eq!(summary(&object.spec.rules), "80,443/both,10000-20000/udp");
        let rules: Vec<_> = (0..128)
            .map(|i| json!({"name": format!("r{i}"), "port": 1000 + i, "to": {"port": 1}}))
            .collect();
        let text = summary(&redirect(json!(rules)).spec.rules);
        assert!(text.len() < 70 && text.ends_with(",…"), "{text}");
    }
}
