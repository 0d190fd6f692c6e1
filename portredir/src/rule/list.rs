//! Rules beside each other, and where each was written.

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
            Self::Running => f.write_str("running"),
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

/// Reads rules from words of a command; `from` and `on`, with what stands behind
/// them, belong to the rule before.
///
/// # Errors
///
/// [`SourcedError`], naming the argument.
pub fn from_words(words: &[String]) -> Result<Vec<Sourced>, SourcedError> {
    let mut texts = Vec::<(usize, String)>::new();
    // Whether the last word ends with `from` or `on`.
    let mut is_open = false;
    for (number, word) in (1..).zip(words) {
        let is_keyword = |part: &str| matches!(part, "from" | "on");
        let goes_on = is_open || word.split_whitespace().next().is_some_and(is_keyword);
        match texts.last_mut() {
            Some((_, text)) if goes_on => {
                text.push(' ');
                text.push_str(word);
            }
            _ => texts.push((number, word.clone())),
        }
        // What is behind a keyword is none: an interface can be called `on`.
        for part in word.split_whitespace() {
            is_open = !is_open && is_keyword(part);
        }
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
