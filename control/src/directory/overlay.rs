//! What a machine knows better than the manifest: partial Pod and Node documents, merged over the manifest's before it is judged.
//!
//! The merge is RFC 7386. A manifest says which pods and nodes there shall be; the overlay says what only the node can know, such as
//! `status.podIPs` of a Pod, or annotations of a Node. A partial document without its manifest has no effect.

use std::collections::BTreeMap;

use margay_policy_engine::decode::split_documents;
use margay_policy_engine::model::{NamespacedName, ObjectKey};
use serde_json::Value;

use crate::problem::{Problem, Severity};

/// The partial documents of one overlay file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Patches(Vec<(ObjectKey, Value)>);

impl Patches {
    /// Reads the file's text. Errors: what is wrong, when any document cannot be read; an overlay is in force whole or not at all.
    pub fn read(text: &str, file: &str) -> Result<Self, Vec<Problem>> {
        let (mut patches, mut problems) = (Vec::new(), Vec::new());
        for document in split_documents(text, file) {
            match document {
                Ok((value, origin)) => match about(&value) {
                    Some(about) => patches.push((about, value)),
                    None => problems.push(Problem {
                        line: origin.line,
                        ..Problem::of_file(
                            file,
                            Severity::Error,
                            "an overlay holds partial Pods and Nodes with a name, nothing else",
                        )
                    }),
                },
                Err(broken) => {
                    let problem = |error| Problem::of_field(&broken.origin, None, error, Severity::Error);
                    problems.extend(broken.errors.iter().map(problem));
                }
            }
        }
        if problems.is_empty() { Ok(Self(patches)) } else { Err(problems) }
    }
}

/// All overlay files together.
#[derive(Debug, Default)]
pub(super) struct Overlay<'a>(BTreeMap<&'a ObjectKey, Vec<&'a Value>>);

impl<'a> Overlay<'a> {
    /// Joins the files' patches; later files are merged over earlier ones.
    pub fn of(files: impl Iterator<Item = &'a Patches>) -> Self {
        let mut overlay = Self::default();
        for (name, value) in files.flat_map(|patches| &patches.0) {
            overlay.0.entry(name).or_default().push(value);
        }
        overlay
    }

    /// Returns the `document` of object `key` with everything known about it merged in, or `None` when nothing is or there is no document.
    pub fn apply(&self, key: &ObjectKey, document: impl FnOnce() -> Option<Value>) -> Option<Value> {
        let patches = self.0.get(key)?;
        let mut merged = document()?;
        patches.iter().for_each(|patch| merge(&mut merged, patch));
        Some(merged)
    }
}

/// Returns the Pod or Node that `document` is about.
fn about(document: &Value) -> Option<ObjectKey> {
    if document.get("apiVersion").is_some_and(|version| version != "v1") {
        return None;
    }
    let metadata = document.get("metadata")?;
    let name = metadata.get("name")?.as_str()?.to_owned();
    let namespace = || metadata.get("namespace").and_then(Value::as_str).unwrap_or("default").to_owned();
    match document.get("kind")?.as_str()? {
        "Pod" => Some(ObjectKey::Pod(NamespacedName { namespace: namespace(), name })),
        "Node" => Some(ObjectKey::Node(name)),
        _ => None,
    }
}

/// RFC 7386 §2.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    if let Value::Object(target) = target {
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Source: RFC 7386, appendix A.
    #[test]
    fn merge_follows_the_examples_of_the_rfc() {
        for (mut target, patch, expected) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            merge(&mut target, &patch);
            assert_eq!(target, expected);
        }
    }
}
