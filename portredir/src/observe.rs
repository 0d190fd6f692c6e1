//! The reports on a running redirect.

pub mod attached;
pub mod connections;
pub mod doctor;
pub mod explain;
pub mod faults;
pub mod listening;
pub mod metrics;
pub mod report;
pub mod table;
pub mod targets;
pub mod trace;
