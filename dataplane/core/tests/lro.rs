//! Large receive offload: what a pod gets as one packet is what it would have got as many.

mod node;

use std::collections::BTreeMap;
use std::net::IpAddr;

use margay_core::frame::MemoryFrame;
use margay_core::handover::Errand;
use margay_core::worker::EndpointToHost;
use margay_core::{DropReason, Nanos, PortIndex, View, WorkerConfig};
use margay_wire::parse::{Packet, Transport, tcp_flags};
use margay_wire::{IpHeaders, build, checksum, icmp, parse, protocol};
use node::{HOST, Node, POD_A, POD_B, UPLINK, ip};
use proptest::prelude::*;

const REMOTE: [&str; 2] = ["10.0.2.9", "fd00:2::9"];
const B: [&str; 2] = ["10.0.1.3", "fd00:1::3"];
const ACK: u8 = tcp_flags::ACK;
const PSH: u8 = tcp_flags::PSH;

fn node(lro: bool, mtu_of_b: u32) -> Node {
    let mut node = Node::with(WorkerConfig {
        endpoint_to_host: EndpointToHost::Accept,
        adoption_window: Nanos(0),
        max_flows: 4096,
        lro,
        ..WorkerConfig::default()
    });
    for port in &mut node.builder.ports {
        match port.index {
            POD_B => port.mtu = mtu_of_b,
            POD_A => port.mtu = 60_000,
            _ => {}
        }
    }
    node.rebuild();
    node
}

fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

/// Whether the transport checksum is right.
fn sums_up(frame: &[u8]) -> bool {
    let ip = headers(frame);
    let segment = &frame[usize::from(ip.transport_offset)..ip.end()];
    let pseudo = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, segment.len() as u32);
    checksum::fold(checksum::add(pseudo, segment)) == 0xffff
}

