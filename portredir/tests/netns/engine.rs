//! Tests of single engines: sockets, local clients, and programs of others
//! that are attached beside ours.

pub mod coexist;
pub mod corner;
pub mod local;
pub mod socket;
