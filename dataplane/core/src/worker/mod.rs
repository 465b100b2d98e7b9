//! One worker's state; a frame in, frames out.
//!
//! [`Worker::handle_frame`] is the life of a packet on one screen; each stage is one call with one outcome:
//!
//! | stage | module | answers |
//! |---|---|---|
//! | sanity | [`sanity`] | may this packet exist on this port at all? |
//! | discovery | [`discovery`] | is it for the gateway, that is for us? |
//! | flow | [`crate::flow`] | have we met? ([`fast`]: and is nothing else to ask? [`Worker::begin`]: or nothing but ports?) |
//! | judge | [`judge`] | may it pass, both legs? |
//! | path | [`path`] | where does it leave, and by whose hands? |
//! | finish | [`finish`] | size ([`cut`] where it is too large), TTL, checksum, addresses, transmit |
//! | ending | [`ending`] | by whose hands does it go on, or why does it not? |
//!
//! ICMP errors leave this way after the sanity stage, for [`related`]; what is told beside the counters is in [`events`]. With several
//! workers a packet may change hands on its way: [`exchange`] says when, and [`legs`] who judges and who only hears of it.
//!
//! Invariant: after every call [`Counters::beginnings`] equals [`Counters::endings`].

mod answer;
mod config;
mod cut;
mod discovery;
mod ending;
mod events;
mod exchange;
mod fast;
mod finish;
mod fragments;
mod judge;
mod legs;
mod limits;
mod lro;
mod pairs;
mod path;
mod records;
mod related;
mod sanity;
mod tap;
mod tunnel;

use std::net::IpAddr;

use margay_policy_engine::packet::Generation;
use margay_policy_engine::snapshot::Snapshot;
use margay_wire::{Fragment, IpHeaders, Packet, ParseError, Parsed, parse_head};

use crate::flow::{Arrival, FlowKey, FlowTable, Interned, Path, Side};
use crate::frame::Frame;
use crate::handover::{Errand, Told};
use crate::output::Output;
use crate::time::Nanos;
use crate::topology::{Port, PortIndex, PortKind, Topology};
use crate::verdict::{Counters, DropReason};
use ending::{Dropped, Ending};
use finish::Waiting;
use fragments::Fragments;
use limits::{Allowance, PerPort};
use sanity::Class;

pub use config::{EndpointToHost, PolicyChangeFlowAction, WorkerConfig};
pub use records::{Counted, FlowRecord};
pub use tap::{Captured, Fate, TapEnd, TapFilter, TapId, ToldLeg};

/// What is in force during one burst. Loaded once by the shell, so no packet sees half of a change.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Compiled policy; `None` before the first complete picture: pods are closed.
    pub snapshot: Option<&'a Snapshot>,
    /// Ports, routes and neighbours.
    pub topology: &'a Topology,
}

impl View<'_> {
    /// Returns what flows remember of it: the low halves of both numbers. No flow sleeps through 2^32 of either.
    #[inline(always)]
    fn under(&self) -> (u32, u32) {
        (generation(*self).0 as u32, self.topology.revision() as u32)
    }
}

/// A frame that was read, before anything is decided about it.
#[derive(Clone, Copy, Debug)]
struct Prepared {
    parsed: Result<Parsed, ParseError>,
    key: FlowKey,
    side: Side,
    hash: u64,
}

impl Prepared {
    /// Returns the packet's headers, where it is IP and well-formed.
    fn ip(&self) -> Option<&IpHeaders> {
        match &self.parsed {
            Ok(Parsed { packet: Packet::Ip(ip), .. }) => Some(ip),
            _ => None,
        }
    }
}

/// Frames looked at together, so that what one of them needs from memory comes while the others are handled.
const BURST: usize = 64;
/// Cache lines of the next packet that are asked for while one is handled: all of one that fits an Ethernet frame. Its sum, its cipher,
/// or the kernel's copy will read them.
const NEXT_LINES: usize = 24;

/// A packet that has passed the sanity stage, here or at the worker that it came from.
#[derive(Clone, Copy)]
struct Passing<'a> {
    view: View<'a>,
    now: Nanos,
    /// Where it came from.
    port: &'a Port,
    ip: &'a IpHeaders,
    /// What its port and sender are remembered by; `None` when another worker looked at that.
    arrival: Option<Arrival>,
    /// Why another worker gave it to us.
    errand: Option<Errand>,
}

