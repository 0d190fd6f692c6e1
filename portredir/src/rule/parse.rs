//! The text of a rule, read in one pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

use super::{Ports, Protocols, Rule};

/// What is wrong with the text of a rule, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("bad rule `{text}`: {problem}\n    {text}\n    {caret:>width$}\n  {hint}", width = self.at + 1, caret = '^')]
pub struct RuleError {
    text: String,
    /// Characters before the one at fault.
    at: usize,
    problem: String,
    hint: String,
}

impl RuleError {
    /// How many characters come before the one at fault.
    #[must_use]
    pub const fn at(&self) -> usize {
        self.at
    }
}

const EXAMPLE: &str = "a rule is [ADDR:]PORT[-PORT]:PORT[-PORT][/tcp|/udp|/both] [from CIDR] [on IFACE,…], \
                       for example 80:8080 or 53:5353/udp";

/// Bytes of an interface's name, without the one at its end (`IFNAMSIZ` in
/// include/uapi/linux/if.h).
const LONGEST_NAME: usize = 15;

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut parser = Parser { text, at: 0 };
        parser.skip_spaces();
        let begins_with = |key: &&str| parser.rest().starts_with(*key);
        let keys = ["port=", "proto=", "toport=", "toaddr="];
        if keys.iter().any(begins_with) {
            return parser.firewalld();
        }
        let addr = parser.addr()?;
        let dialled = parser.ports("the port that clients dial")?;
        parser.colon(dialled)?;
        parser.no_other_host(dialled)?;
        let target_at = parser.at;
        let target = parser.ports("the port that the server listens on")?;
        parser.at_do(target_at, |parser| parser.check_ports(dialled, target))?;
        let protocols = parser.protocols()?;
        let mut rule = Self {
            addr,
            dialled,
            target,
            protocols,
            from: None,
            on: Vec::new(),
        };
        parser.conditions(&mut rule)?;
        Ok(rule)
    }
}

