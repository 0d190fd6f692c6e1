//! Random rules.

mod shared;

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use portredir_common::net::{Port, Protocol};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use self::shared::{Listen, shared};
use crate::rule::{Ports, Protocols, Rule, To};

/// Rules of every kind.
pub(crate) fn any_rule() -> impl Strategy<Value = Rule> {
    let names = vec(
        prop_oneof!["[a-z][a-z0-9._@-]{0,14}", "[a-z]{1,4}[*?]"],
        0..4,
    );
    let on = names.prop_map(|names| {
        let mut names: Vec<_> = names
            .into_iter()
            .filter(|n| n != "all" && n != "any")
            .collect();
        names.sort();
        names.dedup();
        names
    });
    (ports(), protocols(), ends(), on, option::of(shared())).prop_filter_map(
        "odd targets",
        |((ports, target), protocols, (addr, from), on, shared)| {
            let listen = Listen {
                addr,
                ports,
                protocols,
                is_v4: addr
                    .or(from.map(|from| from.addr()))
                    .map(|addr| addr.is_ipv4()),
            };
            let to = match shared {
                None if target == ports => return None,
                None => To::Here(target),
                Some(shared) => To::Forward(Box::new(shared.forward(&listen)?)),
            };
            Some(Rule {
                addr,
                ports,
                to,
                protocols,
                from,
                on,
            })
        },
    )
}

/// Rules that often match the same packets: few ports, addresses, clients and interfaces.
pub(crate) fn near_rule() -> impl Strategy<Value = Rule> {
    let ports = (1_u16..6, 0_u16..4, 0_u16..3).prop_map(|(first, more, kind)| {
        let last = (first + more).min(6);
        let (first, last) = (Ports { first, last }, first + 100 + (last - first));
        let target = match kind {
            0 => Ports::one(Port::new(100)),
            // The target is often within the range.
            1 if first.first != first.last => Ports::one(Port::new(4)),
            1 => Ports::one(Port::new(101)),
            _ => Ports {
                first: first.first + 100,
                last,
            },
        };
        (first, target)
    });
    let lists = ["", "", "eth0", "eth1", "eth0 eth1", "eth*", "*", "eth* wg0"];
    let on = select(lists.to_vec()).prop_map(|list| {
        let names = list.split_whitespace().map(str::to_owned);
        names.collect::<Vec<_>>()
    });
    let ends = select(
        ENDS.iter()
            .flat_map(|(addr, froms)| froms.iter().map(move |from| (*addr, *from)))
            .collect::<Vec<_>>(),
    );
    (ports, protocols(), ends, on).prop_map(|((ports, target), protocols, (addr, from), on)| Rule {
        addr: (!addr.is_empty()).then(|| addr.parse().expect("an address")),
        ports,
        to: To::Here(target),
        protocols,
        from: (!from.is_empty()).then(|| from.parse().expect("a network")),
        on,
    })
}

const V4: [&str; 6] = [
    "",
    "0.0.0.0/0",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "10.0.0.0/8",
    "10.1.1.1/32",
];
const V6: [&str; 5] = ["", "::/0", "::/1", "8000::/1", "2001:db8::/32"];
const BOTH: [&str; 10] = [
    "",
    "0.0.0.0/0",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "10.0.0.0/8",
    "10.1.1.1/32",
    "::/0",
    "::/1",
    "8000::/1",
    "2001:db8::/32",
];
const ENDS: [(&str, &[&str]); 3] = [("", &BOTH), ("192.0.2.1", &V4), ("2001:db8:1::1", &V6)];

/// A packet: protocol, destination address and port, client, interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub protocol: Protocol,
    pub local: IpAddr,
    pub port: Port,
    pub client: IpAddr,
    pub iface: &'static str,
}

pub(crate) const IFACES: [&str; 5] = ["eth0", "eth1", "eth2", "wg0", "lo"];

