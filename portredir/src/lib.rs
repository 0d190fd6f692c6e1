//! The program around the datapath: it parses rules, chooses interfaces, loads and
//! attaches programs, and reads counters.

#[cfg(feature = "agent")]
pub mod agent;
pub mod bench;
pub mod cli;
pub mod command;
pub mod config;
pub mod controller;
pub mod exit;
pub mod host;
pub mod import;
pub mod ipc;
pub mod loader;
pub mod observe;
pub mod plan;
pub mod rule;
pub mod ruleset;
pub mod state;
pub mod sys;
