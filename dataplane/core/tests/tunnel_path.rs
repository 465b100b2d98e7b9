//! One node and a bare engine at the other end of its uplink: neighbours that are not known, and whatever a peer may seal.

mod node;

use std::net::SocketAddr;
use std::sync::Arc;

use margay_core::frame::MemoryFrame;
use margay_core::handover::Errand;
use margay_core::tunnel::plan::{EncryptionPlan, FamilyPlan, OwnEnd, PeerPlan};
use margay_core::tunnel::{Encryption, Family, Opened, PeerId, PrivateKey, Sealed, Tunnels};
use margay_core::{
    DropReason, Nanos, Output, Parcels, PortIndex, Spread, View, Worker, WorkerConfig, WorkerIndex,
};
use margay_wire::parse::tcp_flags;
use margay_wire::{ETHERNET_LEN, IpHeaders, Packet, build, checksum, parse, protocol};
use node::{Node, POD_A, POD_B, UPLINK, ip, our_mac, peer_mac};
use proptest::prelude::*;

const PEER: PeerId = PeerId(4);
const PORT: u16 = 51820;
const HEADERS: usize = 42;

fn plan(ours: bool) -> FamilyPlan {
    let ends = [("192.168.0.1", 1u8, "10.0.1.0/24"), ("192.168.0.2", 2, "10.0.2.0/24")];
    let (own, peer) = if ours { (ends[0], ends[1]) } else { (ends[1], ends[0]) };
    let key = |seed: u8| PrivateKey::new([seed; 32]);
    let peer = PeerPlan {
        id: PEER,
        node: "other".to_owned(),
        keys: vec![key(peer.1).public()],
        endpoint: SocketAddr::new(ip(peer.0), PORT),
        allowed: vec![peer.2.parse().unwrap()],
        keepalive: None,
    };
    FamilyPlan {
        own: OwnEnd { keys: vec![key(own.1)], port: PORT, address: ip(own.0), mtu: 0 },
        peers: vec![peer],
    }
}

fn encrypt(node: &mut Node) {
    let plan = EncryptionPlan { generation: 1, v4: Some(plan(true)), ..EncryptionPlan::default() };
    let before = std::mem::take(&mut node.topology);
    node.topology = before.with_encryption(Some(Arc::new(Encryption::new(&plan, None))));
    node.give_spares(8);
}

fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

/// The other node.
struct Other {
    tunnels: Tunnels,
    room: Vec<u8>,
}

impl Other {
    fn new() -> Self {
        let family = Arc::new(Family::new(&plan(false), None));
        Self { tunnels: Tunnels::new(&family, &Spread::default(), WorkerIndex(0)), room: vec![0; 2048] }
    }

    fn wrap(content: &[u8]) -> Vec<u8> {
        let macs = (peer_mac(UPLINK), our_mac(UPLINK));
        build::udp(macs, (ip("192.168.0.2"), PORT), (ip("192.168.0.1"), PORT), content)
    }

