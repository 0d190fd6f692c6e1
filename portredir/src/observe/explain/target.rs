//! The targets of a rule in an answer.

use std::net::IpAddr;

use portredir_common::net::Port;
use serde::Serialize;

use crate::observe::targets::{Line, State};

/// A target of the rule that wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OneTarget {
    /// The target as rules have it.
    pub target: String,
    /// The state.
    pub state: State,
    /// Whether the flow gets the target; null where chance decides.
    pub wins: Option<bool>,
    /// The number of slots, or of outcomes of chance, that lead to the target.
    pub slots: u32,
    /// The number of all of them.
    pub of_slots: u32,
    /// The reason.
    pub why: String,
}

/// The targets of a rule, and the end that a flow gets.
#[derive(Clone, Debug, Default)]
pub(super) struct ToTargets {
    /// The address and port; none where no target is up, and where chance decides.
    pub(super) end: Option<(IpAddr, Port)>,
    pub(super) targets: Vec<OneTarget>,
}

impl OneTarget {
    pub(super) fn of(
        line: &Line,
        wins: Option<bool>,
        (slots, of_slots): (u32, u32),
        why: String,
    ) -> Self {
        Self {
            target: if line.is_else {
                format!("else {}", line.target)
            } else {
                line.target.clone()
            },
            state: line.state,
            wins,
            slots,
            of_slots,
            why,
        }
    }
}
