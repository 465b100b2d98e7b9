//! What a node says about itself: plain values that travel as JSON, and the trait of whoever can give them.
//!
//! The packet path knows indices and numbers; a report knows names. Whoever implements [`NodeView`] translates once, beside the
//! packet path, so that the admin socket and the metrics page say the same thing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crossbeam::channel::Receiver;
use margay_control::Problem;
use margay_control::kubernetes::{Asked, Traffic};
use margay_core::worker::{Captured, TapId};
use margay_core::{Counters, DropReason};
use margay_policy_engine::snapshot::Attribution;
use serde::{Deserialize, Serialize};

use crate::capture::{CaptureFilter, CaptureReport};
use crate::encryption::report::WireguardReport;
use crate::explain::Explanation;
use crate::simulate::probe::Probe;

/// A running node, seen from beside the packet path. Every method may be called from any thread, at any time, and must not block the
/// workers.
pub trait NodeView: Send + Sync + 'static {
    /// Returns the state of the node.
    fn status(&self) -> StatusReport;
    /// Returns the live flows that pass `filter`, at most `filter.limit`.
    fn flows(&self, filter: &FlowFilter) -> Vec<FlowReport>;
    /// Returns a subscription to drops and the most recent ones from before; see [`super::DropHub`].
    fn drops(&self) -> (Vec<DropReport>, Receiver<DropReport>);
    /// Begins to watch packets that pass `filter`, until [`NodeView::end_watch`]. An error is a sentence for the asker.
    fn watch(&self, filter: &CaptureFilter) -> Result<(TapId, Receiver<Captured>), String>;
    /// Ends [`NodeView::watch`].
    fn end_watch(&self, id: TapId);
    /// Puts names into told packets.
    fn tell(&self, packets: Vec<Captured>) -> Vec<CaptureReport>;
    /// Ends the quarantine of a pod (`namespace/pod`) or of a device; returns the device's name. An error is a sentence for the asker.
    fn release(&self, what: &str) -> Result<String, String>;
    /// Returns the addresses of those of the named pods that the policy in force knows, here and on other nodes; an error is a sentence for
    /// the asker.
    fn pods(&self, names: &[String]) -> Result<BTreeMap<String, Vec<IpAddr>>, String>;
    /// Returns why the probe is allowed or denied under the policy in force; an error is a sentence for the asker.
    fn explain(&self, probe: &Probe) -> Result<Explanation, String>;
}

/// The health of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// Node name.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Number of the snapshot in force; zero before the first.
    pub generation: u64,
    /// Policy is in force and every worker is alive.
    pub ready: bool,
    /// Why not, in sentences; empty when ready.
    pub not_ready: Vec<String>,
    /// Policy is that of an earlier run, because the source of truth does not answer (PM-D27).
    pub stale: bool,
    /// Pods that have an interface on this node.
    pub endpoints: Vec<EndpointReport>,
    /// Ports of the switch.
    pub ports: Vec<PortReport>,
    /// Workers.
    pub workers: Vec<WorkerReport>,
    /// What is wrong with objects of the source of truth.
    pub problems: Vec<Problem>,
    /// Sums over all workers.
    pub counters: CounterReport,
    /// Memory in use.
    pub memory: MemoryReport,
    /// Objects known, by kind.
    pub objects: BTreeMap<String, u64>,
    /// Time that the last compilation took, in seconds.
    pub compile_seconds: f64,
    /// Encryption between nodes.
    pub wireguard: WireguardReport,
    /// Largest MTU whose packets ports take; 0 where that is not known.
    pub largest_mtu: u32,
    /// What was asked of the API server; empty for folders of manifests.
    pub source: SourceReport,
}

/// What was asked of the API server since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceReport {
    /// Requests that ended.
    pub requests: Vec<RequestReport>,
    /// Watches opened in place of one that ended, by resource.
    pub watch_restarts: BTreeMap<String, u64>,
    /// Lists after the first, by resource.
    pub relists: BTreeMap<String, u64>,
    /// Objects, events and pages that could not be read, by what they were about.
    pub unreadable: BTreeMap<String, u64>,
}

