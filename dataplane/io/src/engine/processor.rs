//! What an engine asks of the one inside it.

use std::net::IpAddr;

use margay_core::flow::FlowKey;
use margay_core::handover::{Handover, Parcels};
use margay_core::tunnel::PeerReport;
use margay_core::worker::{Counted, FlowRecord, TapFilter, TapId};
use margay_core::{Counters, Frame, Nanos, Output, PortIndex, View, Worker};

/// What stands inside the engine: [`margay_core::Worker`] in the agent, something smaller in tests of input and output.
pub trait Processor<F> {
    /// Takes frames that arrived together to their ends and leaves `frames` empty; see [`Worker::handle_burst`].
    fn handle_burst(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frames: &mut Vec<F>,
        out: &mut Output<F>,
    );

    /// Takes packets from other workers to their ends and leaves `parcels` empty; see [`Worker::handle_handovers`].
    ///
    /// A processor that gives nothing to others gets nothing from them; it may leave this to the default, which ends such packets.
    fn handle_handovers(&mut self, _: View<'_>, _: Nanos, parcels: &mut Parcels<F>, _: &mut Output<F>) {
        parcels.clear();
    }

    /// Is told which packets for other workers found no room there; see [`Worker::handover_refused`].
    fn handover_refused(&mut self, _: &[Handover<F>]) {}

    /// Does what time demands; see [`Worker::handle_timeout`]. A processor that keeps nothing has nothing to do.
    fn handle_timeout(&mut self, _: View<'_>, _: Nanos, _: &mut Output<F>) {}

    /// Returns the neighbours that packets wait for.
    fn wanted_neighbours(&self) -> Vec<(PortIndex, IpAddr)> {
        Vec::new()
    }

    /// Returns whether packets wait for a neighbour, so that time is to pass in small steps.
    fn is_waiting(&self) -> bool {
        false
    }

    /// Returns the counters.
    fn counters(&self) -> &Counters;

    /// Returns how many frames the packets that wait inside it take.
    fn frames_held(&self) -> usize {
        self.counters().held as usize
    }

    /// Returns the port of the packet that was taken up last outside a burst; see [`Worker::at_hand`].
    fn at_hand(&self) -> Option<PortIndex> {
        None
    }

    /// Begins or ends to tell packets; see [`Worker::set_tap`]. A processor without taps tells none.
    fn set_tap(&mut self, _id: TapId, _filter: Option<TapFilter>) {}

    /// Returns the number of the encryption plan in force and the state of the peers; see [`Worker::tunnels`].
    fn tunnels(&self, _now: Nanos) -> (u64, Vec<PeerReport>) {
        (0, Vec::new())
    }

    /// Returns a piece of the flow table; see [`Worker::flows`]. A processor without flows has none to tell.
    fn flows(
        &self,
        _: View<'_>,
        _: Nanos,
        _cursor: usize,
        _limit: usize,
    ) -> (Vec<FlowRecord>, Option<usize>) {
        (Vec::new(), None)
    }

    /// Returns what it has counted of flows; see [`Worker::counted`]. A processor without flows knows none.
    fn counted(&self, keys: &[FlowKey]) -> Vec<Option<Counted>> {
        vec![None; keys.len()]
    }
}

impl<F: Frame> Processor<F> for Worker<F> {
    fn handle_burst(
        &mut self,
        view: View<'_>,
        now: Nanos,
        port: PortIndex,
        frames: &mut Vec<F>,
        out: &mut Output<F>,
    ) {
        Worker::handle_burst(self, view, now, port, frames, out);
    }

    fn handle_handovers(
        &mut self,
        view: View<'_>,
        now: Nanos,
        parcels: &mut Parcels<F>,
        out: &mut Output<F>,
    ) {
        Worker::handle_handovers(self, view, now, parcels, out);
    }

    fn handover_refused(&mut self, refused: &[Handover<F>]) {
        Worker::handover_refused(self, refused);
    }

    fn handle_timeout(&mut self, view: View<'_>, now: Nanos, out: &mut Output<F>) {
        Worker::handle_timeout(self, view, now, out);
    }

    fn wanted_neighbours(&self) -> Vec<(PortIndex, IpAddr)> {
        Worker::wanted_neighbours(self)
    }

    fn is_waiting(&self) -> bool {
        Worker::is_waiting(self)
    }

    fn counters(&self) -> &Counters {
        Worker::counters(self)
    }

    fn frames_held(&self) -> usize {
        Worker::frames_held(self)
    }

    fn at_hand(&self) -> Option<PortIndex> {
        Worker::at_hand(self)
    }

    fn set_tap(&mut self, id: TapId, filter: Option<TapFilter>) {
        Worker::set_tap(self, id, filter);
    }

    fn tunnels(&self, now: Nanos) -> (u64, Vec<PeerReport>) {
        Worker::tunnels(self, now)
    }

    fn flows(
        &self,
        view: View<'_>,
        now: Nanos,
        cursor: usize,
        limit: usize,
    ) -> (Vec<FlowRecord>, Option<usize>) {
        Worker::flows(self, view, now, cursor, limit)
    }

    fn counted(&self, keys: &[FlowKey]) -> Vec<Option<Counted>> {
        Worker::counted(self, keys)
    }
}
