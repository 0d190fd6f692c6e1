//! State files that a process left behind.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portredir_fuzz::state(input));
