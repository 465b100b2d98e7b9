//! Who is told that policy denied it (policy model 14.1, 32.9).

mod support;

use std::sync::Arc;

use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::{Action, DenyAction, FelixConfiguration, Object, Policy, TierDefault};
use margay_policy_engine::packet::{Context, Direction, HostVerdict, Verdict};
use support::hosts::*;
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
    policy.flags.deny_action = Some(DenyAction::Reject);
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

/// A FelixConfiguration with one parameter.
fn configured(name: &str, parameter: &str, value: &str) -> Change {
    Change::Upsert(Object::FelixConfiguration(Arc::new(FelixConfiguration {
        name: name.to_owned(),
        others: [(parameter.to_owned(), value.to_owned())].into(),
        ..FelixConfiguration::default()
    })))
}

#[test]
fn pm_14_1_reject_is_what_policies_do_that_say_nothing() {
    let deny = |protocol| vec![rule(Action::Deny).protocol(protocol)];
    let mut world = world();
    let mut silent = policy("silent", 1.0).both(deny(6));
    silent.flags.deny_action = Some(DenyAction::Drop);
    world.policy(silent);
    world.policy(policy("plain", 2.0).both(deny(17)));
    let mut judge = world.all_local();
    assert_eq!(asks(&judge, "ns/w", UDP), (Verdict::Deny, false), "Drop is the default");
    for parameter in ["iptablesFilterDenyAction", "nftablesFilterDenyAction"] {
        judge.apply(configured("default", parameter, "Reject")).publish();
        assert_eq!(asks(&judge, "ns/w", UDP), (Verdict::Deny, true), "{parameter}");
        assert_eq!(asks(&judge, "ns/w", TCP), (Verdict::Deny, false), "a policy's own word comes first");
        judge.apply(configured("default", parameter, "Drop")).publish();
        assert_eq!(asks(&judge, "ns/w", UDP), (Verdict::Deny, false), "{parameter}");
    }
}

#[test]
fn pm_14_1_the_setting_covers_the_ends_of_tiers_and_profiles() {
    let mut world = world();
    world.tier("t", 1.0, TierDefault::Deny);
    let quiet = |mut policy: Policy| {
        policy.flags.deny_action = Some(DenyAction::Drop);
        policy
    };
    world.policy(quiet(policy("quiet", 1.0).tier("t").selects("app == 'other'")));
    world.policy(policy("plain", 1.0).tier("t").selects("app == 'w'"));
    world.policy(quiet(policy("also", 1.0).tier("t").selects("app == 'w'")));
    // A namespace that does not exist has no profile that allows.
    world.pod("nowhere/free", "10.0.0.3", &[("app", "free")], &[]);
    let mut judge = world.all_local();
    assert_eq!(asks(&judge, "nowhere/free", TCP), (Verdict::Deny, false));
    judge.apply(configured("default", "iptablesFilterDenyAction", "Reject")).publish();
    assert_eq!(asks(&judge, "ns/w", TCP), (Verdict::Deny, true), "the plain one answers");
    assert_eq!(asks(&judge, "ns/other", TCP), (Verdict::Deny, false), "governed by the quiet one alone");
    assert_eq!(asks(&judge, "nowhere/free", TCP), (Verdict::Deny, true), "the end of the profiles");
}

#[test]
fn pm_14_1_untracked_and_pre_dnat_denials_stay_silent() {
    let mut world = World::two_nodes();
    world
        .hep(hep("h", "eth0"))
        .policy(host_policy("u", deny_all()).untracked())
        .policy(host_policy("d", deny_all()).pre_dnat())
        .policy(host_policy("n", deny_all()));
    let mut engine = Engine::with_model(world.model.clone());
    for interface in interfaces() {
        engine.apply(Change::Interface(interface));
    }
    engine.apply(configured("default", "iptablesFilterDenyAction", "Reject"));
    let snapshot = engine.publish();
    let to_host = packet("tcp 203.0.113.7:40000 > 192.0.2.1:8055");
    let answers = [Context::Untracked, Context::PreDnat, Context::Normal].map(|context| {
        let judgement = snapshot.judge_host(ETH0, context, Direction::Ingress, &to_host).expect("asked");
        assert_eq!(judgement.verdict, HostVerdict::Deny);
        snapshot.rejects(judgement.rule)
    });
    assert_eq!(answers, [false, false, true]);
}

#[test]
fn pm_14_1_the_nodes_own_word_comes_before_the_clusters() {
    let mut world = world();
    world.model.here = "n1".to_owned();
    world.policy(policy("plain", 1.0).both(vec![rule(Action::Deny)]));
    let mut judge = world.all_local();
    judge.apply(configured("default", "iptablesFilterDenyAction", "Reject")).publish();
    assert_eq!(asks(&judge, "ns/w", TCP), (Verdict::Deny, true));
    judge.apply(configured("node.n2", "iptablesFilterDenyAction", "Drop")).publish();
    assert_eq!(asks(&judge, "ns/w", TCP), (Verdict::Deny, true), "another node's");
    judge.apply(configured("node.n1", "iptablesFilterDenyAction", "Drop")).publish();
    assert_eq!(asks(&judge, "ns/w", TCP), (Verdict::Deny, false));
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
