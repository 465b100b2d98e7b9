//! Tables against the oracle, and results against histories, on worlds drawn by chance.
//!
//! `MARGAY_PROPERTY_CASES` multiplies the number of worlds (default 1).

mod support;

use std::collections::BTreeMap;

use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::{NamespacedName, Object};
use margay_policy_engine::packet::{
    Direction, EndpointId, Epoch, Generation, IdentityId, PacketTuple, Verdict,
};
use margay_policy_engine::snapshot::{Attribution, Query};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};
use support::chance::Chance;
use support::{Egress, Ingress, Judge};

const PACKETS: usize = 40;

fn cases(base: u32) -> Config {
    let factor: u32 =
        std::env::var("MARGAY_PROPERTY_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    Config {
        cases: base.saturating_mul(factor),
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    }
}

/// What a node decides for a packet on every leg that it knows.
fn decisions(judge: &Judge, packets: &[PacketTuple]) -> Vec<Option<(Verdict, Attribution)>> {
    let pods: Vec<NamespacedName> = judge.engine.locals().values().map(|local| local.pod.clone()).collect();
    let mut all = Vec::new();
    for pod in pods {
        let pod = format!("{}/{}", pod.namespace, pod.name);
        for direction in [Ingress, Egress] {
            all.extend(packets.iter().map(|packet| judge.leg(direction, &pod, packet)));
        }
    }
    all
}

/// Asked all at once, of every endpoint and of one that nobody knows, the answers are the same.
fn in_one_go(judge: &Judge, packets: &[PacketTuple]) -> Result<(), TestCaseError> {
    let mut endpoints = judge.snapshot.endpoints();
    endpoints.push(EndpointId(4_000_000_000));
    let mut queries = Vec::new();
    for packet in packets {
        for endpoint in &endpoints {
            let query = |direction| Query { endpoint: *endpoint, direction, packet: *packet };
            queries.extend([query(Ingress), query(Egress)]);
        }
    }
    let nobody = judge.snapshot.judge(EndpointId(4_000_000_000), Ingress, &packets[0]);
    prop_assert_eq!(nobody, None);
    let mut out = vec![None; queries.len()];
    judge.snapshot.judge_batch(&queries, &mut out);
    for (query, judged) in queries.iter().zip(out) {
        let alone = judge.snapshot.judge(query.endpoint, query.direction, &query.packet);
        prop_assert_eq!(judged, alone, "{:?}", query);
    }
    Ok(())
}

/// Packets that differ in ports of which a table cannot tell the difference are judged alike.
fn by_classes_of_ports(judge: &Judge, packets: &[PacketTuple]) -> Result<(), TestCaseError> {
    let ports = |packet: &PacketTuple| packet.source_port.zip(packet.destination_port);
    let plain = || packets.iter().filter(|packet| matches!(packet.protocol, 6 | 17));
    let numbers: Vec<_> = plain().filter_map(ports).flat_map(|(one, other)| [one, other]).collect();
    for (at, packet) in plain().enumerate() {
        let Some((source, destination)) = ports(packet) else { continue };
        for (endpoint, direction) in judge
            .snapshot
            .endpoints()
            .into_iter()
            .flat_map(|endpoint| [(endpoint, Ingress), (endpoint, Egress)])
        {
            let classes =
                |source, destination| judge.snapshot.port_classes(endpoint, direction, source, destination);
            for step in 0..6 {
                let drawn = |more: usize| numbers[(7 * at + 2 * step + more) % numbers.len()];
                let others = if step < 3 { [drawn(0), drawn(1)] } else { [source, drawn(step) ^ 1] };
                let known = classes(source, destination);
                if known.is_some() && known == classes(others[0], others[1]) {
                    let [source_port, destination_port] = others.map(Some);
                    let other = PacketTuple { source_port, destination_port, ..*packet };
                    let judged = |packet| judge.snapshot.judge(endpoint, direction, packet);
                    prop_assert_eq!(judged(packet), judged(&other), "{:?} {:?}", packet, other);
                }
            }
        }
    }
    Ok(())
}

fn engine_of(changes: &[Change]) -> Engine {
    let mut engine = Engine::new();
    changes.iter().cloned().for_each(|change| engine.apply(change));
    engine
}

/// The key of what a change is about, so that detours can be taken back.
fn undo(change: &Change) -> Change {
    match change {
        Change::Upsert(object) => Change::Delete(object.key()),
        Change::Endpoint(local) => Change::EndpointGone(local.id),
        other => other.clone(),
    }
}

