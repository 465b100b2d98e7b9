//! An engine that has seen thousands of meanings come and go answers like one that has just begun.

mod support;

use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::{Action, Entity, Object, Policy};
use support::{Ingress, World, packet, policy, rule};

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