/// Requests of one sort.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestReport {
    /// `list`, `watch`, `get`, `create`, `update`, `patch`.
    pub verb: String,
    /// Resource with its group.
    pub resource: String,
    /// `2xx`, the code of a refusal, or `none`.
    pub code: String,
    /// How many.
    pub count: u64,
}

impl From<&Traffic> for SourceReport {
    fn from(from: &Traffic) -> Self {
        let request = |(asked, count): (&Asked, &u64)| RequestReport {
            verb: asked.verb.to_owned(),
            resource: asked.resource.clone(),
            code: asked.code.clone(),
            count: *count,
        };
        Self {
            requests: from.requests.iter().map(request).collect(),
            watch_restarts: from.watch_restarts.clone(),
            relists: from.relists.clone(),
            unreadable: from.unreadable.clone(),
        }
    }
}

/// One pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointReport {
    /// Number of the endpoint in the dataplane.
    pub id: u32,
    /// Pod's namespace.
    pub namespace: String,
    /// Pod's name.
    pub pod: String,
    /// Device on the node's side.
    pub interface: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// `enforced`, `closed` before its policy is in force, or `quarantined`.
    pub state: String,
}

/// One line into the switch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortReport {
    /// Device name.
    pub name: String,
    /// `pod`, `host` or `uplink`.
    pub kind: String,
    /// Where its program stands: `native` or `generic`.
    pub mode: String,
    /// How packets cross it beside that.
    pub manner: MannerReport,
    /// The NICs that carry an uplink which is made of others; empty elsewhere.
    pub stands_on: Vec<String>,
    /// Why its program is not on these.
    pub why: String,
    /// Number of queues.
    pub queues: u32,
    /// Worker that owns the first queue.
    pub worker: u32,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Of a pod: the largest that its routes let leave the node.
    pub route_mtu: u32,
    /// Packets taken from the port.
    pub rx_packets: u64,
    /// Packets sent to the port.
    pub tx_packets: u64,
    /// Those of them that were copied, as they came in another packet memory than the port's.
    pub copied_packets: u64,
    /// Packets that the kernel could not hand over or take.
    pub ring_drops: u64,
    /// Nothing is taken from it: its frames ended workers again and again. `margay release` ends that.
    pub quarantined: bool,
}

impl PortReport {
    /// Returns how its packets are taken and sent, in a few words: `native, zero-copy`.
    pub fn crossing(&self) -> String {
        let zero_copy = if self.manner.zero_copy == "used" { ", zero-copy" } else { "" };
        format!("{}{zero_copy}", self.mode)
    }
}

/// How packets cross a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MannerReport {
    /// Who polls its device: `inline` (whoever sends), `threaded` (threads of the kernel), `driver` (what the
    /// machine was told), or `unknown`.
    pub polling: String,
    /// How long the pod's end gathers segments of a stream, in microseconds.
    pub gather_micros: u64,
    /// Whether its driver does without copies: `used`; `offered` and switched off; `refused`, which `why` tells; `none`; or `unknown`.
    pub zero_copy: String,
    /// Whether its packets may have several frames, and so be larger than one holds: `on`, `off` or `unknown`.
    pub multi_buffer: String,
    /// What becomes of TCP and UDP sums that a pod leaves to its device, on packets that go out here: `left` (to the receiving
    /// pod's kernel) or `completed`.
    pub checksums: String,
    /// The kernel says when it needs to be woken to send.
    pub need_wakeup: bool,
    /// What spoke for it at the start; empty where nothing was chosen.
    pub why: String,
}

/// One worker thread.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerReport {
    /// Index.
    pub index: u32,
    /// CPU that it is pinned to.
    pub cpu: Option<u32>,
    /// Milliseconds since its last heartbeat.
    pub heartbeat_age_ms: u64,
    /// Panics that it went on from.
    pub panics: u64,
}

