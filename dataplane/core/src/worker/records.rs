//! The flow table for people.

use std::net::IpAddr;

use margay_policy_engine::packet::{Direction, EndpointId};
use margay_policy_engine::snapshot::Attribution;

use super::{View, Worker, judge};
use crate::flow::{Flow, FlowKey, Side, State};
use crate::frame::Frame;
use crate::spread::WorkerIndex;
use crate::time::Nanos;
use crate::topology::PortIndex;

/// Packets and bytes of a flow that one worker has counted: those from the low end of its key, and those from the high end.
pub type Counted = [(u64, u64); 2];

/// One live flow, for `margay flows`.
#[derive(Clone, Debug)]
pub struct FlowRecord {
    /// What workers know it by.
    pub key: FlowKey,
    /// The worker that keeps it too, for the other pod, and alone counts all of that pod's packets: [`FlowRecord::learn`] what it has
    /// [`Worker::counted`].
    pub elsewhere: Option<WorkerIndex>,
    /// Which end of the key opened it.
    pub opener: Side,
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
    /// State in words: `syn_sent`, `adopted`, `established`, `closing`, `reset`, `one_way`, `two_way`, `refused`.
    pub state: &'static str,
    /// Packets and bytes from the opener.
    pub forward: (u64, u64),
    /// Packets and bytes towards the opener.
    pub reverse: (u64, u64),
    /// Whether packets from the opener, and towards it, go through a WireGuard tunnel.
    pub encrypted: (bool, bool),
    /// Time until it is forgotten if nothing more comes.
    pub expires_in: Nanos,
    /// Sender's egress policy that let it pass, when the sender is a pod of this node.
    pub egress: Option<Attribution>,
    /// Receiver's ingress policy that let it pass, when the receiver is a pod of this node.
    pub ingress: Option<Attribution>,
}

impl FlowRecord {
    /// Takes in what another worker has counted: of each direction, the more is all of it, because whoever the packets do not arrive at
    /// counts only those that it heard of.
    pub fn learn(&mut self, counted: Option<Counted>) {
        let Some(mut counted) = counted else { return };
        if self.opener == Side::High {
            counted.reverse();
        }
        for (known, more) in [&mut self.forward, &mut self.reverse].into_iter().zip(counted) {
            *known = (known.0.max(more.0), known.1.max(more.1));
        }
    }
}

impl<F: Frame> Worker<F> {
    /// Returns what was counted of the flows with these keys, where they are known.
    pub fn counted(&self, keys: &[FlowKey]) -> Vec<Option<Counted>> {
        let counted = |key: &FlowKey| {
            let flow = self.flows.flow(self.flows.find(key, self.flows.hash(key))?)?;
            let mut counted = [flow.counted(0), flow.counted(1)];
            if flow.opener == Side::High {
                counted.reverse();
            }
            Some(counted)
        };
        keys.iter().map(counted).collect()
    }

    /// Returns up to `limit` live flows, starting at table position `cursor`; the second value is the next cursor, `None` at the end.
    ///
    /// A flow that another worker keeps too is told by the one that its first packet arrived at. Attributions are those of the present
    /// snapshot: who would decide the flow's opening packet now.
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
            if let Some(flow) =
                self.flows.flow(slot as u32).filter(|flow| !flow.is_over(now) && !flow.is_second())
            {
                let sealed = [0, 1].map(|direction| self.is_sealed(view, flow, direction));
                let elsewhere = self.elsewhere(view, flow);
                records.push(flow.record(view, now, sealed.into(), elsewhere));
            }
        }
        (records, None)
    }

    /// Returns the other worker that keeps it.
    fn elsewhere(&self, view: View<'_>, flow: &Flow) -> Option<WorkerIndex> {
        let tuple = flow.tuple();
        let ends = [tuple.source, tuple.destination].map(|end| view.topology.home(end));
        let [Some(one), Some(other)] = ends else { return None };
        [one, other].into_iter().find(|home| one != other && *home != self.config.index)
    }

    /// Whether packets of one direction go into the tunnel here, or came out of it.
    fn is_sealed(&self, view: View<'_>, flow: &Flow, direction: usize) -> bool {
        let leaves = self.paths.get(flow.paths[direction]).is_some_and(|path| path.tunnel.is_some());
        let came = self.arrivals.get(flow.arrivals[direction]);
        // Names of an older topology mean nothing.
        flow.topology == view.under().1 && (leaves || came.is_some_and(|from| from.port == PortIndex::TUNNEL))
    }
}

impl Flow {
    /// Returns the state as [`FlowRecord::state`] has it.
    pub(super) fn state_in_words(&self) -> &'static str {
        match (self.is_approved(), self.state) {
            (false, _) => "refused",
            (_, State::Tcp(tcp)) => tcp.as_str(),
            (_, State::Other { answered: true }) => "two_way",
            (_, State::Other { answered: false }) => "one_way",
        }
    }

    fn record(
        &self,
        view: View<'_>,
        now: Nanos,
        encrypted: (bool, bool),
        elsewhere: Option<WorkerIndex>,
    ) -> FlowRecord {
        let tuple = self.tuple();
        let (from, to) = self.key().ends(self.opener);
        let by = |endpoint: Option<EndpointId>, direction: Direction| {
            let snapshot = view.snapshot?;
            let judgement = snapshot.judge(endpoint?, direction, &tuple)?;
            snapshot.attribution(judgement.rule).cloned()
        };
        let judge::Parties { egress, ingress, .. } = judge::Parties::of(view.topology, &tuple);
        FlowRecord {
            key: self.key(),
            opener: self.opener,
            elsewhere,
            source: tuple.source,
            destination: tuple.destination,
            protocol: self.key().protocol,
            source_port: from.port,
            destination_port: to.port,
            state: self.state_in_words(),
            forward: self.counted(0),
            reverse: self.counted(1),
            encrypted,
            expires_in: self.expires_in(now),
            egress: by(egress, Direction::Egress),
            ingress: by(ingress, Direction::Ingress),
        }
    }
}
