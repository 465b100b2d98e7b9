//! WireGuard in the packet path (policy model 25 and 32.1 to 32.3): nodes back to back in memory, of one worker and of several.

mod support;

use std::collections::BTreeSet;

use margay_core::{DropReason, Nanos};
use margay_sim::{Cluster, Random, WireFaults};
use margay_wire::{Fragment, Transport, build, checksum};
use support::encrypted::*;
use support::seeds;

const NONE: WireFaults = WireFaults { lost: 0, repeated: 0, reordered: 0 };

#[test]
fn pm_25_6_pods_of_two_nodes_talk_and_the_wire_shows_nothing() {
    for shape in SHAPES {
        for v6 in [false, true] {
            let mut cluster = encrypted(7, shape, NONE);
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
    let mut cluster = encrypted(1, (1, 1), NONE);
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
    let mut cluster = clear(3, (2, 1), NONE);
    let frame = udp(&cluster, pod(0, 0), pod(1, 0).address(false), (1, 2), MARKER);
    cluster.send(pod(0, 0), &frame);
    assert!(cluster.wire().iter().all(|(_, frame)| frame.ends_with(MARKER)));
    cluster.settle();
    assert_eq!(cluster.inbox(pod(1, 0)).len(), 1);
    assert!(cluster.flows(0).iter().all(|flow| flow.encrypted == (false, false)));
}

#[test]
fn packets_wait_for_the_first_handshake_in_order() {
    for shape in SHAPES {
        let mut cluster = encrypted(2, shape, NONE);
        for number in 0..20u8 {
            let frame = udp(&cluster, pod(0, 1), pod(1, 2).address(true), (5, 6), &[number; 40]);
            cluster.send(pod(0, 1), &frame);
        }
        assert_eq!(cluster.wire().len(), 1, "one beginning of a handshake, and nothing else");
        assert_eq!(sum(&cluster, 0, shape.0, |c| c.held), 20);
        cluster.settle();
        let arrived: Vec<u8> =
            cluster.inbox(pod(1, 2)).iter().map(|frame| *frame.last().expect("not empty")).collect();
        assert_eq!(arrived, (0..20).collect::<Vec<u8>>(), "{shape:?}");
        assert_drops(&cluster, &[]);
    }
}

#[test]
fn what_waits_in_vain_ends_by_name_and_its_number_is_bounded() {
    let mut cluster = encrypted(2, (1, 1), NONE);
    for _ in 0..100 {
        let frame = udp(&cluster, pod(0, 0), pod(1, 0).address(false), (5, 6), b"x");
        cluster.send(pod(0, 0), &frame);
    }
    cluster.wire().clear();
    assert_eq!((sum(&cluster, 0, 1, |c| c.held), cluster.dropped(DropReason::TunnelWaiting)), (64, 36));
    cluster.advance(Nanos::from_secs(7));
    assert_eq!((sum(&cluster, 0, 1, |c| c.held), cluster.dropped(DropReason::TunnelWaiting)), (0, 100));
}

#[test]
fn pm_8_5_policy_is_judged_at_both_ends() {
    for shape in SHAPES {
        let mut cluster = encrypted(9, shape, NONE);
        assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 1), false, MARKER).len(), 1);
        // Pod 0 of node 0 is of app0, pod 1 of node 1 of another.
        cluster.apply(&deny((7 + 1) % 4, true));
        assert!(call(&mut cluster, pod(0, 0), pod(1, 1), false, MARKER).is_empty(), "{shape:?}");
        assert_eq!(
            drops(&cluster, 1, shape.0, DropReason::PolicyIngress),
            1,
            "at the receiver, sealed until there"
        );
        cluster.apply(&deny(0, false));
        let sealed = sum(&cluster, 0, shape.0, |c| c.sealed);
        assert!(call(&mut cluster, pod(0, 0), pod(1, 1), false, MARKER).is_empty());
        assert_eq!(drops(&cluster, 0, shape.0, DropReason::PolicyEgress), 1);
        assert_eq!(sum(&cluster, 0, shape.0, |c| c.sealed), sealed, "never sealed");
    }
}

