//! Parses the options of rules whose targets have addresses, or are several: `check`, `every`,
//! `affinity`, `else` and more, in any order.

use std::time::Duration;

use portredir_common::net::Port;

use super::Parser;
use super::target::Listen;
use crate::rule::duration;
use crate::rule::error::spelled;
use crate::rule::{Affinity, Check, CheckBy, Else, Label, Protocols, Rule, RuleError, WhenDown};

/// The words that begin an option, with an example of each.
const WORDS: [(&str, &str); 9] = [
    ("check", "check tcp"),
    ("every", "check tcp:8080 every 5s"),
    ("timeout", "check tcp:8080 timeout 500ms"),
    ("rise", "check tcp:8080 rise 2"),
    ("fall", "check tcp:8080 fall 3"),
    ("affinity", "affinity client"),
    ("snat", "snat never"),
    ("else", "else drop"),
    ("cut", "cut"),
];

/// Whether a word begins an option.
pub(in crate::rule) fn is_option(word: &str) -> bool {
    WORDS.iter().any(|(name, _)| *name == word)
}

/// The options of a rule that were read so far.
#[derive(Default)]
pub(super) struct Words {
    /// The words that were given, with their places.
    given: Vec<(&'static str, usize)>,
    check: Option<Option<CheckBy>>,
    every: Option<Duration>,
    timeout: Option<Duration>,
    rise: Option<u8>,
    fall: Option<u8>,
    pub(super) affinity: Affinity,
    /// Where flows go while all targets are down, and the place in the text.
    pub(super) otherwise: Option<(Else, usize)>,
    pub(super) when_down: WhenDown,
    pub(super) label: Label,
}

impl Words {
    fn place(&self, names: &[&str]) -> Option<(&'static str, usize)> {
        let mut given = self.given.iter().copied();
        given.find(|(name, _)| names.contains(name))
    }
}

impl Parser<'_> {
    /// Reads the option that begins with this word.
    pub(super) fn option(
        &mut self,
        word: &str,
        listen: Listen,
        words: &mut Words,
    ) -> Result<(), RuleError> {
        let known = WORDS.iter().find(|(name, _)| *name == word);
        let (name, example) = *known.expect("the word of an option");
        if words.place(&[name]).is_some() {
            return Err(self.error(
                format!("`{name}` is given twice"),
                format!("give each option once, as in `{example}`"),
            ));
        }
        words.given.push((name, self.at));
        self.at += word.len();
        if name == "cut" {
            words.when_down = WhenDown::Cut;
            return Ok(());
        }
        self.skip_spaces();
        let value = self.word();
        if value.is_empty() {
            let problem = format!("expected a value after `{name}`, but the rule ends");
            return Err(self.error(problem, format!("as in `{example}`")));
        }
        match name {
            "check" => words.check = Some(self.check_by(value)?),
            "every" => words.every = Some(self.time(0.1, 3600.0, example)?),
            "timeout" => words.timeout = Some(self.time(0.01, 60.0, example)?),
            "rise" => words.rise = Some(self.count(example)?),
            "fall" => words.fall = Some(self.count(example)?),
            "affinity" => words.affinity = self.affinity(value)?,
            "snat" => self.snat(value)?,
            _ => {
                let at = self.at;
                words.otherwise = Some((self.otherwise(value, listen)?, at));
            }
        }
        Ok(())
    }

