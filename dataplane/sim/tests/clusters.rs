//! Whole clusters whose nodes differ, under everything at once: several nodes of one to eight workers, a wire that loses, repeats and
//! reorders, datagrams whole and in fragments, policy that changes while they are under way and reaches workers one by one, workers that
//! begin anew after a panic. The reference reads the rules of every version literally.
//!
//! Whatever the versions that a datagram may have met: what all of them refuse does not arrive, not even in part; what all of them allow
//! arrives whole, unless something was lost; and what arrives is what was sent, where it was sent to.

mod support;

use std::collections::BTreeMap;

use margay_core::{Nanos, WorkerConfig};
use margay_policy_engine::engine::Change;
use margay_policy_engine::model::NamespacedName;
use margay_policy_engine::oracle;
use margay_policy_engine::packet::{Direction, PacketTuple, Verdict};
use margay_sim::{Cluster, PodRef, Random, Shape, WireFaults};
use margay_wire::{Fragment, IpHeaders, Packet, Transport, build, parse, protocol};
use support::{policy, seeds};

const NODES: usize = 4;
const PODS: usize = 3;

fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

/// A UDP datagram, known by its source port, which is also its fragments' identification.
struct Datagram {
    from: PodRef,
    to: PodRef,
    packet: PacketTuple,
    /// What follows the IP header.
    bytes: Vec<u8>,
    /// The frames that carry it, in the order in which they are sent, last first.
    frames: Vec<Vec<u8>>,
    /// What the two ends said, one after the other, under every version so far: how often yes, and how often they were asked.
    egress: (u32, u32),
    ingress: (u32, u32),
}

impl Datagram {
    fn draw(random: &mut Random, cluster: &Cluster, number: u16) -> Option<Self> {
        let pods = cluster.pods();
        let [from, to] = [0, 1].map(|_| pods[random.below(pods.len() as u64) as usize]);
        if from == to {
            return None;
        }
        let v6 = random.below(2) == 0;
        let (near, far) = ((from.address(v6), number), (to.address(v6), 79 + random.below(5) as u16));
        let payload: Vec<u8> = (0..16 + random.below(600)).map(|_| random.draw() as u8).collect();
        let whole = build::udp(cluster.macs(from), near, far, &payload);
        let bytes = whole[if v6 { 54 } else { 34 }..].to_vec();
        let frames =
            if random.below(3) == 0 { vec![whole] } else { cut(random, &whole, bytes.len(), number) };
        let packet = PacketTuple {
            source: near.0,
            destination: far.0,
            protocol: protocol::UDP,
            source_port: Some(near.1),
            destination_port: Some(far.1),
            icmp: None,
        };
        Some(Self { from, to, packet, bytes, frames, egress: (0, 0), ingress: (0, 0) })
    }

    /// Notes what the rules, read literally, say now.
    fn judge(&mut self, cluster: &Cluster) {
        let ask = |pod: PodRef, direction| {
            let engine = cluster.engine(pod.node);
            let key = NamespacedName { namespace: pod.namespace(), name: pod.name() };
            let decision = oracle::evaluate(engine.model(), engine.locals(), direction, &key, &self.packet);
            u32::from(decision.expect("a local pod").verdict == Verdict::Allow)
        };
        let (out, into) = (ask(self.from, Direction::Egress), ask(self.to, Direction::Ingress));
        self.egress = (self.egress.0 + out, self.egress.1 + 1);
        self.ingress = (self.ingress.0 + into, self.ingress.1 + 1);
    }

    /// Whether one of the two refuses it under every version.
    fn is_refused(&self) -> bool {
        self.egress.0 == 0 || self.ingress.0 == 0
    }

    /// Whether both allow it under every version.
    fn is_allowed(&self) -> bool {
        self.egress.0 == self.egress.1 && self.ingress.0 == self.ingress.1
    }
}

/// Cuts a packet with `length` bytes behind the IP header into fragments, in some order.
fn cut(random: &mut Random, whole: &[u8], length: usize, id: u16) -> Vec<Vec<u8>> {
    let mut ends = vec![0];
    while let Some(at) = ends.last().copied().filter(|at| *at < length) {
        let end = (at + 8 * (1 + random.below(30)) as usize).min(length);
        // At least two: one alone would be no fragment.
        ends.push(if at == 0 { end.min((length - 1) / 8 * 8) } else { end });
    }
    let pieces = ends.windows(2);
    let mut frames: Vec<Vec<u8>> = pieces
        .map(|piece| build::fragment(whole, id.into(), (piece[0], piece[1]), piece[1] < length))
        .collect();
    for at in (1..frames.len()).rev() {
        frames.swap(at, random.below(at as u64 + 1) as usize);
    }
    frames
}

/// What a receiver has of one datagram.
#[derive(Default)]
struct Heard {
    parts: BTreeMap<usize, Vec<u8>>,
    ended: bool,
}

impl Heard {
    fn take(&mut self, frame: &[u8], ip: &IpHeaders) {
        let (start, length, more) = match ip.fragment {
            Fragment::None => (0, ip.end() - usize::from(ip.transport_offset), false),
            Fragment::First { end, .. } => (0, usize::from(end), true),
            Fragment::Later { start, end, more, .. } => (usize::from(start), usize::from(end - start), more),
        };
        let bytes = frame[ip.end() - length..ip.end()].to_vec();
        let before = self.parts.insert(start, bytes.clone());
        assert!(before.is_none_or(|before| before == bytes), "a repetition is the same");
        self.ended |= !more;
    }

