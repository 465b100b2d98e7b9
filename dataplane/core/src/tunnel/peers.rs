//! One peer, as the worker that it belongs to has it: where it is, and a tunnel for each pair of keys, ours and theirs.
//!
//! While a key is followed by another there are two pairs, or four. Packets are sealed under the first pair that has a session, in the
//! order of the plan, and opened under any. So a new key is used from the moment that both ends have agreed on a session under it, and
//! not before; the old session carries everything until then, and what is on its way under it arrives.
//!
//! A pair costs a multiplication on the curve to make, so it is made when there is use for it: a node may have thousands of peers that it
//! never talks to.

use std::net::SocketAddr;
use std::sync::Arc;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

use super::family::{Family, OwnKey};
use super::plan::PeerPlan;
use super::report::{KeyReport, PeerReport, Traffic};
use super::{PAIRS, PeerId, PublicKey, index_of};
use crate::time::Nanos;

/// A peer that was sent nothing for this long needs no session.
const ACTIVE: Nanos = Nanos::from_secs(180);

/// A tunnel under one of our keys and one of theirs.
pub(super) struct Pair {
    number: u8,
    own: PublicKey,
    theirs: PublicKey,
    pub(super) tunnel: Tunn,
    pub(super) live: bool,
    /// When a packet was last opened under it.
    heard: Option<Nanos>,
}

impl Pair {
    fn new(id: PeerId, number: u8, own: &OwnKey, theirs: PublicKey) -> Self {
        let (private, limiter) = (own.private.0.clone(), Arc::clone(&own.limiter));
        let key = x25519::PublicKey::from(theirs.0);
        let tunnel = Tunn::new(private, key, None, None, index_of(id, number), Some(limiter));
        Self { number, own: own.public, theirs, tunnel, live: false, heard: None }
    }

    /// Begins a handshake unless one is under way.
    fn begin(&mut self, to: &mut [u8]) -> Option<usize> {
        match self.tunnel.format_handshake_initiation(to, false) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            _ => None,
        }
    }
}

/// One peer of this worker.
pub(super) struct Peer {
    pub(super) plan: PeerPlan,
    /// Where it was heard from last, or is said to be.
    pub(super) endpoint: SocketAddr,
    /// In order of preference.
    pub(super) pairs: Vec<Pair>,
    /// The pairs are not those of the plan: none yet, or those of the one before.
    unpaired: bool,
    /// The first pair with a session.
    pub(super) sends_by: Option<usize>,
    /// When a packet for it last came.
    pub(super) wanted: Option<Nanos>,
    /// It had a session with the worker that was here before, and still sends under that.
    bereft: bool,
    /// When anything was last sealed for it.
    pub(super) sealed: Nanos,
    pub(super) sent: Traffic,
    pub(super) received: Traffic,
}

impl Peer {
    pub(super) fn new(plan: &PeerPlan, bereft: bool) -> Self {
        Self {
            plan: plan.clone(),
            endpoint: plan.endpoint,
            pairs: Vec::new(),
            unpaired: true,
            sends_by: None,
            wanted: None,
            bereft,
            sealed: Nanos(0),
            sent: Traffic::default(),
            received: Traffic::default(),
        }
    }

    /// Takes in what is planned of it now. Sessions under keys that are no more end at once.
    pub(super) fn follow(&mut self, plan: &PeerPlan, family: &Family) {
        if self.plan.endpoint != plan.endpoint {
            self.endpoint = plan.endpoint;
        }
        self.plan = plan.clone();
        self.unpaired = true;
        self.pairs.retain(|pair| {
            wanted(plan, family).any(|(own, theirs)| (own.public, theirs) == (pair.own, pair.theirs))
        });
        self.look();
    }

    /// Sees to it that its pairs are those of the plan.
    #[inline]
    pub(super) fn pair(&mut self, family: &Family) {
        if self.unpaired {
            self.pair_up(family);
        }
    }

    /// Whether its pairs are not those of the plan, and there is use for them.
    pub(super) fn lacks_pairs(&self) -> bool {
        self.unpaired && (!self.pairs.is_empty() || self.bereft || self.keepalive().is_some())
    }

