//! The rules of a node, by tables of objects.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::agent::cluster::Cluster;

mod many;

fn object<T: DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).expect("an object"))
}

fn node(labels: Value) -> Arc<Node> {
    object(json!({
        "metadata": {"name": "n1", "uid": "u", "labels": labels},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }))
}

/// A PortRedirect that was created at a minute.
fn redirect(name: &str, minute: u32, spec: Value) -> Arc<PortRedirect> {
    object(json!({
        "apiVersion": "portredir.io/v1alpha1", "kind": "PortRedirect", "spec": spec,
        "metadata": {
            "name": name, "uid": name, "generation": 1,
            "creationTimestamp": format!("2026-01-01T00:{minute:02}:00Z"),
        },
    }))
}

/// A PortRedirect with one rule.
fn one(name: &str, minute: u32, rule: Value) -> Arc<PortRedirect> {
    let mut rule = rule;
    rule["name"] = "web".into();
    redirect(name, minute, json!({"rules": [rule]}))
}

fn service(port: Value) -> Arc<Service> {
    object(json!({
        "metadata": {"namespace": "web", "name": "front"},
        "spec": {"ports": [port]},
    }))
}

fn slice(endpoints: Value) -> Arc<EndpointSlice> {
    object(json!({
        "metadata": {
            "namespace": "web", "name": "front-1",
            "labels": {"kubernetes.io/service-name": "front"},
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }))
}

/// A pod with the label `app: turn`, and a port with a name.
fn pod(name: &str, minute: u32, more: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {
            "namespace": "media", "name": name, "labels": {"app": "turn"},
            "creationTimestamp": format!("2026-01-01T00:{minute:02}:00Z"),
        },
        "spec": {"containers": [{"name": "c", "ports": [
            {"name": "turn", "containerPort": 9000 + minute, "protocol": "UDP"},
        ]}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    for (key, value) in more.as_object().expect("an object") {
        for (inner, value) in value.as_object().expect("an object") {
            pod[key][inner] = value.clone();
        }
    }
    object(pod)
}

fn cluster(redirects: Vec<Arc<PortRedirect>>) -> Cluster {
    Cluster {
        node: node(json!({"edge": ""})),
        redirects,
        slices: Some(Vec::new()),
        ..Cluster::default()
    }
}

/// The state of each rule in one line.
fn lines(cluster: &Cluster) -> Vec<String> {
    let desired = desired(cluster, Base::default());
    let redirects = desired.redirects.iter();
    let lines = redirects.flat_map(|redirect| {
        redirect.rules.iter().map(|rule| {
            let rules: Vec<_> = rule.rules.iter().map(ToString::to_string).collect();
            let text = format!("{} {} {}", redirect.name, rule.reason, rules.join(" + "));
            format!("{text} {}", rule.message).trim().to_owned()
        })
    });
    lines.collect()
}

/// The state of one rule without others.
fn alone(rule: Value, change: impl FnOnce(&mut Cluster)) -> String {
    let mut cluster = cluster(vec![one("a", 0, rule)]);
    change(&mut cluster);
    lines(&cluster).join("\n")
}

fn to_service() -> Value {
    json!({"port": 80, "to": {"service": {"namespace": "web", "name": "front", "port": "http"}}})
}

fn to_pods() -> Value {
    json!({"port": 3478, "protocol": "UDP", "to": {"pods": {
        "namespace": "media", "selector": {"matchLabels": {"app": "turn"}}, "port": "turn",
    }}})
}

#[test]
fn ports_of_the_node_are_taken_as_they_are() {
    for (rule, text) in [
        (json!({"port": 80, "to": {"port": 8080}}), "80:8080"),
        (
            json!({"port": 443, "protocol": "Both", "to": {"port": 8443}}),
            "443:8443/both",
        ),
        (
            json!({"port": 10000, "endPort": 20000, "protocol": "UDP",
                   "to": {"port": 40000, "endPort": 50000}}),
            "10000-20000:40000-50000/udp",
        ),
        (
            json!({"port": 80, "addresses": ["2001:db8::1", "192.0.2.1"],
                   "from": ["2001:db8::/32"], "interfaces": ["eth0", "wg*"],
                   "to": {"port": 8080}}),
            "a Programmed [2001:db8::1]:80:8080 from 2001:db8::/32 on eth0,wg*",
        ),
        (
            json!({"port": 80, "from": ["10.0.0.0/8", "192.168.0.0/16"],
                   "interfaces": ["eth0"], "to": {"port": 8080}}),
            "80:8080 from 10.0.0.0/8 on eth0 + 80:8080 from 192.168.0.0/16 on eth0",
        ),
    ] {
        let line = alone(rule, |_| {});
        assert!(line.contains(text), "{line}, not {text}");
    }
}

#[test]
fn what_contradicts_itself_is_invalid_also_where_the_server_knows_no_rules() {
    for (rule, message) in [
        (json!({"port": 80, "to": {}}), "exactly one of"),
        (
            json!({"port": 80, "to": {"port": 1, "pods": to_pods()["to"]["pods"]}}),
            "exactly one of",
        ),
        (json!({"port": 80, "to": {"port": 80}}), "bad rule"),
        (
            json!({"port": 80, "endPort": 70, "to": {"port": 8080}}),
            "bad rule",
        ),
        (
            json!({"port": 80, "endPort": 90, "to": {"port": 8080, "endPort": 8081}}),
            "bad rule",
        ),
        (
            json!({"port": 80, "from": ["10.0.0.0/33"], "to": {"port": 8080}}),
            "from: `10.0.0.0/33` is not a network",
        ),
        (
            json!({"port": 80, "addresses": ["1.2.3"], "to": {"port": 8080}}),
            "addresses: `1.2.3` is not an IP address",
        ),
        (
            json!({"port": 80, "addresses": ["192.0.2.1"], "from": ["2001:db8::/32"],
                   "to": {"port": 8080}}),
            "no IP version in common",
        ),
        (
            json!({"port": 80, "interfaces": ["eth0 cut"], "to": {"port": 8080}}),
            "is not the name of an interface",
        ),
        (json!({"port": 70000, "to": {"port": 8080}}), "bad rule"),
    ] {
        let line = alone(rule, |_| {});
        assert!(line.starts_with("a Invalid"), "{line}");
        assert!(line.contains(message), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
}

#[test]
fn a_service_is_its_node_port_or_else_its_endpoints_on_this_node() {
    let node_port = json!({"name": "http", "port": 80, "nodePort": 30080});
    let plain = json!({"name": "http", "port": 80});
    let line = alone(to_service(), |_| {});
    assert_eq!(line, "a TargetNotFound  there is no Service web/front");
    let line = alone(to_service(), |cluster| {
        cluster.services = vec![service(json!({"name": "other", "port": 81}))];
    });
    assert!(line.contains("TargetNotFound") && line.contains("no port http of TCP"));
    let line = alone(to_service(), |cluster| {
        cluster.services = vec![service(node_port.clone())];
    });
    assert_eq!(line, "a Programmed 80:30080");
    let line = alone(to_service(), |cluster| {
        cluster.services = vec![service(plain.clone())];
        cluster.slices = None;
    });
    assert!(line.contains("TargetUnsupported") && line.contains("type NodePort"));
    let line = alone(to_service(), |cluster| {
        cluster.services = vec![service(plain.clone())];
    });
    assert!(line.contains("TargetNotReady"), "{line}");
    let endpoints = json!([
        {"addresses": ["10.0.0.6"], "nodeName": "n1"},
        {"addresses": ["10.0.0.5"], "nodeName": "n1", "conditions": {"ready": true}},
        {"addresses": ["10.0.0.7"], "nodeName": "n1", "conditions": {"ready": false}},
        {"addresses": ["10.0.0.8"], "nodeName": "n1", "conditions": {"terminating": true}},
        {"addresses": ["10.0.0.9"], "nodeName": "n2"},
    ]);
    let line = alone(to_service(), |cluster| {
        cluster.services = vec![service(plain.clone())];
        cluster.slices = Some(vec![slice(endpoints)]);
    });
    assert_eq!(
        line,
        "a Programmed 80:10.0.0.5:8080,10.0.0.6:8080 check none"
    );
    // A hostNetwork pod has the address of the node.
    let line = alone(to_service(), |cluster| {
        cluster.services = vec![service(plain)];
        let endpoints = json!([{"addresses": ["192.0.2.1"], "nodeName": "n1"}]);
        cluster.slices = Some(vec![slice(endpoints)]);
    });
    assert_eq!(line, "a Programmed 80:8080");
}

#[test]
fn pods_are_the_newest_ready_one_on_the_node_or_all_with_addresses() {
    let host = json!({"spec": {"hostNetwork": true}});
    let not_ready = json!({
        "spec": {"hostNetwork": true},
        "status": {"conditions": [{"type": "Ready", "status": "False"}]},
    });
    let going = json!({
        "spec": {"hostNetwork": true},
        "metadata": {"deletionTimestamp": "2026-01-01T01:00:00Z"},
    });
    let own = |ip: &str| json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
    let with = |pods: Vec<Arc<Pod>>| alone(to_pods(), |cluster| cluster.pods = pods);
    assert!(with(Vec::new()).starts_with("a TargetNotFound"));
    assert!(with(vec![pod("p", 1, not_ready.clone())]).starts_with("a TargetNotReady"));
    assert!(with(vec![pod("p", 1, going.clone())]).starts_with("a TargetNotReady"));
    let pods = vec![
        pod("new", 2, host.clone()),
        pod("old", 1, host.clone()),
        pod("young", 3, not_ready),
        pod("going", 4, going),
    ];
    assert_eq!(with(pods), "a Programmed 3478:9002/udp");
    let pods = vec![pod("b", 1, own("10.0.0.6")), pod("a", 1, own("10.0.0.5"))];
    assert_eq!(
        with(pods),
        "a Programmed 3478:10.0.0.5:9001,10.0.0.6:9001/udp"
    );
    let line = alone(
        json!({"port": 10000, "endPort": 10100, "protocol": "UDP", "to": {"pods": {
            "namespace": "media", "selector": {"matchLabels": {"app": "turn"}},
        }}}),
        |cluster| cluster.pods = vec![pod("a", 1, own("10.0.0.5"))],
    );
    assert_eq!(line, "a Programmed 10000-10100:10.0.0.5/udp");
}

#[test]
fn targets_have_the_ip_version_of_the_rule() {
    let both = json!({"status": {
        "podIP": "10.0.0.5", "podIPs": [{"ip": "10.0.0.5"}, {"ip": "2001:db8::5"}],
    }});
    let mut rule = to_pods();
    rule["from"] = json!(["10.0.0.0/8"]);
    let line = alone(rule.clone(), |cluster| {
        cluster.pods = vec![pod("a", 1, both)]
    });
    assert_eq!(line, "a Programmed 3478:10.0.0.5:9001/udp from 10.0.0.0/8");
    let v6 = json!({"status": {"podIP": "2001:db8::5"}});
    let line = alone(rule, |cluster| cluster.pods = vec![pod("a", 1, v6)]);
    assert!(line.starts_with("a TargetNotReady"), "{line}");
}

#[test]
fn the_older_object_has_the_port_and_the_loser_says_so() {
    let rule = |target: u16| json!({"port": 80, "to": {"port": target}});
    let narrow = json!({"port": 80, "from": ["10.0.0.0/8"], "to": {"port": 8082}});
    let range = json!({"port": 70, "endPort": 90, "to": {"port": 9000}});
    let cluster_of = |all| lines(&cluster(all));
    assert_eq!(
        cluster_of(vec![one("young", 2, rule(8081)), one("old", 1, rule(8080))]),
        [
            "old Programmed 80:8080",
            "young Conflicted  port 80 belongs to rule web of PortRedirect old, which comes first",
        ]
    );
    // Of objects of one second, the name decides.
    assert!(cluster_of(vec![one("b", 1, rule(1)), one("a", 1, rule(2))])[0].starts_with("a Prog"));
    // An exception is none.
    let found = cluster_of(vec![one("old", 1, rule(8080)), one("narrow", 2, narrow)]);
    assert!(
        found.iter().all(|line| line.contains("Programmed")),
        "{found:?}"
    );
    // A wide range lives beside what is taken of it.
    let found = cluster_of(vec![
        one("old", 1, rule(8080)),
        one("range", 2, range.clone()),
    ]);
    assert!(
        found.iter().all(|line| line.contains("Programmed")),
        "{found:?}"
    );
    // A port within an older range is an exception from it; the same range has nothing left.
    let older = one("range", 1, range.clone());
    let found = cluster_of(vec![older.clone(), one("young", 2, rule(8080))]);
    assert!(
        found.iter().all(|line| line.contains("Programmed")),
        "{found:?}"
    );
    let mut same = range;
    same["to"]["port"] = json!(8099);
    let found = cluster_of(vec![older, one("young", 2, same)]);
    assert!(found[1].starts_with("young Conflicted"), "{found:?}");
    assert!(found[1].contains("PortRedirect range"), "{found:?}");
}

#[test]
fn only_the_losing_rule_is_taken_back() {
    let object = redirect(
        "mixed",
        2,
        json!({"rules": [
            {"name": "lost", "port": 80, "to": {"port": 8081}},
            {"name": "kept", "port": 81, "to": {"port": 8081}},
        ]}),
    );
    let old = one("old", 1, json!({"port": 80, "to": {"port": 8080}}));
    let found = lines(&cluster(vec![object, old]));
    assert!(found[1].starts_with("mixed Conflicted"), "{found:?}");
    assert_eq!(found[2], "mixed Programmed 81:8081");
}

#[test]
fn rules_of_the_configuration_come_first() {
    let fixed = ["80:7000".parse().expect("a rule")];
    let base = Base {
        rules: &fixed,
        hides_targets: false,
    };
    let cluster = cluster(vec![one("a", 1, json!({"port": 80, "to": {"port": 8080}}))]);
    let desired = desired(&cluster, base);
    let outcome = &desired.redirects[0].rules[0];
    assert_eq!(outcome.reason, Reason::Conflicted);
    assert!(outcome.message.contains("the configuration of the agent"));
    assert!(desired.rules().is_empty());
}

#[test]
fn ports_by_which_a_node_is_administered_need_force() {
    let rule = json!({"name": "ssh", "port": 22, "to": {"port": 2222}});
    let refused = redirect("a", 1, json!({"rules": [rule.clone()]}));
    let line = lines(&cluster(vec![refused])).join("\n");
    assert!(line.starts_with("a Protected"), "{line}");
    assert!(line.ends_with("set spec.force"), "{line}");
    let forced = redirect("a", 1, json!({"force": true, "rules": [rule]}));
    assert_eq!(lines(&cluster(vec![forced])), ["a Programmed 22:2222"]);
}

#[test]
fn a_pod_that_loses_its_port_on_the_node_is_named() {
    let publishing = json!({"spec": {"containers": [{"name": "c", "ports": [
        {"containerPort": 8000, "hostPort": 80},
    ]}]}});
    let rule = json!({"port": 80, "to": {"port": 8080}});
    let line = alone(rule.clone(), |cluster| {
        cluster.pods = vec![pod("p", 1, publishing.clone())];
    });
    assert!(
        line.starts_with("a Shadows 80:8080 pod media/p publishes port 80"),
        "{line}"
    );
    let over = json!({"spec": publishing["spec"], "status": {"phase": "Succeeded"}});
    let line = alone(rule, |cluster| cluster.pods = vec![pod("p", 1, over)]);
    assert_eq!(line, "a Programmed 80:8080");
}

#[test]
fn nodes_are_selected_by_labels_and_deleted_objects_do_not_count() {
    let rules = json!([{"name": "web", "port": 80, "to": {"port": 8080}}]);
    let with = |selector: Value| {
        let spec = json!({"nodeSelector": selector, "rules": rules});
        lines(&cluster(vec![redirect("a", 1, spec)])).len()
    };
    assert_eq!(with(json!({"matchLabels": {"edge": ""}})), 1);
    assert_eq!(with(json!({"matchLabels": {"edge": "no"}})), 0);
    assert_eq!(
        with(json!({"matchExpressions": [{"key": "edge", "operator": "Exists"}]})),
        1
    );
    assert_eq!(with(json!({})), 1);
    let mut going = one("a", 1, json!({"port": 80, "to": {"port": 8080}}))
        .as_ref()
        .clone();
    going.metadata.deletion_timestamp = going.metadata.creation_timestamp.clone();
    assert!(lines(&cluster(vec![Arc::new(going)])).is_empty());
}

#[test]
fn many_objects_for_one_port_have_one_winner() {
    let all = (0..1000).map(|i| {
        let port = if i % 2 == 0 { 80 } else { 10_000 + i };
        one(
            &format!("r{i:04}"),
            1,
            json!({"port": port, "to": {"port": 8080}}),
        )
    });
    let cluster = cluster(all.collect());
    let desired = desired(&cluster, Base::default());
    assert_eq!(desired.rules().len(), 501);
    assert!(desired.redirects[0].rules[0].reason.is_programmed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The order in which objects came does not matter, and what is in force has no
    /// conflict.
    #[test]
    fn the_order_of_events_does_not_matter(
        ports in proptest::collection::vec((70_u16..76, 0_u16..4, 0_u32..3, 0_usize..3), 1..12),
        seed in any::<u64>(),
    ) {
        let clients = ["", "10.0.0.0/8", "10.1.0.0/16"];
        let mut all: Vec<_> = ports.iter().enumerate().map(|(i, (port, more, minute, from))| {
            let mut rule = json!({"port": port, "endPort": port + more, "to": {"port": 8000 + i}});
            if *from > 0 {
                rule["from"] = json!([clients[*from]]);
            }
            one(&format!("r{i}"), *minute, rule)
        }).collect();
        let first = desired(&cluster(all.clone()), Base::default());
        let len = all.len();
        for i in 0..len {
            let other = (seed >> (i % 32)) as usize % len;
            all.swap(i, other);
        }
        prop_assert_eq!(&first, &desired(&cluster(all), Base::default()));
        let sourced: Vec<_> = first.rules().into_iter().map(crate::rule::Sourced::running).collect();
        prop_assert!(crate::ruleset::shadow::check(&sourced).is_ok());
        // Each loser would be in a conflict with what is in force.
        let oldest = &first.redirects[0].rules[0];
        prop_assert!(oldest.reason.is_programmed());
    }
}
