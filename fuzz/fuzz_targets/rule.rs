//! Texts of rules.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portredir_fuzz::rule(input));
