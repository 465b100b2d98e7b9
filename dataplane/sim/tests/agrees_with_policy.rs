//! Random clusters and policies: what workers deliver is what policy, asked leg by leg, says.

mod support;

use margay_core::{Nanos, WorkerConfig};
use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::Object;
use margay_policy_engine::packet::{Direction, EndpointId, PacketTuple, Verdict};
use margay_sim::{Cluster, PodRef, Random, Shape, WireFaults};
use margay_wire::parse::tcp_flags::SYN;
use margay_wire::{build, protocol};
use support::{policy, seeds};

fn allowed(engine: &mut Engine, pod: PodRef, direction: Direction, packet: &PacketTuple) -> bool {
    let endpoint = EndpointId(pod.pod as u32 + 2);
    let judgement = engine.publish().judge(endpoint, direction, packet).expect("a local pod with policy");
    judgement.verdict == Verdict::Allow
}

/// Runs one scenario; a failing assertion names the seed.
fn scenario(seed: u64) {
    let mut random = Random::new(seed);
    let config = WorkerConfig { adoption_window: Nanos(0), max_flows: 4096, ..WorkerConfig::default() };
    let faults = WireFaults { lost: 0, repeated: random.below(20), reordered: random.below(20) };
    let workers = [1, 2, 3, 8][random.below(4) as usize];
    let shape = Shape { workers, queues: [1, 4][random.below(2) as usize], ..Shape::default() };
    let mut cluster = Cluster::shaped(seed, 2, 3, shape, faults, &config);
    let mut references: Vec<Engine> = Vec::new();
    for node in 0..2 {
        // A reference of its own per node, fed with the same model.
        let mut engine = Engine::new();
        for object in objects(cluster.engine(node)) {
            engine.apply(Change::Upsert(object));
        }
        for pod in cluster.pods().into_iter().filter(|pod| pod.node == node) {
            engine.apply(Change::Endpoint(margay_policy_engine::engine::LocalEndpoint {
                id: EndpointId(pod.pod as u32 + 2),
                pod: margay_policy_engine::model::NamespacedName {
                    namespace: pod.namespace(),
                    name: pod.name(),
                },
                uid: String::new(),
                addresses: vec![pod.address(false), pod.address(true)],
            }));
        }
        references.push(engine);
    }
    for round in 0..6 {
        let number = random.below(4);
        let change = Change::Upsert(policy(&mut random, number));
        cluster.apply(&change);
        for engine in &mut references {
            engine.apply(change.clone());
        }
        let pods = cluster.pods();
        for _ in 0..20 {
            let from = pods[random.below(pods.len() as u64) as usize];
            let to = pods[random.below(pods.len() as u64) as usize];
            if from == to {
                continue;
            }
            let v6 = random.below(2) == 0;
            let number = [protocol::TCP, protocol::UDP][random.below(2) as usize];
            let (sport, dport) = (1024 + random.below(60_000) as u16, 79 + random.below(6) as u16);
            let (source, destination) = (from.address(v6), to.address(v6));
            let (near, far) = ((source, sport), (destination, dport));
            let macs = cluster.macs(from);
            let frame = match number {
                protocol::TCP => build::tcp(macs, near, far, SYN, b""),
                _ => build::udp(macs, near, far, b"probe"),
            };
            cluster.send(from, &frame);
            cluster.settle();
            let packet = PacketTuple {
                source,
                destination,
                protocol: number,
                source_port: Some(sport),
                destination_port: Some(dport),
                icmp: None,
            };
            let expected = allowed(&mut references[from.node], from, Direction::Egress, &packet)
                && allowed(&mut references[to.node], to, Direction::Ingress, &packet);
            let arrived = !cluster.inbox(to).is_empty();
            assert_eq!(arrived, expected, "seed {seed} round {round}: {packet:?} from {from:?} to {to:?}");
        }
        cluster.advance(Nanos::from_secs(random.below(90)));
    }
}

fn objects(engine: &Engine) -> Vec<Object> {
    let model = engine.model();
    let namespaces = model.namespaces.values().cloned().map(Object::Namespace);
    namespaces.chain(model.pods.values().cloned().map(Object::Pod)).collect()
}

#[test]
fn what_is_delivered_is_what_policy_allows() {
    seeds(200).for_each(scenario);
}
