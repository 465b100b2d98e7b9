//! Publication without a model: one thread, and a soak of two workers under a thousand changes a second.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use margay_core::frame::MemoryFrame;
use margay_core::topology::{Port, PortKind, TopologyBuilder};
use margay_core::{
    DropReason, Nanos, Output, Parcels, PortIndex, Spread, Topology, View, Worker, WorkerConfig, WorkerIndex,
};
use margay_io::exchange::{Exchange, INBOX, Inbox, Inboxes, Pass};
use margay_io::publish::{Subscriber, channel};
use margay_policy_engine::engine::{Change, Engine, LocalEndpoint};
use margay_policy_engine::model::{
    Action, Entity, Namespace, NamespacedName, Object, Order, Pod, Policy, PolicyFlags, PolicyKey,
    PolicyKind, PortMatch, Rule,
};
use margay_policy_engine::packet::EndpointId;
use margay_policy_engine::selector::Selector;
use margay_policy_engine::snapshot::Snapshot;
use margay_wire::{MacAddr, build, protocol};

#[test]
fn a_retired_value_lives_until_the_reader_has_a_newer_one() {
    let (publisher, mut reader) = channel::<String>();
    assert!(reader.load().0.is_none());
    let first = Arc::new("one".to_owned());
    publisher.publish(Arc::clone(&first), 1);
    assert_eq!(publisher.acknowledged(), 0);
    assert_eq!(reader.load().0.map(|n| n.value().as_str()), Some("one"));
    assert!(!reader.load().1);
    assert_eq!(publisher.acknowledged(), 1);

    publisher.publish(Arc::new("two".to_owned()), 2);
    assert_eq!(publisher.collect_retired(), 1);
    assert_eq!(Arc::strong_count(&first), 2);
    let (value, new) = reader.load();
    assert_eq!((value.map(|n| n.value().as_str()), new), (Some("two"), true));
    assert_eq!(publisher.collect_retired(), 0);
    assert_eq!(Arc::strong_count(&first), 1);
}

const PODS: u16 = 4;
/// Always allowed; packets to it must all arrive.
const OPEN: u16 = 80;
/// Allowed by the first leg under one version and by the second under the other, by both never.
const TORN: u16 = 81;

fn address(pod: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, 2 + pod as u8)
}

fn mac(kind: u8, pod: u16) -> MacAddr {
    MacAddr([2, kind, 0, 0, 0, pod as u8])
}

fn rule(action: Action, port: u16) -> Rule {
    let ports = vec![PortMatch::Range { first: port, last: port }];
    Rule {
        protocol: Some(protocol::UDP),
        destination: Entity { ports, ..Entity::default() },
        ..Rule::everything(action)
    }
}

fn half(egress: bool) -> Change {
    let rules = |allowed| {
        vec![rule(Action::Allow, OPEN), rule(if allowed { Action::Allow } else { Action::Deny }, TORN)]
    };
    Change::Upsert(Object::Policy(Arc::new(Policy {
        key: PolicyKey { kind: PolicyKind::GlobalNetworkPolicy, namespace: None, name: "half".to_owned() },
        tier: "default".to_owned(),
        order: Order(1.0),
        selector: Selector::parse("all()").ok(),
        governs_ingress: true,
        governs_egress: true,
        ingress: rules(!egress),
        egress: rules(egress),
        flags: PolicyFlags::default(),
        staged: None,
    })))
}

