//! The way of one packet through packet filters: with its addresses and its interface, more
//! conditions hold or do not hold than for clients in general.

use std::net::IpAddr;

use glob::Pattern;
use ipnet::IpNet;
use portredir_common::net::{Protocol, Version};
use serde::Serialize;

use super::Rulesets;
use super::ruleset::{Chain, Condition, Fate, NetRule, Probe, Ruleset, Verdict};

/// The first packet of a client on another host, as packet filters see it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The protocol.
    pub protocol: Protocol,
    /// The network that the source is in; `None` where it may be anything.
    pub src: Option<IpNet>,
    /// The source port; `None` where it may be any.
    pub src_port: Option<u16>,
    /// The destination.
    pub dst: (IpAddr, u16),
    /// The name of the ingress interface; `None` where it has several.
    pub interface: Option<&'a str>,
    /// The name of the egress interface of a packet that this host forwards.
    pub egress: Option<&'a str>,
}

/// The verdict of one chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Filtered {
    /// The hook, as nftables names it.
    pub hook: String,
    /// The chain, in a sentence.
    pub chain: String,
    /// The verdict: `accepts`, `drops`, `redirects` or `translates` (the source); `not
    /// evaluated` where a rule that is not understood may end the way.
    pub verdict: &'static str,
    /// The rules that decide, or that are not understood; none where the policy does.
    pub by: Vec<String>,
    /// The order among the chains of a hook.
    #[serde(skip)]
    pub priority: i64,
    /// The commands that accept this packet and its replies, before all other rules.
    #[serde(skip)]
    pub accept: String,
    /// The commands that delete the rules that decide.
    #[serde(skip)]
    pub delete: Vec<String>,
}

/// The verdict where a rule that is not understood may end the way.
pub const NOT_EVALUATED: &str = "not evaluated";

/// The verdicts of packet filters on one packet, up to the first one that ends its way.
#[must_use]
pub fn filtered(rulesets: &Rulesets, seen: &Seen<'_>) -> Vec<Filtered> {
    way(&rulesets.rulesets, seen)
}

/// The verdicts of all chains on the way of a packet, up to the first one that ends it.
fn way(rulesets: &[Ruleset], seen: &Seen<'_>) -> Vec<Filtered> {
    let version = if seen.dst.0.is_ipv4() {
        Version::V4
    } else {
        Version::V6
    };
    let probe = Probe {
        version,
        protocol: seen.protocol,
        port: seen.dst.1,
    };
    let narrowed: Vec<_> = rulesets
        .iter()
        .map(|ruleset| ruleset.narrowed(seen))
        .collect();
    let hooks = match seen.egress {
        None => &["ingress", "prerouting", "input"][..],
        Some(_) => &["ingress", "prerouting", "forward", "postrouting"],
    };
    let mut filtered = Vec::new();
    for &hook in hooks {
        let mut chains: Vec<_> = narrowed
            .iter()
            .flat_map(|ruleset| {
                ruleset
                    .bases(&[hook])
                    .into_iter()
                    .map(move |chain| (ruleset, chain))
            })
            .filter(|(_, chain)| chain.takes(version))
            // A forwarded packet is no frame that a bridge passes on.
            .filter(|(_, chain)| seen.egress.is_none() || !chain.is_of_links())
            .collect();
        chains.sort_by_key(|(_, chain)| chain.base.as_ref().map(|base| base.priority));
        for (ruleset, chain) in chains {
            let mut one = if hook == "ingress" {
                // Such a chain belongs to devices, which the reader leaves out.
                Filtered::new(hook, chain, NOT_EVALUATED, &[])
            } else {
                Filtered::of(hook, chain, &ruleset.fate(chain, probe))
            };
            one.accept = chain.accept_to(seen.protocol, seen.dst);
            let ends = ["drops", "redirects"].contains(&one.verdict);
            filtered.push(one);
            if ends {
                return filtered;
            }
        }
    }
    filtered
}

