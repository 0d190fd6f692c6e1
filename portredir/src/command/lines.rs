//! The lines for people: on standard error, or in the live view while it has the terminal.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{Timestamp, Unit};

/// The number of lines that are kept: older ones are lost.
const MOST: usize = 1000;

/// A line, and the time when it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The time.
    pub time: Timestamp,
    /// The text, without an end of line.
    pub text: String,
}

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// To standard error.
    Stderr,
    /// To standard error, and the live view that is about to begin shows them as well.
    Kept,
    /// To the live view.
    View,
}

struct Lines {
    place: Place,
    kept: VecDeque<Line>,
    /// The number of lines, among the newest, that standard error has not seen.
    unseen: usize,
    /// The work that goes on at the moment, in the words of a person.
    work: Option<String>,
}

/// Whether standard error gets no lines.
static IS_QUIET: AtomicBool = {
    const LOUD: bool = false;
    AtomicBool::new(LOUD)
};

static LINES: Mutex<Lines> = Mutex::new(Lines {
    place: Place::Stderr,
    kept: VecDeque::new(),
    unseen: 0,
    work: None,
});

fn lines() -> MutexGuard<'static, Lines> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says a line, or some. A message that nobody can read ends no redirect, so errors are
/// ignored.
pub fn say(text: &str) {
    let mut lines = lines();
    if lines.place != Place::Stderr {
        let now = Timestamp::now();
        let time = now.round(Unit::Second).unwrap_or(now);
        for text in text.lines().filter(|text| !text.is_empty()) {
            let text = plain(text);
            lines.kept.push_back(Line { time, text });
            lines.unseen += 1;
        }
        let surplus = lines.kept.len().saturating_sub(MOST);
        lines.kept.drain(..surplus);
    }
    let is_seen = lines.place != Place::View || !io::stderr().is_terminal();
    if is_seen {
        lines.unseen = 0;
    }
    drop(lines);
    if is_seen && !IS_QUIET.load(Relaxed) {
        write(text);
    }
}

/// Writes an error to standard error, in every case.
pub fn say_error(text: &str) {
    write(text);
}

/// Says nothing on standard error from now on but errors.
pub fn be_quiet() {
    IS_QUIET.store(true, Relaxed);
}

/// Without the escape sequences and other control characters, which would move the cursor
/// of the live view.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text.chars();
    while let Some(char) = rest.next() {
        match char {
            '\x1b' => {
                // CSI: parameters, and then a letter (ECMA-48, section 5.4).
                let _ = rest.find(|char| char.is_ascii_alphabetic());
            }
            '\t' => plain.push(' '),
            char if char.is_control() => {}
            char => plain.push(char),
        }
    }
    plain
}

fn write(text: &str) {
    let _ = io::stderr()
        .lock()
        .write_all(format!("{text}\n").as_bytes());
}

/// Keeps all further lines for the live view, and says them as before.
pub fn keep() {
    lines().place = Place::Kept;
}

/// Gives the lines to the live view, which has the terminal now.
pub fn show_in_view() {
    let mut lines = lines();
    lines.place = Place::View;
    lines.unseen = 0;
}

/// Gives the lines back to standard error, beginning with those that only the live view
/// has shown.
pub fn show_on_stderr() {
    let mut lines = lines();
    lines.place = Place::Stderr;
    let kept = std::mem::take(&mut lines.kept);
    let unseen = std::mem::take(&mut lines.unseen).min(kept.len());
    lines.work = None;
    drop(lines);
    let unseen: Vec<_> = kept.into_iter().rev().take(unseen).collect();
    unseen.iter().rev().for_each(|line| write(&line.text));
}

/// The newest lines, and the work that goes on.
#[must_use]
pub fn newest(most: usize) -> (Vec<Line>, Option<String>) {
    let lines = lines();
    let skipped = lines.kept.len().saturating_sub(most);
    let newest = lines.kept.iter().skip(skipped).cloned().collect();
    (newest, lines.work.clone())
}

/// Names the work that goes on; `false` when no live view shows it.
#[must_use]
pub fn is_work_shown(work: Option<&str>) -> bool {
    let mut lines = lines();
    lines.work = work.map(ToOwned::to_owned);
    lines.place == Place::View
}

/// A writer of whole lines, for the log.
#[derive(Debug)]
pub struct LineWriter;

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        say(String::from_utf8_lossy(bytes).trim_end_matches('\n'));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_view() {
        for (text, expected) in [
            ("eth0: attached", "eth0: attached"),
            ("\x1b[31mred\x1b[0m end", "red end"),
            ("a\tb\rc\x07", "a bc"),
            ("\x1b[2J", ""),
        ] {
            assert_eq!(plain(text), expected);
        }
    }
}
