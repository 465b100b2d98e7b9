//! The tunnels for people, and for those who replace keys.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::{PeerId, PublicKey};
use crate::time::Nanos;

/// A key under which nothing was opened for this long has no session left (the protocol's time after which one is refused).
const UNUSED_AFTER: Nanos = Nanos::from_secs(180);

/// Packets and bytes inside the tunnel, of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Traffic {
    #[inline]
    pub(super) fn add(&mut self, len: usize) {
        self.packets += 1;
        self.bytes += len as u64;
    }
}

/// One pair of keys, ours and a peer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReport {
    /// Ours.
    pub own: PublicKey,
    /// Theirs.
    pub theirs: PublicKey,
    /// Whether there is a session under it.
    pub live: bool,
    /// Whether packets for the peer are sealed under it.
    pub sends: bool,
    /// Time since the last handshake; absent without a session.
    pub handshake: Option<Duration>,
    /// Time since a packet was last opened under it; absent when none was.
    pub heard: Option<Nanos>,
}

impl KeyReport {
    /// Whether the peer still uses the pair, as far as can be seen from here.
    pub fn is_used(&self) -> bool {
        self.sends || self.heard.is_some_and(|age| age < UNUSED_AFTER)
    }
}

/// State of a peer, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReport {
    /// Its number.
    pub id: PeerId,
    /// The node's name.
    pub node: String,
    /// Whether the tunnel is that of IPv6.
    pub v6: bool,
    /// Its key that packets are sealed for, or would be.
    pub key: Option<PublicKey>,
    /// Where it was heard from last, or is said to be.
    pub endpoint: SocketAddr,
    /// Addresses that it may speak for.
    pub allowed: Vec<IpNet>,
    /// Whether there is a session.
    pub live: bool,
    /// Time since the last handshake; absent before the first and after the session's end.
    pub handshake: Option<Duration>,
    /// What was sealed for it.
    pub sent: Traffic,
    /// What was opened from it.
    pub received: Traffic,
    /// Every pair of keys, in order of preference: none before the first packet, several while a key is followed by another.
    pub keys: Vec<KeyReport>,
}

/// One of our own keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnKeyReport {
    /// Whether it is of the tunnel of IPv6.
    pub v6: bool,
    /// Its public half.
    pub key: PublicKey,
    /// Peers that have a session under it.
    pub sessions: usize,
    /// Peers that still use it: they are sent to under it, or were heard under it within three minutes.
    pub users: usize,
}

/// The tunnels of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelReport {
    /// Number of the plan that every worker has in force; 0 before the first.
    pub generation: u64,
    /// Our keys that some peer has a pair with, by family, in the order of the first pair.
    pub own: Vec<OwnKeyReport>,
    /// Peers by number, IPv4 before IPv6.
    pub peers: Vec<PeerReport>,
}

impl TunnelReport {
    /// Puts together what workers report of their peers.
    pub fn new(parts: impl IntoIterator<Item = (u64, Vec<PeerReport>)>) -> Self {
        let (mut generation, mut peers) = (None, Vec::new());
        for (under, part) in parts {
            generation = Some(generation.map_or(under, |least: u64| least.min(under)));
            peers.extend(part);
        }
        peers.sort_by_key(|peer| (peer.v6, peer.id));
        let mut own: Vec<OwnKeyReport> = Vec::new();
        for peer in &peers {
            for pair in &peer.keys {
                let place = own.iter().position(|key| (key.v6, key.key) == (peer.v6, pair.own));
                let place = place.unwrap_or_else(|| {
                    own.push(OwnKeyReport { v6: peer.v6, key: pair.own, sessions: 0, users: 0 });
                    own.len() - 1
                });
                own[place].sessions += usize::from(pair.live);
                own[place].users += usize::from(pair.is_used());
            }
        }
        Self { generation: generation.unwrap_or_default(), own, peers }
    }
}
