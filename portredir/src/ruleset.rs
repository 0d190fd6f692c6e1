//! A list of rules as a whole: which rules can match, and the maps they become.

mod candidates;
pub mod compile;
pub mod history;
pub mod interval;
pub mod shadow;