impl Passing<'_> {
    /// Returns what its port and sender are remembered by, unless they are to be asked each time: who may have to come encrypted in a
    /// moment.
    fn lasting_arrival(&self) -> Option<Arrival> {
        if self.port.index == PortIndex::TUNNEL {
            return Some(tunnel::ARRIVAL);
        }
        let is_moody = || self.view.topology.encryption().is_some_and(|it| it.is_moody(self.ip.source));
        self.arrival.filter(|_| !is_moody())
    }

    /// Returns what the worker says that it arrived at, when that is another one.
    fn told(&self) -> Option<Told> {
        match self.errand {
            Some(Errand::Judge(first)) => Some(first),
            _ => None,
        }
    }
}

/// The state of one worker: the flows of its ports, packets waiting for a neighbour, counters.
#[derive(Debug)]
pub struct Worker<F> {
    config: WorkerConfig,
    counters: Counters,
    flows: FlowTable,
    /// What flows remember by name; names end with the topology that they were given under.
    arrivals: Interned<Arrival>,
    paths: Interned<Path>,
    named_under: u64,
    pairs: pairs::Pairs,
    lro: lro::Lro<F>,
    /// Packets read ahead: room that is kept.
    ahead: Vec<fast::Plain>,
    standing: fast::Standing,
    /// Flows whose second line was asked under newer snapshots, and whether the burst before had any.
    renewals: u32,
    renewing: bool,
    fragments: Fragments<F>,
    identifications: cut::Identifications,
    waiting: Vec<Waiting<F>>,
    started: Nanos,
    own_errors: PerPort,
    refusals: PerPort,
    pod_errors: PerPort,
    log_records: Allowance,
    scratch: Box<[u8; 2048]>,
    taps: tap::Taps,
    at_hand: Option<PortIndex>,
    tunnels: tunnel::OwnTunnels<F>,
}

impl<F: Frame> Worker<F> {
    /// Returns a worker that has seen nothing. `now` starts the adoption window.
    pub fn new(config: WorkerConfig, now: Nanos) -> Self {
        let flows = FlowTable::new(config.max_flows, config.hash_seed);
        let fragments = Fragments::new(config.hash_seed);
        let identifications = cut::Identifications::new(&config, now);
        Self {
            config,
            counters: Counters::default(),
            flows,
            arrivals: Interned::default(),
            paths: Interned::default(),
            named_under: 0,
            pairs: pairs::Pairs::default(),
            lro: lro::Lro::default(),
            ahead: vec![fast::Plain::NONE; BURST],
            standing: fast::Standing::default(),
            renewals: 0,
            renewing: false,
            fragments,
            identifications,
            waiting: Vec::new(),
            started: now,
            own_errors: PerPort::new(200),
            refusals: PerPort::new(200),
            pod_errors: PerPort::new(100),
            log_records: Allowance::new(100, now),
            scratch: Box::new([0; 2048]),
            taps: tap::Taps::default(),
            at_hand: None,
            tunnels: tunnel::OwnTunnels::default(),
        }
    }

    /// Takes one frame from `port` to its end: into `out.transmit`, `out.recycle`, or a bounded queue of this worker.
    #[inline]
    pub fn handle_frame(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frame: F,
        out: &mut Output<F>,
    ) {
        self.name_anew(view.topology);
        self.counters.received += 1;
        if is_sealed(view, port, frame.data()) {
            self.arrive_sealed(view, now, port, frame, out);
        } else {
            self.walk(view, now, port, frame, None, out);
        }
    }

