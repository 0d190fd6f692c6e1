//! The rules of variants, in the language of their programs.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use portredir_common::net::Port;

use crate::bench::program::nginx_module;
use crate::bench::traffic::Protocol;
use crate::bench::variant::{Ends, PUBLIC_PORT, Subject, Variant};
use crate::cli::{Opponent, TARGET_PORT, Topology};
use crate::config::engine::EngineChoice;

/// The first port of the rules that come before the one that matters.
const FILLERS: u16 = 20_000;
/// The first target port of these rules.
const FILLER_TARGETS: u16 = 30_000;

impl Variant {
    /// The rules of the variant in the language of its program; for portredir, a rule
    /// file.
    #[must_use]
    pub fn rules_text(&self, ends: Ends) -> String {
        let fillers =
            (0..self.rules - 1).map(|i| (Port::new(FILLERS + i), Port::new(FILLER_TARGETS + i)));
        if self.topology != Topology::Host {
            return self.rules_to(ends);
        }
        match self.subject {
            Subject::Direct | Subject::DirectAgain(_) => String::new(),
            Subject::Ours(engine) => ours(engine, fillers),
            Subject::Against(Opponent::IptablesLegacy | Opponent::IptablesNft) => {
                iptables(self.protocol_names(), fillers)
            }
            Subject::Against(Opponent::NftMap) => nft_map(fillers),
            Subject::Against(Opponent::NftStateless) => NFT_STATELESS.to_owned(),
            Subject::Against(Opponent::Nginx) => nginx(Ipv4Addr::LOCALHOST),
            Subject::Against(Opponent::Haproxy) => haproxy(Ipv4Addr::LOCALHOST),
            Subject::Against(Opponent::Socat) => socat(Ipv4Addr::LOCALHOST).join(" "),
            Subject::Against(Opponent::NftFlowtable | Opponent::Ipvs | Opponent::None) => {
                String::new()
            }
        }
    }

    /// The rules that lead to another host.
    fn rules_to(&self, ends: Ends) -> String {
        let Ends { host, behind } = ends;
        let chain = match self.topology {
            Topology::Local => Chain::OUTPUT,
            _ => Chain::PREROUTING,
        };
        let (public, target) = (PUBLIC_PORT.get(), TARGET_PORT.get());
        match self.subject {
            Subject::Ours(_) => {
                format!("rules = [\n    \"{public}:{behind}:{target}/both\",\n]\n")
            }
            Subject::Against(Opponent::IptablesLegacy | Opponent::IptablesNft) => {
                iptables_dnat(chain, ends)
            }
            Subject::Against(Opponent::NftMap) => nft_dnat(chain, behind, ""),
            Subject::Against(Opponent::NftFlowtable) => nft_dnat(chain, behind, FLOWTABLE),
            Subject::Against(Opponent::Ipvs) => ["-t", "-u"]
                .map(|kind| {
                    format!(
                        "-A {kind} {host}:{public} -s rr\n\
                         -a {kind} {host}:{public} -r {behind}:{target} -m\n"
                    )
                })
                .concat(),
            Subject::Against(Opponent::Nginx) => nginx(behind),
            Subject::Against(Opponent::Haproxy) => haproxy(behind),
            Subject::Against(Opponent::Socat) => socat(behind).join(" "),
            Subject::Direct
            | Subject::DirectAgain(_)
            | Subject::Against(Opponent::NftStateless | Opponent::None) => String::new(),
        }
    }

    fn protocol_names(&self) -> &'static [&'static str] {
        match self.fillers {
            Some(Protocol::Tcp) => &["tcp"],
            Some(Protocol::Udp) => &["udp"],
            None => &["tcp", "udp"],
        }
    }
}

/// Rules that track connections, like a firewall that allows replies.
pub const CONNTRACK: &str = "\
table ip tracking {
  chain pre {
    type filter hook prerouting priority 0
    ct state new counter accept
  }
}
";

/// A chain of destination NAT.
#[derive(Clone, Copy)]
struct Chain {
    iptables: &'static str,
    nft: &'static str,
}

impl Chain {
    const PREROUTING: Self = Self {
        iptables: "PREROUTING",
        nft: "hook prerouting priority dstnat",
    };
    const OUTPUT: Self = Self {
        iptables: "OUTPUT",
        nft: "hook output priority -100",
    };
}

fn iptables_dnat(chain: Chain, ends: Ends) -> String {
    let name = chain.iptables;
    let rule = |protocol: &str| {
        format!(
            "-A {name} -d {} -p {protocol} --dport {} -j DNAT --to-destination {}:{}\n",
            ends.host,
            PUBLIC_PORT.get(),
            ends.behind,
            TARGET_PORT.get()
        )
    };
    let rules = ["tcp", "udp"].map(rule).concat();
    format!("*nat\n:{name} ACCEPT [0:0]\n{rules}COMMIT\n")
}

