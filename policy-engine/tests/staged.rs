//! Staged policies (policy model 19) and hit records (20.3): what would happen, what is written down, and that nothing happens.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_policy_engine::engine::{Change, Engine};
use margay_policy_engine::model::{
    Action, NamespacedName, Object, Policy, PolicyKey, PolicyKind, Rule, StagedAction, TierDefault,
};
use margay_policy_engine::oracle::{self, OracleDecision, hits};
use margay_policy_engine::packet::{Direction, PacketTuple};
use proptest::collection::vec;
use proptest::prelude::{prop_assert_eq, proptest};
use proptest::test_runner::{Config, FileFailurePersistence};
use support::chance::Chance;
use support::*;

fn named(kind: PolicyKind, name: &str, tier: &str) -> Policy {
    let is_global = matches!(kind, PolicyKind::GlobalNetworkPolicy | PolicyKind::StagedGlobalNetworkPolicy);
    let namespace = (!is_global).then(|| "default".to_owned());
    Policy { key: PolicyKey { kind, namespace, name: name.to_owned() }, ..policy(name, 1.0).tier(tier) }
}

fn np(name: &str, tier: &str) -> Policy {
    named(PolicyKind::NetworkPolicy, name, tier)
}

fn gnp(name: &str, tier: &str) -> Policy {
    named(PolicyKind::GlobalNetworkPolicy, name, tier)
}

fn snp(name: &str, tier: &str) -> Policy {
    Policy { staged: Some(StagedAction::Set), ..named(PolicyKind::StagedNetworkPolicy, name, tier) }
}

fn sgnp(name: &str, tier: &str) -> Policy {
    Policy { staged: Some(StagedAction::Set), ..named(PolicyKind::StagedGlobalNetworkPolicy, name, tier) }
}

fn to(name: &str, action: Action) -> Rule {
    rule(action).to(any().selector(&format!("name == '{name}'")))
}

fn from(name: &str, action: Action) -> Rule {
    rule(action).from(any().selector(&format!("name == '{name}'")))
}

/// The scenario of 8.8 and 19.5: `src` is 10.0.0.10, `w1` to `w4` are 10.0.0.1 to 10.0.0.4.
fn scenario(default_of_tier1: TierDefault) -> Judge {
    let mut world = World::new();
    world.namespace("default", &[]).tier("tier1", 1.0, default_of_tier1).tier(
        "tier2",
        2.0,
        TierDefault::Deny,
    );
    for (pod, address) in
        [("src", "10.0.0.10"), ("w1", "10.0.0.1"), ("w2", "10.0.0.2"), ("w3", "10.0.0.3"), ("w4", "10.0.0.4")]
    {
        world.pod(&format!("default/{pod}"), address, &[("name", pod)], &[]);
    }
    let ordered =
        |order: f64, policy: Policy| Policy { order: margay_policy_engine::model::Order(order), ..policy };
    let on = |names: &str, policy: Policy| policy.selects(&format!("name in {{{names}}}"));
    for policy in [
        on("'src'", gnp("src-all", "tier1")).both(vec![rule(Action::Allow)]),
        ordered(
            1.0,
            Policy {
                governs_egress: false,
                ..on("'w1', 'w2'", np("np1-1", "tier1"))
                    .both(vec![to("w1", Action::Allow), to("w2", Action::Pass)])
            },
        ),
        on("'w1', 'w2'", np("np1-2", "tier1"))
            .only(Egress)
            .both(vec![from("w1", Action::Pass), from("w2", Action::Deny)]),
        on("'w4'", gnp("gnp1-4", "tier1")).only(Ingress).both(vec![from("w1", Action::Allow)]),
        ordered(1.0, on("'w1'", snp("np2-1", "tier2")).only(Egress).both(vec![rule(Action::Allow)])),
        ordered(1.0, on("'w3'", gnp("gnp2-2", "tier2")).only(Egress).both(vec![rule(Action::Deny)])),
        ordered(2.0, on("'w3'", sgnp("gnp2-3", "tier2")).only(Ingress).both(vec![from("w2", Action::Allow)])),
        ordered(
            3.0,
            on("'w2', 'w3'", snp("np2-3", "tier2"))
                .only(Ingress)
                .both(vec![to("w2", Action::Allow), to("w3", Action::Deny)]),
        ),
        ordered(4.0, on("'w3'", np("np2-4", "tier2")).only(Ingress).both(vec![rule(Action::Deny)])),
        on("'w2'", np("np3-3", "default")).only(Ingress).both(vec![rule(Action::Allow)]),
        on("'w1'", snp("np3-9", "default")).only(Egress).both(vec![rule(Action::Deny)]),
    ] {
        world.policy(policy);
    }
    world.all_local()
}

