//! Work that takes a while: a line that changes, in the live view or on the terminal.

use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::lines;

/// The line on standard error.
static LINE: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Shows what goes on, or, with `None`, that it is over. Where standard error is no
/// terminal nothing is shown.
pub fn show(work: Option<String>) {
    let is_shown = lines::is_work_shown(work.as_deref());
    let mut line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
    match work.filter(|_| !is_shown) {
        Some(work) => line.get_or_insert_with(spinner).set_message(work),
        None => {
            if let Some(line) = line.take() {
                line.finish_and_clear();
            }
        }
    }
}

fn spinner() -> ProgressBar {
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {msg}");
    spinner.set_style(style.expect("a template that is right"));
    spinner
}
