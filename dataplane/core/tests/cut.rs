//! Packets that are larger than their path and may be cut: what leaves is what the source would have sent (RFC 791 §3.2, RFC 8200 §4.5,
//! RFC 7112; policy model 14.5).

mod node;

use std::collections::BTreeSet;

use margay_core::frame::MemoryFrame;
use margay_core::{DropReason, Nanos, PortIndex, WorkerConfig, WorkerIndex};
use margay_wire::{IpHeaders, Packet, build, checksum, parse, protocol};
use node::{HOST, Node, POD_A, POD_B, UPLINK, ip, peer_mac};
use proptest::prelude::*;

const POD: &str = "fd00:1::2";
/// Behind the uplink, whose MTU is 1,400.
const FAR: &str = "fd00:2::9";
/// Of this node, with an MTU of 1,500.
const NEAR: &str = "fd00:1::3";
/// Bytes of a chunk of the real packet memory.
const FRAME: usize = 3840;

type Sent = Vec<(PortIndex, Vec<u8>)>;

fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

fn node() -> Node {
    let mut node = Node::new();
    node.builder.ports.iter_mut().filter(|port| port.index == POD_A).for_each(|port| port.mtu = 60_000);
    node.rebuild();
    node.give_spares(56);
    node
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 256) as u8).collect()
}

fn datagram(to: &str, len: usize) -> Vec<u8> {
    build::udp(Node::macs(POD_A), (ip(POD), 4000), (ip(to), 53), &payload(len))
}

/// Sends a packet of pod A in frames as they come from its device.
fn send(node: &mut Node, bytes: &[u8]) -> Result<Sent, DropReason> {
    let sent = node.send_packet(POD_A, MemoryFrame::in_parts(bytes, FRAME));
    let missing = 56 - node.out.spare.len();
    node.give_spares(missing);
    sent
}

/// Parts what went on from what the sender is told: the size in an error about its packet.
fn told(sent: Sent) -> (Sent, Option<u32>) {
    let (back, on): (Sent, Sent) = sent.into_iter().partition(|(port, _)| *port == POD_A);
    assert!(back.len() <= 1);
    let size = back.first().map(|(_, error)| {
        let ip = headers(error);
        let at = usize::from(ip.transport_offset);
        assert_eq!((ip.protocol, &error[at..at + 2]), (protocol::ICMPV6, &[2, 0][..]));
        assert_eq!(error[..6], peer_mac(POD_A).0, "to whom it came from");
        assert_eq!(
            (ip.destination, &error[at + 16..at + 32]),
            (self::ip(POD), &error[38..54]),
            "its own packet"
        );
        u32::from_be_bytes(error[at + 4..at + 8].try_into().expect("four bytes"))
    });
    (on, size)
}

/// One piece as a receiver takes it apart: identification, what it has in common with the others, its place, and its bytes.
#[derive(Debug)]
struct Piece {
    id: u32,
    shared: Vec<u8>,
    next: u8,
    start: usize,
    more: bool,
    bytes: Vec<u8>,
}

/// Reads a piece by the letter of RFC 8200, without our parser; `None` where it has no fragment header.
fn piece(frame: &[u8]) -> Option<Piece> {
    let packet = &frame[14..];
    assert_eq!(40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])), packet.len());
    let (mut named_at, mut at) = (6, 40);
    while packet[named_at] != 44 {
        if !matches!(packet[named_at], 0 | 43 | 60) {
            return None;
        }
        named_at = at;
        at += (usize::from(packet[at + 1]) + 1) * 8;
    }
    let mut shared = packet[..at].to_vec();
    // What differs from piece to piece.
    shared[4..6].fill(0);
    let header = &packet[at..at + 8];
    let place = u16::from_be_bytes([header[2], header[3]]);
    assert_eq!((header[1], place & 6), (0, 0), "reserved");
    shared[named_at] = header[0];
    Some(Piece {
        id: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        shared,
        next: header[0],
        start: usize::from(place & 0xfff8),
        more: place & 1 != 0,
        bytes: packet[at + 8..].to_vec(),
    })
}

