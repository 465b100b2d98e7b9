//! Which worker has which port. A pure function of a port's index and the number of workers, so nobody keeps a table of it and it never
//! changes while the agent lives.
//!
//! | port | its queues belong to |
//! |---|---|
//! | pod | worker `index mod workers`, its *home* |
//! | host | worker 0 |
//! | uplink, queue q | worker `q mod workers` |
//! | WireGuard peer n | worker `n mod workers` |
//!
//! A worker without a queue of an uplink sends there by the hands of one that has one, always the same, so packets of a flow stay in
//! order.

use crate::topology::{Port, PortIndex, PortKind};
use crate::tunnel::PeerId;

/// Number of a worker, from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerIndex(pub u16);

/// The worker that the host port belongs to.
pub const HOST_KEEPER: WorkerIndex = WorkerIndex(0);

/// Most workers: the kernel programs have a heartbeat for each.
pub const MAX_WORKERS: u16 = 256;

/// How many workers there are and how many queues each uplink has. The default is one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    workers: u16,
    /// Queues of uplinks; a port that is not here has one.
    queues: Vec<(PortIndex, u16)>,
}

impl Default for Spread {
    fn default() -> Self {
        Self { workers: 1, queues: Vec::new() }
    }
}

impl Spread {
    /// Returns the spread over `workers` workers, of uplinks with so many queues each.
    pub fn new(workers: u16, queues: impl IntoIterator<Item = (PortIndex, u16)>) -> Self {
        let mut queues: Vec<_> = queues.into_iter().collect();
        queues.sort_unstable();
        Self { workers: workers.clamp(1, MAX_WORKERS), queues }
    }

    /// Returns the number of workers.
    pub fn workers(&self) -> u16 {
        self.workers
    }

    /// Returns the worker that a pod port's queue belongs to.
    pub fn home(&self, pod: PortIndex) -> WorkerIndex {
        WorkerIndex(pod.0 % self.workers)
    }

    /// Returns the worker that queue `queue` of an uplink belongs to.
    pub fn reader(&self, queue: u16) -> WorkerIndex {
        WorkerIndex(queue % self.workers)
    }

    /// Returns the worker that a receive queue of a port belongs to.
    pub fn owner(&self, port: PortIndex, kind: &PortKind, queue: u16) -> WorkerIndex {
        match kind {
            PortKind::Pod { .. } => self.home(port),
            PortKind::Host { .. } => HOST_KEEPER,
            PortKind::Uplink => self.reader(queue),
        }
    }

    /// Returns the worker that seals for a WireGuard peer and opens what comes from it.
    pub fn keeper(&self, peer: PeerId) -> WorkerIndex {
        WorkerIndex((peer.0 % u32::from(self.workers)) as u16)
    }

    /// Returns how many workers, from the first on, have a queue of the uplink.
    pub fn carriers(&self, uplink: PortIndex) -> u16 {
        let at = self.queues.binary_search_by_key(&uplink, |(port, _)| *port);
        at.map_or(1, |at| self.queues[at].1).clamp(1, self.workers)
    }

    /// Returns the worker by whose queue a frame of worker `me` leaves `port`.
    pub fn carrier(&self, me: WorkerIndex, port: &Port) -> WorkerIndex {
        match port.kind {
            PortKind::Uplink => WorkerIndex(me.0 % self.carriers(port.index)),
            PortKind::Pod { .. } | PortKind::Host { .. } => self.owner(port.index, &port.kind, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_wire::MacAddr;

    fn port(index: u16, kind: PortKind) -> Port {
        Port { index: PortIndex(index), name: String::new(), kind, mac: MacAddr::default(), mtu: 1500 }
    }

    #[test]
    fn every_queue_has_one_worker_and_every_frame_one_carrier_that_has_a_queue() {
        for workers in [1u16, 2, 3, 8] {
            for queues in [1u16, 2, 4, 16] {
                let spread = Spread::new(workers, [(PortIndex(1), queues)]);
                let uplink = port(1, PortKind::Uplink);
                let owners: Vec<_> =
                    (0..queues).map(|q| spread.owner(uplink.index, &uplink.kind, q)).collect();
                for me in (0..workers).map(WorkerIndex) {
                    let carrier = spread.carrier(me, &uplink);
                    assert!(owners.contains(&carrier), "{workers} workers, {queues} queues");
                    assert!(!owners.contains(&me) || carrier == me, "who has a queue needs nobody");
                    let host = port(0, PortKind::Host { kernel_mac: MacAddr::default() });
                    assert_eq!(spread.carrier(me, &host), spread.owner(host.index, &host.kind, 0));
                }
            }
        }
    }

    #[test]
    fn one_worker_has_everything() {
        let spread = Spread::default();
        let uplink = port(9, PortKind::Uplink);
        assert_eq!(spread.owner(uplink.index, &uplink.kind, 3), WorkerIndex(0));
        assert_eq!(spread.carrier(WorkerIndex(0), &uplink), WorkerIndex(0));
        assert_eq!(Spread::new(0, []).workers(), 1, "there is always one");
    }
}
