//! Nodes that encrypt to each other.

use std::net::{IpAddr, SocketAddr};

use margay_core::tunnel::plan::{EncryptionPlan, FamilyPlan, OwnEnd, PeerPlan};
use margay_core::tunnel::{PeerId, PrivateKey};
use margay_core::{Counters, DropReason, Nanos, WorkerConfig};
use margay_policy_engine::engine::Change;
use margay_policy_engine::model::{
    Action, Entity, Object, Order, Policy, PolicyFlags, PolicyKey, PolicyKind, Rule,
};
use margay_policy_engine::selector::Selector;
use margay_sim::{Cluster, PodRef, Shape, WireFaults};
use margay_wire::{IpHeaders, Packet, build, parse, protocol};

pub const PORTS: [u16; 2] = [51820, 51821];
pub const SHAPES: [(u16, u16); 6] = [(1, 1), (2, 1), (2, 4), (3, 1), (3, 4), (8, 2)];
pub const MARKER: &[u8] = b"this is nobody else's business";

pub fn key(node: usize, nth: u8) -> PrivateKey {
    PrivateKey::new([node as u8 * 16 + nth + 1; 32])
}

pub fn number(of: usize) -> PeerId {
    PeerId(of as u32 * 3 + 5)
}

/// What the control side of a node would say: everybody encrypts, with these keys of each node, the preferred one first.
pub fn plan_with(
    cluster: &Cluster,
    node: usize,
    nodes: usize,
    generation: u64,
    own: &[u8],
    theirs: &[u8],
) -> EncryptionPlan {
    let family = |v6: bool| {
        let peer = |of: usize| {
            let text = if v6 { format!("fd00:{}::/64", of + 1) } else { format!("10.0.{}.0/24", of + 1) };
            PeerPlan {
                id: number(of),
                node: format!("node{of}"),
                keys: theirs.iter().map(|nth| key(of, *nth).public()).collect(),
                endpoint: SocketAddr::new(cluster.node_address(of, v6), PORTS[usize::from(v6)]),
                allowed: vec![text.parse().expect("written right here")],
                keepalive: None,
            }
        };
        let own = OwnEnd {
            keys: own.iter().map(|nth| key(node, *nth)).collect(),
            port: PORTS[usize::from(v6)],
            address: cluster.node_address(node, v6),
            mtu: 0,
        };
        Some(FamilyPlan { own, peers: (0..nodes).filter(|of| *of != node).map(peer).collect() })
    };
    EncryptionPlan {
        generation,
        v4: family(false),
        v6: family(true),
        selected: Vec::new(),
        required: Vec::new(),
    }
}

pub fn plan(cluster: &Cluster, node: usize) -> EncryptionPlan {
    plan_with(cluster, node, 2, 1, &[0], &[0])
}

/// Two nodes of three pods that encrypt to each other.
pub fn encrypted(seed: u64, shape: (u16, u16), faults: WireFaults) -> Cluster {
    let mut cluster = clear(seed, shape, faults);
    for node in 0..2 {
        let plan = plan(&cluster, node);
        cluster.encrypt(node, &plan);
    }
    cluster
}

pub fn clear(seed: u64, (workers, queues): (u16, u16), faults: WireFaults) -> Cluster {
    let config = WorkerConfig { adoption_window: Nanos(0), max_flows: 4096, ..WorkerConfig::default() };
    let shape = Shape { workers, queues, inbox: 1024 };
    Cluster::shaped(seed, 2, 3, shape, faults, &config)
}

pub fn pod(node: usize, pod: usize) -> PodRef {
    PodRef { node, pod }
}

pub fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

pub fn udp(cluster: &Cluster, from: PodRef, to: IpAddr, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    build::udp(cluster.macs(from), (from.address(to.is_ipv6()), ports.0), (to, ports.1), data)
}

/// Sends from pod to pod and returns what arrived.
pub fn call(cluster: &mut Cluster, from: PodRef, to: PodRef, v6: bool, data: &[u8]) -> Vec<Vec<u8>> {
    let frame = udp(cluster, from, to.address(v6), (1000, 2000), data);
    cluster.send(from, &frame);
    cluster.settle();
    cluster.inbox(to)
}

/// Whether every frame on the wire is a datagram to the tunnel's port that shows nothing of what is inside.
pub fn is_sealed(frame: &[u8]) -> bool {
    let ip = headers(frame);
    let port = PORTS[usize::from(ip.source.is_ipv6())];
    ip.protocol == protocol::UDP
        && ip.ports() == Some((port, port))
        && !frame.windows(MARKER.len()).any(|part| part == MARKER)
}

pub fn sum(cluster: &Cluster, node: usize, workers: u16, of: fn(&Counters) -> u64) -> u64 {
    (0..workers).map(|worker| of(cluster.counters(node, worker.into()))).sum()
}

/// Puts plans in force at both nodes: these keys of ours, and of theirs.
pub fn replan(cluster: &mut Cluster, node: usize, generation: u64, own: &[u8], theirs: &[u8]) {
    let plan = plan_with(cluster, node, 2, generation, own, theirs);
    cluster.encrypt(node, &plan);
}

/// Drops for `reason` at one node.
pub fn drops(cluster: &Cluster, node: usize, workers: u16, reason: DropReason) -> u64 {
    (0..workers).map(|worker| cluster.counters(node, worker.into()).dropped(reason)).sum()
}

/// Lets the reasons of all drops be these, and so many.
pub fn assert_drops(cluster: &Cluster, expected: &[(DropReason, u64)]) {
    for reason in DropReason::ALL {
        let wanted = expected.iter().find(|(known, _)| known == reason).map_or(0, |(_, count)| *count);
        assert_eq!(cluster.dropped(*reason), wanted, "{}", reason.as_str());
    }
}

/// A policy that denies everything one way to pods with label `app` equal to `app`.
pub fn deny(app: usize, ingress: bool) -> Change {
    let rule = Rule {
        action: Action::Deny,
        ip_version: None,
        protocol: None,
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: Entity::default(),
        destination: Entity::default(),
        http: None,
        unenforced: Vec::new(),
        annotations: Default::default(),
    };
    Change::Upsert(Object::Policy(std::sync::Arc::new(Policy {
        key: PolicyKey { kind: PolicyKind::GlobalNetworkPolicy, namespace: None, name: "deny".into() },
        tier: "default".into(),
        order: Order(1.0),
        selector: Some(Selector::parse(&format!("app == 'app{app}'")).expect("selector")),
        governs_ingress: ingress,
        governs_egress: !ingress,
        ingress: if ingress { vec![rule.clone()] } else { Vec::new() },
        egress: if ingress { Vec::new() } else { vec![rule] },
        flags: PolicyFlags::default(),
        staged: None,
    })))
}
