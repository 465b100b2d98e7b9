//! The margay binary: one program for the node, the person in front of it, and the tests of their policies.

mod admin;
mod endpoints;
mod explain;
mod net;
mod simulate;

fn main() {}
