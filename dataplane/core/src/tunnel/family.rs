//! The tunnel of one family as all workers share it: our keys, who is a peer, whose an address is. An immutable value but for two things
//! that workers tell each other by it: which peers have a session, and how many handshakes came in.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use hashbrown::{HashMap, HashSet};

use super::plan::{FamilyPlan, PeerPlan};
use super::prefixes::Prefixes;
use super::{PeerId, PrivateKey, PublicKey, TunnelError, place_of};

/// Handshake messages a second from which on senders have to prove their address with a cookie. Each is counted twice, once to learn
/// whose it is.
const HANDSHAKES: u64 = 2 * 100;

/// One of our keys.
pub(super) struct OwnKey {
    pub(super) private: PrivateKey,
    pub(super) public: PublicKey,
    shared: x25519::PublicKey,
    pub(super) limiter: Arc<RateLimiter>,
}

/// One peer, as far as all workers know it.
struct Member {
    plan: PeerPlan,
    live: AtomicBool,
}

/// Whose a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addressee {
    /// The peer.
    pub peer: PeerId,
    /// For the beginning of a handshake: places of the two keys in the plan's lists, ours and theirs.
    pub keys: Option<(u8, u8)>,
}

/// What a first look at a datagram says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// It is of this peer: the worker that the peer belongs to opens it.
    For(Addressee),
    /// Too many handshakes: its sender gets a cookie of this length.
    Cookie(usize),
}

/// See the module.
pub struct Family {
    pub(super) keys: Vec<OwnKey>,
    port: u16,
    address: IpAddr,
    mtu: u16,
    members: HashMap<PeerId, Member, foldhash::fast::FixedState>,
    excluded: Vec<PeerId>,
    by_key: HashMap<PublicKey, (PeerId, u8), foldhash::fast::RandomState>,
    allowed: Prefixes<PeerId>,
    places: HashSet<IpAddr, foldhash::fast::FixedState>,
    hosts: bool,
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family").field("address", &self.address).field("peers", &self.members.len()).finish()
    }
}

impl Family {
    /// Compiles a plan. What is known of peers with a session, and how many handshakes came in, goes on from `before`.
    ///
    /// Of peers that have a key in common none is one (policy model 25.4), nor is one whose number has more than 20 bits; see
    /// [`Family::excluded`].
    pub fn new(plan: &FamilyPlan, before: Option<&Self>) -> Self {
        let mut users: BTreeMap<PublicKey, usize> = BTreeMap::new();
        plan.peers.iter().flat_map(|peer| &peer.keys).for_each(|key| *users.entry(*key).or_default() += 1);
        let is_unique = |peer: &&PeerPlan| {
            peer.id.0 < PeerId::END && peer.keys.iter().all(|key| users.get(key) == Some(&1))
        };
        let (unique, excluded): (Vec<&PeerPlan>, Vec<&PeerPlan>) = plan.peers.iter().partition(is_unique);
        let keys = plan.own.keys.iter().map(|private| {
            let public = private.public();
            let shared = x25519::PublicKey::from(public.0);
            let known = before.and_then(|before| before.keys.iter().find(|key| key.public == public));
            let limiter = known.map_or_else(
                || Arc::new(RateLimiter::new(&shared, HANDSHAKES)),
                |key| Arc::clone(&key.limiter),
            );
            OwnKey { private: private.clone(), public, shared, limiter }
        });
        let member = |peer: &PeerPlan| {
            let was_live = before.is_some_and(|before| before.is_live(peer.id));
            (peer.id, Member { plan: peer.clone(), live: AtomicBool::new(was_live) })
        };
        let by_key = |peer: &PeerPlan| {
            let id = peer.id;
            let keys: Vec<_> = (0..).zip(&peer.keys).map(|(at, key)| (*key, (id, at))).collect();
            keys
        };
        let prefixes = unique.iter().flat_map(|peer| peer.allowed.iter().map(|net| (*net, peer.id)));
        let allowed = Prefixes::new(prefixes);
        let hosts = unique.iter().any(|peer| allowed.find(peer.endpoint.ip()) == Some(peer.id));
        Self {
            keys: keys.collect(),
            port: plan.own.port,
            address: plan.own.address,
            mtu: plan.own.mtu,
            members: unique.iter().map(|peer| member(peer)).collect(),
            excluded: excluded.iter().map(|peer| peer.id).collect(),
            by_key: unique.iter().flat_map(|peer| by_key(peer)).collect(),
            allowed,
            places: unique.iter().map(|peer| peer.endpoint.ip()).collect(),
            hosts,
        }
    }

    /// Returns our address and port.
    pub fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Returns the largest packet inside that was asked for; 0 is what fits.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Returns the planned peers that are none.
    pub fn excluded(&self) -> &[PeerId] {
        &self.excluded
    }

    /// Returns the peer that speaks for an address.
    #[inline]
    pub fn peer_for(&self, address: IpAddr) -> Option<PeerId> {
        self.allowed.find(address)
    }

    /// Returns what is planned of a peer.
    pub fn plan(&self, id: PeerId) -> Option<&PeerPlan> {
        self.members.get(&id).map(|member| &member.plan)
    }

