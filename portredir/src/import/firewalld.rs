//! Reads firewalld: what `firewall-cmd --list-all` prints, and the files of zones
//! (firewalld.zone(5), firewalld.richlanguage(5)).

use ipnet::IpNet;
use portredir_common::net::{Protocol, Version};
use roxmltree::{Document, Node};

use super::found::Found;
use super::redirect::{Goal, Redirect};
use crate::rule::{Ports, Rule};

/// Whether a text is one of firewalld.
pub(super) fn is_meant(text: &str) -> bool {
    text.contains("forward-ports:") || text.contains("port=") && text.contains("proto=")
}

/// The packets that a zone is for.
#[derive(Default)]
struct Zone {
    interfaces: Vec<String>,
    sources: Vec<IpNet>,
    /// The sources that are no networks.
    odd: Vec<String>,
}

impl Zone {
    /// Adds a redirect of this zone to what was found.
    fn add(&self, redirect: Redirect, found: &mut Found) {
        if !self.odd.is_empty() {
            let why = format!(
                "the zone has the source {}, which is no network",
                self.odd.join(", ")
            );
            found.refuse(redirect.line, why);
            return;
        }
        if self.sources.is_empty() || !self.interfaces.is_empty() {
            found.redirects.push(Redirect {
                on: self.interfaces.clone(),
                ..redirect.clone()
            });
        }
        if self.sources.is_empty() {
            return;
        }
        let from = self.sources_of(&redirect.from);
        if !from.is_empty() {
            found.redirects.push(Redirect { from, ..redirect });
        } else if self.interfaces.is_empty() {
            found.refuse(
                redirect.line,
                "the zone is for other sources, so the line never holds",
            );
        }
    }

    /// The networks that are among the sources of the zone; no network means all.
    fn sources_of(&self, networks: &[IpNet]) -> Vec<IpNet> {
        if networks.is_empty() {
            return self.sources.clone();
        }
        let pairs = networks
            .iter()
            .flat_map(|net| self.sources.iter().map(move |source| (net, source)));
        let common = pairs.filter_map(|(net, source)| {
            let inner = if source.contains(net) { net } else { source };
            (net.contains(inner) && source.contains(inner)).then_some(*inner)
        });
        common.collect()
    }

    fn add_source(&mut self, text: &str) {
        let addr = || text.parse::<std::net::IpAddr>().map(IpNet::from);
        match text.parse::<IpNet>().or_else(|_| addr()) {
            Ok(net) => self.sources.push(net.trunc()),
            Err(_) => self.odd.push(text.to_owned()),
        }
    }
}

/// Reads the list of one zone or of several.
pub(super) fn list(text: &str) -> Found {
    let mut found = Found::default();
    let mut zone = Zone::default();
    for line in text.lines().map(str::trim) {
        let (key, value) = line.split_once(": ").unwrap_or((line, ""));
        match key {
            "interfaces" | "interfaces:" => {
                zone = Zone {
                    interfaces: value.split_whitespace().map(str::to_owned).collect(),
                    ..Zone::default()
                };
            }
            "sources" => value
                .split_whitespace()
                .for_each(|source| zone.add_source(source)),
            _ if line.starts_with("rule ") => rich(line, &zone, &mut found),
            _ => {
                let words = line.split_whitespace();
                for word in words.filter(|word| word.contains("port=") && word.contains("proto=")) {
                    match forward(word) {
                        Ok(redirect) => zone.add(redirect, &mut found),
                        Err(why) => found.refuse(word, why),
                    }
                }
            }
        }
    }
    found
}

/// Reads `port=80:proto=tcp:toport=8080:toaddr=10.0.0.5`, which is also a spelling of a rule.
fn forward(word: &str) -> Result<Redirect, String> {
    let rule: Rule = word.parse().map_err(|error: crate::rule::RuleError| {
        let text = error.to_string();
        text.lines().next().unwrap_or_default().to_owned()
    })?;
    let targets = rule.targets();
    let target = targets.first().ok_or("no target")?;
    let goal = Goal {
        host: target.host,
        ports: Some(target.ports),
    };
    Ok(Redirect {
        protocols: rule.protocols.each().to_vec(),
        ports: vec![rule.ports],
        ..Redirect::new(word, goal)
    })
}

/// The value of `key="value"` in a line.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let after = line.split_once(&format!(" {key}=\""))?.1;
    after.split('"').next()
}