fn nft_dnat(chain: Chain, behind: Ipv4Addr, rest: &str) -> String {
    let (public, target, hook) = (PUBLIC_PORT.get(), TARGET_PORT.get(), chain.nft);
    format!(
        "table ip ports {{\n  map targets {{\n    type inet_proto . inet_service : ipv4_addr . inet_service\n    \
         elements = {{ tcp . {public} : {behind} . {target}, udp . {public} : {behind} . {target} }}\n  }}\n  \
         chain pre {{\n    type nat {hook}\n    \
         dnat ip to ip protocol . th dport map @targets\n  }}\n{rest}}}\n"
    )
}

/// The flowtable that takes the packets that follow around the rules (`nft_flow_offload`).
const FLOWTABLE: &str = "  flowtable fast {
    hook ingress priority 0
    devices = { s0, b0 }
  }
  chain forward {
    type filter hook forward priority 0
    meta l4proto { tcp, udp } flow add @fast
  }
";

/// The rule that matters is the last, where a program walks its rules one by one.
fn iptables(protocols: &[&str], fillers: impl Iterator<Item = (Port, Port)>) -> String {
    let mut text = "*nat\n:PREROUTING ACCEPT [0:0]\n".to_owned();
    let rule = |text: &mut String, protocol: &str, from: Port, to: Port| {
        let _ = writeln!(
            text,
            "-A PREROUTING -p {protocol} --dport {} -j REDIRECT --to-ports {}",
            from.get(),
            to.get()
        );
    };
    for (from, to) in fillers {
        for protocol in protocols {
            rule(&mut text, protocol, from, to);
        }
    }
    for protocol in ["tcp", "udp"] {
        rule(&mut text, protocol, PUBLIC_PORT, TARGET_PORT);
    }
    text + "COMMIT\n"
}

fn nft_map(fillers: impl Iterator<Item = (Port, Port)>) -> String {
    let elements: Vec<_> = fillers
        .chain([(PUBLIC_PORT, TARGET_PORT)])
        .map(|(from, to)| format!("{} : {}", from.get(), to.get()))
        .collect();
    let elements = elements.join(", ");
    let map = |name: &str| {
        format!(
            "  map {name} {{\n    type inet_service : inet_service\n    elements = {{ {elements} }}\n  }}\n"
        )
    };
    let maps = map("tcp_ports") + &map("udp_ports");
    format!(
        "table ip ports {{\n{maps}  chain pre {{\n    type nat hook prerouting priority dstnat\n    \
         meta l4proto tcp redirect to :tcp dport map @tcp_ports\n    \
         meta l4proto udp redirect to :udp dport map @udp_ports\n  }}\n}}\n"
    )
}

const NFT_STATELESS: &str = "\
table ip ports {
  chain pre {
    type filter hook prerouting priority raw
    tcp dport 80 tcp dport set 8080
    udp dport 80 udp dport set 8080
  }
  chain out {
    type filter hook output priority raw
    tcp sport 8080 tcp sport set 80
    udp sport 8080 udp sport set 80
  }
}
";

fn ours(engine: EngineChoice, fillers: impl Iterator<Item = (Port, Port)>) -> String {
    let protocol = if engine == EngineChoice::Socket {
        ""
    } else {
        "/both"
    };
    let rules: String = fillers
        .chain([(PUBLIC_PORT, TARGET_PORT)])
        .map(|(from, to)| format!("    \"{}:{}{protocol}\",\n", from.get(), to.get()))
        .collect();
    format!("rules = [\n{rules}]\n")
}

fn nginx(server: Ipv4Addr) -> String {
    let module = match nginx_module() {
        Some(Some(path)) => format!("load_module {};\n", path.display()),
        _ => String::new(),
    };
    let (public, target) = (PUBLIC_PORT.get(), TARGET_PORT.get());
    // nginx runs without a master, so that there is one process to stop.
    format!(
        "{module}daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr crit;\n\
         events {{ worker_connections 16384; }}\n\
         stream {{\n  server {{\n    listen {public} backlog=65535;\n    \
         proxy_pass {server}:{target};\n    proxy_buffer_size 64k;\n    tcp_nodelay on;\n  }}\n}}\n"
    )
}

fn haproxy(server: Ipv4Addr) -> String {
    format!("{HAPROXY}  server target {server}:{}\n", TARGET_PORT.get())
}

