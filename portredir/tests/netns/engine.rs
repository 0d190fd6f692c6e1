//! Tests of single engines: sockets, local clients, and foreign programs that are
//! attached beside ours.

mod coexist;
mod corner;
mod foreign_programs;
mod local;
mod socket;

use crate::Tests;

pub fn add(tests: &mut Tests) {
    coexist::add(tests);
    foreign_programs::add(tests);
    corner::add(tests);
    socket::add(tests);
    local::add(tests);
}