    /// Takes frames that arrived together from one port to their ends, in order; `frames` is empty afterwards.
    ///
    /// The same as [`Worker::handle_frame`] for each, and faster: headers, index and flows are asked for a burst ahead, and packets of
    /// known flows, and those that open one, take the short ways of [`fast`].
    pub fn handle_burst(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frames: &mut Vec<F>,
        out: &mut Output<F>,
    ) {
        self.name_anew(view.topology);
        let first = (self.config.lro && is_uplink(view, port)).then_some(out.transmit.len());
        let burst = fast::Burst::new(view, now, port);
        let may_be_sealed = view.topology.encryption().is_some();
        let may_begin = self.may_begin(view);
        let mut plain = std::mem::take(&mut self.ahead);
        plain.resize(BURST, fast::Plain::NONE);
        while !frames.is_empty() {
            let count = frames.len().min(BURST);
            for frame in &frames[..count] {
                margay_accel::prefetch_lines(frame.data(), 1);
            }
            self.read_ahead(&mut plain[..count], |at| fast::Plain::read(&frames[at], &self.flows));
            let renewals = self.renewals;
            let mut rest = frames.drain(..count);
            for read in &plain[..count] {
                let Some(mut frame) = rest.next() else { break };
                if let Some(next) = rest.as_slice().first() {
                    margay_accel::prefetch_lines(next.data(), NEXT_LINES);
                }
                let tapped = self.is_tapped(port, &frame);
                if may_be_sealed && is_sealed(view, port, frame.data()) {
                    self.counters.received += 1;
                    self.arrive_sealed(view, now, port, frame, out);
                    continue;
                }
                let begun = match may_begin && read.seems_new() {
                    true => self.begin(&burst, &mut frame, read),
                    false => fast::Begun::Open,
                };
                let exit = match begun {
                    fast::Begun::Leaves(exit) => Some(exit),
                    fast::Begun::Refused(dropped) => {
                        self.refuse(view, now, port, frame, read, dropped, out);
                        continue;
                    }
                    fast::Begun::Open if tapped => None,
                    fast::Begun::Open => self.fast(&burst, &mut frame, read, None),
                };
                match exit {
                    Some(fast::Exit::Seal(peer)) => self.seal(view, now, port, peer, frame, out),
                    Some(exit) => exit.take(self.config.index, port, frame, read, out),
                    None => {
                        self.counters.received += 1;
                        self.walk(view, now, port, frame, Some(read), out);
                    }
                }
            }
            self.renewing = self.renewals != renewals;
        }
        self.ahead = plain;
        self.join_from(view, first, out);
    }

    /// Ends a plain packet that may not open a flow.
    #[inline(never)]
    #[allow(clippy::too_many_arguments, reason = "the parts of one packet, which live for this call only")]
    fn refuse(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frame: F,
        read: &fast::Plain,
        dropped: Dropped,
        out: &mut Output<F>,
    ) {
        let prepared = self.prepare(&frame, Some(read));
        self.conclude(view, now, port, frame, prepared.ip(), Err(dropped), out);
    }

    /// Lets go of what was remembered by name when the topology is another one.
    #[inline]
    fn name_anew(&mut self, topology: &Topology) {
        if topology.revision() != self.named_under {
            self.named_under = topology.revision();
            self.arrivals.clear();
            self.paths.clear();
            self.pairs.clear();
            self.standing.clear();
            self.tunnels.follow(topology, self.config.index);
        }
    }

    /// Reads a packet in full; what was learnt ahead is not found out again.
    #[inline]
    fn prepare(&self, frame: &F, read: Option<&fast::Plain>) -> Prepared {
        if let Some(prepared) = read.and_then(|read| read.prepared(frame.data())) {
            return prepared;
        }
        let parsed = parse_head(frame.data(), frame.packet_len());
        let (key, side) = match &parsed {
            Ok(Parsed { packet: Packet::Ip(ip), .. }) => FlowKey::of(ip),
            _ => (FlowKey::NONE, Side::Low),
        };
        Prepared { parsed, key, side, hash: self.flows.hash(&key) }
    }

    /// The long way of a packet that has begun.
    #[inline]
    fn walk(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        mut frame: F,
        read: Option<&fast::Plain>,
        out: &mut Output<F>,
    ) {
        let prepared = &self.prepare(&frame, read);
        let seen = self.look(port, &frame, prepared);
        let ended = self.process(view, now, port, &mut frame, prepared, out);
        if let Some(seen) = seen {
            self.tell(view, now, port, seen, &frame, prepared, &ended, out);
        }
        self.conclude(view, now, port, frame, prepared.ip(), ended, out);
        self.settle_fragments(view, now, out);
    }

