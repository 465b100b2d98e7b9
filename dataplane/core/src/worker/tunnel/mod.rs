//! The tunnels of this worker: those of the peers that belong to it, and the packets that wait for them.
//!
//! ```text
//!  leaves by the tunnel ─▶ whose peer? ── ours ──▶ session, neighbour? ─▶ sealed into a spare frame ─▶ uplink       (seal)
//!                              │                          └▶ waits, and a handshake begins
//!                              └─ another's ─▶ that worker                                             (Errand::Seal)
//!
//!  datagram to our port ─▶ whose is it? ── ours ──▶ opened into a spare frame ─▶ the way of a packet, from the tunnel (open)
//!                              │                └▶ a message of the protocol, and its answer
//!                              ├─ another's ─▶ that worker                                             (Errand::Open)
//!                              └─ a stranger's, for no key of ours ─▶ this machine's kernel
//! ```
//!
//! A packet and its datagram are one packet in the books: it began when it arrived, and has one ending. The frame that it was in becomes a
//! spare one, so sealing and opening take no memory from anywhere. Messages that the protocol sends by itself are in no book.

mod open;
mod seal;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use margay_wire::MacAddr;

use super::{View, Worker};
use crate::flow::Arrival;
use crate::frame::Frame;
use crate::handover::{Errand, Handover};
use crate::output::Output;
use crate::spread::WorkerIndex;
use crate::time::Nanos;
use crate::topology::{PortIndex, Route, Topology};
use crate::tunnel::outer::{self, Outer};
use crate::tunnel::{MESSAGE, PeerId, PeerReport, Tunnels};
use crate::verdict::DropReason;

/// Most packets waiting for one peer, and for all.
const WAITING_PER_PEER: usize = 64;
const WAITING_TOTAL: usize = 256;
/// How long one waits: a little longer than a handshake that has to be tried twice.
const PATIENCE: Nanos = Nanos::from_secs(6);
/// Between two looks at timers.
const TICK: Nanos = Nanos::from_millis(100);
/// Most messages that timers send at once.
const MESSAGES: usize = 8;
/// Most neighbours that messages of the protocol wait for.
const MISSING: usize = 64;

/// What packets out of the tunnel are remembered by; nobody sees the address.
pub(super) const ARRIVAL: Arrival = Arrival { port: PortIndex::TUNNEL, mac: MacAddr([2, 0, 0, 0, 0, 1]) };

/// Names a peer: of which family's tunnel (0 is IPv4, 1 is IPv6), and its number there.
type Name = (usize, PeerId);

/// A packet that waits for its peer.
#[derive(Debug)]
struct Waiting<F> {
    peer: Name,
    frame: F,
    arrival: PortIndex,
    deadline: Nanos,
}

/// The way to a peer's endpoint.
#[derive(Clone, Copy, Debug)]
struct Way {
    endpoint: SocketAddr,
    port: PortIndex,
    source_mac: MacAddr,
    destination_mac: MacAddr,
    mtu: u32,
    carrier: WorkerIndex,
}

/// Why there is no way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Astray {
    /// The peer is none of ours.
    NoPeer,
    /// No route, or one that no uplink has.
    NoRoute,
    /// This neighbour is not known yet.
    Unresolved(PortIndex, IpAddr),
}

/// See the module.
#[derive(Debug)]
pub(super) struct OwnTunnels<F> {
    /// Number of the plan that they follow.
    generation: u64,
    families: [Option<Tunnels>; 2],
    /// Ways by number of the peer, under the present topology.
    ways: [Vec<Option<Way>>; 2],
    waiting: VecDeque<Waiting<F>>,
    missing: Vec<(PortIndex, IpAddr)>,
    next_tick: Nanos,
}

impl<F> Default for OwnTunnels<F> {
    fn default() -> Self {
        Self {
            generation: 0,
            families: [None, None],
            ways: [Vec::new(), Vec::new()],
            waiting: VecDeque::new(),
            missing: Vec::new(),
            next_tick: Nanos(0),
        }
    }
}

impl<F> OwnTunnels<F> {
    /// Makes the peers be those of the plan in force, and forgets the ways of an older topology.
    pub(super) fn follow(&mut self, topology: &Topology, me: WorkerIndex) {
        self.ways.iter_mut().for_each(Vec::clear);
        let Some(encryption) = topology.encryption() else { return };
        self.generation = encryption.generation();
        for (tunnels, family) in self.families.iter_mut().zip(encryption.families()) {
            match (tunnels, family) {
                (Some(tunnels), Some(family)) => tunnels.follow(family, topology.spread(), me),
                (tunnels, Some(family)) => *tunnels = Some(Tunnels::new(family, topology.spread(), me)),
                (tunnels, None) => *tunnels = None,
            }
        }
    }

