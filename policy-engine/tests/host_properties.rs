//! Host endpoints by chance: the tables against the oracle, in every context, while the world changes.
//!
//! `MARGAY_PROPERTY_CASES` multiplies the number of worlds (default 1).

mod support;

use std::collections::BTreeMap;

use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::oracle;
use margay_policy_engine::packet::{Context, PacketTuple};
use margay_policy_engine::snapshot::Snapshot;
use margay_policy_engine::walk::{Literal, Referee};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};
use support::chance::Chance;
use support::{Egress, Ingress};

const PACKETS: usize = 24;

fn cases(base: u32) -> Config {
    let factor: u32 =
        std::env::var("MARGAY_PROPERTY_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    Config {
        cases: base.saturating_mul(factor),
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    }
}

/// Compares every context of every interface; counts what the answers were.
fn compare(
    engine: &Engine,
    snapshot: &Snapshot,
    packets: &[PacketTuple],
    kinds: &mut BTreeMap<String, usize>,
) {
    let (model, locals, interfaces) = (engine.model(), engine.locals(), engine.interfaces());
    let literal = Literal { model, locals, interfaces };
    for (id, interface) in interfaces {
        let governs = oracle::resolve_interface(model, interface).map(|endpoint| endpoint.name.as_str());
        assert_eq!(snapshot.host_endpoint(*id), governs, "{interface:?}");
        for context in Context::ALL {
            for direction in [Ingress, Egress] {
                for packet in packets {
                    let found = snapshot.host(*id, context, direction, packet);
                    let expected = literal.host(*id, context, direction, packet);
                    assert_eq!(
                        found, expected,
                        "tables (left) and oracle (right): {interface:?} {context:?} {direction:?} {packet:?}"
                    );
                    let kind = match found {
                        None => "nobody".to_owned(),
                        Some((verdict, by)) if by.kind == "Failsafe" => format!("{verdict:?} failsafe"),
                        Some((verdict, by)) if by.tier == "__PROFILE__" => format!("{verdict:?} profile"),
                        Some((verdict, by)) => {
                            format!("{verdict:?} {}", if by.rule < 0 { "end" } else { "rule" })
                        }
                    };
                    *kinds.entry(format!("{context:?} {kind}")).or_default() += 1;
                }
            }
        }
    }
}

fn undo(change: &Change) -> Change {
    match change {
        Change::Upsert(object) => Change::Delete(object.key()),
        Change::Endpoint(local) => Change::EndpointGone(local.id),
        Change::Interface(interface) => Change::InterfaceGone(interface.id),
        Change::Delete(_) | Change::EndpointGone(_) | Change::InterfaceGone(_) => change.clone(),
    }
}

fn world(bytes: &[u8]) -> Vec<Change> {
    let mut chance = Chance::new(bytes);
    let hosts = chance.hosts();
    let mut changes = chance.world();
    changes.extend(hosts);
    changes
}

fn packets(chance: &mut Chance<'_>, count: usize) -> Vec<PacketTuple> {
    (0..count).map(|_| chance.packet()).collect()
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn tables_and_oracle_agree_on_host_contexts(bytes in vec(any::<u8>(), 1_000..6_000), more in vec(any::<u8>(), 400)) {
        let mut engine = Engine::new();
        world(&bytes).into_iter().for_each(|change| engine.apply(change));
        let snapshot = engine.publish();
        compare(&engine, &snapshot, &packets(&mut Chance::new(&more), PACKETS), &mut BTreeMap::new());
    }
}

proptest! {
    #![proptest_config(cases(12))]

    /// Changes come in a drawn order, some are taken back on the way, and every publication is compared; in the end the tables are those of
    /// an engine that saw them in another order.
    #[test]
    fn host_contexts_follow_changes(bytes in vec(any::<u8>(), 1_000..6_000), more in vec(any::<u8>(), 1_000)) {
        // Of two words about one object the last counts.
        let wanted: BTreeMap<String, Change> =
            world(&bytes).into_iter().map(|change| (format!("{:?}", undo(&change)), change)).collect();
        let mut straight = Engine::new();
        wanted.values().cloned().for_each(|change| straight.apply(change));
        let mut queue: Vec<Change> = wanted.into_values().collect();
        let mut chance = Chance::new(&more);
        let packets = packets(&mut chance, 4);
        let mut engine = Engine::new();
        while !queue.is_empty() {
            let change = queue.swap_remove(chance.below(queue.len()));
            let is_detour = chance.once_in(4);
            engine.apply(change.clone());
            if is_detour {
                engine.publish();
                engine.apply(undo(&change));
                engine.publish();
                engine.apply(change);
            }
            if chance.once_in(3) {
                let snapshot = engine.publish();
                compare(&engine, &snapshot, &packets, &mut BTreeMap::new());
            }
        }
        let snapshot = engine.publish();
        compare(&engine, &snapshot, &packets, &mut BTreeMap::new());
        prop_assert_eq!(snapshot.canonical(), straight.publish().canonical());
    }
}

/// The worlds are worth drawing: every kind of answer occurs in every context that has it.
#[test]
fn chance_reaches_every_kind_of_answer() {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut draw = |count: usize| -> Vec<u8> {
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..count).map(|_| byte()).collect()
    };
    for _ in 0..60 {
        let mut engine = Engine::new();
        world(&draw(4_000)).into_iter().for_each(|change| engine.apply(change));
        let snapshot = engine.publish();
        let packets = packets(&mut Chance::new(&draw(300)), PACKETS);
        compare(&engine, &snapshot, &packets, &mut kinds);
    }
    let mut expected = Vec::new();
    for context in Context::ALL {
        for kind in ["nobody", "Allow rule", "Deny rule"] {
            expected.push(format!("{context:?} {kind}"));
        }
        match context {
            Context::Untracked => {
                expected.extend(["Untracked NoMatch end", "Untracked NoMatch failsafe"].map(str::to_owned))
            }
            Context::PreDnat => {
                expected.extend(["PreDnat NoMatch end", "PreDnat Allow failsafe"].map(str::to_owned))
            }
            Context::Normal => expected.extend(
                ["Normal Allow profile", "Normal Deny profile", "Normal Allow failsafe", "Normal Deny end"]
                    .map(str::to_owned),
            ),
            Context::Forward => {
                expected.extend(["Forward NoMatch end", "Forward Deny end"].map(str::to_owned))
            }
        }
    }
    for expected in expected {
        assert!(
            kinds.get(&expected).is_some_and(|count| *count >= 10),
            "{expected} hardly occurs: {kinds:#?}"
        );
    }
}
