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
//! A peer belongs to one worker; a [`Tunnels`] holds the peers of one. [`Tunnels::peer_of`] says whose a datagram is before anything is
//! decrypted, so that a worker can hand it over.
//!
//! **Time.** boringtun reads the system's monotonic clock by itself; only when its timers are looked at is the caller's business
//! ([`Tunnels::tick`]). A simulation with a clock of its own builds it with its `mock-instant` feature.
//!
//! **Secrets.** The private key is zeroed when it is dropped, and nothing here that can be printed holds it.

pub mod ecn;
pub mod outer;
mod peers;
pub mod plan;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use ipnet::IpNet;

use crate::time::Nanos;
use peers::{Allowed, Peer};

/// Bytes that sealing adds: message header and tag.
pub const OVERHEAD: usize = 32;
/// Room that any message of the protocol itself needs.
pub const MESSAGE: usize = 148;
/// Handshake messages a second from which on senders have to prove their address with a cookie. Each is counted twice, once to learn
/// whose it is.
const HANDSHAKES: u64 = 2 * 100;

/// Number of a peer, the same on every worker; it is part of the protocol's receiver index, so it has 24 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

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

/// What a peer is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSpec {
    /// Its number.
    pub id: PeerId,
    /// Its key.
    pub key: PublicKey,
    /// Where it is, until it is heard from elsewhere.
    pub endpoint: SocketAddr,
    /// Addresses that it may speak for.
    pub allowed: Vec<IpNet>,
    /// How often something is sent when there is nothing to say; zero or absent is never.
    pub keepalive: Option<u16>,
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
    /// There is no session yet: the packet waits inside, and this datagram begins a handshake.
    Initiation(usize),
    /// The packet waits inside for a handshake that is under way.
    Waits,
}

/// What a datagram was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// A packet of this length, from a peer that may speak for its source.
    Packet(PeerId, usize),
    /// A message of the protocol; this answer is to be sent back. Packets may wait, see [`Tunnels::take_waiting`].
    Answer(Option<PeerId>, usize),
    /// A message of the protocol that needs no answer.
    Nothing(PeerId),
}

/// State of a peer, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReport {
    /// Its number.
    pub id: PeerId,
    /// Its key.
    pub key: PublicKey,
    /// Where it was heard from last, or is said to be.
    pub endpoint: SocketAddr,
    /// Addresses that it may speak for.
    pub allowed: Vec<IpNet>,
    /// Time since the last handshake; absent before the first and after the session's end.
    pub handshake: Option<Duration>,
    /// Bytes of packets sealed for it.
    pub sent: u64,
    /// Bytes of packets from it.
    pub received: u64,
}

/// The peers of one worker. See the module.
pub struct Tunnels {
    key: PrivateKey,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
    peers: Vec<Option<Peer>>,
    by_key: hashbrown::HashMap<PublicKey, PeerId, foldhash::fast::RandomState>,
    allowed: Allowed,
    /// Next peer whose timers are looked at.
    cursor: usize,
    limiter_reset: Nanos,
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels").field("peers", &self.by_key.len()).finish_non_exhaustive()
    }
}

