//! Rules as people write them: `80:8080`, `53:5353/udp`.
//!
//! The full grammar is `[ADDR:]PORT[-PORT]:PORT[-PORT][/tcp|/udp|/both]
//! [from CIDR] [on IFACE,…]`. What is not built yet is recognised and refused
//! by name, so that it cannot be mistaken for something else.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use portredir_common::abi::Protocol;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// The transport protocols a rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocols {
    /// TCP alone; what a rule means that names none, as with `docker -p`.
    #[default]
    Tcp,
    /// UDP alone.
    Udp,
    /// TCP and UDP.
    Both,
}

impl Protocols {
    /// Each of them.
    #[must_use]
    pub const fn each(self) -> &'static [Protocol] {
        match self {
            Self::Tcp => &[Protocol::Tcp],
            Self::Udp => &[Protocol::Udp],
            Self::Both => &[Protocol::Tcp, Protocol::Udp],
        }
    }

    const fn overlap(self, other: Self) -> bool {
        !matches!(
            (self, other),
            (Self::Tcp, Self::Udp) | (Self::Udp, Self::Tcp)
        )
    }
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The lowest.
    pub first: u16,
    /// The highest, not below `first`.
    pub last: u16,
}

impl Ports {
    /// One port.
    #[must_use]
    pub const fn one(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// Whether a port is one of them.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Each of them.
    pub fn each(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

/// `80` or `8000-8100`.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// One redirect: who dials `dialled` reaches what listens on `target`.
///
/// `Display` gives the canonical text, which parses to the same rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The address of this host that clients dial; `None` for all.
    pub addr: Option<IpAddr>,
    /// The ports that clients dial.
    pub dialled: Ports,
    /// The ports the server listens on: as many as `dialled`, or one.
    pub target: Ports,
    /// For which protocols.
    pub protocols: Protocols,
    /// The clients it is for; `None` for all.
    pub from: Option<IpNet>,
    /// Names and globs of the interfaces it is for; none for all.
    pub on: Vec<String>,
}

impl Rule {
    /// Where packets to one of the dialled ports go.
    #[must_use]
    pub const fn target_of(&self, dialled: u16) -> u16 {
        if self.target.first == self.target.last {
            self.target.first
        } else {
            self.target.first + (dialled - self.dialled.first)
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr {
            Some(IpAddr::V4(addr)) => write!(f, "{addr}:")?,
            Some(IpAddr::V6(addr)) => write!(f, "[{addr}]:")?,
            None => {}
        }
        write!(f, "{}:{}", self.dialled, self.target)?;
        f.write_str(match self.protocols {
            Protocols::Tcp => "",
            Protocols::Udp => "/udp",
            Protocols::Both => "/both",
        })?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if !self.on.is_empty() {
            write!(f, " on {}", self.on.join(","))?;
        }
        Ok(())
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

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

/// Why a list of rules cannot work together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConflictError {
    /// The same port twice.
    #[error(
        "rules `{first}` and `{second}` both redirect port {port}; a port has one target, so leave one out"
    )]
    SamePort {
        /// The rule given first.
        first: Rule,
        /// The rule that repeats its port.
        second: Rule,
        /// That port.
        port: u16,
    },
    /// More than the map of counters can tell apart.
    #[error("{0} rules; at most 65536 are possible")]
    TooMany(usize),
}

/// Refuses lists in which a rule could never match.
///
/// # Errors
///
/// [`ConflictError`], naming both rules.
pub fn check(rules: &[Rule]) -> Result<(), ConflictError> {
    if rules.len() > usize::from(u16::MAX) + 1 {
        return Err(ConflictError::TooMany(rules.len()));
    }
    let mut by_port = std::collections::HashMap::<u16, Vec<&Rule>>::new();
    for second in rules {
        let holders = by_port.entry(second.dialled.first).or_default();
        if let Some(&first) = holders
            .iter()
            .find(|r| r.protocols.overlap(second.protocols))
        {
            return Err(ConflictError::SamePort {
                first: first.clone(),
                second: second.clone(),
                port: second.dialled.first,
            });
        }
        holders.push(second);
    }
    Ok(())
}

const EXAMPLE: &str = "a rule is PORT:PORT[/tcp|/udp|/both], for example 80:8080 or 53:5353/udp";

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut parser = Parser { text, at: 0 };
        if let Some(length) = parser.address() {
            return Err(parser.error(
                format!(
                    "a rule for one address, `{}`, is not supported yet",
                    &text[..length]
                ),
                "leave the address out to redirect on every address of this host".into(),
            ));
        }
        let dialled = parser.port("the port that clients dial")?;
        parser.no_range()?;
        parser.expect(':', "between the two ports")?;
        if let Some(length) = parser.address() {
            return Err(parser.error(
                format!(
                    "`{}` is another host, and redirects to other hosts are not supported",
                    &parser.rest()[..length]
                ),
                format!("to redirect to a port of this host, write {dialled}:PORT"),
            ));
        }
        let target_at = parser.at;
        let target = parser.port("the port that the server listens on")?;
        parser.no_range()?;
        if dialled == target {
            parser.at = target_at;
            return Err(parser.error(
                format!("port {target} would be redirected to itself"),
                "give the port that the server listens on, as in 80:8080".into(),
            ));
        }
        let protocols = parser.protocols()?;
        parser.end()?;
        Ok(Self {
            addr: None,
            dialled: Ports::one(dialled),
            target: Ports::one(target),
            protocols,
            from: None,
            on: Vec::new(),
        })
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

    fn error(&self, problem: String, hint: String) -> RuleError {
        RuleError {
            text: self.text.to_owned(),
            at: self.text[..self.at].chars().count(),
            problem,
            hint,
        }
    }

    /// Length of the address that the rest begins with, without its colon.
    fn address(&self) -> Option<usize> {
        let rest = self.rest();
        if rest.starts_with('[') {
            return rest.find(']').map(|end| end + 1);
        }
        let end = rest.find([':', '/', ' ']).unwrap_or(rest.len());
        let word = &rest[..end];
        let is_v4 = word.parse::<std::net::Ipv4Addr>().is_ok();
        let is_name = word.starts_with(|c: char| c.is_ascii_alphabetic()) && word.contains('.');
        (is_v4 || is_name).then_some(end)
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
            return Err(self.error(format!("expected {what}, but {found}"), EXAMPLE.into()));
        }
        match word.parse::<u16>() {
            Ok(0) => Err(self.error(
                "port 0 cannot be used".into(),
                "ports are 1 to 65535".into(),
            )),
            Ok(port) => {
                self.at += digits;
                Ok(port)
            }
            Err(_) => Err(self.error(
                format!("port {word} is too large"),
                "ports are 1 to 65535".into(),
            )),
        }
    }

