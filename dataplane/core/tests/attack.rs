//! The flow table under attack: what floods and scans of one pod cost the others. Everything is allowed by policy, so every packet of the
//! attacker would get an entry of its own; the table is small, so that all of them cannot.

mod node;

use std::net::{IpAddr, Ipv4Addr};

use margay_core::topology::PortIndex;
use margay_core::{DropReason, Nanos, WorkerConfig};
use margay_wire::build;
use margay_wire::parse::tcp_flags::{ACK, SYN};
use node::{Node, POD_A, POD_B, UPLINK, ip};

const FLOWS: usize = 4096;
const VICTIMS: u16 = 500;

/// A small generator of repeatable numbers.
struct Dice(u64);

impl Dice {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 20
    }

    fn port(&mut self) -> u16 {
        1 + (self.draw() % 65_000) as u16
    }

    fn stranger(&mut self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0x0800_0000 | (self.draw() as u32 & 0x00ff_ffff)))
    }
}

fn tcp(at: PortIndex, from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Vec<u8> {
    let macs = if at == UPLINK { (node::ROUTER_MAC, node::our_mac(UPLINK)) } else { Node::macs(at) };
    build::tcp(macs, from, to, flags, b"")
}

/// Pod b's connections: half of them called from outside, half of them calls of its own, all established.
fn established(node: &mut Node) {
    for number in 0..VICTIMS {
        let (inside, outside) = victim(number);
        let called = number % 2 == 0;
        let (opener, answerer) = if called { (UPLINK, POD_B) } else { (POD_B, UPLINK) };
        let (from, to) = if called { (outside, inside) } else { (inside, outside) };
        node.forward(opener, &tcp(opener, from, to, SYN));
        node.forward(answerer, &tcp(answerer, to, from, SYN | ACK));
        node.forward(opener, &tcp(opener, from, to, ACK));
    }
}

fn victim(number: u16) -> ((IpAddr, u16), (IpAddr, u16)) {
    ((ip("10.0.1.3"), 8000 + number), (ip("9.9.9.9"), 20_000 + number))
}

/// Lets the attacker send and the victims go on; returns the shares of the victims' packets and of their new flows that were lost.
fn under_attack(attack: impl Fn(&mut Dice, u64) -> (PortIndex, Vec<u8>)) -> (f64, f64) {
    under_attack_at(Nanos(0), attack)
}

fn under_attack_at(
    adoption_window: Nanos,
    attack: impl Fn(&mut Dice, u64) -> (PortIndex, Vec<u8>),
) -> (f64, f64) {
    let mut node = Node::with(WorkerConfig { adoption_window, max_flows: FLOWS, ..WorkerConfig::default() });
    established(&mut node);
    let mut dice = Dice(7);
    let (mut sent, mut lost, mut opened, mut refused) = (0u64, 0u64, 0u64, 0u64);
    for turn in 0..60_000u64 {
        let (port, frame) = attack(&mut dice, turn);
        // What the attacker gets does not matter.
        let _ = node.send(port, &frame);
        if turn.is_multiple_of(4) {
            let (inside, outside) = victim((dice.draw() % u64::from(VICTIMS)) as u16);
            let reply = dice.draw().is_multiple_of(2);
            let result = match reply {
                true => node.send(UPLINK, &tcp(UPLINK, outside, inside, ACK)),
                false => node.send(POD_B, &tcp(POD_B, inside, outside, ACK)),
            };
            sent += 1;
            lost += u64::from(result.is_err());
        }
        if turn.is_multiple_of(16) {
            let call = ((ip("10.0.1.3"), dice.port()), (dice.stranger(), 443));
            let there = node.send(POD_B, &tcp(POD_B, call.0, call.1, SYN)).is_ok();
            let back = node.send(UPLINK, &tcp(UPLINK, call.1, call.0, SYN | ACK)).is_ok();
            // It ends at once, so that it is the flood that fills the table.
            let _ = node.send(UPLINK, &tcp(UPLINK, call.1, call.0, 0x04));
            opened += 1;
            refused += u64::from(!(there && back));
        }
        if turn.is_multiple_of(100) {
            node.tick(Nanos::from_millis(10));
        }
        assert!(node.worker.counters().flows <= FLOWS as u64, "memory is bounded");
    }
    assert!(node.worker.counters().flow_evicted > 0, "the attack needs more entries than there are");
    (lost as f64 / sent as f64, refused as f64 / opened as f64)
}

fn assert_harmless(name: &str, (lost, refused): (f64, f64)) {
    println!("{name}: {:.3} % of packets and {:.3} % of new flows lost", lost * 100.0, refused * 100.0);
    assert!(lost <= 0.01, "{name}: {lost}");
    assert!(refused <= 0.01, "{name}: {refused}");
}

#[test]
fn a_syn_flood_costs_others_nothing() {
    let attack = |dice: &mut Dice, _| {
        (POD_A, tcp(POD_A, (ip("10.0.1.2"), dice.port()), (dice.stranger(), dice.port()), SYN))
    };
    assert_harmless("SYN flood", under_attack(attack));
}

#[test]
fn a_flood_of_segments_of_no_connection_costs_others_nothing_while_flows_are_adopted() {
    let attack = |dice: &mut Dice, _| {
        (POD_A, tcp(POD_A, (ip("10.0.1.2"), dice.port()), (dice.stranger(), dice.port()), ACK))
    };
    assert_harmless("segments of no connection", under_attack_at(Nanos::from_secs(3600), attack));
}

#[test]
fn an_adopted_connection_stays_once_both_ends_were_heard() {
    let mut node =
        Node::with(WorkerConfig { adoption_window: Nanos::from_secs(120), ..WorkerConfig::default() });
    let (inside, outside) = victim(0);
    for begun_inside in [true, false] {
        let there = tcp(POD_B, inside, outside, ACK);
        let back = tcp(UPLINK, outside, inside, ACK);
        let [(first, one), (second, other)] = match begun_inside {
            true => [(POD_B, &there), (UPLINK, &back)],
            false => [(UPLINK, &back), (POD_B, &there)],
        };
        node.forward(first, one);
        node.forward(first, one);
        node.tick(Nanos::from_secs(50));
        node.forward(second, other);
        // Longer than what only one end spoke of is remembered, and past the window.
        node.tick(Nanos::from_secs(1_000));
        node.forward(first, one);
        node.forward(second, other);
        node = Node::with(WorkerConfig { adoption_window: Nanos::from_secs(120), ..WorkerConfig::default() });
    }
}

#[test]
fn a_flood_of_datagrams_costs_others_nothing() {
    let attack = |dice: &mut Dice, _| {
        let (from, to) = ((ip("10.0.1.2"), dice.port()), (dice.stranger(), dice.port()));
        (POD_A, build::udp(Node::macs(POD_A), from, to, b"x"))
    };
    assert_harmless("UDP flood", under_attack(attack));
}

#[test]
fn a_port_scan_of_a_neighbour_costs_it_nothing() {
    let attack = |_: &mut Dice, turn: u64| {
        let (from, to) = ((ip("10.0.1.2"), 1 + (turn / 65_536) as u16), (ip("10.0.1.3"), turn as u16));
        (POD_A, tcp(POD_A, from, to, SYN))
    };
    assert_harmless("port scan", under_attack(attack));
}

#[test]
fn a_flood_from_outside_costs_connections_of_pods_nothing() {
    // By the same port as the victims' own peers: established connections stay, and calls of pods are counted by the pods' ports.
    let attack = |dice: &mut Dice, _| {
        (UPLINK, tcp(UPLINK, (dice.stranger(), dice.port()), (ip("10.0.1.2"), dice.port()), SYN))
    };
    assert_harmless("flood from outside", under_attack(attack));
}

#[test]
fn a_flood_of_fragments_costs_others_nothing() {
    let attack = |dice: &mut Dice, turn: u64| {
        let from = (ip("10.0.1.2"), dice.port());
        let mut frame = build::udp(Node::macs(POD_A), from, (dice.stranger(), dice.port()), &[7; 64]);
        // The first fragment of a datagram that never ends, or a later one of a datagram that never began.
        frame[18..20].copy_from_slice(&(turn as u16).to_be_bytes());
        let place: u16 = if turn.is_multiple_of(2) { 0x2000 } else { 0x2001 };
        frame[20..22].copy_from_slice(&place.to_be_bytes());
        frame[24..26].fill(0);
        let sum = margay_wire::checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        (POD_A, frame)
    };
    assert_harmless("fragment flood", under_attack(attack));
}

#[test]
fn a_table_full_of_answered_flows_refuses_new_ones_by_name() {
    let mut node = Node::with(WorkerConfig {
        adoption_window: Nanos(0),
        max_flows: usize::from(VICTIMS),
        ..WorkerConfig::default()
    });
    established(&mut node);
    let frame = build::udp(Node::macs(POD_A), (ip("10.0.1.2"), 1), (ip("9.9.9.9"), 53), b"x");
    assert_eq!(node.send(POD_A, &frame), Err(DropReason::FlowTableFull));
    for number in 0..VICTIMS {
        let (inside, outside) = victim(number);
        node.forward(POD_B, &tcp(POD_B, inside, outside, ACK));
    }
}
