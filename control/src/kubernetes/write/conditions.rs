//! Conditions: what an object's author finds in its status.
//!
//! | type | True | False |
//! |---|---|---|
//! | `Accepted` | every field was understood | `Invalid`: which field, why, and what is in force instead |
//! | `Enforced` | as it is written | `NotEnforced`: which criteria or fields have no effect; `Invalid`; `Staged` |
//! | `Ready` (tiers) | may be used | `Terminating`: deletion waits for policies, how many of each kind (policy model 22.1) |

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::super::desk::{Desk, InForce, Standing};
use super::super::picture::Ident;
use super::tiers;
use crate::problem::{Problem, Severity};

/// Problems that a message names.
const NAMED: usize = 5;
/// The API's limit is 32 KiB; nobody reads that much.
const LONGEST: usize = 2_000;

/// One condition, without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub name: &'static str,
    pub is_true: bool,
    pub reason: &'static str,
    pub message: String,
    pub generation: i64,
}

impl Condition {
    fn status(&self) -> &'static str {
        if self.is_true { "True" } else { "False" }
    }

    /// Returns what it says, without its time.
    pub fn content(&self) -> Value {
        json!({
            "type": self.name, "status": self.status(), "reason": self.reason, "message": self.message,
            "observedGeneration": self.generation,
        })
    }

    /// Returns it as it is written: the time is that of the last change of `status` (True or False).
    pub fn written(&self, there: &[Value], now: Timestamp) -> Value {
        let same = |other: &&Value| other["type"] == self.name && other["status"] == self.status();
        let since = there.iter().find(same).and_then(|other| other["lastTransitionTime"].as_str());
        let mut condition = self.content();
        condition["lastTransitionTime"] = since.map_or_else(|| format!("{now:.0}"), str::to_owned).into();
        condition
    }
}

/// Whether `there` says everything that is desired.
pub(super) fn are_there(desired: &[Condition], there: &[Value]) -> bool {
    desired.iter().all(|condition| {
        let Value::Object(content) = condition.content() else { return false };
        there.iter().any(|other| content.iter().all(|(field, value)| other.get(field) == Some(value)))
    })
}

/// Returns the conditions that an object should have.
pub(super) fn desired(ident: &Ident, standing: &Standing, desk: &Desk) -> Vec<Condition> {
    let generation = standing.meta.generation;
    let of = |name, is_true, reason, message| Condition { name, is_true, reason, message, generation };
    let errors: Vec<&Problem> = standing.problems.iter().filter(|p| p.severity >= Severity::Error).collect();
    let warnings: Vec<&Problem> =
        standing.problems.iter().filter(|p| p.severity == Severity::Warning).collect();
    let mut conditions = Vec::new();
    if errors.is_empty() {
        conditions.push(of("Accepted", true, "Accepted", "every field was understood".to_owned()));
    } else {
        let instead = match standing.in_force {
            InForce::AsWritten => "",
            InForce::LastValid => "the last valid form stays in force",
            InForce::Closed => {
                "no valid form is known, so what it selects is closed in the directions it claims"
            }
            InForce::Nothing => "nothing is in force in its place",
        };
        conditions.push(of("Accepted", false, "Invalid", format!("{}; {instead}", listed(&errors))));
    }
    if tiers::is_tier(ident.kind) {
        conditions.push(match tiers::waits_for(desk, ident, standing) {
            Some(message) => of("Ready", false, "Terminating", message),
            None => of("Ready", true, "Ready", "policies may name the tier".to_owned()),
        });
        return conditions;
    }
    conditions.push(if !errors.is_empty() {
        of("Enforced", false, "Invalid", "see the condition Accepted".to_owned())
    } else if ident.kind.kind().kind.starts_with("Staged") {
        of("Enforced", false, "Staged", "a staged policy changes no verdict".to_owned())
    } else if !warnings.is_empty() {
        of("Enforced", false, "NotEnforced", listed(&warnings))
    } else {
        of("Enforced", true, "Enforced", "in force as it is written".to_owned())
    });
    conditions
}

/// Returns problems in one line.
pub(super) fn listed(problems: &[&Problem]) -> String {
    let one = |problem: &&Problem| {
        let value = if problem.value.is_empty() { String::new() } else { format!(" = {}", problem.value) };
        let field = if problem.field.is_empty() { "the object" } else { &problem.field };
        format!("{field}{value}: {}", problem.reason)
    };
    let mut text = problems.iter().take(NAMED).map(one).collect::<Vec<_>>().join("; ");
    if problems.len() > NAMED {
        text.push_str(&format!("; and {} more", problems.len() - NAMED));
    }
    if let Some((cut, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(cut);
        text.push('…');
    }
    text
}