/// Puts pieces together as a receiver does (RFC 8200 §4.5): the packet behind its Ethernet header, and its identification. Every byte comes
/// once, every part but the last is of eights.
fn whole(frames: &[Vec<u8>]) -> (Vec<u8>, u32) {
    let mut pieces: Vec<_> = frames.iter().map(|frame| piece(frame).expect("a piece")).collect();
    pieces.sort_by_key(|piece| piece.start);
    let mut packet = pieces[0].shared.clone();
    let before = packet.len();
    for (nth, piece) in pieces.iter().enumerate() {
        let is_last = nth + 1 == pieces.len();
        assert_eq!(piece.start, packet.len() - before, "piece {nth}");
        assert_eq!((piece.more, piece.id), (!is_last, pieces[0].id), "piece {nth}");
        assert_eq!((&piece.shared, piece.next), (&pieces[0].shared, pieces[0].next), "piece {nth}");
        assert!(is_last || piece.bytes.len().is_multiple_of(8), "piece {nth}");
        packet.extend_from_slice(&piece.bytes);
    }
    let len = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    (packet, pieces[0].id)
}

/// As it arrives somewhere else: one hop further.
fn a_hop_on(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame[14..].to_vec();
    packet[7] -= 1;
    packet
}

#[test]
fn a_datagram_of_a_pod_leaves_in_pieces_and_its_sender_is_told() {
    // (destination, port that it leaves by, MTU there)
    for (to, port, mtu) in [(FAR, UPLINK, 1400), (NEAR, POD_B, 1500)] {
        let mut node = node();
        let original = datagram(to, 20_000);
        let mut partial = original.clone();
        let pseudo = checksum::pseudo_header(ip(POD), ip(to), protocol::UDP, 20_008);
        partial[60..62].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
        let (on, size) = told(send(&mut node, &partial).expect("cut"));
        assert_eq!(size, Some(mtu));
        assert_eq!(on.len(), 20_008usize.div_ceil((mtu as usize - 48) / 8 * 8));
        assert!(on.iter().all(|(by, piece)| *by == port && piece.len() <= 14 + mtu as usize));
        assert!(on.iter().all(|(_, piece)| piece[..6] == peer_mac(port).0));
        let pieces: Vec<_> = on.into_iter().map(|(_, piece)| piece).collect();
        assert_eq!(whole(&pieces).0, a_hop_on(&original), "with its checksum completed");
        assert_eq!(node.worker.counters().icmp_errors_sent, 1);
        assert_eq!((node.worker.counters().forwarded, node.frames_out()), (1, 0));
    }
}

#[test]
fn tcp_and_what_is_no_pods_is_answered_and_not_cut() {
    let mut node = node();
    let segment =
        build::tcp(Node::macs(POD_A), (ip(POD), 4000), (ip(FAR), 80), 2 /* SYN */, &payload(9000));
    let (on, size) = told(send(&mut node, &segment).expect("answered"));
    assert_eq!((on, size), (vec![], Some(1400)));
    // Another machine is the source of these, and has to cut for itself.
    for (port, from, to) in [(UPLINK, FAR, POD), (HOST, "fd00::1", FAR)] {
        let mut node = node_with_small_pod();
        let foreign = build::udp(Node::macs(port), (ip(from), 1), (ip(to), 2), &payload(1500));
        let sent = node.send(port, &foreign).expect("answered");
        assert_eq!(sent.len(), 1, "{from}");
        let at = usize::from(headers(&sent[0].1).transport_offset);
        assert_eq!((sent[0].0, &sent[0].1[at..at + 2]), (port, &[2, 0][..]), "{from}");
        assert_eq!(node.worker.counters().dropped(DropReason::PacketTooBig), 1);
    }
}

/// A node whose pod A has an MTU of 1,280.
fn node_with_small_pod() -> Node {
    let mut node = node();
    node.builder.ports.iter_mut().filter(|port| port.index == POD_A).for_each(|port| port.mtu = 1280);
    node.rebuild();
    node
}

#[test]
fn pm_14_5_a_fragment_is_cut_further_under_its_own_name() {
    // As a kernel cuts for an interface of 60,000, in every order.
    let original = datagram(FAR, 60_200);
    let cuts = [(0, 24_000, true), (24_000, 48_000, true), (48_000, 60_208, false)];
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
        let mut node = node();
        let mut out = Vec::new();
        for at in order {
            let (start, end, more) = cuts[at];
            let (on, size) =
                told(send(&mut node, &build::fragment(&original, 0xabcd_ef01, (start, end), more)).unwrap());
            assert_eq!(size, (at == 0).then_some(1400), "only the first is answered");
            out.extend(on.into_iter().map(|(_, piece)| piece));
        }
        assert!(out.iter().all(|piece| piece.len() <= 1414), "{order:?}");
        let (packet, id) = whole(&out);
        assert_eq!((packet, id), (a_hop_on(&original), 0xabcd_ef01), "{order:?}");
        assert_eq!((node.worker.frames_held(), node.frames_out()), (0, 0));
    }
}

