//! From rules to services, and from services to what the programs look up.
//!
//! A rule has a service for each IP version that a target of it has: clients of one version
//! are shared among the targets of that version alone. Both have one number in the maps.

use std::collections::HashMap;

use portredir_common::map::targets as map;
use portredir_common::net::{Port, Version};

use super::health::{Check, RuleCheck, Timing};
use super::services::endpoint::{Endpoint, Range};
use super::services::service::{Affinity, Otherwise, Service};
use super::services::{Services, WantedService, WantedTarget};
use crate::rule::target::{self, CheckBy, Else, Forward, RuleTarget, To, WhenDown};
use crate::rule::{Ports, Rule};

/// A rule, with the number of its counters.
pub type Numbered = (u16, Rule);

/// The services that rules need. `leaving` are removed rules whose flows go on: they take no
/// new ones. `has_flows` tells of a service whether flows go on; a rule with one port of this
/// host needs a service while the one that it replaces has some.
#[must_use]
pub fn wanted(
    rules: &[Numbered],
    leaving: &[Numbered],
    has_flows: impl Fn(&str) -> bool,
) -> Vec<WantedService> {
    let mut wanted = Vec::new();
    for (id, rule) in rules {
        let here;
        let forward = match &rule.to {
            To::Forward(forward) => &**forward,
            To::Here(ports) if VERSIONS.iter().any(|v| has_flows(&key(rule, *v))) => {
                here = one_here(*ports);
                &here
            }
            To::Here(_) => continue,
        };
        wanted.extend(services_of(*id, rule, forward, Share::Wanted));
    }
    for (id, rule) in leaving {
        if let To::Forward(forward) = &rule.to {
            wanted.extend(services_of(*id, rule, forward, Share::None));
        }
    }
    wanted
}

/// The number in the maps of the service of a rule.
#[must_use]
pub fn number(services: &Services, rule: &Rule) -> Option<u16> {
    let mut versions = VERSIONS.into_iter();
    versions.find_map(|version| Some(services.of_key(&key(rule, version))?.number))
}

/// The listen part of the rule of a service.
#[must_use]
pub fn listen_part(service: &Service) -> &str {
    split(&service.key).0
}

/// The health check of the targets of a rule, if they have one.
#[must_use]
pub fn check(rule: &Rule) -> Option<RuleCheck> {
    let check = rule.forward()?.check.as_ref()?;
    let (question, port) = match &check.by {
        CheckBy::Tcp(port) => (Check::Tcp, *port),
        CheckBy::Udp(port) => (Check::Udp, *port),
        CheckBy::Http(path) => (Check::Http { path: path.clone() }, None),
    };
    Some(RuleCheck {
        check: question,
        port,
        timing: Timing {
            every: check.every,
            timeout: check.timeout,
            rise: check.rise.into(),
            fall: check.fall.into(),
        },
    })
}

/// Whether a target of a rule has a number for which a test holds.
pub fn has_target(services: &Services, rule: &Rule, is_it: impl Fn(u16) -> bool) -> bool {
    let mut versions = VERSIONS.into_iter();
    versions.any(|version| {
        let service = services.of_key(&key(rule, version));
        service.is_some_and(|service| service.all_targets().any(|target| is_it(target.number)))
    })
}

/// The values of `SERVICES`, each by its number and IP version.
#[must_use]
pub fn values(services: &Services) -> Vec<((u16, u8), map::Service)> {
    let contents: HashMap<_, _> = services.map_contents().services.into_iter().collect();
    let mut values = Vec::new();
    for service in services.iter().filter(|service| !service.is_removed) {
        let Some(value) = contents.get(&service.number) else {
            continue;
        };
        let (listen, version) = split(&service.key);
        let first = services.of_key(&key_of(listen, Version::V4));
        let number = first.map_or(service.number, |first| first.number);
        values.push(((number, version as u8), *value));
        let is_for_both = services.of_key(&key_of(listen, Version::V6)).is_none()
            && service
                .all_targets()
                .all(|target| target.endpoint.host.is_none());
        if is_for_both {
            values.push(((number, Version::V6 as u8), *value));
        }
    }
    values
}

const VERSIONS: [Version; 2] = [Version::V4, Version::V6];

/// The key of the service of a rule for clients of an IP version.
fn key(rule: &Rule, version: Version) -> String {
    key_of(&rule.listen_key(), version)
}

fn key_of(listen: &str, version: Version) -> String {
    format!("{listen} ipv{}", version as u8)
}

/// The listen part of a key, and the version.
fn split(key: &str) -> (&str, Version) {
    match key.strip_suffix(" ipv6") {
        Some(listen) => (listen, Version::V6),
        None => (key.trim_end_matches(" ipv4"), Version::V4),
    }
}

/// Whether clients of an IP version can have a target.
fn is_for(target: &RuleTarget, version: Version) -> bool {
    target
        .host
        .is_none_or(|host| host.is_ipv4() == (version == Version::V4))
}

/// The share of new flows that targets get.
#[derive(Clone, Copy)]
enum Share {
    /// The weights of the rule.
    Wanted,
    /// None: the rule is gone.
    None,
}

