//! Fragments in any order, over both families (policy model 14.5, PM-D12; RFC 1858, 5722, 6946, 8200).

mod node;

use std::collections::BTreeMap;

use margay_core::{DropReason, Nanos, PortIndex};
use margay_policy_engine::model::Action;
use margay_wire::parse::Packet;
use margay_wire::{Fragment, IpHeaders, build, parse, protocol};
use node::{HOST, Node, POD_A, POD_B, UPLINK, ip, policy, rule};
use proptest::prelude::*;

const ALLOWED: u16 = 53;
const FAMILIES: [(&str, &str); 2] = [("10.0.1.2", "10.0.1.3"), ("fd00:1::2", "fd00:1::3")];

fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

/// A datagram of `len` bytes behind the IP header, different in every byte that a test looks at.
fn datagram(from: &str, to: &str, port: u16, len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len - 8).map(|at| (at / 8 * 7 + at % 8 * 31) as u8).collect();
    build::udp(Node::macs(POD_A), (ip(from), 1111), (ip(to), port), &payload)
}

/// The fragments of `whole` cut at `cuts`, in order.
fn cut(whole: &[u8], id: u32, cuts: &[usize]) -> Vec<Vec<u8>> {
    let len = headers(whole).total_len as usize - if headers(whole).source.is_ipv4() { 20 } else { 40 };
    let bounds: Vec<usize> = [&[0], cuts, &[len]].concat();
    bounds.windows(2).map(|pair| build::fragment(whole, id, (pair[0], pair[1]), pair[1] < len)).collect()
}

/// Start and end of a fragment's bytes, and the bytes.
fn content(frame: &[u8]) -> (usize, usize, Vec<u8>) {
    let ip = headers(frame);
    let (start, end) = match ip.fragment {
        Fragment::First { end, .. } => (0, end),
        Fragment::Later { start, end, .. } => (start, end),
        Fragment::None => panic!("not a fragment"),
    };
    let len = usize::from(end - start);
    (start.into(), end.into(), frame[ip.end() - len..ip.end()].to_vec())
}

/// Puts together what a receiver gets of one datagram: literally, and only if it is all there, once.
fn reassembled(frames: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut parts: Vec<_> = frames.iter().map(|frame| content(frame)).collect();
    parts.sort();
    let mut whole = Vec::new();
    for (start, _, bytes) in parts {
        if start != whole.len() {
            return None;
        }
        whole.extend(bytes);
    }
    let is_last = |frame: &Vec<u8>| matches!(headers(frame).fragment, Fragment::Later { more: false, .. });
    frames.iter().any(is_last).then_some(whole)
}

/// Only UDP to [`ALLOWED`] may leave pod a; the rest is denied by rule.
fn guarded() -> Node {
    let mut node = Node::new();
    let mut allow = rule(Action::Allow, Some(protocol::UDP));
    allow.destination.ports =
        vec![margay_policy_engine::model::PortMatch::Range { first: ALLOWED, last: ALLOWED }];
    node.apply(policy("dns-only", "a", None, Some(vec![allow])));
    node
}

fn sent(node: &mut Node, port: PortIndex, frame: &[u8]) -> Vec<Vec<u8>> {
    node.send(port, frame).unwrap_or_default().into_iter().map(|(_, frame)| frame).collect()
}

#[test]
fn pm_14_5_fragments_pass_in_every_order_and_the_first_goes_first() {
    for (from, to) in FAMILIES {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut node = guarded();
            let whole = datagram(from, to, ALLOWED, 4000);
            let parts = cut(&whole, 7, &[1440, 2880]);
            let mut out = Vec::new();
            for at in order {
                out.extend(sent(&mut node, POD_A, &parts[at]));
            }
            assert!(matches!(headers(&out[0]).fragment, Fragment::First { .. }), "{order:?}");
            assert!(out.iter().all(|frame| headers(frame).ttl == 63), "each is routed");
            let body = whole.len() - 4000;
            assert_eq!(reassembled(&out).as_deref(), Some(&whole[body..]), "{order:?}, {from}");
            assert_eq!(node.worker.counters().held, 0);
        }
    }
}

