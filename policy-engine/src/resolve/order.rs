//! Which policies govern an endpoint in a direction, tier by tier (policy model 8.1 to 8.3, 8.6).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Labels, Model, Policy, TierDefault};
use crate::packet::Direction;

/// A tier with its enforced policies, in order. Staged policies and contexts that pods do not have are left out already.
#[derive(Clone, Debug)]
pub(crate) struct OrderedTier {
    pub(crate) name: String,
    pub(crate) default_action: TierDefault,
    pub(crate) policies: Vec<Arc<Policy>>,
}

/// Returns every tier that an enforced policy names, in order of evaluation.
pub(crate) fn tiers(model: &Model) -> Vec<OrderedTier> {
    let mut by_tier: BTreeMap<&str, Vec<&Arc<Policy>>> = BTreeMap::new();
    for policy in model.policies.values().filter(|policy| concerns_pods(policy)) {
        by_tier.entry(&policy.tier).or_default().push(policy);
    }
    let mut tiers: Vec<_> = by_tier
        .into_iter()
        .map(|(name, mut policies)| {
            policies.sort_by(|a, b| policy_order(a, b));
            let object = model.tiers.get(name);
            let tier = OrderedTier {
                name: name.to_owned(),
                default_action: object.map_or(TierDefault::Deny, |tier| tier.default_action),
                policies: policies.into_iter().cloned().collect(),
            };
            (object.map(|tier| tier.order), tier)
        })
        .collect();
    tiers.sort_by(|(a_order, a), (b_order, b)| {
        let exists = b_order.is_some().cmp(&a_order.is_some());
        exists.then_with(|| a_order.cmp(b_order)).then_with(|| a.name.cmp(&b.name))
    });
    tiers.into_iter().map(|(_, tier)| tier).collect()
}

/// Returns the tiers and policies that apply to an endpoint with these labels. A tier without any is left out, default action included.
pub(crate) fn applicable<'a>(
    tiers: &'a [OrderedTier],
    labels: &Labels,
    direction: Direction,
) -> Vec<(&'a OrderedTier, Vec<&'a Arc<Policy>>)> {
    tiers
        .iter()
        .filter_map(|tier| {
            let policies: Vec<_> = tier
                .policies
                .iter()
                .filter(|policy| governs(policy, direction))
                .filter(|policy| policy.selector.as_ref().is_some_and(|selector| selector.matches(labels)))
                .collect();
            (!policies.is_empty()).then_some((tier, policies))
        })
        .collect()
}

/// Returns whether the policy governs `direction`.
pub(crate) fn governs(policy: &Policy, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => policy.governs_ingress,
        Direction::Egress => policy.governs_egress,
    }
}

fn concerns_pods(policy: &Policy) -> bool {
    policy.staged.is_none() && !policy.flags.do_not_track && !policy.flags.pre_dnat
}

/// Order, then the text `<name>/<namespace>/<kind>` (policy model 8.2).
fn policy_order(a: &Policy, b: &Policy) -> Ordering {
    let text = |policy: &Policy| {
        let namespace = policy.key.namespace.as_deref().unwrap_or_default();
        format!("{}/{}/{}", policy.key.name, namespace, policy.key.kind.as_str())
    };
    a.order.cmp(&b.order).then_with(|| text(a).cmp(&text(b)))
}
