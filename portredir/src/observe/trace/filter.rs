//! Which lines of a trace are meant.

use std::net::IpAddr;

use ipnet::IpNet;
use portredir_common::net::Port;
use thiserror::Error;

use super::Line;
use crate::rule::{Rule, RuleError};

/// The conditions of a trace; a line that is meant meets all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The rule.
    pub rule: Option<Rule>,
    /// The protocol.
    pub protocol: Option<&'static str>,
    /// A port, before or after.
    pub port: Option<Port>,
    /// The client, or whoever sends.
    pub from: Option<IpNet>,
    /// The interface.
    pub on: Option<String>,
    /// Whether only dropped packets are meant.
    pub drops: bool,
}

/// A word that is no filter.
#[derive(Debug, Error)]
pub enum FilterError {
    /// A word needs another one behind it.
    #[error("`{0}` needs a value; example: portredir trace {1}")]
    NoValue(String, &'static str),
    /// A value that is none.
    #[error("`{1}` is no value for `{0}`; example: portredir trace {2}")]
    Value(&'static str, String, &'static str),
    /// A word is there twice.
    #[error("`{0}` is given twice")]
    Twice(String),
    /// A word that is neither a filter nor a rule.
    #[error("`{word}` is neither a rule nor one of tcp, udp, drops, port N, from ADDR, on IFACE")]
    Word {
        /// The word.
        word: String,
        /// The reason why the word is no rule.
        #[source]
        source: RuleError,
    },
    /// A rule that does not run.
    #[error("rule `{0}` does not run; to see the running rules: portredir rules")]
    NotRunning(Box<Rule>),
}

const PORT: &str = "port 80";
const FROM: &str = "from 192.0.2.0/24";
const ON: &str = "on eth0";

impl Filter {
    /// Reads the words of a command line. A rule with conditions is one word, in quotes.
    ///
    /// # Errors
    ///
    /// [`FilterError`].
    pub fn parse(words: &[String]) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = |example| {
                let value = words.next();
                value.ok_or_else(|| FilterError::NoValue(word.clone(), example))
            };
            let is_new = match word.as_str() {
                "tcp" => filter.protocol.replace("tcp").is_none(),
                "udp" => filter.protocol.replace("udp").is_none(),
                "drops" => !std::mem::replace(&mut filter.drops, true),
                "port" => {
                    let text = value(PORT)?;
                    let port = text.parse().ok().filter(|port| *port != 0);
                    let port =
                        port.ok_or_else(|| FilterError::Value("port", text.clone(), PORT))?;
                    filter.port.replace(Port::new(port)).is_none()
                }
                "from" => filter.from.replace(network(value(FROM)?)?).is_none(),
                "on" => filter.on.replace(value(ON)?.clone()).is_none(),
                _ => {
                    let rule = word.parse().map_err(|source| FilterError::Word {
                        word: word.clone(),
                        source,
                    })?;
                    filter.rule.replace(rule).is_none()
                }
            };
            if !is_new {
                return Err(FilterError::Twice(word.clone()));
            }
        }
        Ok(filter)
    }

    /// Checks that the rule runs.
    ///
    /// # Errors
    ///
    /// [`FilterError::NotRunning`].
    pub fn check(&self, rules: &[(u16, Rule)]) -> Result<(), FilterError> {
        match &self.rule {
            Some(wanted) if !rules.iter().any(|(_, rule)| is_meant(wanted, rule)) => {
                Err(FilterError::NotRunning(Box::new(wanted.clone())))
            }
            _ => Ok(()),
        }
    }

    /// Whether a line is meant.
    #[must_use]
    pub fn admits(&self, line: &Line) -> bool {
        let ends = [
            line.before.src,
            line.before.dst,
            line.after.src,
            line.after.dst,
        ];
        let has_port = |port: &Port| ends.iter().flatten().any(|end| end.port == Some(*port));
        let is_from = |from: &IpNet| line.before.src.is_some_and(|src| from.contains(&src.addr));
        self.rule.as_ref().is_none_or(|rule| is_about(rule, line))
            && (self.protocol.is_none() || self.protocol == line.protocol)
            && self.port.as_ref().is_none_or(has_port)
            && self.from.as_ref().is_none_or(is_from)
            && (self.on.is_none() || self.on == line.interface)
            && (!self.drops || line.verdict == "drop")
    }
}

fn network(text: &str) -> Result<IpNet, FilterError> {
    let addr = text.parse::<IpAddr>().map(IpNet::from);
    addr.or_else(|_| text.parse())
        .map_err(|_| FilterError::Value("from", text.to_owned(), FROM))
}

/// Whether a rule that runs is the one that was typed: without conditions a typed rule stands
/// for all that have its ports. Of rules whose targets have addresses or are several, only the
/// part before the targets and the conditions count.
fn is_meant(wanted: &Rule, rule: &Rule) -> bool {
    let bare = Rule {
        addr: None,
        from: None,
        on: Vec::new(),
        ..rule.clone()
    };
    let is_shared = wanted.forward().is_some() && rule.forward().is_some();
    let is_heard = |other: &Rule| is_shared && wanted.listen_key() == other.listen_key();
    *wanted == *rule || *wanted == bare || is_heard(rule) || is_heard(&bare)
}

/// Whether a line is about a rule: its own, one whose conditions do not hold or, where no
/// rule is known, one that names a port of the packet.
fn is_about(wanted: &Rule, line: &Line) -> bool {
    if let Some(rule) = &line.rule {
        return is_meant(wanted, rule);
    }
    if !line.failed.is_empty() {
        return line
            .failed
            .iter()
            .any(|failed| is_meant(wanted, &failed.rule));
    }
    let targets = wanted.targets();
    let is_target = |port: Port| targets.iter().any(|target| target.ports.contains(port));
    let is_named =
        |port: Port| wanted.redirects(port) || wanted.is_own_target(port) || is_target(port);
    let ends = [line.before.src, line.before.dst];
    ends.iter()
        .flatten()
        .filter_map(|end| end.port)
        .any(is_named)
}
