//! A known flow's first packet under a newer snapshot.
//!
//! Policy changes all the time, and hardly any change concerns a given flow. Where flows are many or changes frequent, most packets are the
//! first of their flow since the last change, so these have to be cheap as well. There are three prices:
//!
//! * A snapshot knows since when the tables of an endpoint have been what they are, and since when addresses have
//!   ([`Snapshot::governed_since`]). Under the same topology the pods at two ports are the same, so a flow between them that was confirmed
//!   since then is confirmed: by its first line alone.
//! * Addresses come and go, and of them all only the last change is known. What the flow was judged by stands in its second line; is it what
//!   it was, the flow is confirmed.
//! * It is not: the flow is judged anew.
//!
//! Either way, if it may still pass, its packet takes the short way. While there are packets that need them, second lines are asked for ahead.

use margay_policy_engine::snapshot::Snapshot;

use crate::frame::Frame;
use crate::topology::{PortIndex, PortKind, Topology};
use crate::worker::{View, Worker};

/// Since which generation what the pods at the ports are governed by has been what it is, as far as somebody asked.
#[derive(Debug, Default)]
pub(in crate::worker) struct Standing {
    /// By port: under which generation that was asked, and the answer.
    ports: Vec<(u64, u64)>,
}

/// There has never been such a time.
const NEVER: u64 = u64::MAX;

impl Standing {
    /// Forgets all of it: ports may be others.
    pub(in crate::worker) fn clear(&mut self) {
        self.ports.clear();
    }

    #[inline(always)]
    fn since(&mut self, snapshot: &Snapshot, topology: &Topology, port: PortIndex) -> u64 {
        let now = snapshot.generation().0;
        match self.ports.get(usize::from(port.0)) {
            Some((asked, since)) if *asked == now => *since,
            _ => self.ask(snapshot, topology, port),
        }
    }

    #[inline(never)]
    fn ask(&mut self, snapshot: &Snapshot, topology: &Topology, port: PortIndex) -> u64 {
        let since = match topology.port(port).map(|port| &port.kind) {
            Some(PortKind::Pod { endpoint, .. }) => {
                snapshot.governed_since(*endpoint).map_or(NEVER, |since| since.0)
            }
            Some(PortKind::Host { .. } | PortKind::Uplink) => 0,
            None => NEVER,
        };
        if port != PortIndex::TUNNEL {
            let place = usize::from(port.0);
            if self.ports.len() <= place {
                // No generation is zero.
                self.ports.resize(place + 1, (0, NEVER));
            }
            self.ports[place] = (snapshot.generation().0, since);
        }
        since
    }

    /// Returns whether all that was judged between two ports under the snapshot with this low half of a generation is so under `view`.
    #[inline(always)]
    fn covers(&mut self, view: View<'_>, then: u32, ports: [PortIndex; 2]) -> bool {
        let Some(snapshot) = view.snapshot else { return false };
        let now = snapshot.generation().0;
        let Some(then) = now.checked_sub(u64::from((now as u32).wrapping_sub(then))) else { return false };
        snapshot.identified_since().0 <= then
            && ports.into_iter().all(|port| self.since(snapshot, view.topology, port) <= then)
    }
}

impl<F: Frame> Worker<F> {
    /// Confirms the flow in `slot`, which was approved under another snapshot and this topology, and returns whether it still is. `ports`
    /// are those of the pods whose legs are kept here; `None` where the packet does not tell.
    #[inline(never)]
    pub(super) fn renew(&mut self, view: View<'_>, slot: u32, ports: Option<[PortIndex; 2]>) -> bool {
        let Some(flow) = self.flows.flow_mut(slot) else { return false };
        if ports.is_some_and(|ports| self.standing.covers(view, flow.snapshot, ports)) {
            flow.snapshot = view.under().0;
            return true;
        }
        self.renewals = self.renewals.wrapping_add(1);
        self.revalidate(view, slot) && self.flows.flow(slot).is_some_and(|flow| flow.is_approved())
    }
}
