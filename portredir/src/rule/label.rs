//! Labels of rules: a name, by which commands find a rule, and a comment for people.
//!
//! No packet meets a label. A rule with another label is therefore the same rule: its flows and
//! counters go on.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Rule;
use super::error::visible;
use super::parse::is_keyword;

/// The longest name, in bytes.
const LONGEST_NAME: usize = 63;

/// The longest comment, in characters.
const LONGEST_COMMENT: usize = 200;

/// The reason why a text is no name or no comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LabelError {
    /// A name has other characters, or none.
    #[error("a name begins with a letter and has letters, digits, `.`, `_` and `-`")]
    NameCharacters,
    /// A name is too long.
    #[error("a name has {LONGEST_NAME} characters at most")]
    NameLength,
    /// A name would begin a condition or an option.
    #[error("a word of rules cannot be a name")]
    NameKeyword,
    /// A comment has no words.
    #[error("the comment is empty")]
    CommentEmpty,
    /// A comment has a line break or another control character.
    #[error("a comment is one line without control characters")]
    CommentCharacters,
    /// A comment is too long.
    #[error("a comment has {LONGEST_COMMENT} characters at most")]
    CommentLength,
}

/// The name of a rule. No name can be taken for a rule, which begins with a digit or has a
/// colon.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl TryFrom<String> for Name {
    type Error = LabelError;

    fn try_from(text: String) -> Result<Self, LabelError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !text.starts_with(|c: char| c.is_ascii_alphabetic()) || !text.chars().all(is_plain) {
            return Err(LabelError::NameCharacters);
        }
        if text.len() > LONGEST_NAME {
            return Err(LabelError::NameLength);
        }
        if is_keyword(&text) {
            return Err(LabelError::NameKeyword);
        }
        Ok(Self(text))
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The comment of a rule: one line, without spaces at its ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Comment(String);

impl TryFrom<String> for Comment {
    type Error = LabelError;

    fn try_from(text: String) -> Result<Self, LabelError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(LabelError::CommentEmpty);
        }
        if text.chars().any(|c| visible(c) != c) {
            return Err(LabelError::CommentCharacters);
        }
        if text.chars().count() > LONGEST_COMMENT {
            return Err(LabelError::CommentLength);
        }
        Ok(Self(text.to_owned()))
    }
}

impl From<Comment> for String {
    fn from(comment: Comment) -> Self {
        comment.0
    }
}

impl fmt::Display for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The label of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The name. Several rules may have one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// The comment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Comment>,
}

impl Label {
    /// Whether there is neither a name nor a comment.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.name.is_none() && self.comment.is_none()
    }

    /// The name and the comment of this label, each else that of another one.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            name: self.name.or_else(|| other.name.clone()),
            comment: self.comment.or_else(|| other.comment.clone()),
        }
    }
}

/// Writes ` name web # OPS-1`, the end of the text of a rule.
impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, " name {name}")?;
        }
        match &self.comment {
            Some(comment) => write!(f, " # {comment}"),
            None => Ok(()),
        }
    }
}

/// A rule with its label, as people write it: `80:8080 name web # OPS-1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// The rule.
    pub rule: Rule,
    /// The label.
    pub label: Label,
}

impl From<Rule> for Labelled {
    fn from(rule: Rule) -> Self {
        let label = Label::default();
        Self { rule, label }
    }
}

/// Writes the canonical text, which parses to the same rule and label.
impl fmt::Display for Labelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.rule, self.label)
    }
}

/// The labels of a list of rules, by the canonical text of each rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(BTreeMap<String, Label>);

impl Labels {
    /// Whether no rule has a label.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets the label of a rule.
    pub fn set(&mut self, rule: &Rule, label: Label) {
        if !label.is_empty() {
            self.0.insert(rule.to_string(), label);
        } else if !self.0.is_empty() {
            self.0.remove(&rule.to_string());
        }
    }

    /// A rule with its label.
    #[must_use]
    pub fn label(&self, rule: &Rule) -> Labelled {
        let mut labelled = Labelled::from(rule.clone());
        if !self.0.is_empty()
            && let Some(label) = self.0.get(&rule.to_string())
        {
            labelled.label = label.clone();
        }
        labelled
    }

