//! The conversation of a command with the process that redirects or watches.

pub mod client;
