//! Lints about a policy as a whole.

use std::collections::BTreeSet;

use super::catalogue::{
    FLOWS_KEPT, HOST_NETWORK_POD, IMPOSSIBLE_SELECTOR, LOG_ONLY, MISSING_NAMESPACE, MISSING_TIER,
    SELECTS_NOTHING, STAGED_LEFTOVER, STAGED_WITHOUT_NAMESAKE,
};
use super::cover::selects_all_of;
use super::manifests::Role;
use super::{Found, shown};
use crate::explain::words;
use crate::model::{Action, ObjectKey, Policy, PolicyKey, PolicyKind, Rule, StagedAction, TierDefault};
use crate::packet::Direction;
use crate::selector::{Restriction, Selector};

pub(super) fn lint(found: &mut Found<'_>) {
    let manifests = found.manifests;
    for policy in manifests.model.policies.values() {
        selection(found, policy);
        tier(found, policy);
        staged(found, policy);
        for direction in [Direction::Ingress, Direction::Egress] {
            log_only(found, policy, direction);
        }
    }
    namespaces(found);
    configuration(found);
}

/// Returns whether no labels at all can match.
pub(super) fn is_impossible(selector: &Selector) -> bool {
    let wanted = selector.restrictions();
    wanted.values().any(|one| matches!(one, Restriction::OneOf(values) if values.is_empty()))
}

fn selection(found: &mut Found<'_>, policy: &Policy) {
    let manifests = found.manifests;
    let Some(selector) = &policy.selector else { return };
    if is_impossible(selector) {
        let message = format!("no object can match {}", selector.canonical());
        found.about_policy(&IMPOSSIBLE_SELECTOR, policy, "spec.selector", message);
        return;
    }
    let removes = policy.staged == Some(StagedAction::Delete);
    if manifests.has_pods() && !removes && manifests.selected(selector).next().is_none() {
        let message = format!("{}: nobody in these manifests", words::target(policy));
        found.about_policy(&SELECTS_NOTHING, policy, "spec.selector", message);
    }
    // A policy for everything does not mean these pods in particular.
    let wide = words::target(policy);
    let is_particular = !wide.contains("everything") && !wide.contains("every pod");
    let shared = manifests
        .known
        .iter()
        .find(|known| known.role == Role::HostNetworked && selector.matches(&known.labels));
    if let Some(pod) = shared.filter(|_| is_particular) {
        let message =
            format!("{} is selected and not governed: it shares the network of its node", shown(&pod.key));
        found.about_policy(&HOST_NETWORK_POD, policy, "spec.selector", message);
    }
}

fn tier(found: &mut Found<'_>, policy: &Policy) {
    if !found.manifests.model.tiers.contains_key(&policy.tier) {
        let message = format!("tier {:?} does not exist", policy.tier);
        found.about_policy(&MISSING_TIER, policy, "spec.tier", message);
    }
}

fn rules(policy: &Policy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.governs_ingress.then_some(&policy.ingress),
        Direction::Egress => policy.governs_egress.then_some(&policy.egress),
    }
    .map(Vec::as_slice)
}

/// Policy model 8.4, item 6. Another policy of the tier that selects the same endpoints makes the tier apply anyhow.
fn log_only(found: &mut Found<'_>, policy: &Policy, direction: Direction) {
    let model = &found.manifests.model;
    let Some(list) = rules(policy, direction).filter(|list| !list.is_empty()) else { return };
    let denies = model.tiers.get(&policy.tier).is_none_or(|tier| tier.default_action == TierDefault::Deny);
    let never_ends = policy.flags.do_not_track || policy.flags.pre_dnat;
    if !denies || never_ends || policy.staged.is_some() || list.iter().any(|rule| rule.action != Action::Log)
    {
        return;
    }
    let covers = |other: &Policy| match (&other.selector, &policy.selector) {
        (Some(other), Some(own)) => selects_all_of(other, own),
        _ => false,
    };
    let others = model.policies.values().filter(|other| {
        other.key != policy.key
            && other.tier == policy.tier
            && other.staged.is_none()
            && other.flags == policy.flags
    });
    let mut deciding = others.filter(|other| rules(other, direction).is_some() && covers(other));
    if deciding.next().is_none() {
        let word = words::direction(direction);
        let message = format!(
            "every {word} rule only logs, so all {word} of what it selects is denied at the end of tier {}",
            policy.tier
        );
        found.about_policy(&LOG_ONLY, policy, format!("spec.{word}"), message);
    }
}

fn staged(found: &mut Found<'_>, policy: &Policy) {
    let Some(action) = policy.staged else { return };
    let kind = match policy.key.kind {
        PolicyKind::StagedNetworkPolicy => PolicyKind::NetworkPolicy,
        PolicyKind::StagedGlobalNetworkPolicy => PolicyKind::GlobalNetworkPolicy,
        _ => PolicyKind::KubernetesNetworkPolicy,
    };
    let key = PolicyKey { kind, ..policy.key.clone() };
    let namesake = found.manifests.model.policies.get(&key).filter(|other| other.tier == policy.tier);
    let shown = shown(&ObjectKey::Policy(key));
    match (action, namesake) {
        (StagedAction::Delete, None) => {
            let message = format!("there is no {shown} in tier {}", policy.tier);
            found.about_policy(&STAGED_WITHOUT_NAMESAKE, policy, "spec.stagedAction", message);
        }
        (StagedAction::Delete, Some(_)) => {
            let message = format!("{shown} stays in force until it is deleted itself");
            found.about_policy(&STAGED_LEFTOVER, policy, "", message);
        }
        (_, Some(other)) if other.ingress == policy.ingress && other.egress == policy.egress => {
            let message = format!("{shown} has the same rules and is enforced already");
            found.about_policy(&STAGED_LEFTOVER, policy, "", message);
        }
        (StagedAction::Ignore, _) => {
            found.about_policy(&STAGED_LEFTOVER, policy, "spec.stagedAction", "it is not even simulated");
        }
        _ => found.about_policy(&STAGED_LEFTOVER, policy, "", "it is simulated and not enforced"),
    }
}

/// Policy model 7.1 and 8.6. Manifests without any Namespace are not meant to be complete.
fn namespaces(found: &mut Found<'_>) {
    let model = &found.manifests.model;
    if model.namespaces.is_empty() {
        return;
    }
    let mut told = BTreeSet::new();
    for pod in model.pods.values() {
        let namespace = &pod.key.namespace;
        if !model.namespaces.contains_key(namespace) && told.insert(namespace.clone()) {
            let message = format!("Namespace {namespace} is not in the manifests");
            found.about(&MISSING_NAMESPACE, &ObjectKey::Pod(pod.key.clone()), "metadata.namespace", message);
        }
    }
}

fn configuration(found: &mut Found<'_>) {
    for configuration in found.manifests.model.felix_configurations.values() {
        let action = configuration.others.get("policyChangeFlowAction");
        if action.is_some_and(|action| action.trim_matches('"').eq_ignore_ascii_case("keep")) {
            let key = ObjectKey::FelixConfiguration(configuration.name.clone());
            found.about(
                &FLOWS_KEPT,
                &key,
                "spec.policyChangeFlowAction",
                "a new Deny does not end connections",
            );
        }
    }
}