const HAPROXY: &str = "\
global
  maxconn 4000
  nbthread 1
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen redirect
  bind 0.0.0.0:80 backlog 65535
  option splice-auto
";

/// The words of socat.
#[must_use]
pub fn socat(server: Ipv4Addr) -> [String; 3] {
    [
        "socat".to_owned(),
        "TCP-LISTEN:80,fork,reuseaddr,backlog=4096,nodelay".to_owned(),
        format!("TCP:{server}:{},nodelay", TARGET_PORT.get()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: Ends = Ends {
        host: Ipv4Addr::new(198, 18, 1, 2),
        behind: Ipv4Addr::new(198, 18, 129, 2),
    };

    fn to_another_host(subject: Subject, topology: Topology) -> String {
        let variant = Variant {
            topology,
            ..Variant::of(subject)
        };
        variant.rules_text(ENDS)
    }

    #[test]
    fn rules_lead_to_another_host() {
        let iptables = Subject::Against(Opponent::IptablesNft);
        insta::assert_snapshot!(to_another_host(iptables, Topology::Local), @r"
        *nat
        :OUTPUT ACCEPT [0:0]
        -A OUTPUT -d 198.18.1.2 -p tcp --dport 80 -j DNAT --to-destination 198.18.129.2:8080
        -A OUTPUT -d 198.18.1.2 -p udp --dport 80 -j DNAT --to-destination 198.18.129.2:8080
        COMMIT
        ");
        let nft = Subject::Against(Opponent::NftFlowtable);
        insta::assert_snapshot!(to_another_host(nft, Topology::Forward), @r"
        table ip ports {
          map targets {
            type inet_proto . inet_service : ipv4_addr . inet_service
            elements = { tcp . 80 : 198.18.129.2 . 8080, udp . 80 : 198.18.129.2 . 8080 }
          }
          chain pre {
            type nat hook prerouting priority dstnat
            dnat ip to ip protocol . th dport map @targets
          }
          flowtable fast {
            hook ingress priority 0
            devices = { s0, b0 }
          }
          chain forward {
            type filter hook forward priority 0
            meta l4proto { tcp, udp } flow add @fast
          }
        }
        ");
        let ipvs = Subject::Against(Opponent::Ipvs);
        insta::assert_snapshot!(to_another_host(ipvs, Topology::Forward), @r"
        -A -t 198.18.1.2:80 -s rr
        -a -t 198.18.1.2:80 -r 198.18.129.2:8080 -m
        -A -u 198.18.1.2:80 -s rr
        -a -u 198.18.1.2:80 -r 198.18.129.2:8080 -m
        ");
        let ours = to_another_host(Subject::Ours(EngineChoice::Tc), Topology::Forward);
        let file: toml::Table = toml::from_str(&ours).expect("TOML");
        let word = file["rules"][0].as_str().expect("a rule").to_owned();
        crate::rule::from_words(&[word]).expect("a rule that we take");
    }

    fn with_rules(subject: Subject, rules: u16) -> Variant {
        Variant {
            rules,
            fillers: Some(Protocol::Udp),
            ..Variant::of(subject)
        }
    }

    #[test]
    fn the_rule_that_matters_is_the_last() {
        let variant = with_rules(Subject::Against(Opponent::IptablesLegacy), 3);
        insta::assert_snapshot!(variant.rules_text(ENDS), @r"
        *nat
        :PREROUTING ACCEPT [0:0]
        -A PREROUTING -p udp --dport 20000 -j REDIRECT --to-ports 30000
        -A PREROUTING -p udp --dport 20001 -j REDIRECT --to-ports 30001
        -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080
        -A PREROUTING -p udp --dport 80 -j REDIRECT --to-ports 8080
        COMMIT
        ");
        let variant = with_rules(Subject::Ours(EngineChoice::Auto), 2);
        assert_eq!(
            variant.rules_text(ENDS),
            "rules = [\n    \"20000:30000/both\",\n    \"80:8080/both\",\n]\n"
        );
    }

    #[test]
    fn our_rules_are_ones_that_we_take() {
        for engine in [EngineChoice::Auto, EngineChoice::Socket] {
            let text = with_rules(Subject::Ours(engine), 10_000).rules_text(ENDS);
            let file: toml::Table = toml::from_str(&text).expect("TOML");
            let words: Vec<_> = file["rules"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|rule| rule.as_str().expect("a rule").to_owned())
                .collect();
            assert_eq!(words.len(), 10_000);
            let rules = crate::rule::from_words(&words).expect("rules");
            crate::ruleset::shadow::check(&rules).expect("rules that do not shadow each other");
        }
    }
}
