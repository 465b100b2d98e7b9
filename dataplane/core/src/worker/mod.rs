//! One worker's state; a frame in, frames out.
//!
//! [`Worker::handle_frame`] is the life of a packet on one screen; each stage is one call with one outcome:
//!
//! | stage | module | answers |
//! |---|---|---|
//! | sanity | [`sanity`] | may this packet exist on this port at all? |
//! | discovery | [`discovery`] | is it for the gateway, that is for us? |
//! | flow | [`crate::flow`] | have we met? ([`fast`]: and is nothing else to ask?) |
//! | judge | [`judge`] | may it pass, both legs? |
//! | path | [`path`] | where does it leave, and by whose hands? |
//! | finish | [`finish`] | size, TTL, checksum, addresses, transmit |
//!
//! ICMP errors leave this way after the sanity stage, for [`related`]; what is told beside the counters is in [`events`].
//!
//! Invariant: after every call `received` equals the sum of all endings ([`Counters::endings`]).

mod discovery;
mod events;
mod fast;
mod finish;
mod fragments;
mod judge;
mod limits;
mod path;
mod related;
mod sanity;

use std::net::IpAddr;

use margay_policy_engine::packet::{Direction, PacketTuple};
use margay_policy_engine::snapshot::{Attribution, RuleRef, Snapshot};
use margay_wire::parse::tcp_flags;
use margay_wire::{Fragment, IpHeaders, Packet, ParseError, Parsed, Transport, icmp, parse};

use crate::flow::{Arrival, Flow, FlowKey, FlowTable, JudgedBy, Side, State, key, tcp};
use crate::frame::Frame;
use crate::output::Output;
use crate::time::Nanos;
use crate::topology::{PortIndex, Topology};
use crate::verdict::{Counters, DropReason};
use finish::Waiting;
use fragments::FirstFragments;
use limits::Allowance;
use sanity::Class;

/// What `defaultEndpointToHostAction` says about a pod's packets to its own node (policy model 12.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointToHost {
    /// Dropped; the agent's default.
    #[default]
    Drop,
    /// Passed on; what Kubernetes manifests configure.
    Accept,
}

/// What a live flow does when what it was judged by has changed (PM-D10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyChangeFlowAction {
    /// Its next packet is judged again.
    #[default]
    Reevaluate,
    /// It goes on until it ends.
    Keep,
}

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Pod to own node.
    pub endpoint_to_host: EndpointToHost,
    /// Live flows under a changed policy.
    pub policy_change: PolicyChangeFlowAction,
    /// How long after the start mid-flow TCP may be adopted (PM-D19).
    pub adoption_window: Nanos,
    /// Most flows kept.
    pub max_flows: usize,
    /// Decides the flow table's hash; keep it secret and random where strangers choose addresses and ports.
    pub hash_seed: u64,
    /// The pods' IPv4 gateway, answered by ARP.
    pub gateway_v4: IpAddr,
    /// The pods' IPv6 gateway, answered by neighbour discovery.
    pub gateway_v6: IpAddr,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            endpoint_to_host: EndpointToHost::Drop,
            policy_change: PolicyChangeFlowAction::Reevaluate,
            adoption_window: Nanos::from_secs(120),
            max_flows: 512_000,
            hash_seed: 0,
            gateway_v4: IpAddr::from([169, 254, 1, 1]),
            gateway_v6: IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1]),
        }
    }
}

/// What is in force during one burst. Loaded once by the shell, so no packet sees half of a change.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Compiled policy; `None` before the first complete picture: pods are closed.
    pub snapshot: Option<&'a Snapshot>,
    /// Ports, routes and neighbours.
    pub topology: &'a Topology,
}

/// One live flow, for `margay flows`.
#[derive(Clone, Debug)]
pub struct FlowRecord {
    /// Who opened it.
    pub source: IpAddr,
    /// Whom it was opened to.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Transport source port, or ICMP identifier.
    pub source_port: u16,
    /// Transport destination port.
    pub destination_port: u16,
    /// State in words: `syn_sent`, `established`, `closing`, `reset`, `one_way`, `two_way`, `refused`.
    pub state: &'static str,
    /// Packets and bytes from the opener.
    pub forward: (u64, u64),
    /// Packets and bytes towards the opener.
    pub reverse: (u64, u64),
    /// Time until it is forgotten if nothing more comes.
    pub expires_in: Nanos,
    /// Sender's egress policy that let it pass, when the sender is a pod of this node.
    pub egress: Option<Attribution>,
    /// Receiver's ingress policy that let it pass, when the receiver is a pod of this node.
    pub ingress: Option<Attribution>,
}

