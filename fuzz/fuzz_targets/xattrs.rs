#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| scoutfs::internals::fuzz::xattrs(input));
