//! A trace, put in order: tier by tier, policy by policy, rule by rule.

use serde::{Deserialize, Serialize};

use super::words;
use crate::model::{Model, Policy, Rule, TierDefault};
use crate::oracle::{self, Finding, Step};
use crate::packet::Direction;
use crate::snapshot::Attribution;

/// One tier, or the profiles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierStory {
    /// Name; `__PROFILE__` for the profiles.
    pub name: String,
    /// Order and default action in words; empty for the profiles.
    pub about: String,
    /// Why it has no say, where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Policies that were looked at, in order.
    pub policies: Vec<PolicyStory>,
    /// What happened at its end, when evaluation came there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
}

/// One policy or profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStory {
    /// Kind.
    pub kind: String,
    /// Namespace; empty for a global one.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Whether it applies to the endpoint in this direction and context.
    pub applies: bool,
    /// Why it applies, or why not.
    pub why: String,
    /// Rules that were read, up to the one that decided.
    pub rules: Vec<RuleStory>,
}

/// One rule that was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleStory {
    /// Place in its list, from 0.
    pub index: i32,
    /// The rule in words.
    pub rule: String,
    /// What came of it.
    pub outcome: Outcome,
    /// The first criterion that does not hold; empty when all do.
    pub why: String,
}

/// What came of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It does not match.
    NoMatch,
    /// It matches and takes note.
    Log,
    /// It matches: the packet may pass.
    Allow,
    /// It matches: the packet may not pass.
    Deny,
    /// It matches: the next tier is asked.
    Pass,
}

/// Returns every tier of the Model in order, then the profiles, with what the trace says about each.
pub(super) fn tiers(model: &Model, direction: Direction, trace: &[Step]) -> Vec<TierStory> {
    let mut stories = Vec::new();
    let mut is_decided = false;
    for name in oracle::tier_names(model) {
        let steps: Vec<&Step> = trace.iter().filter(|step| step.place.tier == name).collect();
        let about = match model.tiers.get(&name) {
            Some(tier) => {
                format!("order {}, default action {}", tier.order.0, default_action(tier.default_action))
            }
            None => "does not exist: comes last, default action Deny".to_owned(),
        };
        let mut story = of_steps(model, direction, &steps);
        story.skipped = match (is_decided, steps.is_empty()) {
            (true, _) => Some("not reached".to_owned()),
            (false, true) => Some("has no policies".to_owned()),
            (false, false) if !story.policies.iter().any(|policy| policy.applies) => {
                Some(format!("no policy of it applies to {}", words::direction(direction)))
            }
            (false, false) => None,
        };
        is_decided |=
            steps.last().is_some_and(|step| matches!(step.finding, Finding::Allowed | Finding::Denied(_)));
        stories.push(TierStory { name, about, ..story });
    }
    let steps: Vec<&Step> = trace.iter().filter(|step| step.place.tier == "__PROFILE__").collect();
    let mut story = of_steps(model, direction, &steps);
    story.skipped = (is_decided || steps.is_empty()).then(|| "not reached".to_owned());
    stories.push(story);
    stories
}

fn of_steps(model: &Model, direction: Direction, steps: &[&Step]) -> TierStory {
    let mut story = TierStory {
        name: "__PROFILE__".to_owned(),
        about: String::new(),
        skipped: None,
        policies: Vec::new(),
        end: None,
    };
    for step in steps {
        match (&step.finding, step.place.rule) {
            (Finding::NotApplicable(why), _) => story.policies.push(policy(&step.place, false, why.clone())),
            (Finding::Applies(why), _) => {
                let why = written(model, &step.place).map_or_else(|| why.clone(), words::target);
                story.policies.push(policy(&step.place, true, why));
            }
            (_, -1) if step.place.kind == "Profile" => {
                story.policies.push(policy(&step.place, true, outcome(&step.finding).1));
            }
            (_, -1) => story.end = Some(end(&step.finding)),
            (_, index) => {
                let (outcome, why) = outcome(&step.finding);
                let rule = rule_at(model, direction, &step.place);
                let rule = rule.map_or_else(|| "Allow everything".to_owned(), words::rule);
                if let Some(policy) = story.policies.last_mut() {
                    policy.rules.push(RuleStory { index, rule, outcome, why });
                }
            }
        }
    }
    story
}

fn policy(place: &Attribution, applies: bool, why: String) -> PolicyStory {
    PolicyStory {
        kind: place.kind.clone(),
        namespace: place.namespace.clone(),
        name: place.name.clone(),
        applies,
        why,
        rules: Vec::new(),
    }
}

fn written<'m>(model: &'m Model, place: &Attribution) -> Option<&'m Policy> {
    let found = model.policies.values().find(|policy| {
        policy.key.kind.as_str() == place.kind
            && policy.key.name == place.name
            && policy.key.namespace.as_deref().unwrap_or_default() == place.namespace
    });
    found.map(|policy| &**policy)
}

/// `None` for the profiles that the Model does not hold: those of namespaces and the built-in one, which allow everything.
fn rule_at<'m>(model: &'m Model, direction: Direction, place: &Attribution) -> Option<&'m Rule> {
    let (ingress, egress) = match written(model, place) {
        Some(policy) => (&policy.ingress, &policy.egress),
        None => {
            let profile = model.profiles.get(&place.name)?;
            (&profile.ingress, &profile.egress)
        }
    };
    let rules = match direction {
        Direction::Ingress => ingress,
        Direction::Egress => egress,
    };
    rules.get(usize::try_from(place.rule).ok()?)
}

fn outcome(finding: &Finding) -> (Outcome, String) {
    match finding {
        Finding::NoMatch(why) => (Outcome::NoMatch, why.clone()),
        Finding::Logged => (Outcome::Log, String::new()),
        Finding::Allowed => (Outcome::Allow, String::new()),
        Finding::NextTier(_) => (Outcome::Pass, String::new()),
        Finding::Denied(why) => (Outcome::Deny, why.clone()),
        Finding::NotApplicable(why) | Finding::Applies(why) => (Outcome::NoMatch, why.clone()),
    }
}

fn end(finding: &Finding) -> String {
    match finding {
        Finding::Allowed => "allow: no rule of the tier matches; its default action is Allow".to_owned(),
        Finding::Denied(why) => format!("deny: {why}"),
        Finding::NextTier(why) => format!("next tier: {why}"),
        other => outcome(other).1,
    }
}

fn default_action(action: TierDefault) -> &'static str {
    match action {
        TierDefault::Deny => "Deny",
        TierDefault::Pass => "Pass",
        TierDefault::Allow => "Allow",
    }
}
