//! The reasons for what becomes of a rule on this node.

use std::fmt;

/// The state of a rule, in the one word that conditions and events have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The rule is in force.
    Programmed,
    /// The rule is in force, and takes packets that a pod on this node would get.
    Shadows,
    /// An older rule has the port.
    Conflicted,
    /// The port may lock somebody out, and `force` is not set.
    Protected,
    /// There is no such target.
    TargetNotFound,
    /// The target exists, and cannot take packets now.
    TargetNotReady,
    /// The target is of a kind that cannot be redirected to.
    TargetUnsupported,
    /// The rule contradicts itself.
    Invalid,
    /// The node has no room for more rules.
    LimitExceeded,
    /// The kernel, or the plan for this node, refuses the rule.
    EngineFailed,
}

impl Reason {
    /// Whether the rule is in force.
    #[must_use]
    pub const fn is_programmed(self) -> bool {
        matches!(self, Self::Programmed | Self::Shadows)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Programmed => "Programmed",
            Self::Shadows => "Shadows",
            Self::Conflicted => "Conflicted",
            Self::Protected => "Protected",
            Self::TargetNotFound => "TargetNotFound",
            Self::TargetNotReady => "TargetNotReady",
            Self::TargetUnsupported => "TargetUnsupported",
            Self::Invalid => "Invalid",
            Self::LimitExceeded => "LimitExceeded",
            Self::EngineFailed => "EngineFailed",
        })
    }
}

/// A rule that is not put in force, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The reason in one word.
    pub reason: Reason,
    /// The reason in a sentence.
    pub message: String,
}

impl Rejection {
    /// A rejection with its sentence.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}
