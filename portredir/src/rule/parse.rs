//! The parser of the text of a rule; it reads the text in one pass.

mod addr;
mod condition;
mod firewalld;
mod label;
mod options;
mod target;
mod whole;

use portredir_common::net::Port;

pub(crate) use self::condition::is_glob;
pub(super) use self::options::is_option;
use super::error::{EXAMPLE, right, spelled};
use super::{Ports, Protocols, Rule, RuleError};

/// Whether a word begins a condition, an option or a name.
pub(super) fn is_keyword(word: &str) -> bool {
    matches!(word, "from" | "on" | "name") || is_option(word)
}

/// Whether a word begins one of these, and has a value.
pub(super) fn has_value(word: &str) -> bool {
    is_keyword(word) && word != "cut"
}

/// Whether a word, where no value is expected, begins a comment.
pub(super) fn is_comment(word: &str) -> bool {
    word.starts_with('#')
}

struct Parser<'a> {
    text: &'a str,
    /// The number of bytes that were read.
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn next(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// The text before the first character that `is_stop` accepts, or before the end.
    fn until(&self, is_stop: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        &rest[..rest.find(is_stop).unwrap_or(rest.len())]
    }

    /// The text before the next space.
    fn word(&self) -> &'a str {
        self.until(char::is_whitespace)
    }

    fn skip_spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn error(&self, problem: impl Into<String>, hint: impl Into<String>) -> RuleError {
        self.error_at(self.at, problem, hint)
    }

    /// An error at another place.
    fn error_at(
        &self,
        at: usize,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> RuleError {
        RuleError::new(self.text, at, problem.into(), hint.into())
    }

    fn no_quotes(&self) -> Result<(), RuleError> {
        let is_quote = |c| matches!(c, '"' | '\'' | '`' | '“' | '”' | '‘' | '’' | '„' | '«');
        if !self.next().is_some_and(is_quote) {
            return Ok(());
        }
        let inner = self.rest().replace(is_quote, "").parse::<Rule>();
        Err(self.error(
            "a rule contains no quotes",
            inner.map_or_else(
                |_| EXAMPLE.to_owned(),
                |rule| format!("remove the quotes: `{rule}`"),
            ),
        ))
    }

    fn port(&mut self, what: &str) -> Result<u16, RuleError> {
        let word = self.until(|c| !c.is_alphanumeric());
        let digits = self.until(|c| !c.is_ascii_digit());
        if digits.is_empty() || digits != word {
            return Err(self.no_port(what, word));
        }
        let range = "ports are 1 to 65535, as in `80:8080`";
        match word.parse::<u16>() {
            Ok(0) => Err(self.error("port 0 cannot be used", range)),
            Ok(port) if word.starts_with('0') => Err(self.error(
                format!("port {word} has a leading zero"),
                format!("write {port}, as in `80:8080`"),
            )),
            Ok(port) => {
                self.at += word.len();
                Ok(port)
            }
            Err(_) => Err(self.error(format!("port {word} is too large"), range)),
        }
    }

    /// The hint for a text that ends where a port should come.
    fn ended(&self) -> String {
        let begun = self.text.trim();
        let mut ends = ["8080", "80", "80:8080"].iter();
        let whole = ends.find_map(|end| format!("{begun}{end}").parse::<Rule>().ok());
        let verb = if begun.contains([',', ' ']) {
            ""
        } else {
            "write both ports, "
        };
        whole.map_or_else(
            || EXAMPLE.to_owned(),
            |rule| format!("{verb}as in `{rule}`"),
        )
    }

    /// The error for a word in the place of a port.
    fn no_port(&self, what: &str, word: &str) -> RuleError {
        let Some(found) = self.next() else {
            let hint = self.ended();
            return self.error(format!("expected {what}, but the rule ends"), hint);
        };
        if word.is_empty() {
            let hint = match found {
                ':' if self.text[..self.at].ends_with(':') => {
                    "one colon is enough, as in `80:8080`"
                }
                ':' if self.text[..self.at].ends_with('-') => {
                    "a range has a first and a last port, as in `8000-8100:9000-9100`"
                }
                ':' => "write both ports, as in `80:8080`",
                '-' | '+' => "ports are 1 to 65535, without a sign, as in `80:8080`",
                _ => EXAMPLE,
            };
            return self.error(format!("expected {what}, found `{found}`"), hint);
        }
        if word.starts_with("0x") || word.starts_with("0X") {
            let port = u16::from_str_radix(&word[2..], 16);
            let hint = port.map_or_else(
                |_| "ports are decimal numbers, as in `80:8080`".to_owned(),
                |port| format!("ports are decimal numbers: write {port} for {word}"),
            );
            return self.error(format!("`{word}` is not a decimal number"), hint);
        }
        if word.chars().all(char::is_numeric) {
            return self.error(
                format!("`{word}` contains characters other than the digits 0 to 9"),
                "write ports as in `80:8080`",
            );
        }
        let hint = match (word, well_known(word)) {
            (_, Some(port)) => format!("ports are numbers: write {port} for {word}"),
            ("tcp" | "udp" | "both", _) => {
                "the protocol goes after both ports, as in `53:5353/udp`".to_owned()
            }
            ("from" | "on", _) => {
                "conditions go after the ports, as in `80:8080 from 10.0.0.0/8`".to_owned()
            }
            _ if digits_then(word, "from") || digits_then(word, "on") => {
                "put a space before a condition, as in `80:8080 from 10.0.0.0/8`".to_owned()
            }
            _ => "ports are numbers from 1 to 65535, as in `80:8080`".to_owned(),
        };
        self.error(format!("expected {what}, found `{word}`"), hint)
    }

    fn ports(&mut self, what: &str) -> Result<Ports, RuleError> {
        let first_at = self.at;
        let first = self.port(what)?;
        match self.next() {
            Some('-') if !self.rest().starts_with("->") => {}
            Some(dash @ ('‐' | '‑' | '‒' | '–' | '—' | '−' | '~')) => {
                return Err(self.error(
                    format!("a range is written with `-`, not with `{dash}`"),
                    "as in `8000-8100:9000-9100`",
                ));
            }
            Some('.') if self.rest().starts_with("..") => {
                return Err(self.error(
                    "a range is written with `-`, not with `..`",
                    "as in `8000-8100:9000-9100`",
                ));
            }
            _ => return Ok(Ports::one(Port::new(first))),
        }
        self.at += 1;
        let last = self.port("the last port of the range")?;
        if last < first {
            return Err(self.error_at(
                first_at,
                "the range is reversed",
                format!("write {last}-{first}"),
            ));
        }
        Ok(Ports { first, last })
    }

    fn colon(&mut self, ports: Ports) -> Result<(), RuleError> {
        let Some(found) = self.next() else {
            return Err(self.error(
                "expected `:` between the two ports, but the rule ends",
                format!("add the target port, as in `{}`", to(ports, 8080)),
            ));
        };
        if found == ':' {
            self.at += 1;
            return Ok(());
        }
        if let Some(behind) = self.rest().strip_prefix('/') {
            let end = behind.find(|c: char| !c.is_ascii_alphabetic());
            let (protocol, behind) = behind.split_at(end.unwrap_or(behind.len()));
            let known = if ["tcp", "udp", "both"].contains(&protocol) {
                protocol
            } else {
                "tcp"
            };
            return Err(self.error(
                "the protocol goes after both ports",
                format!("write `{}/{known}`", self.to_number(ports, behind)),
            ));
        }
        let hint = match found {
            ',' => format!(
                "write one rule per port, as in {}",
                spelled(["80:8080", "443:8080"])
            ),
            '-' if !self.rest().starts_with("->") => {
                "a range has a first and a last port, as in `8000-8100:9000-9100`".to_owned()
            }
            _ => format!(
                "write the ports on both sides of a colon: `{}`",
                self.to_number(ports, self.rest())
            ),
        };
        Err(self.error(
            format!("expected `:` between the two ports, found `{found}`"),
            hint,
        ))
    }

    /// The text of a rule from `ports` to the next number, in `behind`, which may have
    /// other characters before it.
    fn to_number(&self, ports: Ports, behind: &str) -> String {
        let behind = behind.rsplit(':').next().unwrap_or_default();
        let number = behind.trim_start_matches(|c: char| !c.is_alphanumeric());
        let end = number.find(|c: char| !c.is_ascii_digit());
        let number = &number[..end.unwrap_or(number.len())];
        right(&format!("{ports}:{number}"), &to(ports, 8080))
    }

    fn check_ports(&self, ports: Ports, target: Ports, at: usize) -> Result<(), RuleError> {
        let is_one = target.first == target.last;
        if !is_one && ports.count() != target.count() {
            let to_one = to(ports, target.first);
            let last = u32::from(target.first) + ports.count() - 1;
            let hint = if ports.count() == 1 {
                format!("one port can be redirected to only one port, as in `{to_one}`")
            } else if last <= 65535 && ports.first != target.first {
                let same = format!("{ports}:{}-{last}", target.first);
                format!("write `{same}`, or `{to_one}` to redirect all of them to one port")
            } else {
                format!("write `{to_one}` to redirect all of them to one port")
            };
            let from = match ports.count() {
                1 => "one port".to_owned(),
                count => format!("{count} ports"),
            };
            let problem = format!("{from} cannot be redirected to {} ports", target.count());
            return Err(self.error_at(at, problem, hint));
        }
        if ports != target {
            return Ok(());
        }
        let problem = if is_one {
            format!("port {target} would be redirected to itself")
        } else {
            format!("ports {target} would be redirected to themselves")
        };
        let other = to(ports, if ports.first == 8080 { 80 } else { 8080 });
        let hint = format!("give the port that the server listens on, as in `{other}`");
        Err(self.error_at(at, problem, hint))
    }

    fn protocols(&mut self) -> Result<Protocols, RuleError> {
        if self.next() != Some('/') {
            return Ok(Protocols::default());
        }
        self.at += 1;
        let mut word = self.word();
        if let Some((protocol, behind)) = word.split_once(',')
            && behind.starts_with(|c: char| c.is_ascii_digit())
        {
            word = protocol;
        }
        let protocols = self.protocol(word)?;
        self.at += word.len();
        Ok(protocols)
    }

    fn protocol(&self, word: &str) -> Result<Protocols, RuleError> {
        let use_these = "use `/tcp`, `/udp` or `/both`; the default is tcp";
        match word.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Protocols::Tcp),
            "udp" => Ok(Protocols::Udp),
            "both" => Ok(Protocols::Both),
            "sctp" => Err(self.error(
                "SCTP is not supported: the SCTP checksum covers the whole packet",
                "use `/tcp`, `/udp` or `/both`",
            )),
            "" => Err(self.error("expected a protocol", use_these)),
            "tcp+udp" | "udp+tcp" | "tcp/udp" | "udp/tcp" | "tcp,udp" | "udp,tcp" | "all"
            | "any" | "*" => Err(self.error(
                format!("unknown protocol `{word}`"),
                "for TCP and UDP write `/both`",
            )),
            _ => Err(self.error(format!("unknown protocol `{word}`"), use_these)),
        }
    }
}

/// The text of a rule that leads to a port, or to the next one where that would not be a
/// rule.
fn to(ports: Ports, port: u16) -> String {
    if ports == Ports::one(Port::new(port)) {
        format!("{ports}:{}", if port == 8080 { 8081 } else { 8080 })
    } else {
        format!("{ports}:{port}")
    }
}

/// Whether a word is a number with another word after it.
fn digits_then(word: &str, end: &str) -> bool {
    let digits = word.strip_suffix(end).unwrap_or_default();
    !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit())
}

/// The ports of names that people type.
fn well_known(name: &str) -> Option<u16> {
    match name.to_ascii_lowercase().as_str() {
        "http" => Some(80),
        "https" => Some(443),
        "domain" | "dns" => Some(53),
        "ssh" => Some(22),
        _ => None,
    }
}
