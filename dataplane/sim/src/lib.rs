//! Many nodes, a pretend network, a virtual clock: whole packets through real workers, without a kernel.
//!
//! ```text
//!  pods ─▶ workers (node 0) ─┐                        ┌─ workers (node 1) ─▶ pods
//!           └ inboxes ┘      ├─ Wire: loses, repeats, ─┤
//!  pods ─▶ workers (node 2) ─┘   reorders, by a seed   └─ …
//! ```
//!
//! A [`Cluster`] is a function of its seed and its calls: the same seed gives the same run, so a failure is replayed by its seed alone.
//! A node has one worker or several ([`Shape`]), which give each other packets through bounded inboxes; whose turn it is, and which queue
//! of an uplink a frame comes in by, is drawn from the seed as well.
//!
//! Invariants that hold after every step: every packet that a worker received or was given has exactly one ending; no frame's memory is
//! lost; a frame leaves a port only by the hands of a worker that has a queue of it.
//!
//! Deliberately absent: AF_XDP and the kernels, which the tests of `margay-io` and of the lab cover.

mod node;
mod random;

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use margay_core::handover::Errand;
use margay_core::tunnel::plan::EncryptionPlan;
use margay_core::tunnel::{Encryption, TunnelReport};
use margay_core::worker::{FlowRecord, TapFilter, TapId};
use margay_core::{
    Counters, DropReason, Frame, Nanos, Parcels, PortIndex, View, Worker, WorkerConfig, WorkerIndex,
};
use margay_policy_engine::engine::{Change, Engine};
use margay_wire::MacAddr;

use node::{FIRST_POD, HOST, SimNode, SimWorker, UPLINK, mac, node_address};
pub use node::{PodRef, Shape, SimFrame};
pub use random::Random;

/// What the wire between nodes does to frames, each in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct WireFaults {
    /// Frames lost.
    pub lost: u64,
    /// Frames delivered twice.
    pub repeated: u64,
    /// Frames that overtake the one before them.
    pub reordered: u64,
}

