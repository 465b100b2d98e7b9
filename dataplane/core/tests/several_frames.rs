//! Packets of several frames: what becomes of one is what becomes of the same bytes in one frame (policy model 12, 14).

mod node;

use std::sync::Arc;

use margay_core::frame::MemoryFrame;
use margay_core::worker::{Fate, TapFilter, TapId};
use margay_core::{DropReason, Nanos, PortIndex};
use margay_policy_engine::model::{Action, DenyAction, Object, Rule};
use margay_wire::parse::{Packet, tcp_flags};
use margay_wire::{IpHeaders, build, checksum, parse, protocol};
use node::{HOST, Node, POD_A, POD_B, UPLINK, ip, policy, rule};
use proptest::prelude::*;

const A: &str = "10.0.1.2";
const B: &str = "10.0.1.3";
/// Bytes of a chunk of the real packet memory that a packet fills.
const FRAME: usize = 3840;
const LARGE: u32 = 60_000;

fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

/// A node whose pod A has a large MTU, and pod B the one given.
fn node(mtu_of_b: u32) -> Node {
    let mut node = Node::new();
    for port in &mut node.builder.ports {
        match port.index {
            POD_A => port.mtu = LARGE,
            POD_B => port.mtu = mtu_of_b,
            _ => {}
        }
    }
    node.rebuild();
    node
}

/// A policy whose denials are answered (PM-32.9).
fn rejecting(app: &str, ingress: Vec<Rule>) -> Object {
    let Object::Policy(it) = policy("deny", app, Some(ingress), None) else { panic!("a policy") };
    let mut it = (*it).clone();
    it.flags.deny_action = Some(DenyAction::Reject);
    Object::Policy(Arc::new(it))
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 256) as u8).collect()
}

/// Leaves the transport checksum to the device, as a pod's kernel does.
fn make_partial(frame: &mut [u8]) {
    let ip = headers(frame);
    let at = usize::from(ip.transport_offset);
    let field = at + if ip.protocol == protocol::TCP { 16 } else { 6 };
    let pseudo = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, (ip.end() - at) as u32);
    frame[field..field + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
}

/// Sets or clears "don't fragment".
fn forbid_fragments(frame: &mut [u8], forbid: bool) {
    frame[20] = if forbid { 0x40 } else { 0 };
    frame[24..26].fill(0);
    let sum = checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

fn datagram(from: (&str, PortIndex), to: &str, len: usize) -> Vec<u8> {
    build::udp(Node::macs(from.1), (ip(from.0), 4000), (ip(to), 53), &payload(len))
}

#[test]
fn a_large_segment_passes_in_its_frames_with_its_checksum_completed() {
    for (from, to) in [(A, B), ("fd00:1::2", "fd00:1::3")] {
        let mut node = node(LARGE);
        let ack = tcp_flags::ACK;
        let syn = build::tcp(Node::macs(POD_A), (ip(from), 4000), (ip(to), 80), tcp_flags::SYN, b"");
        let answer = tcp_flags::SYN | ack;
        let back = build::tcp(Node::macs(POD_B), (ip(to), 80), (ip(from), 4000), answer, b"");
        node.forward(POD_A, &syn);
        node.forward(POD_B, &back);
        let len = LARGE as usize - 60;
        let mut large = build::tcp(Node::macs(POD_A), (ip(from), 4000), (ip(to), 80), ack, &payload(len));
        make_partial(&mut large);
        let before = node.worker.counters().flow_hits;
        let packets = vec![MemoryFrame::in_parts(&large, FRAME), MemoryFrame::in_parts(&large, FRAME)];
        let sent = node.burst_of(POD_A, packets);
        assert_eq!(sent.len(), 2, "{from}");
        assert_eq!(node.worker.counters().flow_hits, before + 2);
        for (port, bytes) in sent {
            assert_eq!((port, bytes.len()), (POD_B, large.len()));
            let ip = headers(&bytes);
            let segment = &bytes[usize::from(ip.transport_offset)..ip.end()];
            let len = segment.len() as u32;
            let pseudo = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, len);
            assert_eq!(checksum::fold(checksum::add(pseudo, segment)), 0xffff, "{from}");
            assert_eq!(segment[20..], large[usize::from(ip.transport_offset) + 20..ip.end()]);
        }
    }
}

