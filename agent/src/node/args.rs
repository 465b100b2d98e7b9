//! What the agent is told, every value checked as it is read.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use margay_core::worker::{EndpointToHost, PolicyChangeFlowAction};
use margay_core::{Nanos, WorkerConfig};
use margay_io::AttachChoice;

/// Runs the node agent.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  margay agent --node node1 --manifests /etc/margay/manifests --uplink eth0"
)]
pub struct AgentArgs {
    /// Name of this node, as in its Node object.
    #[arg(long)]
    pub node: String,
    /// Folder of manifests (YAML or JSON) to follow; may be given several times.
    #[arg(long, required = true)]
    pub manifests: Vec<PathBuf>,
    /// Folder of partial Pod documents merged over those of --manifests (RFC 7386), such as their status.
    #[arg(long)]
    pub overlay: Option<PathBuf>,
    /// Folder that survives a restart: endpoints, last valid forms of objects.
    #[arg(long, default_value = "/var/lib/margay")]
    pub state_dir: PathBuf,
    /// Folder of sockets and pinned programs; lost at a reboot.
    #[arg(long, default_value = "/run/margay")]
    pub run_dir: PathBuf,
    /// NIC that leads to the other nodes; may be given several times. Without one, only pods of this node and the node itself are joined.
    #[arg(long)]
    pub uplink: Vec<String>,
    /// What a pod's packets to its own node meet after egress policy (defaultEndpointToHostAction).
    #[arg(long, value_enum, default_value = "drop", ignore_case = true)]
    pub endpoint_to_host: EndpointToHostArg,
    /// What live flows do when the policy that judged them changes (policyChangeFlowAction).
    #[arg(long, value_enum, default_value = "reevaluate", ignore_case = true)]
    pub policy_change_flow_action: PolicyChangeArg,
    /// How long after a start TCP connections without an entry may be adopted, such as 120s (flowAdoptionWindow).
    #[arg(long, default_value = "120s", value_parser = duration)]
    pub flow_adoption_window: Duration,
    /// Most flows kept.
    #[arg(long, default_value_t = 512_000)]
    pub max_flows: usize,
    /// CPU to pin the worker to; not pinned when absent.
    #[arg(long)]
    pub cpu: Option<u32>,
    /// MTU of pods; the smallest uplink's when absent.
    #[arg(long)]
    pub pod_mtu: Option<u32>,
    /// How long a CNI ADD waits for the pod's policy to be in force.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub attach_timeout: Duration,
    /// How XDP programs are attached: in the driver where it can and above it elsewhere, or one of the two only. A port that an earlier
    /// run left keeps its way.
    #[arg(long, value_enum, default_value = "auto")]
    pub xdp_mode: XdpModeArg,
    /// Address for /metrics, /healthz and /readyz; none when absent.
    #[arg(long)]
    pub admin_listen: Option<SocketAddr>,
}

/// `defaultEndpointToHostAction`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum EndpointToHostArg {
    /// Dropped.
    Drop,
    /// Passed on.
    Accept,
}

/// How XDP programs are attached.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum XdpModeArg {
    /// In the driver; above it where the driver refuses.
    Auto,
    /// In the driver, or the agent does not take the port.
    Native,
    /// Above the driver.
    Generic,
}

impl From<XdpModeArg> for AttachChoice {
    fn from(mode: XdpModeArg) -> Self {
        match mode {
            XdpModeArg::Auto => Self::Auto,
            XdpModeArg::Native => Self::Native,
            XdpModeArg::Generic => Self::Generic,
        }
    }
}

/// `policyChangeFlowAction`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PolicyChangeArg {
    /// The next packet of a flow whose policy changed is judged again.
    Reevaluate,
    /// Flows go on until they end.
    Keep,
}

/// Reads `120s`, `500ms`, `2m` or `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 =
        number.parse().map_err(|_| format!("{text:?} is not a duration; write 500ms, 120s, 2m or 1h"))?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("{text:?} has no known unit; write 500ms, 120s, 2m or 1h")),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| format!("{text:?} is too long"))
}

impl AgentArgs {
    /// Returns the worker's settings; `seed` keeps the flow table's hash secret.
    pub fn worker(&self, seed: u64) -> WorkerConfig {
        WorkerConfig {
            endpoint_to_host: match self.endpoint_to_host {
                EndpointToHostArg::Drop => EndpointToHost::Drop,
                EndpointToHostArg::Accept => EndpointToHost::Accept,
            },
            policy_change: match self.policy_change_flow_action {
                PolicyChangeArg::Reevaluate => PolicyChangeFlowAction::Reevaluate,
                PolicyChangeArg::Keep => PolicyChangeFlowAction::Keep,
            },
            adoption_window: Nanos(u64::try_from(self.flow_adoption_window.as_nanos()).unwrap_or(u64::MAX)),
            max_flows: self.max_flows,
            hash_seed: seed,
            ..WorkerConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_carry_units() {
        assert_eq!(duration("120s"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["120", "s", "1 s", "-1s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