fn texts(decision: &OracleDecision) -> Vec<String> {
    hits::of_trace(&decision.trace).iter().map(ToString::to_string).collect()
}

fn pending(judge: &Judge, direction: Direction, pod: &str, packet: &PacketTuple) -> OracleDecision {
    let (model, locals) = (judge.engine.model(), judge.engine.locals());
    oracle::evaluate_pending(model, locals, direction, &name(pod), packet).unwrap()
}

fn enforced(judge: &Judge, direction: Direction, pod: &str, packet: &PacketTuple) -> OracleDecision {
    judge.leg(direction, pod, packet);
    let (model, locals) = (judge.engine.model(), judge.engine.locals());
    oracle::evaluate(model, locals, direction, &name(pod), packet).unwrap()
}

/// Returns the texts of the enforced and of the pending trace.
fn traces(judge: &Judge, direction: Direction, pod: &str, text: &str) -> [Vec<String>; 2] {
    let packet = packet(text);
    let pod = format!("default/{pod}");
    [texts(&enforced(judge, direction, &pod, &packet)), texts(&pending(judge, direction, &pod, &packet))]
}

#[test]
fn pm_19_5_w1_ingress() {
    let found = traces(&scenario(TierDefault::Deny), Ingress, "w1", "tcp 10.0.0.10 > 10.0.0.1:80");
    let same = vec!["0|tier1|np:default/np1-1|allow|0".to_owned()];
    assert_eq!(found, [same.clone(), same]);
}

#[test]
fn pm_19_5_w2_ingress() {
    let [enforced, pending] =
        traces(&scenario(TierDefault::Deny), Ingress, "w2", "tcp 10.0.0.10 > 10.0.0.2:80");
    assert_eq!(enforced, ["0|tier1|np:default/np1-1|pass|1", "1|default|np:default/np3-3|allow|0"]);
    assert_eq!(pending, ["0|tier1|np:default/np1-1|pass|1", "1|tier2|snp:default/np2-3|allow|0"]);
}

#[test]
fn pm_19_5_w3_ingress() {
    let [enforced, pending] =
        traces(&scenario(TierDefault::Deny), Ingress, "w3", "tcp 10.0.0.10 > 10.0.0.3:80");
    assert_eq!(enforced, ["0|tier2|np:default/np2-4|deny|0"]);
    assert_eq!(
        pending,
        ["0|tier2|snp:default/np2-3|deny|1"],
        "the staged GNP before it has no matching rule"
    );
}

#[test]
fn pm_19_5_w1_egress() {
    let [enforced, pending] =
        traces(&scenario(TierDefault::Deny), Egress, "w1", "tcp 10.0.0.1 > 10.0.0.10:80");
    assert_eq!(enforced, ["0|tier1|np:default/np1-2|pass|0", "1|__PROFILE__|pro:kns.default|allow|0"]);
    assert_eq!(pending, ["0|tier1|np:default/np1-2|pass|0", "1|tier2|snp:default/np2-1|allow|0"]);
}

#[test]
fn pm_19_5_w2_egress() {
    let found = traces(&scenario(TierDefault::Deny), Egress, "w2", "tcp 10.0.0.2 > 10.0.0.10:80");
    let same = vec!["0|tier1|np:default/np1-2|deny|1".to_owned()];
    assert_eq!(found, [same.clone(), same]);
}

