//! The margay binary.
fn main() {}
