//! Documents to objects, or to a list of what is wrong with them.
//!
//! ```text
//!  text ─▶ document (YAML, JSON, lists) ─▶ value ─▶ route by apiVersion and kind ─▶ fields, defaults, checks ─▶ scope ─▶ Object
//! ```
//!
//! Every document is judged alone. What is wrong with one is said field by field, all at once, and never changes another. An invalid
//! policy comes with its *closed* form (policy model 4.1), so the one who reads it has something safe to put in force. A field that
//! is not known is passed over with a warning that names the nearest one that is, as an API server does that prunes; a key that is
//! written twice makes the object invalid. Objects that Kubernetes owns (Pod, Node, …) have many fields that are none of our business,
//! and those are passed over in silence.

mod calico;
mod cluster_policy;
mod controllers;
mod document;
mod domain;
mod duration;
mod failsafe;
pub(crate) mod felix;
mod field;
mod http;
mod identity;
mod installation;
mod json;
mod kubernetes;
mod label_selector;
mod network_policy;
mod policy;
mod pool;
mod rule;
mod scalar;
mod scope;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::model::{Object, ObjectKey};
use field::Problems;
use identity::{Kind, Metadata, Route};

pub use document::{
    BrokenDocument, Document, MAX_ALIASED, MAX_DEPTH, MAX_FILE_BYTES, for_each_document, split_documents,
};

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// JSON path such as `spec.ingress[0].source.nets[1]`; empty for the whole document.
    pub field: String,
    /// The offending value as text, shortened.
    pub value: String,
    /// Why it is wrong and how to mend it.
    pub reason: String,
}

/// Where a document came from.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Origin {
    /// File name or `<stdin>`.
    pub file: String,
    /// 1-based line of the document's first line; for text that is not YAML or JSON, the line where reading stopped.
    pub line: usize,
}

/// The result of decoding one document (an item of a List is a document of its own).
#[derive(Clone, Debug)]
pub enum Decoded {
    /// Valid. Warnings name criteria that are not enforced yet and elements that were set aside.
    Valid {
        /// The object.
        object: Object,
        /// `metadata.resourceVersion`, else a content hash.
        version: String,
        /// Things to tell the user.
        warnings: Vec<FieldError>,
        /// Where it was read.
        origin: Origin,
    },
    /// Invalid, but we know which object it is. `fallback` is what PM-D2 puts in its place where no earlier valid form exists.
    Invalid {
        /// Which object.
        key: ObjectKey,
        /// Everything wrong with it.
        errors: Vec<FieldError>,
        /// Things to tell the user beside that, such as fields that are not known.
        warnings: Vec<FieldError>,
        /// The closed form of policy model 4.1, or `None` when the object has no effect.
        fallback: Option<Object>,
        /// `critical` in the sense of policy model 4.1, last row but one.
        critical: bool,
        /// Where it was read.
        origin: Origin,
    },
    /// Not even its identity is known (broken YAML, no kind, no name).
    Unreadable {
        /// What is wrong.
        errors: Vec<FieldError>,
        /// Where it was read.
        origin: Origin,
    },
    /// A kind that margay does not follow (Deployment, ConfigMap, …).
    Ignored {
        /// `apiVersion/kind`.
        kind: String,
        /// Where it was read.
        origin: Origin,
    },
}

/// An object as judged: what it is if nothing was wrong, and what takes its place if something was.
struct Judged {
    object: Object,
    fallback: Option<Object>,
    critical: bool,
}

impl From<Object> for Judged {
    fn from(object: Object) -> Self {
        Self { object, fallback: None, critical: false }
    }
}

/// Decodes every document of `text` (YAML, many documents; JSON; `kind: List`).
pub fn decode(text: &str, file: &str) -> Vec<Decoded> {
    let mut decoded = Vec::new();
    decode_each(text, file, &mut |one, _| decoded.push(one));
    decoded
}

/// As [`decode`], but a document is let go of once it was judged. Gives each result with its document, or with `None` where that could not
/// be read or contradicts itself; they come in the order, and as many, as [`for_each_document`] gives them.
pub fn decode_each(text: &str, file: &str, take: &mut dyn FnMut(Decoded, Option<&Value>)) {
    for_each_document(text, file, &mut |document| match document {
        Ok((value, origin)) => take(decode_one(&value, origin, Vec::new()), Some(&value)),
        broken => take(decode_document(broken), None),
    });
}

