//! A list of rules as a whole: the check that each rule can match, and the maps that the
//! rules become.

mod candidates;
pub mod compile;
pub mod forwarding;
pub mod health;
pub mod history;
pub mod interval;
pub mod services;
pub mod shadow;
pub mod taken;
