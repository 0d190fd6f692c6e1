//! Rules beside each other: where they come from, and whether each of them can
//! match.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::{Rule, RuleError};

/// Where a rule was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Origin {
    /// It runs already.
    #[default]
    Running,
    /// The how-manieth word of the command, from 1.
    Argument(usize),
    /// In a file.
    File {
        /// Its path.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("it runs"),
            Self::Argument(number) => write!(f, "argument {number}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// A rule and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced {
    /// The rule.
    pub rule: Rule,
    /// Its place.
    pub origin: Origin,
}

impl Sourced {
    /// A rule that is live.
    #[must_use]
    pub const fn running(rule: Rule) -> Self {
        Self {
            rule,
            origin: Origin::Running,
        }
    }
}

/// A text that is no rule, and where it was written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{origin}: {error}")]
pub struct SourcedError {
    /// Its place.
    pub origin: Origin,
    /// What is wrong.
    pub error: Box<RuleError>,
}

/// Reads rules from words of a command; `from` and `on`, with the word behind
/// them, belong to the rule before.
///
/// # Errors
///
/// [`SourcedError`], naming the argument.
pub fn from_words(words: &[String]) -> Result<Vec<Sourced>, SourcedError> {
    let mut texts = Vec::<(usize, String)>::new();
    let mut is_condition = false;
    for (number, word) in (1..).zip(words) {
        let is_keyword = matches!(word.trim(), "from" | "on");
        match texts.last_mut() {
            Some((_, text)) if is_keyword || is_condition => {
                text.push(' ');
                text.push_str(word);
            }
            _ => texts.push((number, word.clone())),
        }
        is_condition = is_keyword;
    }
    let parse = |(number, text): (usize, String)| {
        let origin = Origin::Argument(number);
        match text.parse() {
            Ok(rule) => Ok(Sourced { rule, origin }),
            Err(error) => {
                let error = Box::new(error);
                Err(SourcedError { origin, error })
            }
        }
    };
    texts.into_iter().map(parse).collect()
}

/// Why a list of rules cannot work together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConflictError {
    /// A rule that can never match.
    #[error(
        "rule `{}` ({}) never matches: `{}` ({}) takes port {port} before it; leave one of them out",
        .hidden.rule, .hidden.origin, .by.rule, .by.origin
    )]
    Hidden {
        /// That rule.
        hidden: Box<Sourced>,
        /// A rule that comes first.
        by: Box<Sourced>,
        /// A port of both.
        port: u16,
    },
    /// More than the map of counters can tell apart.
    #[error("{0} rules; at most 65536 are possible")]
    TooMany(usize),
}

/// Refuses lists in which a rule could never match: one is taken before another
/// that has the same conditions.
///
/// # Errors
///
/// [`ConflictError`], naming both rules.
pub fn check(rules: &[Sourced]) -> Result<(), ConflictError> {
    if rules.len() > usize::from(u16::MAX) + 1 {
        return Err(ConflictError::TooMany(rules.len()));
    }
    // By what makes rules equally specific: who takes which port there.
    let mut groups = HashMap::<_, Vec<&Sourced>>::new();
    for rule in rules {
        let key = (rule.rule.addr, rule.rule.from);
        groups.entry(key).or_default().push(rule);
    }
    groups.values().try_for_each(|group| check_group(group))
}

/// The same for rules of the same address and clients.
fn check_group(rules: &[&Sourced]) -> Result<(), ConflictError> {
    // Which rules have a port so far: most ports one or none.
    let mut takers = HashMap::<(_, u16), Vec<usize>>::new();
    for (i, sourced) in rules.iter().enumerate() {
        let Sourced { rule, .. } = sourced;
        let mut first_taker = None;
        let mut is_free = false;
        for &protocol in rule.protocols.each() {
            for port in rule.dialled.each() {
                let takers = takers.entry((protocol, port)).or_default();
                match takers
                    .iter()
                    .find(|&&taker| covers(&rules[taker].rule, rule))
                {
                    Some(&taker) => {
                        first_taker.get_or_insert((taker, port));
                    }
                    None => {
                        is_free = true;
                        takers.push(i);
                    }
                }
            }
        }
        if let Some((taker, port)) = first_taker.filter(|_| !is_free) {
            return Err(ConflictError::Hidden {
                hidden: Box::new((*sourced).clone()),
                by: Box::new(rules[taker].clone()),
                port,
            });
        }
    }
    Ok(())
}

/// Whether a rule is for all the interfaces of another.
fn covers(rule: &Rule, other: &Rule) -> bool {
    let on: HashSet<_> = rule.on.iter().collect();
    on.is_empty() || (!other.on.is_empty() && other.on.iter().all(|name| on.contains(name)))
}
