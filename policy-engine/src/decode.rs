//! Documents to objects, or to a list of what is wrong with them.

use crate::model::{Object, ObjectKey};

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
    /// 1-based line of the document's first line.
    pub line: usize,
}

/// The result of decoding one document (an item of a List is a document of its own).
#[derive(Clone, Debug)]
pub enum Decoded {
    /// Valid. Warnings name unknown fields and criteria that are not enforced yet.
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

/// Decodes every document of `text` (YAML, many documents; JSON; `kind: List`).
pub fn decode(_text: &str, _file: &str) -> Vec<Decoded> {
    Vec::new()
}
