//! `cargo +nightly fuzz run selector`

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| margay_fuzz::selector(data));