    /// Answers what leaves a node by its uplink; returns the packets that come out of it.
    fn answer(&mut self, node: &mut Node, sent: Vec<(PortIndex, Vec<u8>)>) -> Vec<Vec<u8>> {
        let (mut sent, mut packets) = (std::collections::VecDeque::from(sent), Vec::new());
        while let Some((port, frame)) = sent.pop_front() {
            assert_eq!(port, UPLINK);
            let ip = headers(&frame);
            assert_eq!(ip.ports(), Some((PORT, PORT)), "nothing but datagrams");
            let from = SocketAddr::new(ip.source, PORT);
            match self.tunnels.receive(from, &frame[HEADERS..ip.end()], &mut self.room, node.now) {
                Ok((_, Opened::Packet(len))) => packets.push(self.room[..len].to_vec()),
                Ok((_, Opened::Answer(len))) => {
                    let frame = Self::wrap(&self.room[..len]);
                    sent.extend(node.burst(UPLINK, &[frame]));
                }
                Ok((_, Opened::Nothing)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        packets
    }

    fn seal(&mut self, packet: &[u8], now: Nanos) -> Vec<u8> {
        match self.tunnels.seal(PEER, packet, &mut self.room, now) {
            Ok(Sealed::Datagram(len)) => Self::wrap(&self.room[..len]),
            other => panic!("{other:?}"),
        }
    }
}

fn hello() -> Vec<u8> {
    build::udp(Node::macs(POD_A), (ip("10.0.1.2"), 1000), (ip("10.0.2.9"), 2000), b"hello")
}

/// A node and the other, with a session.
fn connected() -> (Node, Other) {
    let (mut node, mut other) = (Node::new(), Other::new());
    encrypt(&mut node);
    let sent = node.burst(POD_A, &[hello()]);
    let packets = other.answer(&mut node, sent);
    assert_eq!(packets.len(), 1, "what waited for the handshake");
    (node, other)
}

#[test]
fn packets_wait_for_the_neighbour_on_the_way_to_the_peer() {
    let (mut node, mut other) = (Node::new(), Other::new());
    let neighbours = std::mem::take(&mut node.builder.neighbours);
    node.rebuild();
    encrypt(&mut node);
    for _ in 0..3 {
        assert_eq!(node.burst(POD_A, &[hello()]), []);
    }
    assert_eq!(node.worker.wanted_neighbours(), [(UPLINK, ip("192.168.0.2"))]);
    assert!(node.worker.is_waiting());
    assert_eq!(node.tick(Nanos::from_millis(10)), []);
    node.builder.neighbours = neighbours;
    node.rebuild();
    encrypt(&mut node);
    let sent = node.tick(Nanos::from_millis(10));
    assert_eq!(sent.len(), 1, "the handshake begins");
    assert_eq!(other.answer(&mut node, sent).len(), 3);
    assert!(node.worker.wanted_neighbours().is_empty() && !node.worker.is_waiting());
}

#[test]
fn what_waited_to_leave_in_clear_does_not_when_there_is_a_tunnel_now() {
    let mut node = Node::new();
    let neighbours = std::mem::take(&mut node.builder.neighbours);
    node.rebuild();
    assert_eq!(node.burst(POD_A, &[hello()]), []);
    assert!(node.worker.is_waiting());
    node.builder.neighbours = neighbours;
    node.rebuild();
    encrypt(&mut node);
    assert_eq!(node.tick(Nanos::from_millis(10)), [], "neither in clear nor by a way of before");
    assert!(!node.worker.is_waiting());
    assert_eq!(node.worker.counters().drops[DropReason::NoNeighbour as usize], 1);
}

#[test]
fn the_tunnels_own_address_takes_nothing_in_clear_from_a_peer_with_a_session() {
    let (mut node, mut other) = connected();
    node.builder.node_addresses.push(ip("10.0.1.0"));
    node.rebuild();
    encrypt(&mut node);
    // The session is another one after a new plan only if keys are; it is the same here.
    let sent = node.burst(POD_A, &[hello()]);
    other.answer(&mut node, sent);
    let to = |address: &str| {
        let macs = (peer_mac(UPLINK), our_mac(UPLINK));
        build::udp(macs, (ip("10.0.2.9"), 2000), (ip(address), 1000), b"forged")
    };
    assert_eq!(node.send(UPLINK, &to("10.0.1.0")), Err(DropReason::ExpectedEncrypted));
    assert_ne!(
        node.send(UPLINK, &to("192.168.0.1")),
        Err(DropReason::ExpectedEncrypted),
        "that one by right"
    );
}

#[test]
fn a_route_that_no_uplink_has_is_none() {
    let mut node = Node::new();
    node.builder.routes.clear();
    node.rebuild();
    encrypt(&mut node);
    assert_eq!(node.send(POD_A, &hello()), Err(DropReason::NoRoute));
}

#[test]
fn without_a_spare_frame_packets_end_by_name() {
    let (mut node, mut other) = connected();
    let datagram = other.seal(&hello_back(40), node.now);
    node.out.spare.clear();
    assert_eq!(node.send(POD_A, &hello()), Err(DropReason::TunnelNoRoom));
    assert_eq!(node.send(UPLINK, &datagram), Err(DropReason::TunnelNoRoom));
}

/// Datagrams come in by a queue of one worker, and another one opens them and has the pod.
#[test]
fn segments_that_another_worker_received_sealed_are_joined() {
    let config =
        WorkerConfig { lro: true, adoption_window: Nanos::from_secs(100), ..WorkerConfig::default() };
    let mut node = Node::with(config.clone());
    for port in node.builder.ports.iter_mut().filter(|port| port.index == POD_A) {
        port.mtu = 60_000;
    }
    node.rebuild();
    encrypt(&mut node);
    let mut other = Other::new();
    let sent = node.burst(POD_A, &[hello()]);
    assert_eq!(other.answer(&mut node, sent).len(), 1, "what waited for the handshake");
    node.topology = std::mem::take(&mut node.topology).spread_over(Spread::new(2, [(UPLINK, 2)]));

    let segment = |nth: u32| {
        let ends = ((ip("10.0.2.9"), 4000), (ip("10.0.1.2"), 80));
        let mut frame = build::tcp(peer_macs(), ends.0, ends.1, tcp_flags::ACK, &[nth as u8; 100]);
        // In order, not to be cut, and with sums that are right.
        frame[20..22].copy_from_slice(&[0x40, 0]);
        frame[24..26].fill(0);
        let sum = checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame[38..42].copy_from_slice(&(nth * 100).to_be_bytes());
        frame[50..52].fill(0);
        let pseudo = checksum::pseudo_header(ends.0.0, ends.1.0, protocol::TCP, 120);
        let sum = !checksum::fold(checksum::add(pseudo, &frame[34..]));
        frame[50..52].copy_from_slice(&sum.to_be_bytes());
        other.seal(&frame[ETHERNET_LEN..], Nanos(0))
    };
    let mut sealed: Vec<_> = (0..5).map(segment).map(|bytes| MemoryFrame::new(&bytes)).collect();
    let mut reader = Worker::new(WorkerConfig { index: WorkerIndex(1), ..config }, node.now);
    let view = View { snapshot: node.snapshot.as_deref(), topology: &node.topology };
    let mut out = Output::new();
    reader.handle_burst(view, node.now, UPLINK, &mut sealed, &mut out);
    let mut parcels: Parcels<_> = out.handovers.drain().map(|(_, parcel)| parcel).collect();
    assert!(parcels.slips().all(|slip| matches!(slip.errand(), Errand::Open(..))) && parcels.len() == 5);
    node.worker.handle_handovers(view, node.now, &mut parcels, &mut node.out);
    let sent: Vec<_> =
        node.out.transmit.iter().map(|(port, frame)| (port, frame.to_vec().len() - 54)).collect();
    // The first is adopted, on the long way; it is part of the whole all the same.
    assert_eq!(sent, [(POD_A, 500)]);
}

fn peer_macs() -> (margay_wire::MacAddr, margay_wire::MacAddr) {
    (peer_mac(UPLINK), our_mac(UPLINK))
}

/// A packet from the other node's pod, without its Ethernet header.
fn hello_back(len: usize) -> Vec<u8> {
    let macs = Node::macs(UPLINK);
    let frame = build::udp(macs, (ip("10.0.2.9"), 2000), (ip("10.0.1.3"), 1000), &vec![1; len]);
    frame[ETHERNET_LEN..].to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 60, ..ProptestConfig::default() })]