    /// Returns all of it, or nothing when some is missing.
    fn whole(&self) -> Option<Vec<u8>> {
        let mut whole = Vec::new();
        for (start, bytes) in &self.parts {
            if *start != whole.len() {
                return None;
            }
            whole.extend(bytes);
        }
        self.ended.then_some(whole)
    }
}

/// The number of the datagram that a frame belongs to; `None` for what routers and receivers say.
fn number_of(ip: &IpHeaders) -> Option<u16> {
    match (ip.fragment, ip.transport) {
        (Fragment::First { id, .. } | Fragment::Later { id, .. }, _) => Some(id as u16),
        (Fragment::None, Transport::Udp { source, .. }) => Some(source),
        _ => None,
    }
}

struct Scenario {
    random: Random,
    cluster: Cluster,
    shapes: Vec<Shape>,
    faults: WireFaults,
}

impl Scenario {
    fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let shapes: Vec<Shape> = (0..NODES)
            .map(|_| Shape {
                workers: [1, 2, 3, 8][random.below(4) as usize],
                queues: [1, 4][random.below(2) as usize],
                ..Shape::default()
            })
            .collect();
        let lost = [0, 0, 5][random.below(3) as usize];
        let faults = WireFaults { lost, repeated: random.below(20), reordered: random.below(40) };
        let config = WorkerConfig { adoption_window: Nanos(0), max_flows: 4096, ..WorkerConfig::default() };
        let cluster = Cluster::mixed(seed, &shapes, PODS, faults, &config);
        Self { random, cluster, shapes, faults }
    }

    fn any_worker(&mut self) -> (usize, usize) {
        let node = self.random.below(NODES as u64) as usize;
        (node, self.random.below(self.shapes[node].workers.into()) as usize)
    }

    /// Sends datagrams, interleaved, while policy changes; returns whether anything may be lost.
    fn round(&mut self, datagrams: &mut BTreeMap<u16, Datagram>) -> bool {
        let restarts = self.random.below(4) == 0;
        let mut left: Vec<(u16, PodRef, Vec<Vec<u8>>)> = Vec::new();
        for (number, datagram) in datagrams.iter_mut() {
            datagram.judge(&self.cluster);
            left.push((*number, datagram.from, std::mem::take(&mut datagram.frames)));
        }
        let mut restarted = false;
        while !left.is_empty() {
            let at = self.random.below(left.len() as u64) as usize;
            let (_, from, frames) = &mut left[at];
            match frames.pop() {
                Some(frame) => self.cluster.send(*from, &frame),
                None => drop(left.swap_remove(at)),
            }
            match self.random.below(24) {
                0..6 => self.cluster.settle(),
                // A new version, which each worker has in force when its turn comes.
                6 => {
                    let number = self.random.below(4);
                    let change = Change::Upsert(policy(&mut self.random, number));
                    self.cluster.apply_late(&change);
                    datagrams.values_mut().for_each(|datagram| datagram.judge(&self.cluster));
                }
                7..12 => {
                    let (node, worker) = self.any_worker();
                    self.cluster.publish_to(node, worker);
                }
                12 if restarts => {
                    let (node, worker) = self.any_worker();
                    self.cluster.restart(node, worker);
                    restarted = true;
                }
                _ => {}
            }
        }
        self.cluster.settle();
        restarted || self.faults.lost > 0
    }

    fn heard(&mut self, datagrams: &BTreeMap<u16, Datagram>) -> BTreeMap<u16, Heard> {
        let mut heard: BTreeMap<u16, Heard> = BTreeMap::new();
        for pod in self.cluster.pods() {
            for frame in self.cluster.inbox(pod) {
                let ip = headers(&frame);
                let Some(number) = number_of(&ip) else { continue };
                assert_eq!(datagrams[&number].to, pod, "to whom it was sent");
                heard.entry(number).or_default().take(&frame, &ip);
            }
        }
        heard
    }
}

fn scenario(seed: u64) {
    let mut scenario = Scenario::draw(seed);
    let mut next = 1000;
    for round in 0..4 {
        let number = scenario.random.below(4);
        scenario.cluster.apply(&Change::Upsert(policy(&mut scenario.random, number)));
        let mut datagrams = BTreeMap::new();
        while datagrams.len() < 8 {
            if let Some(datagram) = Datagram::draw(&mut scenario.random, &scenario.cluster, next) {
                datagrams.insert(next, datagram);
                next += 1;
            }
        }
        let lossy = scenario.round(&mut datagrams);
        let heard = scenario.heard(&datagrams);
        for (number, datagram) in &datagrams {
            let Scenario { shapes, faults, .. } = &scenario;
            let what =
                format!("datagram {number} of round {round}: {:?}, {shapes:?}, {faults:?}", datagram.packet);
            match heard.get(number).map(Heard::whole) {
                None => assert!(lossy || !datagram.is_allowed(), "{what}: allowed, and nothing arrives"),
                Some(_) if datagram.is_refused() => panic!("{what}: refused, and some of it arrives"),
                Some(None) => assert!(lossy || !datagram.is_allowed(), "{what}: allowed, and cut short"),
                Some(Some(whole)) => assert_eq!(whole, datagram.bytes, "{what}"),
            }
        }
        scenario.cluster.publish();
        let by = Nanos::from_secs(scenario.random.below(40));
        scenario.cluster.advance(by);
    }
    scenario.cluster.advance(Nanos::from_secs(31));
    for (node, shape) in scenario.shapes.iter().enumerate() {
        for worker in 0..usize::from(shape.workers) {
            assert_eq!(scenario.cluster.counters(node, worker).held, 0, "nothing waits for ever");
        }
    }
}

#[test]
fn clusters_under_everything_at_once_do_what_the_rules_say() {
    seeds(60).for_each(scenario);
}
