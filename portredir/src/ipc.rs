//! How a command talks to the process that redirects or watches.

pub mod client;
