//! The tunnels of this worker: those of the peers that belong to it.

use super::Worker;
use crate::frame::Frame;
use crate::spread::WorkerIndex;
use crate::time::Nanos;
use crate::topology::Topology;
use crate::tunnel::{PeerReport, Tunnels};

/// The tunnels of a worker.
#[derive(Debug, Default)]
pub(super) struct OwnTunnels {
    /// Number of the plan that they follow.
    generation: u64,
    /// Of IPv4, of IPv6.
    families: [Option<Tunnels>; 2],
}

impl OwnTunnels {
    /// Makes the peers be those of the plan in force.
    pub(super) fn follow(&mut self, topology: &Topology, me: WorkerIndex) {
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
}

impl<F: Frame> Worker<F> {
    /// Returns the number of the encryption plan in force and the state of the peers that belong to this worker.
    pub fn tunnels(&self, now: Nanos) -> (u64, Vec<PeerReport>) {
        let families = self.tunnels.families.iter().flatten();
        (self.tunnels.generation, families.flat_map(|tunnels| tunnels.report(now)).collect())
    }
}
