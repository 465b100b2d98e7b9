//! Two workers, one hand-over at a time: what each says to the other, and what it makes of what it is told (policy model 13.1, 13.6).

mod node;

use std::sync::Arc;

use margay_core::frame::MemoryFrame;
use margay_core::handover::{Errand, FirstLeg, Gist};
use margay_core::{
    DropReason, Frame, Handover, Nanos, Output, Parcels, PortIndex, Spread, View, Worker, WorkerConfig,
    WorkerIndex,
};
use margay_policy_engine::model::{Action, Object};
use margay_policy_engine::selector::Selector;
use margay_wire::build;
use margay_wire::parse::tcp_flags::{ACK, SYN};
use node::{HOST, Node, POD_A, POD_B, UPLINK, ip, policy, rule};

type Parcel = Handover<MemoryFrame>;

/// A node whose pod a is at worker 0 and whose pod b is at worker 1; the host port and the uplink's one queue are at worker 0.
struct Two {
    node: Node,
    workers: [Worker<MemoryFrame>; 2],
    out: Output<MemoryFrame>,
}

impl Two {
    fn new() -> Self {
        let mut node = Node::new();
        node.topology = node.builder.clone().build(2).spread_over(Spread::new(2, [(UPLINK, 1)]));
        let workers = [0, 1].map(|index| {
            let config = WorkerConfig {
                index: WorkerIndex(index),
                adoption_window: Nanos(0),
                max_flows: 64,
                ..WorkerConfig::default()
            };
            Worker::new(config, node.now)
        });
        Self { node, workers, out: Output::new() }
    }

    fn view<'a>(node: &'a Node) -> View<'a> {
        View { snapshot: node.snapshot.as_deref(), topology: &node.topology }
    }

    /// Sends a frame in where it arrives; returns what its worker gives to the other.
    fn send(&mut self, worker: usize, port: PortIndex, bytes: &[u8]) -> Vec<Parcel> {
        let frame = MemoryFrame::new(bytes);
        let view = Self::view(&self.node);
        self.workers[worker].handle_frame(view, self.node.now, port, frame, &mut self.out);
        self.books();
        self.out.recycle.clear();
        self.out.handovers.drain().map(|(_, parcel)| parcel).collect()
    }

    /// As [`Two::send`], in a burst: known flows go the short way.
    fn send_burst(&mut self, worker: usize, port: PortIndex, bytes: &[u8]) -> Vec<Parcel> {
        let view = Self::view(&self.node);
        let mut frames = vec![MemoryFrame::new(bytes)];
        self.workers[worker].handle_burst(view, self.node.now, port, &mut frames, &mut self.out);
        self.books();
        self.out.handovers.drain().map(|(_, parcel)| parcel).collect()
    }

    /// Gives a worker what the other gave it; returns the ports that it sent by, or why it dropped it.
    fn give(&mut self, worker: usize, parcel: Parcel) -> Result<Vec<PortIndex>, DropReason> {
        let before = self.workers[worker].counters().clone();
        let view = Self::view(&self.node);
        let port = parcel.port;
        self.workers[worker].handle_handovers(
            view,
            self.node.now,
            &mut Parcels::from_iter([parcel]),
            &mut self.out,
        );
        assert_eq!(self.workers[worker].at_hand(), Some(port), "whose packet it would have been");
        self.books();
        assert!(self.out.handovers.is_empty(), "a packet changes hands once");
        self.out.recycle.clear();
        let after = self.workers[worker].counters();
        match DropReason::ALL.iter().find(|reason| after.dropped(**reason) > before.dropped(**reason)) {
            Some(reason) => Err(*reason),
            None => Ok(self.out.transmit.drain(..).map(|(port, _)| port).collect()),
        }
    }

    fn books(&self) {
        for worker in &self.workers {
            assert_eq!(worker.counters().beginnings(), worker.counters().endings());
        }
    }
}

fn udp(from: PortIndex) -> Vec<u8> {
    let (a, b) = ((ip("10.0.1.2"), 1000), (ip("10.0.1.3"), 2000));
    let (near, far) = if from == POD_A { (a, b) } else { (b, a) };
    build::udp(Node::macs(from), near, far, b"x")
}

fn only(mut parcels: Vec<Parcel>) -> Parcel {
    assert_eq!(parcels.len(), 1, "one packet changes hands");
    parcels.remove(0)
}