#[test]
fn pm_14_5_a_refused_first_takes_the_others_with_it_by_its_own_name() {
    for (from, to) in FAMILIES {
        let mut node = guarded();
        let parts = cut(&datagram(from, to, 80, 4000), 7, &[1440, 2880]);
        assert_eq!(node.send(POD_A, &parts[2]), Ok(vec![]), "waits");
        assert_eq!(node.worker.counters().held, 1);
        assert_eq!(node.send(POD_A, &parts[0]), Err(DropReason::PolicyEgress));
        assert_eq!(node.worker.counters().held, 0, "what waited ended with it");
        assert_eq!(node.send(POD_A, &parts[1]), Err(DropReason::PolicyEgress));
        assert_eq!(node.worker.counters().dropped(DropReason::PolicyEgress), 3);
    }
}

#[test]
fn pm_14_5_what_waits_in_vain_ends_after_thirty_seconds() {
    let mut node = guarded();
    let parts = cut(&datagram("10.0.1.2", "10.0.1.3", ALLOWED, 4000), 7, &[1440, 2880]);
    node.send(POD_A, &parts[1]).expect("waits");
    node.send(POD_A, &parts[2]).expect("waits");
    assert!(node.tick(Nanos::from_millis(29_900)).is_empty());
    assert_eq!(node.worker.counters().held, 2);
    assert!(node.tick(Nanos::from_millis(200)).is_empty());
    let counters = node.worker.counters();
    assert_eq!((counters.held, counters.dropped(DropReason::FragmentWithoutFirst)), (0, 2));
    assert_eq!(node.frames_out(), 0, "the frames are free again");
    // The first that comes now begins anew.
    assert_eq!(sent(&mut node, POD_A, &parts[0]).len(), 1);
}

#[test]
fn pm_d12_an_overlap_ends_the_datagram_and_its_name_stays_poisoned() {
    for (from, to) in FAMILIES {
        let mut node = guarded();
        let whole = datagram(from, to, ALLOWED, 4000);
        let other = datagram(from, to, 80, 4000);
        let part = |of: &[u8], start, end, more| build::fragment(of, 9, (start, end), more);
        assert_eq!(sent(&mut node, POD_A, &part(&whole, 0, 1440, true)).len(), 1);
        assert_eq!(node.send(POD_A, &part(&other, 1432, 2880, true)), Err(DropReason::FragmentOverlap));
        for rest in
            [part(&whole, 1440, 2880, true), part(&whole, 2880, 4000, false), part(&whole, 0, 1440, true)]
        {
            assert_eq!(node.send(POD_A, &rest), Err(DropReason::FragmentOverlap), "{from}");
        }
        // Another first for the same bytes is an overlap too, whatever rules say about it.
        let mut node = guarded();
        node.send(POD_A, &part(&whole, 0, 16, true)).expect("passes");
        assert_eq!(node.send(POD_A, &part(&other, 0, 24, true)), Err(DropReason::FragmentOverlap));
        // What waits ends at once; after the time is over the identification is good again.
        let mut node = guarded();
        node.send(POD_A, &part(&whole, 1440, 2880, true)).expect("waits");
        assert_eq!(node.send(POD_A, &part(&whole, 1448, 2888, true)), Err(DropReason::FragmentOverlap));
        assert_eq!(node.worker.counters().held, 0);
        node.tick(Nanos::from_secs(29));
        assert_eq!(node.send(POD_A, &part(&whole, 0, 1440, true)), Err(DropReason::FragmentOverlap));
        node.tick(Nanos::from_secs(2));
        assert_eq!(sent(&mut node, POD_A, &part(&whole, 0, 1440, true)).len(), 1);
    }
}

