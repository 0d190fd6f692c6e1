//! What a change changes, as lines that can be typed back.

use crate::controller::change::Diff;

/// The rules that go, then those that come, then options: a line each.
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
