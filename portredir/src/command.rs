//! The commands. They read the command line, have the change planned and applied,
//! and print; nothing below this folder prints.

pub mod change;
pub mod diff;
pub mod error;
mod event;
pub mod plan;
pub mod read;
pub mod run;

use std::io::{self, Write as _};

use anyhow::Context as _;

use crate::config::safety::ChangeOptions;
use crate::observe::report::counted;

/// Writes to standard output.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("write to standard output")
}

/// A number of things and their noun: `1 rule`, `2 rules`.
fn count(number: usize, noun: &str) -> String {
    counted(u64::try_from(number).unwrap_or(u64::MAX), noun)
}

/// Says how to keep a change that is rolled back otherwise.
fn print_pending(options: ChangeOptions) {
    if let Some(within) = options.confirm {
        eprintln!(
            "this change is rolled back in {} s unless confirmed: portredir confirm",
            within.as_secs_f64()
        );
    }
}
