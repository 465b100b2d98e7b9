//! The life of tiers (policy model 22): built-in ones are there, and one that policies name does not go before them.
//!
//! A finalizer holds every tier. When a tier is being deleted and no policy names it any more, the finalizer is taken off, at the version
//! that was looked at: a tier that changed meanwhile is looked at again.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::desk::{Desk, Standing};
use super::super::kinds::{CALICO, KindId};
use super::super::picture::Ident;
use super::kind_of;

/// Field manager of tiers and their finalizers; another than that of conditions, because each apply is all that its manager says.
pub(super) const MANAGER: &str = "margay-tiers";
/// The finalizer (policy model 22.1).
const FINALIZER: &str = "projectcalico.org/tier-controller";
/// Built-in tiers (policy model 2.3).
const BUILT_IN: [(&str, f64, &str); 3] = [
    ("kube-admin", 1_000.0, "Pass"),
    ("default", 1_000_000.0, "Deny"),
    ("kube-baseline", 10_000_000.0, "Pass"),
];
/// Kinds that hold a tier (policy model 22.1).
const HOLDERS: [&str; 4] =
    ["NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"];

/// What to do next about a tier.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Nothing,
    /// Apply this: it has no finalizer yet.
    Guard(Value),
    /// Merge this: nothing holds it any more.
    LetGo(Value),
}

/// Whether `kind` is that of tiers.
pub(super) fn is_tier(kind: KindId) -> bool {
    kind_of(CALICO, "Tier") == Some(kind)
}

fn tier(name: &str) -> Option<Ident> {
    Some(Ident { kind: kind_of(CALICO, "Tier")?, namespace: String::new(), name: name.to_owned() })
}

/// Returns what an agent applies to a tier.
fn guarded(ident: &Ident) -> Value {
    let mut object = ident.document();
    object["metadata"]["finalizers"] = json!([FINALIZER]);
    if let Some((_, order, action)) = BUILT_IN.iter().find(|(name, ..)| *name == ident.name) {
        object["spec"] = json!({ "order": order, "defaultAction": action });
    }
    object
}

/// Returns the built-in tiers that are not there, with their paths.
pub(super) fn missing(desk: &Desk) -> Vec<(String, Value)> {
    let idents = BUILT_IN.iter().filter_map(|(name, ..)| tier(name));
    idents
        .filter(|ident| !desk.objects.contains_key(ident))
        .filter_map(|ident| Some((desk.served.get(&ident.kind)?.object("", &ident.name), guarded(&ident))))
        .collect()
}

/// Returns the tiers that are being deleted.
pub(super) fn ending(desk: &Desk) -> Vec<Ident> {
    let ending =
        desk.objects.iter().filter(|(ident, standing)| is_tier(ident.kind) && standing.meta.is_deleting);
    ending.map(|(ident, _)| ident.clone()).collect()
}

/// Returns how many policies of each kind name a tier.
fn holders(desk: &Desk, name: &str) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for (ident, standing) in &desk.objects {
        let kind = ident.kind.kind();
        let tier = if standing.tier.is_empty() { "default" } else { &standing.tier };
        if kind.group == CALICO && HOLDERS.contains(&kind.kind) && tier == name {
            *counts.entry(kind.kind).or_default() += 1;
        }
    }
    counts
}

/// Returns for what the deletion of a tier waits, in words; `None` when nobody deletes it.
pub(super) fn waits_for(desk: &Desk, ident: &Ident, standing: &Standing) -> Option<String> {
    if !standing.meta.is_deleting {
        return None;
    }
    let counts: Vec<String> =
        holders(desk, &ident.name).into_iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    Some(if counts.is_empty() {
        "no policy names the tier any more".to_owned()
    } else {
        format!("deletion waits until no policy names the tier: {}", counts.join(", "))
    })
}

/// Decides what to do about a tier.
pub(super) fn next_step(desk: &Desk, ident: &Ident, standing: &Standing) -> Step {
    let has_finalizer = standing.meta.finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    match (standing.meta.is_deleting, has_finalizer) {
        (false, true) | (true, false) => Step::Nothing,
        (false, false) => Step::Guard(guarded(ident)),
        (true, true) if !holders(desk, &ident.name).is_empty() => Step::Nothing,
        (true, true) => {
            let others: Vec<&String> =
                standing.meta.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
            Step::LetGo(
                json!({ "metadata": { "resourceVersion": standing.meta.version, "finalizers": others } }),
            )
        }
    }
}