    fn no_range(&self) -> Result<(), RuleError> {
        if self.rest().starts_with('-') {
            return Err(self.error(
                "port ranges are not supported yet".into(),
                "give one rule per port, as in 8000:9000 8001:9001".into(),
            ));
        }
        Ok(())
    }

    fn expect(&mut self, c: char, place: &str) -> Result<(), RuleError> {
        match self.rest().chars().next() {
            Some(found) if found == c => {
                self.at += c.len_utf8();
                Ok(())
            }
            Some(found) => Err(self.error(
                format!("expected `{c}` {place}, found `{found}`"),
                EXAMPLE.into(),
            )),
            None => Err(self.error(
                format!("expected `{c}` {place}, but the rule ends"),
                format!("to redirect port {0} to 8080, write {0}:8080", self.text),
            )),
        }
    }

    fn protocols(&mut self) -> Result<Protocols, RuleError> {
        let rest = self.rest();
        if !rest.starts_with('/') {
            return Ok(Protocols::default());
        }
        self.at += 1;
        let word = self.rest().split_whitespace().next().unwrap_or_default();
        let protocols = match word {
            "tcp" => Protocols::Tcp,
            "udp" => Protocols::Udp,
            "both" => Protocols::Both,
            "sctp" => {
                return Err(self.error(
                    "SCTP is not supported: its checksum covers the whole packet".into(),
                    "use /tcp, /udp or /both".into(),
                ));
            }
            _ => {
                return Err(self.error(
                    format!("unknown protocol `{word}`"),
                    "use /tcp, /udp or /both; without one, tcp is meant".into(),
                ));
            }
        };
        self.at += word.len();
        Ok(protocols)
    }

