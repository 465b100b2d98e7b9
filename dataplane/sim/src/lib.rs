//! Many nodes, a pretend network, a virtual clock: whole packets through real workers, without a kernel.
//!
//! ```text
//!  pods ─▶ Worker (node 0) ─┐                        ┌─ Worker (node 1) ─▶ pods
//!                           ├─ Wire: loses, repeats, ─┤
//!  pods ─▶ Worker (node 2) ─┘   reorders, by a seed   └─ …
//! ```
//!
//! A [`Cluster`] is a function of its seed and its calls: the same seed gives the same run, so a failure is replayed by its seed alone.
//! Invariants that hold after every step: every frame that a worker received has exactly one ending; nothing is delivered to a pod that
//! the packet was not addressed to.
//!
//! Deliberately absent: AF_XDP and the kernels, which the tests of `margay-io` and of the lab cover.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use margay_core::frame::MemoryFrame;
use margay_core::topology::{Port, PortKind, Route, TopologyBuilder};
use margay_core::{
    Counters, DropReason, Frame, Nanos, Output, PortIndex, Topology, View, Worker, WorkerConfig,
};
use margay_policy_engine::engine::{Change, Engine, LocalEndpoint};
use margay_policy_engine::model::{Namespace, NamespacedName, Object, Pod};
use margay_policy_engine::packet::EndpointId;
use margay_policy_engine::snapshot::Snapshot;
use margay_wire::MacAddr;

const UPLINK: PortIndex = PortIndex(0);
const HOST: PortIndex = PortIndex(1);
const FIRST_POD: u16 = 2;

/// A small generator of repeatable numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Returns a generator that always gives the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end.max(1)
    }
}

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

/// Names a pod: node and number on that node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodRef {
    /// Node index.
    pub node: usize,
    /// Number of the pod on its node.
    pub pod: usize,
}

#[derive(Debug)]
struct SimNode {
    engine: Engine,
    snapshot: Arc<Snapshot>,
    topology: Topology,
    worker: Worker<MemoryFrame>,
    out: Output<MemoryFrame>,
}

/// A cluster in memory.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<SimNode>,
    pods: usize,
    now: Nanos,
    random: Random,
    faults: WireFaults,
    wire: VecDeque<(usize, Vec<u8>)>,
    inboxes: BTreeMap<PodRef, Vec<Vec<u8>>>,
}

fn mac(kind: u8, node: usize, port: u16) -> MacAddr {
    let [high, low] = port.to_be_bytes();
    MacAddr([2, kind, 0, node as u8, high, low])
}

impl PodRef {
    /// Returns the pod's namespace: pods are spread over three.
    pub fn namespace(self) -> String {
        format!("ns{}", (self.node + self.pod) % 3)
    }

    /// Returns the pod's name.
    pub fn name(self) -> String {
        format!("pod-{}-{}", self.node, self.pod)
    }

    /// Returns the pod's address of the wanted family.
    pub fn address(self, v6: bool) -> IpAddr {
        let (node, pod) = (self.node as u8 + 1, self.pod as u8 + 2);
        if v6 {
            IpAddr::V6(Ipv6Addr::new(0xfd00, u16::from(node), 0, 0, 0, 0, 0, u16::from(pod)))
        } else {
            IpAddr::V4(Ipv4Addr::new(10, 0, node, pod))
        }
    }

    fn port(self) -> PortIndex {
        PortIndex(FIRST_POD + self.pod as u16)
    }

    /// Returns the Pod object; its label `app` is one of four values.
    pub fn object(self) -> Object {
        let labels = [
            ("app", format!("app{}", (self.node * 7 + self.pod) % 4)),
            ("projectcalico.org/namespace", self.namespace()),
            ("projectcalico.org/orchestrator", "k8s".to_owned()),
        ];
        Object::Pod(Arc::new(Pod {
            key: NamespacedName { namespace: self.namespace(), name: self.name() },
            uid: String::new(),
            labels: Arc::new(labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            service_account: None,
            node: Some(format!("node{}", self.node)),
            host_network: false,
            finished: false,
            addresses: vec![self.address(false), self.address(true)],
            annotated_addresses: Vec::new(),
            ports: Vec::new(),
            started: String::new(),
            annotations: BTreeMap::new(),
        }))
    }
}

fn node_address(node: usize, v6: bool) -> IpAddr {
    let last = node as u8 + 1;
    if v6 {
        IpAddr::V6(Ipv6Addr::new(0xfdff, 0, 0, 0, 0, 0, 0, u16::from(last)))
    } else {
        IpAddr::V4(Ipv4Addr::new(192, 168, 0, last))
    }
}

impl Cluster {
    /// Returns a cluster of `nodes` nodes with `pods` pods each and no policy. Shape: at most 200 of either.
    pub fn new(seed: u64, nodes: usize, pods: usize, faults: WireFaults, config: &WorkerConfig) -> Self {
        let now = Nanos::from_secs(1_000);
        let built = (0..nodes).map(|node| Self::node(node, nodes, pods, config, now)).collect();
        Self {
            nodes: built,
            pods,
            now,
            random: Random::new(seed),
            faults,
            wire: VecDeque::new(),
            inboxes: BTreeMap::new(),
        }
    }

