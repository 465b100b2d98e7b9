//! A node in memory: two pods, the host port, one uplink, another node behind it; real policy from real objects.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use margay_core::frame::MemoryFrame;
use margay_core::topology::{Port, PortKind, Route, TopologyBuilder};
use margay_core::worker::EndpointToHost;
use margay_core::{DropReason, Nanos, Output, PortIndex, Topology, View, Worker, WorkerConfig};
use margay_policy_engine::engine::{Change, Engine, LocalEndpoint};
use margay_policy_engine::model::{
    Action, Entity, Namespace, NamespacedName, Object, Order, Pod, Policy, PolicyFlags, PolicyKey,
    PolicyKind, Rule,
};
use margay_policy_engine::packet::EndpointId;
use margay_policy_engine::selector::Selector;
use margay_policy_engine::snapshot::Snapshot;
use margay_wire::{MacAddr, build};

pub const HOST: PortIndex = PortIndex(0);
pub const UPLINK: PortIndex = PortIndex(1);
pub const POD_A: PortIndex = PortIndex(2);
pub const POD_B: PortIndex = PortIndex(3);

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("test address")
}

pub fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

/// Our own address on `port`, and the address of whoever is behind it.
pub fn our_mac(port: PortIndex) -> MacAddr {
    mac(0x10 + port.0 as u8)
}

pub fn peer_mac(port: PortIndex) -> MacAddr {
    mac(0x80 + port.0 as u8)
}

pub const ROUTER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);

pub struct Node {
    pub engine: Engine,
    pub snapshot: Option<Arc<Snapshot>>,
    pub topology: Topology,
    pub worker: Worker<MemoryFrame>,
    pub out: Output<MemoryFrame>,
    pub now: Nanos,
    pub builder: TopologyBuilder,
    generation: u64,
    outstanding: usize,
}