#[test]
fn pods_of_both_sizes_live_together_and_the_receivers_size_counts() {
    let mut node = node(1500);
    let mut large = datagram((A, POD_A), B, 20_000);
    forbid_fragments(&mut large, true);
    for way in ["alone", "in a burst"] {
        let packet = MemoryFrame::in_parts(&large, FRAME);
        let sent = match way {
            "alone" => node.send_packet(POD_A, packet).expect("an answer"),
            _ => node.burst_of(POD_A, vec![packet]),
        };
        let (port, error) = &sent[0];
        let at = usize::from(headers(error).transport_offset);
        assert_eq!((*port, &error[at..at + 2]), (POD_A, &[3, 4][..]), "{way}");
        assert_eq!(u16::from_be_bytes([error[at + 6], error[at + 7]]), 1500, "{way}");
        assert_eq!(error[at + 8..at + 28], large[14..34], "{way}: the quote");
    }
    let six = build::udp(Node::macs(POD_A), (ip("fd00:1::2"), 1), (ip("fd00:1::3"), 2), &payload(20_000));
    let sent = node.send_packet(POD_A, MemoryFrame::in_parts(&six, FRAME)).expect("an answer");
    let at = usize::from(headers(&sent[0].1).transport_offset);
    assert_eq!(sent[0].1[at..at + 8], [2, 0, sent[0].1[at + 2], sent[0].1[at + 3], 0, 0, 0x05, 0xdc]);
    // To another node and to the host itself it is their MTU, also while the next hop is being looked for.
    for (to, mtu) in [("10.0.2.9", 1400u16), ("8.8.8.8", 1400), ("192.168.0.1", 1500), ("192.168.0.77", 1400)]
    {
        let mut large = datagram((A, POD_A), to, 20_000);
        forbid_fragments(&mut large, true);
        let sent = node.send_packet(POD_A, MemoryFrame::in_parts(&large, FRAME)).expect("an answer");
        let at = usize::from(headers(&sent[0].1).transport_offset);
        assert_eq!(sent[0].1[at..at + 2], [3, 4], "{to}");
        assert_eq!(u16::from_be_bytes([sent[0].1[at + 6], sent[0].1[at + 7]]), mtu, "{to}");
    }
    assert_eq!(node.frames_out(), 0);
}

#[test]
fn what_may_be_fragmented_reaches_a_pod_of_the_old_size_in_pieces() {
    let mut node = node(1500);
    let mut large = datagram((A, POD_A), B, 60_000 - 28);
    forbid_fragments(&mut large, false);
    make_partial(&mut large);
    node.give_spares(56);
    let sent = node.send_packet(POD_A, MemoryFrame::in_parts(&large, FRAME)).expect("fragments");
    assert_eq!(sent.len(), 41);
    let mut whole = Vec::new();
    for (port, piece) in &sent {
        assert!(*port == POD_B && piece.len() <= 1514);
        parse(piece).expect("each fragment is well-formed");
        whole.extend_from_slice(&piece[34..]);
    }
    assert_eq!(whole[8..], payload(60_000 - 28));
    let pseudo = checksum::pseudo_header(ip(A), ip(B), protocol::UDP, whole.len() as u32);
    assert_eq!(checksum::fold(checksum::add(pseudo, &whole)), 0xffff);
}

#[test]
fn a_large_packet_that_policy_refuses_is_reset() {
    let mut node = node(LARGE);
    node.apply(rejecting("b", Vec::new()));
    let flags = tcp_flags::SYN;
    let syn = build::tcp(Node::macs(POD_A), (ip(A), 1), (ip(B), 2), flags, &payload(30_000));
    let sent = node.send_packet(POD_A, MemoryFrame::in_parts(&syn, FRAME)).expect("an answer");
    let (port, reset) = &sent[0];
    let at = usize::from(headers(reset).transport_offset);
    assert_eq!((*port, reset.len(), reset[at + 13]), (POD_A, 54, tcp_flags::RST | tcp_flags::ACK));
    // It acknowledges the SYN and every byte of all its frames.
    let acknowledged = u32::from_be_bytes([reset[at + 8], reset[at + 9], reset[at + 10], reset[at + 11]]);
    assert_eq!(acknowledged, 1 + 1 + 30_000);
}

#[test]
fn a_capture_has_the_bytes_of_all_frames() {
    let mut node = node(LARGE);
    let large = datagram((A, POD_A), B, 20_000);
    let filter = TapFilter { snap_len: 65_535, sent: true, ..TapFilter::default() };
    node.worker.set_tap(TapId(1), Some(filter));
    node.send_packet(POD_A, MemoryFrame::in_parts(&large, FRAME)).expect("forwarded");
    let told = node.out.captures.pop().expect("told");
    assert_eq!((told.fate, told.length as usize), (Fate::Forwarded(POD_B), large.len()));
    assert_eq!(told.bytes[..], large[..]);
    let (sent, length) = told.sent.expect("as it left");
    assert_eq!((length as usize, &sent[34..]), (large.len(), &large[34..]));
}

