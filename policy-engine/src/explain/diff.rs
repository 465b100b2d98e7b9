//! What a change of objects does to one packet: two explanations side by side.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::{By, Explanation, Leg, Says, words};
use crate::model::{Model, Policy};

/// The same packet under two Models.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The packet in words.
    pub packet: String,
    /// Whether it arrives: before, after.
    pub verdict: (Says, Says),
    /// Legs that say something else, or are decided by somebody else.
    pub legs: Vec<LegDifference>,
    /// Policies and tiers that are new, gone or different, as far as they apply to one of the endpoints.
    pub objects: Vec<ObjectDifference>,
    /// Labels or memberships of the ends that differ, in words.
    pub ends: Vec<String>,
}

/// A leg that differs. An absent part: the leg is not asked there.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LegDifference {
    /// Who is asked, and in which direction and context.
    pub leg: String,
    /// What was said, and by whom.
    pub before: Option<(Says, Option<By>)>,
    /// What is said, and by whom.
    pub after: Option<(Says, Option<By>)>,
}

/// An object that differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectDifference {
    /// Such as `NetworkPolicy shop/db`.
    pub object: String,
    /// `added`, `removed` or `changed`.
    pub change: &'static str,
    /// What is different about it, in words.
    pub what: Vec<String>,
}

impl Difference {
    /// Compares the explanations of one packet; each must have been told about its Model.
    pub fn new(before: (&Model, &Explanation), after: (&Model, &Explanation)) -> Self {
        let (old, new) = (before.1, after.1);
        let key = |leg: &Leg| (leg.subject.clone(), leg.direction.clone(), leg.context.clone());
        let said = |leg: &Leg| (leg.verdict, leg.by.clone());
        let mut legs = Vec::new();
        let gone = old.legs.iter().filter(|leg| !new.legs.iter().any(|other| key(other) == key(leg)));
        for leg in new.legs.iter().chain(gone) {
            let find = |explanation: &Explanation| {
                explanation.legs.iter().find(|other| key(other) == key(leg)).map(said)
            };
            let (before, after) = (find(old), find(new));
            if before != after {
                let leg = format!("{} of {} ({})", leg.direction, leg.subject, leg.context);
                legs.push(LegDifference { leg, before, after });
            }
        }
        let mut ends = Vec::new();
        for (word, old, new) in
            [("from", &old.source, &new.source), ("to", &old.destination, &new.destination)]
        {
            if old.belongs_to != new.belongs_to {
                let or_nothing = |names: &[String]| {
                    if names.is_empty() { "nothing known".to_owned() } else { names.join(", ") }
                };
                ends.push(format!(
                    "{word}: was {}, is {}",
                    or_nothing(&old.belongs_to),
                    or_nothing(&new.belongs_to)
                ));
            }
            let keys: BTreeSet<&String> = old.labels.keys().chain(new.labels.keys()).collect();
            for key in keys {
                match (old.labels.get(key), new.labels.get(key)) {
                    (Some(old), Some(new)) if old != new => {
                        ends.push(format!("{word}: {key} was {old}, is {new}"))
                    }
                    (Some(old), None) => ends.push(format!("{word}: {key}: {old} is gone")),
                    (None, Some(new)) => ends.push(format!("{word}: {key}: {new} is new")),
                    _ => {}
                }
            }
        }
        Self {
            packet: new.packet.clone(),
            verdict: (old.verdict, new.verdict),
            legs,
            objects: objects(before, after),
            ends,
        }
    }

    /// Returns whether the verdict of the packet, or of one of its legs, is another one.
    pub fn changes_verdict(&self) -> bool {
        let says = |said: &Option<(Says, Option<By>)>| said.as_ref().map(|(says, _)| *says);
        self.verdict.0 != self.verdict.1 || self.legs.iter().any(|leg| says(&leg.before) != says(&leg.after))
    }
}

