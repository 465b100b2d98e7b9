//! Fragments through whole nodes, with any number of workers and over a wire that loses, repeats and reorders (policy model 14.5): what
//! policy allows arrives whole, and of what it does not allow, nothing.

mod support;

use std::collections::BTreeMap;

use margay_core::{Nanos, WorkerConfig};
use margay_policy_engine::engine::Change;
use margay_sim::{Cluster, PodRef, Random, Shape, WireFaults};
use margay_wire::{Fragment, IpHeaders, Packet, build, parse};
use support::{policy, seeds};

const SHAPES: [(u16, u16); 6] = [(1, 1), (2, 1), (2, 4), (3, 4), (8, 1), (8, 4)];

fn headers(frame: &[u8]) -> IpHeaders {
    match parse(frame).expect("well-formed").packet {
        Packet::Ip(ip) => ip,
        Packet::Arp(_) => panic!("not IP"),
    }
}

/// A datagram that was sent.
struct Sent {
    from: PodRef,
    to: PodRef,
    v6: bool,
    ports: [u16; 2],
    /// What follows the IP header.
    bytes: Vec<u8>,
    fragments: Vec<Vec<u8>>,
}

impl Sent {
    fn draw(random: &mut Random, cluster: &Cluster, id: u32) -> Self {
        let pods = cluster.pods();
        let [from, to] = [0, 1].map(|_| pods[random.below(pods.len() as u64) as usize]);
        let v6 = random.below(2) == 0;
        // Its own source port: nothing passes as a reply.
        let ports = [1000 + id as u16, 79 + random.below(5) as u16];
        let payload: Vec<u8> = (0..100 + random.below(1000)).map(|_| random.draw() as u8).collect();
        let [near, far] = [from.address(v6), to.address(v6)];
        let whole = build::udp(cluster.macs(from), (near, ports[0]), (far, ports[1]), &payload);
        let bytes = whole[if v6 { 54 } else { 34 }..].to_vec();
        let mut cuts = vec![0];
        while let Some(at) = cuts.last().copied().filter(|at| *at < bytes.len()) {
            let end = at + 8 * (1 + random.below(40)) as usize;
            // At least two: one alone would be no fragment.
            let end = if at == 0 { end.min(bytes.len() - 8) / 8 * 8 } else { end.min(bytes.len()) };
            cuts.push(end);
        }
        let fragments =
            cuts.windows(2).map(|cut| build::fragment(&whole, id, (cut[0], cut[1]), cut[1] < bytes.len()));
        let mut fragments: Vec<_> = fragments.collect();
        for at in (1..fragments.len()).rev() {
            fragments.swap(at, random.below(at as u64 + 1) as usize);
        }
        Self { from, to, v6, ports, bytes, fragments }
    }

    /// Asks a cluster that loses nothing, with the same policies, whether a packet of the same flow arrives.
    fn is_allowed(&self, honest: &mut Cluster) -> bool {
        let [near, far] = [self.from.address(self.v6), self.to.address(self.v6)];
        let whole = build::udp(honest.macs(self.from), (near, self.ports[0]), (far, self.ports[1]), b"whole");
        honest.send(self.from, &whole);
        honest.settle();
        !honest.inbox(self.to).is_empty()
    }
}

/// What a receiver has of one datagram.
#[derive(Default)]
struct Heard {
    parts: BTreeMap<usize, Vec<u8>>,
    ended: bool,
}

impl Heard {
    fn take(&mut self, frame: &[u8]) {
        let ip = headers(frame);
        let (start, end, more) = match ip.fragment {
            Fragment::First { end, .. } => (0, end, true),
            Fragment::Later { start, end, more, .. } => (start, end, more),
            Fragment::None => panic!("not a fragment"),
        };
        assert!(start == 0 || self.parts.contains_key(&0), "the first goes first");
        let bytes = frame[ip.end() - usize::from(end - start)..ip.end()].to_vec();
        let before = self.parts.insert(start.into(), bytes.clone());
        assert!(before.is_none_or(|before| before == bytes), "a repetition is the same");
        self.ended |= !more;
    }

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

fn scenario(seed: u64) {
    let mut random = Random::new(seed);
    let (workers, queues) = SHAPES[random.below(6) as usize];
    let shape = Shape { workers, queues, ..Shape::default() };
    let lost = [0, 0, 5][random.below(3) as usize];
    let faults = WireFaults { lost, repeated: random.below(20), reordered: random.below(40) };
    let config = WorkerConfig { adoption_window: Nanos(0), max_flows: 4096, ..WorkerConfig::default() };
    let mut cluster = Cluster::shaped(seed, 2, 5, shape, faults, &config);
    let mut honest = Cluster::new(seed, 2, 5, WireFaults::default(), &config);
    for number in 0..random.below(3) {
        let change = Change::Upsert(policy(&mut random, number));
        cluster.apply(&change);
        honest.apply(&change);
    }
    let mut id = 0;
    for round in 0..4 {
        let mut sent = BTreeMap::new();
        while sent.len() < 6 {
            let datagram = Sent::draw(&mut random, &cluster, id);
            if datagram.from != datagram.to {
                sent.insert(id, datagram);
                id += 1;
            }
        }
        // All of them at once, each in its own disorder.
        let mut left: Vec<(PodRef, Vec<Vec<u8>>)> =
            sent.values().map(|datagram| (datagram.from, datagram.fragments.clone())).collect();
        while !left.is_empty() {
            let at = random.below(left.len() as u64) as usize;
            let (from, fragments) = &mut left[at];
            match fragments.pop() {
                Some(fragment) => cluster.send(*from, &fragment),
                None => drop(left.swap_remove(at)),
            }
            if random.below(4) == 0 {
                cluster.settle();
            }
        }
        cluster.settle();
        let mut heard: BTreeMap<u32, Heard> = BTreeMap::new();
        for pod in cluster.pods() {
            for frame in cluster.inbox(pod) {
                let id = match headers(&frame).fragment {
                    Fragment::First { id, .. } | Fragment::Later { id, .. } => id,
                    // What a router says about lost or refused packets is somebody else's test.
                    Fragment::None => continue,
                };
                assert_eq!(sent[&id].to, pod, "to whom it was sent");
                heard.entry(id).or_default().take(&frame);
            }
        }
        for (id, datagram) in &sent {
            let is_allowed = datagram.is_allowed(&mut honest);
            let whole = heard.get(id).map(Heard::whole);
            let what = format!("datagram {id} of round {round}, {shape:?}, {faults:?}");
            match whole {
                None => assert!(!is_allowed || lost > 0, "{what}: allowed, and nothing arrives"),
                Some(_) if !is_allowed => panic!("{what}: refused, and some of it arrives"),
                Some(None) => assert!(lost > 0, "{what}: allowed, and not all of it arrives"),
                Some(Some(whole)) => assert_eq!(whole, datagram.bytes, "{what}"),
            }
        }
    }
    cluster.advance(Nanos::from_secs(31));
    let held = |cluster: &Cluster| -> u64 {
        let each = (0..2).flat_map(|node| (0..usize::from(workers)).map(move |worker| (node, worker)));
        each.map(|(node, worker)| cluster.counters(node, worker).held).sum()
    };
    assert_eq!(held(&cluster), 0, "nothing waits for ever");
}

#[test]
fn fragments_arrive_whole_or_not_at_all_whatever_wire_and_workers_do() {
    seeds(100).for_each(scenario);
}