fn word(parcel: &Parcel) -> FirstLeg {
    match parcel.errand {
        Errand::Judge(first) => first,
        _ => panic!("not to be judged: {:?}", parcel.errand),
    }
}

#[test]
fn a_call_and_its_answer_change_hands_once_each_way() {
    let mut two = Two::new();
    for _ in 0..2 {
        let parcel = only(two.send(0, POD_A, &udp(POD_A)));
        assert!(word(&parcel).forward);
        assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
        let parcel = only(two.send(1, POD_B, &udp(POD_B)));
        assert!(!word(&parcel).forward, "the answer goes towards the opener");
        assert_eq!(two.give(0, parcel), Ok(vec![POD_A]));
    }
    let hits: Vec<_> = two.workers.iter().map(|w| (w.counters().flows, w.counters().flow_misses)).collect();
    assert_eq!(hits, [(1, 1), (1, 1)], "one entry at each");
}

#[test]
fn what_was_read_changes_hands_and_a_taker_with_another_secret_reads_it_again() {
    for secrets in [[1, 1], [1, 2]] {
        let mut two = Two::new();
        for (index, hash_seed) in secrets.into_iter().enumerate() {
            let config = WorkerConfig {
                index: WorkerIndex(index as u16),
                hash_seed,
                max_flows: 64,
                ..WorkerConfig::default()
            };
            two.workers[index] = Worker::new(config, two.node.now);
        }
        for round in 0..4 {
            let parcel = only(two.send_burst(0, POD_A, &udp(POD_A)));
            assert_ne!(parcel.gist, Gist::default(), "packet {round}");
            assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
        }
        let counted = two.workers.iter().map(|w| (w.counters().flows, w.counters().flow_misses));
        assert_eq!(counted.collect::<Vec<_>>(), [(1, 1), (1, 1)], "one entry at each, whatever was hinted");
        // What is refused at the taker stays so, however well it was told where to look.
        two.node.apply(policy("deny", "b", Some(vec![rule(Action::Deny, None)]), None));
        let old = only(two.send_burst(0, POD_A, &udp(POD_A)));
        assert_eq!(two.give(1, old), Err(DropReason::PolicyIngress));
    }
}

#[test]
fn what_the_second_leg_refuses_leaves_no_trace_at_the_first() {
    let mut two = Two::new();
    two.node.apply(policy("deny", "b", Some(vec![rule(Action::Deny, None)]), None));
    assert!(two.send(0, POD_A, &udp(POD_A)).is_empty());
    assert_eq!(two.workers[0].counters().dropped(DropReason::PolicyIngress), 1);
    assert_eq!(two.workers[0].counters().flows, 0);
}

#[test]
fn two_openers_of_one_flow_are_no_answers_to_each_other() {
    let mut two = Two::new();
    // Both call at once, and both packets are lost on the way to the other worker.
    drop(only(two.send(0, POD_A, &udp(POD_A))));
    drop(only(two.send(1, POD_B, &udp(POD_B))));
    // Now nobody may call a any more; a may still call b.
    two.node.apply(policy("deny", "a", Some(vec![rule(Action::Deny, None)]), None));
    let parcel = only(two.send(1, POD_B, &udp(POD_B)));
    assert!(word(&parcel).forward, "for b's worker it is b's own flow");
    assert_eq!(two.give(0, parcel), Err(DropReason::PolicyIngress), "a's own call does not let it in");
    // A's call is allowed, and makes it a's flow at both.
    let parcel = only(two.send(0, POD_A, &udp(POD_A)));
    assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
    let parcel = only(two.send(1, POD_B, &udp(POD_B)));
    assert!(!word(&parcel).forward);
    assert_eq!(two.give(0, parcel), Ok(vec![POD_A]), "now it is an answer");
}

#[test]
fn another_snapshot_at_the_second_worker_judges_both_legs() {
    let mut two = Two::new();
    let egress = policy("half", "a", None, Some(vec![rule(Action::Deny, None)]));
    let parcel = only(two.send(0, POD_A, &udp(POD_A)));
    assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
    let parcel = only(two.send(0, POD_A, &udp(POD_A)));
    // Under way, the sender's egress is denied.
    two.node.apply(egress);
    assert_eq!(two.give(1, parcel), Err(DropReason::PolicyEgress));
}

