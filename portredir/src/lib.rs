//! The program around the datapath: rules in, interfaces chosen, programs
//! loaded and attached, counters out.

pub mod cli;
pub mod counters;
pub mod datapath;
pub mod ethtool;
pub mod facts;
pub mod interface;
pub mod netdev;
pub mod plan;
pub mod preflight;
pub mod rule;
pub mod run;
pub mod selection;
pub mod settings;
pub mod sockets;
