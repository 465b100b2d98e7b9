//! Between workers: who keeps a packet's flow, when a packet changes hands, and what becomes of one that was given to us.
//!
//! ```text
//!  pod port     ─▶ its home keeps the flow ─▶ out by another pod? ─▶ that pod's home sends               (Deliver)
//!                                          │     news of the flow? ─▶ and judges it as well               (Judge)
//!                                          └▶ out by a queue that is not ours? ─▶ whose it is sends      (Send)
//!  host, uplink ─▶ keeper elsewhere?       ─▶ the keeper does everything but the sanity stage            (Take)
//!  the tunnel   ─▶ the peer is another's?  ─▶ whose it is seals or opens                                 (Seal, Open)
//! ```
//!
//! The keeper of a packet from a pod is the pod's home, where it arrives. From the host port or an uplink it is the home of the pod that
//! it goes to, worker 0 where it goes to or comes from this node, and else a worker with uplink queues, by both addresses alike in both
//! directions: every packet of a flow meets the same one, whatever queue the NIC chose for it, and the keeper has the queue to send it.

use std::net::IpAddr;

use margay_wire::parse::parse_quoted;
use margay_wire::{IpHeaders, Packet, Parsed, parse_head};

use super::{BURST, Dropped, Ending, Passing, Prepared, View, Worker, fast, finish, path};
use crate::flow::{FlowKey, Path};
use crate::frame::Frame;
use crate::handover::{Errand, Handover, Parcels, Word};
use crate::output::Output;
use crate::spread::WorkerIndex;
use crate::time::Nanos;
use crate::topology::{Port, PortIndex, PortKind, Topology};
use crate::verdict::DropReason;

impl<F: Frame> Worker<F> {
    /// Returns the worker that keeps the flow of a packet that arrived here on `arrival`.
    #[inline]
    pub(super) fn keeper(
        &self,
        topology: &Topology,
        arrival: &Port,
        frame: &[u8],
        ip: &IpHeaders,
    ) -> WorkerIndex {
        let me = self.config.index;
        if topology.spread().workers() == 1 {
            return me;
        }
        let to_pod = || topology.home(ip.destination).filter(|_| !topology.is_node_address(ip.destination));
        match arrival.kind {
            PortKind::Pod { .. } => me,
            PortKind::Host { .. } => to_pod().unwrap_or(me),
            PortKind::Uplink => match to_pod() {
                Some(home) => home,
                None => self.keeper_beyond(topology, arrival, frame, ip),
            },
        }
    }

    /// As [`Worker::keeper`], for a packet from an uplink that goes to no pod of this node.
    fn keeper_beyond(
        &self,
        topology: &Topology,
        arrival: &Port,
        frame: &[u8],
        ip: &IpHeaders,
    ) -> WorkerIndex {
        let me = self.config.index;
        // What has no way is dropped by name where it is.
        let Ok(path::Next::Ready(path) | path::Next::Unresolved(path, _)) =
            path::resolve(topology, me, arrival, ip.source, ip.destination)
        else {
            return me;
        };
        let Some(out) = topology.port(path.port) else { return me };
        if !matches!(out.kind, PortKind::Uplink) {
            return path.worker;
        }
        // An error belongs where the packet that it quotes does.
        let quoted = if ip.is_icmp_error() { parse_quoted(frame, ip).ok() } else { None };
        let of = quoted.as_ref().unwrap_or(ip);
        let spread = topology.spread();
        let carriers = spread.carriers(arrival.index).min(spread.carriers(out.index));
        WorkerIndex(mix(of.source, of.destination) % carriers)
    }

    /// Sends a packet on by `path`: finished, or as it is to the worker that has the pod behind that port.
    #[inline]
    pub(super) fn leave(
        &mut self,
        passing: &Passing<'_>,
        path: &Path,
        errand: Errand,
        frame: &mut F,
        out: &mut Output<F>,
    ) -> Result<Ending, Dropped> {
        if path.to_pod && path.worker != self.config.index {
            // Given to us already: the pod has moved since, and a packet changes hands once.
            return match passing.errand {
                Some(_) => Err(DropReason::NoPort.into()),
                None => Ok(Ending::HandOver(path.worker, errand)),
            };
        }
        finish::finish(frame, passing.port, passing.ip, path, &mut self.identifications, out)
    }