/// Why a packet ended, and what its sender is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropped {
    reason: DropReason,
    rule: Option<RuleRef>,
    error: Option<icmp::Error>,
}

impl From<DropReason> for Dropped {
    fn from(reason: DropReason) -> Self {
        Self { reason, rule: None, error: None }
    }
}

impl From<ParseError> for Dropped {
    fn from(error: ParseError) -> Self {
        let reason = match error {
            ParseError::Truncated => DropReason::Truncated,
            ParseError::UnknownEtherType(_) => DropReason::UnknownEtherType,
            ParseError::VlanTagged => DropReason::VlanTagged,
            ParseError::BadIpv4Header => DropReason::BadIpv4Header,
            ParseError::BadIpv6Header => DropReason::BadIpv6Header,
            ParseError::SourceRouting => DropReason::SourceRouting,
            ParseError::BadTransport => DropReason::BadTransportHeader,
            ParseError::BadFragment => DropReason::BadFragment,
            ParseError::BadArp => DropReason::BadArp,
        };
        reason.into()
    }
}

/// How a packet that was not dropped goes on.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// Leaves by a port.
    Forward(PortIndex),
    /// Left in fragments, which are in the output already; the frame itself is free.
    Fragmented,
    /// Was turned into an answer, to go back where it came from.
    Answer,
    /// Waits for a next hop's address.
    Hold { path: crate::flow::Path, next_hop: IpAddr, ip: IpHeaders },
}

/// A frame that was read, before anything is decided about it.
#[derive(Clone, Copy, Debug)]
struct Prepared {
    parsed: Result<Parsed, ParseError>,
    key: FlowKey,
    side: Side,
    hash: u64,
}

/// Frames looked at together, so that what one of them needs from memory comes while the others are handled.
const BURST: usize = 32;

/// What the flow table says about a packet.
enum Known {
    /// It belongs to the flow in this slot, which may pass.
    Flow(u32, usize),
    /// No flow, or one that this packet may not use.
    Unknown,
}

/// The state of one worker: the flows of its ports, packets waiting for a neighbour, counters.
#[derive(Debug)]
pub struct Worker<F> {
    config: WorkerConfig,
    counters: Counters,
    flows: FlowTable,
    fragments: FirstFragments,
    waiting: Vec<Waiting<F>>,
    started: Nanos,
    own_errors: Allowance,
    log_records: Allowance,
    pod_errors: Vec<Allowance>,
    scratch: Box<[u8; 2048]>,
}