/// Memory of the agent, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryReport {
    /// Resident set of the process.
    pub resident_bytes: u64,
    /// Packet memory shared with the kernel, part of the resident set.
    pub umem_bytes: u64,
    /// The part of it that uplinks with zero-copy have for themselves.
    pub own_umem_bytes: u64,
    /// The kernel's own bookkeeping for our sockets, estimated; outside the resident set.
    pub kernel_bytes: u64,
}

/// Counters with names; see [`Counters`] for what each counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CounterReport {
    /// Frames taken from ports.
    pub received: u64,
    /// Packets given from one worker to another: to be sent to a pod, judged, sealed or opened.
    pub handed_over: u64,
    /// Frames sent on.
    pub forwarded: u64,
    /// Segments that reached their pod as part of the one before them.
    pub joined: u64,
    /// Packets larger than their path that left in fragments; they are forwarded too.
    pub cut: u64,
    /// Frames answered by us.
    pub answered: u64,
    /// Packets of our own that began the way into a tunnel.
    pub made: u64,
    /// WireGuard messages that carried no packet and needed no answer.
    pub messages: u64,
    /// Packets sealed; they are forwarded too.
    pub sealed: u64,
    /// Packets that came sealed and were opened.
    pub opened: u64,
    /// Frames that wait for a neighbour.
    pub held: u64,
    /// ICMP errors sent.
    pub icmp_errors_sent: u64,
    /// TCP resets sent.
    pub resets_sent: u64,
    /// Answers that were not sent because their port had had enough of them.
    pub answers_limited: u64,
    /// Packets answered by a remembered flow.
    pub flow_hits: u64,
    /// Packets judged by tables.
    pub flow_misses: u64,
    /// Flows judged again.
    pub flow_rejudged: u64,
    /// Flows put out, unanswered, to make room for new ones.
    pub flow_evicted: u64,
    /// Flows alive.
    pub flows: u64,
    /// Drops by reason, zeros included.
    pub drops: BTreeMap<String, u64>,
}

impl From<&Counters> for CounterReport {
    fn from(counters: &Counters) -> Self {
        Self {
            received: counters.received,
            handed_over: counters.handed_over,
            forwarded: counters.forwarded,
            joined: counters.joined,
            cut: counters.cut,
            answered: counters.answered,
            made: counters.made,
            messages: counters.messages,
            sealed: counters.sealed,
            opened: counters.opened,
            held: counters.held,
            icmp_errors_sent: counters.icmp_errors_sent,
            resets_sent: counters.resets_sent,
            answers_limited: counters.answers_limited,
            flow_hits: counters.flow_hits,
            flow_misses: counters.flow_misses,
            flow_rejudged: counters.flow_rejudged,
            flow_evicted: counters.flow_evicted,
            flows: counters.flows,
            drops: DropReason::ALL.iter().map(|r| (r.as_str().to_owned(), counters.dropped(*r))).collect(),
        }
    }
}

/// Who decided: a rule, or the end of a tier or of the profiles.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Decider {
    /// Tier name, or `__PROFILE__`.
    pub tier: String,
    /// Kind of the policy.
    pub kind: String,
    /// Namespace; empty for a global policy.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Index of the rule; -1 at an end of tier.
    pub rule: i32,
}

impl From<&Attribution> for Decider {
    fn from(from: &Attribution) -> Self {
        Self {
            tier: from.tier.clone(),
            kind: from.kind.clone(),
            namespace: from.namespace.clone(),
            name: from.name.clone(),
            rule: from.rule,
        }
    }
}

impl std::fmt::Display for Decider {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.tier)?;
        if !self.kind.is_empty() {
            let slash = if self.namespace.is_empty() { "" } else { "/" };
            write!(out, " {} {}{slash}{}", self.kind, self.namespace, self.name)?;
        }
        match self.rule {
            rule if rule >= 0 => write!(out, " rule {rule}"),
            _ => write!(out, " end"),
        }
    }
}

