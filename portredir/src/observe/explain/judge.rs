//! Each rule that names a port, and why it wins or loses.

use std::cmp::Ordering;

use glob::Pattern;
use portredir_common::net::Protocol;
use serde::Serialize;

use super::packet::Ends;
use crate::observe::listening::name_of;
use crate::rule::{Protocols, Rule};

/// A rule that names the destination port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// The canonical text of the rule.
    pub rule: String,
    /// Whether the rule takes the flow.
    pub wins: bool,
    /// The reason.
    pub why: String,
}

/// Judges the rules that name the destination port; `names` are those of the ingress
/// interface, and `winner` is the number of the rule that the programs choose.
#[must_use]
pub fn judge(
    rules: &[(u16, Rule)],
    ends: &Ends,
    names: &[&str],
    winner: Option<u16>,
) -> Vec<Judged> {
    let is_winner = |id: u16| winner == Some(id);
    let place = rules.iter().position(|(id, _)| is_winner(*id));
    let best = place.map(|place| (place, &rules[place].1));
    let named = rules.iter().enumerate();
    let named = named.filter(|(_, (_, rule))| rule.ports.contains(ends.dst.1));
    named
        .map(|(place, (id, rule))| Judged {
            rule: rule.to_string(),
            wins: is_winner(*id),
            why: if is_winner(*id) {
                "all its conditions hold".to_owned()
            } else {
                obstacle(rule, ends, names).unwrap_or_else(|| behind((place, rule), best))
            },
        })
        .collect()
}

/// The first condition that does not hold.
fn obstacle(rule: &Rule, ends: &Ends, names: &[&str]) -> Option<String> {
    let protocol = name_of(ends.protocol);
    if !rule.protocols.each().contains(&ends.protocol) {
        let other = match rule.protocols {
            Protocols::Udp => name_of(Protocol::Udp),
            Protocols::Tcp | Protocols::Both => name_of(Protocol::Tcp),
        };
        return Some(format!("is for {other}, and this is {protocol}"));
    }
    if !rule.redirects(ends.dst.1) {
        return Some("leads from this port to itself".to_owned());
    }
    if let Some(addr) = rule.addr.filter(|addr| *addr != ends.dst.0) {
        return Some(format!("is for address {addr}, and not {}", ends.dst.0));
    }
    if let Some(from) = rule.from.filter(|from| !from.contains(&ends.src.0)) {
        return Some(format!("client {} is not in {from}", ends.src.0));
    }
    let is_named = rule.on.iter().any(|text| {
        let pattern = Pattern::new(text);
        pattern.is_ok_and(|pattern| names.iter().any(|name| pattern.matches(name)))
    });
    if !rule.on.is_empty() && !is_named {
        let on = rule.on.join(",");
        return Some(format!(
            "is for {on}, and the flow comes in on {}",
            names.join(" of ")
        ));
    }
    None
}

/// The reason why a rule whose conditions hold loses to another one.
fn behind((place, rule): (usize, &Rule), best: Option<(usize, &Rule)>) -> String {
    let Some((best_place, best)) = best else {
        return "its conditions hold, but the programs do not choose it".to_owned();
    };
    let length = |rule: &Rule| rule.from.map_or(0, |from| u16::from(from.prefix_len()) + 1);
    let is_addr = best.addr.is_some().cmp(&rule.addr.is_some());
    let is_from = length(best).cmp(&length(rule));
    let is_ports = rule.ports.count().cmp(&best.ports.count());
    match (is_addr, is_from, is_ports) {
        (Ordering::Greater, _, _) => format!("{best} is more specific: it names the address"),
        (Ordering::Equal, Ordering::Greater, _) => {
            format!("{best} is more specific: its clients are fewer")
        }
        (Ordering::Equal, Ordering::Equal, Ordering::Greater) => {
            format!("{best} is more specific: its ports are fewer")
        }
        (Ordering::Equal, Ordering::Equal, Ordering::Equal) if best_place < place => {
            format!("{best} comes before it")
        }
        _ => format!("the programs choose {best}"),
    }
}

#[cfg(test)]
mod tests {
    use portredir_common::net::Port;

    use super::*;

    #[test]
    fn every_loss_has_its_reason() {
        let rules = [
            "80:8080",
            "80:8081/udp",
            "10.0.0.6:80:8082",
            "80:8083 from 10.0.0.0/8",
            "80:8084 on wg*",
            "80:8085 from 203.0.113.0/24",
            "10.0.0.5:80:8086 on eth0",
            "10.0.0.5:80:8087",
            "70-90:80",
            "81:8088",
            "10.0.0.5:79-81:8089",
        ];
        let rules: Vec<(u16, Rule)> = (0..)
            .zip(rules.map(|text| text.parse().expect("a rule")))
            .collect();
        let ends = Ends {
            protocol: Protocol::Tcp,
            src: ("203.0.113.9".parse().expect("an address"), Port::new(5)),
            dst: ("10.0.0.5".parse().expect("an address"), Port::new(80)),
        };
        let judged = judge(&rules, &ends, &["eth0"], Some(6));
        let text: Vec<_> = judged
            .iter()
            .map(|judged| format!("{}: {}", judged.rule, judged.why))
            .collect();
        let best = "10.0.0.5:80:8086 on eth0";
        assert_eq!(
            text,
            [
                format!("80:8080: {best} is more specific: it names the address"),
                "80:8081/udp: is for udp, and this is tcp".to_owned(),
                "10.0.0.6:80:8082: is for address 10.0.0.6, and not 10.0.0.5".to_owned(),
                "80:8083 from 10.0.0.0/8: client 203.0.113.9 is not in 10.0.0.0/8".to_owned(),
                "80:8084 on wg*: is for wg*, and the flow comes in on eth0".to_owned(),
                format!(
                    "80:8085 from 203.0.113.0/24: {best} is more specific: it names the address"
                ),
                format!("{best}: all its conditions hold"),
                format!("10.0.0.5:80:8087: {best} comes before it"),
                "70-90:80: leads from this port to itself".to_owned(),
                format!("10.0.0.5:79-81:8089: {best} is more specific: its ports are fewer"),
            ]
        );
        assert_eq!(judged.iter().filter(|judged| judged.wins).count(), 1);
    }
}
