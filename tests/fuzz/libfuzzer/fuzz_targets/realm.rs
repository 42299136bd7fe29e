#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| hyphae_test_fuzz::realm(data));
