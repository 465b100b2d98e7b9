//! WireGuard between nodes, in the packet path: packets in, datagrams out, and back.
//!
//! ```text
//!  packet to a pod of another node ─▶ seal ─▶ Ethernet + IP + UDP written around it ─▶ uplink
//!  datagram to our WireGuard port  ─▶ open ─▶ is its source one of the peer's? ─▶ the pipeline, as from the tunnel port
//! ```
//!
//! The protocol is boringtun's. What is ours: which peer a datagram is of, whose addresses a peer may speak for, where its endpoint is
//! now, the outer headers ([`outer`]), congestion marks ([`ecn`]), and names for everything that is refused.
//!
//! A peer belongs to one worker; a [`Tunnels`] holds the peers of one family of one worker. [`Family::greet`] says whose a datagram is
//! before anything is decrypted, so that a worker can hand it over. What all workers ask is an [`Encryption`], compiled from the plan of
//! the control side ([`plan`]).
//!
//! **Time.** boringtun reads the system's clock by itself; only when its timers are looked at is the caller's business
//! ([`Tunnels::tick`]). With the feature `mock-clock` it reads a clock that tests set. Its ephemeral keys are random always, so a
//! simulation repeats in everything but the bytes of datagrams.
//!
//! **Secrets.** The private key is zeroed when it is dropped, and nothing here that can be printed holds it.

pub mod ecn;
mod encryption;
mod family;
pub mod outer;
mod peers;
pub mod plan;
mod prefixes;
mod report;
mod tunnels;

use std::fmt;

use boringtun::noise::errors::WireGuardError;
use boringtun::x25519;

pub use encryption::Encryption;
pub use family::{Addressee, Family, Greeting};
pub use report::{KeyReport, OwnKeyReport, PeerReport, Traffic, TunnelReport};
pub use tunnels::Tunnels;

/// Bytes that sealing adds: message header and tag.
pub const OVERHEAD: usize = 32;
/// Largest packet that is sealed: with all headers around it, it fits one frame of 4 KiB.
pub const LARGEST: u32 = 3_700;
/// Room that any message of the protocol itself needs.
pub const MESSAGE: usize = 148;
/// Most pairs of keys, ours and theirs, that a peer has at once.
const PAIRS: usize = 16;

/// Number of a peer, the same on every worker; with the number of a pair of keys it is part of the protocol's receiver index, so it has
/// 20 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

impl PeerId {
    /// The first number that is none.
    pub const END: u32 = 1 << 20;
}

/// Returns the index that the engine makes receiver indexes of: its upper 24 bits.
fn index_of(peer: PeerId, pair: u8) -> u32 {
    peer.0 << 4 | u32::from(pair)
}

/// Returns whose a receiver index is.
#[inline]
fn place_of(receiver: u32) -> (PeerId, u8) {
    (PeerId(receiver >> 12), (receiver >> 8 & 0xf) as u8)
}

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:02x}{:02x}{:02x}{:02x}…)", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// Our own key pair.
#[derive(Clone)]
pub struct PrivateKey(x25519::StaticSecret);

impl PrivateKey {
    /// Takes 32 random bytes as a key.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes.into())
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.0).to_bytes())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// Why a packet or datagram is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// Not a message of the protocol.
    #[error("not a WireGuard message")]
    Malformed,
    /// No peer has this number or key.
    #[error("from nobody that is a peer of this node")]
    UnknownPeer,
    /// No session that this belongs to.
    #[error("no session with this peer, or one that is over")]
    NoSession,
    /// A handshake message that was made for none of our keys.
    #[error("a handshake with another key than ours")]
    NotForUs,
    /// Did not prove its key, or was changed on the way.
    #[error("not sealed with the peer's key, or changed on the way")]
    Forged,
    /// Was here before, or is far too late.
    #[error("a replay, or far too late")]
    Replayed,
    /// Decrypted well, and its source address is not one of the peer's.
    #[error("the source address is none that the peer may speak for")]
    NotAllowed,
    /// Decrypted well, and is no IP packet.
    #[error("no IP packet inside")]
    NotIp,
    /// Too many handshakes.
    #[error("too many handshakes under way")]
    UnderLoad,
    /// The other buffer has no room.
    #[error("no room for the packet")]
    NoRoom,
}

impl From<WireGuardError> for TunnelError {
    fn from(error: WireGuardError) -> Self {
        use WireGuardError as E;
        match error {
            E::DestinationBufferTooSmall => Self::NoRoom,
            E::IncorrectPacketLength | E::UnexpectedPacket | E::WrongPacketType => Self::Malformed,
            E::WrongIndex | E::NoCurrentSession | E::ConnectionExpired => Self::NoSession,
            E::WrongKey | E::InvalidMac | E::InvalidAeadTag | E::InvalidTai64nTimestamp => Self::Forged,
            E::WrongTai64nTimestamp | E::InvalidCounter | E::DuplicateCounter => Self::Replayed,
            E::InvalidPacket => Self::NotIp,
            E::UnderLoad | E::LockFailed => Self::UnderLoad,
        }
    }
}

/// What became of a packet for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// A datagram of this length is to be sent to the peer's endpoint.
    Datagram(usize),
    /// There is no session; see [`Tunnels::begin`].
    NoSession,
}

/// What a datagram was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// A packet of this length, from a peer that may speak for its source.
    Packet(usize),
    /// A message of the protocol; this answer is to be sent back to where it came from. There may be a session now.
    Answer(usize),
    /// A message of the protocol that needs no answer. There may be a session now.
    Nothing,
}