    /// Whether packets wait.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns the neighbours that datagrams wait for.
    pub(super) fn missing(&self) -> impl Iterator<Item = (PortIndex, IpAddr)> {
        self.missing.iter().copied()
    }

    fn is_live(&self, (family, id): Name) -> bool {
        self.families[family].as_ref().is_some_and(|tunnels| tunnels.is_live(id))
    }

    /// Returns the way to where a peer is now.
    #[inline]
    fn way(&mut self, topology: &Topology, me: WorkerIndex, (family, id): Name) -> Result<Way, Astray> {
        let tunnels = self.families[family].as_ref().ok_or(Astray::NoPeer)?;
        let endpoint = tunnels.endpoint(id).ok_or(Astray::NoPeer)?;
        match self.ways[family].get(id.0 as usize) {
            Some(Some(way)) if way.endpoint == endpoint => Ok(*way),
            _ => self.find_way(topology, me, (family, id), endpoint),
        }
    }

    #[cold]
    fn find_way(
        &mut self,
        topology: &Topology,
        me: WorkerIndex,
        (family, id): Name,
        endpoint: SocketAddr,
    ) -> Result<Way, Astray> {
        let Some(Route::Port { port, gateway }) = topology.route(endpoint.ip()) else {
            return Err(Astray::NoRoute);
        };
        let next_hop = gateway.unwrap_or(endpoint.ip());
        let port = topology.port(*port).ok_or(Astray::NoRoute)?;
        let Some(destination_mac) = topology.neighbour(port.index, next_hop) else {
            if self.missing.len() < MISSING && !self.missing.contains(&(port.index, next_hop)) {
                self.missing.push((port.index, next_hop));
            }
            return Err(Astray::Unresolved(port.index, next_hop));
        };
        let way = Way {
            endpoint,
            port: port.index,
            source_mac: port.mac,
            destination_mac,
            mtu: port.mtu,
            carrier: topology.spread().carrier(me, port),
        };
        let (ways, place) = (&mut self.ways[family], id.0 as usize);
        if ways.len() <= place {
            ways.resize(place + 1, None);
        }
        ways[place] = Some(way);
        Ok(way)
    }

    /// Takes out the packets that wait for a peer, in order.
    fn take_waiting(&mut self, peer: Name) -> Vec<Waiting<F>> {
        let (his, others) = std::mem::take(&mut self.waiting).into_iter().partition(|it| it.peer == peer);
        self.waiting = others;
        let his: VecDeque<_> = his;
        his.into()
    }
}

impl<F: Frame> Worker<F> {
    /// Returns the number of the encryption plan in force and the state of the peers that belong to this worker.
    pub fn tunnels(&self, now: Nanos) -> (u64, Vec<PeerReport>) {
        let families = self.tunnels.families.iter().flatten();
        (self.tunnels.generation, families.flat_map(|tunnels| tunnels.report(now)).collect())
    }

    /// Does what time demands of tunnels: their timers, packets that waited too long, and those whose neighbour became known.
    pub(super) fn tick_tunnels(&mut self, view: View<'_>, now: Nanos, out: &mut Output<F>) {
        self.tunnels.missing.retain(|(port, address)| view.topology.neighbour(*port, *address).is_none());
        if self.tunnels.is_waiting() {
            self.tend_waiting(view, now, out);
        }
        if now < self.tunnels.next_tick {
            return;
        }
        let mut done = true;
        for family in 0..2 {
            let mut messages = 0;
            // Beginning a handshake costs a hundred packets: what is more than a few waits for the next time.
            while messages < MESSAGES
                && let Some((id, len, room, frame)) = self.due_message(family, now, out)
            {
                self.post(view, (family, id), len, room, frame, out);
                messages += 1;
            }
            done &= self.tunnels.families[family].as_ref().is_none_or(Tunnels::is_done);
        }
        if done {
            self.tunnels.next_tick = now + TICK;
        }
    }

    /// Returns the next message that the timers of a family's tunnels demand: for whom, its length, the room before it, and its frame.
    fn due_message(
        &mut self,
        family: usize,
        now: Nanos,
        out: &mut Output<F>,
    ) -> Option<(PeerId, usize, usize, F)> {
        let tunnels = self.tunnels.families[family].as_mut()?;
        let room = outer::len(tunnels.family().endpoint().ip());
        let mut frame = out.spare.pop()?;
        let due = if frame.set_len(room + MESSAGE) {
            tunnels.tick(now, &mut frame.data_mut()[room..])
        } else {
            None
        };
        match due {
            Some((id, len)) => Some((id, len, room, frame)),
            None => {
                out.spare.push(frame);
                None
            }
        }
    }