    /// Whatever comes to the port and whatever the peer seals: nothing panics, every packet has one ending, and of what was sealed only
    /// what has the peer's source and a pod of ours as its destination arrives.
    #[test]
    fn whatever_a_peer_seals_is_a_packet_like_any(
        inputs in proptest::collection::vec(
            (0..4u8, proptest::collection::vec((0..120usize, any::<u8>()), 0..5), proptest::collection::vec(any::<u8>(), 0..200), 0..1300usize),
            1..12,
        ),
    ) {
        let (mut node, mut other) = connected();
        for (kind, edits, bytes, len) in inputs {
            let mut packet = hello_back(len);
            for (place, value) in &edits {
                let place = place % packet.len();
                packet[place] = *value;
            }
            if kind == 1 {
                // The header's sum is made right again, so that more of it is looked at.
                packet[10..12].fill(0);
                let sum = checksum::of(&packet[..20]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            let frame = match kind {
                0 | 1 => other.seal(&packet, node.now),
                2 => other.seal(&bytes, node.now),
                _ => Other::wrap(&bytes),
            };
            let sent = node.burst(UPLINK, &[frame]);
            for (port, frame) in sent {
                match port {
                    UPLINK if headers(&frame).destination == ip("192.168.0.2") => {
                        let answered = other.answer(&mut node, vec![(port, frame)]);
                        prop_assert!(answered.len() <= 1, "an error, sealed");
                    }
                    // It was for somebody behind our router.
                    UPLINK => prop_assert_eq!(&frame[..6], &node::ROUTER_MAC.0),
                    POD_A | POD_B => {
                        let net: ipnet::Ipv4Net = "10.0.2.0/24".parse().unwrap();
                        let ip = headers(&frame);
                        prop_assert!(matches!(ip.source, std::net::IpAddr::V4(from) if net.contains(&from)));
                    }
                    _ => {}
                }
            }
            node.give_spares(8 - node.out.spare.len().min(8));
        }
        let good = other.seal(&hello_back(99), node.now);
        prop_assert_eq!(node.burst(UPLINK, &[good]).len(), 1, "the session goes on");
    }
}