impl Tunnels {
    /// Returns tunnels without peers.
    pub fn new(key: PrivateKey) -> Self {
        let public = x25519::PublicKey::from(&key.0);
        Self {
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES)),
            key,
            public,
            peers: Vec::new(),
            by_key: hashbrown::HashMap::default(),
            allowed: Allowed::default(),
            cursor: 0,
            limiter_reset: Nanos(0),
        }
    }

    /// Makes the peers be `specs`. A peer that is there already with the same key keeps its session, and where it was heard from last
    /// unless its written endpoint is another one now. Addresses move in one step: none ever belongs to two peers.
    ///
    /// Of two specs with one key neither becomes a peer (policy model 25.4); their numbers are returned.
    pub fn set_peers(&mut self, specs: &[PeerSpec]) -> Vec<PeerId> {
        let mut keys: hashbrown::HashMap<PublicKey, usize> = hashbrown::HashMap::new();
        specs.iter().for_each(|spec| *keys.entry(spec.key).or_default() += 1);
        let (unique, doubles): (Vec<&PeerSpec>, Vec<&PeerSpec>) =
            specs.iter().partition(|spec| keys.get(&spec.key) == Some(&1));
        let mut before = std::mem::take(&mut self.peers);
        self.by_key.clear();
        for spec in &unique {
            let place = spec.id.0 as usize;
            if self.peers.len() <= place {
                self.peers.resize_with(place + 1, || None);
            }
            let known = before.get_mut(place).and_then(Option::take).filter(|peer| peer.spec.key == spec.key);
            self.peers[place] = Some(match known {
                Some(mut peer) => {
                    peer.follow(spec);
                    peer
                }
                None => Peer::new((*spec).clone(), self.key.0.clone(), Arc::clone(&self.limiter)),
            });
            self.by_key.insert(spec.key, spec.id);
        }
        self.allowed =
            Allowed::new(unique.iter().flat_map(|spec| spec.allowed.iter().map(|net| (*net, spec.id))));
        doubles.into_iter().map(|spec| spec.id).collect()
    }

    fn peer(&mut self, id: PeerId) -> Result<&mut Peer, TunnelError> {
        self.peers.get_mut(id.0 as usize).and_then(Option::as_mut).ok_or(TunnelError::UnknownPeer)
    }

    /// Returns the peer that speaks for an address.
    #[inline]
    pub fn peer_for(&self, address: IpAddr) -> Option<PeerId> {
        self.allowed.find(address)
    }

    /// Returns where a peer is.
    pub fn endpoint(&self, id: PeerId) -> Option<SocketAddr> {
        self.peers.get(id.0 as usize)?.as_ref().map(|peer| peer.endpoint)
    }

    /// Whether there is a session with the peer, so that nothing from it comes in clear.
    pub fn is_live(&self, id: PeerId) -> bool {
        let peer = self.peers.get(id.0 as usize).and_then(Option::as_ref);
        peer.is_some_and(|peer| peer.tunnel.time_since_last_handshake().is_some())
    }

    /// Seals `packet` for a peer: writes the datagram to the beginning of `to`.
    ///
    /// Shape: `to` has room for the packet and [`OVERHEAD`], and for [`MESSAGE`].
    ///
    /// Errors: [`TunnelError::UnknownPeer`], [`TunnelError::NoRoom`].
    #[inline]
    pub fn seal(&mut self, id: PeerId, packet: &[u8], to: &mut [u8]) -> Result<Sealed, TunnelError> {
        if to.len() < MESSAGE.max(packet.len() + OVERHEAD) {
            return Err(TunnelError::NoRoom);
        }
        let peer = self.peer(id)?;
        match peer.tunnel.encapsulate(packet, to) {
            TunnResult::WriteToNetwork(datagram) => {
                let is_data = matches!(datagram.first(), Some(4));
                let len = datagram.len();
                Ok(if is_data { Sealed::Datagram(len) } else { Sealed::Initiation(len) })
            }
            TunnResult::Err(error) => Err(error.into()),
            _ => Ok(Sealed::Waits),
        }
    }

    /// Returns whose a datagram is, by its receiver index or by the key it was begun with; nothing is decrypted but that key.
    ///
    /// Errors: [`TunnelError::Malformed`], [`TunnelError::UnknownPeer`], [`TunnelError::Forged`].
    pub fn peer_of(&self, datagram: &[u8]) -> Result<PeerId, TunnelError> {
        let packet = Tunn::parse_incoming_packet(datagram).map_err(|_| TunnelError::Malformed)?;
        let receiver = match packet {
            Packet::HandshakeInit(init) => {
                let half = parse_handshake_anon(&self.key.0, &self.public, &init)
                    .map_err(|_| TunnelError::Forged)?;
                let known = self.by_key.get(&PublicKey(half.peer_static_public));
                return known.copied().ok_or(TunnelError::UnknownPeer);
            }
            Packet::HandshakeResponse(response) => response.receiver_idx,
            Packet::PacketCookieReply(reply) => reply.receiver_idx,
            Packet::PacketData(data) => data.receiver_idx,
        };
        let id = PeerId(receiver >> 8);
        let known = self.peers.get(id.0 as usize).is_some_and(Option::is_some);
        if known { Ok(id) } else { Err(TunnelError::UnknownPeer) }
    }

    /// Opens a datagram that came from `from`: writes the packet, or the answer, to the beginning of `to`.
    ///
    /// Shape: `to` is as long as the datagram, and has room for [`MESSAGE`].
    ///
    /// Errors: [`TunnelError`]. A datagram that the peer has not sealed changes nothing; one that it has tells where the peer is, also when
    /// what is inside is refused.
    #[inline]
    pub fn open(&mut self, from: SocketAddr, datagram: &[u8], to: &mut [u8]) -> Result<Opened, TunnelError> {
        if to.len() < MESSAGE.max(datagram.len()) {
            return Err(TunnelError::NoRoom);
        }
        let id = match datagram.first() {
            // Data: no look at anything but the index.
            Some(4) if datagram.len() >= OVERHEAD => {
                PeerId(u32::from_le_bytes([datagram[4], datagram[5], datagram[6], datagram[7]]) >> 8)
            }
            _ => match self.greet(from, datagram, to)? {
                Ok(id) => id,
                Err(cookie) => return Ok(Opened::Answer(None, cookie)),
            },
        };
        let is_data = datagram.first() == Some(&4);
        let peer = self.peer(id)?;
        let opened = match peer.tunnel.decapsulate(Some(from.ip()), datagram, to) {
            TunnResult::WriteToTunnelV4(packet, source) => (packet.len(), IpAddr::V4(source)),
            TunnResult::WriteToTunnelV6(packet, source) => (packet.len(), IpAddr::V6(source)),
            TunnResult::WriteToNetwork(answer) => {
                let len = answer.len();
                // A cookie says nothing about who sent; a response or a keepalive does.
                if answer.first() != Some(&3) {
                    peer.endpoint = from;
                }
                return Ok(Opened::Answer(Some(id), len));
            }
            TunnResult::Done => {
                if is_data {
                    peer.endpoint = from;
                }
                return Ok(Opened::Nothing(id));
            }
            TunnResult::Err(error) => return Err(error.into()),
        };
        peer.endpoint = from;
        let (len, source) = opened;
        if self.allowed.find(source) != Some(id) {
            Err(TunnelError::NotAllowed)
        } else {
            Ok(Opened::Packet(id, len))
        }
    }

    /// Looks at a message that is no data: whose it is, or under load the length of the cookie that its sender gets.
    #[cold]
    fn greet(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        to: &mut [u8],
    ) -> Result<Result<PeerId, usize>, TunnelError> {
        // Cheap first: what was not made for our key costs one hash.
        match self.limiter.verify_packet(Some(from.ip()), datagram, to) {
            Ok(_) => self.peer_of(datagram).map(Ok),
            Err(TunnResult::WriteToNetwork(cookie)) => Ok(Err(cookie.len())),
            Err(TunnResult::Err(WireGuardError::InvalidPacket)) => Err(TunnelError::Malformed),
            Err(TunnResult::Err(error)) => Err(error.into()),
            Err(_) => Err(TunnelError::Malformed),
        }
    }

    /// Seals the next packet that waited for a session with the peer; `None` when none does.
    pub fn take_waiting(&mut self, id: PeerId, to: &mut [u8]) -> Option<usize> {
        let peer = self.peer(id).ok()?;
        match peer.tunnel.decapsulate(None, &[], to) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            _ => None,
        }
    }

    /// Looks at the timers of the next peer that has something to send: writes the datagram to the beginning of `to`. Returns `None` after
    /// every peer was looked at once; call it then again in a tenth of a second.
    ///
    /// Shape: `to` has room for [`MESSAGE`].
    pub fn tick(&mut self, now: Nanos, to: &mut [u8]) -> Option<(PeerId, usize)> {
        if now - self.limiter_reset >= Nanos::from_secs(1) {
            self.limiter_reset = now;
            self.limiter.reset_count();
        }
        while let Some(place) = self.peers.get_mut(self.cursor) {
            let id = PeerId(self.cursor as u32);
            self.cursor += 1;
            let Some(peer) = place else { continue };
            // A connection that has expired says so; the next packet begins anew.
            if let TunnResult::WriteToNetwork(datagram) = peer.tunnel.update_timers(to) {
                return Some((id, datagram.len()));
            }
        }
        self.cursor = 0;
        None
    }

    /// Begins a handshake with a peer, whatever there is already.
    pub fn begin(&mut self, id: PeerId, to: &mut [u8]) -> Option<usize> {
        match self.peer(id).ok()?.tunnel.format_handshake_initiation(to, true) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            _ => None,
        }
    }

    /// Returns the state of every peer, by number.
    pub fn report(&self) -> Vec<PeerReport> {
        self.peers.iter().flatten().map(Peer::report).collect()
    }
}
