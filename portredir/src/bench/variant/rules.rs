//! The rules of variants, in the language of their programs.

use std::fmt::Write as _;

use portredir_common::net::Port;

use crate::bench::program::nginx_module;
use crate::bench::traffic::Protocol;
use crate::bench::variant::{PUBLIC_PORT, Subject, Variant};
use crate::cli::{Opponent, TARGET_PORT};
use crate::config::engine::EngineChoice;

/// The first port of the rules that come before the one that matters.
const FILLERS: u16 = 20_000;
/// The first target port of these rules.
const FILLER_TARGETS: u16 = 30_000;

impl Variant {
    /// The rules of the variant in the language of its program; for portredir, a rule
    /// file.
    #[must_use]
    pub fn rules_text(&self) -> String {
        let fillers =
            (0..self.rules - 1).map(|i| (Port::new(FILLERS + i), Port::new(FILLER_TARGETS + i)));
        match self.subject {
            Subject::Direct | Subject::DirectAgain(_) => String::new(),
            Subject::Ours(engine) => ours(engine, fillers),
            Subject::Against(Opponent::IptablesLegacy | Opponent::IptablesNft) => {
                iptables(self.protocol_names(), fillers)
            }
            Subject::Against(Opponent::NftMap) => nft_map(fillers),
            Subject::Against(Opponent::NftStateless) => NFT_STATELESS.to_owned(),
            Subject::Against(Opponent::Nginx) => nginx(),
            Subject::Against(Opponent::Haproxy) => HAPROXY.to_owned(),
            Subject::Against(Opponent::Socat) => SOCAT.join(" "),
            Subject::Against(Opponent::None) => String::new(),
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

fn nginx() -> String {
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
         proxy_pass 127.0.0.1:{target};\n    proxy_buffer_size 64k;\n    tcp_nodelay on;\n  }}\n}}\n"
    )
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
  server target 127.0.0.1:8080
";

/// The arguments of socat.
pub const SOCAT: [&str; 3] = [
    "socat",
    "TCP-LISTEN:80,fork,reuseaddr,backlog=4096,nodelay",
    "TCP:127.0.0.1:8080,nodelay",
];

#[cfg(test)]
mod tests {
    use super::*;

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
        insta::assert_snapshot!(variant.rules_text(), @r"
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
            variant.rules_text(),
            "rules = [\n    \"20000:30000/both\",\n    \"80:8080/both\",\n]\n"
        );
    }

    #[test]
    fn our_rules_are_ones_that_we_take() {
        for engine in [EngineChoice::Auto, EngineChoice::Socket] {
            let text = with_rules(Subject::Ours(engine), 10_000).rules_text();
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