struct Parser<'a> {
    text: &'a str,
    /// Bytes read.
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// What comes before one of some characters, or the end.
    fn until(&self, stops: &[char]) -> &'a str {
        let rest = self.rest();
        &rest[..rest.find(stops).unwrap_or(rest.len())]
    }

    fn skip_spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn error(&self, problem: impl Into<String>, hint: impl Into<String>) -> RuleError {
        RuleError {
            text: self.text.to_owned(),
            at: self.text[..self.at].chars().count(),
            problem: problem.into(),
            hint: hint.into(),
        }
    }

    /// Has errors point at another place.
    fn at_do<T>(
        &mut self,
        at: usize,
        f: impl FnOnce(&mut Self) -> Result<T, RuleError>,
    ) -> Result<T, RuleError> {
        let now = std::mem::replace(&mut self.at, at);
        let result = f(self)?;
        self.at = now;
        Ok(result)
    }

    /// Reads `ADDR:` if there is one.
    fn addr(&mut self) -> Result<Option<IpAddr>, RuleError> {
        let rest = self.rest();
        let (word, end) = if let Some(inner) = rest.strip_prefix('[') {
            let Some(length) = inner.find(']') else {
                return Err(self.error(
                    "`[` without `]`",
                    "an IPv6 address stands in brackets, as in [2001:db8::1]:80:8080",
                ));
            };
            (&inner[..length], length + 2)
        } else {
            let word = self.until(&[':', '/', ' ']);
            let colons = self.until(&[' ']).matches(':').count();
            if colons > 2 && word.parse::<Ipv4Addr>().is_err() {
                return Err(self.error(
                    "too many colons",
                    "an IPv6 address stands in brackets, as in [2001:db8::1]:80:8080",
                ));
            }
            let is_number = |part: &str| part.chars().all(|c| c.is_ascii_digit());
            if !word.contains('.') && (is_number(word) || word.contains('-')) {
                return Ok(None);
            }
            if matches!(word, "" | "tcp" | "udp") || !rest[word.len()..].starts_with(':') {
                return Ok(None);
            }
            if colons < 2 {
                return Ok(None);
            }
            (word, word.len())
        };
        let addr = self.local_addr(word)?;
        self.at += end;
        if !self.rest().starts_with(':') {
            return Err(self.error(
                "expected `:` behind the address",
                "an address comes before both ports, as in 10.0.0.5:80:8080",
            ));
        }
        self.at += 1;
        Ok(Some(addr))
    }

    /// An address that this host can have.
    fn local_addr(&self, word: &str) -> Result<IpAddr, RuleError> {
        let zone = word.split_once('%');
        if let Some((addr, zone)) = zone.filter(|(addr, _)| addr.parse::<Ipv6Addr>().is_ok()) {
            return Err(self.error(
                format!("`%{zone}` does not belong to an address here"),
                format!("write [{addr}]:80:8080 on {zone}"),
            ));
        }
        let Ok(addr) = word.parse::<IpAddr>() else {
            let hint = if word == "localhost" {
                "for clients on this host that dial 127.0.0.1, write 127.0.0.1:80:8080".into()
            } else if word == "*" {
                "to redirect on every address of this host, leave the address out".to_owned()
            } else {
                "addresses are numbers, as 10.0.0.5 or [2001:db8::1]; names are not looked up"
                    .into()
            };
            return Err(self.error(format!("`{word}` is not an address"), hint));
        };
        let everywhere = "to redirect on every address of this host, leave the address out";
        let problem = match addr {
            _ if addr.is_unspecified() => {
                return Err(self.error(format!("{addr} is not an address of a host"), everywhere));
            }
            _ if addr.is_multicast() => "multicast",
            IpAddr::V4(addr) if addr.is_broadcast() => "broadcast",
            IpAddr::V6(addr) if let Some(mapped) = addr.to_ipv4_mapped() => {
                return Err(self.error(
                    format!("{addr} is an IPv4 address in disguise"),
                    format!("write {mapped}:80:8080"),
                ));
            }
            _ => return Ok(addr),
        };
        Err(self.error(
            format!("{addr} is {problem}; no host has it as its own"),
            everywhere,
        ))
    }

    fn port(&mut self, what: &str) -> Result<u16, RuleError> {
        let rest = self.rest();
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let word = &rest[..digits];
        if word.is_empty() {
            let found = match rest.chars().next() {
                Some(c) => format!("found `{c}`"),
                None => "the rule ends".to_owned(),
            };
            let name = self.until(&[':', '/', ' ', '-']);
            let hint = match well_known(name) {
                Some(port) => format!("write {port} for {name}"),
                None => EXAMPLE.to_owned(),
            };
            return Err(self.error(format!("expected {what}, but {found}"), hint));
        }
        match word.parse::<u16>() {
            Ok(0) => Err(self.error("port 0 cannot be used", "ports are 1 to 65535")),
            Ok(port) => {
                self.at += digits;
                Ok(port)
            }
            Err(_) => Err(self.error(format!("port {word} is too large"), "ports are 1 to 65535")),
        }
    }

    fn ports(&mut self, what: &str) -> Result<Ports, RuleError> {
        let first_at = self.at;
        let first = self.port(what)?;
        if !self.rest().starts_with('-') {
            return Ok(Ports::one(first));
        }
        self.at += 1;
        let last = self.port("the last port of the range")?;
        if last < first {
            return self.at_do(first_at, |parser| {
                Err(parser.error("the range runs backwards", format!("write {last}-{first}")))
            });
        }
        Ok(Ports { first, last })
    }

    fn colon(&mut self, dialled: Ports) -> Result<(), RuleError> {
        match self.rest().chars().next() {
            Some(':') => {
                self.at += 1;
                Ok(())
            }
            Some(found) => Err(self.error(
                format!("expected `:` between the two ports, found `{found}`"),
                if ['>', '=', ';', ',', '-', ' '].contains(&found) {
                    format!("the ports stand on both sides of a colon, as in {dialled}:8080")
                } else {
                    EXAMPLE.to_owned()
                },
            )),
            None => Err(self.error(
                "expected `:` between the two ports, but the rule ends",
                format!("to redirect port {dialled} to 8080, write {dialled}:8080"),
            )),
        }
    }

    fn no_other_host(&self, dialled: Ports) -> Result<(), RuleError> {
        let rest = self.rest();
        let word = match rest.find(']') {
            Some(end) if rest.starts_with('[') => &rest[..=end],
            _ => self.until(&[':', '/', ' ']),
        };
        let begins_as_host = |c: char| c.is_ascii_alphabetic() || c == '[';
        let is_host = word.parse::<Ipv4Addr>().is_ok()
            || (word.starts_with(begins_as_host) && rest[word.len()..].starts_with(':'));
        if !is_host {
            return Ok(());
        }
        let port = rest[word.len()..].trim_start_matches(':');
        let digits = port
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(port.len());
        let port = if digits == 0 { "PORT" } else { &port[..digits] };
        let problem = match word {
            "localhost" | "127.0.0.1" | "[::1]" => {
                format!("`{word}` behind the dialled port would be another host")
            }
            _ => {
                format!("`{word}` is another host, and redirects to other hosts are not supported")
            }
        };
        let hint = format!("to redirect to a port of this host, write {dialled}:{port}");
        Err(self.error(problem, hint))
    }

    fn check_ports(&self, dialled: Ports, target: Ports) -> Result<(), RuleError> {
        let count = |ports: Ports| u32::from(ports.last - ports.first) + 1;
        let is_one = target.first == target.last;
        if !is_one && count(dialled) != count(target) {
            let last = u32::from(target.first) + count(dialled) - 1;
            let hint = if count(dialled) == 1 {
                format!(
                    "one port leads to one port, as in {dialled}:{}",
                    target.first
                )
            } else if last <= 65535 {
                format!(
                    "write {dialled}:{}-{last}, or {dialled}:{} for all to one",
                    target.first, target.first
                )
            } else {
                format!("write {dialled}:{} for all to one", target.first)
            };
            return Err(self.error(
                format!("{} ports cannot lead to {}", count(dialled), count(target)),
                hint,
            ));
        }
        let itself = match is_one {
            true if dialled.contains(target.first) => target.first,
            false if dialled == target => target.first,
            _ => return Ok(()),
        };
        Err(self.error(
            format!("port {itself} would be redirected to itself"),
            if count(dialled) == 1 {
                "give the port that the server listens on, as in 80:8080".to_owned()
            } else {
                "leave that port out of the range".to_owned()
            },
        ))
    }

    fn protocols(&mut self) -> Result<Protocols, RuleError> {
        if !self.rest().starts_with('/') {
            return Ok(Protocols::default());
        }
        self.at += 1;
        let word = self.until(&[' ', ':', ',']);
        let protocols = self.protocol(word)?;
        self.at += word.len();
        Ok(protocols)
    }

    fn protocol(&self, word: &str) -> Result<Protocols, RuleError> {
        let use_these = "use /tcp, /udp or /both; without one, tcp is meant";
        match word.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Protocols::Tcp),
            "udp" => Ok(Protocols::Udp),
            "both" => Ok(Protocols::Both),
            "sctp" => Err(self.error(
                "SCTP is not supported: its checksum covers the whole packet",
                "use /tcp, /udp or /both",
            )),
            "" => Err(self.error("expected a protocol behind `/`", use_these)),
            "tcp+udp" | "udp+tcp" | "tcp/udp" | "all" | "any" => Err(self.error(
                format!("unknown protocol `{word}`"),
                "for TCP and UDP write /both",
            )),
            _ => Err(self.error(format!("unknown protocol `{word}`"), use_these)),
        }
    }

    /// Reads `from CIDR` and `on IFACE,…`, in any order.
    fn conditions(&mut self, rule: &mut Rule) -> Result<(), RuleError> {
        let (mut has_from, mut has_on) = (false, false);
        loop {
            let before = self.at;
            self.skip_spaces();
            let word = self.until(&[' ']);
            if word.is_empty() {
                return Ok(());
            }
            let is_apart = self.at > before;
            match word {
                "from" | "on" if !is_apart => {
                    return Err(self.error(format!("expected a space before `{word}`"), EXAMPLE));
                }
                "from" if has_from => {
                    return Err(self.error("a second `from`", "give one rule per source"));
                }
                "on" if has_on => {
                    return Err(
                        self.error("a second `on`", "list interfaces with commas: on eth0,wg0")
                    );
                }
                "from" => {
                    self.at += word.len();
                    rule.from = self.from(rule.addr)?;
                    has_from = true;
                }
                "on" => {
                    self.at += word.len();
                    rule.on = self.on()?;
                    has_on = true;
                }
                _ => return Err(self.error("the rule should end here", EXAMPLE)),
            }
        }
    }

    fn from(&mut self, local: Option<IpAddr>) -> Result<Option<IpNet>, RuleError> {
        self.skip_spaces();
        let word = self.until(&[' ']);
        let plain = word.trim_start_matches('[').replace(']', "");
        if word.is_empty() {
            return Err(self.error(
                "expected a network behind `from`",
                "write a network or an address, as in from 10.0.0.0/8",
            ));
        }
        let Ok(net) = plain
            .parse::<IpNet>()
            .or_else(|_| plain.parse::<IpAddr>().map(IpNet::from))
        else {
            let hint = match plain
                .split_once('/')
                .map(|(addr, length)| (addr.parse::<IpAddr>(), length))
            {
                Some((Ok(IpAddr::V4(_)), _)) => {
                    "the length of an IPv4 prefix is 0 to 32, as in 10.0.0.0/8"
                }
                Some((Ok(IpAddr::V6(_)), _)) => {
                    "the length of an IPv6 prefix is 0 to 128, as in 2001:db8::/32"
                }
                _ => {
                    "write a network or an address, as in from 10.0.0.0/8; names are not looked up"
                }
            };
            return Err(self.error(format!("`{word}` is not a network"), hint));
        };
        if net != net.trunc() {
            return Err(self.error(
                format!("{net} has bits behind its prefix"),
                format!(
                    "for the network write from {}, for the one host from {}",
                    net.trunc(),
                    net.addr()
                ),
            ));
        }
        if let IpAddr::V6(addr) = net.addr()
            && let Some(mapped) = addr.to_ipv4_mapped()
        {
            return Err(self.error(
                format!("{net} is IPv4 in disguise"),
                format!("write from {mapped}"),
            ));
        }
        if local.is_some_and(|local| local.is_ipv4() != net.addr().is_ipv4()) {
            return Err(self.error(
                "the clients and the dialled address are of different IP versions",
                "give both as IPv4 or both as IPv6; such a rule would never match",
            ));
        }
        self.at += word.len();
        Ok(Some(net))
    }

    fn on(&mut self) -> Result<Vec<String>, RuleError> {
        self.skip_spaces();
        let list = self.until(&[' ']);
        let start = self.at;
        let mut names = Vec::<String>::new();
        for name in list.split(',') {
            if name.is_empty() {
                return Err(self.error(
                    "expected the name of an interface",
                    "list interfaces with commas and without spaces: on eth0,wg*",
                ));
            }
            if name == "all" {
                return Err(self.error("`all` is what holds without `on`", "leave `on all` out"));
            }
            if let Some(name) = name.strip_prefix('!') {
                return Err(self.error(
                    "rules name the interfaces they are for",
                    format!("to leave {name} out altogether use --iface 'all,!{name}'"),
                ));
            }
            let is_glob = name.contains(['*', '?', '[']);
            if let Err(error) = glob::Pattern::new(name) {
                return Err(self.error(
                    format!("bad glob `{name}`: {}", error.msg),
                    "write globs like wg* or eth?",
                ));
            }
            if name.contains('/') || (!is_glob && name.len() > LONGEST_NAME) {
                return Err(self.error(
                    format!("`{name}` cannot be the name of an interface"),
                    format!("names have {LONGEST_NAME} characters at most, and no `/`"),
                ));
            }
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
            self.at += name.len() + 1;
        }
        self.at = start + list.len();
        Ok(names)
    }

    /// `port=80:proto=tcp:toport=8080`, as firewalld has it.
    fn firewalld(&mut self) -> Result<Rule, RuleError> {
        let (mut dialled, mut target, mut protocols) = (None, None, Protocols::default());
        let mut target_at = self.at;
        loop {
            let word = self.until(&[':', ' ']);
            let Some((key, value)) = word.split_once('=') else {
                return Err(self.error(
                    format!("expected KEY=VALUE, found `{word}`"),
                    "write port=80:proto=tcp:toport=8080, or 80:8080",
                ));
            };
            let key_at = self.at;
            self.at += key.len() + 1;
            match key {
                "port" => dialled = Some(self.ports("the port that clients dial")?),
                "toport" => {
                    target_at = self.at;
                    target = Some(self.ports("the port that the server listens on")?);
                }
                "proto" => {
                    protocols = self.protocol(value)?;
                    self.at += value.len();
                }
                "toaddr" => {
                    self.at = key_at;
                    return Err(self.error(
                        "`toaddr` is another host, and redirects to other hosts are not supported",
                        "leave it out to redirect to a port of this host",
                    ));
                }
                _ => {
                    self.at = key_at;
                    return Err(self.error(
                        format!("unknown key `{key}`"),
                        "the keys are port, proto and toport",
                    ));
                }
            }
            if !self.rest().starts_with(':') {
                break;
            }
            self.at += 1;
        }
        let missing = |name| format!("`{name}=` is missing");
        let hint = "write port=80:proto=tcp:toport=8080, or 80:8080";
        let dialled = dialled.ok_or_else(|| self.error(missing("port"), hint))?;
        let target = target.ok_or_else(|| self.error(missing("toport"), hint))?;
        self.at_do(target_at, |parser| parser.check_ports(dialled, target))?;
        let mut rule = Rule {
            addr: None,
            dialled,
            target,
            protocols,
            from: None,
            on: Vec::new(),
        };
        self.conditions(&mut rule)?;
        Ok(rule)
    }
}

/// Names that people type for ports.
fn well_known(name: &str) -> Option<u16> {
    match name {
        "http" => Some(80),
        "https" => Some(443),
        "domain" | "dns" => Some(53),
        "ssh" => Some(22),
        _ => None,
    }
}
