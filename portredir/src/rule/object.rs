//! Rules as objects of JSON, for programs that do not read their text.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::{
    Affinity, Check, CheckBy, Comment, Else, Forward, Labelled, Name, Ports, Protocols, RuleTarget,
    WhenDown,
};

/// A rule as an object. Ports are the first and the last one of a range.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleObject {
    /// The canonical text of the rule, without its label.
    pub rule: String,
    /// The name; null where there is none.
    pub name: Option<Name>,
    /// The comment; null where there is none.
    pub comment: Option<Comment>,
    /// The address that clients connect to; null for all addresses of this host.
    pub address: Option<IpAddr>,
    /// The destination ports.
    pub ports: [u16; 2],
    /// The protocol: `tcp`, `udp` or `both`.
    pub protocol: &'static str,
    /// The clients; null for all.
    pub from: Option<IpNet>,
    /// The names and globs of the ingress interfaces; empty for all.
    pub on: Vec<String>,
    /// The targets.
    pub targets: Vec<TargetObject>,
    /// The health check of the targets; null where there is none.
    pub check: Option<CheckObject>,
    /// The flows that go to one target together: `flow` for each alone, or `client`.
    pub affinity: &'static str,
    /// The rewriting of the source address.
    pub snat: &'static str,
    /// The way of flows while every target is down.
    #[serde(rename = "else")]
    pub otherwise: ElseObject,
    /// Whether the TCP connections of a target that goes down are cut.
    pub cut: bool,
}

/// A target of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetObject {
    /// The address; null for this host.
    pub address: Option<IpAddr>,
    /// The target ports.
    pub ports: [u16; 2],
    /// The share of new flows, compared with other weights.
    pub weight: u16,
}

/// A health check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckObject {
    /// The kind: `tcp` or `http`.
    pub by: &'static str,
    /// The port of a check by TCP; null for the first port of the target.
    pub port: Option<u16>,
    /// The path of a check by HTTP.
    pub path: Option<String>,
    /// The seconds from one check to the next.
    pub every_seconds: f64,
    /// The seconds after which a check has failed.
    pub timeout_seconds: f64,
    /// The number of good checks that bring a target up.
    pub rise: u8,
    /// The number of failed checks that bring a target down.
    pub fall: u8,
}

/// The way of flows while every target is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ElseObject {
    /// The action: `rest`, `target` or `drop`.
    pub action: &'static str,
    /// The target, if there is one.
    pub target: Option<TargetObject>,
}

impl From<Labelled> for RuleObject {
    fn from(labelled: Labelled) -> Self {
        let Labelled { rule, label } = labelled;
        let object = Self {
            rule: rule.to_string(),
            name: label.name,
            comment: label.comment,
            address: rule.addr,
            ports: pair(rule.ports),
            protocol: match rule.protocols {
                Protocols::Tcp => "tcp",
                Protocols::Udp => "udp",
                Protocols::Both => "both",
            },
            from: rule.from,
            on: rule.on.clone(),
            targets: rule.targets().iter().map(TargetObject::from).collect(),
            check: None,
            affinity: "flow",
            snat: "never",
            otherwise: ElseObject {
                action: "rest",
                target: None,
            },
            cut: false,
        };
        match rule.forward() {
            Some(forward) => object.with(forward),
            None => object,
        }
    }
}

impl RuleObject {
    fn with(self, forward: &Forward) -> Self {
        let (action, target) = match &forward.otherwise {
            None => ("rest", None),
            Some(Else::Drop) => ("drop", None),
            Some(Else::Target(target)) => ("target", Some(target.into())),
        };
        Self {
            check: forward.check.as_ref().map(CheckObject::from),
            affinity: match forward.affinity {
                Affinity::Flow => "flow",
                Affinity::Client => "client",
            },
            otherwise: ElseObject { action, target },
            cut: forward.when_down == WhenDown::Cut,
            ..self
        }
    }
}

impl From<&RuleTarget> for TargetObject {
    fn from(target: &RuleTarget) -> Self {
        Self {
            address: target.host,
            ports: pair(target.ports),
            weight: target.weight,
        }
    }
}

impl From<&Check> for CheckObject {
    fn from(check: &Check) -> Self {
        let (by, port, path) = match &check.by {
            CheckBy::Tcp(port) => ("tcp", port.map(|port| port.get()), None),
            CheckBy::Udp(port) => ("udp", port.map(|port| port.get()), None),
            CheckBy::Http(path) => ("http", None, Some(path.clone())),
        };
        Self {
            by,
            port,
            path,
            every_seconds: check.every.as_secs_f64(),
            timeout_seconds: check.timeout.as_secs_f64(),
            rise: check.rise,
            fall: check.fall,
        }
    }
}

const fn pair(ports: Ports) -> [u16; 2] {
    [ports.first, ports.last]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> serde_json::Value {
        let labelled: Labelled = text.parse().expect("a rule");
        serde_json::to_value(RuleObject::from(labelled)).expect("JSON")
    }

    #[test]
    fn a_rule_has_the_same_keys_whatever_its_targets() {
        assert_eq!(
            json("80:8080"),
            serde_json::json!({
                "rule": "80:8080", "name": null, "comment": null, "address": null, "ports": [80, 80], "protocol": "tcp",
                "from": null, "on": [],
                "targets": [{"address": null, "ports": [8080, 8080], "weight": 1}],
                "check": null, "affinity": "flow", "snat": "never",
                "else": {"action": "rest", "target": null}, "cut": false,
            })
        );
        let text = "10.0.0.1:80:8080=3,10.0.0.5/both from 10.0.0.0/8 on eth0 check http:/ \
                    every 500ms affinity client else 10.0.0.9:90 cut";
        assert_eq!(
            json(&format!("{text} name web # OPS-1")),
            serde_json::json!({
                "rule": text, "name": "web", "comment": "OPS-1", "address": "10.0.0.1", "ports": [80, 80], "protocol": "both",
                "from": "10.0.0.0/8", "on": ["eth0"],
                "targets": [
                    {"address": null, "ports": [8080, 8080], "weight": 3},
                    {"address": "10.0.0.5", "ports": [80, 80], "weight": 1},
                ],
                "check": {
                    "by": "http", "port": null, "path": "/", "every_seconds": 0.5,
                    "timeout_seconds": 0.5, "rise": 2, "fall": 3,
                },
                "affinity": "client", "snat": "never",
                "else": {
                    "action": "target",
                    "target": {"address": "10.0.0.9", "ports": [90, 90], "weight": 1},
                },
                "cut": true,
            })
        );
        assert_eq!(
            json("80:10.0.0.5 check tcp:81 else drop")["check"]["port"],
            81
        );
        assert_eq!(json("80:10.0.0.5 else drop")["else"]["action"], "drop");
    }
}