    /// Takes packets from other workers to their ends, in order; `parcels` is empty afterwards.
    pub fn handle_handovers(
        &mut self,
        view: View<'_>,
        now: Nanos,
        parcels: &mut Parcels<F>,
        out: &mut Output<F>,
    ) {
        self.name_anew(view.topology);
        // Where what came from uplinks, one parcel after the other, begins in the output: only that is joined.
        let mut first = None;
        let burst = fast::Burst::taken(view, now);
        let mut plain = std::mem::take(&mut self.ahead);
        plain.resize(BURST, fast::Plain::NONE);
        while !parcels.is_empty() {
            let (finished, others) = finished_and_others(parcels.words(), burst.topology());
            if finished > 0 {
                self.join_from(view, first.take(), out);
                self.deliver(finished, parcels, out);
                continue;
            }
            let count = others.min(BURST);
            self.at_hand = None;
            let mut slips = parcels.frames().iter().zip(parcels.slips());
            self.read_ahead(&mut plain[..count], |_| {
                let Some((frame, slip)) = slips.next() else { return fast::Plain::NONE };
                margay_accel::prefetch_lines_to_write(frame.data(), 1);
                match slip.has_flow() {
                    true => fast::Plain::told(&slip.gist())
                        .unwrap_or_else(|| fast::Plain::read(frame, &self.flows)),
                    false => fast::Plain::NONE,
                }
            });
            let renewals = self.renewals;
            let (slips, frames) = parcels.take_first(count);
            for ((mut frame, slip), read) in frames.zip(slips).zip(&plain) {
                let (port, errand) = (slip.port(), slip.errand());
                self.at_hand = Some(port);
                if self.config.lro {
                    match (
                        !matches!(errand, Errand::Send | Errand::Deliver(_)) && super::is_uplink(view, port),
                        first,
                    ) {
                        (true, None) => first = Some(out.transmit.len()),
                        (false, Some(_)) => self.join_from(view, first.take(), out),
                        _ => {}
                    }
                }
                match errand {
                    Errand::Send => {
                        out.transmit.push((port, frame));
                        continue;
                    }
                    Errand::Seal(peer) => {
                        self.counters.taken += 1;
                        self.seal(view, now, port, peer, frame, out);
                        continue;
                    }
                    Errand::Open(addressee, plan) => {
                        self.counters.taken += 1;
                        self.take_sealed(view, now, port, (addressee, plan), frame, out);
                        continue;
                    }
                    Errand::Deliver(_) => {
                        self.at_hand = None;
                        self.deliver_elsewhen(view, now, port, frame, out);
                        continue;
                    }
                    Errand::Take | Errand::Judge(_) => {}
                }
                let exit = if self.is_tapped(port, &frame) {
                    None
                } else {
                    self.fast(&burst, &mut frame, read, Some(errand))
                };
                match exit {
                    Some(fast::Exit::Seal(peer)) => self.seal(view, now, port, peer, frame, out),
                    Some(exit) => exit.take(self.config.index, port, frame, read, out),
                    None => self.take(view, now, Handover::of(frame, &slip), read, out),
                }
            }
            self.renewing = self.renewals != renewals;
        }
        self.ahead = plain;
        self.join_from(view, first, out);
    }

    /// Sends the first `count` packets, which are finished.
    #[inline(always)]
    fn deliver(&mut self, count: usize, parcels: &mut Parcels<F>, out: &mut Output<F>) {
        self.at_hand = None;
        for frame in &parcels.frames()[..count] {
            // Whoever sends it reads it, and receives into it next.
            margay_accel::prefetch_lines_to_write(frame.data(), 1);
        }
        let (words, frames) = parcels.take_finished(count);
        out.transmit.extend_from(words, frames);
        self.counters.taken += count as u64;
        self.counters.forwarded += count as u64;
    }

    /// Sends a packet to a pod that was finished under another topology, if the pod is still behind that port.
    #[cold]
    fn deliver_elsewhen(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frame: F,
        out: &mut Output<F>,
    ) {
        self.counters.taken += 1;
        let parsed = parse_head(frame.data(), frame.packet_len()).ok();
        let ip = parsed.as_ref().and_then(|parsed| match &parsed.packet {
            Packet::Ip(ip) => Some(ip),
            Packet::Arp(_) => None,
        });
        let behind = |address| view.topology.local_pod(address);
        // A pod that was made anew may have the address and the number of the one before, and has another Ethernet address.
        let is_the_same = parsed.as_ref().zip(view.topology.port(port)).is_some_and(|(parsed, port)| {
            matches!(port.kind, PortKind::Pod { pod_mac, .. } if pod_mac == parsed.destination)
        });
        if is_the_same && ip.and_then(|ip| behind(ip.destination)) == Some(port) {
            self.counters.forwarded += 1;
            out.transmit.push((port, frame));
            return;
        }
        // Told as its sender's: whoever is behind that port now has nothing to do with it.
        let from = ip.and_then(|ip| behind(ip.source)).unwrap_or(port);
        self.end(view, now, from, frame, ip, DropReason::NoPort.into(), out);
    }