    /// Makes the pairs be those of the plan's keys; one that was there already keeps its session.
    #[cold]
    fn pair_up(&mut self, family: &Family) {
        self.unpaired = false;
        let mut before = std::mem::take(&mut self.pairs);
        let mut taken: Vec<u8> = before.iter().map(|pair| pair.number).collect();
        for (own, theirs) in wanted(&self.plan, family) {
            let known = before.iter().position(|pair| (pair.own, pair.theirs) == (own.public, theirs));
            self.pairs.push(match known {
                Some(at) => before.swap_remove(at),
                None => {
                    let number = (0..PAIRS as u8).find(|number| !taken.contains(number)).unwrap_or_default();
                    taken.push(number);
                    Pair::new(self.plan.id, number, own, theirs)
                }
            });
        }
        self.look();
    }

    /// Sees which pairs have a session. Returns whether another one is the first of them now.
    pub(super) fn look(&mut self) -> bool {
        for pair in &mut self.pairs {
            pair.live = pair.tunnel.time_since_last_handshake().is_some();
        }
        let first = self.pairs.iter().position(|pair| pair.live);
        self.bereft &= first.is_none();
        std::mem::replace(&mut self.sends_by, first) != first
    }

    /// Returns the place of the pair with a number.
    #[inline]
    pub(super) fn numbered(&self, number: u8) -> Option<usize> {
        self.pairs.iter().position(|pair| pair.number == number)
    }

    /// Returns the place of the pair of two keys, by their places in the plan.
    pub(super) fn of_keys(&self, family: &Family, (own, theirs): (u8, u8)) -> Option<usize> {
        let own = family.keys.get(usize::from(own))?.public;
        let theirs = *self.plan.keys.get(usize::from(theirs))?;
        self.pairs.iter().position(|pair| (pair.own, pair.theirs) == (own, theirs))
    }

    /// Notes that a packet of `len` bytes was opened under a pair.
    #[inline]
    pub(super) fn hear(&mut self, at: usize, len: usize, now: Nanos) {
        self.received.add(len);
        self.pairs[at].heard = Some(now);
    }

    /// Begins the next handshake that is due: with the pair that is preferred, and where no pair has a session with all of them. `None`
    /// when all of them are under way.
    pub(super) fn begin(&mut self, to: &mut [u8]) -> Option<usize> {
        let count = if self.sends_by.is_some() { 1 } else { self.pairs.len() };
        self.pairs[..count].iter_mut().filter(|pair| !pair.live).find_map(|pair| pair.begin(to))
    }

    /// Whether its preferred pair should have a session: because another has one, or because there is something to say.
    pub(super) fn wants_session(&self, now: Nanos) -> bool {
        match self.sends_by {
            Some(at) => at > 0,
            None => {
                self.bereft || self.keepalive().is_some() || self.wanted.is_some_and(|at| now - at < ACTIVE)
            }
        }
    }

    /// Returns how often something is sent when there is nothing to say.
    pub(super) fn keepalive(&self) -> Option<Nanos> {
        let seconds = self.plan.keepalive.filter(|seconds| *seconds > 0)?;
        Some(Nanos::from_secs(seconds.into()))
    }

    pub(super) fn report(&self, v6: bool, now: Nanos) -> PeerReport {
        let key = |(at, pair): (usize, &Pair)| KeyReport {
            own: pair.own,
            theirs: pair.theirs,
            live: pair.live,
            sends: self.sends_by == Some(at),
            handshake: pair.tunnel.time_since_last_handshake(),
            heard: pair.heard.map(|at| now - at),
        };
        let keys: Vec<KeyReport> = self.pairs.iter().enumerate().map(key).collect();
        let in_use = keys.iter().find(|key| key.sends);
        PeerReport {
            id: self.plan.id,
            node: self.plan.node.clone(),
            v6,
            key: in_use.or(keys.first()).map(|key| key.theirs).or(self.plan.keys.first().copied()),
            endpoint: self.endpoint,
            allowed: self.plan.allowed.clone(),
            live: self.sends_by.is_some(),
            handshake: in_use.and_then(|key| key.handshake),
            sent: self.sent,
            received: self.received,
            keys,
        }
    }
}

/// Returns the pairs that a plan wants, in order of preference.
fn wanted<'a>(plan: &'a PeerPlan, family: &'a Family) -> impl Iterator<Item = (&'a OwnKey, PublicKey)> {
    plan.keys.iter().flat_map(|theirs| family.keys.iter().map(move |own| (own, *theirs))).take(PAIRS)
}
