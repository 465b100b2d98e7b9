//! Packets told to taps: which, and what is said about them.

mod node;

use margay_core::frame::MemoryFrame;
use margay_core::worker::{Captured, Fate, TapEnd, TapFilter, TapId};
use margay_core::{DropReason, Output, PortIndex, View};
use margay_policy_engine::model::Action;
use margay_policy_engine::packet::Verdict;
use margay_wire::{build, protocol};
use node::{Node, POD_A, POD_B, UPLINK, ip, policy, rule};

const TAP: TapId = TapId(7);

fn udp(port: PortIndex, from: &str, to: &str, source: u16, destination: u16) -> Vec<u8> {
    build::udp(Node::macs(port), (ip(from), source), (ip(to), destination), b"hello")
}

fn filter() -> TapFilter {
    TapFilter { snap_len: 2_048, ..TapFilter::default() }
}

/// Sends frames as bursts of one port, which may take the short way, and returns what was told.
fn burst(node: &mut Node, port: PortIndex, frames: &[Vec<u8>]) -> Vec<Captured> {
    let view = View { snapshot: node.snapshot.as_deref(), topology: &node.topology };
    let mut batch: Vec<MemoryFrame> = frames.iter().map(|bytes| MemoryFrame::new(bytes)).collect();
    node.worker.handle_burst(view, node.now, port, &mut batch, &mut node.out);
    assert_eq!(node.worker.counters().beginnings(), node.worker.counters().endings());
    node.out.transmit.clear();
    node.out.recycle.clear();
    node.out.events.clear();
    std::mem::take(&mut node.out.captures)
}

#[test]
fn both_directions_of_a_flow_are_told_with_who_let_them_pass() {
    let mut node = Node::new();
    node.apply(policy("in", "b", Some(vec![rule(Action::Allow, Some(protocol::UDP))]), None));
    node.apply(policy("out", "a", None, Some(vec![rule(Action::Allow, None)])));
    let ask = udp(POD_A, "10.0.1.2", "10.0.1.3", 1111, 53);
    let answer = udp(POD_B, "10.0.1.3", "10.0.1.2", 53, 1111);
    // Known before anybody watches: later packets would take the short way.
    assert!(burst(&mut node, POD_A, &[ask.clone(), ask.clone()]).is_empty());
    let client = TapEnd { addresses: vec![ip("10.0.1.2")], port: Some(1111) };
    let server = TapEnd { addresses: vec![ip("10.0.1.3")], port: Some(53) };
    let wanted = TapFilter { ends: [client, server], protocol: Some(protocol::UDP), sent: true, ..filter() };
    node.worker.set_tap(TAP, Some(wanted));
    let other = udp(POD_A, "10.0.1.2", "10.0.1.3", 1112, 53);
    let mut told = burst(&mut node, POD_A, &[ask.clone(), other.clone()]);
    told.extend(burst(&mut node, POD_B, std::slice::from_ref(&answer)));
    assert_eq!(told.len(), 2, "the other flow is nobody's business");
    let [first, second] = &told[..] else { unreachable!() };
    assert_eq!((&*first.bytes, first.length as usize), (&ask[..], ask.len()));
    assert_eq!((first.fate, second.fate), (Fate::Forwarded(POD_B), Fate::Forwarded(POD_A)));
    assert_eq!((first.known, second.state), (Some("one_way"), Some("two_way")));
    for captured in &told {
        let [egress, ingress] = [&captured.egress, &captured.ingress].map(|leg| leg.as_ref().unwrap());
        assert_eq!((egress.verdict, ingress.verdict), (Verdict::Allow, Verdict::Allow));
        assert_eq!(egress.by.as_ref().unwrap().name, "out");
        assert_eq!(ingress.by.as_ref().unwrap().name, "in");
        let (sent, length) = captured.sent.as_ref().unwrap();
        assert_eq!(sent.len(), *length as usize);
        assert_eq!(sent[14 + 8], captured.bytes[14 + 8] - 1, "as it left: one hop fewer");
        assert_eq!(captured.generation, 3);
    }
    node.worker.set_tap(TAP, None);
    assert!(burst(&mut node, POD_A, &[ask]).is_empty());
}

#[test]
fn a_pods_packets_are_told_even_where_no_address_can_be_read() {
    let mut node = Node::new();
    let wanted = TapFilter {
        pod: Some((Some(POD_A), vec![ip("10.0.1.2"), ip("fd00:1::2")])),
        snap_len: 60,
        ..TapFilter::default()
    };
    node.worker.set_tap(TAP, Some(wanted));
    let long = build::udp(Node::macs(POD_A), (ip("10.0.1.2"), 1), (ip("8.8.8.8"), 2), &[0; 900]);
    let told = burst(&mut node, POD_A, &[vec![0xff; 20], long.clone()]);
    assert_eq!(told.len(), 2);
    assert!(matches!(told[0].fate, Fate::Dropped(_)));
    assert_eq!(
        (told[1].fate, told[1].bytes.len(), told[1].length as usize),
        (Fate::Forwarded(UPLINK), 60, long.len())
    );
    // To the pod, from elsewhere; and what has nothing to do with it.
    assert_eq!(burst(&mut node, POD_B, &[udp(POD_B, "fd00:1::3", "fd00:1::2", 5, 6)]).len(), 1);
    assert!(burst(&mut node, POD_B, &[udp(POD_B, "10.0.1.3", "8.8.8.8", 5, 6)]).is_empty());
}

#[test]
fn drops_are_told_with_the_rule_that_dropped() {
    let mut node = Node::new();
    node.apply(policy("closed", "b", Some(vec![rule(Action::Deny, Some(protocol::UDP))]), None));
    node.worker.set_tap(TAP, Some(TapFilter { reasons: vec![DropReason::PolicyIngress], ..filter() }));
    let told = burst(
        &mut node,
        POD_A,
        &[udp(POD_A, "10.0.1.2", "10.0.1.3", 1, 2), udp(POD_A, "10.0.1.2", "8.8.8.8", 1, 2), vec![0; 9]],
    );
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].fate, Fate::Dropped(DropReason::PolicyIngress));
    assert_eq!(told[0].decided_by.as_ref().unwrap().name, "closed");
    assert_eq!(told[0].ingress.as_ref().unwrap().verdict, Verdict::Deny);
    assert_eq!(told[0].egress.as_ref().unwrap().verdict, Verdict::Allow);
}

#[test]
fn what_finds_no_room_is_counted_and_every_tap_has_its_own() {
    let mut node = Node::new();
    node.worker.set_tap(TAP, Some(filter()));
    node.worker.set_tap(TapId(8), Some(TapFilter { protocol: Some(protocol::TCP), ..filter() }));
    let room = Output::<MemoryFrame>::MAX_CAPTURES;
    let frames = vec![udp(POD_A, "10.0.1.2", "8.8.8.8", 1, 2); room + 5];
    let told = burst(&mut node, POD_A, &frames);
    assert_eq!(told.len(), room);
    assert!(told.iter().all(|captured| captured.tap == TAP && captured.lost_before == 0));
    assert_eq!(burst(&mut node, POD_A, &frames[..1])[0].lost_before, 5);
}
