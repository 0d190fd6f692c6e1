//! The filter of a list, in the words of the command line: each keyword narrows the list, and
//! a keyword that is repeated has alternatives.

use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use super::Connection;
use crate::rule::Rule;
use crate::sys::sock_detail::TcpState;

/// The wanted flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    states: Vec<TcpState>,
    ports: Vec<u16>,
    from: Vec<IpNet>,
    rules: Vec<String>,
}

/// A word of a filter that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    /// A word that begins no condition.
    #[error("`{0}` is no filter; use: state STATE, port PORT, from CIDR, rule RULE")]
    Keyword(String),
    /// A keyword without a value.
    #[error("`{0}` needs a value; example: {0} {1}")]
    NoValue(&'static str, &'static str),
    /// A state that does not exist.
    #[error(
        "`{word}` is no state of a TCP connection; use one of: all, {}",
        names()
    )]
    State {
        /// The word.
        word: String,
    },
    /// A port that is not a number.
    #[error("`{0}` is no port; use a number from 1 to 65535")]
    Port(String),
    /// A network that cannot be read.
    #[error("`{0}` is no network; example: from 192.0.2.0/24")]
    From(String),
    /// A rule that cannot be read.
    #[error("`{word}` is no rule: {why}; print the running rules: portredir rules")]
    Rule {
        /// The word.
        word: String,
        /// The mistake.
        why: String,
    },
}

fn names() -> String {
    TcpState::CONNECTED.map(TcpState::name).join(", ")
}

impl Filter {
    /// Reads the words of a command line.
    ///
    /// # Errors
    ///
    /// [`FilterError`].
    pub fn parse(words: &[String]) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        let mut words = words.iter();
        while let Some(keyword) = words.next() {
            let (keyword, example) = match keyword.as_str() {
                "state" => ("state", "established"),
                "port" => ("port", "80"),
                "from" => ("from", "192.0.2.0/24"),
                "rule" => ("rule", "80:8080"),
                _ => return Err(FilterError::Keyword(keyword.clone())),
            };
            let word = words.next();
            let word = word.ok_or(FilterError::NoValue(keyword, example))?;
            match keyword {
                "state" => filter.states.extend(states(word)?),
                "port" => filter.ports.push(port(word)?),
                "from" => filter.from.push(network(word)?),
                _ => filter.rules.push(rule(word)?),
            }
        }
        Ok(filter)
    }

    /// The states of TCP sockets to list: without a condition all but TIME_WAIT, where no
    /// connection is left.
    #[must_use]
    pub fn states(&self) -> Vec<TcpState> {
        if self.states.is_empty() {
            let all = TcpState::CONNECTED.into_iter();
            return all.filter(|state| *state != TcpState::TimeWait).collect();
        }
        self.states.clone()
    }

    /// Whether UDP flows, which have no state, can be wanted.
    #[must_use]
    pub fn wants_udp(&self) -> bool {
        self.states.is_empty() || self.states.len() >= TcpState::CONNECTED.len()
    }

    /// Whether a state is wanted; none is that of UDP flows, and of connections of which the
    /// state is not known.
    #[must_use]
    pub fn wants_state(&self, state: Option<&str>) -> bool {
        match state {
            None => self.wants_udp(),
            Some(name) => self.states().iter().any(|state| state.name() == name),
        }
    }

    /// Whether a flow is wanted.
    #[must_use]
    pub fn matches(&self, connection: &Connection) -> bool {
        let is_port = |port: &u16| [connection.dst_port, connection.target_port].contains(port);
        let is_from = |network: &IpNet| network.contains(&connection.client_addr);
        let is_rule = |rule: &String| connection.rule.as_ref() == Some(rule);
        (self.ports.is_empty() || self.ports.iter().any(is_port))
            && (self.from.is_empty() || self.from.iter().any(is_from))
            && (self.rules.is_empty() || self.rules.iter().any(is_rule))
    }
}

fn states(word: &str) -> Result<Vec<TcpState>, FilterError> {
    if word == "all" {
        return Ok(TcpState::CONNECTED.to_vec());
    }
    let mut all = TcpState::CONNECTED.into_iter();
    let state = all.find(|state| state.name() == word);
    let word = word.to_owned();
    Ok(vec![state.ok_or(FilterError::State { word })?])
}

fn port(word: &str) -> Result<u16, FilterError> {
    let port = word.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| FilterError::Port(word.to_owned()))
}

fn network(word: &str) -> Result<IpNet, FilterError> {
    let network = word.parse::<IpNet>().ok();
    let addr = || word.parse::<IpAddr>().ok().map(IpNet::from);
    let network = network.or_else(addr);
    network.ok_or_else(|| FilterError::From(word.to_owned()))
}

/// The canonical text of a rule.
fn rule(word: &str) -> Result<String, FilterError> {
    let rule = word.parse::<Rule>().map_err(|error| FilterError::Rule {
        word: word.to_owned(),
        why: error.to_string(),
    })?;
    Ok(rule.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::text::tests::connection;
    use super::*;

    fn parse(words: &str) -> Result<Filter, FilterError> {
        let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
        Filter::parse(&words)
    }

    #[test]
    fn each_keyword_narrows_the_list_and_a_repeated_one_has_alternatives() {
        let flow = connection();
        for (words, is_wanted) in [
            ("", true),
            ("port 80", true),
            ("port 8080", true),
            ("port 81", false),
            ("port 81 port 80", true),
            ("from 203.0.113.0/24", true),
            ("from 203.0.113.9", true),
            ("from 203.0.113.8", false),
            ("from 2001:db8::/32", false),
            ("rule 80:8080", true),
            ("rule 80:8080/tcp", true),
            ("rule 80:8080/both", false),
            ("port 80 from 203.0.113.8", false),
            ("port 80 rule 80:8080 from 203.0.113.9", true),
        ] {
            let filter = parse(words).expect(words);
            assert_eq!(filter.matches(&flow), is_wanted, "{words}");
        }
    }

    #[test]
    fn time_wait_is_listed_where_it_is_asked_for() {
        let states = |words| parse(words).expect("a filter").states();
        assert!(!states("").contains(&TcpState::TimeWait));
        assert_eq!(states("state time-wait"), [TcpState::TimeWait]);
        assert_eq!(
            states("state established state syn-recv"),
            [TcpState::Established, TcpState::SynRecv]
        );
        assert_eq!(states("state all"), TcpState::CONNECTED);
        assert!(parse("").expect("a filter").wants_udp());
        assert!(parse("state all").expect("a filter").wants_udp());
        assert!(!parse("state established").expect("a filter").wants_udp());
    }

    #[test]
    fn a_mistake_is_told_with_what_to_write_instead() {
        for (words, message) in [
            (
                "dport 80",
                "`dport` is no filter; use: state STATE, port PORT, from CIDR, rule RULE",
            ),
            ("port", "`port` needs a value; example: port 80"),
            (
                "port http",
                "`http` is no port; use a number from 1 to 65535",
            ),
            ("port 0", "`0` is no port; use a number from 1 to 65535"),
            (
                "from here",
                "`here` is no network; example: from 192.0.2.0/24",
            ),
            (
                "state open",
                "`open` is no state of a TCP connection; use one of: all, syn-sent, syn-recv, \
                 established, fin-wait-1, fin-wait-2, close-wait, last-ack, closing, time-wait",
            ),
        ] {
            let error = parse(words).expect_err(words);
            assert_eq!(error.to_string(), message);
        }
        let error = parse("rule 80").expect_err("a mistake").to_string();
        assert!(error.starts_with("`80` is no rule: "), "{error}");
    }
}
