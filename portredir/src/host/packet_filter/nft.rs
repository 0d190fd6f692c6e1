//! Reads what `nft -j list ruleset` prints (libnftables-json(5)).

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use portredir_common::net::{Protocol, Version};
use serde_json::Value;

use super::ruleset::{Base, Chain, Condition, NetRule, Ruleset, Verdict};
use crate::rule::Ports;

/// The rules, from the JSON and from the text with handles, `nft -a list ruleset`.
///
/// # Errors
///
/// The text is no JSON.
pub fn parse(json: &str, text: &str) -> Result<Ruleset, serde_json::Error> {
    let json: Value = serde_json::from_str(json)?;
    let objects = json["nftables"].as_array().map_or(&[][..], Vec::as_slice);
    let texts = texts(text);
    let mut sets = HashMap::new();
    let mut chains = Vec::<Chain>::new();
    for object in objects {
        if let Some(set) = object.get("set").or_else(|| object.get("map")) {
            sets.insert((table(set), word(set, "name")), set["elem"].clone());
        } else if let Some(chain) = object.get("chain") {
            chains.push(read_chain(chain));
        }
    }
    for object in objects {
        let Some(rule) = object.get("rule") else {
            continue;
        };
        let table = table(rule);
        let reader = Reader {
            sets: &sets,
            table: &table,
        };
        let name = word(rule, "chain");
        let chain = chains
            .iter_mut()
            .find(|chain| chain.table == table && chain.name == name);
        if let Some(chain) = chain {
            let handle = rule["handle"].as_u64().unwrap_or_default();
            let known = texts.get(&(table.clone(), handle));
            let text = known.cloned().unwrap_or_else(|| format!("handle {handle}"));
            let delete = format!("nft delete rule {table} {name} handle {handle}");
            for (conditions, verdict) in reader.rule(&rule["expr"]) {
                chain.rules.push(NetRule {
                    conditions,
                    verdict,
                    text: text.clone(),
                    delete: delete.clone(),
                });
            }
        }
    }
    Ok(Ruleset { chains })
}

fn word(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_default().to_owned()
}

fn table(object: &Value) -> String {
    let name = if object.get("table").is_some() {
        "table"
    } else {
        "name"
    };
    format!("{} {}", word(object, "family"), word(object, name))
}

fn read_chain(chain: &Value) -> Chain {
    let (table, name) = (table(chain), word(chain, "name"));
    Chain {
        base: chain.get("hook").map(|_| Base {
            hook: word(chain, "hook"),
            is_nat: chain["type"] == "nat",
            priority: chain["prio"].as_i64().unwrap_or_default(),
            drops: chain["policy"] == "drop",
        }),
        rules: Vec::new(),
        tool: "nft",
        table,
        name,
    }
}

/// The texts of rules by table and handle.
fn texts(listing: &str) -> HashMap<(String, u64), String> {
    let mut texts = HashMap::new();
    let mut table = String::new();
    for line in listing.lines() {
        let Some((text, handle)) = line.rsplit_once(" # handle ") else {
            continue;
        };
        let text = text.trim();
        if let Some(name) = text.strip_prefix("table ") {
            table = name.trim_end_matches(" {").to_owned();
        } else if let Ok(handle) = handle.trim().parse()
            && !text.ends_with('{')
        {
            texts.insert((table.clone(), handle), text.to_owned());
        }
    }
    texts
}

/// A reader of the rules of a table.
struct Reader<'a> {
    sets: &'a HashMap<(String, String), Value>,
    table: &'a str,
}

type Parts = (Vec<Condition>, Verdict);