fn write_sum(frame: &mut [u8]) {
    let ip = headers(frame);
    let at = usize::from(ip.transport_offset);
    frame[at + 16..at + 18].fill(0);
    let segment = &frame[at..ip.end()];
    let pseudo = checksum::pseudo_header(ip.source, ip.destination, protocol::TCP, segment.len() as u32);
    let sum = !checksum::fold(checksum::add(pseudo, segment));
    frame[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
}

fn forbid_fragments(frame: &mut [u8]) {
    if frame[12] == 0x08 {
        frame[20..22].copy_from_slice(&[0x40, 0]);
        frame[24..26].fill(0);
        let sum = checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

/// What a segment of a test says.
#[derive(Clone, Debug)]
struct Said {
    family: usize,
    /// Source port.
    port: u16,
    sequence: u32,
    acknowledged: u32,
    window: u16,
    flags: u8,
    /// A time stamp, when not zero.
    stamp: u32,
    payload: Vec<u8>,
}

impl Said {
    fn new(port: u16, sequence: u32, payload: Vec<u8>) -> Self {
        Self { family: 0, port, sequence, acknowledged: 7, window: 500, flags: ACK, stamp: 0, payload }
    }

    fn frame(&self) -> Vec<u8> {
        let mut body = Vec::new();
        if self.stamp != 0 {
            body.extend_from_slice(&[1, 1, 8, 10]);
            body.extend_from_slice(&self.stamp.to_be_bytes());
            body.extend_from_slice(&[0; 4]);
        }
        let options = body.len();
        body.extend_from_slice(&self.payload);
        let (from, to) = (ip(REMOTE[self.family]), ip(B[self.family]));
        let mut frame = build::tcp(Node::macs(UPLINK), (from, self.port), (to, 80), self.flags, &body);
        let at = usize::from(headers(&frame).transport_offset);
        frame[at + 4..at + 8].copy_from_slice(&self.sequence.to_be_bytes());
        frame[at + 8..at + 12].copy_from_slice(&self.acknowledged.to_be_bytes());
        frame[at + 12] = ((20 + options) as u8 / 4) << 4;
        frame[at + 14..at + 16].copy_from_slice(&self.window.to_be_bytes());
        forbid_fragments(&mut frame);
        write_sum(&mut frame);
        frame
    }
}

/// Begins the conversation of a source port, as three packets one by one.
fn begin(node: &mut Node, family: usize, port: u16) {
    let (remote, b) = (ip(REMOTE[family]), ip(B[family]));
    let syn = build::tcp(Node::macs(UPLINK), (remote, port), (b, 80), tcp_flags::SYN, b"");
    let answer = build::tcp(Node::macs(POD_B), (b, 80), (remote, port), tcp_flags::SYN | ACK, b"");
    let ack = build::tcp(Node::macs(UPLINK), (remote, port), (b, 80), ACK, b"");
    node.forward(UPLINK, &syn);
    node.forward(POD_B, &answer);
    node.forward(UPLINK, &ack);
}

type Stream = (IpAddr, u16);
/// Sequence number, the byte that it stands for, acknowledgement, window, time stamp.
type Word = (u32, Option<u8>, u32, u16, u32);

/// Everything that arrives, stream by stream, in order: each byte with its sequence number, what is said beside it, and whether the packet
/// that carried it sums up.
fn heard(sent: &[(PortIndex, Vec<u8>)]) -> BTreeMap<Stream, Vec<Word>> {
    let mut heard: BTreeMap<Stream, Vec<_>> = BTreeMap::new();
    for (port, frame) in sent {
        assert_eq!(*port, POD_B);
        assert!(sums_up(frame), "a checksum is wrong");
        let ip = headers(frame);
        let Transport::Tcp { source: source_port, flags, .. } = ip.transport else { panic!("not TCP") };
        let at = usize::from(ip.transport_offset);
        let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
        let end = at + usize::from(frame[at + 12] >> 4) * 4;
        let stamp = if end > at + 20 { word(at + 24) } else { 0 };
        let window = u16::from_be_bytes([frame[at + 14], frame[at + 15]]);
        let said = |sequence, byte| (sequence, byte, word(at + 8), window, stamp);
        let stream = heard.entry((ip.source, source_port)).or_default();
        if end == ip.end() || flags & !(ACK | PSH) != 0 {
            stream.push(said(word(at + 4), None));
        }
        for (nth, byte) in frame[end..ip.end()].iter().enumerate() {
            stream.push(said(word(at + 4).wrapping_add(nth as u32), Some(*byte)));
        }
    }
    heard
}

#[test]
fn segments_of_a_burst_reach_the_pod_as_one_packet() {
    for family in [0, 1] {
        let mut node = node(true, 60_000);
        begin(&mut node, family, 4000);
        let begun = node.worker.counters().forwarded;
        let said: Vec<Said> = (0..20u32)
            .map(|nth| Said {
                family,
                flags: if nth == 19 { ACK | PSH } else { ACK },
                ..Said::new(4000, (u32::MAX - 5_000).wrapping_add(nth * 1_369), vec![nth as u8 + 1; 1_369])
            })
            .collect();
        let frames: Vec<_> = said.iter().map(Said::frame).collect();
        let sent = node.burst(UPLINK, &frames);
        assert_eq!(sent.len(), 1, "family {family}");
        assert_eq!(node.worker.counters().joined, 19);
        assert_eq!(node.worker.counters().forwarded - begun, 20);
        let whole = &sent[0].1;
        let ip = headers(whole);
        let at = usize::from(ip.transport_offset);
        assert_eq!((whole.len(), ip.end()), (at + 20 + 20 * 1_369, at + 20 + 20 * 1_369));
        assert_eq!(whole[at + 13], ACK | PSH, "the last one's push is kept");
        let plain = self::plain(&said, 60_000);
        assert_eq!(heard(&sent), heard(&plain));
    }
}

/// What leaves a node that joins nothing.
fn plain(said: &[Said], mtu: u32) -> Vec<(PortIndex, Vec<u8>)> {
    let mut node = node(false, mtu);
    let mut ports: Vec<_> = said.iter().map(|it| (it.family, it.port)).collect();
    ports.sort_unstable();
    ports.dedup();
    for (family, port) in ports {
        begin(&mut node, family, port);
    }
    let frames: Vec<_> = said.iter().map(Said::frame).collect();
    node.burst(UPLINK, &frames)
}

#[test]
fn nothing_becomes_larger_than_the_receiver_takes() {
    for (mtu, packets) in [(1_400u32, 20), (9_216, 20), (16_000, 2), (60_000, 1), (1 << 20, 1)] {
        let mut node = node(true, mtu);
        begin(&mut node, 0, 4000);
        let said: Vec<Said> = (0..20).map(|nth| Said::new(4000, nth * 1_360, vec![9; 1_360])).collect();
        let sent = node.burst(UPLINK, &said.iter().map(Said::frame).collect::<Vec<_>>());
        assert_eq!(sent.len(), packets, "MTU {mtu}");
        assert!(sent.iter().all(|(_, frame)| frame.len() - 14 <= mtu as usize), "MTU {mtu}");
    }
    // Nor than the length field of an IP header can say.
    let mut node = node(true, 1 << 20);
    begin(&mut node, 0, 4000);
    let said: Vec<Said> = (0..64).map(|nth| Said::new(4000, nth * 1_360, vec![9; 1_360])).collect();
    let sent = node.burst(UPLINK, &said.iter().map(Said::frame).collect::<Vec<_>>());
    assert_eq!(sent.iter().map(|(_, frame)| frame.len() - 54).collect::<Vec<_>>(), [48 * 1_360, 16 * 1_360]);
    assert!(sent.iter().all(|(_, frame)| sums_up(frame)));
}

#[test]
fn a_damaged_segment_makes_the_whole_wrong_and_is_never_mended() {
    for at in [0, 700, 1_359] {
        let mut node = node(true, 60_000);
        begin(&mut node, 0, 4000);
        let said: Vec<Said> = (0..5).map(|nth| Said::new(4000, nth * 1_360, vec![9; 1_360])).collect();
        let mut frames: Vec<_> = said.iter().map(Said::frame).collect();
        frames[2][54 + at] ^= 0x40;
        let sent = node.burst(UPLINK, &frames);
        assert_eq!(sent.len(), 1);
        assert!(!sums_up(&sent[0].1), "byte {at}");
    }
}

#[test]
fn a_pod_that_routes_what_it_gets_is_spared_from_then_on() {
    for family in [0, 1] {
        let mut node = node(true, 60_000);
        begin(&mut node, family, 4000);
        let frames = |first: u32| -> Vec<Vec<u8>> {
            let said =
                (0..5).map(|nth| Said { family, ..Said::new(4000, first + nth * 1_000, vec![9; 1_000]) });
            said.map(|it| it.frame()).collect()
        };
        let whole = node.burst(UPLINK, &frames(0)).remove(0).1;
        // The pod's kernel routes it to a container behind a bridge with an MTU of 1,500.
        let (remote, b) = (ip(REMOTE[family]), ip(B[family]));
        let report = |quoted: &[u8], mtu: u16| {
            let mut body = vec![0; 4];
            body[2..4].copy_from_slice(&mtu.to_be_bytes());
            body.extend_from_slice(&quoted[14..quoted.len().min(14 + 68)]);
            let (kind, code) = if family == 0 { (3, 4) } else { (2, 0) };
            build::icmp(Node::macs(POD_B), b, remote, kind, code, &body, 64)
        };
        assert!(icmp::is_too_big(&headers(&report(&whole, 1_500))));
        assert_eq!(node.send(POD_B, &report(&whole, 1_500)), Err(DropReason::IcmpUnrelated), "{family}");
        assert_eq!(
            node.burst(UPLINK, &frames(0)).len(),
            5,
            "the sender says it all again, and it comes as it is"
        );
        // An error about what its sender did send is the sender's business, and so is every later one.
        assert_eq!(node.send(POD_B, &report(&whole, 1_500)).expect("passed on").len(), 1);
        let single = frames(5_000).remove(0);
        assert_eq!(node.send(POD_B, &report(&single, 1_300)).expect("passed on").len(), 1);
        // Another pod at the same port is another pod.
        for port in &mut node.builder.ports {
            if let margay_core::topology::PortKind::Pod { pod_mac, .. } = &mut port.kind
                && port.index == POD_B
            {
                *pod_mac = node::mac(0x55);
            }
        }
        node.rebuild();
        assert_eq!(node.burst(UPLINK, &frames(0)).len(), 1);
    }
}

#[test]
fn other_workers_packets_are_joined_only_where_they_come_from_uplinks() {
    let mut node = node(true, 60_000);
    begin(&mut node, 0, 4000);
    let (host, b) = (ip("192.168.0.1"), ip(B[0]));
    let of_host = |sequence: u32, flags: u8, payload: &[u8]| {
        let mut frame = build::tcp(Node::macs(HOST), (host, 6000), (b, 80), flags, payload);
        frame[38..42].copy_from_slice(&sequence.to_be_bytes());
        forbid_fragments(&mut frame);
        write_sum(&mut frame);
        frame
    };
    node.forward(HOST, &of_host(0, tcp_flags::SYN, b""));
    let back = build::tcp(Node::macs(POD_B), (b, 80), (host, 6000), tcp_flags::SYN | ACK, b"");
    node.forward(POD_B, &back);
    let from_uplink = |nth: u32| (UPLINK, Said::new(4000, nth * 100, vec![1; 100]).frame());
    let from_host = |nth: u32| (HOST, of_host(nth * 100, ACK, &[2; 100]));
    let given = [
        from_uplink(0),
        from_uplink(1),
        from_host(0),
        from_host(1),
        from_uplink(2),
        from_host(2),
        from_uplink(3),
        from_uplink(4),
    ];
    let parcel = |(port, bytes): (PortIndex, Vec<u8>)| {
        margay_core::handover::Handover::new(MemoryFrame::new(&bytes), port, Errand::Take)
    };
    let mut parcels: margay_core::Parcels<_> = given.into_iter().map(parcel).collect();
    let view = View { snapshot: node.snapshot.as_deref(), topology: &node.topology };
    node.worker.handle_handovers(view, node.now, &mut parcels, &mut node.out);
    let sent: Vec<usize> = node.out.transmit.iter().map(|(_, frame)| frame.to_vec().len() - 54).collect();
    assert_eq!(sent, [200, 100, 100, 100, 100, 200]);
    let counters = node.worker.counters();
    assert_eq!((counters.joined, counters.beginnings()), (2, counters.endings()));
}

#[test]
fn what_is_not_of_the_stream_keeps_its_place() {
    let mut node = node(true, 60_000);
    begin(&mut node, 0, 4000);
    let first = Said::new(4000, 0, vec![1; 100]);
    let last = Said::new(4000, 200, vec![3; 100]);
    // A fragment may be of the stream: nothing overtakes it.
    let mut piece = Said::new(4000, 100, vec![2; 108]).frame();
    piece[20..22].copy_from_slice(&[0x20, 0]);
    piece[24..26].fill(0);
    let sum = checksum::of(&piece[14..34]);
    piece[24..26].copy_from_slice(&sum.to_be_bytes());
    let middle = Said::new(4000, 100, vec![2; 100]);
    let sent = node.burst(UPLINK, &[first.frame(), piece.clone(), middle.frame(), last.frame()]);
    assert_eq!(sent.iter().map(|(_, frame)| frame.len()).collect::<Vec<_>>(), [154, 162, 254]);
    // Of UDP it is not.
    let udp = build::udp(Node::macs(UPLINK), (ip(REMOTE[0]), 4000), (ip(B[0]), 80), &[0; 30]);
    let sent = node.burst(UPLINK, &[first.frame(), udp, middle.frame(), last.frame()]);
    assert_eq!(sent.iter().map(|(_, frame)| frame.len()).collect::<Vec<_>>(), [354, 72]);
    // From a pod of this node nothing is joined: its checksums may be for others to complete.
    let of_a = |sequence: u32| {
        let mut frame = build::tcp(Node::macs(POD_A), (ip("10.0.1.2"), 5000), (ip(B[0]), 80), ACK, &[1; 100]);
        frame[38..42].copy_from_slice(&sequence.to_be_bytes());
        forbid_fragments(&mut frame);
        write_sum(&mut frame);
        frame
    };
    let syn = build::tcp(Node::macs(POD_A), (ip("10.0.1.2"), 5000), (ip(B[0]), 80), tcp_flags::SYN, b"");
    let back =
        build::tcp(Node::macs(POD_B), (ip(B[0]), 80), (ip("10.0.1.2"), 5000), tcp_flags::SYN | ACK, b"");
    node.forward(POD_A, &syn);
    node.forward(POD_B, &back);
    assert_eq!(node.burst(POD_A, &[of_a(0), of_a(100)]).len(), 2);
}

fn any_said() -> impl Strategy<Value = Vec<Said>> {
    let one = (
        0..2usize,
        4000..4003u16,
        prop_oneof![8 => Just(0u32), 1 => 1..3u32, 1 => Just(1u32 << 31)],
        prop_oneof![12 => Just(ACK), 4 => Just(ACK | PSH), 1 => Just(ACK | tcp_flags::FIN), 1 => Just(ACK | 0x80)],
        prop_oneof![10 => Just(0u32), 1 => 1..3u32],
        prop_oneof![10 => Just(500u16), 1 => Just(501u16)],
        prop_oneof![10 => Just(7u32), 1 => Just(8u32)],
        (prop_oneof![1 => Just(0usize), 12 => 1..1_300usize], any::<u8>()),
    );
    proptest::collection::vec(one, 1..60).prop_map(|all| {
        let mut next = BTreeMap::new();
        let make = |(family, port, gap, flags, stamp, window, acknowledged, (len, seed)): (
            usize,
            u16,
            u32,
            u8,
            u32,
            u16,
            u32,
            (usize, u8),
        )| {
            let place = next.entry((family, port)).or_insert(u32::MAX - 3_000);
            let sequence = place.wrapping_add(gap);
            *place = sequence.wrapping_add(len as u32);
            let payload = (0..len).map(|at| (at * 7) as u8 ^ seed).collect();
            Said { family, port, sequence, acknowledged, window, flags, stamp, payload }
        };
        all.into_iter().map(make).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn pods_hear_the_same(said in any_said(), mtu in prop_oneof![Just(1_400u32), Just(16_000), Just(60_000)]) {
        let mut node = node(true, mtu);
        let mut ports: Vec<_> = said.iter().map(|it| (it.family, it.port)).collect();
        ports.sort_unstable();
        ports.dedup();
        for (family, port) in ports {
            begin(&mut node, family, port);
        }
        let frames: Vec<_> = said.iter().map(Said::frame).collect();
        let sent = node.burst(UPLINK, &frames);
        let plain = plain(&said, mtu);
        prop_assert_eq!(sent.len() as u64 + node.worker.counters().joined, plain.len() as u64);
        prop_assert_eq!(heard(&sent), heard(&plain));
        prop_assert!(sent.iter().all(|(_, frame)| frame.len() - 14 <= mtu as usize));
    }
}