impl<F: Frame> Worker<F> {
    /// Returns a worker that has seen nothing. `now` starts the adoption window.
    pub fn new(config: WorkerConfig, now: Nanos) -> Self {
        let flows = FlowTable::new(config.max_flows, config.hash_seed);
        Self {
            config,
            counters: Counters::default(),
            flows,
            fragments: FirstFragments::default(),
            waiting: Vec::new(),
            started: now,
            own_errors: Allowance::new(200, now),
            log_records: Allowance::new(100, now),
            pod_errors: Vec::new(),
            scratch: Box::new([0; 2048]),
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
        let prepared = self.prepare(frame.data());
        self.complete(view, now, port, frame, &prepared, out);
    }

    /// Takes frames that arrived together from one port to their ends, in order; `frames` is empty afterwards.
    ///
    /// The same as [`Worker::handle_frame`] for each, and faster: headers, index and flows are asked for a burst ahead, and packets of
    /// known flows take the short way of [`fast`].
    pub fn handle_burst(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frames: &mut Vec<F>,
        out: &mut Output<F>,
    ) {
        let burst = fast::Burst::new(view, now, port);
        let mut plain = [fast::Plain::NONE; BURST];
        while !frames.is_empty() {
            let count = frames.len().min(BURST);
            for frame in &frames[..count] {
                margay_accel::prefetch_lines(frame.data(), 1);
            }
            for (frame, slot) in frames[..count].iter().zip(&mut plain) {
                *slot = fast::Plain::read(frame.data(), &self.flows);
                self.flows.prefetch_index(slot.hash);
            }
            for read in &plain[..count] {
                self.flows.prefetch_flow(read.hash);
            }
            for (mut frame, read) in frames.drain(..count).zip(&plain) {
                match self.fast(&burst, &mut frame, read) {
                    Some(to) => out.transmit.push((to, frame)),
                    None => self.handle_frame(view, now, port, frame, out),
                }
            }
        }
    }

    #[inline]
    fn prepare(&self, bytes: &[u8]) -> Prepared {
        let parsed = parse(bytes);
        let (key, side) = match &parsed {
            Ok(Parsed { packet: Packet::Ip(ip), .. }) => FlowKey::of(ip),
            _ => (FlowKey::NONE, Side::Low),
        };
        Prepared { parsed, key, side, hash: self.flows.hash(&key) }
    }

    #[inline]
    fn complete(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        mut frame: F,
        prepared: &Prepared,
        out: &mut Output<F>,
    ) {
        self.counters.received += 1;
        match self.process(view, now, port, &mut frame, prepared, out) {
            Ok(Ending::Forward(to)) => {
                self.counters.forwarded += 1;
                out.transmit.push((to, frame));
            }
            Ok(Ending::Answer) => {
                self.counters.answered += 1;
                out.transmit.push((port, frame));
            }
            Ok(Ending::Fragmented) => {
                self.counters.forwarded += 1;
                out.recycle.push(frame);
            }
            Ok(Ending::Hold { path, next_hop, ip }) => {
                self.hold(view, now, port, frame, ip, path, next_hop, out)
            }
            Err(dropped) => {
                let ip = match &prepared.parsed {
                    Ok(Parsed { packet: Packet::Ip(ip), .. }) => Some(ip),
                    _ => None,
                };
                self.end(view, now, port, frame, ip, dropped, out);
            }
        }
    }

    /// The packet's way; the order is that of policy model 12.1.
    ///
    /// **Fast and slow.** A packet of a known flow needs no policy, no route and, when its very port and Ethernet source have passed the
    /// sanity stage for this flow and topology, no second look at its addresses: all that is remembered in the flow's entry. What
    /// retires the memory: a newer snapshot whose epochs or identities differ (judged again), a newer topology (sanity, endpoints and
    /// path anew), the end of the connection. A hit touches three cache lines of the flow; a miss pays for two table walks and a route.
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
        let topology = view.topology.generation() as u32;
        let arrival = Arrival { port: index.0, mac: parsed.source, topology };
        let known = self.flows.find(&prepared.key, prepared.hash);
        // Only flows with ports: an ICMP key does not tell a ping from a router advertisement.
        let checked = prepared.key.has_ports()
            && ip.fragment == Fragment::None
            && parsed.destination == port.mac
            && known.and_then(|slot| self.flows.flow(slot)).is_some_and(|flow| {
                flow.arrivals[usize::from(prepared.side != flow.opener)] == arrival && topology != 0
            });
        if !checked {
            match sanity::addresses(view.topology, &self.config, port, parsed, ip)? {
                Class::Forward => {}
                Class::ForUs => return self.answer_for_gateway(port, frame, ip),
            }
        }
        // Link padding ends here: what leaves is the packet alone.
        frame.set_len(ip.end());

        if ip.is_icmp_error() {
            return self.forward_related(view, now, port, frame, ip, out);
        }
        let (slot, direction) = match self.lookup(view, now, ip, prepared, known)? {
            Known::Flow(slot, direction) => {
                self.counters.flow_hits += 1;
                (slot, direction)
            }
            Known::Unknown => {
                self.counters.flow_misses += 1;
                self.open(view, now, index, ip, out)?
            }
        };
        if let Fragment::First { id } = ip.fragment {
            let flow = self.flows.flow(slot).ok_or(DropReason::InvalidState)?;
            self.fragments.remember(ip, id, flow.key, direction, flow.opener, now);
        }
        let flow = self.flows.flow_mut(slot).ok_or(DropReason::InvalidState)?;
        flow.observe(direction, ip, now);
        flow.arrivals[direction] = arrival;
        let path = match flow.paths[direction] {
            Some(path) if path.topology == topology => path,
            _ => match path::resolve(view.topology, port, ip.destination)? {
                path::Next::Ready(path) => {
                    flow.paths[direction] = Some(path);
                    path
                }
                path::Next::Unresolved(path, next_hop) => {
                    return Ok(Ending::Hold { path, next_hop, ip: *ip });
                }
            },
        };
        finish::finish(frame, port, ip, &path, out)
    }

