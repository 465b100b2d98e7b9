//! What is in force: handing snapshots and topologies to the workers, and knowing when they have them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use margay_core::tunnel::Encryption;
use margay_core::tunnel::plan::EncryptionPlan;
use margay_core::{Spread, Topology};
use margay_policy_engine::packet::Generation;
use margay_policy_engine::snapshot::Snapshot;

use super::{Control, Dataplane, Hand};
use crate::spec::DataplaneError;
use crate::steer::{Role, SteerError};

impl Dataplane {
    /// Publishes compiled policy to the workers.
    pub fn publish_snapshot(&self, snapshot: Arc<Snapshot>) {
        let generation = snapshot.generation().0;
        for hand in self.hands.iter() {
            hand.snapshots.publish(Arc::clone(&snapshot), generation);
        }
        self.wake();
    }

    /// Publishes ports, routes and neighbours to the workers, with the ports spread over them, under the last encryption plan.
    pub fn publish_topology(&self, topology: Arc<Topology>) {
        let mut control = self.control();
        control.topology = Some(topology);
        self.publish_node(&control);
        if let Err(error) = steer_nodes(&mut control) {
            tracing::warn!(%error, "what other nodes say to this one in clear does not come to the workers, which would refuse it");
        }
    }

    /// Publishes what is to be encrypted, together with the last topology, so that no packet is judged by half of it. Peers and keys that
    /// are in the plan as before keep their sessions. Until there is a topology, the plan waits for it.
    ///
    /// The plan's generation must grow with every call; [`Dataplane::tunnel_report`] says which one is in force.
    ///
    /// Errors: the kernel refuses to send us datagrams to our port; workers have the plan nevertheless, and what must not leave in clear
    /// does not.
    pub fn set_encryption(&self, plan: &EncryptionPlan) -> Result<(), DataplaneError> {
        let mut control = self.control();
        let encryption = Encryption::new(plan, control.encryption.as_deref());
        for family in encryption.families().iter().flatten().filter(|family| !family.excluded().is_empty()) {
            tracing::warn!(peers = ?family.excluded(), "peers that share a key, or have no valid number, are not encrypted to");
        }
        let doors = encryption.families().iter().flatten().map(|family| family.endpoint()).collect();
        control.encryption = Some(Arc::new(encryption));
        self.publish_node(&control);
        control.steer.set_doors(&doors)?;
        Ok(steer_nodes(&mut control)?)
    }

    fn publish_node(&self, control: &Control) {
        let Some(topology) = &control.topology else { return };
        let generation = topology.generation();
        let topology = Topology::clone(topology)
            .spread_over(self.spread(control))
            .with_encryption(control.encryption.clone());
        let topology = Arc::new(topology);
        for hand in self.hands.iter() {
            hand.topologies.publish(Arc::clone(&topology), generation);
        }
        self.wake();
    }

    /// Returns how ports are spread over workers, as far as uplinks are known.
    fn spread(&self, control: &Control) -> Spread {
        let uplinks = control.ports.values().filter(|port| port.spec.role == Role::Uplink);
        let queues = uplinks.map(|port| (port.spec.index, port.report.queues.min(u16::MAX.into()) as u16));
        Spread::new(self.config.workers, queues)
    }

    fn wake(&self) {
        for hand in self.hands.iter() {
            // Without the wake-up the worker sees the news at its next turn, a tenth of a second later at most.
            if let Err(error) = hand.waker.wake() {
                tracing::warn!(%error, "cannot wake a worker");
            }
        }
    }

    /// Waits until every worker judges by this snapshot or a later one. Returns whether they do.
    pub fn wait_for_snapshot(&self, generation: Generation, timeout: Duration) -> bool {
        let seen = |hand: &Hand| hand.snapshots.acknowledged() >= generation.0;
        let done = wait_until(timeout, || self.hands.iter().all(seen));
        self.collect();
        done
    }

    /// Waits until every worker uses this topology or a later one. Returns whether they do.
    pub fn wait_for_topology(&self, generation: u64, timeout: Duration) -> bool {
        let seen = |hand: &Hand| hand.topologies.acknowledged() >= generation;
        let done = wait_until(timeout, || self.hands.iter().all(seen));
        self.collect();
        done
    }

    /// Frees what workers are done with.
    fn collect(&self) {
        for hand in self.hands.iter() {
            hand.snapshots.collect_retired();
            hand.topologies.collect_retired();
        }
    }

    /// Returns the generations that every worker has in force: snapshot, topology; zero before the first. Frees what they are done with.
    pub fn acknowledged(&self) -> (Generation, u64) {
        self.collect();
        let least = |of: fn(&Hand) -> u64| self.hands.iter().map(of).min().unwrap_or_default();
        (
            Generation(least(|hand| hand.snapshots.acknowledged())),
            least(|hand| hand.topologies.acknowledged()),
        )
    }
}

/// Has what nodes that seal say to this one in clear come to the workers (policy model 25.7, with host encryption).
fn steer_nodes(control: &mut Control) -> Result<(), SteerError> {
    let families = control.encryption.iter().flat_map(|encryption| encryption.families().iter().flatten());
    let sealing = families.flat_map(|family| family.hosts()).collect();
    let own = control.topology.iter().flat_map(|topology| topology.node_addresses()).collect();
    control.steer.set_nodes(&sealing, &own)
}

fn wait_until(timeout: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
