//! Fragments, in any order: *virtual* reassembly (policy model 14.5, PM-D12).
//!
//! No datagram is ever put together here. The first fragment carries the ports and is judged like a packet; the others, which carry none,
//! do what became of it: pass by the same flow, or end by the same name. Those that come before the first wait for it, and go out behind
//! it in the order of their bytes.
//!
//! ```text
//!                 ┌── first, allowed ──▶ Followed ── complete ──▶ forgotten
//!   any ──▶ Waiting── first, refused ──▶ Refused  ── complete ──▶ forgotten
//!                 └── overlap, from any state ──▶ Poisoned ── 30 s ──▶ forgotten
//! ```
//!
//! Invariants. Of every datagram each byte passes at most once, so what the receiver puts together is what was judged: an exact duplicate
//! is dropped alone, any other overlap takes the whole datagram with it. Fragments of one datagram pass only behind its first. A frame
//! that waits is in exactly one place, and leaves it into one of the endings of [`super::ending`] once.
//!
//! Rewriting (addresses, ports) belongs to the flow: a first fragment's transport checksum is the one that changes, later ones carry none,
//! and no sum of a fragment is ever completed, because a kernel that fragments has summed before (see `margay_wire::checksum`).
//!
//! Deliberately absent: one table for all workers. A datagram's fragments arrive on one port, hence on one worker, unless a NIC spreads
//! first and later fragments over its queues; then the hand-over has to bring them together.

mod datagram;
mod queue;
mod table;

use super::sanity::{self, Class};
use super::{Dropped, Ending, Passing, Prepared, View, Worker};
use crate::flow::{Arrival, FlowKey, Side};
use crate::frame::Frame;
use crate::handover::Errand;
use crate::output::Output;
use crate::time::Nanos;
use crate::topology::PortIndex;
use crate::verdict::DropReason;
use table::{Fate, Held, Step, Table};

/// Datagrams under way.
#[derive(Debug)]
pub(super) struct Fragments<F> {
    table: Table<F>,
}

impl<F: Frame> Fragments<F> {
    /// Returns none. `seed` decides the table's hash.
    pub(super) fn new(seed: u64) -> Self {
        Self { table: Table::new(seed) }
    }

    /// Returns how many frames those that wait have beside their heads.
    pub(super) fn more_frames(&self) -> usize {
        self.table.more_frames()
    }

    /// Keeps a frame that [`Ending::Await`] was said about.
    pub(super) fn hold(&mut self, datagram: u16, frame: F, errand: Option<Errand>) {
        self.table.hold(datagram, frame, errand);
    }
}

impl<F: Frame> Worker<F> {
    /// A fragment that passed the sanity stage: judged, followed, or kept.
    #[cold]
    pub(super) fn fragment(
        &mut self,
        passing: &Passing<'_>,
        prepared: &Prepared,
        known: Option<u32>,
        frame: &mut F,
        out: &mut Output<F>,
    ) -> Result<Ending, Dropped> {
        let Passing { now, port, ip, .. } = *passing;
        // They are at most 576 and 1,280 bytes long (RFC 1812 §4.3.2.3, RFC 4443 §2.4 (c)): nobody has to fragment one.
        if ip.is_icmp_error() {
            return Err(DropReason::BadFragment.into());
        }
        match self.fragments.table.arrive(port.index, ip, frame.packet_len(), now)? {
            Step::Hold(datagram) => Ok(Ending::Await { datagram, errand: passing.errand }),
            Step::Follow(key, side) => self.follow(passing, (key, side), prepared, frame, out),
            Step::Judge(datagram) => match self.judge_first(passing, prepared, known, frame, out) {
                Ok((ending, key)) => {
                    self.fragments.table.allow(datagram, key, prepared.side, now);
                    Ok(ending)
                }
                Err(dropped) => {
                    self.fragments.table.refuse(datagram, dropped.reason, now);
                    Err(dropped)
                }
            },
        }
    }

    /// A first fragment goes the way of a whole packet; beside its ending, this tells the flow that it belongs to.
    fn judge_first(
        &mut self,
        passing: &Passing<'_>,
        prepared: &Prepared,
        known: Option<u32>,
        frame: &mut F,
        out: &mut Output<F>,
    ) -> Result<(Ending, FlowKey), Dropped> {
        let leg = self.leg(passing, prepared, known, out)?;
        let key = self.flows.flow(leg.0).ok_or(DropReason::InvalidState)?.key();
        Ok((self.depart(passing, leg, frame, out)?, key))
    }

    /// A later fragment, whose first passed as `side` of the flow `key`.
    fn follow(
        &mut self,
        passing: &Passing<'_>,
        (key, side): (FlowKey, Side),
        prepared: &Prepared,
        frame: &mut F,
        out: &mut Output<F>,
    ) -> Result<Ending, Dropped> {
        let hash = self.flows.hash(&key);
        let known = self.flows.find(&key, hash);
        let leg = self.leg(passing, &Prepared { key, side, hash, ..*prepared }, known, out)?;
        self.depart(passing, leg, frame, out)
    }

    /// Brings to their ends the frames that wait for a first fragment no longer.
    #[inline]
    pub(super) fn settle_fragments(&mut self, view: View<'_>, now: Nanos, out: &mut Output<F>) {
        if !self.fragments.table.released.is_empty() {
            self.settle_released(view, now, out);
        }
    }

    #[cold]
    fn settle_released(&mut self, view: View<'_>, now: Nanos, out: &mut Output<F>) {
        // What is settled here releases nothing more, so once through them is all.
        let mut released = std::mem::take(&mut self.fragments.table.released);
        for (Held { mut frame, port, errand, .. }, fate) in released.drain(..) {
            self.counters.held -= 1;
            self.at_hand = Some(port);
            let prepared = self.prepare(&frame, None);
            let ended = match fate {
                Fate::Drop(reason) => Err(reason.into()),
                Fate::Follow(key, side) => {
                    self.go_on(view, now, (port, errand), (key, side), &prepared, &mut frame, out)
                }
            };
            self.conclude(view, now, port, frame, prepared.ip(), ended, out);
        }
        self.fragments.table.released = released;
    }

    /// Lets a frame that waited follow its first. The port may be another pod's by now, so the sanity stage has its say again.
    #[allow(clippy::too_many_arguments, reason = "the parts of one packet, which live for this call only")]
    fn go_on(
        &mut self,
        view: View<'_>,
        now: Nanos,
        (index, errand): (PortIndex, Option<Errand>),
        flow: (FlowKey, Side),
        prepared: &Prepared,
        frame: &mut F,
        out: &mut Output<F>,
    ) -> Result<Ending, Dropped> {
        let port = view.topology.port(index).ok_or(DropReason::NoPort)?;
        let parsed = prepared.parsed?;
        let ip = prepared.ip().ok_or(DropReason::Truncated)?;
        sanity::ethernet(port, &parsed)?;
        if sanity::addresses(view.topology, &self.config, port, &parsed, ip)? == Class::ForUs {
            return Err(DropReason::FragmentForGateway.into());
        }
        let arrival = Arrival { port: index, mac: parsed.source };
        let arrival = errand.is_none().then_some(arrival);
        self.follow(&Passing { view, now, port, ip, arrival, errand }, flow, prepared, frame, out)
    }

    /// Forgets datagrams whose time is over.
    pub(super) fn expire_fragments(&mut self, view: View<'_>, now: Nanos, out: &mut Output<F>) {
        self.fragments.table.expire(now);
        self.settle_fragments(view, now, out);
    }
}
