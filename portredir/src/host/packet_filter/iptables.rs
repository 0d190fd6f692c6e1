//! Reads what `iptables-save` and `ip6tables-save` print (iptables-extensions(8)).

use portredir_common::net::{Protocol, Version};

use super::ruleset::{Base, Chain, Condition, NetRule, Ruleset, Verdict};
use crate::rule::Ports;

/// Targets after which a packet goes on in its chain.
const GOING_ON: [&str; 15] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DSCP",
    "LOG",
    "MARK",
    "NFLOG",
    "NOTRACK",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TOS",
];

/// The beginnings of options that limit a rule to some clients.
const CLIENTS: [&str; 9] = [
    "--src-type",
    "--src-range",
    "--dst-range",
    "--mac-source",
    "--limit",
    "--hashlimit",
    "--connlimit",
    "--probability",
    "--recent",
];

/// The rules of all tables of one IP version.
#[must_use]
pub fn parse(text: &str, version: Version) -> Ruleset {
    let (family, tool) = match version {
        Version::V4 => ("ip", "iptables"),
        Version::V6 => ("ip6", "ip6tables"),
    };
    let mut ruleset = Ruleset::default();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let name = words.next().unwrap_or_default().to_owned();
            ruleset.chains.push(Chain {
                base: base(&table, &name, words.next() == Some("DROP")),
                table: format!("{family} {table}"),
                name,
                rules: Vec::new(),
                tool,
            });
        } else if let Some(rest) = line.strip_prefix("-A ") {
            let words = words(line);
            let Some(name) = words.get(1) else { continue };
            let full = format!("{family} {table}");
            let names = ruleset.chains.iter().filter(|chain| chain.table == full);
            let names: Vec<_> = names.map(|chain| chain.name.clone()).collect();
            let (conditions, verdict) = rule(&words[2..], &names);
            let rule = NetRule {
                conditions,
                verdict,
                text: line.to_owned(),
                delete: format!("{tool} -t {table} -D {rest}"),
            };
            let chain = ruleset.chains.iter_mut();
            let mut chain = chain.filter(|chain| chain.table == full && chain.name == *name);
            if let Some(chain) = chain.next() {
                chain.rules.push(rule);
            }
        }
    }
    ruleset
}

fn base(table: &str, name: &str, drops: bool) -> Option<Base> {
    let hook = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let hook = hook.iter().find(|hook| **hook == name)?;
    // The values of `enum nf_ip_hook_priorities`.
    let priority = match table {
        "raw" => -300,
        "mangle" => -150,
        "nat" => -100,
        "security" => 50,
        _ => 0,
    };
    Some(Base {
        hook: hook.to_lowercase(),
        is_nat: table == "nat",
        priority,
        drops,
    })
}

/// The words of a line; quotes hold words together, as in a shell.
#[must_use]
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut is_begun) = (String::new(), None, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' | '\'' if quote.is_none_or(|open| open == c) => {
                quote = if quote.is_some() { None } else { Some(c) };
                is_begun = true;
            }
            '\\' => word.extend(chars.next()),
            c if c.is_whitespace() && quote.is_none() => {
                if is_begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                is_begun = false;
            }
            c => word.push(c),
        }
    }
    if is_begun || !word.is_empty() {
        words.push(word);
    }
    words
}

/// The conditions and the verdict behind the name of the chain.
fn rule(words: &[String], chains: &[String]) -> (Vec<Condition>, Verdict) {
    let mut conditions = Vec::new();
    let mut reader = Reader::default();
    let mut rest = words;
    while let [option, after @ ..] = rest {
        if option == "-j" || option == "-g" {
            return (conditions, verdict(option, after, chains));
        }
        if option == "!" {
            reader.is_negated = true;
            rest = after;
            continue;
        }
        let (condition, taken) = reader.condition(option, after);
        conditions.extend(condition);
        reader.is_negated = false;
        rest = after.get(taken..).unwrap_or_default();
    }
    (conditions, Verdict::Continue)
}

/// A reader of the conditions of a rule.
#[derive(Default)]
struct Reader {
    protocol: Option<Protocol>,
    is_negated: bool,
}

