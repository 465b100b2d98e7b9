//! What the bytes mean: addresses, header views, checksums. No state, no policy, no I/O.

pub mod mac;

pub use mac::MacAddr;
