//! The CNI plug-in: makes a pod's veth pair, asks the delegated IPAM plug-in for addresses, hands the host end to the agent.
//!
//! ```text
//!  runtime ──env, JSON──▶ margay cni ──exec──▶ host-local (addresses)
//!                             │
//!                             ├─ veth pair: ours down and mute, theirs born inside the container
//!                             ├─ addresses, gateway, routes, offloads inside the container
//!                             └─ Attach ──▶ agent: program on, up, socket, policy in force ──▶ answer
//! ```
//!
//! Specification: CNI 1.1.0 (0.4.0 and 1.0.0 as well). The order above is what makes it safe: the pair itself is the lock (the kernel
//! gives a name once), the host end stays down until the agent has its program on it, and a failure anywhere undoes what came before it.
//!
//! * [`types`] is the specification's vocabulary.
//! * [`ipam`] executes the delegate.
//! * [`veth`] knows what the two ends look like.
//! * [`commands`] is ADD, DEL, CHECK, GC, STATUS and VERSION.

mod commands;
pub mod install;
mod ipam;
mod types;
mod veth;

pub use types::VERSIONS;
pub use veth::is_ours;

use std::io::{self, Read, Write};
use std::process::ExitCode;

use types::{Environment, Failure, NetConf};

/// A network configuration is a few hundred bytes; a list of valid attachments can be long.
const LONGEST_CONFIG: u64 = 16 << 20;

/// Arguments of `margay cni`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The container runtime calls this: parameters come in the environment (CNI_COMMAND, CNI_CONTAINERID, \
CNI_NETNS, CNI_IFNAME, CNI_ARGS, CNI_PATH) and as a network configuration on standard input.\n\nExample:\n  \
CNI_COMMAND=VERSION margay cni </dev/null"
)]
pub struct CniArgs {}

/// Answers one call of the container runtime.
pub fn run(_args: CniArgs) -> ExitCode {
    let mut text = Vec::new();
    let environment = Environment::of_process();
    let outcome = io::stdin()
        .take(LONGEST_CONFIG)
        .read_to_end(&mut text)
        .map_err(|e| Failure::new(types::code::IO, "cannot read the network configuration", e.to_string()))
        .and_then(|_| dispatch(&environment, &text));
    let (answer, code) = match outcome {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(failure) => {
            let version = NetConf::version_of(&text);
            (Some(failure.to_json(version.as_deref())), ExitCode::FAILURE)
        }
    };
    if let Some(answer) = answer {
        let mut out = io::stdout().lock();
        if writeln!(out, "{answer:#}").and_then(|()| out.flush()).is_err() {
            return ExitCode::FAILURE;
        }
    }
    code
}

fn dispatch(environment: &Environment, text: &[u8]) -> Result<Option<serde_json::Value>, Failure> {
    let command = environment.command()?;
    if command == "VERSION" {
        return Ok(Some(types::version_answer(NetConf::version_of(text).as_deref())));
    }
    let conf = NetConf::parse(text)?;
    match command {
        "ADD" => commands::add(environment, &conf).map(Some),
        "DEL" => commands::del(environment, &conf).map(|()| None),
        "CHECK" => commands::check(environment, &conf).map(|()| None),
        "GC" => commands::gc(environment, &conf).map(|()| None),
        "STATUS" => commands::status(environment, &conf).map(|()| None),
        other => Err(Failure::new(
            types::code::ENVIRONMENT,
            format!("CNI_COMMAND is {other:?}"),
            "it must be one of ADD, DEL, CHECK, GC, STATUS, VERSION",
        )),
    }
}
