//! `cargo +nightly fuzz run fragments`

#![no_main]

#[path = "../src/packets.rs"]
#[allow(dead_code, reason = "each target runs one of the bodies")]
mod packets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| packets::fragments(data));
