//! Which interfaces get programs, of which engine, and why.
//!
//! The planner is pure: interfaces, features of the kernel and settings go in, and
//! nothing is touched.

mod coverage;
mod engine;
mod firewall;
mod input;
pub mod lockout;
mod planned;
mod planner;
mod report;
#[cfg(test)]
mod tests;
mod usage;

pub use self::firewall::Firewall;
pub use self::planned::{Plan, Planned, Refused, Rejected, Skipped};
pub use self::report::{Action, InterfacePlan, PlanReport};
pub use self::usage::UsageError;
