//! An engine that has seen thousands of meanings come and go answers like one that has just begun.

mod support;

use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::{Action, Entity, Object, ObjectKey, Policy};
use margay_policy_engine::packet::EndpointId;
use support::{EntityExt, Ingress, PolicyExt, RuleExt, World, any, packet, policy, rule};

/// Rounds of one meaning each: more than the compiler keeps before it looks for those that nothing has any more, several times.
const ROUNDS: u32 = 14_000;

/// One rule for a /24 of its own, and one for a /16 that every 200th round moves.
fn written(round: u32) -> Policy {
    let net = |address: u32, length| IpNet::from(Ipv4Net::new_assert(address.into(), length));
    let from = |net| Entity { nets: vec![net], ..Entity::default() };
    let rules = [
        (Action::Deny, from(net(0x0a00_0000 + (round << 8), 24))),
        (Action::Allow, from(net(0x0a00_0000 + ((round / 200) << 16), 16))),
    ];
    let rules = rules.map(|(action, source)| {
        let mut rule = rule(action);
        rule.source = source;
        rule
    });
    Policy { ingress: rules.into(), governs_ingress: true, governs_egress: false, ..policy("p", 1.0) }
}

#[test]
fn meanings_are_forgotten_and_answers_are_not() {
    let mut world = World::new();
    world.namespace("a", &[]).pod("a/web", "192.168.0.1", &[], &[]).policy(written(0));
    let mut judge = world.all_local();
    for round in 1..ROUNDS {
        judge.engine.apply(Change::Upsert(Object::Policy(Arc::new(written(round)))));
        let snapshot = judge.engine.publish();
        if round % 500 != 0 && round != ROUNDS - 1 {
            continue;
        }
        judge.publish();
        let mut fresh = Engine::with_all_pods_local(judge.engine.model().clone());
        assert_eq!(snapshot.canonical(), fresh.publish().canonical(), "round {round}");
        let at = |n: u32, last: u8| format!("tcp 10.{}.{}.{last}:1 > 192.168.0.1:80", n >> 8 & 255, n & 255);
        let addresses: Vec<std::net::IpAddr> =
            (0..100).map(|n| [10, (n / 2) as u8, (round + n) as u8, n as u8].into()).collect();
        let mut found = vec![Default::default(); addresses.len()];
        snapshot.identities(&addresses, &mut found);
        let alone: Vec<_> = addresses.iter().map(|address| snapshot.identity(*address)).collect();
        assert_eq!(found, alone, "in batches and alone");
        for probe in [at(round, 9), at(round - 1, 9), at(round / 200 * 256 + 7, 1), at(round + 1, 0)] {
            // Asks the tables and the oracle, which have to agree.
            judge.leg(Ingress, "a/web", &packet(&probe));
        }
    }
}

/// A change is noted for whom it concerns and for nobody else, and for what addresses are if that is what changed.
#[test]
fn a_snapshot_knows_since_when_it_has_been_so() {
    let mut world = World::new();
    world.namespace("a", &[]);
    world.pod("a/web", "192.168.0.1", &[("app", "web")], &[]);
    world.pod("a/db", "192.168.0.2", &[("app", "db")], &[]);
    let mut judge = world.all_local();
    let of = |judge: &support::Judge| {
        let since = |pod: &str| {
            let local = judge.engine.locals().values().find(|local| local.pod.name == pod).unwrap();
            judge.snapshot.governed_since(local.id).unwrap()
        };
        (since("web"), since("db"), judge.snapshot.identified_since(), judge.snapshot.generation())
    };
    let first = of(&judge);
    assert_eq!((first.0, first.1), (first.3, first.3), "and no rule asks what addresses are");
    assert_eq!(judge.snapshot.governed_since(EndpointId(4_000_000_000)), None);

    let of_web = |name| policy(name, 1.0).selects("app == 'web'").both(vec![rule(Action::Allow)]);
    judge.engine.apply(Change::Upsert(Object::Policy(Arc::new(of_web("p")))));
    judge.publish();
    let second = of(&judge);
    assert!(second.3 > first.3);
    assert_eq!(second, (second.3, first.1, first.2, second.3), "the policy is about one of them");

    let from = any().nets("10.9.0.0/16");
    let about = of_web("q").both(vec![rule(Action::Deny).from(from)]);
    judge.engine.apply(Change::Upsert(Object::Policy(Arc::new(about))));
    judge.publish();
    let third = of(&judge);
    assert_eq!(
        third,
        (third.3, first.1, third.3, third.3),
        "a rule names addresses that nobody asked about before"
    );

    judge.engine.apply(Change::Delete(ObjectKey::Policy(of_web("q").key)));
    judge.publish();
    let fourth = of(&judge);
    assert_eq!((fourth.0, fourth.1), (fourth.3, first.1), "back to what it was is a change too");
}

/// Batches of any length, over /24s of the commonest meaning, of the second, of others, and in pieces, answer as one question each does.
#[test]
fn batches_say_what_single_questions_say() {
    let mut world = World::new();
    world.namespace("a", &[]).pod("a/web", "192.168.0.1", &[], &[]);
    let pieces: Vec<String> = (0..=255).map(|third| format!("10.2.{third}.{}/32", 255 - third)).collect();
    for (name, nets) in [
        ("wide", "10.1.0.0/16 fd00::/16"),
        ("second", "10.1.7.0/24 10.1.8.0/24"),
        ("listed", "10.1.9.0/24 fd00:1::/32"),
        ("divided", "10.1.11.128/25 10.1.11.3/32 10.1.12.0/31 fd00:2::1/128"),
        ("pieces", &pieces.join(" ")),
    ] {
        world.network_set(name, nets, &[("set", name)]);
        let from = any().selector(&format!("set == '{name}'"));
        world.policy(support::policy(name, 1.0).both(vec![rule(Action::Allow).from(from)]));
    }
    let judge = world.all_local();
    let mut seen = std::collections::BTreeSet::new();
    let mut state = 1u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for length in [1, 63, 64, 65, 128, 300, 1_000] {
        let addresses: Vec<std::net::IpAddr> = (0..length)
            .map(|_| match draw(4) {
                0 => [10, 1, 7 + draw(6) as u8, draw(5) as u8].into(),
                1 => [10, 1, 11, 126 + draw(5) as u8].into(),
                2 => {
                    let third = draw(256) as u8;
                    [10, 2, third, 255 - third + draw(2) as u8 * third].into()
                }
                _ => format!("fd00:{:x}::{:x}", draw(4), draw(3)).parse().unwrap(),
            })
            .collect();
        let mut found = vec![Default::default(); addresses.len()];
        judge.snapshot.identities(&addresses, &mut found);
        let alone: Vec<_> = addresses.iter().map(|address| judge.snapshot.identity(*address)).collect();
        assert_eq!(found, alone, "{length} addresses");
        seen.extend(found);
    }
    assert!(seen.len() >= 6, "each of the five sets, and none of them: {seen:?}");
}