    /// Joins segments from the output's position `first` on.
    #[inline]
    pub(super) fn join_from(&mut self, view: View<'_>, first: Option<usize>, out: &mut Output<F>) {
        if let Some(first) = first {
            self.counters.joined += self.lro.join(view.topology, first, out);
        }
    }

    /// Takes one packet that another worker gave us to its end, the long way.
    fn take(
        &mut self,
        view: View<'_>,
        now: Nanos,
        parcel: Handover<F>,
        read: &fast::Plain,
        out: &mut Output<F>,
    ) {
        let Handover { mut frame, port, errand, .. } = parcel;
        self.counters.taken += 1;
        let mut prepared = self.prepare(&frame, Some(read));
        // Whoever gave it may have hashed with another secret: good enough to find a flow, not to enter one.
        prepared.hash = self.flows.hash(&prepared.key);
        let ip = match &prepared.parsed {
            Ok(Parsed { packet: Packet::Ip(ip), .. }) => ip,
            // The giver has read the very same bytes.
            _ => return self.end(view, now, port, frame, None, DropReason::Truncated.into(), out),
        };
        let seen = self.look(port, &frame, &prepared);
        let ended = match view.topology.port(port) {
            Some(arrival) => {
                let known = self.flows.find(&prepared.key, prepared.hash);
                let passing = Passing { view, now, port: arrival, ip, arrival: None, errand: Some(errand) };
                self.pass(&passing, &prepared, known, &mut frame, out)
            }
            None => Err(DropReason::NoPort.into()),
        };
        if let Some(seen) = seen {
            self.tell(view, now, port, seen, &frame, &prepared, &ended, out);
        }
        self.conclude(view, now, port, frame, Some(ip), ended, out);
        self.settle_fragments(view, now, out);
    }

    /// Gives what was to be sent, from the output's position `first` on, and leaves by no queue of ours, to the worker whose queue it is.
    /// What was to be sent into the tunnel is sealed.
    #[inline]
    pub(super) fn relay(&mut self, view: View<'_>, now: Nanos, first: usize, out: &mut Output<F>) {
        if view.topology.encryption().is_some() {
            self.seal_own(view, now, first, out);
        }
        if view.topology.spread().workers() > 1 {
            self.relay_some(view.topology, first, out);
        }
    }

    fn relay_some(&self, topology: &Topology, first: usize, out: &mut Output<F>) {
        let me = self.config.index;
        let mut at = first;
        while let Some((port, _)) = out.transmit.get(at) {
            let carrier = topology.port(port).map_or(me, |port| topology.spread().carrier(me, port));
            if carrier == me {
                at += 1;
            } else {
                let (port, frame) = out.transmit.remove(at);
                out.handovers.push((carrier, Handover::new(frame, port, Errand::Send)));
            }
        }
    }

    /// Notes that packets for other workers found no room there. Those that had not only to be sent ([`Errand::Send`]) ended here after
    /// all; what was to be said of a flow is said with its next packet.
    pub fn handover_refused(&mut self, refused: &[Handover<F>]) {
        self.counters.refuse(refused.iter().filter(|parcel| parcel.errand != Errand::Send).count() as u64);
        let mut unsaid = Vec::new();
        for parcel in refused.iter().filter(|parcel| matches!(parcel.errand, Errand::Judge(_))) {
            self.at_hand = Some(parcel.port);
            let read = fast::Plain::told(&parcel.gist);
            let Prepared { key, hash, .. } = self.prepare(&parcel.frame, read.as_ref());
            // Once for a flow: it lives shorter for it.
            if let Some(slot) = self.flows.find(&key, hash).filter(|slot| !unsaid.contains(slot))
                && let Some(flow) = self.flows.flow_mut(slot)
            {
                flow.unsay();
                unsaid.push(slot);
            }
        }
        self.at_hand = None;
    }
}

/// Returns how many packets are only to be delivered, under this topology, before the first that is not, and how many are not before the
/// next that is.
#[inline(always)]
fn finished_and_others(words: &[Word], topology: u32) -> (usize, usize) {
    let ends = |wanted: bool| words.iter().position(|word| word.is_delivery(topology) != wanted);
    let end = |wanted| ends(wanted).unwrap_or(words.len());
    (end(true), end(false))
}

/// Returns a number that is the same for both directions.
fn mix(one: IpAddr, other: IpAddr) -> u16 {
    let (key, _) = FlowKey::new((one, 0), (other, 0), 0);
    let (low, high) = key.ends(crate::flow::Side::Low);
    let folded =
        (low.address ^ high.address.rotate_left(17)) as u64 ^ ((low.address ^ high.address) >> 64) as u64;
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16
}