#[test]
fn pm_25_1_senders_learn_the_size_that_fits_inside() {
    for shape in [(1, 1), (3, 2)] {
        for (v6, mtu) in [(false, 1440), (true, 1420)] {
            let mut cluster = encrypted(4, shape, NONE);
            let headers_len = if v6 { 48 } else { 28 };
            let fits = vec![7; mtu - headers_len];
            assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 0), v6, &fits).len(), 1);
            let over = vec![7; mtu - headers_len + 1];
            let arrived = call(&mut cluster, pod(0, 0), pod(1, 0), v6, &over);
            // Over IPv4 it said that it must not be cut.
            assert_eq!(arrived.len(), if v6 { 2 } else { 0 });
            let told = cluster.inbox(pod(0, 0));
            let error = headers(&told[0]);
            let at = usize::from(error.transport_offset);
            let size = if v6 {
                u32::from_be_bytes(told[0][at + 4..at + 8].try_into().expect("four bytes"))
            } else {
                u16::from_be_bytes(told[0][at + 6..at + 8].try_into().expect("two bytes")).into()
            };
            assert!(error.is_icmp_error());
            assert_eq!(size as usize, mtu, "v6 {v6}");
            let dropped = [(DropReason::PacketTooBig, 1)];
            assert_drops(&cluster, if v6 { &[] } else { &dropped });
        }
    }
}

#[test]
fn what_may_be_fragmented_is_before_it_is_sealed() {
    for (shape, v6) in SHAPES.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
        let mut cluster = encrypted(4, shape, NONE);
        for round in 1..4u64 {
            let mut frame = udp(&cluster, pod(0, 0), pod(1, 2).address(v6), (1000, 2000), &[3; 1460]);
            if !v6 {
                frame[20] = 0;
                frame[24..26].fill(0);
                let header = checksum::of(&frame[14..34]);
                frame[24..26].copy_from_slice(&header.to_be_bytes());
            }
            cluster.send(pod(0, 0), &frame);
            assert!(cluster.wire().iter().all(|(_, frame)| is_sealed(frame) && frame.len() <= 1514));
            cluster.settle();
            let arrived = cluster.inbox(pod(1, 2));
            assert_drops(&cluster, &[]);
            assert_eq!(arrived.len(), 2, "{shape:?}");
            let before = if v6 { 48 } else { 20 };
            let total: usize =
                arrived.iter().map(|frame| usize::from(headers(frame).total_len) - before).sum();
            assert_eq!(total, 1468);
            assert!(arrived.iter().all(|frame| headers(frame).fragment != Fragment::None));
            assert_eq!(sum(&cluster, 0, shape.0, |c| c.made), 2 * round);
            assert_eq!(cluster.inbox(pod(0, 0)).len(), usize::from(v6), "word of the size");
        }
        assert_drops(&cluster, &[]);
    }
}

#[test]
fn fragments_of_pods_pass_like_any_packet() {
    for shape in SHAPES {
        let mut cluster = encrypted(4, shape, NONE);
        for v6 in [false, true] {
            let whole = udp(&cluster, pod(0, 0), pod(1, 2).address(v6), (1000, 2000), &[3; 1992]);
            for (part, more) in [((0, 1000), true), ((1000, 2000), false)] {
                cluster.send(pod(0, 0), &build::fragment(&whole, 77, part, more));
            }
            cluster.settle();
            assert_eq!(cluster.inbox(pod(1, 2)).len(), 2, "{shape:?} v6 {v6}");
        }
        assert_drops(&cluster, &[]);
    }
}

