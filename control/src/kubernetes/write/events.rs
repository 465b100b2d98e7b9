//! Events: what `kubectl describe` and `kubectl get events` show about an object that does not mean what its author thinks.
//!
//! One Event per object and text: its name is made of both, so a second agent or a second run finds it there.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::desk::Standing;
use super::super::picture::Ident;
use super::conditions::listed;
use crate::problem::{Problem, Severity};

/// Returns the Event about an object: where it is invalid, or where a warning has no condition to be in.
pub(super) fn event(ident: &Ident, standing: &Standing, node: &str) -> Option<Value> {
    let errors: Vec<&Problem> = standing.problems.iter().filter(|p| p.severity >= Severity::Error).collect();
    let has_conditions = ident.kind.kind().has_conditions;
    let (reason, told) = if !errors.is_empty() {
        ("Invalid", errors)
    } else if !standing.problems.is_empty() && !has_conditions {
        ("NotEnforced", standing.problems.iter().collect())
    } else {
        return None;
    };
    // The API's limit for an Event's message is 1024 bytes.
    let message: String = listed(&told).chars().take(300).collect();
    let digest = Sha256::digest(format!("{}/{reason}/{message}", standing.meta.uid));
    let mark: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name: String = ident.name.chars().take(200).collect();
    let name = name.trim_end_matches('.');
    let namespace = if ident.namespace.is_empty() { "default" } else { &ident.namespace };
    let now = format!("{:.0}", Timestamp::now());
    let object = ident.document();
    Some(json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": { "name": format!("{name}.{mark}"), "namespace": namespace },
        "involvedObject": {
            "apiVersion": object["apiVersion"], "kind": object["kind"], "name": ident.name, "namespace": ident.namespace,
            "uid": standing.meta.uid, "resourceVersion": standing.meta.version,
        },
        "type": "Warning", "reason": reason, "message": message, "count": 1,
        "firstTimestamp": now, "lastTimestamp": now, "source": { "component": "margay", "host": node },
        "reportingComponent": "margay", "reportingInstance": node,
    }))
}
