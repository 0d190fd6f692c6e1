//! Ports of this host whose packets a rule of a packet filter sends elsewhere, as NodePorts
//! of Kubernetes and published ports of Docker.

use std::collections::BTreeSet;

use ipnet::IpNet;
use portredir_common::net::{Protocol, Version};

use super::ruleset::{Chain, Condition, Probe, Ruleset, Verdict};
use crate::rule::Ports;

/// The ports, among some, whose packets a rule redirects, for all clients or for some of
/// them. `meets` tells whether an address of this host is in a network.
#[must_use]
pub fn redirected(
    rulesets: &[Ruleset],
    ports: &[(Protocol, Ports)],
    meets: impl Fn(&IpNet) -> bool,
) -> Vec<(Protocol, Ports)> {
    let mut found = Vec::new();
    for ruleset in rulesets {
        let has_any = |chain: &Chain| {
            let mut verdicts = chain.rules.iter().map(|rule| &rule.verdict);
            verdicts.any(|verdict| matches!(verdict, Verdict::Redirect(_)))
        };
        if !ruleset.chains.iter().any(has_any) {
            continue;
        }
        let ruleset = ruleset.towards(&meets);
        let edges = edges(&ruleset);
        let bases = ruleset.bases(&["prerouting"]).into_iter();
        let bases = bases.filter(|chain| chain.base.as_ref().is_some_and(|base| base.is_nat));
        let bases: Vec<_> = bases.filter(|chain| !chain.is_of_links()).collect();
        for &(protocol, ports) in ports {
            for part in parts(ports, &edges) {
                let is_redirected = |chain: &&Chain, version| {
                    let probe = Probe {
                        version,
                        protocol,
                        port: part.first,
                    };
                    chain.takes(version) && !ruleset.fate(chain, probe).redirected.is_empty()
                };
                let mut versions = [Version::V4, Version::V6].into_iter();
                if versions.any(|version| bases.iter().any(|it| is_redirected(it, version))) {
                    found.push((protocol, part));
                }
            }
        }
    }
    found
}

/// The ports at which a rule may begin or stop to hold.
fn edges(ruleset: &Ruleset) -> BTreeSet<u16> {
    let rules = ruleset.chains.iter().flat_map(|chain| &chain.rules);
    let ports = rules.flat_map(|rule| rule.ports());
    let ends = ports.flat_map(|ports| [Some(ports.first), ports.last.checked_add(1)]);
    ends.flatten().collect()
}

/// The parts of a range within which no rule distinguishes ports.
fn parts(ports: Ports, edges: &BTreeSet<u16>) -> Vec<Ports> {
    let mut first = ports.first;
    let mut parts = Vec::new();
    let within = edges.range(ports.first..=ports.last);
    for &edge in within.filter(|edge| **edge != ports.first) {
        parts.push(Ports {
            first,
            last: edge - 1,
        });
        first = edge;
    }
    let last = ports.last;
    parts.push(Ports { first, last });
    parts
}

impl Ruleset {
    /// The rules for packets to this host: conditions on other destination addresses never
    /// hold.
    fn towards(&self, meets: impl Fn(&IpNet) -> bool) -> Self {
        let mut ruleset = self.clone();
        let chains = ruleset.chains.iter_mut();
        let rules = chains.flat_map(|chain| &mut chain.rules);
        for condition in rules.flat_map(|rule| &mut rule.conditions) {
            if let Condition::Addrs {
                is_source: false,
                nets,
                is_negated: false,
            } = condition
                && !nets.iter().any(&meets)
            {
                *condition = Condition::Never;
            }
        }
        ruleset
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::{iptables, nft};
    use super::*;

    /// Rules of kube-proxy and of Docker.
    const SAVED: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
        :KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-SVC - [0:0]\n:KUBE-SEP - [0:0]\n\
        :DOCKER - [0:0]\n\
        -A PREROUTING -j KUBE-SERVICES\n\
        -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
        -A OUTPUT -p tcp -m tcp --dport 7000 -j REDIRECT --to-ports 7001\n\
        -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 9153 -j KUBE-SVC\n\
        -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
        -A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-SVC\n\
        -A KUBE-SVC -m statistic --mode random --probability 0.5 -j KUBE-SEP\n\
        -A KUBE-SEP -p tcp -m tcp -j DNAT --to-destination 10.244.0.3:8080\n\
        -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80\n\
        -A DOCKER -d 127.0.0.1/32 -p tcp -m tcp --dport 8081 -j DNAT --to-destination \
        172.17.0.2:80\n\
        -A DOCKER -d 192.0.2.1/32 -p udp -m udp --dport 5000:5010 -j DNAT --to-destination \
        172.17.0.2\n\
        COMMIT\n";

    fn found(ports: &[(Protocol, Ports)]) -> Vec<(Protocol, u16, u16)> {
        found_in(iptables::parse(SAVED, Version::V4), ports)
    }

    fn found_in(ruleset: Ruleset, ports: &[(Protocol, Ports)]) -> Vec<(Protocol, u16, u16)> {
        let rulesets = [ruleset];
        let own: IpAddr = "192.0.2.1".parse().expect("an address");
        let found = redirected(&rulesets, ports, |net| net.contains(&own));
        let flat = |(protocol, ports): (_, Ports)| (protocol, ports.first, ports.last);
        found.into_iter().map(flat).collect()
    }

    #[test]
    fn ports_of_kube_proxy_and_docker() {
        let all = Ports {
            first: 1,
            last: u16::MAX,
        };
        assert_eq!(
            found(&[(Protocol::Tcp, all), (Protocol::Udp, all)]),
            [
                (Protocol::Tcp, 8080, 8080),
                (Protocol::Tcp, 30080, 30080),
                (Protocol::Udp, 5000, 5010),
            ]
        );
        let some = Ports {
            first: 5005,
            last: 6000,
        };
        assert_eq!(
            found(&[(Protocol::Udp, some)]),
            [(Protocol::Udp, 5005, 5010)]
        );
    }

    /// With nftables, kube-proxy has node ports in a map of verdicts.
    #[test]
    fn node_ports_in_a_map() {
        let ruleset = nft::parse(include_str!("tests/maps.json"), "").expect("JSON");
        let all = Ports {
            first: 1,
            last: u16::MAX,
        };
        assert_eq!(
            found_in(ruleset, &[(Protocol::Tcp, all), (Protocol::Udp, all)]),
            [(Protocol::Tcp, 30080, 30080)]
        );
    }
}
