//! The program around the datapath: rules in, interfaces chosen, programs
//! loaded and attached, counters out.

pub mod bench;
pub mod cli;
pub mod command;
pub mod config;
pub mod controller;
pub mod exit;
pub mod host;
pub mod ipc;
pub mod loader;
pub mod observe;
pub mod plan;
pub mod rule;
pub mod ruleset;
pub mod state;
pub mod sys;