/// Decodes one value; a List gives one result per item.
pub fn decode_value(value: Value, origin: Origin) -> Vec<Decoded> {
    let mut decoded = Vec::new();
    document::open_list(value, origin, &mut |document| decoded.push(decode_document(document)));
    decoded
}

/// Returns the fields that reading `value` asks for, whether they are written or not: the names in each mapping, by its path, with `[]`
/// for any item of a list. Empty for a kind that is not followed. Nothing else is kept in step with [`crate::schema`] by hand.
pub fn fields_asked(value: &Value) -> BTreeMap<String, BTreeSet<&'static str>> {
    let Route::Known(kind) = identity::route(value) else { return BTreeMap::new() };
    let mut problems = Problems { asked: Some(BTreeMap::new()), ..Problems::default() };
    if let Some(metadata) = Metadata::read(value, kind, &mut problems) {
        judge(kind, value, &metadata, &mut problems);
    }
    problems.asked.unwrap_or_default()
}

fn decode_document(document: Document) -> Decoded {
    match document {
        Ok((value, origin)) => decode_one(&value, origin, Vec::new()),
        Err(BrokenDocument { origin, errors, partial: Some(value) }) => decode_one(&value, origin, errors),
        Err(BrokenDocument { origin, errors, partial: None }) => Decoded::Unreadable { errors, origin },
    }
}

/// Judges one object; `errors` are contradictions that reading the text already found.
fn decode_one(value: &Value, origin: Origin, errors: Vec<FieldError>) -> Decoded {
    let kind = match identity::route(value) {
        Route::Known(kind) => kind,
        Route::Ignored(kind) => return Decoded::Ignored { kind, origin },
        Route::Wrong(error) => {
            let errors = errors.into_iter().chain([error]).collect();
            return Decoded::Unreadable { errors, origin };
        }
    };
    let mut problems = Problems { errors, ..Problems::default() };
    let Some(metadata) = Metadata::read(value, kind, &mut problems) else {
        return Decoded::Unreadable { errors: problems.errors, origin };
    };
    let judged = judge(kind, value, &metadata, &mut problems);
    let Problems { errors, warnings, .. } = problems;
    if errors.is_empty() {
        let version = metadata.version(value);
        Decoded::Valid { object: judged.object, version, warnings, origin }
    } else {
        let Judged { object, fallback, critical } = judged;
        Decoded::Invalid { key: object.key(), errors, warnings, fallback, critical, origin }
    }
}

fn judge(kind: Kind, value: &Value, metadata: &Metadata, problems: &mut Problems) -> Judged {
    match kind {
        Kind::Namespace => kubernetes::namespace(metadata).into(),
        Kind::ServiceAccount => kubernetes::service_account(metadata).into(),
        Kind::Pod => kubernetes::pod(value, metadata, problems).into(),
        Kind::Node => kubernetes::node(value, metadata, problems).into(),
        Kind::EndpointSlice => kubernetes::endpoint_slice(value, metadata, problems).into(),
        Kind::NetworkPolicy => network_policy::decode(value, metadata, false, problems),
        Kind::StagedKubernetesNetworkPolicy => network_policy::decode(value, metadata, true, problems),
        Kind::Policy(kind) => policy::decode(kind, value, metadata, problems),
        Kind::Tier => calico::tier(value, metadata, problems).into(),
        Kind::NetworkSet => calico::network_set(value, metadata, true, problems).into(),
        Kind::GlobalNetworkSet => calico::network_set(value, metadata, false, problems).into(),
        Kind::HostEndpoint => calico::host_endpoint(value, metadata, problems).into(),
        Kind::Profile => calico::profile(value, metadata, problems).into(),
        Kind::ClusterPolicy(kind) => cluster_policy::decode(kind, value, metadata, problems),
        Kind::FelixConfiguration => felix::configuration(value, metadata, problems).into(),
        Kind::KubeControllersConfiguration => controllers::configuration(value, metadata, problems).into(),
        Kind::IpPool => pool::pool(value, metadata, problems).into(),
        Kind::CalicoNode => pool::calico_node(value, metadata, problems).into(),
        Kind::Installation => installation::installation(value, metadata, problems).into(),
    }
}