/// What a flow remembers, and under which snapshot it did.
#[derive(Clone)]
struct Memory {
    generation: Generation,
    by: (Epoch, IdentityId, IdentityId),
    judged: (Verdict, String),
}

/// All that was ever remembered of a packet, by endpoint, direction and packet.
type Remembered = BTreeMap<(EndpointId, bool, usize), Vec<Memory>>;

proptest! {
    #![proptest_config(cases(400))]

    /// At least one leg per world and 40 packets: 400 worlds are more than 10,000 comparisons.
    #[test]
    fn tables_and_oracle_agree(bytes in vec(any::<u8>(), 500..4_000), more in vec(any::<u8>(), 400)) {
        let judge = Judge::new(engine_of(&Chance::new(&bytes).world()));
        let mut chance = Chance::new(&more);
        let packets: Vec<PacketTuple> = (0..PACKETS).map(|_| chance.packet()).collect();
        decisions(&judge, &packets);
        in_one_go(&judge, &packets)?;
        by_classes_of_ports(&judge, &packets)?;
    }
}

proptest! {
    #![proptest_config(cases(60))]

    /// Events in any order, with detours and publications in between, end in the same decisions; and whoever remembers epoch and
    /// identities may keep a verdict, and the name of who gave it, for as long as they are equal, or as nothing has changed since.
    #[test]
    fn the_present_decides_and_not_the_past(
        bytes in vec(any::<u8>(), 500..4_000),
        other in vec(any::<u8>(), 500..4_000),
        more in vec(any::<u8>(), 800),
    ) {
        let world = Chance::new(&bytes).world();
        let mut chance = Chance::new(&more);
        let packets: Vec<PacketTuple> = (0..PACKETS).map(|_| chance.packet()).collect();
        let straight = Judge::new(engine_of(&world));

        let mut detour = Chance::new(&other).world();
        let mut judge = Judge::new(Engine::new());
        let mut remembered = Remembered::new();
        let mut wanted = world.clone();
        let mut undone: Vec<Change> = detour.iter().map(undo).collect();
        // First the detour mixed with its own undoing, then the wanted world in a drawn order, some of it twice.
        while !detour.is_empty() || !undone.is_empty() {
            let from = if detour.is_empty() || chance.once_in(3) && !undone.is_empty() { &mut undone } else { &mut detour };
            let index = chance.below(from.len());
            judge.engine.apply(from.swap_remove(index));
            if chance.once_in(6) {
                judge.publish();
                check_memory(&judge, &packets, &mut remembered)?;
            }
        }
        while !wanted.is_empty() {
            let index = chance.below(wanted.len());
            let change = if chance.once_in(5) { wanted[index].clone() } else { wanted.swap_remove(index) };
            judge.engine.apply(change);
            if chance.once_in(6) {
                judge.publish();
                check_memory(&judge, &packets, &mut remembered)?;
            }
        }
        // An undoing may have come before its detour; what the wanted world does not contain must still go.
        for key in Chance::new(&other).world().iter().map(undo) {
            let in_world = world.iter().any(|change| same_subject(change, &key));
            if !in_world {
                judge.engine.apply(key);
            }
        }
        judge.publish();
        check_memory(&judge, &packets, &mut remembered)?;
        prop_assert_eq!(judge.engine.model(), straight.engine.model());
        prop_assert_eq!(judge.snapshot.canonical(), straight.snapshot.canonical());
        prop_assert_eq!(decisions(&judge, &packets), decisions(&straight, &packets));
    }

    /// Pods and local endpoints come, change and go, one publication each: the short way through the compiler.
    #[test]
    fn pods_come_and_go(bytes in vec(any::<u8>(), 500..4_000), other in vec(any::<u8>(), 500..4_000), more in vec(any::<u8>(), 800)) {
        let is_pod = |change: &Change| match change {
            Change::Upsert(object) => matches!(object, Object::Pod(_)),
            Change::Endpoint(_) => true,
            Change::Delete(_)
            | Change::EndpointGone(_)
            | Change::Interface(_)
            | Change::InterfaceGone(_) => false,
        };
        let world = Chance::new(&bytes).world();
        let mut changes: Vec<Change> = Chance::new(&other).world().into_iter().chain(world.clone()).filter(is_pod).collect();
        changes.extend(changes.iter().map(undo).collect::<Vec<_>>());
        let mut chance = Chance::new(&more);
        let packets: Vec<PacketTuple> = (0..10).map(|_| chance.packet()).collect();
        let mut judge = Judge::new(engine_of(&world));
        let mut remembered = Remembered::new();
        while !changes.is_empty() {
            let index = chance.below(changes.len());
            judge.engine.apply(changes.swap_remove(index));
            judge.publish();
            decisions(&judge, &packets);
            check_memory(&judge, &packets, &mut remembered)?;
        }
    }

    /// Fresh engines that saw the same objects in different orders number everything alike.
    #[test]
    fn fresh_engines_are_equal_in_structure(bytes in vec(any::<u8>(), 500..4_000), more in vec(any::<u8>(), 400)) {
        let world = Chance::new(&bytes).world();
        let mut chance = Chance::new(&more);
        let packets: Vec<PacketTuple> = (0..PACKETS).map(|_| chance.packet()).collect();
        let straight = Judge::new(engine_of(&world));
        let reversed = Judge::new(engine_of(&world.into_iter().rev().collect::<Vec<_>>()));
        for endpoint in straight.snapshot.endpoints() {
            for direction in [Ingress, Egress] {
                prop_assert_eq!(straight.snapshot.epoch(endpoint, direction), reversed.snapshot.epoch(endpoint, direction));
                for packet in &packets {
                    prop_assert_eq!(straight.snapshot.identity(packet.source), reversed.snapshot.identity(packet.source));
                    prop_assert_eq!(
                        straight.snapshot.judge(endpoint, direction, packet),
                        reversed.snapshot.judge(endpoint, direction, packet)
                    );
                }
            }
        }
    }
}