#[test]
fn errors_about_sealed_packets_come_back_sealed() {
    for shape in SHAPES {
        for v6 in [false, true] {
            let mut cluster = encrypted(5, shape, NONE);
            assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 1), v6, MARKER).len(), 1);
            let (from, to) = (pod(0, 0).address(v6), pod(1, 1).address(v6));
            // It lives as far as the other node.
            let mut dying = udp(&cluster, pod(0, 0), to, (1000, 2000), MARKER);
            if v6 {
                dying[21] = 2;
            } else {
                dying[22] = 2;
                dying[24..26].fill(0);
                let header = checksum::of(&dying[14..34]);
                dying[24..26].copy_from_slice(&header.to_be_bytes());
            }
            cluster.send(pod(0, 0), &dying);
            let (to_other, datagram) = cluster.wire().pop_front().expect("on its way");
            cluster.wire().push_back((to_other, datagram));
            cluster.settle();
            assert_eq!(cluster.dropped(DropReason::TtlExpired), 1);
            let told = cluster.inbox(pod(0, 0));
            assert_eq!(told.len(), 1, "{shape:?} v6 {v6}");
            assert!(headers(&told[0]).is_icmp_error() && headers(&told[0]).destination == from);
            assert_eq!(sum(&cluster, 1, shape.0, |c| c.sealed), 1, "it quotes what was sealed");
            // The pod itself complains: nobody listens there.
            let called = udp(&cluster, pod(0, 0), to, (1000, 2000), MARKER);
            let quote = &called[14..];
            let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
            let body = [&[0; 4], quote].concat();
            let complaint = build::icmp(cluster.macs(pod(1, 1)), to, from, kind, code, &body, 64);
            cluster.send(pod(1, 1), &complaint);
            cluster.settle();
            let told = cluster.inbox(pod(0, 0));
            assert_eq!(told.len(), 1, "{shape:?} v6 {v6}");
            assert!(matches!(headers(&told[0]).transport, Transport::Icmp { kind: it, .. } if it == kind));
        }
    }
}

#[test]
fn pm_25_6_the_host_and_pods_of_other_nodes() {
    for shape in SHAPES {
        for v6 in [false, true] {
            let mut cluster = clear(6, shape, NONE);
            for node in 0..2 {
                // With host encryption: nodes speak for their own addresses too.
                let mut plan = plan(&cluster, node);
                for family in plan.v4.iter_mut().chain(plan.v6.iter_mut()) {
                    for peer in &mut family.peers {
                        peer.allowed.push(peer.endpoint.ip().into());
                    }
                }
                cluster.encrypt(node, &plan);
            }
            let (host, to) = (cluster.node_address(0, v6), pod(1, 1).address(v6));
            let request = build::udp(cluster.host_macs(0), (host, 4000), (to, 53), MARKER);
            cluster.send_from_host(0, &request);
            assert!(cluster.wire().iter().all(|(_, frame)| is_sealed(frame)), "{shape:?}");
            cluster.settle();
            assert_eq!(cluster.inbox(pod(1, 1)).len(), 1, "{shape:?} v6 {v6}");
            let answer = udp(&cluster, pod(1, 1), host, (53, 4000), MARKER);
            cluster.send(pod(1, 1), &answer);
            assert!(cluster.wire().iter().all(|(_, frame)| is_sealed(frame)));
            cluster.settle();
            let arrived = cluster.host_inbox(0);
            assert!(arrived.len() == 1 && arrived[0].ends_with(MARKER), "{shape:?} v6 {v6}");
        }
    }
}

#[test]
fn pm_32_3_keys_follow_each_other_under_traffic_without_loss() {
    for shape in SHAPES {
        let mut cluster = encrypted(8, shape, NONE);
        let (mut sent, mut arrived) = (0, 0);
        let mut talk = |cluster: &mut Cluster| {
            for (from, to, v6) in [(pod(0, 0), pod(1, 1), false), (pod(1, 1), pod(0, 0), true)] {
                for _ in 0..5 {
                    let frame = udp(cluster, from, to.address(v6), (1000, 2000), MARKER);
                    cluster.send(from, &frame);
                    sent += 1;
                }
            }
            // What is still on the wire was sealed before.
            cluster.advance(Nanos::from_millis(200));
            cluster.settle();
            arrived += cluster.inbox(pod(0, 0)).len() + cluster.inbox(pod(1, 1)).len();
            assert!(cluster.wire().iter().all(|(_, frame)| is_sealed(frame)));
        };
        talk(&mut cluster);
        // Node 0 makes another key, and begins handshakes with it; node 1 learns it later, and takes both; then the old one ends.
        replan(&mut cluster, 0, 2, &[1, 0], &[0]);
        talk(&mut cluster);
        let users = |cluster: &Cluster, nth: u8| {
            let report = cluster.tunnels(0);
            let of = report.own.iter().filter(|own| own.key == key(0, nth).public());
            of.map(|own| own.users).sum::<usize>()
        };
        assert!(users(&cluster, 0) == 2 && users(&cluster, 1) == 0, "{:?}", cluster.tunnels(0).own);
        let mut theirs = plan_with(&cluster, 1, 2, 2, &[0], &[1, 0]);
        cluster.encrypt(1, &theirs);
        for _ in 0..4 {
            talk(&mut cluster);
        }
        assert_eq!(users(&cluster, 1), 2, "{:?}", cluster.tunnels(0).own);
        cluster.advance(Nanos::from_secs(170));
        talk(&mut cluster);
        cluster.advance(Nanos::from_secs(20));
        assert_eq!(users(&cluster, 0), 0, "nobody uses the old one any more");
        talk(&mut cluster);
        replan(&mut cluster, 0, 3, &[1], &[0]);
        talk(&mut cluster);
        theirs = plan_with(&cluster, 1, 2, 3, &[0], &[1]);
        cluster.encrypt(1, &theirs);
        talk(&mut cluster);
        assert_eq!((sent, arrived), (100, 100), "{shape:?}");
        let report = cluster.tunnels(1);
        assert!(report.generation == 3 && report.peers.iter().all(|peer| peer.live && peer.keys.len() == 1));
    }
}

