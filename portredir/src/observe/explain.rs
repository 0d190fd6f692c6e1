//! The way of one flow: which rule takes it and why the others do not, what the program
//! makes of its first packet, and what stands behind the program.
//!
//! The rules are those in force, as the maps have them. A packet is tried on a second copy
//! of the program, with flow tables and counters of its own, so that nothing is changed.
//! Where a socket is redirected there is no packet; then the functions that the programs
//! call are called here.

mod answer;
mod behind;
mod decide;
mod error;
mod explainer;
mod explanation;
mod forward;
mod judge;
mod packet;
mod place;
mod process;
mod query;
mod sockets;
mod target;

pub use self::behind::{Behind, Hooked};
pub use self::error::ExplainError;
pub use self::explainer::{Explainer, Redirect};
pub use self::explanation::{Explanation, Method};
pub use self::judge::Judged;
pub use self::packet::Packet;
pub use self::process::{OfProcess, Serving};
pub use self::query::{Client, Query, QueryError};
pub use self::target::OneTarget;
