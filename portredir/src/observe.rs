//! The reports on a running redirect.

pub mod attached;
pub mod listening;
pub mod report;
