//! The log of the system, which keeps changes, repairs and roll-backs: also those of a
//! watcher whose output nobody reads.

use std::os::unix::fs::MetadataExt as _;

use super::diff;
use crate::controller::change::Diff;
use crate::state::stamp::Stamp;
use crate::sys::syslog::{Severity, send};

/// Writes that this process made a change.
pub fn change(verb: &str, diff: &Diff) {
    send(Severity::Notice, &text(verb, &Stamp::now(), diff));
}

/// Writes what has happened, unless standard error, which says it too, goes to the same
/// log.
pub fn event(severity: Severity, text: &str) {
    if !is_stderr_the_journal() {
        send(severity, text);
    }
}

/// The command, the user and the difference.
fn text(verb: &str, stamp: &Stamp, diff: &Diff) -> String {
    const MOST: usize = 20;
    let mut lines: Vec<_> = diff::options(diff).chain(diff::rules(diff)).collect();
    let more = lines.len().saturating_sub(MOST);
    lines.truncate(MOST);
    if more > 0 {
        lines.push(format!("{more} more"));
    }
    let who = stamp.who();
    if lines.is_empty() {
        format!("{verb} by {who}")
    } else {
        format!("{verb} by {who}: {}", lines.join(", "))
    }
}

/// Whether systemd has connected standard error to the journal (systemd.exec(5)).
fn is_stderr_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_line_with_user_and_difference() {
        let json = r#"{"time":"2026-11-28T09:19:27Z","pid":8,"uid":0,"user":"root","login":"eve"}"#;
        let stamp = serde_json::from_str(json).expect("a stamp");
        let rule = |text: &str| text.parse().expect("a rule");
        let diff = Diff {
            removed: vec![rule("80:8080")],
            added: vec![rule("80:9090"), rule("53:5353/udp")],
            relabelled: vec![(rule("81:8081"), rule("81:8081 name web"))],
            switched: vec![("hide-target".to_owned(), true)],
        };
        assert_eq!(
            text("apply", &stamp, &diff),
            "apply by root (logged in as eve): + hide-target, - 80:8080, + 80:9090, + 53:5353/udp, \
             - 81:8081, + 81:8081 name web"
        );
        assert_eq!(
            text("confirm", &stamp, &Diff::default()),
            "confirm by root (logged in as eve)"
        );
        let added = (1..=1000)
            .map(|port| rule(&format!("{port}:8080")))
            .collect();
        let diff = Diff {
            added,
            ..Diff::default()
        };
        assert!(text("up", &stamp, &diff).ends_with("+ 20:8080, 980 more"));
    }
}
