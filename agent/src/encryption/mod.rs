//! Encryption between nodes, as far as it is decided beside the packet path: keys, peers, selection, rotation (policy model 25, 32.1 to
//! 32.4).
//!
//! ```text
//!  Model ───────────────┐
//!                       ├─▶ plan ─▶ EncryptionPlan ─▶ workers
//!  our keys ◀─ keeper   │     └──▶ findings ─▶ status
//!     │      file, or   │
//!     │      Secret     └─▶ who changed its key ─▶ Events
//!     └─▶ annotations of our Node ─▶ the other nodes' Models
//! ```
//!
//! * [`plan`] is the heart, and pure: what a cluster's state and our keys come to.
//! * [`keys`] are our own, [`rotation`] is when one follows another.
//! * [`seal`] and [`private`] are how they are kept: in a file of this node, or sealed for this node in a Secret.
//! * [`keeper`] is where they are kept and where public halves are published, [`conductor`] brings all of it into order.
//!
//! **Secrets.** Private keys are in memory that is zeroed when it is let go of, nothing that can be printed holds them, and the process
//! leaves no core dump once it has one.

pub mod conductor;
mod dumps;
pub mod keeper;
pub mod keys;
mod nets;
pub mod plan;
mod private;
pub mod report;
mod rotation;
mod seal;
pub mod seen;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One of the two tunnels: IPv4 over IPv4, or IPv6 over IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns whether an address is of the family.
    pub fn has(self, address: &IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }

    /// Returns the annotation of a Node with its public key (policy model 25.2).
    pub fn key_annotation(self) -> &'static str {
        match self {
            Self::V4 => "projectcalico.org/WireguardPublicKey",
            Self::V6 => "projectcalico.org/WireguardPublicKeyV6",
        }
    }

    /// Returns the annotation of a Node with the address that its own packets for remote pods have (policy model 25.2).
    pub fn address_annotation(self) -> &'static str {
        match self {
            Self::V4 => "projectcalico.org/IPv4WireguardInterfaceAddr",
            Self::V6 => "projectcalico.org/IPv6WireguardInterfaceAddr",
        }
    }

    /// Returns the annotation with every key that a node of ours answers to, the one in use first: what makes a change of keys without
    /// loss possible (policy model 32.3). Its presence says that the node runs margay.
    pub fn keys_annotation(self) -> &'static str {
        match self {
            Self::V4 => "margay/wireguard-keys",
            Self::V6 => "margay/wireguard-keys-v6",
        }
    }

    /// Returns the bytes that a packet grows by on its way, as reckoned for MTUs (policy model 25.1).
    pub fn overhead(self) -> u32 {
        match self {
            Self::V4 => 60,
            Self::V6 => 80,
        }
    }
}

/// Returns the names of all annotations that are ours to write.
pub fn annotations() -> impl Iterator<Item = &'static str> {
    Family::ALL
        .into_iter()
        .flat_map(|family| [family.key_annotation(), family.keys_annotation(), family.address_annotation()])
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
