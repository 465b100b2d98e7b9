//! WireGuard in the packet path (policy model 25 and 32.1 to 32.4): nodes back to back in memory, of one worker and of several.

mod support;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use margay_core::tunnel::PeerId;
use margay_core::tunnel::plan::{EncryptionPlan, FamilyPlan, OwnEnd, PeerPlan};
use margay_core::tunnel::{PrivateKey, PublicKey};
use margay_core::{DropReason, Nanos, WorkerConfig};
use margay_policy_engine::engine::Change;
use margay_policy_engine::model::{Action, Entity, Object, Rule};
use margay_sim::{Cluster, PodRef, Shape, WireFaults};
use margay_wire::{IpHeaders, Packet, Transport, build, parse, protocol};
use support::policy;

const PORTS: [u16; 2] = [51820, 51821];
const SHAPES: [(u16, u16); 6] = [(1, 1), (2, 1), (2, 4), (3, 1), (3, 4), (8, 2)];
const MARKER: &[u8] = b"this is nobody else's business";

fn key(node: usize, nth: u8) -> PrivateKey {
    PrivateKey::new([node as u8 * 16 + nth + 1; 32])
}

fn number(of: usize) -> PeerId {
    PeerId(of as u32 * 3 + 5)
}

/// What the control side of a node would say: everybody encrypts, with these keys of each node, the preferred one first.
fn plan_with(
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

fn plan(cluster: &Cluster, node: usize) -> EncryptionPlan {
    plan_with(cluster, node, 2, 1, &[0], &[0])
}

/// Two nodes of three pods that encrypt to each other.
fn encrypted(seed: u64, shape: (u16, u16), faults: WireFaults) -> Cluster {
    let mut cluster = clear(seed, shape, faults);
    for node in 0..2 {
        let plan = plan(&cluster, node);
        cluster.encrypt(node, &plan);
    }
    cluster
}

fn clear(seed: u64, (workers, queues): (u16, u16), faults: WireFaults) -> Cluster {
    let config = WorkerConfig { adoption_window: Nanos(0), max_flows: 4096, ..WorkerConfig::default() };
    let shape = Shape { workers, queues, inbox: 1024 };
    Cluster::shaped(seed, 2, 3, shape, faults, &config)
}

fn pod(node: usize, pod: usize) -> PodRef {
    PodRef { node, pod }
}

fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

fn udp(cluster: &Cluster, from: PodRef, to: IpAddr, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    build::udp(cluster.macs(from), (from.address(to.is_ipv6()), ports.0), (to, ports.1), data)
}

/// Sends from pod to pod and returns what arrived.
fn call(cluster: &mut Cluster, from: PodRef, to: PodRef, v6: bool, data: &[u8]) -> Vec<Vec<u8>> {
    let frame = udp(cluster, from, to.address(v6), (1000, 2000), data);
    cluster.send(from, &frame);
    cluster.settle();
    cluster.inbox(to)
}

/// Whether every frame on the wire is a datagram to the tunnel's port that shows nothing of what is inside.
fn is_sealed(frame: &[u8]) -> bool {
    let ip = headers(frame);
    let port = PORTS[usize::from(ip.source.is_ipv6())];
    ip.protocol == protocol::UDP
        && ip.ports() == Some((port, port))
        && !frame.windows(MARKER.len()).any(|part| part == MARKER)
}

fn sum(cluster: &Cluster, node: usize, workers: u16, of: fn(&margay_core::Counters) -> u64) -> u64 {
    (0..workers).map(|worker| of(cluster.counters(node, worker.into()))).sum()
}

#[test]
fn pm_25_6_pods_of_two_nodes_talk_and_the_wire_shows_nothing() {
    for shape in SHAPES {
        for v6 in [false, true] {
            let mut cluster = encrypted(7, shape, WireFaults::default());
            for round in 0..6 {
                for (from, to) in [(pod(0, 0), pod(1, 1)), (pod(1, 1), pod(0, 0)), (pod(0, 2), pod(1, 0))] {
                    let frame = udp(&cluster, from, to.address(v6), (1000, 2000), MARKER);
                    cluster.send(from, &frame);
                    assert!(!cluster.wire().is_empty(), "{shape:?}");
                    assert!(
                        cluster.wire().iter().all(|(_, frame)| is_sealed(frame)),
                        "{shape:?} round {round}"
                    );
                    cluster.settle();
                    let arrived = cluster.inbox(to);
                    assert_eq!(arrived.len(), 1, "{shape:?} v6 {v6} round {round}");
                    let ip = headers(&arrived[0]);
                    assert_eq!((ip.source, ip.destination), (from.address(v6), to.address(v6)));
                    assert!(arrived[0].ends_with(MARKER));
                    assert_eq!(ip.ttl, 62, "one hop a node");
                }
            }
            let workers = shape.0;
            let (sealed, opened) =
                (sum(&cluster, 0, workers, |c| c.sealed), sum(&cluster, 1, workers, |c| c.opened));
            assert_eq!((sealed, opened), (12, 12));
            let report = cluster.tunnels(0);
            let peer = report.peers.iter().find(|peer| peer.v6 == v6).expect("a peer");
            assert_eq!(
                (peer.node.as_str(), peer.live, peer.sent.packets, peer.received.packets),
                ("node1", true, 12, 6)
            );
            for flow in cluster.flows(0) {
                let ways = if flow.reverse.0 > 0 { (true, true) } else { (true, false) };
                assert_eq!(flow.encrypted, ways, "{flow:?}");
            }
        }
    }
}

#[test]
fn known_flows_take_the_short_way_through_the_tunnel() {
    let mut cluster = encrypted(1, (1, 1), WireFaults::default());
    for _ in 0..50 {
        assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 0), false, MARKER).len(), 1);
    }
    for node in 0..2 {
        let counters = cluster.counters(node, 0);
        assert_eq!((counters.flow_hits, counters.flow_misses), (49, 1), "node {node}");
        assert_eq!((counters.held, counters.drops.iter().sum::<u64>()), (0, 0));
    }
}

#[test]
fn nodes_without_a_plan_talk_in_clear() {
    let mut cluster = clear(3, (2, 1), WireFaults::default());
    let frame = udp(&cluster, pod(0, 0), pod(1, 0).address(false), (1, 2), MARKER);
    cluster.send(pod(0, 0), &frame);
    assert!(cluster.wire().iter().all(|(_, frame)| frame.ends_with(MARKER)));
    cluster.settle();
    assert_eq!(cluster.inbox(pod(1, 0)).len(), 1);
    assert!(cluster.flows(0).iter().all(|flow| flow.encrypted == (false, false)));
}
