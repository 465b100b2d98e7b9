//! A cluster on one machine: nodes, pods and the wire between them are network namespaces, each node has a real agent.
//!
//! ```text
//!   mgy-lab-shop-web   mgy-lab-shop-db        (pods, joined by the real CNI plug-in)
//!          │                  │
//!   mgy-lab-node1 ─eth0─┐ ┌─eth0─ mgy-lab-node2   (nodes, an agent inside each)
//!                   mgy-lab-wire                  (a bridge)
//! ```
//!
//! Nothing of the machine's own network is touched: every device is born inside a namespace of the lab.
//!
//! * [`plan`] reads manifests and decides who lives where; it changes nothing.
//! * [`journal`] notes what is made before it is made, so that `down` finds it after a crash as well.
//! * [`mod@up`] compares the plan with what is there and closes the gap; [`mod@down`] walks the journal backwards.
//! * [`known`] waits until every agent knows every pod: `up` is done then.
//! * [`state`] is what the lab knows about itself, on disk.

mod down;
mod journal;
mod known;
mod plan;
mod process;
mod state;
mod up;
mod uplink;
mod wire;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use nix::sched::{CloneFlags, setns};
use serde_json::json;

use crate::net::NetError;
use crate::net::netns::NetNs;
use state::{LabState, Paths};
use uplink::UplinkKind;
use wire::WireKind;

/// Arguments of `margay lab`.
#[derive(Debug, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Make the cluster that the manifests describe, or bring a running one up to date
    #[command(after_help = "Example:\n  margay lab up --manifests examples/shop --nodes 2")]
    Up(UpArgs),
    /// Run a command inside a pod (or, with --node, inside a node)
    #[command(
        after_help = "Examples:\n  margay lab exec shop/web -- ping -c 3 10.244.2.2\n  margay lab exec --node node1 -- ip route\n\n\
The exit code is the command's own."
    )]
    Exec(ExecArgs),
    /// Nodes and pods, and whether they live
    #[command(
        after_help = "Example:\n  margay lab status -o json | jq '.pods[].addresses'\n\nExit code 1 when an agent is dead or not ready."
    )]
    Status(StatusArgs),
    /// Take everything away again, also what a crash left behind
    #[command(after_help = "Example:\n  margay lab down")]
    Down(DownArgs),
}

#[derive(Debug, Args)]
struct Which {
    /// Name of the lab; several can run side by side
    #[arg(long, default_value = "lab")]
    name: String,
    /// Folder in which labs keep their state
    #[arg(long, default_value = "/run/margay-lab", value_name = "DIR")]
    labs_dir: PathBuf,
}

impl Which {
    fn paths(&self) -> Result<Paths, LabError> {
        let simple = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || self.name.len() > 24 || !self.name.chars().all(simple) {
            return Err(LabError::Input(format!(
                "{:?} is no name for a lab; use at most 24 lower-case letters, digits and '-'",
                self.name
            )));
        }
        let directory = std::path::absolute(&self.labs_dir)
            .map_err(|e| LabError::file("resolve", &self.labs_dir, e))?
            .join(&self.name);
        Ok(Paths { lab: self.name.clone(), directory })
    }
}

#[derive(Debug, Args)]
struct UpArgs {
    #[command(flatten)]
    which: Which,
    /// Folder of manifests; later changes to policies take effect at once, changed Pods with the next `up`
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// How many nodes; Node manifests count among them [default: the Node manifests, at least 1]
    #[arg(long)]
    nodes: Option<usize>,
    /// MTU of the wire between the nodes
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(1280..=65_535))]
    wire_mtu: u32,
    /// What joins the nodes: a bridge, or one pair of devices between two nodes
    #[arg(long, value_enum, default_value = "bridge")]
    wire: WireKind,
    /// What leads from a node to the others: a NIC, or a device that is made of some, as machines have them
    #[arg(long, value_enum, default_value = "nic")]
    uplink: UplinkKind,
    /// How long to wait for an agent or a pod, in seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// A further argument for every agent that is started, such as --agent-arg=--xdp-mode=generic; may be given several times
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    agent_arg: Vec<OsString>,
    /// Leave what was made in place when something fails
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct ExecArgs {
    #[command(flatten)]
    which: Which,
    /// Run in this node instead of a pod
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// NAMESPACE/POD
    #[arg(required_unless_present = "node", conflicts_with = "node", value_name = "NAMESPACE/POD")]
    pod: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    which: Which,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, Args)]
