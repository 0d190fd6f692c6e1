//! The reports on a running redirect.

pub mod report;