fn services_of(
    id: u16,
    rule: &Rule,
    forward: &Forward,
    share: Share,
) -> impl Iterator<Item = WantedService> {
    let is_here_alone = forward.all_targets().all(|target| target.host.is_none());
    let versions = VERSIONS.into_iter().filter(move |version| {
        let has_own = forward.all_targets().any(|target| is_for(target, *version));
        let is_right = rule
            .addr
            .is_none_or(|addr| addr.is_ipv4() == (*version == Version::V4));
        // One service is for both versions.
        has_own && is_right && (!is_here_alone || *version == Version::V4 || rule.addr.is_some())
    });
    versions.map(move |version| {
        let targets = forward
            .targets
            .iter()
            .filter(move |target| is_for(target, version));
        let otherwise = match (&forward.otherwise, share) {
            (Some(Else::Target(target)), Share::Wanted) if is_for(target, version) => {
                Otherwise::Target(endpoint(target, rule.ports))
            }
            (Some(Else::Drop), Share::Wanted) => Otherwise::Drops,
            _ => Otherwise::Rests,
        };
        WantedService {
            key: key(rule, version),
            rule: id,
            affinity: match forward.affinity {
                target::Affinity::Flow => Affinity::None,
                target::Affinity::Client => Affinity::Client,
            },
            cut: forward.when_down == WhenDown::Cut,
            targets: targets
                .map(|target| WantedTarget {
                    endpoint: endpoint(target, rule.ports),
                    weight: match share {
                        Share::Wanted => target.weight,
                        Share::None => 0,
                    },
                })
                .collect(),
            otherwise,
        }
    })
}

fn endpoint(target: &RuleTarget, dst_ports: Ports) -> Endpoint {
    let Ports { first, last } = target.ports;
    Endpoint {
        host: target.host,
        port: Port::new(first),
        range: (first != last).then(|| Range {
            first_dst_port: Port::new(dst_ports.first),
            last_port: Port::new(last),
        }),
    }
}

/// One port of this host, as a target among others.
fn one_here(ports: Ports) -> Forward {
    Forward {
        targets: vec![RuleTarget {
            host: None,
            ports,
            weight: 1,
        }],
        check: None,
        affinity: target::Affinity::default(),
        otherwise: None,
        when_down: WhenDown::default(),
    }
}

#[cfg(test)]
mod tests {
    use portredir_common::map::targets::{SLOTS, Slot};

    use super::*;
    use crate::rule::tests::rule;

    fn services(texts: &[&str]) -> Services {
        let rules: Vec<_> = (0..).zip(texts.iter().map(|text| rule(text))).collect();
        let wanted = wanted(&rules, &[], |_| false);
        let mut slots = vec![Slot::default(); SLOTS as usize];
        Services::default()
            .next(&wanted, &mut slots)
            .expect("services")
    }

    #[test]
    fn each_ip_version_has_its_targets() {
        let text = "80:10.0.0.5:8080,[2001:db8::5]:8080,9090";
        let services = services(&[text]);
        let hosts: Vec<Vec<_>> = services
            .iter()
            .map(|service| {
                service
                    .targets
                    .iter()
                    .map(|t| t.endpoint.to_string())
                    .collect()
            })
            .collect();
        let expected = [["10.0.0.5:8080", "9090"], ["[2001:db8::5]:8080", "9090"]];
        assert_eq!(hosts, expected);
        let number = number(&services, &rule(text)).expect("a number");
        let values = values(&services);
        let keys: Vec<_> = values.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, [(number, 4), (number, 6)]);
        assert_ne!(values[0].1.first_slot, values[1].1.first_slot);
    }

    #[test]
    fn own_ports_are_for_both_versions() {
        let services = services(&["80:8080,8081", "81:10.0.0.5", "82:8082"]);
        let keys: Vec<_> = values(&services).iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, [(1, 4), (1, 6), (2, 4)]);
        assert_eq!(number(&services, &rule("82:8082")), None);
    }

    #[test]
    fn checks_are_those_of_the_rule() {
        let check_of = |text: &str| check(&rule(text));
        assert_eq!(check_of("80:10.0.0.5:8080"), None);
        assert_eq!(check_of("80:8080"), None);
        let timing = Timing::default();
        let tcp = |port| RuleCheck {
            check: Check::Tcp,
            port,
            timing,
        };
        assert_eq!(check_of("80:10.0.0.5:8080,10.0.0.6:8080"), Some(tcp(None)));
        let text = "80:10.0.0.5:8080 check tcp:81";
        assert_eq!(check_of(text), Some(tcp(Some(Port::new(81)))));
        let text = "80:10.0.0.5:8080 check http:/ok every 500ms";
        let check = check_of(text).expect("a check");
        let path = "/ok".to_owned();
        assert_eq!((check.check, check.port), (Check::Http { path }, None));
        assert_eq!(check.timing.every, std::time::Duration::from_millis(500));
    }

    #[test]
    fn a_rule_that_leaves_takes_no_new_flows() {
        let rules = [(0, rule("80:10.0.0.5:8080,10.0.0.6:8080"))];
        let mut slots = vec![Slot::default(); SLOTS as usize];
        let services = Services::default()
            .next(&wanted(&rules, &[], |_| false), &mut slots)
            .expect("services");
        let before = slots.clone();
        let services = services
            .next(&wanted(&[], &rules, |_| false), &mut slots)
            .expect("services");
        assert_eq!(number(&services, &rules[0].1), Some(1));
        let region = services.iter().next().expect("a service").region();
        for at in region {
            assert_eq!(slots[at].0[0], Slot::RESTS);
            assert_eq!(slots[at].0[1], before[at].0[0]);
        }
    }

    #[test]
    fn a_port_of_this_host_takes_over_from_targets_with_flows() {
        let here = [(1, rule("80:8080"))];
        assert!(wanted(&here, &[], |_| false).is_empty());
        let wanted = wanted(&here, &[], |key| key == "80 ipv4");
        assert_eq!(wanted.len(), 1);
        assert_eq!(wanted[0].targets[0].endpoint.to_string(), "8080");
    }
}