impl Reader<'_> {
    /// The rule; one with a map of verdicts is as many rules as the map has elements.
    fn rule(&self, expr: &Value) -> Vec<Parts> {
        let mut conditions = Vec::new();
        for statement in expr.as_array().into_iter().flatten() {
            let Some((kind, value)) = statement.as_object().and_then(|s| s.iter().next()) else {
                continue;
            };
            match kind.as_str() {
                "match" => conditions.push(self.condition(value)),
                "limit" | "ct count" | "connlimit" | "quota" => conditions.push(Condition::Clients),
                "vmap" => return self.map(&conditions, value),
                "xt" => conditions.push(Condition::Unknown("xt".to_owned())),
                kind => {
                    if let Some(verdict) = verdict(kind, value) {
                        return vec![(conditions, verdict)];
                    }
                }
            }
        }
        let unknown = |condition: &Condition| matches!(condition, Condition::Unknown(_));
        let verdict = if conditions.iter().any(unknown) {
            // The verdict is in what is not understood.
            Verdict::Unknown("xt".to_owned())
        } else {
            Verdict::Continue
        };
        vec![(conditions, verdict)]
    }

    fn map(&self, before: &[Condition], map: &Value) -> Vec<Parts> {
        let Some(elements) = self.elements(&map["data"]) else {
            let unknown = Verdict::Unknown("vmap".to_owned());
            return vec![(before.to_vec(), unknown)];
        };
        let element = |element: &Value| {
            let (key, to) = (element.get(0)?, element.get(1)?.as_object()?);
            let (kind, value) = to.iter().next()?;
            let mut conditions = before.to_vec();
            conditions.extend(self.key(&map["key"], bare(key)));
            Some((conditions, verdict(kind, value)?))
        };
        elements.iter().filter_map(element).collect()
    }

    /// The elements of a map, in the rule or with a name; `None` of one that is not there.
    fn elements<'v>(&'v self, map: &'v Value) -> Option<&'v [Value]> {
        let Some(name) = map.as_str() else {
            return map["set"].as_array().map(Vec::as_slice);
        };
        let key = (self.table.to_owned(), name.strip_prefix('@')?.to_owned());
        // One without elements has no such key.
        let elements = self.sets.get(&key)?.as_array();
        Some(elements.map_or(&[], Vec::as_slice))
    }

    /// The conditions that the key of an element stands for, which may be joined of several.
    fn key(&self, fields: &Value, key: &Value) -> Vec<Condition> {
        let (Some(fields), Some(keys)) = (fields["concat"].as_array(), key["concat"].as_array())
        else {
            return vec![self.comparison(fields, key, "==")];
        };
        let parts = fields.iter().zip(keys);
        parts
            .map(|(field, key)| self.comparison(field, key, "=="))
            .collect()
    }

    fn condition(&self, value: &Value) -> Condition {
        let op = value["op"].as_str().unwrap_or("==");
        self.comparison(&value["left"], &value["right"], op)
    }

    fn comparison(&self, left: &Value, right: &Value, op: &str) -> Condition {
        let is_negated = op == "!=";
        let unknown = || Condition::Unknown(format!("{left} {op} {right}"));
        if !["==", "!=", "in"].contains(&op) {
            return unknown();
        }
        let values = self.values(right);
        let field = |kind: &str, key: &str| left[kind][key].as_str();
        match (field("payload", "protocol"), field("payload", "field")) {
            (Some(protocol @ ("tcp" | "udp" | "th")), Some("dport")) => {
                let ports: Option<Vec<_>> = values.iter().map(ports).collect();
                return ports.map_or_else(unknown, |ports| Condition::DstPorts {
                    protocol: protocol_of(protocol),
                    ports,
                    is_negated,
                });
            }
            (Some("tcp" | "udp" | "th"), Some("sport")) => {
                let ports: Option<Vec<_>> = values.iter().map(ports).collect();
                return ports.map_or(Condition::Clients, |ports| Condition::SrcPorts {
                    ports,
                    is_negated,
                });
            }
            (Some("ip" | "ip6"), Some(field @ ("saddr" | "daddr"))) => {
                let nets: Option<Vec<_>> = values.iter().map(net).collect();
                let nets = nets.filter(|nets| !nets.is_empty());
                return nets.map_or(Condition::Clients, |nets| Condition::Addrs {
                    is_source: field == "saddr",
                    nets,
                    is_negated,
                });
            }
            (Some("ip"), Some("protocol")) | (Some("ip6"), Some("nexthdr")) => {
                return protocols(&values, is_negated).unwrap_or_else(unknown);
            }
            (Some("icmp" | "icmpv6" | "sctp" | "dccp" | "arp"), _) => return Condition::Never,
            _ => {}
        }
        if let Some(key) = field("meta", "key") {
            return meta(key, &values, is_negated).unwrap_or_else(unknown);
        }
        if field("ct", "key") == Some("state") {
            // The first packet of a connection is new, and no other.
            return fixed(values.iter().any(|value| value == "new") != is_negated);
        }
        if field("ct", "key") == Some("status") {
            return fixed(is_negated);
        }
        if field("fib", "result") == Some("type") {
            return destination_type(&left["fib"]["flags"], &values, is_negated);
        }
        unknown()
    }

    /// The values of a set, also of one with a name.
    fn values(&self, right: &Value) -> Vec<Value> {
        if let Some(name) = right.as_str().and_then(|name| name.strip_prefix('@')) {
            let key = (self.table.to_owned(), name.to_owned());
            let elements = self.sets.get(&key).and_then(Value::as_array);
            return elements.cloned().unwrap_or_default();
        }
        let set = right.get("set").unwrap_or(right);
        set.as_array().cloned().unwrap_or_else(|| vec![set.clone()])
    }
}

