//! Lists of rules, with the place where each was written.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::parse::{has_value, is_option};
use super::{Rule, RuleError};

/// The place where a rule was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The rule is already one of the running rules.
    #[default]
    Running,
    /// The command line; the number of the word, from 1.
    Argument(usize),
    /// A file.
    File {
        /// The path of the file.
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
    /// The place where the rule was written.
    pub origin: Origin,
}

impl Sourced {
    /// Makes a running rule.
    #[must_use]
    pub const fn running(rule: Rule) -> Self {
        Self {
            rule,
            origin: Origin::Running,
        }
    }
}

/// A text that is not a rule, and the place where it was written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{origin}: {error}")]
pub struct SourcedError {
    /// The place where the text was written.
    pub origin: Origin,
    /// The error.
    pub error: Box<RuleError>,
}

/// Reads rules from words of a command; `from`, `on` and the options, with the words after
/// them, belong to the rule before.
///
/// # Errors
///
/// [`SourcedError`], with the argument.
pub fn from_words(words: &[String]) -> Result<Vec<Sourced>, SourcedError> {
    let mut texts = Vec::<(usize, String)>::new();
    // Whether the last word ends with a keyword that has a value.
    let mut is_open = false;
    for (number, word) in (1..).zip(words) {
        let is_condition = |part: &str| matches!(part, "from" | "on");
        let is_keyword = |part: &str| is_condition(part) || is_option(part);
        let goes_on = is_open || word.split_whitespace().next().is_some_and(is_keyword);
        match texts.last_mut() {
            Some((_, text)) if goes_on => {
                text.push(' ');
                text.push_str(word);
            }
            _ => texts.push((number, word.clone())),
        }
        // The word after a keyword is not a keyword: an interface can have the name `on`.
        for part in word.split_whitespace() {
            is_open = !is_open && (is_condition(part) || has_value(part));
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