/// What an address is can change while every table stays as it is: flows are judged again for that too, at both workers and on either way.
#[test]
fn a_sender_that_becomes_somebody_else_is_judged_again_at_the_taker() {
    let from = |app: &str| {
        let mut allow = rule(Action::Allow, None);
        allow.source.selector = Some(Selector::parse(&format!("app == '{app}'")).expect("a selector"));
        policy("in", "b", Some(vec![allow]), None)
    };
    let remote = build::udp(
        (node::peer_mac(UPLINK), node::our_mac(UPLINK)),
        (ip("10.0.2.9"), 53),
        (ip("10.0.1.3"), 2000),
        b"x",
    );
    for (port, bytes, app, addresses) in [
        (POD_A, udp(POD_A), "a", ["10.0.1.2", "fd00:1::2"]),
        (UPLINK, remote, "remote", ["10.0.2.9", "fd00:2::9"]),
    ] {
        let mut two = Two::new();
        two.node.apply(from(app));
        for _ in 0..3 {
            let parcel = only(two.send_burst(0, port, &bytes));
            assert_eq!(two.give(1, parcel), Ok(vec![POD_B]), "{app}");
        }
        let mut stranger = node::pod("ns", app, &addresses);
        if let Object::Pod(pod) = &mut stranger {
            let pod = Arc::make_mut(pod);
            Arc::make_mut(&mut pod.labels).insert("app".into(), "stranger".into());
        }
        two.node.apply(stranger);
        let parcel = only(two.send_burst(0, port, &bytes));
        assert_eq!(two.give(1, parcel), Err(DropReason::PolicyIngress), "{app}");
    }
}

#[test]
fn tcp_in_mid_flow_is_taken_over_only_when_both_ends_have_spoken() {
    let tcp = |from: PortIndex, flags| {
        let (a, b) = ((ip("10.0.1.2"), 1000), (ip("10.0.1.3"), 2000));
        let (near, far) = if from == POD_A { (a, b) } else { (b, a) };
        build::tcp(Node::macs(from), near, far, flags, b"")
    };
    let mut two = Two::new();
    // The call never arrives at the second worker, so what follows it is no connection there.
    drop(only(two.send(0, POD_A, &tcp(POD_A, SYN))));
    let parcel = only(two.send(0, POD_A, &tcp(POD_A, ACK)));
    assert_eq!(two.give(1, parcel), Err(DropReason::InvalidState));

    let parcel = only(two.send(0, POD_A, &tcp(POD_A, SYN)));
    assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
    let parcel = only(two.send(1, POD_B, &tcp(POD_B, SYN | ACK)));
    assert_eq!(two.give(0, parcel), Ok(vec![POD_A]));
    // The second worker starts anew; the first one's word is enough.
    two.workers[1] = Two::new().workers.into_iter().nth(1).expect("two");
    let parcel = only(two.send(0, POD_A, &tcp(POD_A, ACK)));
    assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
}

#[test]
fn the_uplink_and_the_host_port_hand_over_unjudged_and_sending_needs_no_second_look() {
    let mut two = Two::new();
    let macs = (node::ROUTER_MAC, node::our_mac(UPLINK));
    let call = build::udp(macs, (ip("8.8.8.8"), 53), (ip("10.0.1.3"), 2000), b"x");
    let parcel = only(two.send(0, UPLINK, &call));
    assert_eq!((parcel.errand, two.workers[0].counters().flows), (Errand::Take, 0));
    assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
    let answer = build::udp(Node::macs(POD_B), (ip("10.0.1.3"), 2000), (ip("8.8.8.8"), 53), b"x");
    let parcel = only(two.send(1, POD_B, &answer));
    assert_eq!((parcel.errand, parcel.port), (Errand::Send, UPLINK));
    assert_eq!(margay_wire::parse(parcel.frame.data()).expect("well-formed").source, node::our_mac(UPLINK));
    assert_eq!(two.give(0, parcel), Ok(vec![UPLINK]));
    assert_eq!(two.workers[0].counters().taken, 0, "nothing is judged for sending");

    let probe = build::udp(Node::macs(HOST), (ip("192.168.0.1"), 9), (ip("10.0.1.3"), 2000), b"x");
    let parcel = only(two.send(0, HOST, &probe));
    assert_eq!(parcel.errand, Errand::Take);
    assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
}
