//! A record of every change of what policy is made of (policy model 22.3).
//!
//! Who changed an object, and the whole of it, is in the API server's own audit log; what is told here is what this node made of it, with
//! the generation by which both and the records of flows can be joined. One line of the log under the target [`TARGET`], as JSON where
//! the log is, such as
//!
//! ```text
//! INFO margay-audit: policy changed change="changed" kind="NetworkPolicy.projectcalico.org" namespace="shop" name="web" generation=4 …
//! ```
//!
//! What was there when the agent started is no change, nor is what only the server's bookkeeping or a status says.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

use super::desk::InForce;
use super::kinds::{CALICO, KindId, Meta};
use super::picture::Ident;

/// Where the records go in the log.
pub(super) const TARGET: &str = "margay-audit";

/// Kinds that are recorded beside every kind of policy.
const BESIDES: [&str; 4] = ["NetworkSet", "GlobalNetworkSet", "Tier", "HostEndpoint"];

/// Whether changes of the kind are recorded.
pub(super) fn records(kind: KindId) -> bool {
    let kind = kind.kind();
    kind.kind.ends_with("NetworkPolicy") || kind.group == CALICO && BESIDES.contains(&kind.kind)
}

/// Returns a number by which two documents are told apart that say something else.
pub(super) fn fingerprint(document: &Value) -> u64 {
    let mut document = document.clone();
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        ["resourceVersion", "deletionTimestamp"].iter().for_each(|field| drop(metadata.remove(*field)));
    }
    let mut hasher = DefaultHasher::new();
    document.to_string().hash(&mut hasher);
    hasher.finish()
}

/// Records that an object appeared (`existed` is false) or changed.
pub(super) fn written(ident: &Ident, meta: &Meta, existed: bool, in_force: InForce) {
    let in_force = match in_force {
        InForce::AsWritten => "as written",
        InForce::LastValid => "last valid form",
        InForce::Closed => "closed",
        InForce::Nothing => "nothing",
    };
    tracing::info!(
        target: TARGET,
        change = if existed { "changed" } else { "created" },
        kind = ident.kind.kind().title(),
        namespace = ident.namespace,
        name = ident.name,
        uid = meta.uid,
        generation = meta.generation,
        resource_version = meta.version,
        in_force,
        "policy changed"
    );
}

/// Records that an object is gone; `generation` is that of its last form.
pub(super) fn deleted(ident: &Ident, generation: i64) {
    tracing::info!(
        target: TARGET,
        change = "deleted",
        kind = ident.kind.kind().title(),
        namespace = ident.namespace,
        name = ident.name,
        generation,
        "policy changed"
    );
}