#[test]
fn what_waits_for_a_neighbour_is_cut_when_it_goes() {
    let mut node = node();
    let neighbours = std::mem::take(&mut node.builder.neighbours);
    node.rebuild();
    let original = datagram(FAR, 5_000);
    assert_eq!(send(&mut node, &original), Ok(vec![]));
    assert_eq!(node.worker.counters().held, 1);
    node.builder.neighbours = neighbours;
    node.rebuild();
    let (on, size) = told(node.tick(Nanos::from_millis(10)));
    let pieces: Vec<_> = on.into_iter().map(|(_, piece)| piece).collect();
    assert_eq!((whole(&pieces).0, size), (a_hop_on(&original), Some(1400)));
    assert_eq!((node.worker.counters().held, node.frames_out()), (0, 0));
}

#[test]
fn without_frames_for_all_pieces_there_are_none() {
    let mut node = Node::new();
    node.give_spares(3);
    let sent = node.send_packet(POD_A, MemoryFrame::in_parts(&datagram(FAR, 5_000), FRAME)).expect("told");
    assert_eq!(told(sent), (vec![], Some(1400)));
    assert_eq!((node.out.spare.len(), node.frames_out()), (3, 0));
    assert_eq!(node.worker.counters().dropped(DropReason::PacketTooBig), 1);
}

#[test]
fn rfc_7112_headers_that_are_longer_than_a_piece_are_not_cut() {
    let mut node = node();
    // Destination options, which belong to what is cut.
    let mut options = vec![protocol::UDP, 255, 1, 4, 0, 0, 0, 0];
    options.resize(2048, 0);
    let inner = datagram(FAR, 1_000);
    let body = [&options, &inner[54..]].concat();
    let frame = with_headers(60, &body);
    assert_eq!(told(send(&mut node, &frame).expect("answered")), (vec![], Some(1400)));
}

#[test]
fn rfc_7739_identifications_differ_and_are_no_sequence() {
    let ids = |config: WorkerConfig| -> Vec<u32> {
        let mut node = Node::with(config);
        (0..100)
            .map(|_| {
                node.give_spares(8 - node.out.spare.len());
                let (on, _) = told(send_small(&mut node));
                whole(&on.into_iter().map(|(_, piece)| piece).collect::<Vec<_>>()).1
            })
            .collect()
    };
    let config = || WorkerConfig { hash_seed: 7, max_flows: 64, ..WorkerConfig::default() };
    let of = [
        ids(config()),
        ids(WorkerConfig { index: WorkerIndex(1), ..config() }),
        ids(WorkerConfig { hash_seed: 8, ..config() }),
    ];
    let all: BTreeSet<u32> = of.iter().flatten().copied().collect();
    assert_eq!(all.len(), 300, "of two workers and of two nodes");
    let steps: BTreeSet<u32> = of[0].windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    assert_eq!(steps.len(), 99);
}

fn send_small(node: &mut Node) -> Sent {
    node.send_packet(POD_A, MemoryFrame::new(&datagram(FAR, 2_000))).expect("cut")
}

/// What stands between the IPv6 header and UDP.
#[derive(Clone, Copy, Debug)]
enum Extension {
    HopByHop(u8),
    Routing(u8),
    Destination(u8),
}

impl Extension {
    fn kind(self) -> u8 {
        match self {
            Self::HopByHop(_) => 0,
            Self::Routing(_) => 43,
            Self::Destination(_) => 60,
        }
    }

    /// Its bytes: padding, or a routing header with no segment left.
    fn bytes(self, next: u8) -> Vec<u8> {
        let (Self::HopByHop(more) | Self::Routing(more) | Self::Destination(more)) = self;
        let len = (usize::from(more) + 1) * 8;
        let mut bytes = vec![0; len];
        bytes[..2].copy_from_slice(&[next, more]);
        if !matches!(self, Self::Routing(_)) {
            bytes[2..4].copy_from_slice(&[1, len as u8 - 4]);
        }
        bytes
    }
}

/// Chains as RFC 8200 §4.1 has them: hop-by-hop first, others in any order.
fn chain() -> impl Strategy<Value = Vec<Extension>> {
    let others =
        prop_oneof![(0u8..4).prop_map(Extension::Routing), (0u8..4).prop_map(Extension::Destination)];
    (prop::option::of((0u8..4).prop_map(Extension::HopByHop)), prop::collection::vec(others, 0..3))
        .prop_map(|(first, others)| first.into_iter().chain(others).collect())
}

