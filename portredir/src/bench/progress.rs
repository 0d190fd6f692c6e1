//! The progress on stderr: a bar with the remaining time on a terminal,
//! else a line for each step.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The progress of a whole benchmark.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// The progress of work that takes about this long, in microseconds.
    #[must_use]
    pub fn new(work_us: u64) -> Self {
        let target = ProgressDrawTarget::stderr();
        let bar = ProgressBar::with_draw_target(Some(work_us), target);
        let style = ProgressStyle::with_template("{bar:30} {percent:>3}%, {eta} left: {msg}");
        bar.set_style(style.expect("a template that is right"));
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }

    /// Tells what is done now.
    pub fn step(&self, what: String) {
        if self.0.is_hidden() {
            eprintln!("{what}");
        } else {
            self.0.set_message(what);
        }
    }

    /// Tells that as much of the work is done.
    pub fn advance(&self, work_us: u64) {
        self.0.inc(work_us);
    }

    /// Prints a line that stays.
    pub fn note(&self, line: &str) {
        if self.0.is_hidden() {
            eprintln!("{line}");
        } else {
            self.0.println(line);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
