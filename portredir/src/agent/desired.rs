//! The rules that this node should have, worked out of all objects at once.
//!
//! The function is pure: the same objects give the same rules, in whatever order they came.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::claims::{self, Claim};
use super::cluster::Cluster;
use super::crd::{PortRedirect, RedirectRule};
use super::reason::{Reason, Rejection};
use super::target;
use super::words;
use crate::plan::lockout::{self, LockoutError};
use crate::rule::Rule;

/// The configuration of the agent itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Base<'a> {
    /// The rules of the agent's configuration, which come before those of the API.
    pub rules: &'a [Rule],
    /// Whether target ports are hidden from other hosts.
    pub hides_targets: bool,
}

/// The outcome for the PortRedirects that select this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// The PortRedirects, older ones first.
    pub redirects: Vec<Outcome>,
}

/// The outcome for one PortRedirect.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The name of the object.
    pub name: String,
    /// The identity of the object.
    pub uid: String,
    /// The generation of the object.
    pub generation: i64,
    /// The outcome for each rule, in the order of the object.
    pub rules: Vec<RuleOutcome>,
}

/// The outcome for one rule of a PortRedirect.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleOutcome {
    /// The name of the rule.
    pub name: String,
    /// The reason in one word.
    pub reason: Reason,
    /// The reason in a sentence; empty where there is nothing to say.
    pub message: String,
    /// The rules of portredir; empty where the rule is not put in force.
    pub rules: Vec<Rule>,
}

impl RuleOutcome {
    /// Takes the rule back.
    pub fn reject(&mut self, rejection: Rejection) {
        self.reason = rejection.reason;
        self.message = rejection.message;
        self.rules.clear();
    }
}

impl Desired {
    /// All rules for the datapath, without those of the configuration.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let outcomes = self.outcomes();
        outcomes.flat_map(|outcome| outcome.rules.clone()).collect()
    }

    /// The outcome for each rule.
    pub fn outcomes(&self) -> impl Iterator<Item = &RuleOutcome> {
        self.redirects.iter().flat_map(|redirect| &redirect.rules)
    }

    /// The outcome for each rule, to be changed.
    pub fn outcomes_mut(&mut self) -> impl Iterator<Item = &mut RuleOutcome> {
        let redirects = self.redirects.iter_mut();
        redirects.flat_map(|redirect| &mut redirect.rules)
    }
}

/// Works out what becomes of all objects on this node.
#[must_use]
pub fn desired(cluster: &Cluster, base: Base<'_>) -> Desired {
    let mut desired = Desired {
        redirects: cluster
            .selected()
            .into_iter()
            .map(|redirect| outcome(cluster, redirect, base))
            .collect(),
    };
    settle(&mut desired, base.rules);
    for outcome in desired.outcomes_mut() {
        if let Some(message) = shadows(cluster, &outcome.rules) {
            outcome.reason = Reason::Shadows;
            outcome.message = message;
        }
    }
    desired
}

/// The outcome for one object, without regard to others.
fn outcome(cluster: &Cluster, redirect: &PortRedirect, base: Base<'_>) -> Outcome {
    let rules = redirect.spec.rules.iter();
    Outcome {
        name: redirect.name_any(),
        uid: redirect.uid().unwrap_or_default(),
        generation: redirect.metadata.generation.unwrap_or_default(),
        rules: rules
            .map(|rule| {
                let allowed = words::rules(cluster, rule).and_then(|rules| {
                    guard(&rules, redirect.spec.force, base)?;
                    Ok(rules)
                });
                alone(rule, allowed)
            })
            .collect(),
    }
}

fn alone(rule: &RedirectRule, result: Result<Vec<Rule>, Rejection>) -> RuleOutcome {
    let mut outcome = RuleOutcome {
        name: rule.name.clone(),
        reason: Reason::Programmed,
        message: String::new(),
        rules: Vec::new(),
    };
    match result {
        Ok(rules) => outcome.rules = rules,
        Err(rejection) => outcome.reject(rejection),
    }
    outcome
}

/// Refuses ports by which the node is administered.
fn guard(rules: &[Rule], is_forced: bool, base: Base<'_>) -> Result<(), Rejection> {
    if is_forced {
        return Ok(());
    }
    lockout::check(rules, base.hides_targets, None).map_err(|error| {
        let LockoutError {
            rule,
            how,
            port,
            what,
        } = error;
        let port = port.get();
        let text = format!("`{rule}` {how} port {port}, {what}; to allow it, set spec.force");
        Rejection::new(Reason::Protected, text)
    })
}

/// Takes back the rules whose ports older ones have.
fn settle(desired: &mut Desired, fixed: &[Rule]) {
    let redirects = desired.redirects.iter();
    let claims: Vec<_> = redirects
        .flat_map(|redirect| {
            redirect.rules.iter().map(|outcome| Claim {
                owner: format!("rule {} of PortRedirect {}", outcome.name, redirect.name),
                rules: outcome.rules.clone(),
            })
        })
        .collect();
    let mut refused = claims::refused(fixed, &claims);
    for (i, outcome) in desired.outcomes_mut().enumerate() {
        if let Some(rejection) = refused.remove(&i) {
            outcome.reject(rejection);
        }
    }
}

/// The words about a pod whose port on the node the rules take.
fn shadows(cluster: &Cluster, rules: &[Rule]) -> Option<String> {
    let mut pods: Vec<_> = cluster.pods.iter().map(AsRef::as_ref).collect();
    pods.sort_by_key(|pod: &&Pod| (pod.namespace(), pod.name_any()));
    pods.into_iter().find_map(|pod| {
        let port = host_ports(pod).find(|(port, protocol)| {
            rules.iter().any(|rule| {
                let mut protocols = rule.protocols.each().iter();
                protocols.any(|one| target::name(*one) == protocol) && takes(rule, *port)
            })
        });
        let (port, protocol) = port?;
        let namespace = pod.namespace().unwrap_or_default();
        let name = pod.name_any();
        Some(format!(
            "pod {namespace}/{name} publishes port {port} of {protocol} on this node, and packets \
             that match this rule no longer reach it there"
        ))
    })
}

fn takes(rule: &Rule, port: i32) -> bool {
    u16::try_from(port).is_ok_and(|port| rule.redirects(portredir_common::net::Port::new(port)))
}

/// The ports that a pod publishes on the node, with their protocols. Finished pods publish
/// none.
fn host_ports(pod: &Pod) -> impl Iterator<Item = (i32, String)> {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let is_over = matches!(phase, Some("Succeeded" | "Failed"));
    let spec = pod.spec.iter().filter(move |_| !is_over);
    let containers = spec.flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        Some((port.host_port?, protocol))
    })
}

#[cfg(test)]
mod tests;
