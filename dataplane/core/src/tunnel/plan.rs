//! What the control side says about encryption: whose keys, which addresses, and what must never leave or arrive in clear.
//!
//! A plan is part of what is published to the workers: with a new one, peers change in one step. Everything in it follows from the
//! cluster's state alone, so two agents that see the same cluster have plans that fit together.
//!
//! ```text
//!  packet leaves ──▶ source selected, and destination one of a peer's addresses? ── yes ─▶ sealed
//!                                                 │ no
//!                             destination required to be encrypted (Strict)? ────── yes ─▶ dropped: unencrypted
//!                                                 │ no
//!                                                 ▼ in clear
//! ```
//!
//! IPv4 and IPv6 are tunnels of their own, each over its own underlay, with a key and a port of its own (policy model 25.1).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{PeerId, PrivateKey, PublicKey};

/// Our end of the tunnel of one family.
#[derive(Clone, Debug)]
pub struct OwnEnd {
    /// Our key pairs. Handshakes are begun with the first; datagrams for any of them are accepted, so that a key can be followed by
    /// another without loss (policy model 32.3). Never empty.
    pub keys: Vec<PrivateKey>,
    /// UDP port that we listen on and send from.
    pub port: u16,
    /// Our address on the underlay, of the tunnel's family: the source of outer headers.
    pub address: IpAddr,
    /// Largest packet inside, in bytes; 0 is what fits the uplink (policy model 25.1).
    pub mtu: u16,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPlan {
    /// Its number, of 20 bits, dense: the same for as long as the agent lives, also over a change of key.
    pub id: PeerId,
    /// The node's name, for people.
    pub node: String,
    /// Its keys. What is sent is sealed for the first; what arrives under any of them is accepted. Never empty.
    pub keys: Vec<PublicKey>,
    /// Where it is, until it is heard from elsewhere. Its family is the tunnel's.
    pub endpoint: SocketAddr,
    /// Addresses that it may speak for, of the tunnel's family.
    pub allowed: Vec<IpNet>,
    /// Seconds between packets that say nothing, when there is nothing to say; absent is never.
    pub keepalive: Option<u16>,
}

/// Encryption of one family.
#[derive(Clone, Debug)]
pub struct FamilyPlan {
    /// Our end.
    pub own: OwnEnd,
    /// The peers of this family.
    pub peers: Vec<PeerPlan>,
}

/// Everything about encryption at one instant.
#[derive(Clone, Debug, Default)]
pub struct EncryptionPlan {
    /// Grows with every change of the plan.
    pub generation: u64,
    /// IPv4 over IPv4.
    pub v4: Option<FamilyPlan>,
    /// IPv6 over IPv6.
    pub v6: Option<FamilyPlan>,
    /// Local addresses whose packets are encrypted, where some pools are not selected (policy model 32.2); longest prefix wins, and an
    /// address in none of them is selected.
    pub selected: Vec<(IpNet, bool)>,
    /// `encryptionMode: Strict` (policy model 32.4): what goes to or claims to come from an address whose longest prefix here says `true`
    /// is dropped unless it is encrypted. Empty in Permissive.
    pub required: Vec<(IpNet, bool)>,
}
