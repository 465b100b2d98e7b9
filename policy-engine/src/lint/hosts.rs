//! Lints about host endpoints (policy model 11).

use super::Found;
use super::catalogue::{HOST_ENDPOINT_CLOSED, MISSING_PROFILE, ORDER_ACROSS_CONTEXTS, UNTRACKED_ON_STAR};
use super::shown;
use crate::model::{HostEndpoint, Labels, ObjectKey, Policy};
use crate::oracle::{self, labels_with_profiles};
use crate::packet::Direction;

pub(super) fn lint(found: &mut Found<'_>) {
    let manifests = found.manifests;
    let model = &manifests.model;
    for host in model.host_endpoints.values() {
        let labels = labels_with_profiles(model, &host.labels, &host.profiles);
        let policies: Vec<&Policy> = model
            .policies
            .values()
            .map(|policy| &**policy)
            .filter(|policy| policy.staged.is_none() && selects(policy, &labels))
            .collect();
        profiles(found, host);
        closed(found, host, &policies);
        untracked(found, host, &policies);
        contexts(found, &policies);
    }
}

fn selects(policy: &Policy, labels: &Labels) -> bool {
    policy.selector.as_ref().is_some_and(|selector| selector.matches(labels))
}

fn key(host: &HostEndpoint) -> ObjectKey {
    ObjectKey::HostEndpoint(host.name.clone())
}

fn profiles(found: &mut Found<'_>, host: &HostEndpoint) {
    for (index, name) in host.profiles.iter().enumerate() {
        if oracle::profile_rules(&found.manifests.model, name, Direction::Ingress).is_none() {
            let message = format!("profile {name:?} does not exist");
            found.about(&MISSING_PROFILE, &key(host), format!("spec.profiles[{index}]"), message);
        }
    }
}

/// Policy model 11.5.
fn closed(found: &mut Found<'_>, host: &HostEndpoint, policies: &[&Policy]) {
    if !host.profiles.is_empty() {
        return;
    }
    let is_normal = |policy: &&&Policy| !policy.flags.do_not_track && !policy.flags.pre_dnat;
    let mut normal = policies.iter().filter(is_normal);
    let closed: Vec<&str> = [
        ("to", normal.clone().any(|policy| policy.governs_ingress)),
        ("from", normal.any(|policy| policy.governs_egress)),
    ]
    .into_iter()
    .filter_map(|(word, is_governed)| (!is_governed).then_some(word))
    .collect();
    if !closed.is_empty() {
        let message = format!(
            "everything {} node {} itself is denied here, failsafe ports apart",
            closed.join(" and "),
            host.node
        );
        found.about(&HOST_ENDPOINT_CLOSED, &key(host), "spec.profiles", message);
    }
}

/// Policy model 11.7.
fn untracked(found: &mut Found<'_>, host: &HostEndpoint, policies: &[&Policy]) {
    for policy in policies.iter().filter(|policy| policy.flags.do_not_track && host.interface_name == "*") {
        let message = format!("it selects HostEndpoint {}, whose interfaceName is \"*\"", host.name);
        found.about_policy(&UNTRACKED_ON_STAR, policy, "spec.doNotTrack", message);
    }
}

/// Policy model 11.2: an early context comes first whatever the order says.
fn contexts(found: &mut Found<'_>, policies: &[&Policy]) {
    let rank = |policy: &Policy| match (policy.flags.do_not_track, policy.flags.pre_dnat) {
        (true, _) => 0,
        (_, true) => 1,
        _ => 2,
    };
    for early in policies.iter().filter(|policy| rank(policy) < 2) {
        let later = policies
            .iter()
            .find(|other| rank(other) > rank(early) && other.tier == early.tier && other.order < early.order);
        if let Some(later) = later {
            let message = format!(
                "it is asked before {}, although its order is larger",
                shown(&ObjectKey::Policy(later.key.clone()))
            );
            found.about_policy(&ORDER_ACROSS_CONTEXTS, early, "spec.order", message);
        }
    }
}
