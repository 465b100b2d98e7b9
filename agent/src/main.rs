//! The margay binary: one program for the node, the person in front of it, and the tests of their policies.

mod admin;
mod cli;
mod endpoints;
mod explain;
mod logging;
mod metrics;
mod net;
mod node;
mod simulate;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
