//! The difference that a change makes, as lines that can be typed.

use crate::controller::change::Diff;

/// The removed rules, then the added ones, then options: a line each.
#[must_use]
pub fn text(diff: &Diff) -> String {
    let removed = diff.removed.iter().map(|rule| format!("- {rule}\n"));
    let added = diff.added.iter().map(|rule| format!("+ {rule}\n"));
    let switched = diff
        .switched
        .iter()
        .map(|(name, is_on)| format!("{} {name}\n", if *is_on { '+' } else { '-' }));
    removed.chain(added).chain(switched).collect()
}