#[test]
fn pm_19_5_w3_egress() {
    let found = traces(&scenario(TierDefault::Deny), Egress, "w3", "tcp 10.0.0.3 > 10.0.0.10:80");
    let same = vec!["0|tier2|gnp:gnp2-2|deny|0".to_owned()];
    assert_eq!(found, [same.clone(), same]);
}

#[test]
fn pm_8_8_w4_ingress_ends_with_its_tier() {
    let judge = scenario(TierDefault::Deny);
    let told = enforced(&judge, Ingress, "default/w4", &packet("tcp 10.0.0.10 > 10.0.0.4:80"));
    let hits = hits::of_trace(&told.trace);
    assert!(hits.len() == 1 && hits[0].end_of_tier && hits[0].policy.name == "gnp1-4");
    let ends = |default| traces(&scenario(default), Ingress, "w4", "tcp 10.0.0.10 > 10.0.0.4:80");
    let same = vec!["0|tier1|gnp:gnp1-4|deny|-1".to_owned()];
    assert_eq!(ends(TierDefault::Deny), [same.clone(), same], "the trigger is the policy that selects");
    let same =
        vec!["0|tier1|gnp:gnp1-4|pass|-1".to_owned(), "1|__PROFILE__|pro:kns.default|allow|0".to_owned()];
    assert_eq!(ends(TierDefault::Pass), [same.clone(), same]);
    let same = vec!["0|tier1|gnp:gnp1-4|allow|-1".to_owned()];
    assert_eq!(ends(TierDefault::Allow), [same.clone(), same], "PM-32.5");
}

#[test]
fn pm_20_3_the_trigger_is_the_first_policy_of_the_tier_that_applies() {
    let mut world = World::new();
    world.namespace("default", &[]).pod("default/w", "10.0.0.1", &[], &[]);
    world.policy(gnp("a-elsewhere", "default").selects("has(nothing)")).policy(gnp("b", "default"));
    world.policy(gnp("c", "default"));
    let [enforced, _] = traces(&world.all_local(), Ingress, "w", "tcp 10.0.0.9 > 10.0.0.1:80");
    assert_eq!(enforced, ["0|default|gnp:b|deny|-1"]);
}

#[test]
fn pm_8_8_the_verdicts_of_the_scenario() {
    let judge = scenario(TierDefault::Deny);
    for (direction, pod, text, expected) in [
        (Ingress, "default/w1", "tcp 10.0.0.10 > 10.0.0.1:80", Allow),
        (Ingress, "default/w2", "tcp 10.0.0.10 > 10.0.0.2:80", Allow),
        (Ingress, "default/w3", "tcp 10.0.0.10 > 10.0.0.3:80", Deny),
        (Ingress, "default/w4", "tcp 10.0.0.10 > 10.0.0.4:80", Deny),
        (Egress, "default/w1", "tcp 10.0.0.1 > 10.0.0.10:80", Allow),
        (Egress, "default/w2", "tcp 10.0.0.2 > 10.0.0.10:80", Deny),
        (Egress, "default/w3", "tcp 10.0.0.3 > 10.0.0.10:80", Deny),
        (Egress, "default/src", "tcp 10.0.0.10 > 10.0.0.3:80", Allow),
    ] {
        assert_eq!(judge.verdict(direction, pod, text), expected, "{pod} {direction:?}");
    }
    assert_eq!(
        scenario(TierDefault::Pass).verdict(Ingress, "default/w4", "tcp 10.0.0.10 > 10.0.0.4:80"),
        Allow
    );
}

