//! Two workers, one hand-over at a time: what each says to the other, and what it makes of what it is told (policy model 13.1, 13.6).

mod node;

use std::sync::Arc;

use margay_core::frame::MemoryFrame;
use margay_core::handover::{Errand, Gist, Told};
use margay_core::topology::PortKind;
use margay_core::worker::{PolicyChangeFlowAction, TapFilter, TapId};
use margay_core::{
    Counters, DropReason, Frame, Handover, Nanos, Output, Parcels, PortIndex, Spread, View, Worker,
    WorkerConfig, WorkerIndex,
};
use margay_policy_engine::model::{Action, Object};
use margay_policy_engine::selector::Selector;
use margay_wire::build;
use margay_wire::parse::tcp_flags::{ACK, FIN, SYN};
use node::{HOST, Node, POD_A, POD_B, UPLINK, ip, policy, rule};

type Parcel = Handover<MemoryFrame>;

/// Longer than the 134 ms in which the other worker hears of a flow once.
const STEP: Nanos = Nanos(140_000_000);

/// A node whose pod a is at worker 0 and whose pod b is at worker 1; the host port and the uplink's one queue are at worker 0.
struct Two {
    node: Node,
    workers: [Worker<MemoryFrame>; 2],
    out: Output<MemoryFrame>,
}

impl Two {
    fn new() -> Self {
        Self::with(PolicyChangeFlowAction::Reevaluate)
    }