/// Policies that apply on either side, and tiers, wherever the two Models differ about them.
fn objects(before: (&Model, &Explanation), after: (&Model, &Explanation)) -> Vec<ObjectDifference> {
    let mut applying: BTreeSet<(&str, &str, &str)> = BTreeSet::new();
    for leg in before.1.legs.iter().chain(&after.1.legs) {
        for policy in leg.tiers.iter().flat_map(|tier| &tier.policies).filter(|policy| policy.applies) {
            applying.insert((&policy.kind, &policy.namespace, &policy.name));
        }
    }
    let matters = |policy: &Policy| {
        let namespace = policy.key.namespace.as_deref().unwrap_or_default();
        policy.staged.is_some() || applying.contains(&(policy.key.kind.as_str(), namespace, &policy.key.name))
    };
    let mut found = Vec::new();
    let keys: BTreeSet<_> = before.0.policies.keys().chain(after.0.policies.keys()).collect();
    for key in keys {
        let (old, new) = (before.0.policies.get(key), after.0.policies.get(key));
        let (change, what) = match (old, new) {
            (None, Some(new)) if matters(new) => ("added", rules_of(new)),
            (Some(old), None) if matters(old) => ("removed", rules_of(old)),
            (Some(old), Some(new)) if old != new && (matters(old) || matters(new)) => {
                ("changed", changes(old, new))
            }
            _ => continue,
        };
        let slash = if key.namespace.is_some() { "/" } else { "" };
        let namespace = key.namespace.as_deref().unwrap_or_default();
        let object = format!("{} {namespace}{slash}{}", key.kind.as_str(), key.name);
        found.push(ObjectDifference { object, change, what });
    }
    let names: BTreeSet<_> = before.0.tiers.keys().chain(after.0.tiers.keys()).collect();
    for name in names {
        let (old, new) = (before.0.tiers.get(name), after.0.tiers.get(name));
        let about = |tier: &crate::model::Tier| {
            format!("order {}, default action {:?}", tier.order.0, tier.default_action)
        };
        let (change, what) = match (old, new) {
            (None, Some(new)) => ("added", vec![about(new)]),
            (Some(old), None) => ("removed", vec![about(old)]),
            (Some(old), Some(new)) if old != new => {
                ("changed", vec![format!("was {}, is {}", about(old), about(new))])
            }
            _ => continue,
        };
        found.push(ObjectDifference { object: format!("Tier {name}"), change, what });
    }
    found
}

fn rules_of(policy: &Policy) -> Vec<String> {
    let rules = [("ingress", &policy.ingress), ("egress", &policy.egress)];
    let told = rules.iter().flat_map(|(word, rules)| {
        rules.iter().enumerate().map(move |(index, rule)| format!("{word} {index}: {}", words::rule(rule)))
    });
    std::iter::once(words::target(policy)).chain(told).collect()
}

/// Says what differs between two forms of a policy; rules are compared as lists of words.
fn changes(old: &Policy, new: &Policy) -> Vec<String> {
    let mut what = Vec::new();
    for (word, old, new) in [
        ("tier", old.tier.clone(), new.tier.clone()),
        ("order", old.order.0.to_string(), new.order.0.to_string()),
        ("target", words::target(old), words::target(new)),
    ] {
        if old != new {
            what.push(format!("{word}: was {old}, is {new}"));
        }
    }
    for (word, old, new) in [("ingress", &old.ingress, &new.ingress), ("egress", &old.egress, &new.egress)] {
        let gone = old.iter().filter(|rule| !new.contains(rule));
        what.extend(gone.map(|rule| format!("- {word}: {}", words::rule(rule))));
        let added = new.iter().filter(|rule| !old.contains(rule));
        what.extend(added.map(|rule| format!("+ {word}: {}", words::rule(rule))));
        if old.len() == new.len() && old != new && old.iter().all(|rule| new.contains(rule)) {
            what.push(format!("{word}: the same rules in another order"));
        }
    }
    if what.is_empty() {
        what.push("flags, staged action or annotations".to_owned());
    }
    what
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict {
            (before, after) if before == after => writeln!(f, "{}: {after}, as before", self.packet)?,
            (before, after) => writeln!(f, "{}: was {before}, is {after}", self.packet)?,
        }
        let said = |said: &Option<(Says, Option<By>)>| match said {
            None => "not asked".to_owned(),
            Some((says, None)) => says.to_string(),
            Some((says, Some(by))) => format!("{says} by {by}"),
        };
        for leg in &self.legs {
            writeln!(f, "  {}", leg.leg)?;
            writeln!(f, "    was {}", said(&leg.before))?;
            writeln!(f, "    is  {}", said(&leg.after))?;
        }
        for end in &self.ends {
            writeln!(f, "  {end}")?;
        }
        for object in &self.objects {
            writeln!(f, "  {} {}", object.object, object.change)?;
            for what in &object.what {
                writeln!(f, "    {what}")?;
            }
        }
        Ok(())
    }
}
