//! Kubernetes label selectors to selectors (policy model 7.4).

use serde_json::Value;

use super::field::{Fields, Problems};
use super::scalar;
use super::scope::ORCHESTRATOR;
use crate::selector::{Selector, SelectorError};

/// Returns the selector of pods: every term, and that the object is a pod at all.
pub(super) fn pods(fields: Fields<'_>, problems: &mut Problems) -> Selector {
    let pod = Selector::equals(ORCHESTRATOR, "k8s")
        .expect("the label name is spelled with letters, a dot and a slash");
    Selector::and([pod].into_iter().chain(terms(fields, problems)))
}

/// Returns the selector of namespaces by their labels, without prefix; no term is `all()`.
pub(super) fn namespaces(fields: Fields<'_>, problems: &mut Problems) -> Selector {
    Selector::and(terms(fields, problems))
}

fn terms(mut fields: Fields<'_>, problems: &mut Problems) -> Vec<Selector> {
    let labels = fields.text_map("matchLabels", problems);
    scalar::check_labels(&fields.at("matchLabels"), &labels, problems);
    let mut terms = Vec::new();
    for (key, value) in &labels {
        let path = format!("{}.{key}", fields.at("matchLabels"));
        terms.extend(said(path, key, Selector::equals(key, value), problems));
    }
    for (path, item) in fields.list("matchExpressions", problems) {
        terms.extend(expression(path, item, problems));
    }
    fields.finish(problems);
    terms
}

fn expression(path: String, item: &Value, problems: &mut Problems) -> Option<Selector> {
    let mut fields = Fields::open(path.clone(), Some(item), problems);
    let key = fields.text("key", problems).unwrap_or_default();
    if !scalar::is_label_key(key) {
        problems.refuse_text(fields.at("key"), key, "not a label key: [prefix/]name");
    }
    let operator = fields.text("operator", problems).unwrap_or_default();
    let values = fields.texts("values", problems);
    for (path, value) in &values {
        if !scalar::is_label_value(value) {
            problems.refuse_text(path, value, "not a label value: at most 63 of [A-Za-z0-9_.-]");
        }
    }
    let wants_values = matches!(operator, "In" | "NotIn");
    if wants_values == values.is_empty() {
        let reason = if wants_values {
            "In and NotIn need at least one value"
        } else {
            "only In and NotIn take values"
        };
        problems.refuse_text(fields.at("values"), "", reason);
    }
    let texts = values.iter().map(|(_, value)| *value);
    let selector = match operator {
        "In" => Selector::one_of(key, texts),
        "NotIn" => Selector::none_of(key, texts),
        "Exists" => Selector::has(key),
        "DoesNotExist" => Selector::has(key).map(|selector| selector.negated()),
        other => {
            problems.refuse_text(
                fields.at("operator"),
                other,
                "must be In, NotIn, Exists or DoesNotExist, in this spelling",
            );
            return None;
        }
    };
    fields.finish(problems);
    said(path, key, selector, problems)
}

fn said(
    path: String,
    key: &str,
    term: Result<Selector, SelectorError>,
    problems: &mut Problems,
) -> Option<Selector> {
    match term {
        Ok(selector) => Some(selector),
        Err(error) => {
            problems.refuse_text(path, key, error.reason);
            None
        }
    }
}
