//! The short ways of a burst and the long way of single frames decide and write the same, and remember the same.
//!
//! Two sets of workers live through the same history: policies that come and go, named ports that move, encryption that is switched, time.
//! To one every packet is given by itself, to the other in bursts. What leaves by which port, every counter of every worker and every flow
//! must be alike. What a packet that was given to another worker meets there is the business of `two_workers` and of the simulation, which
//! also compares several workers with one.

mod node;

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_core::frame::MemoryFrame;
use margay_core::handover::Errand;
use margay_core::topology::Route;
use margay_core::tunnel::plan::{EncryptionPlan, FamilyPlan, OwnEnd};
use margay_core::tunnel::{Encryption, PrivateKey};
use margay_core::worker::EndpointToHost;
use margay_core::{
    Counters, Nanos, Output, Parcels, PortIndex, Spread, View, Worker, WorkerConfig, WorkerIndex,
};
use margay_policy_engine::model::{Action, Entity, NamedPort, Object, PortMatch, Rule};
use margay_wire::parse::tcp_flags::{ACK, FIN, RST, SYN};
use margay_wire::{MacAddr, build, checksum, protocol};
use node::{HOST, Node, POD_A, POD_B, ROUTER_MAC, UPLINK, ip, mac, our_mac, peer_mac, policy, rule};
use proptest::prelude::*;

