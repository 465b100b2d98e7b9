//! Fact tables of policy model 8: order, missing references, tiers, Pass, profiles.

mod support;

use margay_policy_engine::engine::Change;
use margay_policy_engine::model::{Action, Object, ObjectKey, Order, PolicyKind, TierDefault};
use std::sync::Arc;
use support::*;

const TCP: &str = "tcp 10.0.0.9:999 > 10.0.0.1:80";
const UDP: &str = "udp 10.0.0.9:999 > 10.0.0.1:80";

/// One pod in a namespace that exists, so that its profile allows everything.
fn world() -> World {
    let mut world = World::new();
    world.namespace("ns", &[]).pod("ns/w", "10.0.0.1", &[("app", "w")], &[]);
    world
}

/// One pod in a namespace that does not exist, so that its profile denies.
fn world_without_profile() -> World {
    let mut world = World::new();
    world.pod("ns/w", "10.0.0.1", &[("app", "w")], &[]);
    world
}

#[test]
fn pm_8_2_order_inside_a_tier() {
    /// (order, kind, namespace, name) of both; the first is expected to win.
    type Side = (f64, PolicyKind, Option<&'static str>, &'static str);
    const NONE: f64 = f64::INFINITY;
    const G: PolicyKind = PolicyKind::GlobalNetworkPolicy;
    const N: PolicyKind = PolicyKind::NetworkPolicy;
    const K: PolicyKind = PolicyKind::KubernetesNetworkPolicy;
    let rows: [(Side, Side); 8] = [
        ((10.0, G, None, "zzz"), (20.0, G, None, "aaa")),
        ((10.0, G, None, "a"), (10.0, G, None, "b")),
        ((1e9, G, None, "z"), (NONE, G, None, "a")),
        ((10.0, G, None, "allow"), (10.0, N, Some("ns1"), "allow")),
        ((10.0, N, Some("ns1"), "a"), (10.0, N, Some("ns2"), "a")),
        ((-1.0, G, None, "b"), (0.0, G, None, "a")),
        ((0.5, G, None, "b"), (1.0, G, None, "a")),
        ((1000.0, N, Some("ns"), "a"), (1000.0, K, Some("ns"), "b")),
    ];
    for (first, second) in rows {
        for (allowing, denying, expected) in [(first, second, Allow), (second, first, Deny)] {
            let mut world = world();
            for ((order, kind, namespace, name), action) in
                [(allowing, Action::Allow), (denying, Action::Deny)]
            {
                let mut policy = policy(name, order).both(vec![rule(action)]);
                policy.key.kind = kind;
                policy.key.namespace = namespace.map(str::to_owned);
                world.policy(policy);
            }
            assert_eq!(
                world.all_local().verdict(Ingress, "ns/w", TCP),
                expected,
                "{first:?} before {second:?}"
            );
        }
    }
}

#[test]
fn pm_8_6_a_tier_that_does_not_exist_comes_last_and_denies() {
    let mut world = world();
    world.policy(policy("p", 1.0).tier("nowhere").only(Ingress));
    let judge = world.all_local();
    assert_eq!(judge.decided_by(Ingress, "ns/w", TCP), "nowhere////-1");
    assert_eq!(judge.verdict(Ingress, "ns/w", TCP), Deny);
    assert_eq!(judge.verdict(Egress, "ns/w", TCP), Allow);
    world
        .tier("late", 1e12, TierDefault::Deny)
        .policy(policy("q", 9.0).tier("late").both(vec![rule(Action::Allow)]));
    assert_eq!(world.all_local().decided_by(Ingress, "ns/w", TCP), "late/GlobalNetworkPolicy//q/0");
}

#[test]
fn pm_8_6_a_missing_profile_denies_in_both_directions() {
    let judge = world_without_profile().all_local();
    assert_eq!(judge.decided_by(Ingress, "ns/w", TCP), "__PROFILE__/Profile//kns.ns/-1");
    assert_eq!(judge.verdict(Egress, "ns/w", TCP), Deny);
}

#[test]
fn pm_8_6_a_policy_that_disappears_leaves_no_trace() {
    let mut world = world();
    world.policy(policy("p", 1.0));
    let mut judge = world.all_local();
    assert_eq!(judge.verdict(Ingress, "ns/w", TCP), Deny);
    let key = policy("p", 1.0).key;
    judge.apply(Change::Delete(ObjectKey::Policy(key))).publish();
    assert_eq!(judge.verdict(Ingress, "ns/w", TCP), Allow);
}