#[test]
fn rfc_8200_an_exact_duplicate_is_dropped_alone() {
    for (from, to) in FAMILIES {
        let mut node = guarded();
        let whole = datagram(from, to, ALLOWED, 4000);
        let parts = cut(&whole, 7, &[1440, 2880]);
        let mut out = Vec::new();
        for at in [1, 1, 0, 0, 1, 2] {
            out.extend(sent(&mut node, POD_A, &parts[at]));
        }
        assert!(reassembled(&out).is_some(), "{from}");
        assert_eq!(node.worker.counters().dropped(DropReason::FragmentDuplicate), 3);
    }
}

#[test]
fn a_later_fragment_never_names_ports_for_rules() {
    // RFC 1858: the second fragment would overwrite the port that the first was judged by.
    let mut node = guarded();
    let good = datagram("10.0.1.2", "10.0.1.3", ALLOWED, 4000);
    let parts = cut(&good, 3, &[8]);
    assert_eq!(sent(&mut node, POD_A, &parts[0]).len(), 1, "eight bytes are the whole UDP header");
    let tcp = build::tcp(Node::macs(POD_A), (ip("10.0.1.2"), 1), (ip("10.0.1.3"), 2), 2, &[0; 100]);
    for (start, end) in [(0, 8), (0, 16), (8, 24), (16, 32)] {
        let part = build::fragment(&tcp, 4, (start, end), true);
        assert_eq!(node.send(POD_A, &part), Err(DropReason::BadFragment), "{start}..{end}");
    }
}

#[test]
fn rfc_6946_an_atomic_fragment_is_a_whole_packet() {
    let mut node = guarded();
    let whole = datagram("fd00:1::2", "fd00:1::3", ALLOWED, 400);
    let waiting = build::fragment(&whole, 5, (200, 400), false);
    node.send(POD_A, &waiting).expect("waits");
    let atomic = build::fragment(&whole, 5, (0, 400), false);
    assert_eq!(
        sent(&mut node, POD_A, &atomic).len(),
        1,
        "it belongs to no datagram, whatever its identification"
    );
    assert_eq!(node.worker.counters().held, 1);
    let refused = build::fragment(&datagram("fd00:1::2", "fd00:1::3", 80, 400), 5, (0, 400), false);
    assert_eq!(node.send(POD_A, &refused), Err(DropReason::PolicyEgress), "and is judged like any other");
}

#[test]
fn rfc_8200_the_fragments_of_one_ipv6_datagram_may_name_different_headers() {
    let mut node = guarded();
    let whole = datagram("fd00:1::2", "fd00:1::3", ALLOWED, 2400);
    let mut parts = cut(&whole, 5, &[1440]);
    parts[1][54] = 60;
    let out: Vec<_> = parts.iter().rev().flat_map(|part| sent(&mut node, POD_A, part)).collect();
    assert_eq!(out.len(), 2);
}

#[test]
fn fragments_for_the_gateway_and_of_errors_end_by_name() {
    let mut node = Node::new();
    let ping = build::echo(Node::macs(POD_A), ip("10.0.1.2"), ip("169.254.1.1"), 1, true, &[0; 2000]);
    for part in cut(&ping, 5, &[1440]) {
        assert_eq!(node.send(POD_A, &part), Err(DropReason::FragmentForGateway));
    }
    let quoted = datagram("10.0.1.3", "10.0.1.2", ALLOWED, 1000);
    let body = [&[0; 4], &quoted[14..]].concat();
    let error = build::icmp(Node::macs(POD_A), ip("10.0.1.2"), ip("10.0.1.3"), 3, 3, &body, 64);
    assert_eq!(node.send(POD_A, &build::fragment(&error, 5, (0, 800), true)), Err(DropReason::BadFragment));
}

