//! A redirect as other programs say it, and the rules that say the same.

use std::net::IpAddr;

use ipnet::IpNet;
use portredir_common::net::{Protocol, Version};

use crate::rule::{Label, Labelled, Ports};

/// The clients that a redirect is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clients {
    /// Other hosts.
    Remote,
    /// Programs on this host.
    Local,
    /// Both.
    All,
}

/// The place that connections are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Goal {
    /// The address; this host without one.
    pub(super) host: Option<IpAddr>,
    /// The ports; the destination port without any.
    pub(super) ports: Option<Ports>,
}

/// A redirect.
#[derive(Clone, Debug)]
pub(super) struct Redirect {
    /// The line that says so.
    pub(super) line: String,
    pub(super) clients: Clients,
    /// The IP version, where the redirect is for one.
    pub(super) version: Option<Version>,
    pub(super) protocols: Vec<Protocol>,
    /// The addresses of this host; all without any.
    pub(super) addrs: Vec<IpAddr>,
    /// The destination ports, at least one.
    pub(super) ports: Vec<Ports>,
    /// The clients' networks; all without any.
    pub(super) from: Vec<IpNet>,
    /// The ingress interfaces; all without any.
    pub(super) on: Vec<String>,
    pub(super) goal: Goal,
    pub(super) label: Label,
}

impl Redirect {
    /// A redirect without conditions.
    pub(super) fn new(line: &str, goal: Goal) -> Self {
        Self {
            line: line.to_owned(),
            clients: Clients::Remote,
            version: None,
            protocols: Vec::new(),
            addrs: Vec::new(),
            ports: Vec::new(),
            from: Vec::new(),
            on: Vec::new(),
            goal,
            label: Label::default(),
        }
    }

    /// The rules: one for each address, port range and network.
    pub(super) fn rules(&self) -> Result<Vec<Labelled>, String> {
        let protocol = match self.protocols[..] {
            [Protocol::Tcp] => "",
            [Protocol::Udp] => "/udp",
            [_, _] => "/both",
            _ => {
                return Err("the line names no protocol: a rule is for TCP, UDP or both".to_owned());
            }
        };
        if self.ports.is_empty() {
            return Err("the line names no destination port, and a rule does".to_owned());
        }
        let on = match &self.on[..] {
            [] => String::new(),
            names => format!(" on {}", names.join(",")),
        };
        let addrs = each(&self.addrs, |addr| match addr {
            IpAddr::V4(addr) => format!("{addr}:"),
            IpAddr::V6(addr) => format!("[{addr}]:"),
        });
        let networks = each(&self.from, |net| format!(" from {net}"));
        let mut rules = Vec::new();
        for addr in &addrs {
            for ports in &self.ports {
                let goal = self.goal.text(*ports)?;
                for from in &networks {
                    let text = format!("{addr}{ports}:{goal}{protocol}{from}{on}");
                    let rule: Labelled = text.parse().map_err(|error| reason(&error))?;
                    let label = self.label.clone();
                    rules.push(Labelled { label, ..rule });
                }
            }
        }
        Ok(rules)
    }
}

/// The text for each of some values, or an empty one for none.
fn each<T>(values: &[T], text: impl Fn(&T) -> String) -> Vec<String> {
    if values.is_empty() {
        return vec![String::new()];
    }
    values.iter().map(text).collect()
}

/// The first line of an error, without the text of the rule.
fn reason(error: &crate::rule::RuleError) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let problem = line.split_once("`: ").map_or(line, |(_, problem)| problem);
    format!("{problem}; {}", error.hint())
}

impl Goal {
    /// The target of a rule for these ports.
    fn text(self, dst_ports: Ports) -> Result<String, String> {
        let Some(host) = self.host else {
            let ports = self.ports.ok_or("the line redirects to the same port")?;
            return Ok(ports.to_string());
        };
        let host = match host {
            IpAddr::V4(addr) => addr.to_string(),
            IpAddr::V6(addr) => format!("[{addr}]"),
        };
        Ok(match self.ports {
            Some(ports) if ports != dst_ports => format!("{host}:{ports}"),
            _ => host,
        })
    }
}
