//! Lists of rules, and the origin of each rule.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::{Rule, RuleError};

/// The origin of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The rule is one of the running rules.
    #[default]
    Running,
    /// The position of the command-line argument, counting from 1.
    Argument(usize),
    /// A line of a file.
    File {
        /// The path of the file.
        path: PathBuf,
        /// The line, counting from 1.
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

/// A rule with its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced {
    /// The rule.
    pub rule: Rule,
    /// The origin of the rule.
    pub origin: Origin,
}

impl Sourced {
    /// One of the running rules.
    #[must_use]
    pub const fn running(rule: Rule) -> Self {
        Self {
            rule,
            origin: Origin::Running,
        }
    }
}

/// A text that is no rule, with its origin.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{origin}: {error}")]
pub struct SourcedError {
    /// The origin of the text.
    pub origin: Origin,
    /// The mistake.
    pub error: Box<RuleError>,
}

/// Parses rules from words of a command line. The words `from` and `on`, and the word
/// after each, belong to the rule before.
///
/// # Errors
///
/// [`SourcedError`], with the position of the argument.
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
        // The word after a keyword is no keyword: an interface can be called `on`.
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