    /// The packet's way; the order is that of policy model 12.1.
    ///
    /// **Fast and slow.** A packet of a known flow needs no policy, no route and, when its very port and Ethernet source have passed the
    /// sanity stage for this flow and topology, no second look at its addresses: all that is remembered in the flow's entry. What retires
    /// the memory: a newer snapshot whose epochs or identities differ (judged again), a newer topology (sanity, endpoints and path anew),
    /// the end of the connection. A hit touches one or two cache lines of the flow; a miss pays for two table walks, and for a route
    /// where no flow has gone between these addresses lately ([`pairs`]).
    #[inline]
    fn process(
        &mut self,
        view: View<'_>,
        now: Nanos,
        index: PortIndex,
        frame: &mut F,
        prepared: &Prepared,
        out: &mut Output<F>,
    ) -> Result<Ending, Dropped> {
        let port = view.topology.port(index).ok_or(DropReason::NoPort)?;
        let parsed = match &prepared.parsed {
            Ok(parsed) => parsed,
            Err(error) => return Err((*error).into()),
        };
        sanity::ethernet(port, parsed)?;
        let ip = match &parsed.packet {
            Packet::Ip(ip) => ip,
            Packet::Arp(arp) => return self.answer_arp(view, port, frame, parsed, arp),
        };
        let arrival = Arrival { port: index, mac: parsed.source };
        let known = self.flows.find(&prepared.key, prepared.hash);
        // Only flows with ports: an ICMP key does not tell a ping from a router advertisement.
        let checked = prepared.key.has_ports()
            // A mapped address has the key of the IPv4 address that it holds, and is a martian.
            && prepared.key.is_v4() == ip.source.is_ipv4()
            && ip.fragment == Fragment::None
            && parsed.destination == port.mac
            && known.and_then(|slot| self.flows.flow(slot)).is_some_and(|flow| {
                let remembered = flow.arrivals[usize::from(prepared.side != flow.opener)];
                flow.topology == view.under().1 && self.arrivals.get(remembered) == Some(&arrival)
            });
        if !checked {
            match sanity::addresses(view.topology, &self.config, port, parsed, ip)? {
                Class::Forward => {}
                Class::ForUs if ip.fragment != Fragment::None => {
                    return Err(DropReason::FragmentForGateway.into());
                }
                Class::ForUs => return self.answer_for_gateway(port, frame, ip),
            }
        }
        // Link padding ends here: what leaves is the packet alone.
        frame.set_len(ip.end());

        let keeper = self.keeper(view.topology, port, frame.data(), ip);
        if keeper != self.config.index {
            return Ok(Ending::HandOver(keeper, Errand::Take));
        }
        let passing = Passing { view, now, port, ip, arrival: Some(arrival), errand: None };
        self.pass(&passing, prepared, known, frame, out)
    }

    /// The second half of the way: the packet's flow, its path, its leave. Both for packets of our own ports and for those that other
    /// workers gave us.
    #[inline]
    fn pass(
        &mut self,
        passing: &Passing<'_>,
        prepared: &Prepared,
        known: Option<u32>,
        frame: &mut F,
        out: &mut Output<F>,
    ) -> Result<Ending, Dropped> {
        if passing.ip.fragment != Fragment::None {
            return self.fragment(passing, prepared, known, frame, out);
        }
        if passing.ip.is_icmp_error() {
            return self.forward_related(passing, frame, out);
        }
        let leg = self.leg(passing, prepared, known, out)?;
        self.depart(passing, leg, frame, out)
    }

