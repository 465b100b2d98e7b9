//! Lints about what is never reached (policy model 8.4).

use super::catalogue::{ALLOW_COVERS_DENY, SHADOWED_RULE, UNREACHABLE_POLICY};
use super::cover::{covers, selects_all_of};
use super::{Found, shown};
use crate::explain::words;
use crate::model::{Action, ObjectKey, Policy, Rule};
use crate::oracle;
use crate::packet::Direction;

pub(super) fn lint(found: &mut Found<'_>) {
    let manifests = found.manifests;
    for policy in manifests.model.policies.values() {
        for (direction, rules) in [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)]
        {
            shadowed(found, policy, direction, rules);
        }
    }
    unreachable(found);
}

fn shadowed(found: &mut Found<'_>, policy: &Policy, direction: Direction, rules: &[Rule]) {
    for (index, rule) in rules.iter().enumerate() {
        let mut earlier = rules[..index].iter().enumerate();
        let Some((first, wide)) = earlier.find(|(_, wide)| wide.action != Action::Log && covers(wide, rule))
        else {
            continue;
        };
        let lint = match (wide.action, rule.action) {
            (Action::Allow, Action::Deny) => &ALLOW_COVERS_DENY,
            _ => &SHADOWED_RULE,
        };
        let message =
            format!("rule {first}, {}, matches all that {} matches", words::rule(wide), words::rule(rule));
        found.about_policy(lint, policy, format!("spec.{}[{index}]", words::direction(direction)), message);
    }
}

/// A policy that decides about every packet of a direction.
struct Decisive<'m> {
    policy: &'m Policy,
    place: usize,
    tier: usize,
    /// No packet goes on to the next tier: it is no Pass, and no Pass comes before it in its tier.
    is_final: bool,
}

fn unreachable(found: &mut Found<'_>) {
    let model = &found.manifests.model;
    let tiers = oracle::tier_names(model);
    let mut ordered: Vec<(usize, &Policy)> = Vec::new();
    for (place, tier) in tiers.iter().enumerate() {
        let enforced = model.policies.values().filter(|policy| {
            let is_normal = !policy.flags.do_not_track && !policy.flags.pre_dnat;
            policy.tier == *tier && policy.staged.is_none() && is_normal
        });
        let mut of_tier: Vec<&Policy> = enforced.map(|policy| &**policy).collect();
        of_tier.sort_by_cached_key(|policy| oracle::sort_key(policy));
        ordered.extend(of_tier.into_iter().map(|policy| (place, policy)));
    }
    for direction in [Direction::Ingress, Direction::Egress] {
        let mut decisive: Vec<Decisive<'_>> = Vec::new();
        let mut passing_tier = None;
        for (place, (tier, policy)) in ordered.iter().enumerate() {
            let (governs, rules) = match direction {
                Direction::Ingress => (policy.governs_ingress, &policy.ingress),
                Direction::Egress => (policy.governs_egress, &policy.egress),
            };
            if !governs {
                continue;
            }
            let before = decisive.iter().find(|before| {
                let is_passed = !before.is_final && before.tier != *tier;
                let same_context = before.policy.flags.apply_on_forward || !policy.flags.apply_on_forward;
                let covered = match (&before.policy.selector, &policy.selector) {
                    (Some(wide), Some(narrow)) => selects_all_of(wide, narrow),
                    _ => false,
                };
                before.place < place && !is_passed && same_context && covered
            });
            let word = words::direction(direction);
            if let Some(before) = before.filter(|_| !rules.is_empty()) {
                let who = shown(&ObjectKey::Policy(before.policy.key.clone()));
                let message = format!(
                    "{who} comes first and decides about every {word} packet of what this policy selects"
                );
                found.about_policy(&UNREACHABLE_POLICY, policy, format!("spec.{word}"), message);
            }
            let all = Rule::everything(Action::Allow);
            let deciding = rules.iter().position(|rule| rule.action != Action::Log && covers(rule, &all));
            let reached = &rules[..deciding.map_or(rules.len(), |index| index + 1)];
            if reached.iter().any(|rule| rule.action == Action::Pass) {
                passing_tier = Some(*tier);
            }
            if deciding.is_some() {
                decisive.push(Decisive { policy, place, tier: *tier, is_final: passing_tier != Some(*tier) });
            }
        }
    }
}
