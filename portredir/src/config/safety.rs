//! How carefully a change is made.

use std::time::Duration;

/// The options of every change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChangeOptions {
    /// Allow rules for ports by which the host is administered.
    pub force: bool,
    /// Roll the change back unless it is confirmed within this time.
    pub confirm: Option<Duration>,
    /// Only show what would change.
    pub dry_run: bool,
}
