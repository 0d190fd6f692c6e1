//! Floods, limits and long runs.

mod flood;
mod soak;
mod workers;

use crate::Tests;

pub fn add(tests: &mut Tests) {
    flood::add(tests);
    soak::add(tests);
}