/// Reads a rich rule, if it forwards a port.
fn rich(line: &str, zone: &Zone, found: &mut Found) {
    let Some((before, forward)) = line.split_once("forward-port") else {
        return;
    };
    let fields = Fields {
        port: value(forward, "port"),
        protocol: value(forward, "protocol"),
        to_port: value(forward, "to-port"),
        to_addr: value(forward, "to-addr"),
    };
    let conditions = Conditions {
        family: value(before, "family"),
        source: before
            .split_once("source")
            .and_then(|(_, rest)| value(rest, "address")),
        is_odd: before.contains("destination")
            || before.contains(" NOT ")
            || before.contains("invert"),
    };
    add(line, (&fields, &conditions), zone, found);
}

/// Reads the file of a zone.
pub(super) fn xml(text: &str) -> Result<Found, roxmltree::Error> {
    let document = Document::parse(text)?;
    let mut found = Found::default();
    let mut zone = Zone::default();
    let root = document.root_element();
    for node in root.children() {
        match node.tag_name().name() {
            "interface" => zone
                .interfaces
                .extend(node.attribute("name").map(str::to_owned)),
            "source" => match node.attribute("address") {
                Some(address) => zone.add_source(address),
                None => zone.odd.push(line_of(node)),
            },
            _ => {}
        }
    }
    for node in root
        .descendants()
        .filter(|node| node.has_tag_name("forward-port"))
    {
        let fields = Fields {
            port: node.attribute("port"),
            protocol: node.attribute("protocol"),
            to_port: node.attribute("to-port"),
            to_addr: node.attribute("to-addr"),
        };
        let rule = node.parent().filter(|parent| parent.has_tag_name("rule"));
        let children = || rule.iter().flat_map(Node::children);
        let source = children().find(|child| child.has_tag_name("source"));
        let is_odd = |child: Node<'_, '_>| {
            child.has_tag_name("destination") || child.attribute("invert").is_some()
        };
        let conditions = Conditions {
            family: rule.and_then(|rule| rule.attribute("family")),
            source: source.and_then(|source| source.attribute("address")),
            is_odd: children().any(is_odd)
                || source.is_some_and(|it| it.attribute("address").is_none()),
        };
        add(
            &line_of(rule.unwrap_or(node)),
            (&fields, &conditions),
            &zone,
            &mut found,
        );
    }
    Ok(found)
}

/// The text of a node on one line.
fn line_of(node: Node<'_, '_>) -> String {
    let text = &node.document().input_text()[node.range()];
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The attributes of `forward-port`.
struct Fields<'a> {
    port: Option<&'a str>,
    protocol: Option<&'a str>,
    to_port: Option<&'a str>,
    to_addr: Option<&'a str>,
}

/// The conditions of a rich rule.
struct Conditions<'a> {
    family: Option<&'a str>,
    source: Option<&'a str>,
    is_odd: bool,
}

/// Adds a forwarded port.
fn add(
    line: &str,
    (fields, conditions): (&Fields<'_>, &Conditions<'_>),
    zone: &Zone,
    found: &mut Found,
) {
    match redirect(line, fields, conditions) {
        Ok(redirect) => zone.add(redirect, found),
        Err(why) => found.refuse(line, why),
    }
}

fn redirect(
    line: &str,
    fields: &Fields<'_>,
    conditions: &Conditions<'_>,
) -> Result<Redirect, String> {
    if conditions.is_odd {
        return Err("no condition of a rule says this".to_owned());
    }
    let protocol = match fields.protocol {
        Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        other => {
            return Err(format!(
                "rules are for TCP and UDP, not for {}",
                other.unwrap_or("all")
            ));
        }
    };
    let to_addr = fields.to_addr.filter(|addr| !addr.is_empty());
    let host = to_addr.map(str::parse).transpose();
    let host = host.map_err(|_| "the target is not one address".to_owned())?;
    let to_port = fields.to_port.filter(|port| !port.is_empty());
    let goal = Goal {
        host,
        ports: to_port.map(ports).transpose()?,
    };
    let from = conditions.source.map(str::parse::<IpNet>).transpose();
    let from = from.map_err(|_| "the source is not a network".to_owned())?;
    Ok(Redirect {
        version: match conditions.family {
            Some("ipv4") => Some(Version::V4),
            Some("ipv6") => Some(Version::V6),
            _ => None,
        },
        protocols: vec![protocol],
        ports: vec![ports(fields.port.unwrap_or_default())?],
        from: from.into_iter().collect(),
        ..Redirect::new(line, goal)
    })
}

/// Ports as in `80` and `8000-8100`.
fn ports(text: &str) -> Result<Ports, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first > 0 && first <= last => Ok(Ports { first, last }),
        _ => Err(format!("`{text}` is not a port or a range of ports")),
    }
}