#[test]
fn a_first_that_is_too_big_or_has_nowhere_to_go_takes_the_others_with_it() {
    let mut node = Node::new();
    // The uplink's MTU is 1,400, and IPv6 is not fragmented by routers.
    let whole = datagram("fd00:1::2", "fd00:2::9", ALLOWED, 3000);
    let parts = cut(&whole, 5, &[1440]);
    let answer = node.send(POD_A, &parts[0]).expect("an answer");
    assert_eq!((answer.len(), answer[0].0), (1, POD_A), "the sender learns the size");
    assert_eq!(node.worker.counters().dropped(DropReason::PacketTooBig), 1);
    assert_eq!(
        node.send(POD_A, &parts[1]),
        Err(DropReason::PacketTooBig),
        "and not once more for each fragment"
    );
}

#[test]
fn pm_d12_each_port_has_a_budget() {
    let mut node = guarded();
    let whole = datagram("10.0.1.2", "10.0.1.3", ALLOWED, 2000);
    // Pod a floods with fragments that have no first. Its own oldest pay.
    for id in 0..5000u32 {
        let part = build::fragment(&whole, id, (1000, 2000), false);
        node.send(POD_A, &part).ok();
        assert!(node.worker.counters().held <= 64);
    }
    assert_eq!(node.worker.counters().dropped(DropReason::FragmentsFull), 5000 - 64);
    // Pod b's fragments still wait for their first and pass with it.
    let other = build::udp(Node::macs(POD_B), (ip("10.0.1.3"), 5), (ip("10.0.2.9"), 6), &[3; 2000]);
    let parts = cut(&other, 77, &[1000]);
    node.send(POD_B, &parts[1]).expect("waits");
    assert_eq!(sent(&mut node, POD_B, &parts[0]).len(), 2);
    // The newest of pod a's too.
    let first = build::fragment(&whole, 4999, (0, 1000), true);
    assert_eq!(sent(&mut node, POD_A, &first).len(), 2);
    node.tick(Nanos::from_secs(31));
    assert_eq!(node.worker.counters().held, 0);
}

#[test]
fn pm_d12_poison_outlives_a_flood_of_the_same_port() {
    let mut node = guarded();
    let whole = datagram("10.0.1.2", "10.0.1.3", ALLOWED, 2000);
    let part = |id, start, end, more| build::fragment(&whole, id, (start, end), more);
    node.send(POD_A, &part(9999, 0, 1000, true)).expect("passes");
    assert_eq!(node.send(POD_A, &part(9999, 992, 2000, false)), Err(DropReason::FragmentOverlap));
    for id in 0..1000 {
        assert_eq!(sent(&mut node, POD_A, &part(id, 0, 1000, true)).len(), 1, "the oldest gives way");
    }
    assert_eq!(node.send(POD_A, &part(9999, 1000, 2000, false)), Err(DropReason::FragmentOverlap));
}

#[test]
fn a_full_table_is_paid_for_by_the_port_that_has_most() {
    let mut node = Node::new();
    let mut sources = Vec::new();
    for (port, from) in
        [(POD_A, "10.0.1.2"), (POD_B, "10.0.1.3"), (UPLINK, "10.0.2.9"), (HOST, "192.168.0.1")]
    {
        let to = if port == POD_A { "10.0.1.3" } else { "10.0.1.2" };
        let whole = build::udp(Node::macs(port), (ip(from), 1), (ip(to), 2), &[1; 100]);
        for id in 0..300 {
            node.send(port, &build::fragment(&whole, id, (0, 48), true)).expect("passes");
        }
        sources.push((port, whole));
    }
    // 4 × 256 fill it. A newcomer's place is found; everybody's newest live on.
    for (port, whole) in &sources {
        assert_eq!(
            sent(&mut node, *port, &build::fragment(whole, 299, (48, 108), false)).len(),
            1,
            "{port:?}"
        );
        assert_eq!(sent(&mut node, *port, &build::fragment(whole, 0, (48, 108), false)).len(), 0, "{port:?}");
    }
}