#[test]
fn pm_20_3_kinds_logs_and_the_end_of_the_profiles() {
    let mut world = World::new();
    world.namespace("default", &[]).pod("default/w", "10.0.0.1", &[], &[]).tier(
        "first",
        1.0,
        TierDefault::Pass,
    );
    let kubernetes = Policy {
        key: PolicyKey {
            kind: PolicyKind::KubernetesNetworkPolicy,
            namespace: Some("default".to_owned()),
            name: "k".to_owned(),
        },
        ..policy("k", 5.0).only(Ingress)
    };
    let cluster = Policy {
        key: PolicyKey {
            kind: PolicyKind::KubernetesClusterNetworkPolicy,
            namespace: None,
            name: "admin".to_owned(),
        },
        ..policy("admin", 5.0).tier("first").only(Ingress)
    };
    world
        .policy(cluster.both(vec![rule(Action::Log), rule(Action::Pass)]))
        .policy(kubernetes.both(vec![rule(Action::Allow).protocol(6)]));
    let judge = world.all_local();
    let [enforced, _] = traces(&judge, Ingress, "w", "tcp 10.0.0.9 > 10.0.0.1:80");
    assert_eq!(
        enforced,
        ["0|first|kcnp:admin|pass|1", "1|default|knp:default/k|allow|0"],
        "Log leaves no record"
    );
    let [enforced, _] = traces(&judge, Ingress, "w", "udp 10.0.0.9 > 10.0.0.1:80");
    assert_eq!(enforced, ["0|first|kcnp:admin|pass|1", "1|default|knp:default/k|deny|-1"]);

    let mut lonely = World::new();
    let mut pod = pod("gone/w", "10.0.0.1", &[], &[]);
    pod.service_account = Some("s".to_owned());
    lonely.namespace("gone", &[]).model.insert(Object::Pod(Arc::new(pod)));
    lonely.model.namespaces.clear();
    let missing = enforced_of(&lonely.all_local(), "gone/w");
    assert_eq!(missing, ["0|__PROFILE__|pro:kns.gone|deny|-1"], "a profile that does not exist denies");
}

fn enforced_of(judge: &Judge, pod: &str) -> Vec<String> {
    texts(&enforced(judge, Ingress, pod, &packet("tcp 10.0.0.9 > 10.0.0.1:80")))
}

#[test]
fn pm_20_3_no_match_at_the_end_of_the_profiles() {
    let end = margay_policy_engine::snapshot::Attribution {
        tier: "__PROFILE__".to_owned(),
        kind: String::new(),
        namespace: String::new(),
        name: String::new(),
        rule: -1,
    };
    let finding = oracle::Finding::Denied("no profile allows it".to_owned());
    let hits = hits::of_trace(&[oracle::Step { place: end, finding }]);
    assert_eq!(hits[0].to_string(), "0|__PROFILE__|pro:__NO_MATCH__|deny|-1");
    let json = serde_json::to_value(&hits[0]).unwrap();
    assert_eq!(json["policy"]["name"], "__NO_MATCH__");
    assert_eq!((json["action"].as_str(), json["rule"].as_i64()), (Some("deny"), Some(-1)));
    assert_eq!(json["endOfTier"], false, "the profiles are no tier");
}

/// One pod, one enforced policy `p` that allows, one staged policy `p` with `action` that denies; the pending trace.
fn namesakes(kinds: [PolicyKind; 2], action: StagedAction, change: impl FnOnce(&mut Policy)) -> Vec<String> {
    let mut world = World::new();
    world.namespace("default", &[]).pod("default/w", "10.0.0.1", &[], &[]);
    let rules = |action| if action == StagedAction::Delete { Vec::new() } else { vec![rule(Action::Deny)] };
    let mut staged = named(kinds[1], "p", "default").both(rules(action));
    staged.staged = Some(action);
    change(&mut staged);
    world.policy(named(kinds[0], "p", "default").both(vec![rule(Action::Allow)])).policy(staged);
    let judge = world.all_local();
    let [enforced, pending] = traces(&judge, Ingress, "w", "tcp 10.0.0.9 > 10.0.0.1:80");
    assert!(enforced[0].ends_with("|allow|0"), "{enforced:?}");
    pending
}