/// A pod whose label `app` is its name.
pub fn pod(namespace: &str, name: &str, addresses: &[&str]) -> Object {
    let labels = [
        ("app", name),
        ("projectcalico.org/namespace", namespace),
        ("projectcalico.org/orchestrator", "k8s"),
    ];
    Object::Pod(Arc::new(Pod {
        key: NamespacedName { namespace: namespace.into(), name: name.into() },
        uid: String::new(),
        labels: Arc::new(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
        service_account: None,
        node: Some("node1".into()),
        host_network: false,
        finished: false,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        annotated_addresses: Vec::new(),
        ports: Vec::new(),
        started: String::new(),
        annotations: Default::default(),
    }))
}

pub fn rule(action: Action, protocol: Option<u8>) -> Rule {
    Rule {
        action,
        ip_version: None,
        protocol,
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: Entity::default(),
        destination: Entity::default(),
        http: None,
        unenforced: Vec::new(),
        annotations: Default::default(),
    }
}

/// A global policy on pods with label `app` equal to `app`.
pub fn policy(name: &str, app: &str, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> Object {
    Object::Policy(Arc::new(Policy {
        key: PolicyKey { kind: PolicyKind::GlobalNetworkPolicy, namespace: None, name: name.into() },
        tier: "default".into(),
        order: Order(1.0),
        selector: Some(Selector::parse(&format!("app == '{app}'")).expect("selector")),
        governs_ingress: ingress.is_some(),
        governs_egress: egress.is_some(),
        ingress: ingress.unwrap_or_default(),
        egress: egress.unwrap_or_default(),
        flags: PolicyFlags::default(),
        staged: None,
    }))
}

/// A neighbour solicitation that pod a sends to everybody.
pub fn solicit(source: &str, destination: &str, target: &str, link: Option<MacAddr>) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend_from_slice(&target.parse::<Ipv6Addr>().expect("v6").octets());
    if let Some(link) = link {
        body.extend_from_slice(&[1, 1]);
        body.extend_from_slice(&link.0);
    }
    let macs = (peer_mac(POD_A), MacAddr([0x33, 0x33, 0xff, 0, 0, 1]));
    build::icmp(macs, ip(source), ip(destination), 135, 0, &body, 255)
}

/// An ICMP "fragmentation needed" from `from`, about a UDP packet `quoted.0` to `quoted.1`.
pub fn complaint(port: PortIndex, from: &str, quoted: ((&str, u16), (&str, u16))) -> Vec<u8> {
    let (s, d) = quoted;
    let inner = build::udp(Node::macs(POD_A), (ip(s.0), s.1), (ip(d.0), d.1), b"hello");
    let mut body = vec![0, 0, 0x02, 0x00];
    body.extend_from_slice(&inner[14..]);
    build::icmp(Node::macs(port), ip(from), ip(s.0), 3, 4, &body, 64)
}

impl Node {
    pub fn new() -> Self {
        Self::with(WorkerConfig {
            endpoint_to_host: EndpointToHost::Accept,
            adoption_window: Nanos(0),
            max_flows: 4096,
            ..Default::default()
        })
    }

    pub fn with(config: WorkerConfig) -> Self {
        let mut engine = Engine::new();
        engine.apply(Change::Upsert(Object::Namespace(Arc::new(Namespace {
            name: "ns".into(),
            labels: Default::default(),
        }))));
        let pods = [("a", POD_A, ["10.0.1.2", "fd00:1::2"]), ("b", POD_B, ["10.0.1.3", "fd00:1::3"])];
        let mut builder = TopologyBuilder {
            ports: vec![
                Port {
                    index: HOST,
                    name: "mgy0x".into(),
                    kind: PortKind::Host { kernel_mac: peer_mac(HOST) },
                    mac: our_mac(HOST),
                    mtu: 1500,
                },
                Port {
                    index: UPLINK,
                    name: "eth0".into(),
                    kind: PortKind::Uplink,
                    mac: our_mac(UPLINK),
                    mtu: 1400,
                },
            ],
            node_addresses: vec![ip("192.168.0.1"), ip("fd00::1")],
            local_pod_cidrs: vec!["10.0.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
            remote_pod_cidrs: vec![
                ("10.0.2.0/24".parse().unwrap(), vec![ip("192.168.0.2"), ip("fd00::2")]),
                ("fd00:2::/64".parse().unwrap(), vec![ip("192.168.0.2"), ip("fd00::2")]),
            ],
            routes: vec![
                ("192.168.0.0/24".parse().unwrap(), Route::Port { port: UPLINK, gateway: None }),
                ("fd00::/64".parse().unwrap(), Route::Port { port: UPLINK, gateway: None }),
                (
                    "0.0.0.0/0".parse().unwrap(),
                    Route::Port { port: UPLINK, gateway: Some(ip("192.168.0.254")) },
                ),
                ("10.9.0.0/16".parse().unwrap(), Route::Unreachable),
                ("172.16.0.0/16".parse().unwrap(), Route::Host),
            ],
            neighbours: vec![
                (UPLINK, ip("192.168.0.2"), peer_mac(UPLINK)),
                (UPLINK, ip("fd00::2"), peer_mac(UPLINK)),
                (UPLINK, ip("192.168.0.254"), ROUTER_MAC),
            ],
        };
        for (name, index, addresses) in pods {
            engine.apply(Change::Upsert(pod("ns", name, &addresses)));
            let addresses: Vec<IpAddr> = addresses.iter().map(|a| ip(a)).collect();
            let endpoint = EndpointId(u32::from(index.0));
            engine.apply(Change::Endpoint(LocalEndpoint {
                id: endpoint,
                pod: NamespacedName { namespace: "ns".into(), name: name.into() },
                uid: String::new(),
                addresses: addresses.clone(),
            }));
            builder.ports.push(Port {
                index,
                name: format!("mgy{name}"),
                kind: PortKind::Pod { endpoint, pod_mac: peer_mac(index), addresses },
                mac: our_mac(index),
                mtu: 1500,
            });
        }
        engine.apply(Change::Upsert(pod("ns", "remote", &["10.0.2.9", "fd00:2::9"])));
        let snapshot = Some(engine.publish());
        let now = Nanos::from_secs(1000);
        Self {
            engine,
            snapshot,
            topology: builder.clone().build(1),
            worker: Worker::new(config, now),
            out: Output::new(),
            now,
            builder,
            generation: 1,
            outstanding: 0,
        }
    }

    /// Applies an object and publishes.
    pub fn apply(&mut self, object: Object) {
        self.engine.apply(Change::Upsert(object));
        self.snapshot = Some(self.engine.publish());
    }

    /// Deletes an object and publishes.
    pub fn delete(&mut self, object: &Object) {
        self.engine.apply(Change::Delete(object.key()));
        self.snapshot = Some(self.engine.publish());
    }

    /// Makes a pod of namespace `ns` one of this node.
    pub fn adopt(&mut self, name: &str, endpoint: EndpointId, addresses: &[IpAddr]) {
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        self.engine.apply(Change::Endpoint(LocalEndpoint {
            id: endpoint,
            pod: NamespacedName { namespace: "ns".into(), name: name.into() },
            uid: String::new(),
            addresses: addresses.to_vec(),
        }));
        self.apply(pod("ns", name, &texts));
    }

    /// Publishes the builder's present content.
    pub fn rebuild(&mut self) {
        self.generation += 1;
        self.topology = self.builder.clone().build(self.generation);
    }

    /// Sends one frame in; returns what left, or the drop's reason.
    pub fn send(&mut self, port: PortIndex, bytes: &[u8]) -> Result<Vec<(PortIndex, Vec<u8>)>, DropReason> {
        self.send_packet(port, MemoryFrame::new(bytes))
    }

    /// As [`Node::send`], for a packet in frames of any size.
    pub fn send_packet(
        &mut self,
        port: PortIndex,
        packet: MemoryFrame,
    ) -> Result<Vec<(PortIndex, Vec<u8>)>, DropReason> {
        let before = self.worker.counters().clone();
        let view = View { snapshot: self.snapshot.as_deref(), topology: &self.topology };
        self.outstanding += 1;
        self.worker.handle_frame(view, self.now, port, packet, &mut self.out);
        let after = self.worker.counters();
        assert_eq!(after.beginnings(), after.endings(), "every received frame has exactly one ending");
        let dropped = DropReason::ALL.iter().find(|r| after.dropped(**r) != before.dropped(**r));
        let sent = self.collect();
        self.out.events.clear();
        match dropped {
            Some(reason) if sent.is_empty() => Err(*reason),
            _ => Ok(sent),
        }
    }

    /// Sends one frame that must be forwarded whole; returns port and bytes.
    pub fn forward(&mut self, port: PortIndex, bytes: &[u8]) -> (PortIndex, Vec<u8>) {
        let mut sent = self.send(port, bytes).expect("forwarded");
        assert_eq!(sent.len(), 1, "one frame out");
        sent.remove(0)
    }

    /// Lets time pass.
    pub fn tick(&mut self, by: Nanos) -> Vec<(PortIndex, Vec<u8>)> {
        self.now = self.now + by;
        let view = View { snapshot: self.snapshot.as_deref(), topology: &self.topology };
        self.worker.handle_timeout(view, self.now, &mut self.out);
        self.collect()
    }

    /// Takes what left, and the frames that are free again.
    fn collect(&mut self) -> Vec<(PortIndex, Vec<u8>)> {
        let free = self.out.transmit.len() + self.out.recycle.len();
        self.outstanding -= free;
        self.out.recycle.clear();
        self.out.transmit.drain(..).map(|(port, frame)| (port, frame.to_vec())).collect()
    }

    /// Returns how many frames the worker has and has not given back.
    pub fn frames_out(&self) -> usize {
        self.outstanding - self.out.spare.len()
    }

    /// Gives the worker empty frames for packets of its own.
    pub fn give_spares(&mut self, count: usize) {
        self.outstanding += count;
        self.out.spare.extend((0..count).map(|_| MemoryFrame::new(&[])));
    }

    /// Sends frames in together, over the short way where it can be taken; returns what left.
    pub fn burst(&mut self, port: PortIndex, frames: &[Vec<u8>]) -> Vec<(PortIndex, Vec<u8>)> {
        self.burst_of(port, frames.iter().map(|frame| MemoryFrame::new(frame)).collect())
    }

    /// As [`Node::burst`], for packets in frames of any size.
    pub fn burst_of(&mut self, port: PortIndex, mut frames: Vec<MemoryFrame>) -> Vec<(PortIndex, Vec<u8>)> {
        let view = View { snapshot: self.snapshot.as_deref(), topology: &self.topology };
        self.outstanding += frames.len();
        self.worker.handle_burst(view, self.now, port, &mut frames, &mut self.out);
        let counters = self.worker.counters();
        assert_eq!(counters.beginnings(), counters.endings(), "every received frame has exactly one ending");
        self.out.events.clear();
        self.collect()
    }

    /// Ethernet addresses of what a peer on `port` sends to us.
    pub fn macs(port: PortIndex) -> (MacAddr, MacAddr) {
        (peer_mac(port), our_mac(port))
    }
}
