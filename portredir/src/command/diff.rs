//! The difference that a change makes, as lines that can be typed.

use crate::controller::change::Diff;

/// The removed rules, then the added ones, then those with another label, then options: a line
/// each.
#[must_use]
pub fn text(diff: &Diff) -> String {
    let lines = rules(diff).chain(options(diff));
    lines.map(|line| line + "\n").collect()
}

/// A line for each rule; the old text and the new one of a rule with another label.
pub(super) fn rules(diff: &Diff) -> impl Iterator<Item = String> {
    let removed = diff.removed.iter().map(|rule| format!("- {rule}"));
    let added = diff.added.iter().map(|rule| format!("+ {rule}"));
    let relabelled = diff.relabelled.iter();
    let relabelled = relabelled.flat_map(|(old, new)| [format!("- {old}"), format!("+ {new}")]);
    removed.chain(added).chain(relabelled)
}

/// A line for each option that is switched.
pub(super) fn options(diff: &Diff) -> impl Iterator<Item = String> {
    let switched = diff.switched.iter();
    switched.map(|(name, is_on)| format!("{} {name}", if *is_on { '+' } else { '-' }))
}
