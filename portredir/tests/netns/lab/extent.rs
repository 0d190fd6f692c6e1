//! The extent of tests that could run for ever: some seconds each, unless the
//! environment says otherwise. A longer run executes the same code.

use std::time::{Duration, Instant};

use crate::lab::process::DEADLINE;

/// Flows that are opened and closed: `PORTREDIR_TEST_FLOWS`.
pub fn flows() -> usize {
    usize::try_from(variable("PORTREDIR_TEST_FLOWS", 12_000)).expect("fits")
}

/// How long traffic goes on while everything changes:
/// `PORTREDIR_TEST_SOAK_SECONDS`.
pub fn soak() -> Duration {
    Duration::from_secs(variable("PORTREDIR_TEST_SOAK_SECONDS", 20))
}

/// Whether tests tell what they saw also when it was right:
/// `PORTREDIR_TEST_NOTES`.
pub fn prints_all_notes() -> bool {
    std::env::var_os("PORTREDIR_TEST_NOTES").is_some()
}

fn variable(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => match text.parse() {
            Ok(number) => number,
            Err(error) => panic!("{name}={text}: {error}"),
        },
        Err(_) => default,
    }
}

/// Gives this test more time than others have.
pub fn allow(time: Duration) {
    DEADLINE.set(Some(Instant::now() + time));
}
