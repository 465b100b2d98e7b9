//! `margay install --dry-run`: what a cluster is given to run margay, printed for `kubectl apply -f -`.
//!
//! * [`settings`] is what differs between clusters.
//! * [`rights`] is what the agent may ask of the API server.
//! * [`manifests`] are the objects, [`dashboard`] is Grafana's, [`chart`] the files below `deploy/`.
//! * [`reference`] is the configuration page of the documentation.
//! * [`yaml`] writes them.

mod chart;
mod dashboard;
mod manifests;
#[cfg(test)]
mod reference;
pub mod rights;
mod settings;
#[cfg(test)]
mod tests;
mod yaml;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, ValueEnum};
use margay_policy_engine::schema::Rules;

use crate::cli::Cli;
use settings::{Settings, memory_request};

/// Help after the options.
pub const HELP: &str = "Examples:\n  margay install --dry-run --image registry.example/margay:1.0 | kubectl apply -f -\n  \
margay install --dry-run --only crds --cel | kubectl apply -f -\n  \
margay install --dry-run --only uninstall | kubectl apply -f -\n\nThe definitions come first; they apply on every Kubernetes from 1.20 on. \
With --cel they have rules that\nservers from 1.25 on check when an object is written; kubectl refuses them on older ones.";

/// Which objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// Definitions of the kinds of projectcalico.org.
    Crds,
    /// Account, rights and DaemonSet of the agent.
    Agent,
    /// For the Prometheus operator.
    Podmonitor,
    /// The Grafana dashboard, as a ConfigMap.
    Dashboard,
    /// A DaemonSet that takes margay off every node.
    Uninstall,
    /// Rights to keep nodes' WireGuard keys as Secrets.
    Encryption,
    /// Rules of admission: every agent writes its own Node and Secret alone, built-in tiers stay, and nobody joins a tier that is being
    /// deleted; needs Kubernetes 1.30.
    Admission,
}

/// `margay install`.
#[derive(Clone, Debug, Args)]
pub struct InstallArgs {
    /// Print the objects; kubectl applies them
    #[arg(long, required = true)]
    dry_run: bool,
    /// Only these objects; may be given several times [default: crds and agent]
    #[arg(long, value_enum)]
    only: Vec<Only>,
    /// Write everything as files into this folder instead: definitions, manifests, the Helm chart, the dashboard
    #[arg(long, value_name = "DIR", conflicts_with_all = ["only", "agent_arg"])]
    tree: Option<PathBuf>,
    /// Definitions with rules in CEL, for Kubernetes 1.25 and newer
    #[arg(long)]
    cel: bool,
    /// Image of every container
    #[arg(long, default_value_t = Settings::default().image)]
    image: String,
    /// Namespace of everything that has one
    #[arg(long, default_value = "kube-system")]
    namespace: String,
    /// Namespace of the Secrets with nodes' WireGuard keys; it has to be there already
    #[arg(long, default_value = "calico-system")]
    key_namespace: String,
    /// NICs that lead to the other nodes, between commas; auto takes those of the routes
    #[arg(long, default_value = "auto")]
    uplink: String,
    /// What a pod's packets to its own node meet after egress policy
    #[arg(long, default_value = "accept", value_parser = ["accept", "drop"])]
    endpoint_to_host: String,
    /// What every agent is told besides, such as --agent-arg=--workers=2; may be given several times
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    agent_arg: Vec<String>,
    /// Pods that a node has at most; the memory request follows from it
    #[arg(long, default_value_t = settings::PODS)]
    pods_per_node: u32,
    /// Where metrics and health are served; 0.0.0.0 (or the any-address of IPv6) lets Prometheus in
    #[arg(long, default_value = "127.0.0.1")]
    metrics_address: String,
    /// Port of both
    #[arg(long, default_value_t = settings::METRICS_PORT)]
    metrics_port: u16,
    /// Where the container runtime looks for CNI programs
    #[arg(long, default_value = "/opt/cni/bin")]
    cni_bin_dir: String,
    /// Where it looks for configurations
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: String,
    /// The plug-in that gives addresses
    #[arg(long, default_value = "host-local")]
    cni_ipam: String,
}

impl InstallArgs {
    fn settings(&self) -> Settings {
        Settings {
            image: self.image.clone(),
            namespace: self.namespace.clone(),
            key_namespace: self.key_namespace.clone(),
            uplink: self.uplink.clone(),
            endpoint_to_host: self.endpoint_to_host.clone(),
            agent_args: self.agent_arg.clone(),
            memory: format!("{}Mi", memory_request(self.pods_per_node)),
            metrics_address: self.metrics_address.clone(),
            metrics_port: self.metrics_port.into(),
            cni_bin: self.cni_bin_dir.clone(),
            cni_conf: self.cni_conf_dir.clone(),
            ipam: self.cni_ipam.clone(),
            ..Settings::default()
        }
    }
}

/// Prints the objects, or writes the files.
///
/// Errors: an agent would not start with what it is told, standard output is gone, or the folder cannot be written to.
pub fn run(args: &InstallArgs) -> io::Result<ExitCode> {
    if let Some(folder) = &args.tree {
        for (path, text) in chart::tree() {
            let file = folder.join(path);
            fs::create_dir_all(file.parent().unwrap_or(folder))?;
            fs::write(&file, text)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let settings = args.settings();
    let usual = [Only::Crds, Only::Agent];
    let wanted: &[Only] = if args.only.is_empty() { &usual } else { &args.only };
    if wanted.contains(&Only::Agent) {
        check_arguments(&settings).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
    }
    let mut objects = Vec::new();
    for only in wanted {
        match only {
            Only::Crds => {
                objects.extend(chart::definitions(if args.cel { Rules::Cel } else { Rules::Without }))
            }
            Only::Agent => objects.extend(manifests::agent(&settings)),
            Only::Podmonitor => objects.push(manifests::pod_monitor(&settings)),
            Only::Dashboard => {
                objects.push(manifests::dashboard_map(&settings, &format!("{:#}\n", dashboard::dashboard())));
            }
            Only::Uninstall => objects.push(manifests::uninstall_everywhere(&settings)),
            Only::Encryption => objects.extend(manifests::encryption(&settings)),
            Only::Admission => objects.extend(manifests::admission(&settings)),
        }
    }
    let mut out = io::stdout().lock();
    out.write_all(yaml::documents(&objects).as_bytes())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Returns why an agent would not start with what it is told.
fn check_arguments(settings: &Settings) -> Result<(), String> {
    let arguments = manifests::agent_arguments(settings);
    let words = std::iter::once("margay".to_owned()).chain(manifests::handed_over(&arguments));
    match Cli::try_parse_from(words) {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = error.to_string();
            let why = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Err(format!(
                "agents would not start as they are told to: {why}; mend --agent-arg or the option that says so (`margay agent --help` \
                 has them all). Nothing was printed"
            ))
        }
    }
}
