//! What the running redirect can tell about itself.

pub mod report;
