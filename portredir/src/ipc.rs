//! The conversation of a command, or of Prometheus, with the process that redirects or
//! watches.

pub mod client;
pub mod message;
pub mod scrape;
