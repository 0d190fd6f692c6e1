//! The outcome of one run of a case, whatever becomes of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::FAILED;
use super::observe::Observation;
use crate::lab::checksum;
use crate::lab::namespace::Namespace;
use crate::lab::process::{DEADLINE, NOTES, note};

/// A case that takes longer has failed. They run beside each other, and maybe
/// beside much else.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The outcome of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In words.
    Seen(String),
    /// The kernel cannot do it.
    Skipped(String),
}

/// Whether to tell how long things take.
pub fn has_times() -> bool {
    std::env::var_os("PORTREDIR_TIMES").is_some()
}

/// Tells how long a case took with a subject, when it is asked to.
pub fn tell_time(subject: impl std::fmt::Debug, case: &str, start: Instant) {
    if has_times() {
        eprintln!("{subject:?} {case}: {:?}", start.elapsed());
    }
}

/// Adds that bad checksums arrived in some of the namespaces, if they did.
pub fn watched<const N: usize>(
    all: [&Namespace; N],
    run: impl FnOnce() -> Observation,
) -> Observation {
    let before = all.map(checksum::errors);
    let observation = run();
    let after = all.map(checksum::errors);
    if before == after {
        observation
    } else {
        observation.and("bad checksum counted")
    }
}

/// Runs a case, which has failed when it takes too long or panics.
pub fn observe(run: impl FnOnce() -> Observation) -> Outcome {
    let before = DEADLINE.replace(Some(Instant::now() + LIMIT));
    let outcome = caught(run).map(|seen| Outcome::Seen(seen.to_string()));
    DEADLINE.set(before);
    outcome.unwrap_or_else(|outcome| outcome)
}

/// Runs a function, and returns the text of its panic or the reason of its skip.
pub fn caught<T>(run: impl FnOnce() -> T) -> Result<T, Outcome> {
    let before = NOTES.take();
    let result = catch_unwind(AssertUnwindSafe(run));
    let notes = NOTES.replace(before);
    result.map_err(|panic| match panic.downcast::<crate::Skip>() {
        Ok(skip) => Outcome::Skipped(skip.reason()),
        Err(_) => {
            note(&notes);
            let line = notes.lines().next().unwrap_or("a panic");
            Outcome::Seen(format!("{FAILED}{line}"))
        }
    })
}