#[test]
fn a_peer_that_moves_is_followed() {
    for shape in SHAPES {
        let mut cluster = encrypted(5, shape, NONE);
        assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 1), false, MARKER).len(), 1);
        let frame = udp(&cluster, pod(0, 0), pod(1, 1).address(false), (1000, 2000), MARKER);
        cluster.send(pod(0, 0), &frame);
        // A translator on the way gives it another port.
        let (_, datagram) = cluster.wire().front_mut().expect("on its way");
        datagram[34..36].copy_from_slice(&4444u16.to_be_bytes());
        cluster.settle();
        assert_eq!(cluster.inbox(pod(1, 1)).len(), 1);
        let answer = udp(&cluster, pod(1, 1), pod(0, 0).address(false), (2000, 1000), MARKER);
        cluster.send(pod(1, 1), &answer);
        let (_, datagram) = cluster.wire().front().expect("on its way back");
        assert_eq!(headers(datagram).ports(), Some((51820, 4444)), "{shape:?}");
        let report = cluster.tunnels(1);
        assert!(report.peers.iter().any(|peer| peer.endpoint.port() == 4444));
    }
}

#[test]
fn congestion_marks_cross_the_tunnel() {
    let mut cluster = encrypted(5, (2, 1), NONE);
    assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 1), true, MARKER).len(), 1);
    for (inner, outer, arrives) in [(2u8, 2u8, Some(2u8)), (2, 3, Some(3)), (0, 3, None), (0, 0, Some(0))] {
        let mut frame = udp(&cluster, pod(0, 0), pod(1, 1).address(true), (1000, 2000), MARKER);
        frame[15] = inner << 4;
        cluster.send(pod(0, 0), &frame);
        let (_, datagram) = cluster.wire().front_mut().expect("on its way");
        assert_eq!(datagram[15] >> 4, inner);
        datagram[15] = outer << 4;
        cluster.settle();
        let arrived = cluster.inbox(pod(1, 1));
        assert_eq!(arrived.first().map(|frame| frame[15] >> 4), arrives);
    }
    assert_eq!(cluster.dropped(DropReason::TunnelCongested), 1);
}

