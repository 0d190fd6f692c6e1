//! Reads `nft -j list ruleset` (libnftables-json(5)).

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use portredir_common::net::{Protocol, Version};
use serde_json::Value;

use super::found::Found;
use super::redirect::{Clients, Goal, Redirect};
use crate::rule::{Comment, Ports};

/// Statements that change no packet.
const HARMLESS: [&str; 4] = ["counter", "log", "accept", "comment"];

/// Reads the objects of a ruleset.
pub(super) fn read(objects: &[Value]) -> Found {
    let mut found = Found::default();
    let key = |object: &Value, name: &str| {
        [&object["family"], &object["table"], &object[name]].map(|word| text(word).to_owned())
    };
    let chains = objects.iter().filter_map(|object| object.get("chain"));
    let chains: HashMap<_, _> = chains.map(|chain| (key(chain, "name"), chain)).collect();
    let sets = objects
        .iter()
        .filter_map(|object| object.get("set").or(object.get("map")));
    let sets: HashMap<_, _> = sets.map(|set| (key(set, "name"), &set["elem"])).collect();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let place = key(rule, "chain");
        let Some(chain) = chains.get(&place) else {
            continue;
        };
        let line = format!("{} handle {}", place.join(" "), rule["handle"]);
        let reader = Reader {
            sets: &sets,
            table: [&place[0], &place[1]],
        };
        match reader.rule(rule, &line) {
            Ok(redirects) if redirects.is_empty() => {
                if chain["type"] == "nat" && ends(rule) {
                    found.refuse(
                        line,
                        "an exception from other rules, which rules here do not have",
                    );
                }
            }
            Ok(_) if chain["type"] != "nat" => {
                found.refuse(line, "new connections reach its chain by a jump, or never");
            }
            Ok(redirects) => {
                let clients = match text(&chain["hook"]) {
                    "output" => Clients::Local,
                    _ => Clients::Remote,
                };
                let redirects = redirects.into_iter();
                found.redirects.extend(redirects.map(|redirect| Redirect {
                    clients,
                    ..redirect
                }));
            }
            Err(why) => found.refuse(line, why),
        }
    }
    found.note_other_hosts();
    found
}

