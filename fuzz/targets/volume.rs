#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| volumes::fuzz::volume(data));
