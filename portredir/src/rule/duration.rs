//! Durations as people write them: `2s`, `500ms`, `1min30s`.

use std::time::Duration;

/// The units of durations, in seconds.
const UNITS: [(&str, f64); 6] = [
    ("ms", 0.001),
    ("min", 60.0),
    ("sec", 1.0),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// The number of seconds that a text means; a number without a unit is in seconds.
#[must_use]
pub fn seconds(text: &str) -> Option<f64> {
    let text = text.trim();
    text.parse().ok().or_else(|| with_units(text))
}

/// The sum of numbers that each have a unit.
fn with_units(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut seconds = 0.0;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let tail = tail.trim_start();
        let unit = tail.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, tail) = tail.split_at(unit.unwrap_or(tail.len()));
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds += number * factor;
        rest = tail.trim_start();
        if rest.is_empty() {
            return Some(seconds);
        }
    }
}

/// The text of a duration of whole milliseconds.
#[must_use]
pub(super) fn text(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms.is_multiple_of(1000) {
        format!("{}s", ms / 1000)
    } else {
        format!("{ms}ms")
    }
}
