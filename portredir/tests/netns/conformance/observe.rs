//! The observations of a case, in words that do not depend on the engine, the
//! time or the names of a run.

use std::fmt::{self, Display, Formatter};
use std::io;

/// Facts, in the order in which they were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation(Vec<String>);

impl Observation {
    /// One fact.
    pub fn of(fact: impl Into<String>) -> Self {
        Self(vec![fact.into()])
    }

    /// Adds a fact.
    pub fn and(mut self, fact: impl Into<String>) -> Self {
        self.0.push(fact.into());
        self
    }

    /// Adds the facts of another one, under a name.
    pub fn with(mut self, name: &str, other: &Self) -> Self {
        self.0.push(format!("{name}: {other}"));
        self
    }
}

impl FromIterator<String> for Observation {
    fn from_iter<T: IntoIterator<Item = String>>(facts: T) -> Self {
        Self(facts.into_iter().collect())
    }
}

impl Display for Observation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// Why a conversation failed.
pub fn failure(error: &io::Error) -> &'static str {
    // The errors of a `connect` that took too long; the second one where it was interrupted
    // and went on.
    if let Some(libc::EINPROGRESS | libc::EALREADY) = error.raw_os_error() {
        return "no answer";
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused",
        io::ErrorKind::ConnectionReset => "reset",
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer",
        io::ErrorKind::UnexpectedEof => "connection closed",
        io::ErrorKind::HostUnreachable => "host unreachable",
        io::ErrorKind::InvalidInput => "invalid argument",
        _ => "another error",
    }
}

/// `good`, or what else.
pub fn check(is_good: bool, good: &str) -> String {
    if is_good {
        good.to_owned()
    } else {
        format!("not so: {good}")
    }
}
