//! Lists of rules, with the place where each was written.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::parse::{has_value, is_comment, is_keyword};
use super::{Label, Labelled, Name, Rule, RuleError};

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

/// A rule, its label, and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced {
    /// The rule.
    pub rule: Rule,
    /// The label of the rule.
    pub label: Label,
    /// The place where the rule was written.
    pub origin: Origin,
}

impl Sourced {
    /// Makes a running rule.
    #[must_use]
    pub fn running(rule: impl Into<Labelled>) -> Self {
        let Labelled { rule, label } = rule.into();
        Self {
            rule,
            label,
            origin: Origin::Running,
        }
    }

    /// Reads a rule.
    ///
    /// # Errors
    ///
    /// [`SourcedError`], with the place.
    pub fn parse(text: &str, origin: Origin) -> Result<Self, SourcedError> {
        match text.parse() {
            Ok(Labelled { rule, label }) => Ok(Self {
                rule,
                label,
                origin,
            }),
            Err(error) => {
                let error = Box::new(error);
                Err(SourcedError { origin, error })
            }
        }
    }
}

/// A word that stands for running rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meant {
    /// All rules with this name, which was written at this place.
    Name(Name, Origin),
    /// One rule.
    Rule(Sourced),
}

impl Meant {
    /// The rule.
    ///
    /// # Errors
    ///
    /// [`SourcedError`]: a name is no rule.
    pub fn rule(self) -> Result<Sourced, SourcedError> {
        match self {
            Self::Rule(rule) => Ok(rule),
            Self::Name(name, place) => Sourced::parse(&name.to_string(), place),
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

/// Reads rules from words of a command; `from`, `on`, `name` and the options, with the words after
/// them, belong to the rule before, and so does a word with a comment.
///
/// # Errors
///
/// [`SourcedError`], with the argument.
pub fn from_words(words: &[String]) -> Result<Vec<Sourced>, SourcedError> {
    let read = |(number, text): (_, String)| Sourced::parse(&text, Origin::Argument(number));
    texts(words).into_iter().map(read).collect()
}

/// Reads rules as [`from_words`] does, and names of rules among them.
///
/// # Errors
///
/// [`SourcedError`], with the argument.
pub fn names_from_words(words: &[String]) -> Result<Vec<Meant>, SourcedError> {
    let read = |(number, text): (_, String)| match Name::try_from(text.clone()) {
        Ok(name) => Ok(Meant::Name(name, Origin::Argument(number))),
        Err(_) => Sourced::parse(&text, Origin::Argument(number)).map(Meant::Rule),
    };
    texts(words).into_iter().map(read).collect()
}

/// The texts of rules, each with the number of its first word.
fn texts(words: &[String]) -> Vec<(usize, String)> {
    let mut texts = Vec::<(usize, String)>::new();
    // Whether the last word ends with a keyword that has a value.
    let mut is_open = false;
    // Whether the last text ends with a comment.
    let mut is_closed = false;
    for (number, word) in (1..).zip(words) {
        let is_more = |part: &str| is_keyword(part) || is_comment(part);
        let begins_more = word.split_whitespace().next().is_some_and(is_more);
        match texts.last_mut() {
            Some((_, text)) if is_open || (begins_more && !is_closed) => {
                text.push(' ');
                text.push_str(word);
            }
            _ => texts.push((number, word.clone())),
        }
        is_closed = false;
        // The word after a keyword is not a keyword: an interface can have the name `on`.
        for part in word.split_whitespace() {
            if !is_open && is_comment(part) {
                is_closed = true;
                break;
            }
            is_open = !is_open && has_value(part);
        }
    }
    texts
}