#[test]
fn what_waited_for_a_pod_is_not_released_by_its_successor() {
    let mut node = Node::new();
    let parts = cut(&datagram("10.0.1.2", "10.0.1.3", ALLOWED, 2000), 7, &[1000]);
    node.send(POD_A, &parts[1]).expect("waits");
    // Another pod gets port and address, with an Ethernet address of its own.
    let newcomer = node::mac(0x99);
    for port in &mut node.builder.ports {
        if port.index == POD_A
            && let margay_core::topology::PortKind::Pod { pod_mac, .. } = &mut port.kind
        {
            *pod_mac = newcomer;
        }
    }
    node.rebuild();
    let mut first = parts[0].clone();
    first[6..12].copy_from_slice(&newcomer.0);
    assert_eq!(sent(&mut node, POD_A, &first).len(), 1, "the new pod's own alone");
    assert_eq!(node.worker.counters().dropped(DropReason::BadEthernet), 1);
    assert_eq!(node.worker.counters().held, 0);
}

#[test]
fn fragments_wait_for_a_neighbour_like_any_packet() {
    let mut node = Node::new();
    node.builder.neighbours.clear();
    node.rebuild();
    let parts = cut(&datagram("10.0.1.2", "10.0.2.9", ALLOWED, 2000), 7, &[1000]);
    node.send(POD_A, &parts[1]).expect("waits for the first");
    node.send(POD_A, &parts[0]).expect("waits for the neighbour, and the other with it");
    assert_eq!(node.worker.counters().held, 2);
    node.builder.neighbours.push((UPLINK, ip("192.168.0.2"), node::peer_mac(UPLINK)));
    node.rebuild();
    let out: Vec<_> = node.tick(Nanos::from_millis(10)).into_iter().map(|(_, frame)| frame).collect();
    assert!(reassembled(&out).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(512)))]

    /// Two allowed flows and a refused one, each cut anywhere, all mixed, some parts twice: receivers get exactly what was allowed.
    #[test]
    fn any_fragmentation_in_any_order_arrives_whole_or_not_at_all(
        v6: bool,
        cuts in prop::collection::vec(prop::collection::btree_set(1usize..60, 0..6), 3),
        order in prop::collection::vec(any::<prop::sample::Index>(), 40),
    ) {
        let (from, to) = FAMILIES[usize::from(v6)];
        let mut node = guarded();
        let flows = [(ALLOWED, 1u32), (ALLOWED, 2), (80, 3)];
        let wholes: Vec<_> = flows.iter().map(|(port, id)| datagram(from, to, *port, 480 + *id as usize)).collect();
        let mut pool = Vec::new();
        for ((whole, (_, id)), cuts) in wholes.iter().zip(flows).zip(&cuts) {
            let cuts: Vec<usize> = cuts.iter().map(|cut| cut * 8).collect();
            // Uncut, it is no fragment.
            let cuts = if cuts.is_empty() { vec![240] } else { cuts };
            pool.extend(cut(whole, id, &cuts).into_iter().map(|part| (id, part)));
        }
        let mut sequence: Vec<usize> = (0..pool.len()).collect();
        for (at, index) in order.iter().enumerate() {
            let other = index.index(sequence.len());
            let at = at % sequence.len();
            sequence.swap(at, other);
        }
        let mut received: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
        for (nth, at) in sequence.iter().enumerate() {
            let (id, part) = &pool[*at];
            received.entry(*id).or_default().extend(sent(&mut node, POD_A, part));
            // Some come twice, while the datagram is not whole yet.
            if nth % 3 == 0 && !received[id].iter().any(|_| reassembled(&received[id]).is_some()) {
                prop_assert_eq!(sent(&mut node, POD_A, part).len(), 0);
            }
        }
        for ((whole, (port, id)), _) in wholes.iter().zip(flows).zip(0..) {
            let body = whole.len() - 480 - id as usize;
            let expected = (port == ALLOWED).then(|| whole[body..].to_vec());
            prop_assert_eq!(reassembled(&received[&id]), expected);
        }
        node.tick(Nanos::from_secs(31));
        let counters = node.worker.counters();
        prop_assert_eq!(counters.held, 0);
        prop_assert_eq!(counters.received, counters.endings());
        prop_assert_eq!(node.frames_out(), 0, "every frame came back");
    }
}