#[test]
fn the_gateway_answers_a_large_ping() {
    let mut node = node(LARGE);
    let ping = build::echo(Node::macs(POD_A), ip(A), ip("169.254.1.1"), 7, true, &payload(9000));
    let sent = node.send_packet(POD_A, MemoryFrame::in_parts(&ping, FRAME)).expect("an answer");
    let (port, reply) = &sent[0];
    assert_eq!((*port, reply.len(), reply[34]), (POD_A, ping.len(), 0));
    assert_eq!(checksum::fold(checksum::add(0, &reply[34..])), 0xffff);
}

#[test]
fn frames_that_wait_are_counted() {
    let mut node = node(LARGE);
    for port in &mut node.builder.ports {
        if port.index == UPLINK {
            port.mtu = 9000;
        }
    }
    node.rebuild();
    let large = datagram((A, POD_A), "192.168.0.77", 8000);
    assert!(node.send_packet(POD_A, MemoryFrame::in_parts(&large, FRAME)).expect("held").is_empty());
    assert_eq!((node.worker.frames_held(), node.worker.counters().held), (3, 1));
    node.tick(Nanos::from_secs(4));
    assert_eq!((node.worker.frames_held(), node.frames_out()), (0, 0));
    assert_eq!(node.worker.counters().dropped(DropReason::NoNeighbour), 1);
}

fn traffic() -> impl Strategy<Value = (PortIndex, Vec<u8>)> {
    let ends = prop_oneof![
        Just((POD_A, A, B)),
        Just((POD_B, B, A)),
        Just((POD_A, A, "10.0.2.9")),
        Just((UPLINK, "10.0.2.9", A)),
        Just((HOST, "192.168.0.1", A)),
        Just((POD_A, "fd00:1::2", "fd00:1::3")),
        Just((POD_A, "fd00:1::2", "fd00:2::9")),
        Just((POD_A, A, "169.254.1.1")),
    ];
    let damage = prop::option::weighted(0.3, (0usize..400, any::<u8>()));
    (ends, 0u8..6, 0usize..2500, any::<bool>(), damage).prop_map(
        |((port, from, to), kind, len, partial, damage)| {
            let (macs, from, to) = (Node::macs(port), (ip(from), 4000), (ip(to), 80));
            let mut bytes = match kind {
                0 => build::udp(macs, from, to, &payload(len)),
                1 => build::tcp(macs, from, to, tcp_flags::ACK, &payload(len)),
                2 => build::tcp(macs, from, to, tcp_flags::SYN, &payload(len)),
                3 => build::echo(macs, from.0, to.0, 9, true, &payload(len)),
                4 => build::ip(macs, from.0, to.0, protocol::SCTP, &payload(len.max(12)), 64),
                _ => build::udp(macs, from, to, &payload(len)),
            };
            if partial && matches!(kind, 0..3) {
                make_partial(&mut bytes);
            }
            if kind == 5 && from.0.is_ipv4() {
                forbid_fragments(&mut bytes, false);
            }
            if let Some((at, value)) = damage
                && let Some(byte) = bytes.get_mut(at)
            {
                *byte = value;
            }
            (port, bytes)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Frames of any size from the one on that holds what an error quotes: the same endings, the same bytes, the same counters.
    #[test]
    fn whole_and_in_frames_agree(
        steps in prop::collection::vec((traffic(), 1300usize..1800, any::<bool>(), 0u8..12), 1..30),
    ) {
        let (mut one, mut other) = (node(LARGE), node(LARGE));
        let deny = rejecting("b", vec![rule(Action::Allow, Some(protocol::UDP))]);
        for ((port, bytes), size, alone, event) in steps {
            match event {
                0 => [&mut one, &mut other].map(|node| node.apply(deny.clone())),
                1 => [&mut one, &mut other].map(|node| node.delete(&deny)),
                2 => [&mut one, &mut other].map(|node| drop(node.tick(Nanos::from_secs(1)))),
                _ => [(), ()],
            };
            for node in [&mut one, &mut other] {
                node.give_spares(8usize.saturating_sub(node.out.spare.len()));
            }
            let parts = MemoryFrame::in_parts(&bytes, size);
            let (whole, in_parts) = if alone {
                (one.send(port, &bytes), other.send_packet(port, parts))
            } else {
                (Ok(one.burst(port, std::slice::from_ref(&bytes))), Ok(other.burst_of(port, vec![parts])))
            };
            prop_assert_eq!(whole, in_parts);
            prop_assert_eq!(one.worker.counters(), other.worker.counters());
        }
    }
}