/// The same life in two clusters, one of which is watched and so never takes the short way.
#[test]
fn the_short_way_through_the_tunnel_does_what_the_long_one_does() {
    for seed in seeds(12) {
        let shape = SHAPES[seed as usize % SHAPES.len()];
        let mut twins = [encrypted(seed, shape, NONE), encrypted(seed, shape, NONE)];
        twins[1].watch_all();
        let mut random = Random::new(seed);
        for step in 0..120 {
            let from = pod(random.below(2) as usize, random.below(3) as usize);
            let to = pod(random.below(2) as usize, random.below(3) as usize);
            if from == to {
                continue;
            }
            let (v6, len) = (random.below(2) == 0, random.below(1450) as usize);
            let ports = (1000 + random.below(2) as u16, 2000 + random.below(2) as u16);
            let kind = random.below(20);
            let [one, other] = &mut twins;
            let mut frame = udp(one, from, to.address(v6), ports, &vec![step; len]);
            if kind == 0 && v6 {
                frame[21] = random.below(4) as u8;
            } else if kind == 1 {
                let place = random.below(frame.len() as u64) as usize;
                frame[place] ^= 1 << random.below(8);
            }
            let mut arrived = [Vec::new(), Vec::new()];
            for (cluster, arrived) in [one, other].into_iter().zip(&mut arrived) {
                cluster.send(from, &frame);
                cluster.settle();
                arrived.extend(cluster.pods().into_iter().map(|pod| cluster.inbox(pod)));
            }
            assert_eq!(arrived[0], arrived[1], "seed {seed} step {step}");
            let counters = |cluster: &Cluster| -> Vec<_> {
                let each =
                    (0..2).flat_map(|node| (0..shape.0).map(move |worker| (node, usize::from(worker))));
                each.map(|(node, worker)| {
                    let c = cluster.counters(node, worker);
                    let all = (c.received, c.forwarded, c.sealed, c.opened, c.flow_misses, c.drops);
                    (all, c.handed_over, c.taken)
                })
                .collect()
            };
            assert_eq!(counters(&twins[0]), counters(&twins[1]), "seed {seed} step {step}");
            // What is watched is looked up by the worker that it was given to as well.
            for (node, worker) in (0..2).flat_map(|node| (0..shape.0).map(move |worker| (node, worker))) {
                let [unseen, watched] =
                    [0, 1].map(|twin: usize| twins[twin].counters(node, usize::from(worker)));
                let more = watched.flow_hits - unseen.flow_hits;
                assert!(more <= unseen.taken, "seed {seed} step {step}: {unseen:?} {watched:?}");
            }
        }
    }
}

#[test]
fn a_wire_that_loses_repeats_and_reorders_passes_nothing_twice() {
    for seed in seeds(8) {
        let shape = SHAPES[seed as usize % SHAPES.len()];
        let mut cluster = encrypted(seed, shape, NONE);
        assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 1), false, MARKER).len(), 1);
        let mut random = Random::new(seed);
        let mut arrived = Vec::new();
        let mut settle = |cluster: &mut Cluster| {
            arrived.extend(cluster.wire().iter().map(|(_, datagram)| datagram.clone()));
            cluster.settle();
        };
        for number in 0..300u16 {
            let frame =
                udp(&cluster, pod(0, 0), pod(1, 1).address(false), (1000, 2000), &number.to_be_bytes());
            cluster.send(pod(0, 0), &frame);
            let (to, datagram) = cluster.wire().pop_front().expect("on its way");
            for _ in 0..random.below(3) {
                let place = random.below(cluster.wire().len() as u64 + 1) as usize;
                cluster.wire().insert(place, (to, datagram.clone()));
            }
            if random.below(4) == 0 {
                settle(&mut cluster);
            }
        }
        settle(&mut cluster);
        let once: BTreeSet<_> = arrived.iter().collect();
        let mut seen = BTreeSet::new();
        for frame in cluster.inbox(pod(1, 1)) {
            assert!(seen.insert(frame[frame.len() - 2..].to_vec()), "seed {seed}: twice");
        }
        let replayed = cluster.dropped(DropReason::TunnelReplayed);
        assert_eq!((seen.len(), replayed as usize), (once.len(), arrived.len() - once.len()), "seed {seed}");
        assert!(!seen.is_empty() && replayed > 0, "seed {seed}");
    }
}

#[test]
fn a_worker_that_begins_anew_makes_its_sessions_anew() {
    for shape in SHAPES {
        let mut cluster = encrypted(3, shape, NONE);
        assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 1), false, MARKER).len(), 1);
        for worker in 0..shape.0 {
            cluster.restart(1, worker.into());
        }
        // Node 0 does not know, and its session is good to nobody.
        cluster.advance(Nanos::from_millis(200));
        cluster.settle();
        assert_eq!(call(&mut cluster, pod(0, 0), pod(1, 1), false, MARKER).len(), 1, "{shape:?}");
        assert_eq!(call(&mut cluster, pod(1, 1), pod(0, 0), false, MARKER).len(), 1, "{shape:?}");
    }
}
