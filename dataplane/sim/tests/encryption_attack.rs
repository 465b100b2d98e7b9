//! What must not pass: plaintext where it should be sealed (policy model 25.7, 32.4), damaged and made-up datagrams, floods, and
//! WireGuard that is somebody else's (policy model 25.10).

mod support;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use margay_core::tunnel::plan::EncryptionPlan;
use margay_core::tunnel::{Family, Tunnels};
use margay_core::{DropReason, Nanos, Spread, WorkerIndex};
use margay_sim::{Cluster, Random, WireFaults};
use margay_wire::build;
use support::encrypted::*;
use support::seeds;

const NONE: WireFaults = WireFaults { lost: 0, repeated: 0, reordered: 0 };

fn strict(plan: EncryptionPlan) -> EncryptionPlan {
    let required =
        ["10.0.0.0/16", "fd00::/16"].map(|net| (net.parse::<IpNet>().expect("written right here"), true));
    EncryptionPlan { required: required.to_vec(), ..plan }
}

/// A plan without peers, as on a node that has just begun or whose neighbours have no keys.
fn alone(cluster: &Cluster, node: usize, generation: u64) -> EncryptionPlan {
    plan_with(cluster, node, 1.min(node), generation, &[0], &[0])
}

#[test]
fn pm_32_4_in_strict_nothing_leaves_in_clear_from_the_first_second_on() {
    for shape in SHAPES {
        for v6 in [false, true] {
            let mut cluster = clear(1, shape, NONE);
            let mut early = strict(alone(&cluster, 0, 1));
            (early.v4, early.v6) = (None, None);
            cluster.encrypt(0, &early);
            let frame = udp(&cluster, pod(0, 0), pod(1, 0).address(v6), (1, 2), MARKER);
            cluster.send(pod(0, 0), &frame);
            let host = cluster.node_address(0, v6);
            let from_host = build::udp(cluster.host_macs(0), (host, 1), (pod(1, 0).address(v6), 2), MARKER);
            cluster.send_from_host(0, &from_host);
            assert!(cluster.wire().is_empty(), "{shape:?}");
            assert_eq!(cluster.dropped(DropReason::Unencrypted), 2);
            assert_eq!(
                call(&mut cluster, pod(0, 0), pod(0, 1), v6, MARKER).len(),
                1,
                "the same node is no matter"
            );
            // The keys are known a moment later.
            for node in 0..2 {
                let plan = strict(plan_with(&cluster, node, 2, 2, &[0], &[0]));
                cluster.encrypt(node, &plan);
            }
            assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 0), v6, MARKER).len(), 1, "{shape:?} v6 {v6}");
        }
    }
}

#[test]
fn pm_32_4_in_strict_nothing_is_taken_in_clear() {
    for shape in SHAPES {
        let mut cluster = clear(1, shape, NONE);
        let receiver = strict(alone(&cluster, 1, 1));
        cluster.encrypt(1, &receiver);
        for v6 in [false, true] {
            assert!(call(&mut cluster, pod(0, 0), pod(1, 0), v6, MARKER).is_empty());
        }
        assert_drops(&cluster, &[(DropReason::ExpectedEncrypted, 2)]);
        // A pod's packet to the node itself is not encrypted by default (policy model 25.6), nor is the outside world.
        let frame = udp(&cluster, pod(0, 0), cluster.node_address(1, false), (1, 2), MARKER);
        cluster.send(pod(0, 0), &frame);
        cluster.settle();
        assert_eq!(cluster.host_inbox(1).len(), 1);
    }
}

#[test]
fn pm_32_2_pools_that_are_not_selected_are_left_in_clear() {
    let mut cluster = clear(1, (2, 1), NONE);
    for node in 0..2 {
        let mut plan = strict(plan(&cluster, node));
        // IPv6 is a pool that is not selected: nobody speaks for its addresses, and packets from it are not sealed.
        plan.v6 = None;
        plan.selected = vec![("fd00::/16".parse().expect("written right here"), false)];
        plan.required.retain(|(net, _)| net.addr().is_ipv4());
        cluster.encrypt(node, &plan);
    }
    for (v6, in_clear) in [(false, false), (true, true)] {
        let frame = udp(&cluster, pod(0, 0), pod(1, 0).address(v6), (1, 2), MARKER);
        cluster.send(pod(0, 0), &frame);
        assert!(cluster.wire().iter().all(|(_, frame)| frame.ends_with(MARKER) == in_clear));
        cluster.settle();
        assert_eq!(cluster.inbox(pod(1, 0)).len(), 1);
    }
}

