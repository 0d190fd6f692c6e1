//! The program around the datapath: rules in, interfaces chosen, programs
//! loaded and attached, counters out.

pub mod bench;
pub mod cli;
pub mod config;
pub mod control;
pub mod counters;
pub mod datapath;
pub mod ethtool;
pub mod facts;
pub mod flows;
pub mod follow;
pub mod guard;
pub mod host;
pub mod interface;
pub mod lifecycle;
pub mod memory;
pub mod netdev;
pub mod pins;
pub mod plan;
pub mod preflight;
pub mod rule;
pub mod run;
pub mod selection;
pub mod settings;
pub mod sockets;
pub mod state;
pub mod table;