/// Whether a rule leaves the chain, so that its packets are excepted from the rules behind.
fn ends(rule: &Value) -> bool {
    let statements = rule["expr"].as_array().into_iter().flatten();
    let mut kinds = statements
        .filter_map(Value::as_object)
        .flat_map(|statement| statement.keys());
    kinds.any(|kind| matches!(kind.as_str(), "return" | "accept"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A reader of the rules of a table.
struct Reader<'a> {
    sets: &'a HashMap<[String; 3], &'a Value>,
    table: [&'a str; 2],
}

impl Reader<'_> {
    /// The redirects of a rule; none where it redirects nothing.
    fn rule(&self, rule: &Value, line: &str) -> Result<Vec<Redirect>, String> {
        let statements = rule["expr"].as_array().into_iter().flatten();
        let statements: Vec<_> = statements
            .filter_map(|statement| statement.as_object()?.iter().next())
            .collect();
        let mut targets = statements.iter();
        let target = targets.find(|(kind, _)| matches!(kind.as_str(), "redirect" | "dnat"));
        let Some((_, target)) = target else {
            return self.other(&statements);
        };
        let none = Goal {
            host: None,
            ports: None,
        };
        let mut redirect = Redirect::new(line, none);
        redirect.version = match self.table[0] {
            "ip" => Some(Version::V4),
            "ip6" => Some(Version::V6),
            _ => None,
        };
        redirect.label.comment = Comment::try_from(text(&rule["comment"]).to_owned()).ok();
        for (kind, value) in &statements {
            match kind.as_str() {
                "match" => self.condition(value, &mut redirect)?,
                "redirect" | "dnat" => {}
                kind if HARMLESS.contains(&kind) => {}
                kind => return Err(format!("`{kind}`: no condition of a rule says this")),
            }
        }
        self.goals(target, &redirect)
    }

    /// A rule that redirects nothing.
    fn other(&self, statements: &[(&String, &Value)]) -> Result<Vec<Redirect>, String> {
        for (kind, value) in statements {
            match kind.as_str() {
                "masquerade" | "snat" => {
                    return Err(format!(
                        "`{kind}` changes source addresses, and rules do not"
                    ));
                }
                "tproxy" => {
                    return Err("`tproxy` hands packets to sockets of its own kind".to_owned());
                }
                "xt" if matches!(text(&value["name"]), "REDIRECT" | "DNAT") => {
                    let why = "a rule of iptables: import what iptables-save prints";
                    return Err(why.to_owned());
                }
                _ => {}
            }
        }
        Ok(Vec::new())
    }

    /// Adds a condition.
    fn condition(&self, value: &Value, redirect: &mut Redirect) -> Result<(), String> {
        let (left, right) = (&value["left"], &value["right"]);
        if !matches!(text(&value["op"]), "==" | "in") {
            return Err("no condition of a rule can be turned round".to_owned());
        }
        let values = self.values(right);
        if let Some(result) = header(&left["payload"], &values, redirect) {
            return result;
        }
        match text(&left["meta"]["key"]) {
            "l4proto" => redirect.protocols = protocols(&values, right)?,
            "nfproto" => {
                redirect.version = Some(match text(right) {
                    "ipv4" => Version::V4,
                    _ => Version::V6,
                });
            }
            "iif" | "iifname" => {
                redirect.on = values.iter().map(|value| text(value).to_owned()).collect();
            }
            "oif" | "oifname" if *right == "lo" => {}
            _ if left["fib"]["result"] == "type" && *right == "local" => {}
            _ if left["ct"]["key"] == "state" && values.iter().any(|value| **value == "new") => {}
            _ => return Err(format!("`{left}`: no condition of a rule says this")),
        }
        Ok(())
    }

    /// The values of a set, also of one with a name.
    fn values<'v>(&'v self, right: &'v Value) -> Vec<&'v Value> {
        let named = right.as_str().and_then(|name| name.strip_prefix('@'));
        let named = named.and_then(|name| self.named(name));
        let set = named.or_else(|| right.get("set")).unwrap_or(right);
        let values = set
            .as_array()
            .map_or_else(|| vec![set], |all| all.iter().collect());
        values.into_iter().map(element).collect()
    }

    fn named(&self, name: &str) -> Option<&Value> {
        let key = [self.table[0], self.table[1], name].map(str::to_owned);
        self.sets.get(&key).copied()
    }

    /// The redirects to a target, which may be a map from destination ports.
    fn goals(&self, target: &Value, redirect: &Redirect) -> Result<Vec<Redirect>, String> {
        let host = match &target["addr"] {
            Value::Null => None,
            Value::String(addr) => Some(
                addr.parse::<IpAddr>()
                    .map_err(|_| format!("`{addr}` is not one address"))?,
            ),
            _ => return Err("the address comes from a map or a range".to_owned()),
        };
        let port = match &target["port"] {
            Value::Null => None,
            Value::Object(object) if object.contains_key("map") => {
                return self.mapped(&object["map"], host, redirect);
            }
            port => Some(ports(port)?),
        };
        if port.is_some_and(|ports| !ports.is_one()) {
            return Err(
                "nft chooses among several ports, and a rule maps them one to one".to_owned(),
            );
        }
        let goal = Goal { host, ports: port };
        Ok(vec![Redirect {
            goal,
            ..redirect.clone()
        }])
    }

    /// The redirects of a map from destination ports to ports.
    fn mapped(
        &self,
        map: &Value,
        host: Option<IpAddr>,
        redirect: &Redirect,
    ) -> Result<Vec<Redirect>, String> {
        let name = text(&map["key"]["payload"]["protocol"]);
        if text(&map["key"]["payload"]["field"]) != "dport" {
            return Err(
                "the target comes from a map by something else than the destination port"
                    .to_owned(),
            );
        }
        let data = &map["data"];
        let named = data
            .as_str()
            .and_then(|name| self.named(name.trim_start_matches('@')));
        let pairs = named.or_else(|| data.get("set")).and_then(Value::as_array);
        let pair = |pair: &Value| {
            let mut one = redirect.clone();
            one.protocols
                .extend(protocol(name).filter(|_| one.protocols.is_empty()));
            one.ports = vec![ports(&pair[0])?];
            one.goal = Goal {
                host,
                ports: Some(ports(&pair[1])?),
            };
            Ok(one)
        };
        pairs
            .ok_or("the map is not in the list")?
            .iter()
            .map(pair)
            .collect()
    }
}

/// Adds a condition on a field of a header; `None` for a field that no rule knows.
fn header(
    payload: &Value,
    values: &[&Value],
    redirect: &mut Redirect,
) -> Option<Result<(), String>> {
    let mut add = || {
        match (text(&payload["protocol"]), text(&payload["field"])) {
            (name @ ("tcp" | "udp"), "dport") => {
                redirect.protocols = protocol(name).into_iter().collect();
                redirect.ports = all(values, ports)?;
            }
            ("th", "dport") => redirect.ports = all(values, ports)?,
            ("ip" | "ip6", "saddr") => redirect.from = all(values, network)?,
            ("ip" | "ip6", "daddr") => redirect.addrs = all(values, address)?,
            ("ip", "protocol") | ("ip6", "nexthdr") => {
                redirect.protocols = protocols(values, &payload["field"])?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    };
    match add() {
        Ok(true) => Some(Ok(())),
        Ok(false) => None,
        Err(why) => Some(Err(why)),
    }
}

fn all<T>(values: &[&Value], read: impl Fn(&Value) -> Result<T, String>) -> Result<Vec<T>, String> {
    values.iter().map(|value| read(value)).collect()
}

fn protocols(values: &[&Value], shown: &Value) -> Result<Vec<Protocol>, String> {
    let names = values.iter().map(|value| protocol(text(value)));
    let names = names.collect::<Option<Vec<_>>>();
    names.ok_or_else(|| format!("rules are for TCP and UDP, not for {shown}"))
}

fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    }
}

/// The value of an element of a set, which may have a counter or a timeout.
fn element(value: &Value) -> &Value {
    value
        .get("elem")
        .and_then(|elem| elem.get("val"))
        .unwrap_or(value)
}

fn ports(value: &Value) -> Result<Ports, String> {
    let value = element(value);
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok().filter(|port| *port > 0);
    let ends = match &value["range"] {
        Value::Array(ends) => ends
            .first()
            .and_then(number)
            .zip(ends.get(1).and_then(number)),
        _ => number(value).map(|port| (port, port)),
    };
    let (first, last) =
        ends.ok_or_else(|| format!("`{value}` is not a port or a range of ports"))?;
    Ok(Ports { first, last })
}

fn network(value: &Value) -> Result<IpNet, String> {
    let value = element(value);
    let prefix = &value["prefix"];
    let net = match text(&prefix["addr"]) {
        "" => text(value).parse::<IpAddr>().map(IpNet::from).ok(),
        addr => prefix["len"]
            .as_u64()
            .and_then(|len| format!("{addr}/{len}").parse().ok()),
    };
    net.ok_or_else(|| format!("`{value}` is not a network"))
}

/// An address of this host, which a rule names alone.
fn address(value: &Value) -> Result<IpAddr, String> {
    let net = network(value)?;
    if net.prefix_len() == net.max_prefix_len() {
        return Ok(net.addr());
    }
    Err(format!(
        "the destination {net} is a network, and a rule names one address of this host"
    ))
}
