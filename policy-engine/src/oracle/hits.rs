//! Hit records: which policies a packet met, as flow logs tell it (policy model 20.3).
//!
//! A record is made where something was decided: a rule that says Allow, Deny or Pass, the end of a tier, a profile, the end of the
//! profiles. Rules that only log, and policies none of whose rules match, leave none.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Finding, Step};
use crate::snapshot::Attribution;

/// What a hit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HitAction {
    /// The packet may pass.
    Allow,
    /// It may not.
    Deny,
    /// The next tier is asked.
    Pass,
}

/// A policy by its kind and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyName {
    /// Kind, as in [`crate::model::PolicyKind::as_str`], or `Profile`.
    pub kind: String,
    /// Namespace; empty for a global one.
    pub namespace: String,
    /// Name; `__NO_MATCH__` where the profiles end without a match.
    pub name: String,
}

/// One record. Its text form is `<index>|<tier>|<kind>:[<namespace>/]<name>|<action>|<rule index>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hit {
    /// Place among the records of the flow, from 0.
    pub index: usize,
    /// Tier; `__PROFILE__` for profiles.
    pub tier: String,
    /// Who decided. At the end of a tier, the trigger: the first policy of the tier that applies to the endpoint.
    pub policy: PolicyName,
    /// What it came to.
    pub action: HitAction,
    /// Which rule; -1 at the end of a tier or of the profiles.
    pub rule: i32,
    /// The default action of the tier decided, and `policy` is the trigger (kind EndOfTier of flow logs).
    pub end_of_tier: bool,
}

/// Returns the records of a walk, in order.
pub fn of_trace(trace: &[Step]) -> Vec<Hit> {
    let mut hits = Vec::new();
    let mut trigger: Option<&Attribution> = None;
    for step in trace {
        let action = match &step.finding {
            Finding::Applies(_) => {
                let another_tier = trigger.is_none_or(|trigger| trigger.tier != step.place.tier);
                if another_tier {
                    trigger = Some(&step.place);
                }
                continue;
            }
            Finding::NotApplicable(_) | Finding::NoMatch(_) | Finding::Logged => continue,
            Finding::Allowed => HitAction::Allow,
            Finding::Denied(_) => HitAction::Deny,
            Finding::NextTier(_) => HitAction::Pass,
        };
        let is_profile = step.place.tier == "__PROFILE__";
        let end_of_tier = step.place.kind.is_empty() && !is_profile;
        let policy = match (step.place.kind.as_str(), trigger) {
            ("", _) if is_profile => PolicyName {
                kind: "Profile".to_owned(),
                namespace: String::new(),
                name: "__NO_MATCH__".to_owned(),
            },
            ("", Some(trigger)) => name_of(trigger),
            _ => name_of(&step.place),
        };
        let (tier, rule) = (step.place.tier.clone(), step.place.rule);
        hits.push(Hit { index: hits.len(), tier, policy, action, rule, end_of_tier });
    }
    hits
}

fn name_of(place: &Attribution) -> PolicyName {
    PolicyName { kind: place.kind.clone(), namespace: place.namespace.clone(), name: place.name.clone() }
}

/// Returns the short form of a kind; a kind without one keeps its name.
fn short(kind: &str) -> &str {
    match kind {
        "NetworkPolicy" => "np",
        "GlobalNetworkPolicy" => "gnp",
        "StagedNetworkPolicy" => "snp",
        "StagedGlobalNetworkPolicy" => "sgnp",
        "KubernetesNetworkPolicy" => "knp",
        "StagedKubernetesNetworkPolicy" => "sknp",
        "KubernetesClusterNetworkPolicy" => "kcnp",
        "KubernetesAdminNetworkPolicy" => "kanp",
        "KubernetesBaselineAdminNetworkPolicy" => "kbanp",
        "Profile" => "pro",
        other => other,
    }
}

impl fmt::Display for HitAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Pass => "pass",
        })
    }
}

impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, tier, policy, action, rule, .. } = self;
        let slash = if policy.namespace.is_empty() { "" } else { "/" };
        let kind = short(&policy.kind);
        write!(f, "{index}|{tier}|{kind}:{}{slash}{}|{action}|{rule}", policy.namespace, policy.name)
    }
}