/// A cluster in memory.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<SimNode>,
    pods: usize,
    config: WorkerConfig,
    now: Nanos,
    random: Random,
    /// Whose turn it is and which queue: apart from the wire's, so that clusters of any shape have the same wire.
    turns: Random,
    faults: WireFaults,
    living: Rc<Cell<usize>>,
    wire: VecDeque<(usize, Vec<u8>)>,
    inboxes: BTreeMap<PodRef, Vec<Vec<u8>>>,
    host_inboxes: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Cluster {
    /// Returns a cluster of `nodes` nodes with `pods` pods each, one worker a node, and no policy. Shape: at most 200 of either.
    pub fn new(seed: u64, nodes: usize, pods: usize, faults: WireFaults, config: &WorkerConfig) -> Self {
        Self::shaped(seed, nodes, pods, Shape::default(), faults, config)
    }

    /// As [`Cluster::new`], with nodes of the given shape.
    pub fn shaped(
        seed: u64,
        nodes: usize,
        pods: usize,
        shape: Shape,
        faults: WireFaults,
        config: &WorkerConfig,
    ) -> Self {
        Self::mixed(seed, &vec![shape; nodes], pods, faults, config)
    }

    /// As [`Cluster::new`], with a node of each of these shapes.
    pub fn mixed(
        seed: u64,
        shapes: &[Shape],
        pods: usize,
        faults: WireFaults,
        config: &WorkerConfig,
    ) -> Self {
        let now = Nanos::from_secs(1_000);
        let nodes = shapes.iter().enumerate();
        let built =
            nodes.map(|(node, shape)| node::build(node, shapes.len(), pods, *shape, config, now)).collect();
        Self {
            nodes: built,
            pods,
            config: config.clone(),
            now,
            random: Random::new(seed),
            turns: Random::new(!seed),
            faults,
            living: Rc::default(),
            wire: VecDeque::new(),
            inboxes: BTreeMap::new(),
            host_inboxes: BTreeMap::new(),
        }
    }

    /// Applies one change to every node's engine and publishes everywhere.
    pub fn apply(&mut self, change: &Change) {
        self.apply_late(change);
        self.publish();
    }

    /// Applies one change to every node's engine; a worker judges by it when [`Cluster::publish_to`] or [`Cluster::publish`] says so.
    pub fn apply_late(&mut self, change: &Change) {
        for node in &mut self.nodes {
            node.engine.apply(change.clone());
            node.snapshot = node.engine.publish();
        }
    }

    /// Lets one worker of a node judge by the node's newest snapshot.
    pub fn publish_to(&mut self, node: usize, worker: usize) {
        let node = &mut self.nodes[node];
        node.workers[worker].snapshot = Arc::clone(&node.snapshot);
    }

    /// Lets every worker judge by its node's newest snapshot.
    pub fn publish(&mut self) {
        for node in 0..self.nodes.len() {
            for worker in 0..self.nodes[node].workers.len() {
                self.publish_to(node, worker);
            }
        }
    }

    /// Puts an encryption plan in force at a node, and gives its workers spare frames to seal and open into.
    pub fn encrypt(&mut self, node: usize, plan: &EncryptionPlan) {
        let SimNode { topology, workers, .. } = &mut self.nodes[node];
        let encryption = Encryption::new(plan, topology.encryption().map(|before| &**before));
        *topology = std::mem::take(topology).with_encryption(Some(Arc::new(encryption)));
        workers.iter_mut().for_each(|worker| worker.give_spares(&self.living));
    }

    /// Returns the state of a node's tunnels.
    pub fn tunnels(&self, node: usize) -> TunnelReport {
        TunnelReport::new(self.nodes[node].workers.iter().map(|worker| worker.worker.tunnels(self.now)))
    }

    /// Returns the live flows of a node, of all its workers.
    pub fn flows(&self, node: usize) -> Vec<FlowRecord> {
        let SimNode { topology, workers, .. } = &self.nodes[node];
        let of = |at: &SimWorker| {
            let view = View { snapshot: Some(&at.snapshot), topology };
            at.worker.flows(view, self.now, 0, usize::MAX).0
        };
        let mut flows: Vec<_> = workers.iter().flat_map(of).collect();
        for flow in &mut flows {
            if let Some(other) = flow.elsewhere {
                flow.learn(workers[usize::from(other.0)].worker.counted(&[flow.key])[0]);
            }
        }
        flows
    }

    /// Lets every packet of every worker be watched from now on, which sends it the long way.
    pub fn watch_all(&mut self) {
        for worker in self.nodes.iter_mut().flat_map(|node| &mut node.workers) {
            worker.worker.set_tap(TapId(1), Some(TapFilter::default()));
        }
    }

    /// Returns the frames that are on the wire between nodes, each with the node that it goes to.
    pub fn wire(&mut self) -> &mut VecDeque<(usize, Vec<u8>)> {
        &mut self.wire
    }

    /// Returns the engine of a node, for a reference model to read.
    pub fn engine(&self, node: usize) -> &Engine {
        &self.nodes[node].engine
    }

    /// Returns the counters of one worker of a node.
    pub fn counters(&self, node: usize, worker: usize) -> &Counters {
        self.nodes[node].workers[worker].worker.counters()
    }

    /// Puts another worker in the place of one that panicked: what it knew and held is gone.
    pub fn restart(&mut self, node: usize, worker: usize) {
        let at = &mut self.nodes[node].workers[worker];
        let mut last = at.worker.counters().clone();
        last.close_after_panic(0, false);
        assert_eq!(last.beginnings(), last.endings(), "a panic closes the books");
        at.before += &last;
        let config = WorkerConfig { index: WorkerIndex(worker as u16), ..self.config.clone() };
        at.worker = Worker::new(config, self.now);
    }

    /// Returns how many finished packets found the inbox of their port's worker full.
    pub fn unsent(&self) -> u64 {
        self.nodes.iter().flat_map(|node| &node.workers).map(|worker| worker.unsent).sum()
    }

    /// Returns the Ethernet addresses of a frame that `pod` sends: (its own, its gateway's).
    pub fn macs(&self, pod: PodRef) -> (MacAddr, MacAddr) {
        (mac(5, pod.node, pod.port().0), mac(4, pod.node, pod.port().0))
    }

    /// Lets `pod` send a frame; nothing arrives anywhere before [`Cluster::settle`], except within the same node.
    pub fn send(&mut self, pod: PodRef, frame: &[u8]) {
        self.inject(pod, frame);
        self.drain(pod.node);
    }

    /// Lets `pod` send a frame that is left where its first worker puts it: in an inbox, maybe. [`Cluster::step`] goes on.
    pub fn inject(&mut self, pod: PodRef, frame: &[u8]) {
        let (port, queue) = (pod.port(), 0);
        self.receive(pod.node, port, queue, frame);
    }

    /// Lets `host`'s kernel send a frame by the host port.
    pub fn send_from_host(&mut self, node: usize, frame: &[u8]) {
        self.receive(node, HOST, 0, frame);
        self.drain(node);
    }

    /// Returns the Ethernet addresses of a frame that a node's kernel sends: (its own, our end's).
    pub fn host_macs(&self, node: usize) -> (MacAddr, MacAddr) {
        (mac(3, node, 0), mac(2, node, 0))
    }

    /// Lets one worker of the node, drawn from the seed, take some packets from its inbox. Returns whether there were any at all.
    pub fn step(&mut self, node: usize) -> bool {
        let busy: Vec<usize> = (0..self.nodes[node].workers.len())
            .filter(|worker| !self.nodes[node].workers[*worker].inbox.is_empty())
            .collect();
        if busy.is_empty() {
            return false;
        }
        let worker = busy[self.turns.below(busy.len() as u64) as usize];
        let at = &mut self.nodes[node].workers[worker];
        let count = 1 + self.turns.below(at.inbox.len() as u64) as usize;
        let mut parcels: Parcels<_> = at.inbox.drain(..count).collect();
        let SimNode { topology, workers, .. } = &mut self.nodes[node];
        let SimWorker { worker: core, out, snapshot, .. } = &mut workers[worker];
        let view = View { snapshot: Some(snapshot), topology };
        core.handle_handovers(view, self.now, &mut parcels, out);
        self.deliver(node, worker);
        true
    }

    /// Lets the workers of a node work until all inboxes are empty.
    pub fn drain(&mut self, node: usize) {
        while self.step(node) {}
        let held: u64 = self.nodes.iter().flat_map(|n| &n.workers).map(|w| w.worker.counters().held).sum();
        let waiting: usize = self.nodes.iter().flat_map(|n| &n.workers).map(|w| w.inbox.len()).sum();
        let spare: usize = self.nodes.iter().flat_map(|n| &n.workers).map(|w| w.out.spare.len()).sum();
        let taken = held + (waiting + spare) as u64;
        assert_eq!(self.living.get() as u64, taken, "every other frame is free again");
        let workers = &self.nodes[node].workers;
        let sum = |of: fn(&Counters) -> u64| -> u64 {
            workers.iter().map(|w| of(w.worker.counters()) + of(&w.before)).sum()
        };
        assert_eq!(sum(|c| c.handed_over), sum(|c| c.taken), "what was handed over was taken");
    }

    /// Lets time pass on every node.
    pub fn advance(&mut self, by: Nanos) {
        self.now = self.now + by;
        for node in 0..self.nodes.len() {
            for worker in 0..self.nodes[node].workers.len() {
                let SimNode { topology, workers, .. } = &mut self.nodes[node];
                let SimWorker { worker: core, out, snapshot, .. } = &mut workers[worker];
                let view = View { snapshot: Some(snapshot), topology };
                core.handle_timeout(view, self.now, out);
                self.deliver(node, worker);
            }
            self.drain(node);
        }
    }

    /// Carries frames over the wire until it is empty.
    pub fn settle(&mut self) {
        while let Some((to, frame)) = self.wire.pop_front() {
            if self.random.below(100) < self.faults.lost {
                continue;
            }
            if self.random.below(100) < self.faults.repeated {
                self.wire.push_back((to, frame.clone()));
            }
            if self.random.below(100) < self.faults.reordered && !self.wire.is_empty() {
                self.wire.insert(1, (to, frame));
                continue;
            }
            let queue = self.turns.below(u64::from(self.nodes[to].shape.queues)) as u16;
            self.receive(to, UPLINK, queue, &frame);
            self.drain(to);
        }
    }

    /// Returns and forgets what has arrived at `pod`.
    pub fn inbox(&mut self, pod: PodRef) -> Vec<Vec<u8>> {
        self.inboxes.remove(&pod).unwrap_or_default()
    }

    /// Returns and forgets what has arrived at the kernel of a node.
    pub fn host_inbox(&mut self, node: usize) -> Vec<Vec<u8>> {
        self.host_inboxes.remove(&node).unwrap_or_default()
    }

    /// Returns a node's own address of the wanted family.
    pub fn node_address(&self, node: usize, v6: bool) -> IpAddr {
        node_address(node, v6)
    }

    /// Returns every pod.
    pub fn pods(&self) -> Vec<PodRef> {
        let pods = self.pods;
        (0..self.nodes.len()).flat_map(|node| (0..pods).map(move |pod| PodRef { node, pod })).collect()
    }

    /// Returns drops for `reason`, over all nodes.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        let workers = self.nodes.iter().flat_map(|node| &node.workers);
        workers.map(|worker| worker.worker.counters().dropped(reason) + worker.before.dropped(reason)).sum()
    }

    fn receive(&mut self, node: usize, port: PortIndex, queue: u16, bytes: &[u8]) {
        let frame = SimFrame::new(bytes, &self.living);
        let at = &mut self.nodes[node];
        let Some(kind) = at.topology.port(port).map(|port| port.kind.clone()) else { return };
        let worker = usize::from(at.topology.spread().owner(port, &kind, queue).0);
        let SimNode { topology, workers, .. } = at;
        let SimWorker { worker: core, out, snapshot, .. } = &mut workers[worker];
        let view = View { snapshot: Some(snapshot), topology };
        // Both ways into the core decide alike; which one is taken must not matter.
        if self.turns.below(2) == 0 {
            core.handle_frame(view, self.now, port, frame, out);
        } else {
            core.handle_burst(view, self.now, port, &mut vec![frame], out);
        }
        self.deliver(node, worker);
    }

    /// Empties a worker's output: towards pods at once, towards other nodes through the wire, towards other workers into inboxes.
    fn deliver(&mut self, node: usize, worker: usize) {
        let capacity = self.nodes[node].shape.inbox;
        let at = &mut self.nodes[node].workers[worker];
        at.out.recycle.clear();
        at.out.events.clear();
        at.out.captures.clear();
        if !at.out.spare.is_empty() {
            at.give_spares(&self.living);
        }
        let handovers: Vec<_> = at.out.handovers.drain().collect();
        for (to, parcel) in handovers {
            assert_ne!(usize::from(to.0), worker, "nobody hands over to himself");
            let inbox = &mut self.nodes[node].workers[usize::from(to.0)].inbox;
            if inbox.len() < capacity {
                inbox.push_back(parcel);
                continue;
            }
            let at = &mut self.nodes[node].workers[worker];
            at.unsent += u64::from(parcel.errand == Errand::Send);
            at.worker.handover_refused(&[parcel]);
        }
        let nodes = self.nodes.len();
        let node_at = &mut self.nodes[node];
        let counters = node_at.workers[worker].worker.counters();
        assert_eq!(
            counters.beginnings(),
            counters.endings(),
            "every packet has exactly one ending (node {node}, worker {worker})"
        );
        let sent: Vec<_> = node_at.workers[worker].out.transmit.drain(..).collect();
        for (port, frame) in sent {
            let bytes = frame.data().to_vec();
            if let Some(at) = node_at.topology.port(port) {
                let carrier = node_at.topology.spread().carrier(WorkerIndex(worker as u16), at);
                assert_eq!(usize::from(carrier.0), worker, "a frame leaves by a queue of its worker");
            }
            if port == UPLINK {
                // A frame to nobody's address is lost.
                let to = usize::from(bytes[3]);
                if to < nodes {
                    self.wire.push_back((to, bytes));
                }
            } else if port.0 >= FIRST_POD {
                let pod = PodRef { node, pod: usize::from(port.0 - FIRST_POD) };
                self.inboxes.entry(pod).or_default().push(bytes);
            } else {
                self.host_inboxes.entry(node).or_default().push(bytes);
            }
        }
    }
}