/// A datagram of pod A behind a chain of headers.
fn chained(chain: &[Extension], len: usize) -> Vec<u8> {
    let udp = datagram(FAR, len)[54..].to_vec();
    let kinds: Vec<u8> = chain.iter().map(|it| it.kind()).chain([protocol::UDP]).collect();
    let headers = chain.iter().zip(&kinds[1..]).flat_map(|(it, next)| it.bytes(*next));
    let body: Vec<u8> = headers.chain(udp).collect();
    with_headers(kinds[0], &body)
}

/// An IPv6 packet of pod A with other headers behind the first.
fn with_headers(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = build::ip(Node::macs(POD_A), ip(POD), ip(FAR), protocol::UDP, body, 64);
    frame[20] = kind;
    frame
}

/// Where the part begins that is cut, by RFC 8200 §4.5: behind the last routing header, else behind the hop-by-hop options.
fn fragmentable(chain: &[Extension]) -> usize {
    let ends = chain.iter().scan(40, |at, it| {
        *at += it.bytes(0).len();
        Some((*at, *it))
    });
    ends.filter(|(_, it)| !matches!(it, Extension::Destination(_))).map(|(at, _)| at).last().unwrap_or(40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Cut and put together again it is the same packet, whatever headers it has, whole or cut before.
    #[test]
    fn pieces_are_the_packet(
        chain in chain(),
        len in 0usize..20_000,
        mtu in 1280u32..3000,
        cut_before in prop::option::of((1usize..19_000, any::<u32>())),
        frames in 1500usize..4000,
    ) {
        let mut node = node();
        node.builder.ports.iter_mut().filter(|port| port.index == UPLINK).for_each(|port| port.mtu = mtu);
        node.rebuild();
        let original = chained(&chain, len);
        let at = fragmentable(&chain);
        let content = original.len() - 14 - at;
        // What a kernel sends that cuts for a larger interface.
        let sent_as: Vec<Vec<u8>> = match cut_before {
            Some((cut, id)) if cut.next_multiple_of(8) < content && cut >= original.len() - 14 - at - len => {
                let cut = cut.next_multiple_of(8);
                [(0, cut, true), (cut, content, false)].map(|(start, end, more)| {
                    let mut frame = original[..14 + at].to_vec();
                    let named_at = 14 + chain_end(&chain, at);
                    let next = std::mem::replace(&mut frame[named_at], 44);
                    let place = start as u16 | u16::from(more);
                    frame.extend_from_slice(&[next, 0]);
                    frame.extend_from_slice(&place.to_be_bytes());
                    frame.extend_from_slice(&id.to_be_bytes());
                    frame.extend_from_slice(&original[14 + at + start..14 + at + end]);
                    let len = (frame.len() - 54) as u16;
                    frame[18..20].copy_from_slice(&len.to_be_bytes());
                    frame
                }).into()
            }
            _ => vec![original.clone()],
        };
        let fits = |frame: &Vec<u8>| frame.len() <= 14 + mtu as usize;
        let is_whole = sent_as.len() == 1 && fits(&original);
        let mut out = Vec::new();
        for frame in &sent_as {
            node.give_spares(56 - node.out.spare.len());
            let sent = node.send_packet(POD_A, MemoryFrame::in_parts(frame, frames));
            let (on, size) = told(sent.expect("forwarded"));
            let first = frame == &sent_as[0];
            prop_assert_eq!(size, (first && !fits(frame)).then_some(mtu));
            out.extend(on.into_iter().map(|(_, piece)| piece));
        }
        prop_assert!(out.iter().all(fits));
        prop_assert_eq!(node.frames_out(), 0);
        let larger = sent_as.iter().filter(|frame| !fits(frame)).count();
        prop_assert_eq!(node.worker.counters().cut, larger as u64);
        if is_whole {
            prop_assert_eq!(&out[0][14..], &a_hop_on(&original)[..]);
        } else {
            let (packet, id) = whole(&out);
            prop_assert!(packet == a_hop_on(&original), "other bytes");
            prop_assert!(out.iter().all(|frame| piece(frame).is_some_and(|piece| piece.shared.len() == at)));
            if sent_as.len() == 2 {
                prop_assert_eq!(Some(id), cut_before.map(|(_, id)| id));
            }
        }
    }
}

/// Where the octet stands that says what comes behind the part that is not cut, which ends at `at`.
fn chain_end(chain: &[Extension], at: usize) -> usize {
    let (mut named_at, mut end) = (6, 40);
    for it in chain {
        if end == at {
            break;
        }
        named_at = end;
        end += it.bytes(0).len();
    }
    named_at
}
