//! Paths that packets take to a host: kinds of links and devices.

pub mod card;
pub mod device;
pub mod ipsec;
pub mod link;
pub mod own_flow;
pub mod paths;
pub mod replies;
pub mod stack;
pub mod tunnel;
pub mod way;
pub mod wire;

use crate::Tests;

pub fn add(tests: &mut Tests) {
    wire::add(tests);
    link::add(tests);
    own_flow::add(tests);
    paths::add(tests);
    replies::add(tests);
    device::add(tests);
    card::add(tests);
    stack::add(tests);
    tunnel::add(tests);
    ipsec::add(tests);
    way::add(tests);
}
