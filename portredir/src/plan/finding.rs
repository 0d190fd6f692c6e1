//! The result of an examination.

use std::fmt;

use serde::Serialize;

/// The width of a line of text.
const WIDTH: usize = 80;

/// The weight of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Clients of a rule get no answer, or the rule does nothing.
    Error,
    /// Some clients get no answer, or others lose something.
    Warning,
    /// A fact that may be wanted.
    Note,
}

impl Severity {
    /// The name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// Something that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The weight.
    pub severity: Severity,
    /// The check.
    pub check: &'static str,
    /// The fact.
    pub what: String,
    /// The reason why the fact matters.
    pub why: String,
    /// The command that mends it.
    pub fix: String,
}

/// A check that could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unchecked {
    /// The check.
    pub check: &'static str,
    /// The reason.
    pub why: String,
}

/// A check that was made and found nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// The check.
    pub check: &'static str,
    /// The state of what was checked.
    pub fact: String,
}

/// The results of all checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// The findings; the heaviest come first.
    pub findings: Vec<Finding>,
    /// The checks that could not be made.
    pub unchecked: Vec<Unchecked>,
    /// The checks that found nothing.
    pub passed: Vec<Passed>,
}

impl Diagnosis {
    /// Adds a finding: the fact, its reason and its cure.
    pub fn find(&mut self, check: &'static str, severity: Severity, [what, why, fix]: [String; 3]) {
        self.findings.push(Finding {
            severity,
            check,
            what,
            why,
            fix,
        });
    }

    /// Adds a check that could not be made.
    pub fn not_checked(&mut self, check: &'static str, why: impl ToString) {
        let why = why.to_string();
        self.unchecked.push(Unchecked { check, why });
    }

    /// Adds a check that found nothing, unless it found something.
    pub fn pass(&mut self, check: &'static str, fact: impl ToString) {
        let is_open = self.findings.iter().any(|finding| finding.check == check)
            || self
                .unchecked
                .iter()
                .any(|unchecked| unchecked.check == check);
        if !is_open {
            let fact = fact.to_string();
            self.passed.push(Passed { check, fact });
        }
    }
}

/// Writes the fact, its reason and its cure; every line ends with a line break.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = format!("{}: ", self.severity.name());
        f.write_str(&wrapped(&first, &self.what))?;
        f.write_str(&wrapped("  why: ", &self.why))?;
        f.write_str(&wrapped("  fix: ", &self.fix))
    }
}

/// Lines of at most `WIDTH` characters, where words allow it. Commands stay whole, so that
/// they can be copied.
#[must_use]
pub fn wrapped(first: &str, text: &str) -> String {
    let is_fix = first.contains("fix");
    let mut lines = vec![first.to_owned()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("a line");
        let is_begun = !line.ends_with(' ');
        let space = usize::from(is_begun);
        let is_long = line.chars().count() + space + word.chars().count() > WIDTH;
        if is_long && is_begun && !is_fix {
            lines.push(format!("    {word}"));
        } else {
            if is_begun {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}
