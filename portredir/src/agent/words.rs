//! A rule of the API as rules of portredir.

use std::net::IpAddr;

use ipnet::IpNet;
use portredir_common::net::Protocol as Transport;

use super::cluster::Cluster;
use super::crd::{Protocol, RedirectRule};
use super::reason::{Reason, Rejection};
use super::target::{Place, places};
use crate::rule::{Rule, RuleError};

/// The rules of portredir that a rule of the API stands for: one for each address and each
/// network of clients, and for each protocol where their targets differ.
///
/// # Errors
///
/// A [`Rejection`]: the rule contradicts itself, or has no target on this node.
pub fn rules(cluster: &Cluster, rule: &RedirectRule) -> Result<Vec<Rule>, Rejection> {
    let parts = match rule.protocol {
        Protocol::Tcp => vec![("", places(cluster, &rule.to, Transport::Tcp)?)],
        Protocol::Udp => vec![("/udp", places(cluster, &rule.to, Transport::Udp)?)],
        Protocol::Both => {
            let tcp = places(cluster, &rule.to, Transport::Tcp)?;
            let udp = places(cluster, &rule.to, Transport::Udp)?;
            if tcp == udp {
                vec![("/both", tcp)]
            } else {
                vec![("", tcp), ("/udp", udp)]
            }
        }
    };
    refuse_spaces(&rule.interfaces)?;
    let addresses = parsed::<IpAddr>(&rule.addresses, "addresses")?;
    let clients = parsed::<IpNet>(&rule.from, "from")?;
    let mut rules = Vec::new();
    for (suffix, places) in &parts {
        for addr in &addresses {
            for from in &clients {
                let conditions = Conditions {
                    suffix,
                    addr: *addr,
                    from: *from,
                };
                rules.extend(conditions.rule(rule, places)?);
            }
        }
    }
    if rules.is_empty() {
        return Err(no_common_version(&addresses, &clients));
    }
    Ok(rules)
}

/// The rejection of a rule of which no part has one IP version.
fn no_common_version(addresses: &[Option<IpAddr>], clients: &[Option<IpNet>]) -> Rejection {
    let are_apart = addresses.iter().all(|addr| {
        clients.iter().all(|from| match (addr, from) {
            (Some(addr), Some(from)) => addr.is_ipv4() != from.addr().is_ipv4(),
            _ => false,
        })
    });
    if are_apart {
        let text = "addresses and from have no IP version in common";
        return Rejection::new(Reason::Invalid, text);
    }
    let text = "no target on this node has an address of the IP version of the rule";
    Rejection::new(Reason::TargetNotReady, text)
}

/// Refuses names of interfaces that would be read as other words of a rule.
fn refuse_spaces(interfaces: &[String]) -> Result<(), Rejection> {
    let is_bad = |name: &&String| name.contains(|c: char| c.is_whitespace() || c == ',');
    match interfaces.iter().find(is_bad) {
        Some(name) => Err(Rejection::new(
            Reason::Invalid,
            format!("interfaces: `{name}` is not the name of an interface"),
        )),
        None => Ok(()),
    }
}

/// The values of a list, in order and each once; one `None` for an empty list.
fn parsed<T: std::str::FromStr + Ord>(
    texts: &[String],
    field: &str,
) -> Result<Vec<Option<T>>, Rejection> {
    if texts.is_empty() {
        return Ok(vec![None]);
    }
    let parse = |text: &String| {
        let what = if field == "from" {
            "a network such as 10.0.0.0/8"
        } else {
            "an IP address"
        };
        text.parse().map(Some).map_err(|_| {
            Rejection::new(Reason::Invalid, format!("{field}: `{text}` is not {what}"))
        })
    };
    let mut values: Vec<_> = texts.iter().map(parse).collect::<Result<_, _>>()?;
    values.sort();
    values.dedup();
    Ok(values)
}

/// The conditions that one rule of portredir has.
struct Conditions<'a> {
    suffix: &'a str,
    addr: Option<IpAddr>,
    from: Option<IpNet>,
}

impl Conditions<'_> {
    /// The rule; none where address, clients and targets have no IP version in common.
    fn rule(&self, rule: &RedirectRule, places: &[Place]) -> Result<Option<Rule>, Rejection> {
        if let (Some(addr), Some(from)) = (self.addr, self.from)
            && addr.is_ipv4() != from.addr().is_ipv4()
        {
            return Ok(None);
        }
        let places: Vec<_> = places.iter().filter(|place| self.can_use(place)).collect();
        if places.is_empty() {
            return Ok(None);
        }
        let text = self.text(rule, &places);
        let parsed = parse(&text)?;
        if parsed.forward().is_none() {
            return Ok(Some(parsed));
        }
        // Kubernetes tells which pods are ready.
        parse(&format!("{text} check none")).map(Some)
    }

    /// Whether the IP version of a target is that of the rule.
    fn can_use(&self, place: &Place) -> bool {
        let wanted = self.addr.map(|addr| addr.is_ipv4());
        let wanted = wanted.or(self.from.map(|from| from.addr().is_ipv4()));
        match (place.host, wanted) {
            (Some(host), Some(is_v4)) => host.is_ipv4() == is_v4,
            _ => true,
        }
    }

    fn text(&self, rule: &RedirectRule, places: &[&Place]) -> String {
        let mut text = match self.addr {
            Some(addr) => format!("{}:", bracketed(addr)),
            None => String::new(),
        };
        text += &match rule.end_port {
            Some(end) => format!("{}-{end}:", rule.port),
            None => format!("{}:", rule.port),
        };
        let targets: Vec<_> = places.iter().map(|place| target(place)).collect();
        text += &targets.join(",");
        text += self.suffix;
        if let Some(from) = self.from {
            text += &format!(" from {from}");
        }
        if !rule.interfaces.is_empty() {
            text += &format!(" on {}", rule.interfaces.join(","));
        }
        text
    }
}

/// Reads a rule. A condition has one line, so the picture of the place is left out.
fn parse(text: &str) -> Result<Rule, Rejection> {
    text.parse().map_err(|error: RuleError| {
        let message = error.to_string();
        let problem = message.lines().next().unwrap_or_default();
        let hint = message.lines().last().unwrap_or_default().trim();
        Rejection::new(Reason::Invalid, format!("{problem}; {hint}"))
    })
}

fn bracketed(addr: IpAddr) -> String {
    match addr {
        IpAddr::V4(addr) => addr.to_string(),
        IpAddr::V6(addr) => format!("[{addr}]"),
    }
}

fn target(place: &Place) -> String {
    match (place.host, &place.ports) {
        (None, ports) => ports.clone().unwrap_or_default(),
        (Some(host), None) => bracketed(host),
        (Some(host), Some(ports)) => format!("{}:{ports}", bracketed(host)),
    }
}