    /// Removes the labels of all rules but these.
    pub fn keep(&mut self, rules: &[Rule]) {
        if self.0.is_empty() {
            return;
        }
        let texts: HashSet<_> = rules.iter().map(ToString::to_string).collect();
        self.0.retain(|rule, _| texts.contains(rule));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(text: &str) -> Labelled {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_label_is_at_the_end_of_a_rule_and_comes_back() {
        for (text, canonical, name, comment) in [
            ("80:8080", "80:8080", None, None),
            ("80:8080 name web", "80:8080 name web", Some("web"), None),
            ("80:8080 #OPS-1", "80:8080 # OPS-1", None, Some("OPS-1")),
            (
                "53:5353/udp name dns.1 on eth0 #  # why: \"x\" from 10/8  ",
                "53:5353/udp on eth0 name dns.1 # # why: \"x\" from 10/8",
                Some("dns.1"),
                Some("# why: \"x\" from 10/8"),
            ),
            (
                "80:8080,10.0.0.5:8080 name Web_2-b cut # ü",
                "80:8080,10.0.0.5:8080 cut name Web_2-b # ü",
                Some("Web_2-b"),
                Some("ü"),
            ),
            ("80:8080 on #x", "80:8080 on #x", None, None),
            (
                "port=80:proto=tcp:toport=8080 name web",
                "80:8080 name web",
                Some("web"),
                None,
            ),
        ] {
            let read = labelled(text);
            assert_eq!(read.to_string(), canonical, "{text}");
            assert_eq!(labelled(canonical), read, "{text}");
            let label = &read.label;
            assert_eq!(
                label.name.as_ref().map(ToString::to_string).as_deref(),
                name
            );
            let read = label.comment.as_ref().map(ToString::to_string);
            assert_eq!(read.as_deref(), comment, "{text}");
        }
    }

    #[test]
    fn rules_with_other_labels_are_equal() {
        let rule = |text: &str| labelled(text).rule;
        assert_eq!(rule("80:8080 name web # a"), rule("80:8080"));
        assert_eq!("80:8080 # a".parse::<Rule>(), Ok(rule("80:8080")));
    }

    #[test]
    fn wrong_labels_are_refused_with_the_place() {
        let long = format!("80:8080 name {}", "n".repeat(64));
        let wordy = format!("80:8080 # {}", "n".repeat(201));
        for (text, at, problem) in [
            ("80:8080 name", 12, "expected a name after `name`"),
            ("80:8080 name 1web", 13, "begins with a letter"),
            ("80:8080 name we,b", 13, "begins with a letter"),
            ("80:8080 name from", 13, "a word of rules"),
            ("80:8080 name affinity", 13, "a word of rules"),
            ("80:8080 name a name b", 15, "`name` is given twice"),
            (&long, 13, "63 characters"),
            ("80:8080 #", 8, "the comment is empty"),
            ("80:8080 # \t ", 8, "the comment is empty"),
            ("80:8080 # a\nb", 8, "one line without control"),
            ("80:8080 # a\u{202e}b", 8, "one line without control"),
            (&wordy, 8, "200 characters"),
            ("80:8080# OPS-1", 7, "the rule should end here"),
        ] {
            let error = text.parse::<Labelled>().expect_err(text);
            assert_eq!(error.at(), at, "{error}");
            assert!(error.to_string().contains(problem), "{error}");
        }
        let longest = format!("80:8080 name {} # {}", "n".repeat(63), "ü".repeat(200));
        labelled(&longest);
    }

    #[test]
    fn labels_are_kept_by_the_text_of_their_rules() {
        let (web, dns) = (labelled("80:8080 name web"), labelled("53:5353/udp # x"));
        let mut labels = Labels::default();
        for Labelled { rule, label } in [&web, &dns] {
            labels.set(rule, label.clone());
        }
        assert_eq!(labels.label(&web.rule), web);
        let json = serde_json::to_string(&labels).expect("JSON");
        assert_eq!(
            json,
            r#"{"53:5353/udp":{"comment":"x"},"80:8080":{"name":"web"}}"#
        );
        assert_eq!(
            serde_json::from_str::<Labels>(&json).expect("labels"),
            labels
        );
        for wrong in [
            r#"{"80:8080":{"name":"1"}}"#,
            r#"{"80:8080":{"comment":" "}}"#,
        ] {
            serde_json::from_str::<Labels>(wrong).expect_err(wrong);
        }
        labels.keep(std::slice::from_ref(&dns.rule));
        assert_eq!(labels.label(&web.rule), web.rule.clone().into());
        labels.set(&dns.rule, Label::default());
        assert!(labels.is_empty());
    }

    #[test]
    fn a_name_is_never_taken_for_a_rule() {
        for text in ["web", "a", "Web-2.b_c", "http"] {
            Name::try_from(text.to_owned()).expect(text);
            text.parse::<Rule>().expect_err(text);
        }
        for text in [
            "80",
            "80:8080",
            "http:8080",
            "port=80",
            "[::1]:80:81",
            "a b",
            "from",
            "",
        ] {
            Name::try_from(text.to_owned()).expect_err(text);
        }
    }
}