const NP: [PolicyKind; 2] = [PolicyKind::NetworkPolicy, PolicyKind::StagedNetworkPolicy];
const GNP: [PolicyKind; 2] = [PolicyKind::GlobalNetworkPolicy, PolicyKind::StagedGlobalNetworkPolicy];
const KNP: [PolicyKind; 2] = [PolicyKind::KubernetesNetworkPolicy, PolicyKind::StagedKubernetesNetworkPolicy];

#[test]
fn pm_19_2_set_replaces_its_namesake_of_every_kind() {
    assert_eq!(namesakes(NP, StagedAction::Set, |_| {}), ["0|default|snp:default/p|deny|0"]);
    assert_eq!(namesakes(GNP, StagedAction::Set, |_| {}), ["0|default|sgnp:p|deny|0"]);
    assert_eq!(namesakes(KNP, StagedAction::Set, |_| {}), ["0|default|sknp:default/p|deny|0"]);
}

#[test]
fn pm_19_2_only_the_same_name_namespace_tier_and_kind_is_a_namesake() {
    let allowed = "0|default|np:default/p|allow|0";
    assert_eq!(namesakes(NP, StagedAction::Set, |staged| staged.key.name = "q".to_owned()), [allowed]);
    let other = |staged: &mut Policy| staged.key.namespace = Some("other".to_owned());
    assert_eq!(namesakes(NP, StagedAction::Set, other), [allowed]);
    assert_eq!(namesakes(NP, StagedAction::Set, |staged| staged.tier = "later".to_owned()), [allowed]);
    let kinds = [PolicyKind::NetworkPolicy, PolicyKind::StagedKubernetesNetworkPolicy];
    assert_eq!(namesakes(kinds, StagedAction::Delete, |_| {}), [allowed]);
}

#[test]
fn pm_d16_delete_takes_the_namesake_away() {
    for kinds in [NP, GNP, KNP] {
        let found = namesakes(kinds, StagedAction::Delete, |_| {});
        assert_eq!(found, ["0|__PROFILE__|pro:kns.default|allow|0"], "{kinds:?}");
    }
}

#[test]
fn pm_d16_learn_stands_beside_and_ignore_says_nothing() {
    let found = namesakes(NP, StagedAction::Learn, |_| {});
    assert_eq!(found, ["0|default|np:default/p|allow|0"], "the kind text decides at equal order");
    let earlier = |staged: &mut Policy| staged.order = margay_policy_engine::model::Order(0.5);
    assert_eq!(namesakes(NP, StagedAction::Learn, earlier), ["0|default|snp:default/p|deny|0"]);
    assert_eq!(namesakes(NP, StagedAction::Ignore, earlier), ["0|default|np:default/p|allow|0"]);
}

#[test]
fn pm_19_4_a_pending_tier_of_staged_policies_ends_with_deny() {
    let mut world = World::new();
    world.namespace("default", &[]).pod("default/w", "10.0.0.1", &[], &[]);
    world.policy(snp("only", "default"));
    let [enforced, pending] = traces(&world.all_local(), Ingress, "w", "tcp 10.0.0.9 > 10.0.0.1:80");
    assert_eq!(enforced, ["0|__PROFILE__|pro:kns.default|allow|0"], "PM-19.3: transparent");
    assert_eq!(pending, ["0|default|snp:default/only|deny|-1"]);
}

fn cases(base: u32) -> Config {
    let factor: u32 =
        std::env::var("MARGAY_PROPERTY_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    Config {
        cases: base.saturating_mul(factor),
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    }
}

fn judge_of(changes: impl IntoIterator<Item = Change>) -> Judge {
    let mut engine = Engine::new();
    changes.into_iter().for_each(|change| engine.apply(change));
    Judge::new(engine)
}