impl Reader {
    /// The condition of an option, if it limits new clients, and the number of its values.
    fn condition(&mut self, option: &str, after: &[String]) -> (Option<Condition>, usize) {
        let value = after.first().map_or("", String::as_str);
        let is_negated = self.is_negated;
        let unless = |holds: bool| (holds == is_negated).then_some(Condition::Never);
        let condition = match option {
            "-m" | "--comment" => None,
            "-p" => {
                self.protocol = match value {
                    "tcp" => Some(Protocol::Tcp),
                    "udp" => Some(Protocol::Udp),
                    _ => None,
                };
                Some(protocols(value, is_negated))
            }
            "--dport" | "--dports" => Some(Condition::DstPorts {
                protocol: self.protocol,
                ports: ports(value),
                is_negated,
            }),
            "-s" | "-d" => Some(
                value
                    .parse()
                    .map_or(Condition::Clients, |net| Condition::Addrs {
                        is_source: option == "-s",
                        nets: vec![net],
                        is_negated,
                    }),
            ),
            "--sport" | "--sports" => Some(Condition::SrcPorts {
                ports: ports(value),
                is_negated,
            }),
            "-i" => Some(interface(value, is_negated)),
            "-o" => Some(egress(value, is_negated)),
            "--ctstate" | "--state" => unless(value.split(',').any(|state| state == "NEW")),
            "--dst-type" => Some(dst_types(value, is_negated)),
            "--syn" => return (unless(true), 0),
            "--tcp-flags" => {
                // The first packet of a connection has the flag SYN alone.
                let has = |flags: &str| flags.split(',').any(|flag| flag == "SYN" || flag == "ALL");
                let compared = after.get(1).map_or("", String::as_str);
                let holds = if has(value) {
                    compared == "SYN"
                } else {
                    compared == "NONE"
                };
                return (unless(holds), 2);
            }
            "--match-set" => return (Some(Condition::Clients), 2),
            option if CLIENTS.iter().any(|known| option.starts_with(known)) => {
                Some(Condition::Clients)
            }
            option => {
                // Options of extensions have one value, or none.
                let taken = usize::from(!value.starts_with('-'));
                return (Some(Condition::Unknown(format!("{option} {value}"))), taken);
            }
        };
        (condition, 1)
    }
}

fn protocols(name: &str, is_negated: bool) -> Condition {
    let names = if is_negated {
        let others = ["tcp", "udp"].into_iter().filter(|other| *other != name);
        others.map(str::to_owned).collect()
    } else if name == "all" {
        vec!["tcp".to_owned(), "udp".to_owned()]
    } else {
        vec![name.to_owned()]
    };
    Condition::Protocols(names)
}

fn egress(name: &str, is_negated: bool) -> Condition {
    let not = if is_negated { "!" } else { "" };
    Condition::Egress(format!("{not}{name}"))
}

fn dst_types(list: &str, is_negated: bool) -> Condition {
    Condition::DstType {
        names: list.to_lowercase().split(',').map(str::to_owned).collect(),
        is_negated,
    }
}

fn interface(name: &str, is_negated: bool) -> Condition {
    match (name, is_negated) {
        ("lo", false) => Condition::Never,
        ("lo", true) => Condition::Protocols(vec!["tcp".to_owned(), "udp".to_owned()]),
        (name, false) => Condition::Interface(name.to_owned()),
        (name, true) => Condition::Interface(format!("!{name}")),
    }
}

/// Ports as in `22,8000:8010`.
fn ports(list: &str) -> Vec<Ports> {
    let ranges = list.split(',').filter_map(|range| {
        let (first, last) = range.split_once(':').unwrap_or((range, range));
        let end = |text: &str, default| {
            if text.is_empty() {
                Some(default)
            } else {
                text.parse().ok()
            }
        };
        Some(Ports {
            first: end(first, 0)?,
            last: end(last, u16::MAX)?,
        })
    });
    ranges.collect()
}

fn verdict(option: &str, words: &[String], chains: &[String]) -> Verdict {
    let name = words.first().map_or("", String::as_str);
    let to = || words.get(2).cloned().unwrap_or_default();
    match name {
        "ACCEPT" => Verdict::Accept,
        "DROP" | "REJECT" => Verdict::Drop,
        "RETURN" => Verdict::Return,
        "REDIRECT" | "DNAT" | "TPROXY" => Verdict::Redirect(to()),
        "MASQUERADE" | "SNAT" => Verdict::Translate,
        name if chains.iter().any(|chain| chain == name) => match option {
            "-g" => Verdict::Goto(name.to_owned()),
            _ => Verdict::Jump(name.to_owned()),
        },
        name if GOING_ON.contains(&name) => Verdict::Continue,
        name => Verdict::Unknown(name.to_owned()),
    }
}
