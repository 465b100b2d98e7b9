//! What travels between the agent and whoever watches packets.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::admin::report::Decider;

/// Which packets. Absent criteria match everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaptureFilter {
    /// What comes from or goes to this pod, as `namespace/pod`.
    pub pod: Option<String>,
    /// The two ends of a conversation, either way round.
    pub ends: [EndFilter; 2],
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Only packets dropped for one of these reasons.
    pub reasons: Vec<String>,
    /// Bytes kept of a packet; all of it where absent.
    pub snap_len: Option<u32>,
    /// Also as it left.
    pub sent: bool,
}

/// One end of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EndFilter {
    /// `namespace/pod`, `ip:ADDRESS` or an address.
    pub peer: Option<String>,
    /// Transport port.
    pub port: Option<u16>,
}

/// One packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureReport {
    /// When it was taken up, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Worker that ended it.
    pub worker: u32,
    /// Device that it came from.
    pub port: String,
    /// Its length in bytes, from the Ethernet header on.
    pub length: u32,
    /// Its first bytes as it arrived, in base64.
    pub bytes: String,
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
    /// `forwarded`, `fragmented`, `answered`, `awaits_first_fragment`, `awaits_neighbour` or `dropped`.
    pub fate: String,
    /// Name of the reason of a dropped packet.
    pub reason: Option<String>,
    /// The reason in a sentence.
    pub description: Option<String>,
    /// The rule that dropped it, when one did.
    pub decided_by: Option<Decider>,
    /// State of its flow before it, in the words of `margay flows`; absent where it was the first.
    pub known: Option<String>,
    /// State of its flow after it; absent where it has none.
    pub state: Option<String>,
    /// Egress policy of the pod that opened the flow, when that is a pod of this node.
    pub egress: Option<LegReport>,
    /// Ingress policy of the other end, when that is a pod of this node.
    pub ingress: Option<LegReport>,
    /// Its way out, where it was found.
    pub path: Option<PathReport>,
    /// Device that it left by, when it left whole.
    pub out: Option<String>,
    /// As it left, when that was asked for and it left whole.
    pub sent: Option<SentReport>,
    /// Number of the policy snapshot.
    pub generation: u64,
    /// Matching packets before this one that could not be told.
    pub lost_before: u64,
}

/// What one leg's policy says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LegReport {
    /// The pod whose policy it is, as `namespace/pod`.
    pub pod: String,
    /// `allow` or `deny`.
    pub verdict: String,
    /// Who decides.
    pub by: Option<Decider>,
}

/// A way out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathReport {
    /// Device.
    pub port: String,
    /// Ethernet address of the next hop.
    pub next_hop: String,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Whether it counts as a hop.
    pub decrements_ttl: bool,
}

/// A packet as it left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SentReport {
    /// Device.
    pub port: String,
    /// Its length in bytes.
    pub length: u32,
    /// Its first bytes, in base64.
    pub bytes: String,
}
