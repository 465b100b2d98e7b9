//! What comes first: tiers (policy model 8.1, 8.6) and policies (8.2).

use std::cmp::Ordering;

use crate::model::{Model, Order, Policy, TierDefault};
use crate::packet::Direction;

/// Where a tier stands: those that exist first, by order and name; then those that policies only name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TierPlace {
    is_missing: bool,
    order: Option<Order>,
    name: String,
}

/// Returns the place and the default action of the tier `name`.
pub(crate) fn tier(model: &Model, name: &str) -> (TierPlace, TierDefault) {
    let object = model.tiers.get(name);
    let place = TierPlace {
        is_missing: object.is_none(),
        order: object.map(|tier| tier.order),
        name: name.to_owned(),
    };
    (place, object.map_or(TierDefault::Deny, |tier| tier.default_action))
}

/// Returns whether the policy governs `direction`.
pub(crate) fn governs(policy: &Policy, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => policy.governs_ingress,
        Direction::Egress => policy.governs_egress,
    }
}

/// The text that decides between policies of equal order: `<name>/<namespace>/<kind>`.
pub(crate) fn tie_break(policy: &Policy) -> String {
    let namespace = policy.key.namespace.as_deref().unwrap_or_default();
    format!("{}/{}/{}", policy.key.name, namespace, policy.key.kind.as_str())
}

/// Compares two policies of one tier, each with its [`tie_break`].
pub(crate) fn compare(a: (&Policy, &str), b: (&Policy, &str)) -> Ordering {
    a.0.order.cmp(&b.0.order).then_with(|| a.1.cmp(b.1))
}
