//! Target ports on this host whose packets netfilter or IPVS sends elsewhere, as NodePorts
//! and published ports of containers: clients are served there, and no socket listens.

use std::net::IpAddr;

use ipnet::IpNet;
use portredir_common::net::{Addr, Port, Protocol};

use crate::host::ipvs::{self, Service};
use crate::host::packet_filter::ruleset::Ruleset;
use crate::host::packet_filter::{Rulesets, redirected};
use crate::host::snapshot::{LocalAddrs, Snapshot};
use crate::rule::{Ports, Rule};
use crate::ruleset::taken::TakenPorts;

impl Snapshot {
    /// The target ports of rules that are taken. This runs other programs, unless no rule
    /// leads to one port of this host. Where some packet filter cannot be read, the ports
    /// that were taken before stay so.
    #[must_use]
    pub fn read_taken(&self, rules: &[Rule], before: &TakenPorts) -> TakenPorts {
        if targets(rules).is_empty() {
            return TakenPorts::default();
        }
        let read = Rulesets::read();
        let taken = self.taken(rules, &read.rulesets, &ipvs::read());
        if read.unread.is_empty() {
            taken
        } else {
            taken.iter().chain(before.iter()).collect()
        }
    }

    /// The target ports of rules that are taken.
    #[must_use]
    pub fn taken(&self, rules: &[Rule], rulesets: &[Ruleset], services: &[Service]) -> TakenPorts {
        let targets = targets(rules);
        let by_rules = redirected(rulesets, &targets, |net| self.local.meets(net));
        let by_ipvs = services.iter().filter(|service| {
            let is_own = !service.addr.is_loopback() && self.local.contains(service.addr);
            let is_target = |(protocol, ports): &(Protocol, Ports)| {
                *protocol == service.protocol && ports.contains(Port::new(service.port))
            };
            is_own && targets.iter().any(is_target)
        });
        let by_ipvs = by_ipvs.map(|it| (it.protocol, Ports::one(Port::new(it.port))));
        by_rules.into_iter().chain(by_ipvs).collect()
    }
}

/// The target ports of rules that ask for listeners, without repetition.
fn targets(rules: &[Rule]) -> Vec<(Protocol, Ports)> {
    let each = rules.iter().filter_map(|rule| {
        let ports = rule.here()?;
        Some(rule.protocols.each().iter().map(move |it| (*it, ports)))
    });
    let all: TakenPorts = each.flatten().collect();
    all.iter().collect()
}

impl LocalAddrs {
    /// Whether an address of this host that others reach is in a network.
    fn meets(&self, net: &IpNet) -> bool {
        let ip = |octets: [u8; 16]| IpAddr::from(octets).to_canonical();
        let mut addrs = self.addrs.keys();
        let mut networks = self.networks.iter();
        addrs.any(|addr| net.contains(&ip(*addr)))
            || networks.any(|network| {
                let first = Addr::from(net.network()).octets();
                net.contains(&ip(network.addr)) || network.contains(first)
            })
    }
}

#[cfg(test)]
mod tests {
    use portredir_common::map::local;
    use portredir_common::net::Version;

    use super::*;
    use crate::host::packet_filter::iptables;
    use crate::rule::tests::rule;

    #[test]
    fn target_ports_that_are_sent_elsewhere() {
        let mut host = Snapshot::default();
        let own: IpAddr = "192.0.2.1".parse().expect("an address");
        let octets = Addr::from(own).octets();
        host.local.addrs.insert(octets, local::ANYWHERE);
        host.local
            .add_route("198.51.100.0".parse().expect("a network"), 24);
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n\
            -A PREROUTING -p tcp -m tcp --dport 30080 -j DNAT --to-destination 10.0.0.2:80\n\
            -A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.2:80\n\
            -A PREROUTING -d 198.51.100.7/32 -p udp -m udp --dport 53 -j REDIRECT\n\
            -A PREROUTING -d 203.0.113.7/32 -p udp -m udp --dport 54 -j REDIRECT\nCOMMIT\n";
        let rulesets = [iptables::parse(saved, Version::V4)];
        let services =
            ipvs::parse("TCP  C0000201:1F90 rr \nTCP  0A600001:1F91 rr \nTCP  C0000201:1F92 rr \n");
        let rules = [
            "80:30080/both",
            "1000-1100:8000-8100",
            "82:10.0.0.5:8082",
            "1053:53/udp",
            "1054:54/udp",
        ];
        let rules = rules.map(rule);
        let taken = host.taken(&rules, &rulesets, &services);
        let expected: TakenPorts = [
            (Protocol::Tcp, 30080),
            (Protocol::Tcp, 8080),
            (Protocol::Tcp, 8082),
            (Protocol::Udp, 53),
        ]
        .map(|(protocol, port)| (protocol, Ports::one(Port::new(port))))
        .into_iter()
        .collect();
        assert_eq!(taken, expected);
    }
}
