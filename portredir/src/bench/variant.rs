//! What is compared: ways to be redirected, each in a network namespace of its
//! own, with the rules and the programs that make it so.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::traffic::Protocol;
use crate::plan::EngineChoice;

/// The port that clients dial.
pub const PUBLIC_PORT: u16 = 80;
/// The port that servers listen on.
pub const TARGET_PORT: u16 = 8080;
/// A port that no rule is about.
pub const OTHER_PORT: u16 = 81;

/// The rules that come before the one that matters.
const FILLERS: u16 = 20_000;
/// Where they lead.
const FILLER_TARGETS: u16 = 30_000;

/// Somebody else's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Opponent {
    /// Nobody.
    None,
    /// `REDIRECT` of the iptables that has its own part of the kernel.
    IptablesLegacy,
    /// `REDIRECT` of the iptables that writes nftables rules.
    IptablesNft,
    /// nftables `redirect`, with the ports in a map.
    NftMap,
    /// nftables that rewrites ports without connection tracking.
    NftStateless,
    /// nginx with its stream module, one worker.
    Nginx,
    /// `HAProxy` in TCP mode, one thread.
    Haproxy,
    /// socat, which makes a process for each connection.
    Socat,
}

impl Opponent {
    /// All that there are to compare with.
    pub const ALL: [Self; 7] = [
        Self::IptablesLegacy,
        Self::IptablesNft,
        Self::NftMap,
        Self::NftStateless,
        Self::Nginx,
        Self::Haproxy,
        Self::Socat,
    ];

    /// As on the command line.
    #[must_use]
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The program that is run.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::None => "",
            Self::IptablesLegacy => "iptables-legacy-restore",
            Self::IptablesNft => "iptables-nft-restore",
            Self::NftMap | Self::NftStateless => "nft",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Socat => "socat",
        }
    }

    /// What the program says of itself, or why there is nothing to compare with.
    ///
    /// # Errors
    ///
    /// In words.
    pub fn version(self) -> Result<String, String> {
        let program = self.program();
        let path = find(program).ok_or_else(|| format!("{program} is not installed"))?;
        let argument = match self {
            Self::Nginx | Self::Haproxy => "-v",
            Self::Socat => "-V",
            _ => "--version",
        };
        let output = Command::new(path).arg(argument).output();
        let output = output.map_err(|error| format!("{program}: {error}"))?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let is_version = |line: &&str| line.contains(|c: char| c.is_ascii_digit());
        let mut lines = text.lines().map(str::trim).filter(is_version);
        // The first line of socat is its authors'.
        let line = match self {
            Self::Socat => text.lines().find(|line| line.starts_with("socat version")),
            _ => lines.next(),
        };
        let line = line.unwrap_or_default().to_owned();
        if self == Self::Nginx && nginx_module().is_none() {
            return Err(format!("{line} has no stream module"));
        }
        Ok(line)
    }

    /// Whether it redirects UDP here.
    #[must_use]
    pub const fn has_udp(self) -> bool {
        !matches!(self, Self::Nginx | Self::Haproxy | Self::Socat)
    }

    /// Whether it can have more rules than one.
    #[must_use]
    pub const fn has_rules(self) -> bool {
        matches!(
            self,
            Self::IptablesLegacy | Self::IptablesNft | Self::NftMap
        )
    }

    /// Whether it is a program that every byte goes through.
    #[must_use]
    pub const fn is_proxy(self) -> bool {
        !self.has_udp()
    }
}

/// Who redirects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Nobody: clients dial the target.
    Direct,
    /// The same once more, to see what differences mean nothing.
    DirectAgain,
    /// We.
    Ours(EngineChoice),
    /// Somebody else.
    Against(Opponent),
}

/// A way to be redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Who does it.
    pub subject: Subject,
    /// How many rules there are.
    pub rules: u16,
    /// Which protocol the other rules are for; `None` for both.
    pub fillers: Option<Protocol>,
    /// Whether connections are tracked whoever redirects.
    pub has_conntrack: bool,
}

impl Variant {
    /// With one rule.
    #[must_use]
    pub const fn of(subject: Subject) -> Self {
        Self {
            subject,
            rules: 1,
            fillers: None,
            has_conntrack: false,
        }
    }

    /// A name in reports, and on the command line where it is an opponent's.
    #[must_use]
    pub fn name(&self) -> String {
        let mut name = match self.subject {
            Subject::Direct => "direct".to_owned(),
            Subject::DirectAgain => "direct again".to_owned(),
            Subject::Ours(engine) => format!("portredir {}", engine_name(engine)),
            Subject::Against(opponent) => opponent.name(),
        };
        if self.rules > 1 {
            let _ = write!(name, ", {} rules", self.rules);
        }
        if self.has_conntrack {
            name += ", conntrack";
        }
        name
    }

    /// The port that clients dial.
    #[must_use]
    pub const fn dialled(&self) -> u16 {
        match self.subject {
            Subject::Direct | Subject::DirectAgain => TARGET_PORT,
            Subject::Ours(_) | Subject::Against(_) => PUBLIC_PORT,
        }
    }

    /// Whether datagrams are redirected too.
    #[must_use]
    pub fn has_udp(&self) -> bool {
        match self.subject {
            Subject::Direct | Subject::DirectAgain => true,
            Subject::Ours(engine) => engine != EngineChoice::Socket,
            Subject::Against(opponent) => opponent.has_udp(),
        }
    }

