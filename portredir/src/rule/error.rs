//! Errors in the text of a rule.

use std::fmt::Write as _;

use thiserror::Error;

use super::Rule;

/// An error in the text of a rule, and the place of the error.
///
/// Text in backticks in the last line of the message is valid: a rule, or a condition
/// or protocol that goes after one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("bad rule `{text}`: {problem}\n    {text}\n    {caret:>width$}\n  {hint}", width = self.at + 1, caret = '^')]
pub struct RuleError {
    /// Without control characters, of which each is one other character here.
    text: String,
    /// Characters before the one at fault.
    at: usize,
    problem: String,
    hint: String,
}

/// The syntax of a rule, with examples.
pub(super) const EXAMPLE: &str = "a rule is [ADDR:]PORT[-PORT]:PORT[-PORT][/tcp|/udp|/both] [from CIDR] \
     [on IFACE,…], for example `80:8080` or `53:5353/udp`";

impl RuleError {
    pub(super) fn new(text: &str, at_bytes: usize, problem: String, hint: String) -> Self {
        Self {
            text: text.chars().map(visible).collect(),
            at: text[..at_bytes].chars().count(),
            problem: problem.chars().map(visible).collect(),
            hint: hint.chars().map(visible).collect(),
        }
    }

    /// How many characters come before the one at fault: as many as the text has
    /// when something is missing at its end.
    #[must_use]
    pub const fn at(&self) -> usize {
        self.at
    }

    /// The correction to suggest.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

/// A line break would tear the caret from what it points at, and an escape
/// sequence would reach the terminal.
pub(super) const fn visible(c: char) -> char {
    match c {
        // The pictures of control characters are in their order.
        '\0'..='\x1f' => match char::from_u32(0x2400 + c as u32) {
            Some(picture) => picture,
            None => c,
        },
        '\x7f' => '␡',
        '\u{80}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' => '�',
        _ => c,
    }
}

/// A text as it is printed when it is a rule, else an example.
pub(super) fn right(text: &str, example: &str) -> String {
    match text.parse::<Rule>() {
        // The name of an interface can have one.
        Ok(rule) if !text.contains('`') => rule.to_string(),
        _ => example.to_owned(),
    }
}

/// Several right spellings, as `80:8080` `81:8081`.
pub(super) fn spelled<T: std::fmt::Display>(rules: impl IntoIterator<Item = T>) -> String {
    rules.into_iter().fold(String::new(), |mut text, rule| {
        let gap = if text.is_empty() { "" } else { " " };
        write!(text, "{gap}`{rule}`").expect("a string takes all");
        text
    })
}