    fn check_by(&mut self, value: &str) -> Result<Option<CheckBy>, RuleError> {
        let path = value.strip_prefix("http:");
        let by = match value {
            "none" => None,
            "tcp" => Some(CheckBy::Tcp(None)),
            "udp" => Some(CheckBy::Udp(None)),
            _ if value.starts_with("tcp:") => {
                self.at += "tcp:".len();
                let port = self.port("the port that the check connects to")?;
                return Ok(Some(CheckBy::Tcp(Some(Port::new(port)))));
            }
            _ if value.starts_with("udp:") => {
                self.at += "udp:".len();
                let port = self.port("the port that the check asks")?;
                return Ok(Some(CheckBy::Udp(Some(Port::new(port)))));
            }
            _ if let Some(path) = path => {
                self.check_path(path)?;
                Some(CheckBy::Http(path.to_owned()))
            }
            _ => {
                let ways = spelled([
                    "check tcp",
                    "check udp:53",
                    "check http:/healthz",
                    "check none",
                ]);
                return Err(self.error(
                    format!("unknown check `{value}`"),
                    format!("write one of {ways}"),
                ));
            }
        };
        self.at += value.len();
        Ok(by)
    }

    /// Refuses what is no path of a request (RFC 3986, section 3.3, and the query).
    fn check_path(&self, path: &str) -> Result<(), RuleError> {
        const HINT: &str = "write the path that the target answers, as in `check http:/healthz`";
        let at = self.at + "http:".len();
        if !path.starts_with('/') || path.starts_with("//") {
            let problem = "expected a path after `http:`; the target itself is the host";
            return Err(self.error_at(at, problem, HINT));
        }
        let is_good = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()*+,;=:@/?".contains(c);
        match path.find(|c| !is_good(c)) {
            Some(bad) => Err(self.error_at(
                at + bad,
                "a path has letters, digits and -._~%!$&'()*+,;=:@/? alone",
                HINT,
            )),
            None => Ok(()),
        }
    }

    /// Reads a duration between two numbers of seconds.
    fn time(&mut self, least: f64, most: f64, example: &str) -> Result<Duration, RuleError> {
        let word = self.word();
        let Some(seconds) = duration::seconds(word).filter(|seconds| seconds.is_finite()) else {
            return Err(self.error(
                format!("`{word}` is not a duration"),
                format!("write a number and a unit, as in `{example}`"),
            ));
        };
        if !(least..=most).contains(&seconds) {
            return Err(self.error(
                format!("{word} is not between {least} and {most} seconds"),
                format!("as in `{example}`"),
            ));
        }
        self.at += word.len();
        // The text has whole milliseconds.
        let time = Duration::from_secs_f64(seconds).as_micros() + 500;
        Ok(Duration::from_millis(
            u64::try_from(time / 1000).unwrap_or(u64::MAX),
        ))
    }

    /// Reads a number of checks.
    fn count(&mut self, example: &str) -> Result<u8, RuleError> {
        let word = self.word();
        let is_plain = word.chars().all(|c| c.is_ascii_digit());
        match word.parse() {
            Ok(count @ 1..=100) if is_plain => {
                self.at += word.len();
                Ok(count)
            }
            _ => Err(self.error(
                format!("`{word}` is not a number of checks"),
                format!("write a number from 1 to 100, as in `{example}`"),
            )),
        }
    }

    fn affinity(&mut self, value: &str) -> Result<Affinity, RuleError> {
        if value != "client" {
            return Err(self.error(
                format!("unknown affinity `{value}`"),
                "to send all flows of a client address to one target, write `affinity client`",
            ));
        }
        self.at += value.len();
        Ok(Affinity::Client)
    }

    /// Reads `never`, the default, and refuses what is not there yet.
    fn snat(&mut self, value: &str) -> Result<(), RuleError> {
        let problem = match value {
            "never" => {
                self.at += value.len();
                return Ok(());
            }
            "auto" | "always" => {
                "the source address cannot be changed yet: targets see the address of the client"
                    .to_owned()
            }
            _ => format!("unknown value `{value}` of snat"),
        };
        Err(self.error(
            problem,
            "write `snat never`, and have the target send its replies by way of this host",
        ))
    }

