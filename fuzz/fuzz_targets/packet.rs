//! Packets across a host, beside the reference of the tests.
#![no_main]

#[expect(dead_code, reason = "some of it is for the tests alone")]
#[path = "../../portredir/tests/packet/mod.rs"]
mod packet;
#[path = "../../portredir/tests/reference/mod.rs"]
mod reference;
#[expect(dead_code, reason = "some of it is for the tests alone")]
#[path = "../../portredir/tests/traffic/mod.rs"]
mod traffic;

libfuzzer_sys::fuzz_target!(|input: &[u8]| traffic::session::packet(input));