struct DownArgs {
    #[command(flatten)]
    which: Which,
}

/// What the lab could not do.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The request or the manifests are wrong.
    #[error("{0}")]
    Input(String),
    /// The kernel refused.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The file system refused.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// An agent ended or did not become ready.
    #[error("the agent of {node} {what}; the end of {log}:\n{tail}", log = .log.display())]
    Agent {
        /// Its node.
        node: String,
        /// What happened.
        what: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A pod could not be joined or released.
    #[error("pod {pod}: CNI {command} failed: {reason}")]
    Pod {
        /// `namespace/name`.
        pod: String,
        /// ADD or DEL.
        command: &'static str,
        /// The plug-in's answer.
        reason: String,
    },
    /// Something is left.
    #[error("not everything could be taken away:\n  {}\nrun `margay lab down` again", .0.join("\n  "))]
    Left(Vec<String>),
}

impl LabError {
    fn file(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { what, path: path.into(), source }
    }
}

/// Does what `margay lab` was told.
pub fn run(args: LabArgs) -> ExitCode {
    let outcome = match args.command {
        LabCommand::Up(args) => up(&args),
        LabCommand::Exec(args) => exec(args).map(|never| match never {}),
        LabCommand::Status(args) => status(&args),
        LabCommand::Down(args) => down(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("margay lab: {error}");
        ExitCode::from(if matches!(error, LabError::Input(_)) { 2 } else { 1 })
    })
}

fn need_root() -> Result<(), LabError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(LabError::Input("the lab makes network namespaces: run it as root".to_owned()))
}

fn up(args: &UpArgs) -> Result<ExitCode, LabError> {
    need_root()?;
    let paths = args.which.paths()?;
    let manifests = args.manifests.canonicalize().map_err(|e| LabError::file("open", &args.manifests, e))?;
    let wanted = plan::read(&manifests)?;
    let _alone = paths.lock()?;
    let fresh = LabState::load(&paths)?.is_none();
    let options = up::Options {
        nodes: args.nodes,
        wire_mtu: args.wire_mtu,
        wire: args.wire,
        uplink: args.uplink,
        timeout: Duration::from_secs(args.timeout),
        agent_args: args.agent_arg.clone(),
        manifests,
    };
    if let Err(error) = up::up(&paths, &wanted, &options) {
        if fresh && !args.keep {
            eprintln!("margay lab: taking away what was made (--keep leaves it)");
            if let Err(second) = down::down(&paths) {
                eprintln!("margay lab: {second}");
            }
        }
        return Err(error);
    }
    Ok(ExitCode::SUCCESS)
}

fn down(args: &DownArgs) -> Result<ExitCode, LabError> {
    need_root()?;
    let paths = args.which.paths()?;
    if !paths.directory.exists() {
        eprintln!("margay lab: no lab called {} is here; nothing to do", paths.lab);
        return Ok(ExitCode::SUCCESS);
    }
    let _alone = paths.lock()?;
    down::down(&paths)?;
    Ok(ExitCode::SUCCESS)
}

fn running(which: &Which) -> Result<(Paths, LabState), LabError> {
    let paths = which.paths()?;
    match LabState::load(&paths)? {
        Some(state) => Ok((paths, state)),
        None => Err(LabError::Input(format!(
            "no lab called {} is running; start it with `margay lab up`",
            paths.lab
        ))),
    }
}

