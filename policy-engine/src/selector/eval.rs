//! What an expression says about labels: its truth (policy model 5.3) and what it requires (5.8).

use std::collections::{BTreeMap, BTreeSet};

use super::Restriction;
use super::ast::Node;

/// Returns whether the labels behind `lookup` satisfy `node`.
pub(super) fn matches<'a>(node: &Node, lookup: &dyn Fn(&str) -> Option<&'a str>) -> bool {
    match node {
        Node::All | Node::Global => true,
        Node::Has(key) => lookup(key).is_some(),
        Node::Equal(key, value) => lookup(key) == Some(value.as_str()),
        Node::NotEqual(key, value) => lookup(key) != Some(value.as_str()),
        Node::Contains(key, part) => lookup(key).is_some_and(|value| value.contains(part.as_str())),
        Node::StartsWith(key, part) => lookup(key).is_some_and(|value| value.starts_with(part.as_str())),
        Node::EndsWith(key, part) => lookup(key).is_some_and(|value| value.ends_with(part.as_str())),
        Node::In(key, values) => lookup(key).is_some_and(|value| values.contains(value)),
        Node::NotIn(key, values) => lookup(key).is_none_or(|value| !values.contains(value)),
        Node::Not(inner) => !matches(inner, lookup),
        Node::And(parts) => parts.iter().all(|part| matches(part, lookup)),
        Node::Or(parts) => parts.iter().any(|part| matches(part, lookup)),
    }
}

type Restrictions = BTreeMap<String, Restriction>;

/// Returns the necessary conditions per label.
pub(super) fn restrictions(node: &Node) -> Restrictions {
    match node {
        Node::Has(key) | Node::Contains(key, _) | Node::StartsWith(key, _) | Node::EndsWith(key, _) => {
            BTreeMap::from([(key.clone(), Restriction::Present)])
        }
        Node::Equal(key, value) => {
            BTreeMap::from([(key.clone(), Restriction::OneOf(BTreeSet::from([value.clone()])))])
        }
        Node::In(key, values) => BTreeMap::from([(key.clone(), Restriction::OneOf(values.clone()))]),
        Node::Not(inner) => match inner.as_ref() {
            Node::Has(key) => BTreeMap::from([(key.clone(), Restriction::Absent)]),
            _ => BTreeMap::new(),
        },
        Node::And(parts) => parts.iter().fold(BTreeMap::new(), |all, part| both(all, restrictions(part))),
        Node::Or(parts) => parts.iter().map(restrictions).reduce(either).unwrap_or_default(),
        Node::All | Node::Global | Node::NotEqual(..) | Node::NotIn(..) => BTreeMap::new(),
    }
}

fn is_impossible(all: &Restrictions) -> bool {
    all.values().any(|one| matches!(one, Restriction::OneOf(values) if values.is_empty()))
}

fn both(mut left: Restrictions, right: Restrictions) -> Restrictions {
    use Restriction::{Absent, OneOf, Present};
    for (key, theirs) in right {
        let merged = match (left.remove(&key), theirs) {
            (None, theirs) => theirs,
            (Some(Present), Present) => Present,
            (Some(Absent), Absent) => Absent,
            (Some(Absent), _) | (Some(_), Absent) => OneOf(BTreeSet::new()),
            (Some(Present), OneOf(values)) | (Some(OneOf(values)), Present) => OneOf(values),
            (Some(OneOf(ours)), OneOf(values)) => OneOf(ours.intersection(&values).cloned().collect()),
        };
        left.insert(key, merged);
    }
    left
}

fn either(left: Restrictions, mut right: Restrictions) -> Restrictions {
    use Restriction::{Absent, OneOf, Present};
    // A branch that matches nothing adds nothing.
    if is_impossible(&left) {
        return right;
    }
    if is_impossible(&right) {
        return left;
    }
    let mut common = BTreeMap::new();
    for (key, ours) in left {
        let merged = match (ours, right.remove(&key)) {
            (OneOf(mut ours), Some(OneOf(theirs))) => {
                ours.extend(theirs);
                OneOf(ours)
            }
            (Absent, Some(Absent)) => Absent,
            (Present | OneOf(_), Some(Present)) | (Present, Some(OneOf(_))) => Present,
            (Absent, Some(_)) | (_, Some(Absent)) | (_, None) => continue,
        };
        common.insert(key, merged);
    }
    common
}