/// Puts staged namesakes beside some of the policies, with the rules of others.
fn stage_some(world: &[Change], chance: &mut Chance<'_>) -> Vec<Change> {
    let policies: Vec<Arc<Policy>> = world
        .iter()
        .filter_map(|change| match change {
            Change::Upsert(Object::Policy(policy)) => Some(policy.clone()),
            _ => None,
        })
        .collect();
    let mut staged = Vec::new();
    for policy in &policies {
        let kind = match policy.key.kind {
            PolicyKind::NetworkPolicy => PolicyKind::StagedNetworkPolicy,
            PolicyKind::GlobalNetworkPolicy => PolicyKind::StagedGlobalNetworkPolicy,
            PolicyKind::KubernetesNetworkPolicy => PolicyKind::StagedKubernetesNetworkPolicy,
            _ => continue,
        };
        let other = &policies[chance.below(policies.len())];
        let actions = [StagedAction::Set, StagedAction::Delete, StagedAction::Learn, StagedAction::Ignore];
        let copy = Policy {
            key: PolicyKey { kind, ..policy.key.clone() },
            tier: policy.tier.clone(),
            staged: Some(actions[chance.below(4)]),
            ..Policy::clone(other)
        };
        staged.push(Change::Upsert(Object::Policy(copy.into())));
    }
    staged
}

proptest! {
    #![proptest_config(cases(60))]

    /// PM-19.3, on worlds drawn by chance: with staged policies beside them, the tables decide as without. And the pending trace is
    /// what the tables decide once the staged policies are enforced by hand.
    #[test]
    fn pm_19_3_staged_policies_never_change_a_verdict(
        bytes in vec(proptest::num::u8::ANY, 500..4_000),
        more in vec(proptest::num::u8::ANY, 600),
    ) {
        let world = Chance::new(&bytes).world();
        let mut chance = Chance::new(&more);
        let staged = stage_some(&world, &mut chance);
        let packets: Vec<PacketTuple> = (0..20).map(|_| chance.packet()).collect();
        let without = judge_of(world.iter().cloned());
        let with = judge_of(world.iter().chain(&staged).cloned());
        let by_hand = judge_of(world.iter().chain(&staged).cloned().chain(promoted(&with)));
        let pods: Vec<NamespacedName> = with.engine.locals().values().map(|local| local.pod.clone()).collect();
        for pod in pods {
            let text = format!("{}/{}", pod.namespace, pod.name);
            for (packet, direction) in packets.iter().flat_map(|packet| [(packet, Ingress), (packet, Egress)]) {
                prop_assert_eq!(without.leg(direction, &text, packet), with.leg(direction, &text, packet));
                let (model, locals) = (with.engine.model(), with.engine.locals());
                let pending = oracle::evaluate_pending(model, locals, direction, &pod, packet)
                    .map(|decision| (decision.verdict, decision.attribution));
                prop_assert_eq!(pending, by_hand.leg(direction, &text, packet));
            }
        }
    }
}

/// What a user does by hand: the staged policies that count become enforced (under their own kind, which keeps their place), and what
/// they replace or remove is deleted.
fn promoted(judge: &Judge) -> Vec<Change> {
    let policies: &BTreeMap<PolicyKey, Arc<Policy>> = &judge.engine.model().policies;
    let mut changes = Vec::new();
    for policy in policies.values() {
        let Some(action) = policy.staged else { continue };
        let enforced = match policy.key.kind {
            PolicyKind::StagedNetworkPolicy => PolicyKind::NetworkPolicy,
            PolicyKind::StagedGlobalNetworkPolicy => PolicyKind::GlobalNetworkPolicy,
            PolicyKind::StagedKubernetesNetworkPolicy => PolicyKind::KubernetesNetworkPolicy,
            other => other,
        };
        let namesake = PolicyKey { kind: enforced, ..policy.key.clone() };
        let has_namesake = policies
            .get(&namesake)
            .is_some_and(|namesake| namesake.staged.is_none() && namesake.tier == policy.tier);
        if has_namesake && matches!(action, StagedAction::Set | StagedAction::Delete) {
            changes.push(Change::Delete(margay_policy_engine::model::ObjectKey::Policy(namesake)));
        }
        if matches!(action, StagedAction::Set | StagedAction::Learn) {
            let enforced = Policy { staged: None, ..Policy::clone(policy) };
            changes.push(Change::Upsert(Object::Policy(enforced.into())));
        }
    }
    changes
}
