//! A list of rules as a whole: rules that can never match, and the maps that the rules
//! become.

mod candidates;
pub mod compile;
mod error;
pub mod history;
pub mod interval;
pub mod shadow;
