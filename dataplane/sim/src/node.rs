//! One node: its workers, its pods, its place among the others.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;

use margay_core::frame::MemoryFrame;
use margay_core::topology::{Port, PortKind, Route, TopologyBuilder};
use margay_core::{
    Counters, Frame, Handover, Nanos, Output, PortIndex, Spread, Topology, Worker, WorkerConfig, WorkerIndex,
};
use margay_policy_engine::engine::{Change, Engine, LocalEndpoint};
use margay_policy_engine::model::{Namespace, NamespacedName, Object, Pod};
use margay_policy_engine::packet::EndpointId;
use margay_policy_engine::snapshot::Snapshot;
use margay_wire::MacAddr;

pub(crate) const UPLINK: PortIndex = PortIndex(0);
pub(crate) const HOST: PortIndex = PortIndex(1);
pub(crate) const FIRST_POD: u16 = 2;

/// Spare frames that a worker of a node that encrypts has.
const SPARES: usize = 8;

/// Names a pod: node and number on that node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodRef {
    /// Node index.
    pub node: usize,
    /// Number of the pod on its node.
    pub pod: usize,
}

/// How a node is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Workers.
    pub workers: u16,
    /// Receive queues of the uplink.
    pub queues: u16,
    /// Packets that an inbox holds.
    pub inbox: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { workers: 1, queues: 1, inbox: 1024 }
    }
}

/// A frame that is counted while it lives.
#[derive(Debug)]
pub struct SimFrame {
    frame: MemoryFrame,
    living: Rc<Cell<usize>>,
}

impl SimFrame {
    pub(crate) fn new(bytes: &[u8], living: &Rc<Cell<usize>>) -> Self {
        living.set(living.get() + 1);
        Self { frame: MemoryFrame::new(bytes), living: Rc::clone(living) }
    }
}

impl Drop for SimFrame {
    fn drop(&mut self) {
        self.living.set(self.living.get() - 1);
    }
}

impl Frame for SimFrame {
    fn data(&self) -> &[u8] {
        self.frame.data()
    }

    fn data_mut(&mut self) -> &mut [u8] {
        self.frame.data_mut()
    }

    fn capacity(&self) -> usize {
        self.frame.capacity()
    }

    fn set_len(&mut self, len: usize) -> bool {
        self.frame.set_len(len)
    }
}

#[derive(Debug)]
pub(crate) struct SimWorker {
    pub(crate) worker: Worker<SimFrame>,
    pub(crate) out: Output<SimFrame>,
    pub(crate) inbox: VecDeque<Handover<SimFrame>>,
    /// What it judges by; may be older than the node's.
    pub(crate) snapshot: Arc<Snapshot>,
    /// Finished packets that found the inbox of the port's worker full.
    pub(crate) unsent: u64,
    /// What workers counted that panicked in its place.
    pub(crate) before: Counters,
}

impl SimWorker {
    /// Gives it spare frames, as a shell does.
    pub(crate) fn give_spares(&mut self, living: &Rc<Cell<usize>>) {
        while self.out.spare.len() < SPARES {
            self.out.spare.push(SimFrame::new(&[], living));
        }
    }
}

#[derive(Debug)]
pub(crate) struct SimNode {
    pub(crate) shape: Shape,
    pub(crate) engine: Engine,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) topology: Topology,
    pub(crate) workers: Vec<SimWorker>,
}

pub(crate) fn mac(kind: u8, node: usize, port: u16) -> MacAddr {
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

    pub(crate) fn port(self) -> PortIndex {
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

pub(crate) fn node_address(node: usize, v6: bool) -> IpAddr {
    let last = node as u8 + 1;
    if v6 {
        IpAddr::V6(Ipv6Addr::new(0xfdff, 0, 0, 0, 0, 0, 0, u16::from(last)))
    } else {
        IpAddr::V4(Ipv4Addr::new(192, 168, 0, last))
    }
}

/// Builds node `node` of `nodes`, with `pods` pods and no policy.
pub(crate) fn build(
    node: usize,
    nodes: usize,
    pods: usize,
    shape: Shape,
    config: &WorkerConfig,
    now: Nanos,
) -> SimNode {
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
        builder.neighbours.extend(addresses.into_iter().map(|address| (UPLINK, address, mac(1, other, 0))));
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
    let spread = Spread::new(shape.workers, [(UPLINK, shape.queues)]);
    let workers = (0..shape.workers).map(|index| SimWorker {
        worker: Worker::new(WorkerConfig { index: WorkerIndex(index), ..config.clone() }, now),
        out: Output::new(),
        inbox: VecDeque::new(),
        snapshot: Arc::clone(&snapshot),
        unsent: 0,
        before: Counters::default(),
    });
    SimNode {
        shape,
        workers: workers.collect(),
        engine,
        topology: builder.build(1).spread_over(spread),
        snapshot,
    }
}