/// Somebody who speaks: the port that we hear them on, and their addresses.
type Place = (PortIndex, [&'static str; 2]);

const A: Place = (POD_A, ["10.0.1.2", "fd00:1::2"]);
const B: Place = (POD_B, ["10.0.1.3", "fd00:1::3"]);
const REMOTE: Place = (UPLINK, ["10.0.2.9", "fd00:2::9"]);
const OUTSIDE: Place = (UPLINK, ["8.8.8.8", "2001:db8::8"]);
const NODE: Place = (HOST, ["192.168.0.1", "fd00::1"]);

const PAIRS: [[Place; 2]; 7] =
    [[A, B], [A, REMOTE], [B, REMOTE], [A, OUTSIDE], [NODE, A], [NODE, B], [OUTSIDE, NODE]];

#[derive(Clone, Copy, Debug)]
enum Event {
    Nothing,
    /// Pod b is open to TCP alone, or to all again.
    OnlyTcp(bool),
    /// A policy that concerns nobody.
    Unrelated(bool),
    /// Pod b is open at port 81.
    IngressByNumber(bool),
    /// Pod b is open where it declares a port by the name of `web`.
    IngressByName(bool),
    /// Pod a may speak where others declare one.
    EgressByName(bool),
    /// The name is declared for these ports of TCP and UDP.
    Declare(u16, u16),
    Rebuild,
    Wait,
    Encrypt(Encrypted),
}

#[derive(Clone, Copy, Debug)]
enum Encrypted {
    /// A plan that nobody is part of, with an end of ours or none.
    Idle(bool),
    /// Nothing may go to or come from other nodes' pods in clear, and nobody has a key.
    Required,
}

/// What happens, and what is sent then.
#[derive(Clone, Debug)]
struct Step {
    event: Event,
    pair: usize,
    kind: u8,
    forward: bool,
    v6: bool,
    ttl: u8,
    damage: Option<(usize, u8)>,
    /// Of the sender and of the receiver: 0 is the right one.
    macs: (u8, u8),
    repeat: u16,
    number: u16,
    /// All packets have the same ports, rather than each its own.
    alike: bool,
}

impl Step {
    /// Returns where the packets come from.
    fn from(&self) -> Place {
        PAIRS[self.pair][usize::from(!self.forward)]
    }

    fn packet(&self, more: u16) -> Vec<u8> {
        let number = usize::from(self.number + if self.alike { 0 } else { more });
        // Of UDP one is VXLAN, which pods may not send.
        let far_port = [80, 81, 80, 443, 81, 4789, 80, 81, 443][number];
        let [near, far] = PAIRS[self.pair].map(|(_, addresses)| ip(addresses[usize::from(self.v6)]));
        let (near, far) = ((near, 4000 + number as u16), (far, far_port));
        let (from, to) = if self.forward { (near, far) } else { (far, near) };
        let port = self.from().0;
        let usual = if self.from() == OUTSIDE { ROUTER_MAC } else { peer_mac(port) };
        let other = if usual == ROUTER_MAC { peer_mac(UPLINK) } else { ROUTER_MAC };
        let macs = (
            [usual, other, mac(0x77), MacAddr::BROADCAST][usize::from(self.macs.0)],
            [our_mac(port), mac(0x78), MacAddr::BROADCAST][usize::from(self.macs.1)],
        );
        let mut bytes = match self.kind {
            0 => build::udp(macs, from, to, b"payload"),
            1 => build::tcp(macs, from, to, ACK, b"payload"),
            2 => build::tcp(macs, from, to, if self.forward { SYN } else { SYN | ACK }, b""),
            3 => build::tcp(macs, from, to, FIN | ACK, b""),
            _ => build::tcp(macs, from, to, RST, b""),
        };
        if self.v6 {
            bytes[14 + 7] = self.ttl;
        } else {
            bytes[14 + 8] = self.ttl;
            bytes[24..26].fill(0);
            let sum = checksum::of(&bytes[14..34]);
            bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        if let Some((at, value)) = self.damage
            && let Some(byte) = bytes.get_mut(at)
        {
            *byte = value;
        }
        bytes
    }
}

/// What both sets of workers see.
struct Scene {
    node: Node,
    spread: Spread,
    encryption: Option<Arc<Encryption>>,
    plans: u64,
}

impl Scene {
    fn new(spread: Spread) -> Self {
        let mut node = Node::new();
        let router = ip("fd00::fe");
        let out = Route::Port { port: UPLINK, gateway: Some(router) };
        node.builder.routes.push(("::/0".parse().expect("a prefix"), out));
        node.builder.neighbours.push((UPLINK, router, ROUTER_MAC));
        let mut scene = Self { node, spread, encryption: None, plans: 0 };
        scene.declare(80, 81);
        scene.rebuild();
        scene
    }

    fn rebuild(&mut self) {
        self.node.rebuild();
        let topology = std::mem::take(&mut self.node.topology);
        self.node.topology =
            topology.spread_over(self.spread.clone()).with_encryption(self.encryption.clone());
    }

    fn declare(&mut self, tcp: u16, udp: u16) {
        let Object::Pod(mut pod) = node::pod("ns", "b", &B.1) else { unreachable!("a pod") };
        let port = |protocol, port| NamedPort {
            name: "web".to_owned(),
            protocol,
            port,
            host_port: None,
            host_ip: None,
        };
        Arc::make_mut(&mut pod).ports = vec![port(protocol::TCP, tcp), port(protocol::UDP, udp)];
        self.node.apply(Object::Pod(pod));
    }

    fn put(&mut self, object: Object, is_there: bool) {
        if is_there { self.node.apply(object) } else { self.node.delete(&object) }
    }

    fn encrypt(&mut self, how: Encrypted) {
        self.plans += 1;
        let own =
            OwnEnd { keys: vec![PrivateKey::new([1; 32])], port: 51820, address: ip(NODE.1[0]), mtu: 0 };
        let plan = EncryptionPlan { generation: self.plans, ..EncryptionPlan::default() };
        let required = [REMOTE.1[0], REMOTE.1[1]].map(|address| (ip(address).into(), true));
        let plan = match how {
            Encrypted::Idle(false) => plan,
            Encrypted::Idle(true) => EncryptionPlan { v4: Some(FamilyPlan { own, peers: vec![] }), ..plan },
            Encrypted::Required => EncryptionPlan { required: required.to_vec(), ..plan },
        };
        self.encryption = Some(Arc::new(Encryption::new(&plan, self.encryption.as_deref())));
        self.rebuild();
    }

    fn view(&self) -> View<'_> {
        View { snapshot: self.node.snapshot.as_deref(), topology: &self.node.topology }
    }
}

const PROTOCOLS: [u8; 2] = [protocol::TCP, protocol::UDP];

fn web() -> PortMatch {
    PortMatch::Named("web".to_owned())
}

fn to_ports(protocol: u8, port: PortMatch) -> Rule {
    let destination = Entity { ports: vec![port], ..Entity::default() };
    Rule { destination, ..rule(Action::Allow, Some(protocol)) }
}

/// What left, by the worker that sent it.
type Sent = Vec<Vec<(PortIndex, Vec<u8>)>>;

/// The workers of a node.
struct Workers {
    workers: Vec<Worker<MemoryFrame>>,
    out: Output<MemoryFrame>,
}

impl Workers {
    fn new(scene: &Scene, max_flows: usize) -> Self {
        let worker = |index| {
            let config = WorkerConfig {
                index: WorkerIndex(index),
                endpoint_to_host: EndpointToHost::Accept,
                adoption_window: Nanos(0),
                max_flows,
                ..WorkerConfig::default()
            };
            Worker::new(config, scene.node.now)
        };
        Self { workers: (0..scene.spread.workers()).map(worker).collect(), out: Output::new() }
    }

    /// Has one worker do something, and others what it gives to them; adds what left to `sent`.
    fn have(
        &mut self,
        scene: &Scene,
        sent: &mut Sent,
        at: usize,
        act: impl FnOnce(&mut Worker<MemoryFrame>, &mut Output<MemoryFrame>),
    ) {
        sent.resize(self.workers.len(), Vec::new());
        act(&mut self.workers[at], &mut self.out);
        let given = self.collect(at, sent);
        for (to, mut parcels) in given {
            self.workers[to].handle_handovers(scene.view(), scene.node.now, &mut parcels, &mut self.out);
            for (to, mut finished) in self.collect(to, sent) {
                // What a worker that was given a packet makes of it may leave by a third's queue.
                assert!(finished.slips().all(|slip| slip.errand() == Errand::Send), "judged once");
                self.workers[to].handle_handovers(scene.view(), scene.node.now, &mut finished, &mut self.out);
                assert!(self.collect(to, sent).is_empty(), "sent once");
            }
        }
        for worker in &self.workers {
            assert_eq!(worker.counters().beginnings(), worker.counters().endings());
        }
    }

    /// Takes what a worker sent, and returns what it gave to others.
    fn collect(&mut self, at: usize, sent: &mut Sent) -> BTreeMap<usize, Parcels<MemoryFrame>> {
        sent[at].extend(self.out.transmit.drain(..).map(|(port, frame)| (port, frame.to_vec())));
        self.out.recycle.clear();
        self.out.events.clear();
        let mut given: BTreeMap<usize, Parcels<MemoryFrame>> = BTreeMap::new();
        for (to, parcel) in self.out.handovers.drain() {
            given.entry(usize::from(to.0)).or_default().push(parcel);
        }
        given
    }

    /// Sends packets in, each by itself or all together.
    fn send(
        &mut self,
        scene: &Scene,
        at: usize,
        port: PortIndex,
        packets: &[Vec<u8>],
        together: bool,
    ) -> Sent {
        let mut sent = Sent::new();
        let (view, now) = (scene.view(), scene.node.now);
        if together {
            let mut frames: Vec<_> = packets.iter().map(|bytes| MemoryFrame::new(bytes)).collect();
            self.have(scene, &mut sent, at, |worker, out| {
                worker.handle_burst(view, now, port, &mut frames, out)
            });
        } else {
            for bytes in packets {
                let frame = MemoryFrame::new(bytes);
                self.have(scene, &mut sent, at, |worker, out| {
                    worker.handle_frame(view, now, port, frame, out)
                });
            }
        }
        sent
    }

    fn wait(&mut self, scene: &Scene) -> Sent {
        let mut sent = Sent::new();
        for at in 0..self.workers.len() {
            let (view, now) = (scene.view(), scene.node.now);
            self.have(scene, &mut sent, at, |worker, out| worker.handle_timeout(view, now, out));
        }
        sent
    }

    fn counters(&self) -> Vec<&Counters> {
        self.workers.iter().map(Worker::counters).collect()
    }

    fn flows(&self, scene: &Scene) -> Vec<String> {
        let flows =
            |worker: &Worker<_>| format!("{:?}", worker.flows(scene.view(), scene.node.now, 0, usize::MAX));
        self.workers.iter().map(flows).collect()
    }
}

/// Lets both live through `steps`.
fn compare(spread: Spread, max_flows: usize, steps: &[Step]) {
    let mut scene = Scene::new(spread);
    let [mut one, mut other] = [(); 2].map(|()| Workers::new(&scene, max_flows));
    for step in steps {
        match step.event {
            Event::Nothing => {}
            Event::OnlyTcp(on) => {
                scene.put(policy("tcp", "b", Some(vec![rule(Action::Allow, Some(protocol::TCP))]), None), on);
            }
            Event::Unrelated(on) => scene.put(policy("unrelated", "nobody", Some(vec![]), None), on),
            Event::IngressByNumber(on) => {
                let port = PortMatch::Range { first: 81, last: 81 };
                let rules = PROTOCOLS.map(|protocol| to_ports(protocol, port.clone())).to_vec();
                scene.put(policy("numbered-in", "b", Some(rules), None), on);
            }
            Event::IngressByName(on) => {
                let rules = PROTOCOLS.map(|protocol| to_ports(protocol, web())).to_vec();
                scene.put(policy("named-in", "b", Some(rules), None), on);
            }
            Event::EgressByName(on) => {
                scene.put(policy("named-out", "a", None, Some(vec![to_ports(protocol::TCP, web())])), on);
            }
            Event::Declare(tcp, udp) => scene.declare(tcp, udp),
            Event::Rebuild => scene.rebuild(),
            Event::Wait => {
                scene.node.now = scene.node.now + Nanos::from_secs(25);
                assert_eq!(one.wait(&scene), other.wait(&scene), "{step:?}");
            }
            Event::Encrypt(how) => scene.encrypt(how),
        }
        let port = step.from().0;
        let packets: Vec<_> = (0..step.repeat).map(|more| step.packet(more)).collect();
        // Whatever queue of an uplink the NIC chooses.
        let arrival = scene.node.topology.port(port).expect("a port");
        let queue = step.number % scene.spread.carriers(UPLINK);
        let at = usize::from(scene.spread.owner(port, &arrival.kind, queue).0);
        let single = one.send(&scene, at, port, &packets, false);
        let burst = other.send(&scene, at, port, &packets, true);
        assert_eq!(single, burst, "{step:?}");
        assert_eq!(one.counters(), other.counters(), "{step:?}");
        assert_eq!(one.flows(&scene), other.flows(&scene), "{step:?}");
    }
}

fn event() -> impl Strategy<Value = Event> {
    let encrypted = prop_oneof![any::<bool>().prop_map(Encrypted::Idle), Just(Encrypted::Required),];
    prop_oneof![
        8 => Just(Event::Nothing),
        2 => any::<bool>().prop_map(Event::OnlyTcp),
        2 => any::<bool>().prop_map(Event::Unrelated),
        2 => any::<bool>().prop_map(Event::IngressByNumber),
        2 => any::<bool>().prop_map(Event::IngressByName),
        2 => any::<bool>().prop_map(Event::EgressByName),
        1 => prop_oneof![Just((80, 81)), Just((81, 80)), Just((443, 443))].prop_map(|(t, u)| Event::Declare(t, u)),
        1 => Just(Event::Rebuild),
        1 => Just(Event::Wait),
        2 => encrypted.prop_map(Event::Encrypt),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let ttl = prop_oneof![1 => Just(1), 1 => Just(2), 6 => Just(64), 1 => Just(255)];
    let macs = (
        prop_oneof![12 => Just(0u8), 4 => Just(1), 1 => Just(2), 1 => Just(3)],
        prop_oneof![16 => Just(0u8), 1 => Just(1), 1 => Just(2)],
    );
    // Most open something between the pods of the node, where policies are.
    let pair = prop_oneof![3 => Just(0), 4 => 1..PAIRS.len()];
    let kind = prop_oneof![3 => Just(0u8), 3 => Just(2), 2 => 0u8..5];
    let what = (event(), pair, kind, prop::bool::weighted(0.6), any::<bool>());
    let damage = prop::option::weighted(0.15, (0usize..90, any::<u8>()));
    (what, ttl, damage, macs, 1u16..5, 0u16..6, any::<bool>()).prop_map(
        |((event, pair, kind, forward, v6), ttl, damage, macs, repeat, number, alike)| Step {
            event,
            pair,
            kind,
            forward,
            v6,
            ttl,
            damage,
            macs,
            repeat,
            number,
            alike,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn agree(
        steps in prop::collection::vec(step(), 1..40),
        workers in 1u16..4,
        queues in 1u16..3,
        // A small table puts flows out, and is full at times.
        max_flows in prop_oneof![Just(12usize), Just(4096)],
    ) {
        compare(Spread::new(workers, [(UPLINK, queues)]), max_flows, &steps);
    }
}

/// What was found, when pods of one node spoke over the first short way.
#[test]
fn packets_that_were_told_apart_once_are_treated_alike() {
    let nothing = Step {
        event: Event::Nothing,
        pair: 0,
        kind: 0,
        forward: false,
        v6: false,
        ttl: 1,
        damage: None,
        macs: (0, 0),
        repeat: 1,
        number: 0,
        alike: false,
    };
    let later = Step { event: Event::Wait, ..nothing.clone() };
    let continued = Step { event: Event::OnlyTcp(true), kind: 1, ..nothing.clone() };
    let damaged = Step { event: Event::OnlyTcp(true), v6: true, damage: Some((20, 44)), ..nothing };
    for steps in [vec![continued, later.clone()], vec![damaged, later.clone(), later]] {
        compare(Spread::default(), 4096, &steps);
    }
}
