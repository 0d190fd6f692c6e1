//! The commands. They read the command line, let the change be planned and applied, and
//! print; nothing below this folder prints.

pub mod change;
pub mod completions;
pub mod connections;
pub mod diff;
pub mod doctor;
pub mod error;
pub mod event;
pub mod explain;
pub mod features;
pub mod import;
mod journal;
pub mod lines;
mod listening;
mod live;
pub mod log;
pub mod man;
pub mod metrics;
#[cfg(test)]
mod picture;
pub mod plan;
mod progress;
pub mod read;
pub mod run;
#[cfg(test)]
mod stage;
pub mod status;
pub mod targets;
pub mod top;
pub mod trace;

use std::io::{self, Write as _};

use anyhow::Context as _;

use crate::config::safety::ChangeOptions;
use crate::controller::check_limits;
use crate::observe::report::counted;

/// Writes to standard output. A reader that has gone, such as `head`, is no error.
///
/// # Errors
///
/// Standard output refuses the text.
pub fn print(text: &str) -> anyhow::Result<()> {
    ignore_closed(try_print(text))
}

/// A reader that has gone, such as `head`, is no error.
fn ignore_closed(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write to standard output"),
    }
}

fn try_print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Says a line: on standard error, or in the live view while it has the terminal.
pub fn say(line: &str) {
    lines::say(line);
}

/// A number of things and their noun: `1 rule`, `2 rules`.
fn count(number: usize, noun: &str) -> String {
    counted(u64::try_from(number).unwrap_or(u64::MAX), noun)
}

/// Prints how to confirm a change that is rolled back otherwise.
fn print_pending(options: ChangeOptions) {
    if let Some(within) = options.confirm {
        say(&format!(
            "this change is rolled back in {} s unless confirmed: portredir confirm",
            within.as_secs_f64()
        ));
    }
}
