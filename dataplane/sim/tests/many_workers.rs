//! Nodes with several workers: they deliver what nodes with one worker deliver, whatever the order in which workers have their turns
//! (policy model 13.1, 13.3, 13.4, 13.6, 14.5).

mod support;

use margay_core::{DropReason, Nanos, WorkerConfig};
use margay_policy_engine::engine::Change;
use margay_policy_engine::model::{Action, Entity, Object, Policy, Rule};
use margay_policy_engine::selector::Selector;
use margay_sim::{Cluster, PodRef, Random, Shape, WireFaults};
use margay_wire::parse::tcp_flags::{ACK, FIN, SYN};
use margay_wire::{IpHeaders, Packet, Transport, build, parse, protocol};
use std::net::IpAddr;
use std::sync::Arc;
use support::{policy, seeds};

const SHAPES: [(u16, u16); 7] = [(2, 1), (2, 4), (3, 1), (3, 4), (8, 1), (8, 4), (1, 4)];

fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Pod(PodRef),
    Host(usize),
}

/// Two clusters with the same life: one worker a node, and several.
struct Twins {
    one: Cluster,
    many: Cluster,
}

impl Twins {
    fn new(seed: u64, shape: Shape, faults: WireFaults) -> Self {
        let config = WorkerConfig { adoption_window: Nanos(0), max_flows: 4096, ..WorkerConfig::default() };
        Self {
            one: Cluster::shaped(seed, 2, 5, Shape::default(), faults, &config),
            many: Cluster::shaped(seed, 2, 5, shape, faults, &config),
        }
    }

    fn both(&mut self) -> [&mut Cluster; 2] {
        [&mut self.one, &mut self.many]
    }

    fn address(&self, of: From, v6: bool) -> IpAddr {
        match of {
            From::Pod(pod) => pod.address(v6),
            From::Host(node) => self.one.node_address(node, v6),
        }
    }

    /// Sends a frame in both; returns what arrived where, which must be the same.
    fn send(&mut self, from: From, frame: &[u8], what: &str) -> Vec<(From, Vec<u8>)> {
        let [one, many] = self.both().map(|cluster| {
            match from {
                From::Pod(pod) => cluster.send(pod, frame),
                From::Host(node) => cluster.send_from_host(node, frame),
            }
            cluster.settle();
            arrivals(cluster)
        });
        assert_eq!(one, many, "{what}: {:?}", headers(frame));
        many
    }

    /// Every packet has the same end in both, by name; of two legs that refuse, the first asked is named.
    fn compare_drops(&self) {
        for reason in DropReason::ALL {
            if !matches!(reason, DropReason::PolicyEgress | DropReason::PolicyIngress) {
                assert_eq!(self.one.dropped(*reason), self.many.dropped(*reason), "{}", reason.as_str());
            }
        }
        let policy = |c: &Cluster| c.dropped(DropReason::PolicyEgress) + c.dropped(DropReason::PolicyIngress);
        assert_eq!(policy(&self.one), policy(&self.many));
    }
}

fn arrivals(cluster: &mut Cluster) -> Vec<(From, Vec<u8>)> {
    let mut all = Vec::new();
    for pod in cluster.pods() {
        all.extend(cluster.inbox(pod).into_iter().map(|frame| (From::Pod(pod), frame)));
    }
    for node in 0..2 {
        all.extend(cluster.host_inbox(node).into_iter().map(|frame| (From::Host(node), frame)));
    }
    all
}

fn any(random: &mut Random, cluster: &Cluster) -> From {
    let pods = cluster.pods();
    match random.below(8) {
        0 => From::Host(random.below(2) as usize),
        _ => From::Pod(pods[random.below(pods.len() as u64) as usize]),
    }
}

/// The ends of a conversation that somebody may have begun.
#[derive(Clone, Copy, Debug)]
struct Ends {
    from: From,
    to: From,
    v6: bool,
    ports: [u16; 2],
}

impl Ends {
    /// Draws new ones, or some that were met before, the same way or the other: so that packets meet flows of earlier ones.
    fn draw(random: &mut Random, twins: &Twins, met: &mut Vec<Self>) -> Option<Self> {
        if !met.is_empty() && random.below(3) != 0 {
            let ends = met[random.below(met.len() as u64) as usize];
            let Self { from, to, ports: [near, far], .. } = ends;
            let turned = Self { from: to, to: from, ports: [far, near], ..ends };
            return Some(if random.below(2) == 0 { ends } else { turned });
        }
        let [from, to] = [0, 1].map(|_| any(random, &twins.one));
        let v6 = random.below(2) == 0;
        let ports = [0, 1].map(|_| 79 + random.below(5) as u16);
        let ends = Self { from, to, v6, ports };
        if from != to {
            met.push(ends);
        }
        (from != to).then_some(ends)
    }
}