fn node() -> (Engine, Topology) {
    let mut engine = Engine::new();
    let namespace = Namespace { name: "ns".to_owned(), labels: Default::default() };
    engine.apply(Change::Upsert(Object::Namespace(Arc::new(namespace))));
    let mut builder = TopologyBuilder::default();
    for pod in 0..PODS {
        let key = NamespacedName { namespace: "ns".to_owned(), name: format!("pod{pod}") };
        let labels = [("projectcalico.org/namespace", "ns"), ("projectcalico.org/orchestrator", "k8s")];
        engine.apply(Change::Upsert(Object::Pod(Arc::new(Pod {
            key: key.clone(),
            uid: String::new(),
            labels: Arc::new(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            service_account: None,
            node: Some("node".to_owned()),
            host_network: false,
            finished: false,
            addresses: vec![address(pod).into()],
            annotated_addresses: Vec::new(),
            ports: Vec::new(),
            started: String::new(),
            annotations: Default::default(),
        }))));
        let (id, addresses) = (EndpointId(pod.into()), vec![IpAddr::from(address(pod))]);
        let endpoint = LocalEndpoint { id, pod: key, uid: String::new(), addresses: addresses.clone() };
        engine.apply(Change::Endpoint(endpoint));
        let kind = PortKind::Pod { endpoint: id, pod_mac: mac(1, pod), addresses };
        let name = format!("pod{pod}");
        builder.ports.push(Port { index: PortIndex(pod), name, kind, mac: mac(2, pod), mtu: 1500 });
    }
    (engine, builder.build(1).spread_over(Spread::new(2, [])))
}

struct Owned;

impl Pass for Owned {
    type Frame = MemoryFrame;
    type Loose = MemoryFrame;

    fn loosen(&self, frame: MemoryFrame) -> MemoryFrame {
        frame
    }

    fn fasten(&self, loose: MemoryFrame) -> MemoryFrame {
        loose
    }
}

/// What both threads of the soak share.
struct Soak {
    topology: Topology,
    inboxes: Vec<Arc<Inbox<MemoryFrame>>>,
    sending: AtomicBool,
    /// Workers that have given their last.
    done: AtomicU64,
    full: AtomicU64,
    open: [AtomicU64; 2],
    torn: AtomicU64,
}

impl Soak {
    /// One worker: its two pods call all others, by new flows and old ones, to the open port and the torn one.
    fn carry(&self, index: u16, mut policy: Subscriber<Snapshot>) -> u64 {
        let config = WorkerConfig {
            index: WorkerIndex(index),
            max_flows: 4096,
            hash_seed: 1,
            adoption_window: Nanos(0),
            ..WorkerConfig::default()
        };
        let mut worker: Worker<MemoryFrame> = Worker::new(config, Nanos(0));
        let mut exchange = Inboxes::new(WorkerIndex(index), self.inboxes.clone(), Owned);
        let (mut out, mut parcels, mut refused) = (Output::new(), Parcels::default(), Vec::new());
        let (mut number, mut generations, mut done) = (0u64, 0u64, false);
        let started = Instant::now();
        loop {
            let all_done = self.done.load(SeqCst) == 2;
            let (snapshot, new) = policy.load();
            generations += u64::from(new);
            let view = View { snapshot: snapshot.map(|s| s.value()), topology: &self.topology };
            let now = Nanos(1_000_000_000 + started.elapsed().as_nanos() as u64);
            let mut burst = Vec::new();
            let from = index + 2 * (number as u16 % 2);
            let sending = self.sending.load(Relaxed);
            if sending {
                for _ in 0..16 {
                    number += 1;
                    let to = (from + 1 + (number % 3) as u16) % PODS;
                    let port = if number % 2 == 0 { OPEN } else { TORN };
                    let near = (address(from).into(), 1024 + (number / 7 % 512) as u16);
                    let macs = (mac(1, from), mac(2, from));
                    let frame = build::udp(macs, near, (address(to).into(), port), b"soak");
                    self.open[0].fetch_add(u64::from(port == OPEN), Relaxed);
                    burst.push(MemoryFrame::new(&frame));
                }
            }
            worker.handle_burst(view, now, PortIndex(from), &mut burst, &mut out);
            let taken = exchange.take(&mut parcels, 4);
            worker.handle_handovers(view, now, &mut parcels, &mut out);
            exchange.give(&mut out.handovers, &mut refused);
            worker.handover_refused(&refused);
            refused.clear();
            for (_, frame) in out.transmit.drain(..) {
                let data = margay_core::Frame::data(&frame);
                let open = u16::from_be_bytes([data[36], data[37]]) == OPEN;
                if open { &self.open[1] } else { &self.torn }.fetch_add(1, Relaxed);
            }
            out.recycle.clear();
            out.events.clear();
            if !sending && !done {
                done = true;
                self.done.fetch_add(1, SeqCst);
            }
            if all_done && taken == 0 {
                break;
            }
        }
        let counters = worker.counters();
        assert_eq!(counters.beginnings(), counters.endings());
        self.full.fetch_add(counters.dropped(DropReason::HandoverFull), Relaxed);
        generations
    }
}

#[test]
fn a_thousand_swaps_a_second_tear_no_verdict_and_lose_no_packet() {
    let (mut engine, topology) = node();
    engine.apply(half(false));
    let versions = [engine.publish(), {
        engine.apply(half(true));
        engine.publish()
    }];
    let soak = Soak {
        topology,
        inboxes: (0..2).map(|_| Arc::new(Inbox::new(INBOX, Box::new(|| ())))).collect(),
        sending: AtomicBool::new(true),
        done: AtomicU64::new(0),
        full: AtomicU64::new(0),
        open: Default::default(),
        torn: AtomicU64::new(0),
    };
    let (publishers, readers): (Vec<_>, Vec<_>) = (0..2).map(|_| channel::<Snapshot>()).unzip();
    for publisher in &publishers {
        publisher.publish(Arc::clone(&versions[0]), 1);
    }
    let mut swaps = 0u64;
    let seen: Vec<u64> = std::thread::scope(|scope| {
        let soak = &soak;
        let workers: Vec<_> =
            (0..2).zip(readers).map(|(i, r)| scope.spawn(move || soak.carry(i, r))).collect();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(3) {
            swaps += 1;
            let next = &versions[swaps as usize % 2];
            for publisher in &publishers {
                publisher.publish(Arc::clone(next), next.generation().0);
            }
            std::thread::sleep(Duration::from_micros(900));
        }
        soak.sending.store(false, Relaxed);
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
    });
    let [sent, arrived] = [0, 1].map(|at| soak.open[at].load(Relaxed));
    println!("{swaps} swaps, {seen:?} seen by the workers, {sent} packets to the open port");
    assert_eq!(soak.torn.load(Relaxed), 0, "no packet is judged by halves of two versions");
    let full = soak.full.load(Relaxed);
    assert!(
        arrived <= sent && sent - arrived <= full,
        "sent {sent}, arrived {arrived}, {full} found an inbox full"
    );
    assert!(sent > 10_000 && seen.iter().all(|seen| *seen > 100), "a soak, not a drizzle: {sent}, {seen:?}");
}
