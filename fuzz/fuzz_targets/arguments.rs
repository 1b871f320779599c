#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| scoutfs::internals::fuzz::arguments(input));