    /// Sends a message of the protocol, of `len` bytes behind `room` bytes for headers. Where there is no way, it is lost, and the protocol
    /// tries again.
    fn post(
        &mut self,
        view: View<'_>,
        peer: Name,
        len: usize,
        room: usize,
        mut frame: F,
        out: &mut Output<F>,
    ) {
        let me = self.config.index;
        let from = self.tunnels.families[peer.0].as_ref().map(|tunnels| tunnels.family().endpoint());
        let way = self.tunnels.way(view.topology, me, peer);
        if let (Ok(way), Some(from)) = (way, from)
            && way.write(from, 0, &mut frame, room, len)
        {
            way.send(me, frame, out);
        } else {
            out.spare.push(frame);
        }
    }

    /// Begins the handshakes with a peer that are due, where there is a way to it.
    #[cold]
    fn shake_hands(&mut self, view: View<'_>, peer: Name, out: &mut Output<F>) {
        let (family, id) = peer;
        while self.tunnels.way(view.topology, self.config.index, peer).is_ok()
            && let Some(tunnels) = self.tunnels.families[family].as_mut()
            && let Some(mut frame) = out.spare.pop()
        {
            let room = outer::len(tunnels.family().endpoint().ip());
            let begun = if frame.set_len(room + MESSAGE) {
                tunnels.begin(id, &mut frame.data_mut()[room..])
            } else {
                None
            };
            match begun {
                Some(len) => self.post(view, peer, len, room, frame, out),
                None => return out.spare.push(frame),
            }
        }
    }

    /// Keeps a packet until its peer can be sent to.
    #[cold]
    fn wait_for(
        &mut self,
        view: View<'_>,
        now: Nanos,
        arrival: PortIndex,
        peer: Name,
        frame: F,
        out: &mut Output<F>,
    ) {
        let his = self.tunnels.waiting.iter().filter(|it| it.peer == peer).count();
        if his >= WAITING_PER_PEER || self.tunnels.waiting.len() >= WAITING_TOTAL {
            return self.end(view, now, arrival, frame, None, DropReason::TunnelWaiting.into(), out);
        }
        self.counters.held += 1;
        self.tunnels.waiting.push_back(Waiting { peer, frame, arrival, deadline: now + PATIENCE });
        if !self.tunnels.is_live(peer) {
            self.shake_hands(view, peer, out);
        }
    }

    /// Sends what waited for a peer that has a session now.
    #[inline]
    fn tend(&mut self, view: View<'_>, now: Nanos, peer: Name, out: &mut Output<F>) {
        let waits_for_it = self.tunnels.waiting.iter().any(|it| it.peer == peer);
        if waits_for_it
            && self.tunnels.is_live(peer)
            && self.tunnels.way(view.topology, self.config.index, peer).is_ok()
        {
            self.release_waiting(view, now, peer, out);
        }
    }

    #[cold]
    fn release_waiting(&mut self, view: View<'_>, now: Nanos, peer: Name, out: &mut Output<F>) {
        for Waiting { frame, arrival, .. } in self.tunnels.take_waiting(peer) {
            self.counters.held -= 1;
            self.at_hand = Some(arrival);
            self.seal(view, now, arrival, peer.1, frame, out);
        }
    }

    /// Looks at everybody that packets wait for.
    fn tend_waiting(&mut self, view: View<'_>, now: Nanos, out: &mut Output<F>) {
        while let Some(first) = self.tunnels.waiting.front()
            && (first.deadline <= now || self.is_gone(first.peer))
            && let Some(Waiting { frame, arrival, .. }) = self.tunnels.waiting.pop_front()
        {
            self.counters.held -= 1;
            self.at_hand = Some(arrival);
            self.end(view, now, arrival, frame, None, DropReason::TunnelWaiting.into(), out);
        }
        let mut peers: Vec<Name> = self.tunnels.waiting.iter().map(|it| it.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        for peer in peers {
            if self.tunnels.way(view.topology, self.config.index, peer).is_err() {
                continue;
            }
            if self.tunnels.is_live(peer) {
                self.release_waiting(view, now, peer, out);
            } else {
                self.shake_hands(view, peer, out);
            }
        }
    }

    fn is_gone(&self, (family, id): Name) -> bool {
        self.tunnels.families[family].as_ref().is_none_or(|tunnels| tunnels.endpoint(id).is_none())
    }
}

impl Way {
    /// Writes the headers of a datagram of `len` bytes, which stands in the frame behind `room` bytes already.
    fn write(&self, from: SocketAddr, class: u8, frame: &mut impl Frame, room: usize, len: usize) -> bool {
        let Way { source_mac, destination_mac, endpoint: to, .. } = *self;
        let outer = Outer { source_mac, destination_mac, from, to, class };
        frame.set_len(room + len) && outer.write(frame.data_mut(), len).is_some()
    }

    /// Sends a finished datagram.
    fn send<F>(&self, me: WorkerIndex, frame: F, out: &mut Output<F>) {
        if self.carrier == me {
            out.transmit.push((self.port, frame));
        } else {
            let parcel = Handover::new(frame, self.port, Errand::Send);
            out.handovers.push((self.carrier, parcel));
        }
    }
}