impl Filtered {
    fn new(hook: &str, chain: &Chain, verdict: &'static str, by: &[&NetRule]) -> Self {
        Self {
            hook: hook.to_owned(),
            chain: chain.place(),
            verdict,
            by: by.iter().map(|rule| rule.text.clone()).collect(),
            priority: chain.base.as_ref().map_or(0, |base| base.priority),
            accept: String::new(),
            delete: by.iter().map(|rule| rule.delete.clone()).collect(),
        }
    }

    fn of(hook: &str, chain: &Chain, fate: &Fate<'_>) -> Self {
        let rules = |rules: &[(&Chain, &'_ NetRule)]| {
            let rules = rules.iter().map(|(_, rule)| (*rule).clone());
            rules.collect::<Vec<_>>()
        };
        let unsure = [rules(&fate.unknown), rules(&fate.some_dropped)].concat();
        let end = fate.end.and_then(|(_, rule)| rule);
        let verdict = match end.map(|rule| &rule.verdict) {
            Some(Verdict::Redirect(_)) => "redirects",
            Some(Verdict::Translate) => "translates",
            _ if fate.is_dropped => "drops",
            _ => "accepts",
        };
        let may_be_redirected = verdict != "redirects" && !fate.redirected.is_empty();
        let may_be_translated = verdict != "translates" && !fate.translated.is_empty();
        let may_be = may_be_redirected || may_be_translated;
        if !unsure.is_empty() || may_be || (fate.some_accepted && fate.is_dropped) {
            let changed = [rules(&fate.redirected), rules(&fate.translated)].concat();
            let unsure = [unsure, changed].concat();
            let unsure: Vec<_> = unsure.iter().collect();
            return Self::new(hook, chain, NOT_EVALUATED, &unsure);
        }
        Self::new(hook, chain, verdict, end.as_slice())
    }
}

impl Ruleset {
    /// The rules with the conditions that are left when a packet is known: one that holds
    /// is gone, and one that does not hold never does.
    #[must_use]
    fn narrowed(&self, seen: &Seen<'_>) -> Self {
        let mut narrowed = self.clone();
        let rules = narrowed
            .chains
            .iter_mut()
            .flat_map(|chain| &mut chain.rules);
        for rule in rules {
            let conditions = std::mem::take(&mut rule.conditions);
            let left =
                conditions
                    .into_iter()
                    .filter_map(|condition| match holds(&condition, seen) {
                        None => Some(condition),
                        Some(true) => None,
                        Some(false) => Some(Condition::Never),
                    });
            rule.conditions = left.collect();
        }
        narrowed
    }
}

/// Whether a condition holds, where addresses, ports and interface decide.
fn holds(condition: &Condition, seen: &Seen<'_>) -> Option<bool> {
    match condition {
        Condition::Addrs {
            is_source,
            nets,
            is_negated,
        } => {
            // Such a condition belongs to one IP version, also where it is negated.
            let is_version = nets
                .first()
                .is_some_and(|net| net.addr().is_ipv4() == seen.dst.0.is_ipv4());
            if !is_version {
                return Some(false);
            }
            let addrs = if *is_source {
                seen.src?
            } else {
                seen.dst.0.into()
            };
            let is_among = nets.iter().any(|net: &IpNet| net.contains(&addrs));
            if !is_among && nets.iter().any(|net| addrs.contains(net)) {
                // The condition holds for some of these addresses.
                return None;
            }
            Some(is_among != *is_negated)
        }
        Condition::SrcPorts { ports, is_negated } => {
            let port = seen.src_port?;
            let is_among = ports
                .iter()
                .any(|range| range.first <= port && port <= range.last);
            Some(is_among != *is_negated)
        }
        Condition::Interface(list) => Some(is_among(list, seen.interface?)),
        Condition::Egress(list) => Some(is_among(list, seen.egress?)),
        Condition::DstType { names, is_negated } => {
            let kind = match seen.egress {
                None => "local",
                Some(_) => "unicast",
            };
            Some(names.iter().any(|name| name == kind) != *is_negated)
        }
        _ => None,
    }
}

/// Whether the condition on an interface holds for a name.
fn is_among(list: &str, name: &str) -> bool {
    let is_negated = list.starts_with('!');
    let mut names = list.split(',').map(|name| name.trim_start_matches('!'));
    let is_among = names.any(|text| {
        // iptables writes `eth+`, nftables `eth*`.
        let glob = match text.strip_suffix('+') {
            Some(begin) => format!("{begin}*"),
            None => text.to_owned(),
        };
        Pattern::new(&glob).is_ok_and(|glob| glob.matches(name))
    });
    is_among != is_negated
}

#[cfg(test)]
mod tests {
    use super::super::{iptables, nft};
    use super::*;