    /// A packet that may pass goes by the path of its flow: (slot, direction).
    #[inline]
    fn depart(
        &mut self,
        passing: &Passing<'_>,
        (slot, direction): (u32, usize),
        frame: &mut F,
        out: &mut Output<F>,
    ) -> Result<Ending, Dropped> {
        let Passing { view, now, port, ip, .. } = *passing;
        let flow = self.flows.flow_mut(slot).ok_or(DropReason::InvalidState)?;
        // Who watches is told by the worker that sends, which has to see the packet then.
        let is_news =
            flow.observe(direction, ip, now) || ip.fragment != Fragment::None || !self.taps.is_empty();
        if flow.is_misplaced() {
            self.flows.resort(slot);
        }
        let flow = self.flows.flow_mut(slot).ok_or(DropReason::InvalidState)?;
        if let Some(arrival) = passing.lasting_arrival() {
            flow.arrivals[direction] = self.arrivals.id(arrival);
        }
        let state = flow.state;
        let path = match self.paths.get(flow.paths[direction]) {
            Some(path) => *path,
            None => {
                let pair = self.pairs.meet(view, port.index, ip.source, ip.destination);
                match self.paths.get(pair.path) {
                    Some(path) => {
                        flow.paths[direction] = pair.path;
                        *path
                    }
                    None => match path::resolve(
                        view.topology,
                        self.config.index,
                        port,
                        ip.source,
                        ip.destination,
                    )? {
                        path::Next::Ready(path) => {
                            let id = self.paths.id(path);
                            flow.paths[direction] = id;
                            // By whom a packet may go in clear can change within a plan: that is asked for each flow.
                            if !view.topology.encrypts() {
                                pair.path = id;
                            }
                            path
                        }
                        path::Next::Unresolved(path, next_hop) => {
                            finish::is_too_big(frame, port, ip, &path)?;
                            return Ok(Ending::Hold { path, next_hop, ip: *ip });
                        }
                    },
                }
            }
        };
        let fits = ip.total_len <= path.mtu && !(path.decrement_ttl && ip.ttl <= 1);
        if path.to_pod && path.worker != self.config.index && passing.errand.is_none() && fits && !is_news {
            finish::finish(frame, port, ip, &path, &mut self.identifications, out)?;
            return Ok(Ending::Deliver(path.worker, path.port));
        }
        let first = Told { forward: direction == 0, state, generation: view.under().0 };
        self.leave(passing, &path, Errand::Judge(first), frame, out)
    }

    /// Does what time demands: expires flows (a bounded number a call), lets go of packets that waited too long, and sends those
    /// whose neighbour became known. Call it about every 10 ms, and once after a new topology.
    pub fn handle_timeout(&mut self, view: View<'_>, now: Nanos, out: &mut Output<F>) {
        self.name_anew(view.topology);
        self.at_hand = None;
        self.flows.expire(now, 4096);
        self.counters.flows = self.flows.len() as u64;
        self.expire_fragments(view, now, out);
        let first = out.transmit.len();
        self.release(view, now, out);
        self.relay(view, now, first, out);
        self.tick_tunnels(view, now, out);
    }

    /// Returns whether the worker waits for neighbours, so that the shell may ask the kernel to resolve them: (port, address) pairs.
    pub fn wanted_neighbours(&self) -> Vec<(PortIndex, IpAddr)> {
        let mut wanted: Vec<_> = self.waiting.iter().map(|w| (w.path.port, w.next_hop)).collect();
        wanted.extend(self.tunnels.missing());
        wanted.sort();
        wanted.dedup();
        wanted
    }

    /// Returns whether packets wait for a neighbour: the shell then calls [`Worker::handle_timeout`] soon rather than sleeping long.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || self.tunnels.is_waiting()
    }

    /// Returns how many frames the packets that wait here take: for a neighbour, for a first fragment, for a tunnel.
    pub fn frames_held(&self) -> usize {
        let more = self.waiting.iter().map(|waiting| waiting.frame.frames() - 1).sum::<usize>();
        self.counters.held as usize + more + self.fragments.more_frames()
    }

    /// Returns the port of the packet that was taken up last from another worker or from those that waited: should that end in a panic,
    /// whose packet it was. For a burst, the shell knows.
    pub fn at_hand(&self) -> Option<PortIndex> {
        self.at_hand
    }

    /// Returns the counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Whether a frame from a port is a datagram of a tunnel.
#[inline]
fn is_sealed(view: View<'_>, port: PortIndex, frame: &[u8]) -> bool {
    let addressed = || view.topology.encryption().is_some_and(|it| it.addressed(frame).is_some());
    addressed() && is_uplink(view, port)
}

fn is_uplink(view: View<'_>, port: PortIndex) -> bool {
    view.topology.port(port).is_some_and(|port| matches!(port.kind, PortKind::Uplink))
}

/// Returns the generation of the policy in force; zero before the first.
fn generation(view: View<'_>) -> Generation {
    view.snapshot.map(Snapshot::generation).unwrap_or_default()
}

fn other(side: Side) -> Side {
    match side {
        Side::Low => Side::High,
        Side::High => Side::Low,
    }
}
