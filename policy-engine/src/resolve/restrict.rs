//! The switch `restrictNamespaceSelectors` (PM-D4): who asks for labels of namespaces means things that have a namespace.
//!
//! Without it `namespaceSelector: env != 'prod'` also selects host endpoints and global network sets, as in Calico, because
//! those have no such label.

use std::sync::Arc;

use crate::model::{Entity, Policy, Rule};
use crate::selector::Selector;

/// Prefix of labels that come from a namespace (policy model 1.3).
const NAMESPACE_LABELS: &str = "pcns.";
const NAMESPACE: &str = "projectcalico.org/namespace";

/// Returns the policy as the switch has it; `None` where it makes no difference.
pub(crate) fn policy(original: &Policy) -> Option<Arc<Policy>> {
    let peers = original.ingress.iter().chain(&original.egress).flat_map(|rule| {
        [&rule.source, &rule.destination].into_iter().filter_map(|entity| entity.selector.as_ref())
    });
    // Most policies are not concerned, and a copy of a long one takes its time.
    if !original.selector.iter().chain(peers).any(|selector| selector.canonical().contains(NAMESPACE_LABELS))
    {
        return None;
    }
    let mut restricted = original.clone();
    if let Some(selector) = &mut restricted.selector {
        restrict(selector);
    }
    restricted.ingress.iter_mut().chain(&mut restricted.egress).for_each(rule);
    (restricted != *original).then(|| Arc::new(restricted))
}

fn rule(rule: &mut Rule) {
    let peer = |entity: &mut Entity| entity.selector.iter_mut().for_each(restrict);
    peer(&mut rule.source);
    peer(&mut rule.destination);
}

fn restrict(selector: &mut Selector) {
    if selector.keys().iter().any(|key| key.starts_with(NAMESPACE_LABELS))
        && let Ok(namespaced) = Selector::has(NAMESPACE)
    {
        *selector = Selector::and([selector.clone(), namespaced]);
    }
}