    /// Finds the flow that `ip` belongs to and makes sure that it is still what it was judged as.
    #[inline]
    fn lookup(
        &mut self,
        view: View<'_>,
        now: Nanos,
        ip: &IpHeaders,
        prepared: &Prepared,
        known: Option<u32>,
    ) -> Result<Known, Dropped> {
        let (side, slot) = match ip.fragment {
            Fragment::Later { id } => {
                let (key, side) =
                    self.fragments.recall(ip, id, now).ok_or(DropReason::FragmentWithoutFirst)?;
                let slot =
                    self.flows.find(&key, self.flows.hash(&key)).ok_or(DropReason::FragmentWithoutFirst)?;
                (side, slot)
            }
            _ => match known {
                Some(slot) => (prepared.side, slot),
                None => return Ok(Known::Unknown),
            },
        };
        let flow = self.flows.flow(slot).ok_or(DropReason::InvalidState)?;
        let direction = usize::from(side != flow.opener);
        if flow.expires <= now {
            self.flows.remove(slot);
            return Ok(Known::Unknown);
        }
        // A SYN is judged whatever is remembered (policy model 13.6).
        if let Transport::Tcp { flags, .. } = ip.transport
            && tcp::opens(flags)
        {
            return Ok(Known::Unknown);
        }
        let generation = view.snapshot.map(Snapshot::generation).unwrap_or_default();
        if (flow.snapshot, flow.topology) != (generation, view.topology.generation())
            && !self.revalidate(view, slot)
        {
            return Ok(Known::Unknown);
        }
        let flow = self.flows.flow(slot).ok_or(DropReason::InvalidState)?;
        if flow.approved { Ok(Known::Flow(slot, direction)) } else { Err(flow.refused()) }
    }

    /// Confirms the flow under the present snapshot and topology, judging it again where what it was judged by has changed.
    /// Returns `false` when the flow is over: one of its ends is another endpoint now.
    fn revalidate(&mut self, view: View<'_>, slot: u32) -> bool {
        let Some(flow) = self.flows.flow(slot) else { return false };
        let tuple = flow.tuple();
        let parties = judge::Parties::of(view.topology, &tuple);
        let old = flow.judged_by;
        if !parties.are(&old) {
            self.flows.remove(slot);
            return false;
        }
        let renewed = judge::unchanged(view, &old, &tuple);
        let keep = self.config.policy_change == PolicyChangeFlowAction::Keep && flow.approved;
        let (refusal, judged_by) = if renewed || keep {
            (flow.refusal, old)
        } else {
            self.counters.flow_rejudged += 1;
            match judge::judge(view, &self.config, &tuple, &parties) {
                Ok(judged_by) => (None, judged_by),
                Err(refused) => {
                    let by = judge::evidence(view, &tuple, &parties).unwrap_or(old);
                    (Some((refused.reason, refused.rule.unwrap_or(NO_RULE))), by)
                }
            }
        };
        let generation = view.snapshot.map(Snapshot::generation).unwrap_or_default();
        if let Some(flow) = self.flows.flow_mut(slot) {
            flow.approved = refusal.is_none();
            flow.refusal = refusal;
            flow.judged_by = judged_by;
            flow.snapshot = generation;
            flow.topology = view.topology.generation();
        }
        true
    }

