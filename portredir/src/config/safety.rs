//! How careful a change is to be.

use std::time::Duration;

/// What all changes may be asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChangeOptions {
    /// Do not refuse what may lock somebody out.
    pub force: bool,
    /// Take the change back unless it is confirmed within this time.
    pub confirm: Option<Duration>,
    /// Only tell what would be done.
    pub dry_run: bool,
}