#[test]
fn pm_8_8_evaluation() {
    use Action::{Allow as A, Deny as D, Log as L, Pass as P};
    /// (policies as (tier, actions, staged)), T1's and T2's default, whether the profile allows, expected.
    type Row = (&'static str, Vec<(&'static str, Vec<Action>, bool)>, TierDefault, bool, Verdict);
    use margay_policy_engine::packet::Verdict;
    let rows: Vec<Row> = vec![
        ("no tiers, no profiles", vec![], TierDefault::Deny, false, Deny),
        ("no tiers, profile allows", vec![], TierDefault::Deny, true, Allow),
        ("T1 empty, T2 allow", vec![("t2", vec![A], false)], TierDefault::Pass, false, Allow),
        (
            "T1 allow, T2 deny",
            vec![("t1", vec![A], false), ("t2", vec![D], false)],
            TierDefault::Deny,
            false,
            Allow,
        ),
        ("T1 pass, no profile", vec![("t1", vec![P], false)], TierDefault::Deny, false, Deny),
        (
            "T1 pass, T2 allow",
            vec![("t1", vec![P], false), ("t2", vec![A], false)],
            TierDefault::Deny,
            false,
            Allow,
        ),
        (
            "T1 pass, T2 deny",
            vec![("t1", vec![P], false), ("t2", vec![D], false)],
            TierDefault::Deny,
            true,
            Deny,
        ),
        ("T1 without rules, Deny", vec![("t1", vec![], false)], TierDefault::Deny, true, Deny),
        ("T1 without rules, Pass", vec![("t1", vec![], false)], TierDefault::Pass, true, Allow),
        (
            "T1 without rules, Allow (32.5)",
            vec![("t1", vec![], false), ("t2", vec![D], false)],
            TierDefault::Allow,
            false,
            Allow,
        ),
        ("T1 staged only", vec![("t1", vec![D], true)], TierDefault::Deny, true, Allow),
        ("T1 log only", vec![("t1", vec![L], false)], TierDefault::Deny, true, Deny),
        ("T1 log then allow", vec![("t1", vec![L, A], false)], TierDefault::Deny, false, Allow),
        (
            "T1 pass skips its own later rules",
            vec![("t1", vec![P, D], false)],
            TierDefault::Deny,
            true,
            Allow,
        ),
    ];
    for (what, policies, default, profile, expected) in rows {
        let mut world = if profile { world() } else { world_without_profile() };
        world.tier("t1", 1.0, default).tier("t2", 2.0, TierDefault::Deny);
        for (tier, actions, staged) in policies {
            let policy = policy(tier, 1.0).tier(tier).both(actions.into_iter().map(rule).collect());
            world.policy(if staged { policy.staged() } else { policy });
        }
        for direction in [Ingress, Egress] {
            assert_eq!(world.all_local().verdict(direction, "ns/w", TCP), expected, "{what}");
        }
    }
}

#[test]
fn pm_8_8_staged_beside_enforced_and_one_direction_only() {
    let mut world = world();
    world.tier("t1", 1.0, TierDefault::Deny);
    world.policy(policy("staged", 1.0).tier("t1").both(vec![rule(Action::Deny)]).staged());
    world.policy(policy("enforced", 2.0).tier("t1").both(vec![rule(Action::Allow).protocol(99)]));
    assert_eq!(world.all_local().decided_by(Ingress, "ns/w", TCP), "t1////-1");

    let mut world = self::world();
    world.tier("t1", 1.0, TierDefault::Deny).policy(policy("p", 1.0).tier("t1").only(Egress));
    assert_eq!(world.all_local().verdict(Ingress, "ns/w", TCP), Allow);
    assert_eq!(world.all_local().verdict(Egress, "ns/w", TCP), Deny);

    let mut world = self::world();
    world.policy(policy("p1", 1.0).both(vec![rule(Action::Allow).protocol(6)]));
    world.policy(policy("p2", 2.0).both(vec![rule(Action::Deny)]));
    assert_eq!(world.all_local().verdict(Ingress, "ns/w", TCP), Allow);
    assert_eq!(world.all_local().decided_by(Ingress, "ns/w", UDP), "default/GlobalNetworkPolicy//p2/0");
}