    /// Judges the first packet of a flow and remembers the answer. Returns the slot and the packet's direction.
    fn open(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        ip: &IpHeaders,
        out: &mut Output<F>,
    ) -> Result<(u32, usize), Dropped> {
        let (key, side) = FlowKey::of(ip);
        let tuple = judge::tuple(ip);
        let parties = judge::Parties::of(view.topology, &tuple);
        if view.snapshot.is_some_and(Snapshot::has_log_rules) {
            self.log(view, now, port, &tuple, &parties, out);
        }
        let in_mid_flow = match ip.transport {
            Transport::Tcp { flags, .. } => !tcp::opens(flags),
            Transport::Icmp { kind, .. } => key::is_icmp_reply(ip.protocol, kind),
            _ => false,
        };
        let adopting = in_mid_flow && now < self.started + self.config.adoption_window;
        let is_tcp = matches!(ip.transport, Transport::Tcp { .. });
        let (opener, judged_by) = if !in_mid_flow || !parties.any() {
            (side, judge::judge(view, &self.config, &tuple, &parties)?)
        } else if adopting && is_tcp {
            // Either end may have opened it before we were here (PM-D19).
            match judge::judge(view, &self.config, &tuple, &parties) {
                Ok(judged_by) => (side, judged_by),
                Err(refused) => {
                    let reversed = judge::reversed(&tuple);
                    let parties = judge::Parties::of(view.topology, &reversed);
                    let judged_by =
                        judge::judge(view, &self.config, &reversed, &parties).map_err(|_| refused)?;
                    (other(side), judged_by)
                }
            }
        } else {
            return Err(DropReason::InvalidState.into());
        };
        let direction = usize::from(side != opener);
        let state = match ip.transport {
            Transport::Tcp { .. } if in_mid_flow => State::Tcp(tcp::TcpState::ADOPTED),
            Transport::Tcp { .. } => State::Tcp(tcp::TcpState::OPENING),
            _ => State::Other { answered: false },
        };
        let snapshot = view.snapshot.map(Snapshot::generation).unwrap_or_default();
        let topology = view.topology.generation();
        if let Some(slot) = self.flows.find(&key, self.flows.hash(&key))
            && let Some(flow) = self.flows.flow_mut(slot)
            && flow.opener == opener
            && matches!(flow.state, State::Tcp(state) if !state.is_over())
        {
            // A repeated SYN of a connection that lives: approved again, state kept.
            (flow.approved, flow.refusal) = (true, None);
            (flow.judged_by, flow.snapshot, flow.topology) = (judged_by, snapshot, topology);
            return Ok((slot, direction));
        }
        let flow = Flow {
            key,
            opener,
            icmp: tuple.icmp,
            approved: true,
            refusal: None,
            arrivals: [Arrival::default(); 2],
            judged_by,
            snapshot,
            topology,
            state,
            expires: now,
            paths: [None; 2],
            packets: [0; 2],
            bytes: [0; 2],
        };
        let slot = self.flows.insert(flow).ok_or(DropReason::FlowTableFull)?;
        self.counters.flows = self.flows.len() as u64;
        Ok((slot, direction))
    }

    /// Ends a packet by name: counts it, samples it, and where the reason says so turns its frame into the answer for its sender.
    #[cold]
    #[allow(clippy::too_many_arguments, reason = "the parts of one packet, which live for this call only")]
    fn end(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        mut frame: F,
        ip: Option<&IpHeaders>,
        dropped: Dropped,
        out: &mut Output<F>,
    ) {
        self.counters.drops[dropped.reason as usize] += 1;
        // Discovery that ends at the gateway is daily business: counted, never an event that hides a real one.
        let noteworthy = dropped.reason != DropReason::DiscoveryConsumed;
        if noteworthy && out.events.len() < Output::<F>::MAX_EVENTS {
            out.events.push(events::dropped(view, port, ip, &dropped));
        }
        if let (Some(error), Some(ip), Some(port)) = (dropped.error, ip, view.topology.port(port))
            && self.own_errors.take(now)
            && self.turn_into_error(view, port, &mut frame, ip, error)
        {
            self.counters.icmp_errors_sent += 1;
            out.transmit.push((port.index, frame));
            return;
        }
        out.recycle.push(frame);
    }

    /// Does what time demands: expires flows (a bounded number a call), lets go of packets that waited too long, and sends those
    /// whose neighbour became known. Call it about every 10 ms, and once after a new topology.
    pub fn handle_timeout(&mut self, view: View<'_>, now: Nanos, out: &mut Output<F>) {
        self.flows.expire(now, 4096);
        self.counters.flows = self.flows.len() as u64;
        self.fragments.expire(now);
        self.release(view, now, out);
    }

    /// Returns whether the worker waits for neighbours, so that the shell may ask the kernel to resolve them: (port, address) pairs.
    pub fn wanted_neighbours(&self) -> Vec<(PortIndex, IpAddr)> {
        let mut wanted: Vec<_> = self.waiting.iter().map(|w| (w.path.port, w.next_hop)).collect();
        wanted.sort();
        wanted.dedup();
        wanted
    }

