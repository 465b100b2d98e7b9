//! Who is told that policy denied it (policy model 32.9).

mod support;

use std::sync::Arc;

use margay_policy_engine::engine::Change;
use margay_policy_engine::model::{Action, Object, Policy, TierDefault};
use margay_policy_engine::packet::{Direction, Verdict};
use support::*;

const TCP: &str = "tcp 10.0.0.9:999 > 10.0.0.1:80";
const UDP: &str = "udp 10.0.0.9:999 > 10.0.0.1:80";

fn world() -> World {
    let mut world = World::new();
    world.namespace("ns", &[]).pod("ns/w", "10.0.0.1", &[("app", "w")], &[]);
    world.pod("ns/other", "10.0.0.2", &[("app", "other")], &[]);
    world
}

fn rejecting(mut policy: Policy) -> Policy {
    policy.flags.reject = true;
    policy
}

/// Verdict and answer for a packet that goes to pod w, or to the pod named.
fn asks(judge: &Judge, pod: &str, text: &str) -> (Verdict, bool) {
    let endpoint = judge.engine.endpoint_of(&name(pod)).expect("local");
    let judgement = judge.snapshot.judge(endpoint, Direction::Ingress, &packet(text)).expect("known");
    (judgement.verdict, judge.snapshot.rejects(judgement.rule))
}

#[test]
fn pm_32_9_a_rule_of_a_policy_that_says_so_answers() {
    let deny = |protocol| vec![rule(Action::Deny).protocol(protocol)];
    let mut world = world();
    world.policy(rejecting(policy("loud", 1.0)).both(deny(6)));
    world.policy(policy("silent", 2.0).both(deny(17)));
    let judge = world.all_local();
    assert_eq!(asks(&judge, "ns/w", TCP), (Verdict::Deny, true));
    assert_eq!(asks(&judge, "ns/w", UDP), (Verdict::Deny, false), "another policy's rule");
}

#[test]
fn pm_32_9_the_end_of_a_tier_answers_for_those_whom_such_a_policy_governs() {
    let mut world = world();
    world.tier("t", 1.0, TierDefault::Deny);
    // No rules at all: what is left is the end of the tier.
    world.policy(rejecting(policy("loud", 1.0)).tier("t").selects("app == 'w'"));
    world.policy(policy("silent", 2.0).tier("t"));
    let judge = world.all_local();
    assert_eq!(asks(&judge, "ns/w", TCP), (Verdict::Deny, true));
    assert_eq!(asks(&judge, "ns/other", TCP), (Verdict::Deny, false), "the silent one alone");
    // In one direction only.
    let mut world = self::world();
    world.policy(rejecting(policy("loud", 1.0)).only(Direction::Egress));
    world.policy(policy("silent", 1.0).only(Direction::Ingress));
    assert_eq!(asks(&world.all_local(), "ns/w", TCP), (Verdict::Deny, false));
}

#[test]
fn pm_32_9_an_answer_is_no_part_of_a_verdict() {
    let mut world = world();
    let silent = policy("p", 1.0).both(vec![rule(Action::Deny)]);
    world.policy(silent.clone());
    let mut judge = world.all_local();
    let endpoint = judge.engine.endpoint_of(&name("ns/w")).expect("local");
    let epoch = judge.snapshot.epoch(endpoint, Direction::Ingress);
    assert_eq!(asks(&judge, "ns/w", TCP), (Verdict::Deny, false));
    for (policy, answers) in [(rejecting(silent.clone()), true), (silent, false)] {
        let before = judge.snapshot.generation();
        judge.apply(Change::Upsert(Object::Policy(Arc::new(policy)))).publish();
        assert_eq!(asks(&judge, "ns/w", TCP), (Verdict::Deny, answers));
        assert!(judge.snapshot.generation() > before, "it is published");
        assert_eq!(judge.snapshot.epoch(endpoint, Direction::Ingress), epoch, "and nothing is judged again");
    }
}
