//! Why rules do not fit into the maps.

use portredir_common::abi::Candidates;
use thiserror::Error;

use super::shadow::MAX_ON;

/// The rules need more than the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// Too many `on` lists.
    #[error("the rules use {0} different interface lists (`on …`); the maximum is {MAX_ON}")]
    On(usize),
    /// Too many rules for the same clients.
    #[error(
        "port {port}: {count} rules with equal `from` differ only in `on`; the maximum is {}",
        Candidates::COUNT
    )]
    Candidates {
        /// The destination port.
        port: u16,
        /// The number of such rules.
        count: usize,
    },
    /// Too many combinations of conditions.
    #[error("the rules need too many {what}; the maximum is {limit}")]
    Conditions {
        /// The kind of entries.
        what: &'static str,
        /// The maximum.
        limit: usize,
    },
}
