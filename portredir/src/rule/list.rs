//! Rules beside each other, and where each was written.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::{Rule, RuleError};

/// Where a rule was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The rule is running already.
    #[default]
    Running,
    /// The position of the command-line argument, counting from 1.
    Argument(usize),
    /// A line of a file.
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
    /// The place where the text was written.
    pub origin: Origin,
    /// The error in the text.
    pub error: Box<RuleError>,
}

/// Reads rules from words of a command; `from` and `on`, with the text after
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
        // A word after a keyword is no keyword: an interface can be called `on`.
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