    fn node(node: usize, nodes: usize, pods: usize, config: &WorkerConfig, now: Nanos) -> SimNode {
        let mut engine = Engine::new();
        for name in ["ns0", "ns1", "ns2"] {
            let namespace = Namespace { name: name.to_owned(), labels: BTreeMap::new() };
            engine.apply(Change::Upsert(Object::Namespace(Arc::new(namespace))));
        }
        let cidrs = |of: usize| {
            [format!("10.0.{}.0/24", of + 1), format!("fd00:{}::/64", of + 1)]
                .map(|text| text.parse().expect("written right here"))
        };
        let mut builder = TopologyBuilder {
            ports: vec![
                Port {
                    index: UPLINK,
                    name: "uplink".to_owned(),
                    kind: PortKind::Uplink,
                    mac: mac(1, node, 0),
                    mtu: 1500,
                },
                Port {
                    index: HOST,
                    name: "host".to_owned(),
                    kind: PortKind::Host { kernel_mac: mac(3, node, 0) },
                    mac: mac(2, node, 0),
                    mtu: 1500,
                },
            ],
            node_addresses: vec![node_address(node, false), node_address(node, true)],
            local_pod_cidrs: cidrs(node).to_vec(),
            routes: ["192.168.0.0/24", "fdff::/64"]
                .map(|text| {
                    (text.parse().expect("written right here"), Route::Port { port: UPLINK, gateway: None })
                })
                .to_vec(),
            ..TopologyBuilder::default()
        };
        for other in (0..nodes).filter(|other| *other != node) {
            let addresses = vec![node_address(other, false), node_address(other, true)];
            builder.remote_pod_cidrs.extend(cidrs(other).map(|cidr| (cidr, addresses.clone())));
            builder
                .neighbours
                .extend(addresses.into_iter().map(|address| (UPLINK, address, mac(1, other, 0))));
        }
        for at in 0..nodes {
            for pod in 0..pods {
                let pod = PodRef { node: at, pod };
                engine.apply(Change::Upsert(pod.object()));
                if at != node {
                    continue;
                }
                let endpoint = EndpointId(u32::from(pod.port().0));
                let addresses = vec![pod.address(false), pod.address(true)];
                engine.apply(Change::Endpoint(LocalEndpoint {
                    id: endpoint,
                    pod: NamespacedName { namespace: pod.namespace(), name: pod.name() },
                    uid: String::new(),
                    addresses: addresses.clone(),
                }));
                builder.ports.push(Port {
                    index: pod.port(),
                    name: pod.name(),
                    kind: PortKind::Pod { endpoint, pod_mac: mac(5, node, pod.port().0), addresses },
                    mac: mac(4, node, pod.port().0),
                    mtu: 1500,
                });
            }
        }
        let snapshot = engine.publish();
        let worker = Worker::new(config.clone(), now);
        SimNode { engine, snapshot, topology: builder.build(1), worker, out: Output::new() }
    }

    /// Applies one change to every node's engine and publishes everywhere.
    pub fn apply(&mut self, change: &Change) {
        for node in &mut self.nodes {
            node.engine.apply(change.clone());
            node.snapshot = node.engine.publish();
        }
    }

    /// Returns the engine of a node, for a reference model to read.
    pub fn engine(&self, node: usize) -> &Engine {
        &self.nodes[node].engine
    }

    /// Returns the counters of a node's worker.
    pub fn counters(&self, node: usize) -> &Counters {
        self.nodes[node].worker.counters()
    }

    /// Returns the Ethernet addresses of a frame that `pod` sends: (its own, its gateway's).
    pub fn macs(&self, pod: PodRef) -> (MacAddr, MacAddr) {
        (mac(5, pod.node, pod.port().0), mac(4, pod.node, pod.port().0))
    }

    /// Lets `pod` send a frame; nothing arrives anywhere before [`Cluster::settle`], except within the same node.
    pub fn send(&mut self, pod: PodRef, frame: &[u8]) {
        self.receive(pod.node, pod.port(), frame);
    }

    /// Lets time pass on every node.
    pub fn advance(&mut self, by: Nanos) {
        self.now = self.now + by;
        for node in 0..self.nodes.len() {
            let at = &mut self.nodes[node];
            let view = View { snapshot: Some(&at.snapshot), topology: &at.topology };
            at.worker.handle_timeout(view, self.now, &mut at.out);
            self.deliver(node);
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
            self.receive(to, UPLINK, &frame);
        }
    }

    /// Returns and forgets what has arrived at `pod`.
    pub fn inbox(&mut self, pod: PodRef) -> Vec<Vec<u8>> {
        self.inboxes.remove(&pod).unwrap_or_default()
    }

    /// Returns every pod.
    pub fn pods(&self) -> Vec<PodRef> {
        let pods = self.pods;
        (0..self.nodes.len()).flat_map(|node| (0..pods).map(move |pod| PodRef { node, pod })).collect()
    }

    /// Returns drops for `reason`, over all nodes.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.nodes.iter().map(|node| node.worker.counters().dropped(reason)).sum()
    }

    fn receive(&mut self, node: usize, port: PortIndex, bytes: &[u8]) {
        let at = &mut self.nodes[node];
        let view = View { snapshot: Some(&at.snapshot), topology: &at.topology };
        at.worker.handle_frame(view, self.now, port, MemoryFrame::new(bytes), &mut at.out);
        self.deliver(node);
    }

    /// Empties a node's output: towards its pods at once, towards other nodes through the wire.
    fn deliver(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        at.out.recycle.clear();
        at.out.events.clear();
        let counters = at.worker.counters();
        assert_eq!(
            counters.received,
            counters.endings(),
            "every received frame has exactly one ending (node {node})"
        );
        for (port, frame) in at.out.transmit.drain(..) {
            let bytes = frame.data().to_vec();
            if port == UPLINK {
                let to = usize::from(bytes[3]);
                self.wire.push_back((to, bytes));
            } else if port.0 >= FIRST_POD {
                let pod = PodRef { node, pod: usize::from(port.0 - FIRST_POD) };
                self.inboxes.entry(pod).or_default().push(bytes);
            }
        }
    }
}
