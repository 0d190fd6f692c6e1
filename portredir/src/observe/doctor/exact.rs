//! The way of one packet through packet filters: with its addresses and its interface, more
//! conditions hold or do not hold than for clients in general.

use std::net::IpAddr;

use glob::Pattern;
use ipnet::IpNet;
use portredir_common::net::{Protocol, Version};
use serde::Serialize;

use super::ruleset::{Chain, Condition, Fate, NetRule, Probe, Ruleset, Verdict};

/// The first packet of a client on another host, as packet filters see it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The protocol.
    pub protocol: Protocol,
    /// The source.
    pub src: (IpAddr, u16),
    /// The destination.
    pub dst: (IpAddr, u16),
    /// The name of the ingress interface; `None` where it has several.
    pub interface: Option<&'a str>,
}

/// The verdict of one chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Filtered {
    /// The hook, as nftables names it.
    pub hook: String,
    /// The chain, in a sentence.
    pub chain: String,
    /// The verdict: `accepts`, `drops` or `redirects`; `not evaluated` where a rule that is
    /// not understood may end the way.
    pub verdict: &'static str,
    /// The rules that decide, or that are not understood; none where the policy does.
    pub by: Vec<String>,
}

const NOT_EVALUATED: &str = "not evaluated";

/// The verdicts of all chains on the way to a socket, up to the first one that ends it.
#[must_use]
pub fn way(rulesets: &[Ruleset], seen: &Seen<'_>) -> Vec<Filtered> {
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
    let mut filtered = Vec::new();
    for hook in ["ingress", "prerouting", "input"] {
        let mut chains: Vec<_> = narrowed
            .iter()
            .flat_map(|ruleset| {
                ruleset
                    .bases(&[hook])
                    .into_iter()
                    .map(move |chain| (ruleset, chain))
            })
            .filter(|(_, chain)| chain.takes(version))
            .collect();
        chains.sort_by_key(|(_, chain)| chain.base.as_ref().map(|base| base.priority));
        for (ruleset, chain) in chains {
            let one = if hook == "ingress" {
                // Such a chain belongs to devices, which the reader leaves out.
                Filtered::new(hook, chain, NOT_EVALUATED, Vec::new())
            } else {
                Filtered::of(hook, chain, &ruleset.fate(chain, probe))
            };
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
    fn new(hook: &str, chain: &Chain, verdict: &'static str, by: Vec<String>) -> Self {
        Self {
            hook: hook.to_owned(),
            chain: chain.place(),
            verdict,
            by,
        }
    }

    fn of(hook: &str, chain: &Chain, fate: &Fate<'_>) -> Self {
        let texts = |rules: &[(&Chain, &NetRule)]| {
            let texts = rules.iter().map(|(_, rule)| rule.text.clone());
            texts.collect::<Vec<_>>()
        };
        let unsure = [texts(&fate.unknown), texts(&fate.some_dropped)].concat();
        let end = fate.end.and_then(|(_, rule)| rule);
        let is_redirected = end.is_some_and(|rule| matches!(rule.verdict, Verdict::Redirect(_)));
        let may_be_redirected = !is_redirected && !fate.redirected.is_empty();
        let by = end.map(|rule| rule.text.clone()).into_iter().collect();
        if !unsure.is_empty() || may_be_redirected || (fate.some_accepted && fate.is_dropped) {
            let unsure = [unsure, texts(&fate.redirected)].concat();
            return Self::new(hook, chain, NOT_EVALUATED, unsure);
        }
        let verdict = if is_redirected {
            "redirects"
        } else if fate.is_dropped {
            "drops"
        } else {
            "accepts"
        };
        Self::new(hook, chain, verdict, by)
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
            let addr = if *is_source { seen.src.0 } else { seen.dst.0 };
            // Such a condition belongs to one IP version, also where it is negated.
            let is_version = nets
                .first()
                .is_some_and(|net| net.addr().is_ipv4() == addr.is_ipv4());
            let is_among = nets.iter().any(|net: &IpNet| net.contains(&addr));
            Some(is_version && is_among != *is_negated)
        }
        Condition::SrcPorts { ports, is_negated } => {
            let is_among = ports
                .iter()
                .any(|range| range.first <= seen.src.1 && seen.src.1 <= range.last);
            Some(is_among != *is_negated)
        }
        Condition::Interface(list) => {
            let name = seen.interface?;
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
            Some(is_among != is_negated)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{iptables, nft};
    use super::*;

    fn seen(src: &str, interface: &'static str) -> Seen<'static> {
        Seen {
            protocol: Protocol::Tcp,
            src: (src.parse().expect("an address"), 40_000),
            dst: ("10.0.0.5".parse().expect("an address"), 8080),
            interface: Some(interface),
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
}
