//! The Kubernetes node agent: rules from the API of a cluster, and the state of the node back
//! to it. The redirect itself is the one of `portredir up`: see [`crate::controller`].
//!
//! One pass takes all objects, and makes one change of the rules. What an object asks for and
//! this node does not have is a condition, and never stops the others.

mod apply;
pub mod claims;
pub mod cluster;
pub mod crd;
pub mod desired;
pub mod disk;
mod health;
mod leader;
mod listing;
pub mod manifest;
pub mod needs;
pub mod reason;
pub mod run;
mod server;
pub mod status;
pub mod target;
mod watch;
pub mod words;
mod writer;
