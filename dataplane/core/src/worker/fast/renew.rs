//! A known flow's first packet under a newer snapshot.
//!
//! Policy changes all the time, and hardly any change concerns a given flow. Where flows are many or changes frequent, most packets are the
//! first of their flow since the last change, so these have to be cheap as well. There are three prices:
//!
//! * A snapshot knows since when the tables of an endpoint have been what they are, and since when addresses have
//!   ([`Snapshot::governed_since`]). Under the same topology the pods at two ports are the same, so a flow between them that was confirmed
//!   since then is confirmed: by its first line alone.
//! * Addresses come and go, and of them all only the last change is known. What the flow was judged by stands in its second line; is it
//!   what it was, the flow is confirmed.
//! * It is not: the flow is judged anew.
//!
//! Either way, if it may still pass, its packet takes the short way. While a burst after the other has packets that need them, second
//! lines are asked for ahead.

use margay_policy_engine::packet::Generation;
use margay_policy_engine::snapshot::Snapshot;

use crate::frame::Frame;
use crate::topology::{PortIndex, PortKind};
use crate::worker::{View, Worker};

/// Returns for how many snapshots every address has been what it is.
#[inline(always)]
pub(super) fn identified_for(view: View<'_>) -> u32 {
    let Some(snapshot) = view.snapshot else { return 0 };
    steps(snapshot, snapshot.identified_since())
}

/// Returns for how many snapshots the pod at a port has been governed by what it is; where no pod is, for ever.
#[inline]
pub(super) fn governed_for(view: View<'_>, port: PortIndex) -> u32 {
    match (view.topology.port(port).map(|port| &port.kind), view.snapshot) {
        // An address of two ports stands for one of them, whose pod is asked for the other's packets too.
        (Some(PortKind::Pod { endpoint, addresses, .. }), Some(snapshot))
            if addresses.iter().all(|address| view.topology.local_pod(*address) == Some(port)) =>
        {
            snapshot.governed_since(*endpoint).map_or(0, |since| steps(snapshot, since))
        }
        (Some(PortKind::Host { .. } | PortKind::Uplink), Some(_)) => u32::MAX,
        _ => 0,
    }
}

#[inline(always)]
fn steps(snapshot: &Snapshot, since: Generation) -> u32 {
    u32::try_from(snapshot.generation().0.saturating_sub(since.0)).unwrap_or(u32::MAX)
}

/// For how many snapshots what the pods at the ports are governed by has been what it is, as far as somebody asked.
#[derive(Debug, Default)]
pub(in crate::worker) struct Standing {
    /// By port: the snapshot under which that was asked, and the answer.
    ports: Vec<(u32, u32)>,
}

impl Standing {
    /// Forgets all of it: ports may be others.
    pub(in crate::worker) fn clear(&mut self) {
        self.ports.clear();
    }

    /// As [`governed_for`]; `now` is the low half of the snapshot's generation.
    #[inline(always)]
    pub(super) fn governed_for(&mut self, view: View<'_>, now: u32, port: PortIndex) -> u32 {
        match self.ports.get(usize::from(port.0)) {
            Some((asked, steps)) if *asked == now => *steps,
            _ => self.ask(view, now, port),
        }
    }

    #[inline(never)]
    fn ask(&mut self, view: View<'_>, now: u32, port: PortIndex) -> u32 {
        let steps = governed_for(view, port);
        // Where no device is there is nothing to be remembered, and the tunnel's number is far from the others.
        if port != PortIndex::TUNNEL && view.topology.port(port).is_some() {
            let place = usize::from(port.0);
            if self.ports.len() <= place {
                // What nobody asked holds for no time.
                self.ports.resize(place + 1, (0, 0));
            }
            self.ports[place] = (now, steps);
        }
        steps
    }
}

impl<F: Frame> Worker<F> {
    /// Confirms the flow in `slot`, which was approved under another snapshot and this topology, by what it was judged by or by judging it
    /// anew. Returns whether it still may pass.
    #[inline(never)]
    pub(super) fn renew(&mut self, view: View<'_>, slot: u32) -> bool {
        self.renewals = self.renewals.wrapping_add(1);
        self.revalidate(view, slot) && self.flows.flow(slot).is_some_and(|flow| flow.is_approved())
    }
}
