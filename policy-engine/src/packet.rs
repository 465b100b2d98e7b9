//! What policy may know about a packet, and the small types that name endpoints and snapshots.

use std::net::IpAddr;

use serde::Serialize;

/// Names one local endpoint for as long as it lives on this node; never used again by the same agent process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u32);

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
