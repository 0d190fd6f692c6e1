//! Sizes and habits that are known to be beyond the limits. Lines here may only
//! go and numbers only fall; the check fails when one could.

use super::habits::Habit;

/// The exceptions of the limits.
pub struct Allowed {
    /// Files that are too long, and why.
    pub files: &'static [(&'static str, &'static str)],
    /// Functions that are too long, by crate and name, and why; one line for each
    /// function.
    pub functions: &'static [(&'static str, &'static str, &'static str)],
    /// How often a crate has a habit.
    pub habits: &'static [(Habit, &'static str, usize)],
}

/// The exceptions of today.
pub const ALLOWED: Allowed = Allowed {
    files: LONG_FILES,
    functions: LONG_FUNCTIONS,
    habits: HABITS,
};

/// Files that are still to be split.
#[rustfmt::skip]
const LONG_FILES: &[(&str, &str)] = &[];

/// Functions that are still to be split.
#[rustfmt::skip]
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[
    ("portredir", "covered", "not split yet"),
    ("portredir tests", "both", "not split yet"),
    ("portredir tests", "changed", "not split yet"),
    ("portredir tests", "conditions", "not split yet"),
    ("portredir tests", "cut", "not split yet"),
    ("portredir tests", "lie", "not split yet"),
    ("portredir tests", "packet", "not split yet"),
    ("portredir tests", "remapped", "not split yet"),
    ("portredir tests", "run", "not split yet"),
    ("portredir tests", "tcp", "not split yet"),
    ("portredir tests", "tcp_connections_do_not_mix", "not split yet"),
    ("portredir tests", "transport_bytes", "not split yet"),
    ("portredir-common", "redirect", "not split yet"),
];

/// Habits that are still to be given up.
const HABITS: &[(Habit, &str, usize)] = &[
    (Habit::DocWord, "fuzz", 3),
    (Habit::DocWord, "portredir tests", 79),
    (Habit::ManyParameters, "portredir tests", 7),
    (Habit::ManyParameters, "portredir-common", 1),
    (Habit::BareBool, "portredir tests", 54),
    (Habit::BareBool, "portredir-common", 4),
];