    fn seen(src: &str, interface: &'static str) -> Seen<'static> {
        Seen {
            protocol: Protocol::Tcp,
            src: Some(src.parse::<IpAddr>().expect("an address").into()),
            src_port: Some(40_000),
            dst: ("10.0.0.5".parse().expect("an address"), 8080),
            interface: Some(interface),
            egress: None,
        }
    }

    fn text(rulesets: &[Ruleset], seen: &Seen<'_>) -> Vec<String> {
        let way = way(rulesets, seen).into_iter();
        way.map(|one| format!("{} {} {}", one.hook, one.verdict, one.by.join("; ")))
            .collect()
    }

    #[test]
    fn nftables_see_addresses_and_interfaces() {
        let json = r#"{"nftables": [
            {"chain": {"family": "inet", "table": "t", "name": "input", "handle": 1,
                "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "t", "name": "pre", "handle": 2,
                "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}},
            {"rule": {"family": "inet", "table": "t", "chain": "pre", "handle": 3, "expr": [
                {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth1"}},
                {"redirect": {"port": 9}}]}},
            {"rule": {"family": "inet", "table": "t", "chain": "input", "handle": 4, "expr": [
                {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                    "right": {"prefix": {"addr": "203.0.113.0", "len": 24}}}},
                {"accept": null}]}},
            {"rule": {"family": "inet", "table": "t", "chain": "input", "handle": 5, "expr": [
                {"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 7}},
                {"accept": null}]}}
        ]}"#;
        let rulesets = [nft::parse(json, "").expect("JSON")];
        assert_eq!(
            text(&rulesets, &seen("203.0.113.9", "eth0")),
            ["prerouting accepts ", "input accepts handle 4"]
        );
        assert_eq!(
            text(&rulesets, &seen("203.0.113.9", "eth1")),
            ["prerouting redirects handle 3"]
        );
        // A mark is nothing that can be known here.
        assert_eq!(
            text(&rulesets, &seen("198.51.100.9", "eth0")),
            ["prerouting accepts ", "input not evaluated handle 5"]
        );
    }

    /// The output of nft 1.0.6 about maps of verdicts as kube-proxy has them: with names, joined
    /// keys and comments, one of them empty.
    #[test]
    fn maps_of_verdicts_are_read() {
        let rulesets = [nft::parse(include_str!("tests/maps.json"), "").expect("JSON")];
        let to = |addr: &str, port, interface| {
            let seen = Seen {
                dst: (addr.parse().expect("an address"), port),
                egress: Some("eth9"),
                ..seen("203.0.113.9", interface)
            };
            text(&rulesets, &seen)
        };
        let redirected = ["prerouting redirects handle 9"];
        assert_eq!(to("10.96.0.1", 443, "eth0"), redirected);
        assert_eq!(to("10.9.1.1", 80, "eth0"), ["prerouting drops handle 10"]);
        let accepted = ["prerouting accepts ", "forward accepts handle 16"];
        assert_eq!(to("10.9.1.1", 443, "eth0"), accepted);
        let dropped = ["prerouting accepts ", "forward drops handle 16"];
        assert_eq!(to("10.96.0.1", 80, "eth1"), dropped);
        // The policy, as `new` is no element of the map of states.
        let dropped = ["prerouting accepts ", "forward drops "];
        assert_eq!(to("10.96.0.1", 80, "eth2"), dropped);
    }

    #[test]
    fn iptables_see_addresses_and_interfaces() {
        let saved = "*filter\n:INPUT ACCEPT [0:0]\n\
            -A INPUT -i eth+ ! -s 203.0.113.0/24 -p tcp -m tcp --dport 8080 -j DROP\nCOMMIT\n";
        let rulesets = [iptables::parse(saved, Version::V4)];
        assert_eq!(
            text(&rulesets, &seen("203.0.113.9", "eth0")),
            ["input accepts "]
        );
        let dropped = text(&rulesets, &seen("198.51.100.9", "eth0"));
        assert!(
            dropped[0].starts_with("input drops -A INPUT"),
            "{dropped:?}"
        );
        assert_eq!(
            text(&rulesets, &seen("198.51.100.9", "wg0")),
            ["input accepts "]
        );
    }
    /// A packet of any client, on its way from `eth0` to a container.
    fn forwarded() -> Seen<'static> {
        Seen {
            src: None,
            src_port: None,
            egress: Some("docker0"),
            ..seen("203.0.113.9", "eth0")
        }
    }

    #[test]
    fn forwarded_packets_pass_other_hooks() {
        let docker = |filter: &str| {
            let saved = format!(
                "*raw\n:PREROUTING ACCEPT [0:0]\n{filter}COMMIT\n\
                 *nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n\
                 -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
                 -A POSTROUTING -s 10.0.0.0/24 ! -o docker0 -j MASQUERADE\n\
                 -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.9:80\n\
                 COMMIT\n*filter\n:FORWARD DROP [0:0]\n\
                 -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                 -A FORWARD -d 10.0.0.5/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 8080 -j ACCEPT\n\
                 COMMIT\n"
            );
            [iptables::parse(&saved, Version::V4)]
        };
        let passed = way(&docker(""), &forwarded());
        let verdicts: Vec<_> = passed.iter().map(|one| one.verdict).collect();
        assert_eq!(verdicts, ["accepts"; 4], "{passed:?}");
        let other = Seen {
            dst: ("10.0.0.6".parse().expect("an address"), 8080),
            ..forwarded()
        };
        let dropped = way(&docker(""), &other);
        let last = dropped.last().expect("a verdict");
        assert_eq!((last.hook.as_str(), last.verdict), ("forward", "drops"));
        assert_eq!(
            last.accept,
            "iptables -t filter -I FORWARD -d 10.0.0.6 -p tcp --dport 8080 -j ACCEPT && iptables \
             -t filter -I FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
        );
        let raw = "-A PREROUTING -d 10.0.0.5/32 ! -i docker0 -j DROP\n";
        let dropped = way(&docker(raw), &forwarded());
        assert_eq!((dropped.len(), dropped[0].verdict), (1, "drops"));
        assert_eq!(dropped[0].priority, -300);
    }

    #[test]
    fn rules_that_translate_the_source() {
        for (rule, client, verdict) in [
            ("-o docker0 -j MASQUERADE", None, "translates"),
            ("-o eth1 -j MASQUERADE", None, "accepts"),
            ("-s 10.0.0.0/8 -j MASQUERADE", None, NOT_EVALUATED),
            (
                "-s 10.0.0.0/8 -j MASQUERADE",
                Some("10.1.0.0/16"),
                "translates",
            ),
            (
                "-s 10.1.0.0/16 -j MASQUERADE",
                Some("10.0.0.0/8"),
                NOT_EVALUATED,
            ),
            (
                "-s 10.1.0.0/16 -j MASQUERADE",
                Some("10.2.0.0/16"),
                "accepts",
            ),
        ] {
            let saved = format!("*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING {rule}\nCOMMIT\n");
            let seen = Seen {
                src: client.map(|net| net.parse().expect(net)),
                ..forwarded()
            };
            let way = way(&[iptables::parse(&saved, Version::V4)], &seen);
            assert_eq!(way[0].verdict, verdict, "{rule} {client:?}");
        }
    }
}
