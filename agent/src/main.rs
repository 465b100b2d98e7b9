//! The margay binary: one program for the node, the person in front of it, and the tests of their policies.

mod admin;
mod capture;
mod cli;
mod cni;
mod doctor;
mod encryption;
mod endpoints;
mod explain;
mod install;
mod lab;
mod lint;
mod logging;
mod metrics;
mod net;
mod node;
mod selector_command;
mod simulate;
mod uninstall;
mod validate;
mod verify;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // A CNI configuration names a plug-in by its file, so a link with this name is one.
    if std::env::args_os()
        .next()
        .is_some_and(|name| Path::new(&name).file_name() == Some("margay-cni".as_ref()))
    {
        return cni::run(cni::CniArgs {});
    }
    cli::run(cli::Cli::parse())
}