/// One packet of each kind that [`near_rule`] can tell apart.
pub(crate) fn probes() -> Vec<Probe> {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let pairs = [
        (
            ["192.0.2.1", "192.0.2.2"],
            &["10.1.1.1", "10.1.1.2", "9.9.9.9", "200.1.1.1"][..],
        ),
        (
            ["2001:db8:1::1", "2001:db8:1::2"],
            &["2001:db8::1", "2001:dead::1", "9000::1"][..],
        ),
    ];
    let mut probes = Vec::new();
    for (locals, clients) in pairs {
        for (local, client) in locals
            .iter()
            .flat_map(|local| clients.iter().map(move |client| (ip(local), ip(client))))
        {
            for &protocol in Protocols::Both.each() {
                for port in 1..=7 {
                    probes.extend(IFACES.map(|iface| Probe {
                        protocol,
                        local,
                        port: Port::new(port),
                        client,
                        iface,
                    }));
                }
            }
        }
    }
    probes
}

/// The place of the rule that matches a packet, by the words of the documentation:
/// address before prefix length before the number of ports before order.
pub(crate) fn chosen(rules: &[Rule], packet: &Probe) -> Option<usize> {
    let is_for = |rule: &Rule| {
        let is_on = |name: &String| {
            glob::Pattern::new(name)
                .expect("a glob")
                .matches(packet.iface)
        };
        rule.protocols.each().contains(&packet.protocol)
            && rule.ports.contains(packet.port)
            && rule.target_of(packet.port) != Some(packet.port)
            && rule.addr.is_none_or(|addr| addr == packet.local)
            && rule.from.is_none_or(|from| from.contains(&packet.client))
            && (rule.on.is_empty() || rule.on.iter().any(is_on))
    };
    let mut best = None::<(usize, (bool, i16, Reverse<u16>))>;
    for (i, rule) in rules.iter().enumerate().filter(|(_, rule)| is_for(rule)) {
        let length = rule.from.map_or(-1, |from| i16::from(from.prefix_len()));
        let width = rule.ports.last - rule.ports.first;
        let rank = (rule.addr.is_some(), length, Reverse(width));
        if best.is_none_or(|(_, other)| rank > other) {
            best = Some((i, rank));
        }
    }
    best.map(|(i, _)| i)
}

fn protocols() -> impl Strategy<Value = Protocols> {
    select(vec![Protocols::Tcp, Protocols::Udp, Protocols::Both])
}

fn ports() -> impl Strategy<Value = (Ports, Ports)> {
    let range = |(a, b): (u16, u16)| Ports {
        first: a.min(b),
        last: a.max(b),
    };
    let long = (1..=u16::MAX, 1..=u16::MAX).prop_map(range);
    let ports = prop_oneof![
        (1..=u16::MAX).prop_map(|port| Ports::one(Port::new(port))),
        long
    ];
    (ports, 1..=u16::MAX, any::<bool>()).prop_map(|(ports, target, is_one)| {
        let more = ports.last - ports.first;
        let last = target.checked_add(more).filter(|_| !is_one);
        let target = Ports {
            first: target,
            last: last.unwrap_or(target),
        };
        (ports, target)
    })
}

/// The address and the clients of one IP version.
fn ends() -> impl Strategy<Value = (Option<IpAddr>, Option<IpNet>)> {
    let v4 = || any::<u32>().prop_map(|addr| IpAddr::from(Ipv4Addr::from(addr)));
    let v6 = || any::<u128>().prop_map(|addr| IpAddr::from(Ipv6Addr::from(addr)));
    let is_own = |addr: &Option<IpAddr>| {
        addr.is_none_or(|addr| {
            let is_odd = match addr {
                IpAddr::V4(addr) => addr.is_broadcast(),
                IpAddr::V6(addr) => addr.to_ipv4_mapped().is_some(),
            };
            !is_odd && !addr.is_unspecified() && !addr.is_multicast()
        })
    };
    let is_client = |net: &Option<IpNet>| {
        net.is_none_or(|net| {
            let is_mapped = matches!(net.addr(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
            let is_none = net.addr().is_unspecified() && net.prefix_len() == net.max_prefix_len();
            !is_mapped && !is_none
        })
    };
    let net = |(addr, length)| IpNet::new(addr, length).expect("a network").trunc();
    prop_oneof![
        (
            option::of(v4()),
            option::of((v4(), 0..=32_u8).prop_map(net))
        ),
        (
            option::of(v6()),
            option::of((v6(), 0..=128_u8).prop_map(net))
        ),
    ]
    .prop_filter("odd addresses", move |(addr, net)| {
        is_own(addr) && is_client(net)
    })
}
