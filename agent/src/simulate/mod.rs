//! Verdicts without packets.

pub mod probe;
