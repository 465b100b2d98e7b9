//! One worker's state; a frame in, frames out.

use std::net::IpAddr;

use margay_policy_engine::snapshot::{Attribution, Snapshot};

use crate::frame::Frame;
use crate::output::Output;
use crate::time::Nanos;
use crate::topology::{PortIndex, Topology};
use crate::verdict::{Counters, DropReason};

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
    /// The pods' IPv4 gateway, answered by ARP.
    pub gateway_v4: IpAddr,
    /// The pods' IPv6 gateway, answered by neighbour discovery.
    pub gateway_v6: IpAddr,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            endpoint_to_host: EndpointToHost::Drop,
            policy_change: PolicyChangeFlowAction::Reevaluate,
            adoption_window: Nanos::from_secs(120),
            max_flows: 512_000,
            gateway_v4: IpAddr::from([169, 254, 1, 1]),
            gateway_v6: IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1]),
        }
    }
}

/// What is in force during one burst. Loaded once by the shell, so no packet sees half of a change.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Compiled policy; `None` before the first complete picture: pods are closed.
    pub snapshot: Option<&'a Snapshot>,
    /// Ports, routes and neighbours.
    pub topology: &'a Topology,
}

/// One live flow, for `margay flows`.
#[derive(Clone, Debug)]
pub struct FlowRecord {
    /// Who opened it.
    pub source: IpAddr,
    /// Whom it was opened to.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Transport source port, or ICMP identifier.
    pub source_port: u16,
    /// Transport destination port.
    pub destination_port: u16,
    /// State in words: `syn_sent`, `established`, `closing`, `reset`, `one_way`, `two_way`.
    pub state: &'static str,
    /// Packets and bytes from the opener.
    pub forward: (u64, u64),
    /// Packets and bytes towards the opener.
    pub reverse: (u64, u64),
    /// Time until it is forgotten if nothing more comes.
    pub expires_in: Nanos,
    /// Sender's egress policy that let it pass, when the sender is a pod of this node.
    pub egress: Option<Attribution>,
    /// Receiver's ingress policy that let it pass, when the receiver is a pod of this node.
    pub ingress: Option<Attribution>,
}

/// The state of one worker: the flows of its ports, packets waiting for a neighbour, counters.
#[derive(Debug)]
pub struct Worker<F> {
    config: WorkerConfig,
    counters: Counters,
    held: Vec<F>,
}

impl<F: Frame> Worker<F> {
    /// Returns a worker that has seen nothing. `now` starts the adoption window.
    pub fn new(config: WorkerConfig, _now: Nanos) -> Self {
        Self { config, counters: Counters::default(), held: Vec::new() }
    }

    /// Takes one frame from `port` to its end: into `out.transmit`, `out.recycle`, or a bounded queue of this worker.
    pub fn handle_frame(&mut self, _view: View<'_>, _now: Nanos, _port: PortIndex, frame: F, out: &mut Output<F>) {
        self.counters.received += 1;
        self.counters.drops[DropReason::NoPort as usize] += 1;
        let _ = (&self.config, &self.held);
        out.recycle.push(frame);
    }

    /// Does what time demands: expires flows (a bounded number a call), lets go of packets that waited too long, and sends those
    /// whose neighbour became known. Call it about every 10 ms, and once after a new topology.
    pub fn handle_timeout(&mut self, _view: View<'_>, _now: Nanos, _out: &mut Output<F>) {}

    /// Returns whether the worker waits for a neighbour, so that the shell may ask the kernel to resolve it: (port, address) pairs.
    pub fn wanted_neighbours(&self) -> Vec<(PortIndex, IpAddr)> {
        Vec::new()
    }

    /// Returns the counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns up to `limit` live flows, starting at table position `cursor`; the second value is the next cursor, `None` at the end.
    pub fn flows(&self, _view: View<'_>, _now: Nanos, _cursor: usize, _limit: usize) -> (Vec<FlowRecord>, Option<usize>) {
        (Vec::new(), None)
    }
}
