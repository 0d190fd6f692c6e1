//! Files with settings.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portredir_fuzz::config(input));