    /// Whether it tracks connections, so that its table fills.
    #[must_use]
    pub fn tracks(&self) -> bool {
        use Opponent::{IptablesLegacy, IptablesNft, NftMap};
        self.has_conntrack
            || matches!(
                self.subject,
                Subject::Against(IptablesLegacy | IptablesNft | NftMap)
            )
    }

    /// The rules of the variant as its program reads them, of us a file of ours.
    #[must_use]
    pub fn rules_text(&self) -> String {
        let fillers = (0..self.rules - 1).map(|i| (FILLERS + i, FILLER_TARGETS + i));
        match self.subject {
            Subject::Direct | Subject::DirectAgain => String::new(),
            Subject::Ours(engine) => ours(engine, fillers),
            Subject::Against(Opponent::IptablesLegacy | Opponent::IptablesNft) => {
                iptables(self.protocols(), fillers)
            }
            Subject::Against(Opponent::NftMap) => nft_map(fillers),
            Subject::Against(Opponent::NftStateless) => NFT_STATELESS.to_owned(),
            Subject::Against(Opponent::Nginx) => nginx(),
            Subject::Against(Opponent::Haproxy) => HAPROXY.to_owned(),
            Subject::Against(Opponent::Socat) => SOCAT.join(" "),
            Subject::Against(Opponent::None) => String::new(),
        }
    }

    fn protocols(&self) -> &'static [&'static str] {
        match self.fillers {
            Some(Protocol::Tcp) => &["tcp"],
            Some(Protocol::Udp) => &["udp"],
            None => &["tcp", "udp"],
        }
    }
}

/// As on the command line.
#[must_use]
pub fn engine_name(engine: EngineChoice) -> String {
    let value = engine.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Tracks connections as a firewall does that lets replies in.
pub const CONNTRACK: &str = "\
table ip tracking {
  chain pre {
    type filter hook prerouting priority 0
    ct state new counter accept
  }
}
";

/// The rule that matters is the last, where rules are walked one by one.
fn iptables(protocols: &[&str], fillers: impl Iterator<Item = (u16, u16)>) -> String {
    let mut text = "*nat\n:PREROUTING ACCEPT [0:0]\n".to_owned();
    let rule = |text: &mut String, protocol: &str, from, to| {
        let _ = writeln!(
            text,
            "-A PREROUTING -p {protocol} --dport {from} -j REDIRECT --to-ports {to}"
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

fn nft_map(fillers: impl Iterator<Item = (u16, u16)>) -> String {
    let elements: Vec<_> = fillers
        .chain([(PUBLIC_PORT, TARGET_PORT)])
        .map(|(from, to)| format!("{from} : {to}"))
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

fn ours(engine: EngineChoice, fillers: impl Iterator<Item = (u16, u16)>) -> String {
    let protocol = if engine == EngineChoice::Socket {
        ""
    } else {
        "/both"
    };
    let rules: String = fillers
        .chain([(PUBLIC_PORT, TARGET_PORT)])
        .map(|(from, to)| format!("    \"{from}:{to}{protocol}\",\n"))
        .collect();
    format!("rules = [\n{rules}]\n")
}

fn nginx() -> String {
    let module = match nginx_module() {
        Some(Some(path)) => format!("load_module {};\n", path.display()),
        _ => String::new(),
    };
    // Without a master, so that there is one process to stop.
    format!(
        "{module}daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr crit;\n\
         events {{ worker_connections 16384; }}\n\
         stream {{\n  server {{\n    listen {PUBLIC_PORT} backlog=65535;\n    \
         proxy_pass 127.0.0.1:{TARGET_PORT};\n    proxy_buffer_size 64k;\n    tcp_nodelay on;\n  }}\n}}\n"
    )
}

/// Where nginx has its stream module: in itself (`Some(None)`) or in a file.
fn nginx_module() -> Option<Option<PathBuf>> {
    let output = Command::new(find("nginx")?).arg("-V").output().ok()?;
    let about = String::from_utf8_lossy(&output.stderr).into_owned();
    let words: Vec<_> = about.split_ascii_whitespace().collect();
    if words.contains(&"--with-stream") {
        return Some(None);
    }
    let dir = words
        .iter()
        .find_map(|word| word.strip_prefix("--modules-path="))
        .unwrap_or("/usr/lib/nginx/modules");
    let path = Path::new(dir).join("ngx_stream_module.so");
    path.exists().then_some(Some(path))
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

/// Its arguments.
pub const SOCAT: [&str; 3] = [
    "socat",
    "TCP-LISTEN:80,fork,reuseaddr,backlog=4096,nodelay",
    "TCP:127.0.0.1:8080,nodelay",
];

/// Where a program is. Looks where root would look too.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

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
            crate::rule::check(&rules).expect("rules that do not hide each other");
        }
    }

    #[test]
    fn names_say_what_differs() {
        let variant = Variant {
            has_conntrack: true,
            ..with_rules(Subject::Ours(EngineChoice::XdpGeneric), 100)
        };
        assert_eq!(
            variant.name(),
            "portredir xdp-generic, 100 rules, conntrack"
        );
        assert_eq!(Variant::of(Subject::DirectAgain).name(), "direct again");
        assert_eq!(Opponent::NftStateless.name(), "nft-stateless");
    }
}