#[test]
fn pm_8_8_two_tiers_end_to_end() {
    let mut world = World::new();
    world.namespace("ns", &[]).tier("tier1", 1.0, TierDefault::Deny).tier("tier2", 2.0, TierDefault::Deny);
    for (number, pod) in (1..).zip(["ns/w1", "ns/w2", "ns/w3", "ns/w4"]) {
        world.pod(pod, &format!("10.0.0.{number}"), &[("name", &pod[3..])], &[]);
    }
    let np = |name: &str, tier: &str, pod: &str, direction, rules: Vec<_>| {
        policy(name, 1.0).tier(tier).selects(&format!("name == '{pod}'")).only(direction).both(rules)
    };
    let deny_other = rule(Action::Deny).protocol(99);
    world
        .policy(np("w1-in", "tier1", "w1", Ingress, vec![rule(Action::Allow)]))
        .policy(np("w2-in", "tier1", "w2", Ingress, vec![rule(Action::Pass)]))
        .policy(np("w2-in-staged", "tier2", "w2", Ingress, vec![rule(Action::Deny)]).staged())
        .policy(np("w2-in-default", "default", "w2", Ingress, vec![rule(Action::Allow)]))
        .policy(np("w3-in-staged", "tier2", "w3", Ingress, vec![rule(Action::Allow)]).staged())
        .policy(np("w3-in", "tier2", "w3", Ingress, vec![rule(Action::Deny)]))
        .policy(np("w4-in", "tier1", "w4", Ingress, vec![deny_other.clone()]))
        .policy(np("w1-out", "tier1", "w1", Egress, vec![rule(Action::Pass)]))
        .policy(np("w1-out-staged", "tier2", "w1", Egress, vec![rule(Action::Allow)]).staged())
        .policy(np("w1-out-staged-default", "default", "w1", Egress, vec![rule(Action::Deny)]).staged())
        .policy(np("w2-out", "tier1", "w2", Egress, vec![deny_other, rule(Action::Deny)]))
        .policy(np("w3-out", "tier2", "w3", Egress, vec![rule(Action::Deny)]));
    let judge = world.all_local();
    let rows = [
        (Ingress, "ns/w1", Allow, "tier1/GlobalNetworkPolicy//w1-in/0"),
        (Ingress, "ns/w2", Allow, "default/GlobalNetworkPolicy//w2-in-default/0"),
        (Ingress, "ns/w3", Deny, "tier2/GlobalNetworkPolicy//w3-in/0"),
        (Ingress, "ns/w4", Deny, "tier1////-1"),
        (Egress, "ns/w1", Allow, "__PROFILE__/Profile//kns.ns/0"),
        (Egress, "ns/w2", Deny, "tier1/GlobalNetworkPolicy//w2-out/1"),
        (Egress, "ns/w3", Deny, "tier2/GlobalNetworkPolicy//w3-out/0"),
    ];
    for (direction, pod, verdict, by) in rows {
        assert_eq!(judge.verdict(direction, pod, TCP), verdict, "{direction:?} {pod}");
        assert_eq!(judge.decided_by(direction, pod, TCP), by, "{direction:?} {pod}");
    }
    world.tier("tier1", 1.0, TierDefault::Pass);
    assert_eq!(world.all_local().decided_by(Ingress, "ns/w4", TCP), "__PROFILE__/Profile//kns.ns/0");
}

#[test]
fn log_rules_are_noted_in_order_and_decide_nothing() {
    let mut world = world();
    world.policy(policy("p", 1.0).both(vec![
        rule(Action::Log).protocol(6),
        rule(Action::Log).protocol(17),
        rule(Action::Log),
        rule(Action::Allow),
        rule(Action::Log),
    ]));
    let judge = world.all_local();
    assert_eq!(judge.decided_by(Ingress, "ns/w", TCP), "default/GlobalNetworkPolicy//p/3");
    let endpoint = judge.engine.endpoint_of(&name("ns/w")).unwrap();
    let logs = judge.snapshot.logs(endpoint, Ingress, &packet(TCP));
    let rules: Vec<i32> =
        logs.into_iter().map(|rule| judge.snapshot.attribution(rule).unwrap().rule).collect();
    assert_eq!(rules, [0, 2]);
}

#[test]
fn an_order_that_changes_without_changing_the_sequence_changes_no_epoch() {
    let mut world = world();
    world
        .policy(policy("a", 1.0).both(vec![rule(Action::Allow)]))
        .policy(policy("b", 2.0).both(vec![rule(Action::Deny)]));
    let mut judge = world.all_local();
    let endpoint = judge.engine.endpoint_of(&name("ns/w")).unwrap();
    let (before, generation) = (judge.snapshot.epoch(endpoint, Ingress), judge.snapshot.generation());
    let mut moved = policy("b", 3.0).both(vec![rule(Action::Deny)]);
    judge.apply(Change::Upsert(Object::Policy(Arc::new(moved.clone())))).publish();
    assert_eq!((judge.snapshot.epoch(endpoint, Ingress), judge.snapshot.generation()), (before, generation));
    moved.order = Order(0.0);
    judge.apply(Change::Upsert(Object::Policy(Arc::new(moved)))).publish();
    assert_ne!(judge.snapshot.epoch(endpoint, Ingress), before);
    assert!(judge.snapshot.generation() > generation);
    assert_eq!(judge.verdict(Ingress, "ns/w", TCP), Deny);
}
