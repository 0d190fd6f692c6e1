//! Floods, limits and long runs.

pub mod flood;
pub mod soak;