fn same_subject(a: &Change, undone: &Change) -> bool {
    match (undo(a), undone) {
        (Change::Delete(a), Change::Delete(b)) => a == *b,
        (Change::EndpointGone(a), Change::EndpointGone(b)) => a == *b,
        _ => false,
    }
}

fn check_memory(
    judge: &Judge,
    packets: &[PacketTuple],
    remembered: &mut Remembered,
) -> Result<(), TestCaseError> {
    let snapshot = &judge.snapshot;
    for endpoint in snapshot.endpoints() {
        for direction in [Direction::Ingress, Direction::Egress] {
            for (number, packet) in packets.iter().enumerate().step_by(4) {
                let epoch = snapshot.epoch(endpoint, direction).unwrap();
                let (source, destination) =
                    (snapshot.identity(packet.source), snapshot.identity(packet.destination));
                let judgement = snapshot.judge(endpoint, direction, packet).unwrap();
                let by = format!("{:?} {:?}", judgement.rule, snapshot.attribution(judgement.rule));
                let now = Memory {
                    generation: snapshot.generation(),
                    by: (epoch, source, destination),
                    judged: (judgement.verdict, by),
                };
                let memories =
                    remembered.entry((endpoint, direction == Direction::Ingress, number)).or_default();
                let since = snapshot.governed_since(endpoint).unwrap().max(snapshot.identified_since());
                prop_assert!(since <= now.generation);
                for before in memories.iter() {
                    if before.by == now.by || before.generation >= since {
                        prop_assert_eq!(&before.judged, &now.judged);
                    }
                }
                memories.push(now);
            }
        }
    }
    Ok(())
}

/// The worlds are worth drawing: every kind of decision occurs in them, on both sides of the verdict.
#[test]
fn chance_reaches_every_kind_of_decision() {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut draw = |count: usize| -> Vec<u8> {
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..count).map(|_| byte()).collect()
    };
    for _ in 0..200 {
        let judge = Judge::new(engine_of(&Chance::new(&draw(3_000)).world()));
        let packets = draw(400);
        let mut chance = Chance::new(&packets);
        let packets: Vec<PacketTuple> = (0..PACKETS).map(|_| chance.packet()).collect();
        for decision in decisions(&judge, &packets) {
            let kind = match decision {
                None => "unknown endpoint".to_owned(),
                Some((verdict, by)) => {
                    let tier = if by.tier.starts_with('t') { "other" } else { &by.tier };
                    format!("{verdict:?} {tier} {} {}", by.kind, if by.rule < 0 { "end" } else { "rule" })
                }
            };
            *kinds.entry(kind).or_default() += 1;
        }
    }
    for expected in [
        "unknown endpoint",
        "Allow default GlobalNetworkPolicy rule",
        "Deny default GlobalNetworkPolicy rule",
        "Allow default NetworkPolicy rule",
        "Deny other KubernetesNetworkPolicy rule",
        "Allow ghost GlobalNetworkPolicy rule",
        "Deny default  end",
        "Allow other  end",
        "Deny ghost  end",
        "Allow __PROFILE__ Profile rule",
        "Deny __PROFILE__ Profile end",
    ] {
        assert!(
            kinds.get(expected).is_some_and(|count| *count >= 10),
            "{expected} hardly occurs: {kinds:#?}"
        );
    }
}