    fn end(&mut self) -> Result<(), RuleError> {
        let spaces = self.rest().len() - self.rest().trim_start().len();
        let rest = self.rest().trim_start();
        if rest.is_empty() {
            return Ok(());
        }
        self.at += spaces;
        for (word, hint) in [
            ("from", "leave it out to redirect for every client"),
            ("on", "choose interfaces for all rules with --iface"),
        ] {
            if rest.split_whitespace().next() == Some(word) {
                return Err(self.error(
                    format!("`{word}` conditions are not supported yet"),
                    hint.into(),
                ));
            }
        }
        Err(self.error("the rule should end here".into(), EXAMPLE.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Rule {
        text.parse().expect("a rule")
    }

    fn error(text: &str) -> String {
        text.parse::<Rule>().expect_err("not a rule").to_string()
    }

    #[test]
    fn canonical_text() {
        for (text, canonical) in [
            ("80:8080", "80:8080"),
            ("80:8080/tcp", "80:8080"),
            ("53:5353/udp", "53:5353/udp"),
            ("443:8443/both", "443:8443/both"),
            ("1:65535", "1:65535"),
        ] {
            assert_eq!(parse(text).to_string(), canonical);
        }
    }

    #[test]
    fn errors_point_at_the_character() {
        assert_eq!(
            error("80;8080"),
            "bad rule `80;8080`: expected `:` between the two ports, found `;`\n    80;8080\n      ^\n  \
             a rule is PORT:PORT[/tcp|/udp|/both], for example 80:8080 or 53:5353/udp"
        );
        for (text, at, words) in [
            ("", 0, "the rule ends"),
            ("80", 2, "write 80:8080"),
            ("80:", 3, "the rule ends"),
            (":8080", 0, "found `:`"),
            ("http:8080", 0, "found `h`"),
            ("0:8080", 0, "port 0"),
            ("80:0", 3, "port 0"),
            ("70000:8080", 0, "too large"),
            ("80:8080x", 7, "should end here"),
            ("80:8080/sctp", 8, "SCTP"),
            ("80:8080/tpc", 8, "unknown protocol `tpc`"),
            ("80:80", 3, "itself"),
            ("80-90:8080", 2, "ranges are not supported yet"),
            ("80:8080-8090", 7, "ranges are not supported yet"),
            ("10.0.0.5:80:8080", 0, "not supported yet"),
            ("[2001:db8::1]:80:8080", 0, "not supported yet"),
            ("80:10.0.0.5:8080", 3, "another host"),
            ("80:[::1]:8080", 3, "another host"),
            ("80:web.example:8080", 3, "another host"),
            ("80:8080 from 10.0.0.0/8", 8, "`from` conditions"),
            ("80:8080/udp on eth0", 12, "`on` conditions"),
            ("８0:8080", 0, "found `８`"),
        ] {
            let message = error(text);
            assert!(message.contains(words), "{message}");
            let caret = message.lines().nth(2).expect("a line with the caret");
            assert_eq!(caret.find('^'), Some(4 + at), "{message}");
        }
    }

    #[test]
    fn conflicts_name_both_rules() {
        let list = |texts: &[&str]| texts.iter().map(|t| parse(t)).collect::<Vec<_>>();
        check(&list(&["80:8080", "80:8081/udp", "81:8080"])).expect("no conflict");
        for (texts, named) in [
            (["80:8080", "80:8081"], "`80:8080` and `80:8081`"),
            (["80:8080", "80:8080"], "`80:8080` and `80:8080`"),
            (
                ["80:8080/both", "80:8081/udp"],
                "`80:8080/both` and `80:8081/udp`",
            ),
        ] {
            let message = check(&list(&texts)).expect_err("a conflict").to_string();
            assert!(message.contains(named), "{message}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,24}|[0-9:/\\-\\[\\]. a-z]{0,24}") {
            let _ = text.parse::<Rule>().map_err(|e| e.to_string());
        }

        #[test]
        fn text_parses_back(dialled in 1_u16.., target in 1_u16.., n in 0_usize..3) {
            prop_assume!(dialled != target);
            let protocols = [Protocols::Tcp, Protocols::Udp, Protocols::Both][n];
            let rule = Rule { addr: None, dialled: Ports::one(dialled), target: Ports::one(target), protocols, from: None, on: Vec::new() };
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
    }
}