#[test]
fn pm_25_7_a_peer_with_a_session_sends_nothing_in_clear() {
    for shape in SHAPES {
        let mut cluster = clear(1, shape, NONE);
        // Node 1 encrypts, node 0 does not yet: it is taken at its word in clear.
        let receiver = plan(&cluster, 1);
        cluster.encrypt(1, &receiver);
        for _ in 0..3 {
            assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 0), false, MARKER).len(), 1, "{shape:?}");
        }
        // What somebody on the wire will say in its name later.
        let late = udp(&cluster, pod(0, 0), pod(1, 0).address(false), (1000, 2000), MARKER);
        cluster.send(pod(0, 0), &late);
        let forged = cluster.wire().pop_front().expect("on its way");
        let sender = plan(&cluster, 0);
        cluster.encrypt(0, &sender);
        assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 0), false, MARKER).len(), 1);
        cluster.wire().push_back(forged);
        cluster.settle();
        assert!(cluster.inbox(pod(1, 0)).is_empty(), "{shape:?}");
        assert_drops(&cluster, &[(DropReason::ExpectedEncrypted, 1)]);
        assert_eq!(
            call(&mut cluster, pod(0, 0), pod(1, 0), false, MARKER).len(),
            1,
            "the flow goes on, sealed"
        );
    }
}

/// Only headers and the places of names differ from what a peer sent: nothing of it may pass.
#[test]
fn damaged_datagrams_pass_nothing_and_leave_the_session_alone() {
    for seed in seeds(6) {
        let shape = SHAPES[seed as usize % SHAPES.len()];
        let v6 = seed % 2 == 0;
        let content = if v6 { 62 } else { 42 };
        let mut cluster = encrypted(seed, shape, NONE);
        assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 1), v6, MARKER).len(), 1);
        let mut random = Random::new(seed);
        let mut last: Option<Vec<u8>> = None;
        for _ in 0..250 {
            let frame = udp(&cluster, pod(0, 0), pod(1, 1).address(v6), (1000, 2000), MARKER);
            cluster.send(pod(0, 0), &frame);
            let (to, good) = cluster.wire().pop_front().expect("on its way");
            let mut bad = good.clone();
            match random.below(5) {
                0 => bad.truncate(random.below(good.len() as u64) as usize),
                1 => {
                    // Two halves of two datagrams.
                    let Some(other) = last.clone() else { continue };
                    let at = content + 16 + random.below((good.len() - content - 16) as u64) as usize;
                    bad[at..].copy_from_slice(&other[at..]);
                }
                2 => bad.swap(content + 20, content + 21 + random.below(30) as usize),
                3 => bad.extend_from_slice(&[0; 32]),
                _ => {
                    for _ in 0..=random.below(3) {
                        let place = content + random.below((good.len() - content) as u64) as usize;
                        bad[place] ^= 1 << random.below(8);
                    }
                }
            }
            last = Some(good.clone());
            // Bytes behind the packet are padding of the link.
            let differs = bad != good && !bad.starts_with(&good);
            cluster.wire().push_back((to, bad));
            cluster.settle();
            let passed = cluster.inbox(pod(1, 1)).len();
            assert_eq!(passed, usize::from(!differs), "seed {seed}");
            if differs {
                cluster.wire().push_back((to, good));
                cluster.settle();
                assert_eq!(cluster.inbox(pod(1, 1)).len(), 1, "seed {seed}: the good one passes still");
            }
        }
        let report = cluster.tunnels(1);
        assert!(report.peers.iter().any(|peer| peer.live && peer.v6 == v6));
    }
}

#[test]
fn a_peer_speaks_for_its_own_addresses_only() {
    let mut cluster = encrypted(1, (3, 1), NONE);
    // Node 1 believes that node 0 has other pods than it has.
    let mut receiver = plan_with(&cluster, 1, 2, 2, &[0], &[0]);
    for family in receiver.v4.iter_mut().chain(receiver.v6.iter_mut()) {
        family.peers[0].allowed = vec!["10.9.0.0/24".parse().expect("written right here")];
    }
    cluster.encrypt(1, &receiver);
    for v6 in [false, true] {
        assert!(call(&mut cluster, pod(0, 0), pod(1, 0), v6, MARKER).is_empty());
    }
    assert_drops(&cluster, &[(DropReason::TunnelNotAllowed, 2)]);
}

#[test]
fn a_flood_of_handshakes_is_answered_with_cookies_and_sessions_go_on() {
    for shape in SHAPES {
        let mut cluster = encrypted(3, shape, NONE);
        assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 1), false, MARKER).len(), 1);
        // Knows the public key of node 1, as everybody may, and is nobody's peer.
        let victim = plan(&cluster, 0).v4.expect("of IPv4");
        let mut own = victim.own.clone();
        own.keys = vec![key(9, 9)];
        let family = Arc::new(Family::new(&margay_core::tunnel::plan::FamilyPlan { own, ..victim }, None));
        let mut stranger = Tunnels::new(&family, &Spread::default(), WorkerIndex(0));
        let mut room = [0; 200];
        let len = stranger.begin(number(1), &mut room).expect("an initiation");
        let macs = (margay_wire::MacAddr([2, 9, 9, 9, 9, 9]), node_mac(1));
        let (from, to): (IpAddr, IpAddr) = ([192, 168, 0, 77].into(), cluster.node_address(1, false));
        let flood = build::udp(macs, (from, 9999), (to, 51820), &room[..len]);
        let before = sum(&cluster, 1, shape.0, |c| c.answered);
        for round in 0..1_000 {
            cluster.wire().push_back((1, flood.clone()));
            if round % 50 == 0 {
                cluster.settle();
                assert_eq!(
                    call(&mut cluster, pod(0, 0), pod(1, 1), false, MARKER).len(),
                    1,
                    "{shape:?} {round}"
                );
            }
        }
        // Cookies go back to where the initiations came from, which is no node.
        cluster.settle();
        let cookies = sum(&cluster, 1, shape.0, |c| c.answered) - before;
        let refused = drops(&cluster, 1, shape.0, DropReason::TunnelUnknownPeer);
        assert!(
            cookies >= 790 && refused >= 100 && cookies + refused == 1_000,
            "{cookies} cookies, {refused} refused"
        );
        assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 1), false, MARKER).len(), 1);
    }
}