/// One dropped packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DropReport {
    /// Milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// Device that the packet came from.
    pub port: String,
    /// Name of the reason.
    pub reason: String,
    /// The reason in a sentence.
    pub description: String,
    /// Source address, where the packet could be parsed.
    pub source: Option<IpAddr>,
    /// Destination address.
    pub destination: Option<IpAddr>,
    /// `namespace/pod` of the source, where known.
    pub source_pod: Option<String>,
    /// `namespace/pod` of the destination, where known.
    pub destination_pod: Option<String>,
    /// IP protocol number.
    pub protocol: u8,
    /// Transport source port; zero when there is none.
    pub source_port: u16,
    /// Transport destination port; zero when there is none.
    pub destination_port: u16,
    /// `egress` or `ingress`, when policy decided.
    pub leg: Option<String>,
    /// Who decided, when policy decided.
    pub decided_by: Option<Decider>,
}

/// One live flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowReport {
    /// Who opened it.
    pub source: Option<IpAddr>,
    /// To whom.
    pub destination: Option<IpAddr>,
    /// `namespace/pod` of the source, where known.
    pub source_pod: Option<String>,
    /// `namespace/pod` of the destination, where known.
    pub destination_pod: Option<String>,
    /// IP protocol number.
    pub protocol: u8,
    /// Transport source port, or ICMP identifier.
    pub source_port: u16,
    /// Transport destination port.
    pub destination_port: u16,
    /// State in words.
    pub state: String,
    /// Packets from the opener.
    pub forward_packets: u64,
    /// Bytes from the opener.
    pub forward_bytes: u64,
    /// Packets towards the opener.
    pub reverse_packets: u64,
    /// Bytes towards the opener.
    pub reverse_bytes: u64,
    /// Whether packets from the opener go through a WireGuard tunnel.
    pub encrypted_forward: bool,
    /// Whether packets towards the opener do.
    pub encrypted_reverse: bool,
    /// Milliseconds until it is forgotten if nothing more comes.
    pub expires_in_ms: u64,
    /// Who let it leave the sender.
    pub egress: Option<Decider>,
    /// Who let it reach the receiver.
    pub ingress: Option<Decider>,
}

/// Which flows to list. Absent criteria match everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowFilter {
    /// Either end has this address.
    pub address: Option<IpAddr>,
    /// Either end is this pod, as `namespace/pod`.
    pub pod: Option<String>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Either port.
    pub port: Option<u16>,
    /// Most flows listed.
    pub limit: usize,
}

impl Default for FlowFilter {
    fn default() -> Self {
        Self { address: None, pod: None, protocol: None, port: None, limit: 10_000 }
    }
}

impl FlowFilter {
    /// Returns whether `flow` is wanted; `limit` is the lister's to count.
    pub fn matches(&self, flow: &FlowReport) -> bool {
        let either = |wanted: IpAddr| flow.source == Some(wanted) || flow.destination == Some(wanted);
        let pod = |wanted: &str| {
            flow.source_pod.as_deref() == Some(wanted) || flow.destination_pod.as_deref() == Some(wanted)
        };
        self.address.is_none_or(either)
            && self.pod.as_deref().is_none_or(pod)
            && self.protocol.is_none_or(|wanted| flow.protocol == wanted)
            && self.port.is_none_or(|wanted| flow.source_port == wanted || flow.destination_port == wanted)
    }
}

/// Which drops to show. Absent criteria match everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DropFilter {
    /// Name of the reason.
    pub reason: Option<String>,
    /// Either end has this address.
    pub address: Option<IpAddr>,
    /// Either end is this pod, as `namespace/pod`.
    pub pod: Option<String>,
}

impl DropFilter {
    /// Returns whether `drop` is wanted.
    pub fn matches(&self, drop: &DropReport) -> bool {
        let either = |wanted: IpAddr| drop.source == Some(wanted) || drop.destination == Some(wanted);
        let pod = |wanted: &str| {
            drop.source_pod.as_deref() == Some(wanted) || drop.destination_pod.as_deref() == Some(wanted)
        };
        self.reason.as_deref().is_none_or(|wanted| drop.reason == wanted)
            && self.address.is_none_or(either)
            && self.pod.as_deref().is_none_or(pod)
    }
}