    /// Returns the plans of all peers.
    pub fn plans(&self) -> impl Iterator<Item = &PeerPlan> {
        self.members.values().map(|member| &member.plan)
    }

    /// Whether node addresses take part: a peer speaks for its own endpoint.
    pub fn has_hosts(&self) -> bool {
        self.hosts
    }

    /// Returns the single addresses that peers speak for, where node addresses take part: those of the nodes are among them.
    pub fn hosts(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let allowed = self.plans().filter(|_| self.hosts).flat_map(|plan| &plan.allowed);
        allowed.filter(|net| net.prefix_len() == net.max_prefix_len()).map(|net| net.addr())
    }

    /// Whether this is the planned address of a peer.
    pub fn is_place(&self, address: IpAddr) -> bool {
        self.places.contains(&address)
    }

    /// Whether there is a session with the peer, so that nothing from it comes in clear.
    pub fn is_live(&self, id: PeerId) -> bool {
        self.members.get(&id).is_some_and(|member| member.live.load(Ordering::Relaxed))
    }

    /// Tells the other workers whether there is a session with a peer.
    pub(super) fn set_live(&self, id: PeerId, live: bool) {
        if let Some(member) = self.members.get(&id) {
            member.live.store(live, Ordering::Relaxed);
        }
    }

    /// Lets a second pass for those who count handshakes.
    pub(super) fn count_anew(&self) {
        self.keys.iter().for_each(|key| key.limiter.reset_count());
    }

    /// Whether a frame is a datagram to our address and port, as far as plain headers say; a first fragment counts.
    #[inline]
    pub fn is_addressed(&self, frame: &[u8]) -> bool {
        let (port, address) = match self.address {
            IpAddr::V4(own) => match frame {
                // No options, UDP, not a later fragment.
                [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, 0x45, _, _, _, _, _, high, low, _, 17, ..]
                    if frame.len() >= 42 && high & 0x1f == 0 && *low == 0 =>
                {
                    ([frame[36], frame[37]], frame[30..34] == own.octets())
                }
                _ => return false,
            },
            IpAddr::V6(own) => match frame {
                [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, _, _, _, _, _, _, 17, ..]
                    if frame.len() >= 62 =>
                {
                    ([frame[56], frame[57]], frame[38..54] == own.octets())
                }
                _ => return false,
            },
        };
        address && u16::from_be_bytes(port) == self.port
    }

    /// Looks at a datagram from `from` and says whose it is. Nothing is decrypted but the key that a handshake was begun with; under load
    /// not even that, and the cookie for its sender is written to the beginning of `to`.
    ///
    /// Shape: `to` has room for [`super::MESSAGE`].
    ///
    /// Errors: [`TunnelError::Malformed`], [`TunnelError::NotForUs`], [`TunnelError::Forged`], [`TunnelError::UnknownPeer`].
    #[inline]
    pub fn greet(&self, from: IpAddr, datagram: &[u8], to: &mut [u8]) -> Result<Greeting, TunnelError> {
        match *datagram {
            // Data: no look at anything but the index.
            [4, 0, 0, 0, a, b, c, d, ..] if datagram.len() >= super::OVERHEAD => {
                self.member(u32::from_le_bytes([a, b, c, d]))
            }
            _ => self.greet_handshake(from, datagram, to),
        }
    }

    fn member(&self, receiver: u32) -> Result<Greeting, TunnelError> {
        let (peer, _) = place_of(receiver);
        let known = self.members.contains_key(&peer);
        if known { Ok(Greeting::For(Addressee { peer, keys: None })) } else { Err(TunnelError::UnknownPeer) }
    }

    #[cold]
    fn greet_handshake(&self, from: IpAddr, datagram: &[u8], to: &mut [u8]) -> Result<Greeting, TunnelError> {
        // Cheap first: what was not made for our key costs one hash.
        for (at, own) in (0..).zip(&self.keys) {
            match own.limiter.verify_packet(Some(from), datagram, to) {
                Ok(Packet::HandshakeInit(init)) => {
                    let half = parse_handshake_anon(&own.private.0, &own.shared, &init)
                        .map_err(|_| TunnelError::Forged)?;
                    let theirs = PublicKey(half.peer_static_public);
                    let (peer, their) = *self.by_key.get(&theirs).ok_or(TunnelError::UnknownPeer)?;
                    return Ok(Greeting::For(Addressee { peer, keys: Some((at, their)) }));
                }
                Ok(Packet::HandshakeResponse(response)) => return self.member(response.receiver_idx),
                Ok(Packet::PacketCookieReply(reply)) => return self.member(reply.receiver_idx),
                Ok(Packet::PacketData(data)) => return self.member(data.receiver_idx),
                Err(TunnResult::WriteToNetwork(cookie)) => return Ok(Greeting::Cookie(cookie.len())),
                Err(TunnResult::Err(WireGuardError::InvalidMac)) => {}
                Err(TunnResult::Err(WireGuardError::InvalidPacket)) => return Err(TunnelError::Malformed),
                Err(TunnResult::Err(error)) => return Err(error.into()),
                Err(_) => return Err(TunnelError::Malformed),
            }
        }
        match Tunn::parse_incoming_packet(datagram) {
            Ok(_) => Err(TunnelError::NotForUs),
            Err(_) => Err(TunnelError::Malformed),
        }
    }
}