/// Ethernet address of a node's uplink.
fn node_mac(node: u8) -> margay_wire::MacAddr {
    margay_wire::MacAddr([2, 1, 0, node, 0, 0])
}

#[test]
fn pm_25_10_wireguard_of_strangers_is_left_to_the_kernel() {
    for shape in SHAPES {
        let mut cluster = encrypted(3, shape, NONE);
        let macs = (margay_wire::MacAddr([2, 9, 9, 9, 9, 9]), node_mac(1));
        let to = cluster.node_address(1, false);
        let mut data = [0; 64];
        (data[0], data[5]) = (4, 0x77);
        let initiation: Vec<u8> = [1, 0, 0, 0].into_iter().chain(std::iter::repeat_n(7, 144)).collect();
        for content in [&data[..], &initiation, b"hello"] {
            let frame = build::udp(macs, ([192, 168, 0, 77].into(), 51820), (to, 51820), content);
            cluster.wire().push_back((1, frame));
            cluster.settle();
            let arrived = cluster.host_inbox(1);
            assert!(arrived.len() == 1 && arrived[0].ends_with(content), "{shape:?}");
        }
        assert!(cluster.flows(1).is_empty(), "nothing remembers them");
        // The same from where a peer is ends by name.
        for (content, reason) in [
            (&data[..], DropReason::TunnelUnknownPeer),
            (&initiation[..], DropReason::TunnelForged),
            (b"hello", DropReason::TunnelMalformed),
        ] {
            let frame = build::udp(
                (node_mac(0), node_mac(1)),
                (cluster.node_address(0, false), 51820),
                (to, 51820),
                content,
            );
            cluster.wire().push_back((1, frame));
            cluster.settle();
            assert!(cluster.host_inbox(1).is_empty());
            assert_eq!(cluster.dropped(reason), 1, "{}", reason.as_str());
        }
        // WireGuard between others, pods among them, is traffic like any.
        let through = udp(&cluster, pod(0, 0), pod(0, 1).address(false), (51820, 51820), &data);
        cluster.send(pod(0, 0), &through);
        assert_eq!(cluster.inbox(pod(0, 1)).len(), 1);
    }
}

#[test]
fn datagrams_in_fragments_end_by_name() {
    let mut cluster = encrypted(3, (2, 2), NONE);
    let frame = build::udp(
        (node_mac(0), node_mac(1)),
        (cluster.node_address(0, false), 51820),
        (cluster.node_address(1, false), 51820),
        &[4; 160],
    );
    let first = build::fragment(&frame, 5, (0, 80), true);
    cluster.wire().push_back((1, first));
    cluster.settle();
    assert_drops(&cluster, &[(DropReason::TunnelFragment, 1)]);
}

#[test]
fn a_new_plan_takes_sessions_over_and_an_empty_one_ends_them() {
    for shape in SHAPES {
        let mut cluster = encrypted(3, shape, NONE);
        assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 1), false, MARKER).len(), 1);
        let messages = sum(&cluster, 1, shape.0, |c| c.answered);
        for generation in 2..6 {
            for node in 0..2 {
                replan(&mut cluster, node, generation, &[0], &[0]);
            }
            assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 1), false, MARKER).len(), 1);
        }
        assert_eq!(sum(&cluster, 1, shape.0, |c| c.answered), messages, "no second handshake");
        for node in 0..2 {
            let nobody = EncryptionPlan { generation: 9, ..EncryptionPlan::default() };
            cluster.encrypt(node, &nobody);
        }
        let frame = udp(&cluster, pod(0, 0), pod(1, 1).address(false), (1000, 2000), MARKER);
        cluster.send(pod(0, 0), &frame);
        assert!(cluster.wire().iter().all(|(_, frame)| frame.ends_with(MARKER)), "in clear again");
        cluster.settle();
        assert_eq!(cluster.inbox(pod(1, 1)).len(), 1);
        cluster.advance(Nanos::from_secs(1));
        assert!(cluster.tunnels(0).peers.is_empty());
    }
}
