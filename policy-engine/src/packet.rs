//! What policy may know about a packet, and the small types that name endpoints and snapshots.

use std::net::IpAddr;

use serde::Serialize;

/// Names one local endpoint for as long as it lives on this node; never used again by the same agent process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u32);

/// Names one interface of a host for as long as the engine knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u32);

/// Where a policy of a host endpoint is asked (policy model 11.2), in the order of an arriving packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Context {
    /// Before any state; `doNotTrack` policies.
    Untracked,
    /// Before destination translation, of connections that are not established; `preDNAT` policies, ingress only.
    PreDnat,
    /// To and from the host itself.
    Normal,
    /// Routed through the host; `applyOnForward` policies.
    Forward,
}

impl Context {
    /// Every context, in the order of an arriving packet.
    pub const ALL: [Self; 4] = [Self::Untracked, Self::PreDnat, Self::Normal, Self::Forward];

    /// Returns the name used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Untracked => "untracked",
            Self::PreDnat => "preDNAT",
            Self::Normal => "normal",
            Self::Forward => "forward",
        }
    }
}

/// Numbers a published snapshot. Larger is newer; zero is "nothing published yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// Names the compiled table behind an endpoint and direction. It changes exactly when the table changes meaning, and a value never stands
/// for two meanings: an endpoint sees an earlier value again only when it is governed by that very table again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// The interned set of address sets that an address belongs to. Equal ids mean equal memberships, across snapshots too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityId(pub u32);

/// Point of view of the endpoint: `Ingress` is towards it, `Egress` is from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Towards the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

/// The packet as a rule sees it (policy model 12.2): addresses after destination translation.
///
/// Shape: `source_port` and `destination_port` are `None` for protocols without ports and for packets whose ports are unknown;
/// `icmp` is (type, code), present for ICMP and ICMPv6 only. Both addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PacketTuple {
    /// Who sends.
    pub source: IpAddr,
    /// Who receives.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Transport source port (TCP, UDP, SCTP, UDPLite).
    pub source_port: Option<u16>,
    /// Transport destination port.
    pub destination_port: Option<u16>,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
}

/// What policy decided for one leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The packet may pass this leg.
    Allow,
    /// The packet may not.
    Deny,
}

/// What a host endpoint's policy says in one context (policy model 11.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HostVerdict {
    /// Accepted in this context; what that skips is said in policy model 11.3.
    Allow,
    /// Dropped.
    Deny,
    /// No policy of the context decides, or the packet is failsafe in a context that leaves it tracked: the next context is asked.
    NoMatch,
}