    fn otherwise(&mut self, value: &str, listen: Listen) -> Result<Else, RuleError> {
        if value == "drop" {
            self.at += value.len();
            return Ok(Else::Drop);
        }
        let placed = self.target(listen)?;
        if let Some(at) = placed.weight_at {
            return Err(self.error_at(
                at,
                "the target of `else` has no share to weigh",
                "write one target, as in `else 10.0.0.9:8080`",
            ));
        }
        if self.next() == Some(',') {
            return Err(self.error(
                "`else` has one target",
                "as in `else 10.0.0.9:8080`, `else 9090` or `else drop`",
            ));
        }
        self.check_count(listen.ports, &placed.target, placed.at)?;
        Ok(Else::Target(placed.target))
    }

    /// Refuses options that mean nothing to a rule with one port of this host.
    pub(super) fn no_options(&self, rule: &Rule, words: &Words) -> Result<(), RuleError> {
        let needing = WORDS.map(|(name, _)| if name == "snat" { "" } else { name });
        let Some((name, at)) = words.place(&needing) else {
            return Ok(());
        };
        let example = example_of(name);
        let own = rule.here().expect("one target of this host");
        let more = format!("{}:{own},10.0.0.5:{} {example}", rule.ports, own.first);
        let is_right = more.parse::<Rule>().is_ok();
        let more = Some(more).filter(|_| is_right);
        let more = more.unwrap_or_else(|| "80:8080,10.0.0.5:8080 cut".to_owned());
        Err(self.error_at(
            at,
            format!("`{name}` needs a target with an address, or several targets"),
            format!("write `{}:{own}`, or for example `{more}`", rule.ports),
        ))
    }

    /// Refuses a check of a port on which the target does not serve the rule.
    fn check_protocol(
        &self,
        by: &CheckBy,
        protocols: Protocols,
        words: &Words,
    ) -> Result<(), RuleError> {
        let (problem, hint) = match (protocols, by) {
            (Protocols::Udp, CheckBy::Tcp(None) | CheckBy::Http(_)) => (
                "this check connects by TCP, and the rule is for UDP alone",
                "write `check udp:53` to ask by UDP, or a port where the target answers TCP, as in \
                 `check tcp:8080`",
            ),
            (Protocols::Tcp, CheckBy::Udp(None)) => (
                "this check asks by UDP, and the rule is for TCP alone",
                "write `check tcp`, or name a port where the target answers UDP, as in \
                 `check udp:53`",
            ),
            _ => return Ok(()),
        };
        let at = words.place(&["check"]).map_or(self.at, |(_, at)| at);
        Err(self.error_at(at, problem, hint))
    }

    /// The health check of a rule with these options.
    pub(super) fn check_of(
        &self,
        words: &Words,
        targets: usize,
        protocols: Protocols,
    ) -> Result<Option<Check>, RuleError> {
        let usual = Check::usual(targets, protocols);
        let by = match &words.check {
            Some(by) => by.clone(),
            None => usual.map(|check| check.by),
        };
        let Some(by) = by else {
            return match words.place(&["every", "timeout", "rise", "fall"]) {
                None => Ok(None),
                Some((name, at)) => Err(self.error_at(
                    at,
                    format!("`{name}` is about a health check, and the rule has none"),
                    format!("add one, as in `{}`", example_of(name)),
                )),
            };
        };
        self.check_protocol(&by, protocols, words)?;
        let every = words.every.unwrap_or(Check::EVERY);
        let timeout = words.timeout.unwrap_or_else(|| Check::usual_timeout(every));
        if timeout > every {
            let at = words.place(&["timeout"]).map_or(self.at, |(_, at)| at);
            return Err(self.error_at(
                at,
                format!("a check would still wait when the next one begins, after {every:?}"),
                "give a timeout that is not longer than the interval, as in \
                 `check tcp every 5s timeout 2s`",
            ));
        }
        Ok(Some(Check {
            by,
            every,
            timeout,
            rise: words.rise.unwrap_or(Check::RISE),
            fall: words.fall.unwrap_or(Check::FALL),
        }))
    }
}

fn example_of(name: &str) -> &'static str {
    let example = WORDS.iter().find(|(word, _)| *word == name);
    example.map_or("", |(_, example)| example)
}
