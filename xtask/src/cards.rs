//! The table of outcomes by network card, engine and test.

use std::collections::BTreeSet;

use crate::report::Counts;

/// The names of the tests of cards begin so; then come the driver, the engine and the
/// test.
pub const TESTS: &str = "card/";

/// The beginning of what a test saw where the program has to refuse an engine, and does.
const REFUSED: &str = "refused: ";

/// The table for a document. What a test saw is a note below the table.
pub fn table(counts: &Counts) -> String {
    let outcomes = outcomes(counts);
    let parts = || outcomes.iter().filter_map(|(name, _)| parts(name));
    let tests: BTreeSet<_> = parts().map(|[_, _, test]| test).collect();
    let mut rows = Vec::new();
    for row in parts().map(|[driver, engine, _]| [driver, engine]) {
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    let mut notes = Vec::new();
    let heads: String = tests.iter().map(|test| format!(" {test} |")).collect();
    let rule = "---|".repeat(tests.len());
    let mut text = format!("| driver | engine |{heads}\n|---|---|{rule}\n");
    for [driver, engine] in rows {
        text += &format!("| {driver} | {engine} |");
        for test in &tests {
            let name = format!("{TESTS}{driver}/{engine}/{test}");
            let outcome = outcomes.iter().find(|(found, _)| *found == name);
            let outcome = outcome.map_or("", |(_, outcome)| outcome);
            let seen = counts.seen.get(&name);
            // The test has passed: the program refuses, and says why.
            let is_refused = outcome == "ok" && seen.is_some_and(|seen| seen.starts_with(REFUSED));
            text += &format!(" {}", if is_refused { "refused" } else { outcome });
            if let Some(seen) = seen {
                let note = seen.strip_prefix(REFUSED).unwrap_or(seen);
                text += &format!(" ({})", number(&mut notes, note));
            }
            text += " |";
        }
        text.push('\n');
    }
    for (number, note) in (1..).zip(notes) {
        text += &format!("\n{number}. {note}");
    }
    text
}

/// The number of a note; equal notes share one.
fn number<'a>(notes: &mut Vec<&'a str>, note: &'a str) -> usize {
    let place = notes.iter().position(|known| *known == note);
    place.unwrap_or_else(|| {
        notes.push(note);
        notes.len() - 1
    }) + 1
}

/// The names of tests with their outcomes, sorted.
fn outcomes(counts: &Counts) -> Vec<(String, String)> {
    let passes = counts.passes.iter().map(|name| (name, "ok".to_owned()));
    let failures = counts
        .failures
        .iter()
        .map(|name| (name, "**failed**".to_owned()));
    let mut all: Vec<_> = passes
        .chain(failures)
        .map(|(name, outcome)| (name.clone(), outcome))
        .collect();
    all.extend(counts.skips.iter().filter_map(|skip| {
        let (name, reason) = skip.split_once(": ")?;
        Some((name.to_owned(), format!("not run: {reason}")))
    }));
    all.sort();
    all
}

/// Driver, engine and test.
fn parts(name: &str) -> Option<[&str; 3]> {
    let parts: Vec<_> = name.strip_prefix(TESTS)?.split('/').collect();
    parts.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_for_each_engine_and_a_note_for_what_was_seen() {
        let mut counts = Counts::default();
        for line in [
            "seen\tcard/igb/xdp/load\tthe link is reset",
            "seen\tcard/igb/auto/load\tthe link is reset",
            "seen\tcard/igb/xdp/vlan\trefused: no native XDP",
            "test card/igb/xdp/vlan ... ok",
            "test card/igb/xdp/load ... ok",
            "test card/igb/auto/load ... FAILED",
            "test card/igb/auto/vlan ... ignored (needs CONFIG_VLAN_8021Q)",
            "test tc/http ... ok",
        ] {
            counts.read(line);
        }
        assert_eq!(
            table(&counts),
            "| driver | engine | load | vlan |\n\
             |---|---|---|---|\n\
             | igb | auto | **failed** (1) | not run: needs CONFIG_VLAN_8021Q |\n\
             | igb | xdp | ok (1) | refused (2) |\n\n\
             1. the link is reset\n\
             2. no native XDP"
        );
    }
}
