//! What must hold for every input: the bodies of the fuzz targets.
//!
//! The same bodies run as property tests in `cargo test -p margay-policy-engine --test fuzz_targets`, over the kept corpora and over
//! generated input, so a stable compiler holds them too. A run under libFuzzer (`cargo +nightly fuzz run selector`) hunts for longer.

use std::collections::BTreeMap;

use margay_policy_engine::decode::{Decoded, decode};
use margay_policy_engine::model::{Action, Object, Policy, PolicyKind, Rule};
use margay_policy_engine::selector::{Restriction, Selector};

/// Judges a selector, and labels for it: `selector`, then any number of lines `key=value`.
///
/// Reading never panics; the canonical text reads as itself, with the same identifier; what matches keeps to the restrictions; negation
/// turns every answer round.
pub fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (expression, pairs) = text.split_once('\n').unwrap_or((text, ""));
    let selector = match Selector::parse(expression) {
        Ok(selector) => selector,
        Err(error) => {
            assert!(error.position <= expression.len(), "{expression:?}: {error}");
            assert!(!error.reason.is_empty());
            return;
        }
    };
    let again = Selector::parse(selector.canonical()).expect("canonical text is a selector");
    assert_eq!((again.canonical(), again.id()), (selector.canonical(), selector.id()));
    let labels: BTreeMap<String, String> = pairs
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let matches = selector.matches(&labels);
    assert_eq!(again.matches(&labels), matches, "{selector}");
    assert_eq!(selector.negated().matches(&labels), !matches, "{selector}");
    if matches {
        for (key, restriction) in selector.restrictions() {
            let value = labels.get(&key);
            let holds = match &restriction {
                Restriction::Present => value.is_some(),
                Restriction::OneOf(values) => value.is_some_and(|value| values.contains(value)),
                Restriction::Absent => value.is_none(),
            };
            assert!(holds, "{selector} matches {labels:?} against {key}: {restriction:?}");
        }
    }
}

/// Judges a file of manifests.
///
/// Reading never panics, twice gives the same, every error says something, and an invalid policy never allows more than what was
/// written (see `is_closed`).
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (once, twice) = (decode(text, "fuzz"), decode(text, "fuzz"));
    assert_eq!(format!("{once:?}"), format!("{twice:?}"), "the same text has one meaning");
    for decoded in once {
        match decoded {
            Decoded::Valid { version, .. } => assert!(!version.is_empty()),
            Decoded::Invalid { key, errors, fallback, critical, .. } => {
                assert!(!errors.is_empty() && errors.iter().all(|error| !error.reason.is_empty()));
                if let Some(object) = fallback {
                    assert_eq!(object.key(), key, "the closed form is of the same object");
                    is_closed(&object, critical);
                }
            }
            Decoded::Unreadable { errors, .. } => {
                assert!(!errors.is_empty() && errors.iter().all(|error| !error.reason.is_empty()));
            }
            Decoded::Ignored { kind, .. } => assert!(!kind.is_empty()),
        }
    }
}

/// Insists that what stands for an invalid object opens nothing: a policy that denies in every direction it governs, or, of the kinds
/// of `policy.networking.k8s.io`, one whose good rules stay and whose others deny (policy model 4.1, 7.6).
fn is_closed(object: &Object, critical: bool) {
    let Object::Policy(policy) = object else { panic!("only policies have a closed form: {object:?}") };
    assert!(policy.staged.is_none(), "a staged policy has no effect and needs no closed form");
    assert_eq!(policy.selector.is_none(), critical, "critical means that nobody is protected");
    let lists = [(policy.governs_ingress, &policy.ingress), (policy.governs_egress, &policy.egress)];
    for (governs, rules) in lists {
        let denies = rules.as_slice() == [Rule::everything(Action::Deny)];
        let is_good = if governs { denies || keeps_good_rules(policy) } else { rules.is_empty() };
        assert!(is_good, "{policy:#?}");
    }
}

fn keeps_good_rules(policy: &Policy) -> bool {
    matches!(
        policy.key.kind,
        PolicyKind::KubernetesClusterNetworkPolicy
            | PolicyKind::KubernetesAdminNetworkPolicy
            | PolicyKind::KubernetesBaselineAdminNetworkPolicy
    )
}
