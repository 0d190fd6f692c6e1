//! The logger of this program: standard error, as `RUST_LOG` and `-v` say, and for a process
//! that stays, warnings also to the log of the system. Nobody reads the standard error of a
//! detached watcher.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::journal;
use crate::sys::syslog::Severity;

/// The time in which one warning is not written a second time: work that fails is tried
/// again and again.
const ONCE: Duration = Duration::from_secs(60);

/// The most warnings that are remembered.
const MOST: usize = 64;

/// Whether warnings are written to the log of the system, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// Warnings are written there.
    Warnings,
    /// Standard error is enough.
    Off,
}

struct Logger {
    stderr: env_logger::Logger,
    journal: Journal,
    recent: Mutex<Recent>,
}

/// Begins to log, to `target`. `default` is the filter where `RUST_LOG` names none.
pub fn init(default: &str, journal: Journal, target: env_logger::Target) {
    let stderr =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default))
            .format_timestamp_millis()
            .target(target)
            .build();
    let level = match journal {
        Journal::Warnings => stderr.filter().max(LevelFilter::Warn),
        Journal::Off => stderr.filter(),
    };
    let logger = Logger {
        stderr,
        journal,
        recent: Mutex::default(),
    };
    // Only a second logger is refused.
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
}

impl Logger {
    /// Whether a record belongs to the log of the system: one of ours, and no decision
    /// about a packet, of which there may be any number.
    fn is_for_journal(&self, metadata: &Metadata<'_>) -> bool {
        self.journal == Journal::Warnings
            && metadata.level() <= Level::Warn
            && metadata.target().starts_with(env!("CARGO_PKG_NAME"))
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.stderr.enabled(metadata) || self.is_for_journal(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.stderr.matches(record) {
            self.stderr.log(record);
        }
        if !self.is_for_journal(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        let mut recent = self.recent.lock().expect("no thread panics here");
        if recent.is_new(&text, Instant::now()) {
            journal::event(Severity::Warning, &text);
        }
    }

    fn flush(&self) {
        self.stderr.flush();
    }
}

/// The warnings of the last time.
#[derive(Default)]
struct Recent(Vec<(String, Instant)>);

impl Recent {
    /// Whether a text was not written lately; it counts as written then.
    fn is_new(&mut self, text: &str, now: Instant) -> bool {
        self.0.retain(|(_, time)| now.duration_since(*time) < ONCE);
        if self.0.iter().any(|(other, _)| other == text) {
            return false;
        }
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push((text.to_owned(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_warning_is_written_once_a_minute() {
        let mut recent = Recent::default();
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        assert!(recent.is_new("a", later(0)));
        assert!(recent.is_new("b", later(1)));
        assert!(!recent.is_new("a", later(59)));
        assert!(recent.is_new("a", later(60)));
        for number in 0..1000 {
            assert!(recent.is_new(&format!("port {number}"), later(61)));
        }
        assert!(recent.0.len() <= MOST);
    }

    #[test]
    fn only_our_warnings_are_for_the_journal() {
        let logger = |journal| Logger {
            stderr: env_logger::Builder::new().parse_filters("off").build(),
            journal,
            recent: Mutex::default(),
        };
        let metadata = |level, target| Metadata::builder().level(level).target(target).build();
        for (level, target, journal, expected) in [
            (Level::Warn, "portredir::loader", Journal::Warnings, true),
            (Level::Error, "portredir", Journal::Warnings, true),
            (Level::Info, "portredir", Journal::Warnings, false),
            (Level::Warn, "aya::bpf", Journal::Warnings, false),
            (Level::Warn, "portredir", Journal::Off, false),
        ] {
            let is_enabled = logger(journal).enabled(&metadata(level, target));
            assert_eq!(is_enabled, expected, "{level} {target} {journal:?}");
        }
    }
}
