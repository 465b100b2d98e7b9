//! The peers of one worker, of one family.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use boringtun::noise::TunnResult;

use super::family::{Addressee, Family, Greeting};
use super::peers::Peer;
use super::report::PeerReport;
use super::{MESSAGE, OVERHEAD, Opened, PeerId, Sealed, TunnelError, place_of};
use crate::spread::{Spread, WorkerIndex};
use crate::time::Nanos;

/// The peers of one worker, of one family. See [`super`].
pub struct Tunnels {
    family: Arc<Family>,
    /// By number.
    peers: Vec<Option<Box<Peer>>>,
    /// Next peer whose timers are looked at, and which of its pairs.
    cursor: (usize, usize),
    /// Peers that got pairs of keys since the last pause.
    made: usize,
    counted: Nanos,
}

/// Peers that get pairs of keys before there is a pause.
const MADE: usize = 16;

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels").field("family", &self.family).finish_non_exhaustive()
    }
}

impl Tunnels {
    /// Returns the tunnels of worker `me`: of those peers that `spread` gives to it.
    pub fn new(family: &Arc<Family>, spread: &Spread, me: WorkerIndex) -> Self {
        let mut tunnels = Self {
            family: Arc::clone(family),
            peers: Vec::new(),
            cursor: (0, 0),
            made: 0,
            counted: Nanos(0),
        };
        tunnels.take_over(family, spread, me);
        tunnels
    }

    /// Makes the peers be those of `family`. A peer that is there already keeps the sessions of keys that it still has, and where it was
    /// heard from last unless another place is planned now.
    pub fn follow(&mut self, family: &Arc<Family>, spread: &Spread, me: WorkerIndex) {
        if !Arc::ptr_eq(&self.family, family) {
            self.take_over(family, spread, me);
        }
    }

    fn take_over(&mut self, family: &Arc<Family>, spread: &Spread, me: WorkerIndex) {
        let mut before = std::mem::take(&mut self.peers);
        for plan in family.plans().filter(|plan| spread.keeper(plan.id) == me) {
            let place = plan.id.0 as usize;
            if self.peers.len() <= place {
                self.peers.resize_with(place + 1, || None);
            }
            self.peers[place] = Some(match before.get_mut(place).and_then(Option::take) {
                Some(mut peer) => {
                    peer.follow(plan, family);
                    peer
                }
                None => Box::new(Peer::new(plan, family.is_live(plan.id))),
            });
        }
        self.family = Arc::clone(family);
        for peer in self.peers.iter().flatten() {
            family.set_live(peer.plan.id, peer.sends_by.is_some());
        }
    }

    /// Returns what all workers share.
    pub fn family(&self) -> &Arc<Family> {
        &self.family
    }

    fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.0 as usize)?.as_deref()
    }

    /// Returns a peer with its pairs of keys.
    #[inline]
    fn paired(&mut self, id: PeerId) -> Result<(&Family, &mut Peer), TunnelError> {
        let Self { family, peers, .. } = self;
        let peer = peers.get_mut(id.0 as usize).and_then(Option::as_deref_mut);
        let peer = peer.ok_or(TunnelError::UnknownPeer)?;
        peer.pair(family);
        Ok((family, peer))
    }

    /// Returns where a peer is.
    #[inline]
    pub fn endpoint(&self, id: PeerId) -> Option<SocketAddr> {
        self.peer(id).map(|peer| peer.endpoint)
    }

    /// Whether packets for the peer can be sealed.
    pub fn is_live(&self, id: PeerId) -> bool {
        self.peer(id).is_some_and(|peer| peer.sends_by.is_some())
    }

    /// Seals `packet` for a peer: writes the datagram to the beginning of `to`.
    ///
    /// Shape: `to` has room for the packet and [`OVERHEAD`], and for [`MESSAGE`].
    ///
    /// Errors: [`TunnelError::UnknownPeer`], [`TunnelError::NoRoom`].
    #[inline]
    pub fn seal(
        &mut self,
        id: PeerId,
        packet: &[u8],
        to: &mut [u8],
        now: Nanos,
    ) -> Result<Sealed, TunnelError> {
        if to.len() < MESSAGE.max(packet.len() + OVERHEAD) {
            return Err(TunnelError::NoRoom);
        }
        let (_, peer) = self.paired(id)?;
        peer.wanted = Some(now);
        let Some(pair) = peer.sends_by.and_then(|at| peer.pairs.get_mut(at)) else {
            return Ok(Sealed::NoSession);
        };
        match pair.tunnel.encapsulate(packet, to) {
            TunnResult::WriteToNetwork(datagram) => {
                let len = datagram.len();
                peer.sealed = now;
                peer.sent.add(packet.len());
                Ok(Sealed::Datagram(len))
            }
            TunnResult::Err(error) => Err(error.into()),
            _ => Ok(Sealed::NoSession),
        }
    }

    /// Begins the next handshake with a peer that is due and not under way. Call it until it returns `None`.
    ///
    /// Shape: `to` has room for [`MESSAGE`].
    pub fn begin(&mut self, id: PeerId, to: &mut [u8]) -> Option<usize> {
        self.paired(id).ok()?.1.begin(to)
    }

    /// Opens a datagram that came from `from` for one of our peers: writes the packet, or the answer, to the beginning of `to`.
    ///
    /// Shape: `to` is as long as the datagram, and has room for [`MESSAGE`].
    ///
    /// Errors: [`TunnelError`]. A datagram that the peer has not sealed changes nothing; one that it has tells where the peer is, also when
    /// what is inside is refused.
    #[inline]
    pub fn open(
        &mut self,
        from: SocketAddr,
        addressee: Addressee,
        datagram: &[u8],
        to: &mut [u8],
        now: Nanos,
    ) -> Result<Opened, TunnelError> {
        if to.len() < MESSAGE.max(datagram.len()) {
            return Err(TunnelError::NoRoom);
        }
        let id = addressee.peer;
        let (family, peer) = self.paired(id)?;
        let at = match addressee.keys {
            Some(keys) => peer.of_keys(family, keys),
            None => receiver(datagram).and_then(|receiver| peer.numbered(place_of(receiver).1)),
        };
        let at = at.ok_or(TunnelError::NoSession)?;
        let is_data = datagram.first() == Some(&4);
        let pair = &mut peer.pairs[at];
        let opened = match pair.tunnel.decapsulate(Some(from.ip()), datagram, to) {
            TunnResult::WriteToTunnelV4(packet, source) => Ok(Opening::Packet(packet.len(), source.into())),
            TunnResult::WriteToTunnelV6(packet, source) => Ok(Opening::Packet(packet.len(), source.into())),
            // A cookie says nothing about who sent what it answers; a response or a keepalive does.
            TunnResult::WriteToNetwork(answer) if answer.first() == Some(&3) => {
                return Ok(Opened::Answer(answer.len()));
            }
            TunnResult::WriteToNetwork(answer) => Ok(Opening::Answer(answer.len())),
            TunnResult::Done if is_data => Ok(Opening::Nothing),
            TunnResult::Done => return Ok(Opened::Nothing),
            TunnResult::Err(error) => match TunnelError::from(error) {
                // Sealed by the peer, and no packet.
                TunnelError::NotIp if is_data => Err(TunnelError::NotIp),
                refused => return Err(refused),
            },
        };
        peer.endpoint = from;
        if !is_data || !peer.pairs[at].live {
            peer.look();
            family.set_live(id, peer.sends_by.is_some());
        }
        match opened? {
            Opening::Packet(len, source) => {
                peer.hear(at, len, now);
                let is_his = family.peer_for(source) == Some(id);
                if is_his { Ok(Opened::Packet(len)) } else { Err(TunnelError::NotAllowed) }
            }
            Opening::Answer(len) => Ok(Opened::Answer(len)),
            Opening::Nothing => Ok(Opened::Nothing),
        }
    }

    /// Looks at a datagram and, where it is not for another worker, opens it; see [`Family::greet`] and [`Tunnels::open`].
    pub fn receive(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        to: &mut [u8],
        now: Nanos,
    ) -> Result<(Option<PeerId>, Opened), TunnelError> {
        if to.len() < MESSAGE {
            return Err(TunnelError::NoRoom);
        }
        match self.family.greet(from.ip(), datagram, to)? {
            Greeting::Cookie(len) => Ok((None, Opened::Answer(len))),
            Greeting::For(addressee) => {
                let opened = self.open(from, addressee, datagram, to, now)?;
                Ok((Some(addressee.peer), opened))
            }
        }
    }

    /// Looks at the timers of the next peer that has something to send: writes the datagram to the beginning of `to`. Returns `None` after
    /// every peer was looked at once, or much was done; [`Tunnels::is_done`] says which.
    ///
    /// Shape: `to` has room for [`MESSAGE`].
    pub fn tick(&mut self, now: Nanos, to: &mut [u8]) -> Option<(PeerId, usize)> {
        if now - self.counted >= Nanos::from_secs(1) {
            self.counted = now;
            self.family.count_anew();
        }
        while let Some(place) = self.peers.get_mut(self.cursor.0) {
            let id = PeerId(self.cursor.0 as u32);
            if let Some(peer) = place {
                if peer.lacks_pairs() {
                    peer.pair(&self.family);
                    self.made += 1;
                }
                while let Some(pair) = peer.pairs.get_mut(self.cursor.1) {
                    self.cursor.1 += 1;
                    // A connection that has expired says so; the next packet begins anew.
                    if let TunnResult::WriteToNetwork(datagram) = pair.tunnel.update_timers(to) {
                        return Some((id, datagram.len()));
                    }
                }
                if peer.look() {
                    self.family.set_live(id, peer.sends_by.is_some());
                }
                if let Some(len) = finish_tick(peer, now, to) {
                    return Some((id, len));
                }
            }
            self.cursor = (self.cursor.0 + 1, 0);
            if self.made >= MADE {
                self.made = 0;
                return None;
            }
        }
        (self.cursor, self.made) = ((0, 0), 0);
        None
    }

    /// Whether [`Tunnels::tick`] has looked at every peer: call it again in a tenth of a second then, and soon otherwise.
    pub fn is_done(&self) -> bool {
        self.cursor == (0, 0)
    }

    /// Returns the state of every peer, by number.
    pub fn report(&self, now: Nanos) -> Vec<PeerReport> {
        let v6 = self.family.endpoint().is_ipv6();
        self.peers.iter().flatten().map(|peer| peer.report(v6, now)).collect()
    }
}

/// What a datagram that the peer has sealed was.
enum Opening {
    Packet(usize, IpAddr),
    Answer(usize),
    Nothing,
}

/// What is due beside the protocol's own timers: a session that is missed, a packet that says nothing.
fn finish_tick(peer: &mut Peer, now: Nanos, to: &mut [u8]) -> Option<usize> {
    if peer.wants_session(now)
        && let Some(len) = peer.begin(to)
    {
        return Some(len);
    }
    let is_silent = peer.keepalive().is_some_and(|every| now - peer.sealed >= every);
    let pair = peer.sends_by.filter(|_| is_silent).and_then(|at| peer.pairs.get_mut(at))?;
    peer.sealed = now;
    match pair.tunnel.encapsulate(&[], to) {
        TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
        _ => None,
    }
}

/// Returns the receiver's index of a message that is no beginning.
fn receiver(datagram: &[u8]) -> Option<u32> {
    let at = match datagram.first()? {
        2 => 8,
        _ => 4,
    };
    let bytes = datagram.get(at..at + 4)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}
