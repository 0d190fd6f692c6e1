//! The errors in the text of a rule.

use std::fmt::Write as _;

use thiserror::Error;

use super::Rule;

/// An error in the text of a rule, with its place.
///
/// The last line of the message has a valid spelling in backticks: a rule, or a condition
/// or protocol to add to one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("bad rule `{text}`: {problem}\n    {text}\n    {caret:>width$}\n  {hint}", width = self.at + 1, caret = '^')]
pub struct RuleError {
    /// The text of the rule, with a visible character in place of each control character.
    text: String,
    /// The number of characters before the wrong one.
    at: usize,
    problem: String,
    hint: String,
}

/// The syntax of a rule, with an example.
pub(super) const EXAMPLE: &str = "a rule is [ADDR:]PORT[-PORT]:[HOST:]PORT[-PORT][/tcp|/udp|/both] [from CIDR] \
     [on IFACE,…], for example `80:8080`, `53:5353/udp` or `80:10.0.0.5:8080`";

impl RuleError {
    pub(super) fn new(text: &str, at_bytes: usize, problem: String, hint: String) -> Self {
        Self {
            text: text.chars().map(visible).collect(),
            at: text[..at_bytes].chars().count(),
            problem: problem.chars().map(visible).collect(),
            hint: hint.chars().map(visible).collect(),
        }
    }

    /// The number of characters before the wrong one; the length of the text if something
    /// is missing at its end.
    #[must_use]
    pub const fn at(&self) -> usize {
        self.at
    }

    /// The hint: a valid spelling.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

/// Replaces a control character: a line break would separate the caret from its place,
/// and an escape sequence would reach the terminal.
pub(super) const fn visible(c: char) -> char {
    match c {
        // The pictures of control characters are in the same order.
        '\0'..='\x1f' => match char::from_u32(0x2400 + c as u32) {
            Some(picture) => picture,
            None => c,
        },
        '\x7f' => '␡',
        '\u{80}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' => '�',
        _ => c,
    }
}

/// The canonical text if this is a rule, otherwise an example.
pub(super) fn right(text: &str, example: &str) -> String {
    match text.parse::<Rule>() {
        // The name of an interface can have a backtick.
        Ok(rule) if !text.contains('`') => rule.to_string(),
        _ => example.to_owned(),
    }
}

/// Several valid spellings, as `80:8080` `81:8081`.
pub(super) fn spelled<T: std::fmt::Display>(rules: impl IntoIterator<Item = T>) -> String {
    rules.into_iter().fold(String::new(), |mut text, rule| {
        let gap = if text.is_empty() { "" } else { " " };
        write!(text, "{gap}`{rule}`").expect("a string takes all");
        text
    })
}