    /// Returns whether packets wait for a neighbour: the shell then calls [`Worker::handle_timeout`] soon rather than sleeping long.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns the counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns up to `limit` live flows, starting at table position `cursor`; the second value is the next cursor, `None` at the end.
    ///
    /// Attributions are those of the present snapshot: who would decide the flow's opening packet now.
    pub fn flows(
        &self,
        view: View<'_>,
        now: Nanos,
        cursor: usize,
        limit: usize,
    ) -> (Vec<FlowRecord>, Option<usize>) {
        let mut records = Vec::new();
        for slot in cursor..self.flows.slots() {
            if records.len() == limit {
                return (records, Some(slot));
            }
            if let Some(flow) = self.flows.flow(slot as u32).filter(|flow| flow.expires > now) {
                records.push(flow.record(view, now));
            }
        }
        (records, None)
    }
}

fn other(side: Side) -> Side {
    match side {
        Side::Low => Side::High,
        Side::High => Side::Low,
    }
}

/// Stands for "no rule" in a flow's refusal; no snapshot has so many.
const NO_RULE: RuleRef = RuleRef(u32::MAX);

impl Flow {
    /// Returns who refused it.
    fn refused(&self) -> Dropped {
        let (reason, rule) = self.refusal.unwrap_or((DropReason::NoPolicyYet, NO_RULE));
        Dropped { reason, rule: (rule != NO_RULE).then_some(rule), error: None }
    }

    /// Returns the opening packet as policy saw it.
    fn tuple(&self) -> PacketTuple {
        let (from, to) = self.key.ends(self.opener);
        let ported = self.key.has_ports();
        PacketTuple {
            source: key::address(from.address),
            destination: key::address(to.address),
            protocol: self.key.protocol,
            source_port: ported.then_some(from.port),
            destination_port: ported.then_some(to.port),
            icmp: self.icmp,
        }
    }

    /// Takes a packet: state, lifetime, counters.
    #[inline]
    fn observe(&mut self, direction: usize, ip: &IpHeaders, now: Nanos) {
        let flags = match ip.transport {
            Transport::Tcp { flags, .. } => flags,
            _ => 0,
        };
        self.observe_parts(direction, ip.total_len, ip.protocol, flags, now);
    }

    /// As [`Flow::observe`]; `flags` is zero where there is no TCP header.
    #[inline(always)]
    fn observe_parts(&mut self, direction: usize, total_len: u16, protocol: u8, flags: u8, now: Nanos) {
        self.packets[direction] += 1;
        self.bytes[direction] += u64::from(total_len);
        let lifetime = match &mut self.state {
            State::Tcp(tcp) => {
                if flags != 0 {
                    // A new connection over an old one was judged by `open`, which replaced the entry.
                    let live = flags & (tcp_flags::FIN | tcp_flags::RST | tcp_flags::ACK);
                    tcp.observe(direction, live);
                }
                tcp.timeout()
            }
            State::Other { answered } => {
                *answered |= direction == 1;
                match protocol {
                    margay_wire::protocol::UDP | margay_wire::protocol::UDPLITE => Nanos::from_secs(60),
                    margay_wire::protocol::ICMP | margay_wire::protocol::ICMPV6 => Nanos::from_secs(5),
                    _ => Nanos::from_secs(600),
                }
            }
        };
        self.expires = now + lifetime;
    }

    fn record(&self, view: View<'_>, now: Nanos) -> FlowRecord {
        let tuple = self.tuple();
        let (from, to) = self.key.ends(self.opener);
        let by = |leg: Option<crate::flow::Leg>, direction: Direction| {
            let snapshot = view.snapshot?;
            let judgement = snapshot.judge(leg?.endpoint, direction, &tuple)?;
            snapshot.attribution(judgement.rule).cloned()
        };
        let JudgedBy { egress, ingress, .. } = self.judged_by;
        FlowRecord {
            source: tuple.source,
            destination: tuple.destination,
            protocol: self.key.protocol,
            source_port: from.port,
            destination_port: to.port,
            state: match (self.approved, self.state) {
                (false, _) => "refused",
                (_, State::Tcp(tcp)) => tcp.as_str(),
                (_, State::Other { answered: true }) => "two_way",
                (_, State::Other { answered: false }) => "one_way",
            },
            forward: (self.packets[0], self.bytes[0]),
            reverse: (self.packets[1], self.bytes[1]),
            expires_in: self.expires - now,
            egress: by(egress, Direction::Egress),
            ingress: by(ingress, Direction::Ingress),
        }
    }
}