/// A condition that always holds, or never.
fn fixed(holds: bool) -> Condition {
    if holds {
        Condition::Protocols(vec!["tcp".to_owned(), "udp".to_owned()])
    } else {
        Condition::Never
    }
}

/// The kind of the destination. A client on another host has a source of kind `unicast`.
fn destination_type(flags: &Value, values: &[Value], is_negated: bool) -> Condition {
    let mut flags = flags.as_array().into_iter().flatten();
    if flags.any(|flag| flag == "saddr") {
        return fixed(values.iter().any(|value| value == "unicast") != is_negated);
    }
    let names = values.iter().filter_map(Value::as_str);
    Condition::DstType {
        names: names.map(str::to_owned).collect(),
        is_negated,
    }
}

fn meta(key: &str, values: &[Value], is_negated: bool) -> Option<Condition> {
    let first = values.first().and_then(Value::as_str).unwrap_or_default();
    match key {
        "l4proto" | "protocol" if first != "ip" && first != "ip6" => protocols(values, is_negated),
        "nfproto" | "protocol" => {
            let is_v4 = first == "ipv4" || first == "ip";
            let version = if is_v4 != is_negated {
                Version::V4
            } else {
                Version::V6
            };
            Some(Condition::Version(version))
        }
        "iifname" | "iif" => {
            let names: Vec<_> = values.iter().filter_map(Value::as_str).collect();
            match (names.as_slice(), is_negated) {
                (["lo"], _) => Some(fixed(is_negated)),
                (names, false) => Some(Condition::Interface(names.join(","))),
                (names, true) => Some(Condition::Interface(format!("!{}", names.join(",!")))),
            }
        }
        "oifname" | "oif" => {
            let names: Vec<_> = values.iter().filter_map(Value::as_str).collect();
            let not = if is_negated { "!" } else { "" };
            Some(Condition::Egress(format!("{not}{}", names.join(","))))
        }
        "pkttype" => Some(fixed((first == "host" || first == "unicast") != is_negated)),
        _ => None,
    }
}

/// The protocols, by name or number.
fn protocols(values: &[Value], is_negated: bool) -> Option<Condition> {
    let names = values
        .iter()
        .map(|value| match (value.as_str(), value.as_u64()) {
            (Some(name), _) => Some(name.to_owned()),
            (None, Some(6)) => Some("tcp".to_owned()),
            (None, Some(17)) => Some("udp".to_owned()),
            (None, Some(number)) => Some(number.to_string()),
            (None, None) => None,
        });
    let names: Vec<_> = names.collect::<Option<_>>()?;
    let has = |name: &str| names.iter().any(|other| other == name);
    Some(if is_negated {
        let others = ["tcp", "udp"].into_iter().filter(|name| !has(name));
        Condition::Protocols(others.map(str::to_owned).collect())
    } else {
        Condition::Protocols(names)
    })
}

fn protocol_of(name: &str) -> Option<Protocol> {
    match name {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    }
}

/// An element of a set. One with a timeout, a counter or a comment is an object around it.
fn bare(element: &Value) -> &Value {
    let inner = element.get("elem").and_then(|elem| elem.get("val"));
    inner.unwrap_or(element)
}

/// A port or a range of ports.
fn ports(value: &Value) -> Option<Ports> {
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
    let value = bare(value);
    match value
        .get("range")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
    {
        Some([first, last]) => Some(Ports {
            first: number(first)?,
            last: number(last)?,
        }),
        _ => number(value).map(|port| Ports {
            first: port,
            last: port,
        }),
    }
}

/// An address or a network. Ranges are none of either.
fn net(value: &Value) -> Option<IpNet> {
    let value = bare(value);
    if let Some(prefix) = value.get("prefix") {
        let addr: IpAddr = prefix["addr"].as_str()?.parse().ok()?;
        return IpNet::new(addr, prefix["len"].as_u64()?.try_into().ok()?).ok();
    }
    value.as_str()?.parse::<IpAddr>().ok().map(IpNet::from)
}

/// The verdict of a statement, if it is one.
fn verdict(kind: &str, value: &Value) -> Option<Verdict> {
    let target = || word(value, "target");
    let to = || {
        let addr = value["addr"].as_str().unwrap_or_default();
        let port = value.get("port").map(ToString::to_string);
        match port {
            Some(port) => format!("{addr}:{port}"),
            None => addr.to_owned(),
        }
    };
    Some(match kind {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "jump" => Verdict::Jump(target()),
        "goto" => Verdict::Goto(target()),
        "return" => Verdict::Return,
        "redirect" | "dnat" | "tproxy" => Verdict::Redirect(to()),
        "masquerade" | "snat" => Verdict::Translate,
        "queue" => Verdict::Unknown(kind.to_owned()),
        _ => return None,
    })
}