/// Builds a packet that opens, continues or breaks something.
fn packet(random: &mut Random, twins: &Twins, ends: &Ends) -> Vec<u8> {
    let [source, destination] = [ends.from, ends.to].map(|at| twins.address(at, ends.v6));
    let macs = macs(twins, ends.from);
    let (near, far) = ((source, ends.ports[0]), (destination, ends.ports[1]));
    let flags = [SYN, SYN, SYN, SYN | ACK, ACK, FIN | ACK][random.below(6) as usize];
    match random.below(7) {
        0..3 => build::tcp(macs, near, far, flags, b"data"),
        3..5 => build::udp(macs, near, far, b"data"),
        5 => build::echo(macs, source, destination, near.1.min(far.1), random.below(2) == 0, b"data"),
        _ => build::ip(macs, source, destination, 132, b"not really SCTP, too short a header", 64),
    }
}

fn macs(twins: &Twins, from: From) -> (margay_wire::MacAddr, margay_wire::MacAddr) {
    match from {
        From::Pod(pod) => twins.one.macs(pod),
        From::Host(node) => twins.one.host_macs(node),
    }
}

/// What `at` says to a packet that it received: an answer, or a complaint that quotes it.
fn answer(random: &mut Random, twins: &Twins, at: From, received: &[u8]) -> Option<Vec<u8>> {
    let ip = headers(received);
    let macs = macs(twins, at);
    let (me, peer) = (ip.destination, ip.source);
    if random.below(5) == 0 {
        let quoted = &received[14..received.len().min(14 + 48)];
        let mut body = vec![0; 4];
        body.extend_from_slice(quoted);
        let (kind, code) = if me.is_ipv4() { (3, 3) } else { (1, 4) };
        // Now and then about a packet that somebody else was sent.
        let teller =
            if random.below(4) == 0 { twins.address(any(random, &twins.one), me.is_ipv6()) } else { me };
        return Some(build::icmp(macs, teller, peer, kind, code, &body, 64));
    }
    match ip.transport {
        Transport::Tcp { source, destination, flags, .. } => {
            let flags = if flags & SYN != 0 { SYN | ACK } else { ACK };
            Some(build::tcp(macs, (me, destination), (peer, source), flags, b""))
        }
        Transport::Udp { source, destination, .. } => {
            Some(build::udp(macs, (me, destination), (peer, source), b"answer"))
        }
        Transport::Icmp { id, .. } => Some(build::echo(macs, me, peer, id, false, b"data")),
        _ => None,
    }
}

fn scenario(seed: u64) {
    let mut random = Random::new(seed);
    let (workers, queues) = SHAPES[random.below(SHAPES.len() as u64) as usize];
    let shape = Shape { workers, queues, ..Shape::default() };
    let percent = |random: &mut Random| random.below(2) * random.below(20);
    let faults = WireFaults {
        lost: percent(&mut random),
        repeated: percent(&mut random),
        reordered: percent(&mut random),
    };
    let mut twins = Twins::new(seed, shape, faults);
    let mut met = Vec::new();
    for round in 0..5 {
        let number = random.below(4);
        let change = Change::Upsert(policy(&mut random, number));
        for cluster in twins.both() {
            cluster.apply(&change);
        }
        let mut pending: Vec<(From, Vec<u8>)> = Vec::new();
        for step in 0..30 {
            let what = format!("{shape:?} round {round} step {step}");
            let (from, frame) = match pending.pop() {
                Some(next) => next,
                None => {
                    let Some(ends) = Ends::draw(&mut random, &twins, &mut met) else { continue };
                    (ends.from, packet(&mut random, &twins, &ends))
                }
            };
            for (at, received) in twins.send(from, &frame, &what) {
                if random.below(4) != 0
                    && let Some(frame) = answer(&mut random, &twins, at, &received)
                {
                    pending.push((at, frame));
                }
            }
        }
        twins.compare_drops();
        // Entries of two workers end together, so any time may pass.
        let by = Nanos::from_secs([0, 25, 45, 4000][random.below(4) as usize]);
        for cluster in twins.both() {
            cluster.advance(by);
        }
    }
    let handed: u64 = (0..2)
        .flat_map(|node| (0..usize::from(workers)).map(move |worker| (node, worker)))
        .map(|(node, worker)| twins.many.counters(node, worker).handed_over)
        .sum();
    assert!(workers == 1 || handed > 0, "a scenario in which nothing changes hands shows nothing");
}

