//! Settings of a worker.

use std::net::IpAddr;

use crate::spread::WorkerIndex;
use crate::time::Nanos;

/// What `defaultEndpointToHostAction` says about a pod's packets to its own node (policy model 12.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointToHost {
    /// Dropped; the agent's default.
    #[default]
    Drop,
    /// Passed on; what Kubernetes manifests configure.
    Accept,
}

/// What a live flow does when what it was judged by has changed (PM-D10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyChangeFlowAction {
    /// Its next packet is judged again.
    #[default]
    Reevaluate,
    /// It goes on until it ends.
    Keep,
}

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Pod to own node.
    pub endpoint_to_host: EndpointToHost,
    /// Live flows under a changed policy.
    pub policy_change: PolicyChangeFlowAction,
    /// How long after the start mid-flow TCP may be adopted (PM-D19).
    pub adoption_window: Nanos,
    /// Most flows kept.
    pub max_flows: usize,
    /// Decides the flow table's hash; keep it secret and random where strangers choose addresses and ports.
    pub hash_seed: u64,
    /// The pods' IPv4 gateway, answered by ARP.
    pub gateway_v4: IpAddr,
    /// The pods' IPv6 gateway, answered by neighbour discovery.
    pub gateway_v6: IpAddr,
    /// Whether segments that arrive together reach pods with a large MTU as one packet.
    pub lro: bool,
    /// Its number. Which ports it has follows from it and the topology's spread.
    pub index: WorkerIndex,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            endpoint_to_host: EndpointToHost::Drop,
            policy_change: PolicyChangeFlowAction::Reevaluate,
            adoption_window: Nanos::from_secs(120),
            max_flows: 512_000,
            hash_seed: 0,
            gateway_v4: IpAddr::from([169, 254, 1, 1]),
            gateway_v6: IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1]),
            lro: false,
            index: WorkerIndex(0),
        }
    }
}
