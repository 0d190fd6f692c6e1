//! Rules with targets that have an address, for portredir and for nft.
//!
//! | port | goes to | where |
//! |---|---|---|
//! | 80, 81 | F:8080 | an echo |
//! | 82 | F:8099 | nobody listens |
//! | 83 | F's net, 50 | no such host |
//! | 84 | Z:8080 | an echo, behind an MTU of 1300 |
//! | 85 | net 5, 1 | a network whose route a case removes |
//! | 86 by IPv4, 87 by IPv6 | F:8080 | at every address of the host |
//! | 88 | O:8080 | an echo in the client's segment |
//! | 8000 to 8005 | F:9000 to 9005 | echoes on 9000, 9001 and 9005 |

use std::net::{IpAddr, SocketAddr};

use super::site::Site;
use super::subject::Place;
use crate::lab::Family;

/// A rule in both languages.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The address that clients connect to; `None` for all.
    own: Option<IpAddr>,
    /// The first and the last port, which are the same mostly.
    ports: (u16, u16),
    targets: Vec<SocketAddr>,
    /// The weights of the targets, of portredir alone; empty where they are equal.
    weights: Vec<u8>,
    /// Words of portredir alone, behind the rule.
    options: &'static str,
}

impl Rule {
    /// A port of the host's first address leads to these targets.
    pub fn new(own: SocketAddr, targets: &[SocketAddr]) -> Self {
        Self {
            own: Some(own.ip()),
            ports: (own.port(), own.port()),
            targets: targets.to_vec(),
            weights: Vec::new(),
            options: "",
        }
    }

    /// A port of every address of the host leads to these targets.
    pub fn anywhere(port: u16, targets: &[SocketAddr]) -> Self {
        Self {
            own: None,
            ports: (port, port),
            targets: targets.to_vec(),
            weights: Vec::new(),
            options: "",
        }
    }

    /// Adds weights.
    pub fn weighing(self, weights: &[u8]) -> Self {
        Self {
            weights: weights.to_vec(),
            ..self
        }
    }

    /// Adds options.
    pub fn with(self, options: &'static str) -> Self {
        Self { options, ..self }
    }

    /// The rule as an argument of portredir.
    pub fn words(&self) -> String {
        let addr = |addr: IpAddr| match addr {
            IpAddr::V4(addr) => addr.to_string(),
            IpAddr::V6(addr) => format!("[{addr}]"),
        };
        let own = self.own.map_or(String::new(), |own| addr(own) + ":");
        let range = |first: u16| match self.ports.1 - self.ports.0 {
            0 => first.to_string(),
            more => format!("{first}-{}", first + more),
        };
        let target = |(at, to): (usize, &SocketAddr)| {
            let weight = self.weights.get(at);
            let weight = weight.map_or(String::new(), |weight| format!("={weight}"));
            format!("{}:{}{weight}", addr(to.ip()), range(to.port()))
        };
        let targets: Vec<_> = self.targets.iter().enumerate().map(target).collect();
        let options = match self.options {
            "" => String::new(),
            options => format!(" {options}"),
        };
        format!(
            "{own}{}:{}/both{options}",
            range(self.ports.0),
            targets.join(",")
        )
    }

    /// The rule in a chain of nft.
    fn nft(&self) -> String {
        let first = self.targets[0];
        let ip = if first.is_ipv4() { "ip" } else { "ip6" };
        let own = match self.own {
            Some(own) => format!("{ip} daddr {own}"),
            None if first.is_ipv4() => "meta nfproto ipv4 fib daddr type local".to_owned(),
            None => "meta nfproto ipv6 fib daddr type local".to_owned(),
        };
        let (from, to) = self.ports;
        let ports = if from == to {
            from.to_string()
        } else {
            format!("{from}-{to}")
        };
        let target = match self.targets.len() {
            1 if from != to => {
                let each =
                    (from..=to).map(|port| format!("{port} : {}", first.port() + port - from));
                let each = each.collect::<Vec<_>>().join(", ");
                format!("{ip} to {} : th dport map {{ {each} }}", first.ip())
            }
            1 => format!("{ip} to {first}"),
            count => {
                let each = self.targets.iter().enumerate();
                let each = each.map(|(n, to)| format!("{n} : {} . {}", to.ip(), to.port()));
                let each = each.collect::<Vec<_>>().join(", ");
                format!("{ip} addr . port to numgen random mod {count} map {{ {each} }}")
            }
        };
        format!("{own} meta l4proto {{ tcp, udp }} th dport {ports} dnat {target}\n")
    }
}

/// The rules of the cases that share hosts.
pub fn shared(site: &Site) -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in Family::BOTH {
        let at = |place, port| SocketAddr::new(site.addr(place, family), port);
        let mut add = |port, to| rules.push(Rule::new(site.own(family, port), &[to]));
        add(80, at(Place::F, 8080));
        add(81, at(Place::F, 8080));
        add(82, at(Place::F, 8099));
        add(83, SocketAddr::new(family.addr(2, 50), 8080));
        add(84, at(Place::Z, 8080));
        add(85, SocketAddr::new(family.addr(5, 1), 8080));
        add(88, at(Place::O, 8080));
        rules.push(Rule {
            own: None,
            ports: (any_port(family), any_port(family)),
            targets: vec![at(Place::F, 8080)],
            weights: Vec::new(),
            options: "",
        });
        rules.push(Rule {
            own: Some(site.addr(Place::Host, family)),
            ports: (8000, 8005),
            targets: vec![at(Place::F, 9000)],
            weights: Vec::new(),
            options: "",
        });
    }
    rules
}

/// The port that leads to F at every address.
pub const fn any_port(family: Family) -> u16 {
    match family {
        Family::V4 => 86,
        Family::V6 => 87,
    }
}

/// The ruleset that a user of nftables would write for the same redirects, in place of
/// what there was.
pub fn nft(rules: &[Rule]) -> String {
    let rules: String = rules.iter().map(Rule::nft).collect();
    format!(
        "table inet redirects
        delete table inet redirects
        table inet redirects {{
            chain prerouting {{
                type nat hook prerouting priority dstnat
                {rules}
            }}
            chain output {{
                type nat hook output priority -100
                {rules}
            }}
        }}"
    )
}