    fn with(policy_change: PolicyChangeFlowAction) -> Self {
        let mut node = Node::new();
        node.topology = node.builder.clone().build(2).spread_over(Spread::new(2, [(UPLINK, 1)]));
        let workers = [0, 1].map(|index| {
            let config = WorkerConfig {
                index: WorkerIndex(index),
                adoption_window: Nanos(0),
                max_flows: 64,
                policy_change,
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
        let is_finished = matches!(parcel.errand, Errand::Deliver(_));
        self.workers[worker].handle_handovers(
            view,
            self.node.now,
            &mut Parcels::from_iter([parcel]),
            &mut self.out,
        );
        let at_hand = Some(port).filter(|_| !is_finished);
        assert_eq!(self.workers[worker].at_hand(), at_hand, "whose packet it would have been");
        self.books();
        assert!(self.out.handovers.is_empty(), "a packet changes hands once");
        self.out.recycle.clear();
        let after = self.workers[worker].counters();
        match DropReason::ALL.iter().find(|reason| after.dropped(**reason) > before.dropped(**reason)) {
            Some(reason) => Err(*reason),
            None => Ok(self.out.transmit.drain(..).map(|(port, _)| port).collect()),
        }
    }

    fn wait(&mut self, span: Nanos) {
        self.node.now = self.node.now + span;
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

fn tcp(from: PortIndex, flags: u8) -> Vec<u8> {
    let (a, b) = ((ip("10.0.1.2"), 1000), (ip("10.0.1.3"), 2000));
    let (near, far) = if from == POD_A { (a, b) } else { (b, a) };
    build::tcp(Node::macs(from), near, far, flags, b"")
}

fn only(mut parcels: Vec<Parcel>) -> Parcel {
    assert_eq!(parcels.len(), 1, "one packet changes hands");
    parcels.remove(0)
}

fn word(parcel: &Parcel) -> Told {
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
        // Who has just heard of the flow does not say it back.
        two.wait(STEP);
        let parcel = only(two.send(1, POD_B, &udp(POD_B)));
        assert!(!word(&parcel).forward, "the answer goes towards the opener");
        assert_eq!(two.give(0, parcel), Ok(vec![POD_A]));
        two.wait(STEP);
    }
    let hits: Vec<_> = two.workers.iter().map(|w| (w.counters().flows, w.counters().flow_misses)).collect();
    assert_eq!(hits, [(1, 1), (1, 1)], "one entry at each");
}

/// Whichever way packets take, the other worker hears of a flow's first one, of the first answer, and once in 134 ms; all others are
/// finished, and only sent.
#[test]
fn the_other_worker_hears_of_what_is_news_and_sends_the_rest() {
    for burst in [false, true] {
        let mut two = Two::new();
        let send = |two: &mut Two, from: PortIndex| {
            let (here, to) = if from == POD_A { (0, POD_B) } else { (1, POD_A) };
            let parcel = only(match burst {
                true => two.send_burst(here, from, &udp(from)),
                false => two.send(here, from, &udp(from)),
            });
            let told = match parcel.errand {
                Errand::Judge(_) => true,
                Errand::Deliver(_) => {
                    assert_eq!(parcel.port, to, "by the port that it leaves by");
                    let sent = margay_wire::parse(parcel.frame.data()).expect("well-formed");
                    assert_eq!((sent.source, sent.destination), (node::our_mac(to), node::peer_mac(to)));
                    false
                }
                errand => panic!("{errand:?}"),
            };
            assert_eq!(two.give(1 - here, parcel), Ok(vec![to]));
            told
        };
        let heard = |two: &mut Two, from: &[PortIndex]| -> Vec<bool> {
            from.iter().map(|from| send(two, *from)).collect()
        };
        let (a, b) = (POD_A, POD_B);
        assert_eq!(heard(&mut two, &[a, a, a]), [true, false, false], "the opener's first");
        assert_eq!(heard(&mut two, &[b, b, a, b]), [true, false, false, false], "the first answer");
        two.wait(STEP);
        assert_eq!(heard(&mut two, &[b, b, a, a]), [true, false, false, false], "whoever is first says it");
        two.wait(STEP);
        assert_eq!(heard(&mut two, &[a, a, b, b]), [true, false, false, false]);
        for worker in &two.workers {
            let counters = worker.counters();
            assert_eq!((counters.flows, counters.flow_misses), (1, 1));
            assert_eq!(counters.taken, counters.forwarded);
        }
        let sums = |of: fn(&Counters) -> u64| two.workers.iter().map(|it| of(it.counters())).sum::<u64>();
        assert_eq!((sums(|it| it.handed_over), sums(|it| it.taken)), (15, 15));
    }
}

/// What found no room in the other worker's inbox is said with the flow's next packet.
#[test]
fn what_could_not_be_said_is_said_again() {
    for burst in [false, true] {
        let mut two = Two::new();
        let send = |two: &mut Two| {
            only(match burst {
                true => two.send_burst(0, POD_A, &udp(POD_A)),
                false => two.send(0, POD_A, &udp(POD_A)),
            })
        };
        // As often as nothing is heard in one turn: the flow is told again, and not that many times shorter.
        two.workers[0].set_tap(TapId(1), Some(TapFilter::default()));
        let lost: Vec<_> = (0..9).map(|_| send(&mut two)).collect();
        two.workers[0].set_tap(TapId(1), None);
        assert!(lost.iter().all(|parcel| word(parcel).forward), "what is watched is news");
        two.workers[0].handover_refused(&lost);
        two.books();
        let flow = two.workers[0].flows(Two::view(&two.node), two.node.now, 0, 9).0.remove(0);
        assert!(flow.expires_in > Nanos::from_secs(60) - STEP, "{:?}", flow.expires_in);
        let next = send(&mut two);
        assert!(word(&next).forward);
        assert_eq!(two.give(1, next), Ok(vec![POD_B]));
        // One that was finished had nothing to say.
        for _ in 0..2 {
            let finished = send(&mut two);
            assert!(matches!(finished.errand, Errand::Deliver(_)), "{:?}", finished.errand);
            two.workers[0].handover_refused(&[finished]);
            two.books();
        }
        assert_eq!(two.workers[0].counters().dropped(DropReason::HandoverFull), 9 + 2);
        let answer = only(two.send(1, POD_B, &udp(POD_B)));
        assert!(!word(&answer).forward, "it knows who called");
    }
}

#[test]
fn every_segment_that_changes_a_connection_is_heard_of() {
    let mut two = Two::new();
    let send = |two: &mut Two, from: PortIndex, flags| {
        let (here, to) = if from == POD_A { (0, POD_B) } else { (1, POD_A) };
        let parcel = only(two.send_burst(here, from, &tcp(from, flags)));
        let told = matches!(parcel.errand, Errand::Judge(_));
        assert_eq!(two.give(1 - here, parcel), Ok(vec![to]));
        told
    };
    let (a, b) = (POD_A, POD_B);
    for (from, flags, heard) in [
        (a, SYN, true),
        (a, SYN, true),
        (b, SYN | ACK, true),
        (b, SYN | ACK, true),
        (a, ACK, false),
        (b, ACK, false),
        (a, FIN | ACK, true),
        (a, FIN | ACK, true),
        (b, ACK, false),
        (b, FIN | ACK, true),
        (a, ACK, true),
    ] {
        assert_eq!(send(&mut two, from, flags), heard, "{flags:#x} of {from}");
    }
    let record = two.workers[0].flows(Two::view(&two.node), two.node.now, 0, 9).0.remove(0);
    assert_eq!(record.state, "closing");
    // Both know that both ends have ended it.
    two.wait(Nanos::from_secs(31));
    for worker in &mut two.workers {
        worker.handle_timeout(Two::view(&two.node), two.node.now, &mut two.out);
        assert_eq!(worker.counters().flows, 0, "what is over is forgotten after 30 s, at either");
    }
}

/// A pod that has gone since a packet to it was finished gets it no more, and nobody else does; one that is where it was does.
#[test]
fn a_finished_packet_goes_to_its_pod_or_to_nobody() {
    let under_way = |two: &mut Two| {
        let parcel = only(two.send_burst(0, POD_A, &udp(POD_A)));
        assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
        let parcel = only(two.send_burst(0, POD_A, &udp(POD_A)));
        assert!(matches!(parcel.errand, Errand::Deliver(_)));
        parcel
    };
    // A newer topology, in which b's port is as `change` makes it.
    let given_under = |change: fn(&mut PortKind)| {
        let mut two = Two::new();
        let parcel = under_way(&mut two);
        let mut builder = two.node.builder.clone();
        let b = builder.ports.iter_mut().find(|port| port.index == POD_B).expect("its port");
        change(&mut b.kind);
        two.node.topology = builder.build(3).spread_over(Spread::new(2, [(UPLINK, 1)]));
        (two.give(1, parcel), two.out.events.last().map(|event| event.port))
    };
    assert_eq!(given_under(|_| ()), (Ok(vec![POD_B]), None), "the same pod");
    let to_nobody = (Err(DropReason::NoPort), Some(POD_A));
    let moved = given_under(|kind| {
        if let PortKind::Pod { addresses, .. } = kind {
            *addresses = vec![ip("10.0.1.77")];
        }
    });
    assert_eq!(moved, to_nobody, "somebody else is behind that port; told as the sender's");
    let made_anew = given_under(|kind| {
        if let PortKind::Pod { pod_mac, .. } = kind {
            *pod_mac = node::mac(0x55);
        }
    });
    assert_eq!(
        made_anew, to_nobody,
        "with the same address behind the same number, not the pod it was judged for"
    );
}

/// All packets of a flow are counted by the worker that they arrive at, and both workers are asked.
#[test]
fn a_flow_between_two_workers_is_told_with_all_its_packets() {
    // Either end of the key may be the opener's.
    for opener in [0, 1] {
        let mut two = Two::new();
        let pods = [POD_A, POD_B];
        for (here, count) in [(opener, 5), (1 - opener, 7)] {
            for _ in 0..count {
                let parcel = only(two.send_burst(here, pods[here], &udp(pods[here])));
                assert_eq!(two.give(1 - here, parcel), Ok(vec![pods[1 - here]]));
            }
        }
        let told = |worker: usize| two.workers[worker].flows(Two::view(&two.node), two.node.now, 0, 9);
        let (mut records, next) = told(opener);
        assert_eq!((records.len(), next), (1, None));
        assert!(told(1 - opener).0.is_empty(), "told once");
        let record = &mut records[0];
        let other = WorkerIndex(1 - opener as u16);
        assert_eq!(record.elsewhere, Some(other));
        record.learn(two.workers[usize::from(other.0)].counted(&[record.key])[0]);
        assert_eq!((record.forward.0, record.reverse.0), (5, 7));
    }
    // Both called: each is the opener to its own worker.
    let mut two = Two::new();
    for (here, pod, count) in [(0, POD_A, 3), (1, POD_B, 4)] {
        for _ in 0..count {
            drop(only(two.send_burst(here, pod, &udp(pod))));
        }
    }
    let told =
        |worker: usize| two.workers[worker].flows(Two::view(&two.node), two.node.now, 0, 9).0.remove(0);
    for (here, packets) in [(0, (3, 4)), (1, (4, 3))] {
        let mut record = told(here);
        record.learn(two.workers[1 - here].counted(&[record.key])[0]);
        assert_eq!((record.forward.0, record.reverse.0), packets);
    }
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
            two.wait(STEP);
            let parcel = only(two.send_burst(0, POD_A, &udp(POD_A)));
            assert_ne!(parcel.gist, Gist::default(), "packet {round}");
            assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
        }
        let counted = two.workers.iter().map(|w| (w.counters().flows, w.counters().flow_misses));
        assert_eq!(counted.collect::<Vec<_>>(), [(1, 1), (1, 1)], "one entry at each, whatever was hinted");
        // What is refused at the taker is, however well it was told where to look.
        two.wait(STEP);
        let old = only(two.send_burst(0, POD_A, &udp(POD_A)));
        two.node.apply(policy("deny", "b", Some(vec![rule(Action::Deny, None)]), None));
        assert_eq!(two.give(1, old), Err(DropReason::PolicyIngress));
    }
}

#[test]
fn what_either_leg_refuses_leaves_no_trace() {
    let mut two = Two::new();
    two.node.apply(policy("deny", "b", Some(vec![rule(Action::Deny, None)]), None));
    assert!(two.send(0, POD_A, &udp(POD_A)).is_empty());
    assert_eq!(two.workers[0].counters().dropped(DropReason::PolicyIngress), 1);
    assert_eq!(two.workers[0].counters().flows, 0);
}

#[test]
fn what_policy_refuses_later_is_refused_where_it_arrives() {
    for burst in [false, true] {
        for (pod, ingress) in [("b", true), ("a", false)] {
            let mut two = Two::new();
            let send = |two: &mut Two| match burst {
                true => two.send_burst(0, POD_A, &udp(POD_A)),
                false => two.send(0, POD_A, &udp(POD_A)),
            };
            for _ in 0..2 {
                let parcel = only(send(&mut two));
                assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
            }
            let deny = || Some(vec![rule(Action::Deny, None)]);
            let (rules, reason) = match ingress {
                true => ((deny(), None), DropReason::PolicyIngress),
                false => ((None, deny()), DropReason::PolicyEgress),
            };
            two.node.apply(policy("deny", pod, rules.0, rules.1));
            assert!(send(&mut two).is_empty(), "nobody else is asked");
            assert_eq!(two.workers[0].counters().dropped(reason), 1);
        }
    }
}

/// With `policyChangeFlowAction: Keep` what has begun goes on at both workers, and nothing begins.
#[test]
fn what_is_kept_is_kept_by_both() {
    for burst in [false, true] {
        let mut two = Two::with(PolicyChangeFlowAction::Keep);
        let pass = |two: &mut Two, from: PortIndex| {
            let (here, to) = if from == POD_A { (0, POD_B) } else { (1, POD_A) };
            let parcel = only(match burst {
                true => two.send_burst(here, from, &udp(from)),
                false => two.send(here, from, &udp(from)),
            });
            assert_eq!(two.give(1 - here, parcel), Ok(vec![to]));
        };
        pass(&mut two, POD_A);
        pass(&mut two, POD_B);
        two.node.apply(policy("deny", "b", Some(vec![rule(Action::Deny, None)]), None));
        for _ in 0..2 {
            // News, and then what is none.
            pass(&mut two, POD_A);
            pass(&mut two, POD_A);
            pass(&mut two, POD_B);
            two.wait(STEP);
        }
        // Told under the snapshot before a change, heard under the one after it.
        let parcel = only(two.send_burst(0, POD_A, &udp(POD_A)));
        two.node.apply(policy("deny", "b", Some(vec![rule(Action::Deny, Some(17))]), None));
        assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
        let new = build::udp(Node::macs(POD_A), (ip("10.0.1.2"), 1001), (ip("10.0.1.3"), 2000), b"x");
        assert!(two.send_burst(0, POD_A, &new).is_empty());
        assert_eq!(two.workers[0].counters().dropped(DropReason::PolicyIngress), 1);
    }
}

#[test]
fn two_openers_of_one_flow_are_no_answers_to_each_other() {
    let mut two = Two::new();
    // Both call at once, and both packets are lost on the way to the other worker.
    drop(only(two.send(0, POD_A, &udp(POD_A))));
    drop(only(two.send(1, POD_B, &udp(POD_B))));
    two.wait(STEP);
    let parcel = only(two.send(1, POD_B, &udp(POD_B)));
    assert!(word(&parcel).forward, "for b's worker it is b's own flow");
    // Now nobody may call a any more; a may still call b.
    two.node.apply(policy("deny", "a", Some(vec![rule(Action::Deny, None)]), None));
    assert_eq!(two.give(0, parcel), Err(DropReason::PolicyIngress), "a's own call does not let it in");
    assert!(two.send(1, POD_B, &udp(POD_B)).is_empty(), "nor is it let out any more");
    assert_eq!(two.workers[1].counters().dropped(DropReason::PolicyIngress), 1);
    // A's call is allowed, and makes it a's flow at both.
    two.wait(STEP);
    let parcel = only(two.send(0, POD_A, &udp(POD_A)));
    assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
    let parcel = only(two.send(1, POD_B, &udp(POD_B)));
    assert!(!word(&parcel).forward);
    assert_eq!(two.give(0, parcel), Ok(vec![POD_A]), "now it is an answer");
}

#[test]
fn another_snapshot_at_the_second_worker_judges_again() {
    let mut two = Two::new();
    let egress = policy("half", "a", None, Some(vec![rule(Action::Deny, None)]));
    let parcel = only(two.send(0, POD_A, &udp(POD_A)));
    assert_eq!(two.give(1, parcel), Ok(vec![POD_B]));
    two.wait(STEP);
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
            two.wait(STEP);
            let parcel = only(two.send_burst(0, port, &bytes));
            assert_eq!(two.give(1, parcel), Ok(vec![POD_B]), "{app}");
        }
        two.wait(STEP);
        let parcel = only(two.send_burst(0, port, &bytes));
        let mut stranger = node::pod("ns", app, &addresses);
        if let Object::Pod(pod) = &mut stranger {
            let pod = Arc::make_mut(pod);
            Arc::make_mut(&mut pod.labels).insert("app".into(), "stranger".into());
        }
        two.node.apply(stranger);
        assert_eq!(two.give(1, parcel), Err(DropReason::PolicyIngress), "{app}");
    }
}

#[test]
fn tcp_in_mid_flow_is_taken_over_only_when_both_ends_have_spoken() {
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
    two.wait(STEP);
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