fn exec(args: ExecArgs) -> Result<std::convert::Infallible, LabError> {
    need_root()?;
    let (_, state) = running(&args.which)?;
    let netns = match (&args.node, &args.pod) {
        (Some(node), _) => state.nodes.get(node).map(|n| n.netns.clone()).ok_or_else(|| {
            let known: Vec<&str> = state.nodes.keys().map(String::as_str).collect();
            LabError::Input(format!("no node is called {node}; there are {}", known.join(", ")))
        })?,
        (None, Some(pod)) => state.pods.get(pod).map(|p| p.netns.clone()).ok_or_else(|| {
            let known: Vec<&str> = state.pods.keys().map(String::as_str).collect();
            LabError::Input(format!("no pod is called {pod}; there are {}", known.join(", ")))
        })?,
        (None, None) => return Err(LabError::Input("name a pod as NAMESPACE/POD".to_owned())),
    };
    let netns = NetNs::named(&netns)?;
    setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)
        .map_err(|e| NetError::new(format!("enter {}", netns.path().display()), e.into()))?;
    let program = &args.command[0];
    let error = Command::new(program).args(&args.command[1..]).exec();
    Err(LabError::file("run", program, error))
}

fn status(args: &StatusArgs) -> Result<ExitCode, LabError> {
    let (paths, state) = running(&args.which)?;
    let mut healthy = true;
    let mut nodes = Vec::new();
    for (name, node) in &state.nodes {
        let alive = node.agent.is_some_and(process::Process::is_alive);
        let trouble =
            if alive { up::agent_trouble(&paths, name) } else { Some("the agent is not running".to_owned()) };
        healthy &= trouble.is_none();
        nodes.push(json!({
            "name": name, "netns": node.netns, "addresses": node.addresses, "podCIDRs": node.pod_cidrs,
            "agent": { "pid": node.agent.map(|a| a.pid), "alive": alive, "ready": trouble.is_none(), "trouble": trouble },
            "adminSocket": paths.run_dir(name).join("admin.sock"), "log": paths.log(name),
        }));
    }
    let pods: Vec<_> = state
        .pods
        .iter()
        .map(|(name, pod)| {
            json!({
                "name": name, "node": pod.node, "netns": pod.netns, "uid": pod.uid, "addresses": pod.addresses,
                "hostNetwork": pod.host_network, "state": if pod.joined { "joined" } else { "waiting" },
            })
        })
        .collect();
    if args.output == Output::Json {
        println!(
            "{:#}",
            json!({ "lab": paths.lab, "stateDir": paths.directory, "nodes": nodes, "pods": pods })
        );
    } else {
        println!("{:<20} {:<8} {:<10} ADDRESSES", "NODE", "AGENT", "READY");
        for node in &nodes {
            let text = |v: &serde_json::Value| v.as_str().map(str::to_owned).unwrap_or_else(|| v.to_string());
            let ready = if node["agent"]["ready"] == true {
                "yes".to_owned()
            } else {
                text(&node["agent"]["trouble"])
            };
            let agent =
                if node["agent"]["alive"] == true { text(&node["agent"]["pid"]) } else { "dead".to_owned() };
            println!("{:<20} {agent:<8} {ready:<10} {}", text(&node["name"]), joined(&node["addresses"]));
        }
        println!("\n{:<32} {:<20} {:<8} ADDRESSES", "POD", "NODE", "STATE");
        for (pod, (name, known)) in pods.iter().zip(&state.pods) {
            let how = if known.host_network { "host" } else { pod["state"].as_str().unwrap_or_default() };
            println!("{name:<32} {:<20} {how:<8} {}", known.node, joined(&pod["addresses"]));
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn joined(list: &serde_json::Value) -> String {
    let items: Vec<&str> = list.as_array().into_iter().flatten().filter_map(|v| v.as_str()).collect();
    items.join(", ")
}