#[test]
fn many_workers_deliver_what_one_delivers() {
    seeds(300).for_each(scenario);
}

/// Workers whose turns interleave, with inboxes of any size and snapshots that reach them one by one: nothing is lost without a name, and
/// nothing arrives that no snapshot allows.
fn crowd(seed: u64) {
    let mut random = Random::new(seed);
    let (workers, queues) = SHAPES[random.below(6) as usize];
    let inbox = [1, 3, 64][random.below(3) as usize];
    let shape = Shape { workers, queues, inbox };
    let config = WorkerConfig { adoption_window: Nanos(0), max_flows: 256, ..WorkerConfig::default() };
    let mut cluster = Cluster::shaped(seed, 2, 5, shape, WireFaults::default(), &config);
    let (mut sent, mut arrived) = (0u64, 0u64);
    for _ in 0..4 {
        let number = random.below(3);
        cluster.apply_late(&Change::Upsert(policy(&mut random, number)));
        for _ in 0..60 {
            let pods = cluster.pods();
            let [from, to] = [0, 1].map(|_| pods[random.below(pods.len() as u64) as usize]);
            if from == to || from.node != to.node {
                continue;
            }
            let macs = cluster.macs(from);
            let near = (from.address(false), 79 + random.below(5) as u16);
            let far = (to.address(false), 79 + random.below(5) as u16);
            cluster.inject(from, &build::udp(macs, near, far, b"data"));
            sent += 1;
            match random.below(6) {
                0 => cluster.publish_to(from.node, random.below(workers.into()) as usize),
                1..3 => drop(cluster.step(from.node)),
                _ => {}
            }
        }
        for node in 0..2 {
            cluster.drain(node);
        }
        cluster.advance(Nanos::from_secs(random.below(70)));
        for pod in cluster.pods() {
            arrived += cluster.inbox(pod).len() as u64;
        }
    }
    let dropped: u64 = DropReason::ALL.iter().map(|reason| cluster.dropped(*reason)).sum();
    assert_eq!(sent, arrived + dropped + cluster.unsent(), "{shape:?}");
}

#[test]
fn frames_are_conserved_when_workers_crowd_each_other() {
    seeds(200).for_each(crowd);
}

/// A policy on every pod: what may be sent and what may be received are exchanged between two versions, neither of which lets a packet
/// through.
fn half(allow_egress: bool) -> Object {
    let rule = |action| Rule {
        action,
        ip_version: None,
        protocol: Some(protocol::UDP),
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: Entity::default(),
        destination: Entity::default(),
        http: None,
        unenforced: Vec::new(),
        annotations: Default::default(),
    };
    let action = |allow| vec![rule(if allow { Action::Allow } else { Action::Deny })];
    let Object::Policy(shape) = policy(&mut Random::new(1), 0) else { unreachable!("it makes policies") };
    Object::Policy(Arc::new(Policy {
        selector: Some(Selector::parse("all()").expect("selector")),
        governs_ingress: true,
        governs_egress: true,
        ingress: action(!allow_egress),
        egress: action(allow_egress),
        ..(*shape).clone()
    }))
}

#[test]
fn no_packet_is_judged_by_halves_of_two_snapshots() {
    for seed in seeds(40) {
        let mut random = Random::new(seed);
        let shape = Shape { workers: 2 + (seed % 2) as u16, queues: 1, ..Shape::default() };
        let config = WorkerConfig { adoption_window: Nanos(0), max_flows: 256, ..WorkerConfig::default() };
        let mut cluster = Cluster::shaped(seed, 1, 6, shape, WireFaults::default(), &config);
        cluster.apply(&Change::Upsert(half(false)));
        for round in 0..200 {
            cluster.apply_late(&Change::Upsert(half(round % 2 == 0)));
            for _ in 0..6 {
                let pods = cluster.pods();
                let [from, to] = [0, 1].map(|_| pods[random.below(6) as usize]);
                if from == to {
                    continue;
                }
                let near = (from.address(false), 80 + random.below(3) as u16);
                let far = (to.address(false), 80 + random.below(3) as u16);
                let macs = cluster.macs(from);
                cluster.inject(from, &build::udp(macs, near, far, b"data"));
                if random.below(2) == 0 {
                    cluster.publish_to(0, random.below(shape.workers.into()) as usize);
                }
                if random.below(2) == 0 {
                    cluster.step(0);
                }
            }
            cluster.drain(0);
            for pod in cluster.pods() {
                assert!(cluster.inbox(pod).is_empty(), "neither version lets anything through");
            }
        }
        assert!(
            cluster.dropped(DropReason::PolicyEgress) > 0 && cluster.dropped(DropReason::PolicyIngress) > 0
        );
    }
}
