//! What is wrong with the input, as current state: a list that is right now true, not a log of what was.

use std::fmt;

use margay_policy_engine::decode::{FieldError, Origin};
use margay_policy_engine::model::ObjectKey;
use serde::{Deserialize, Serialize};

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Everything is in force, but something does not mean what it seems to: an unknown field, a criterion that is not enforced.
    Warning,
    /// What was written is not in force; an earlier or a closed form is.
    Error,
    /// What was written is not in force, and what protects in its place is nothing (policy model 4.1, last row but one).
    Critical,
}

impl Severity {
    /// Returns the name used in output and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// One thing that is wrong, with where, what and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// File, or the name of another source; empty when it is about no file.
    pub file: String,
    /// 1-based line at which the document begins; zero when it is about the whole file.
    pub line: usize,
    /// `Kind/namespace/name` of the object, where known.
    pub object: Option<String>,
    /// JSON path in the object; empty for the whole document.
    pub field: String,
    /// The offending value, shortened.
    pub value: String,
    /// Why it is wrong and how to mend it.
    pub reason: String,
    /// How much it matters.
    pub severity: Severity,
}

impl Problem {
    /// Returns a problem of a whole file.
    pub fn of_file(file: impl Into<String>, severity: Severity, reason: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line: 0,
            object: None,
            field: String::new(),
            value: String::new(),
            reason: reason.into(),
            severity,
        }
    }

    /// Returns the problem for one field error of a document.
    pub fn of_field(
        origin: &Origin,
        object: Option<&ObjectKey>,
        error: &FieldError,
        severity: Severity,
    ) -> Self {
        Self {
            file: origin.file.clone(),
            line: origin.line,
            object: object.map(object_name),
            field: error.field.clone(),
            value: error.value.clone(),
            reason: error.reason.clone(),
            severity,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.file)?;
        if self.line > 0 {
            write!(out, ":{}", self.line)?;
        }
        write!(out, ": {}", self.severity.as_str())?;
        if let Some(object) = &self.object {
            write!(out, ": {object}")?;
        }
        if !self.field.is_empty() {
            write!(out, ": {}", self.field)?;
        }
        if !self.value.is_empty() {
            write!(out, " = {}", self.value)?;
        }
        write!(out, ": {}", self.reason)
    }
}

/// Returns `Kind/namespace/name`, or `Kind/name` for global kinds: how people and files name an object.
pub fn object_name(key: &ObjectKey) -> String {
    match key {
        ObjectKey::Namespace(name) => format!("Namespace/{name}"),
        ObjectKey::ServiceAccount(key) => format!("ServiceAccount/{}/{}", key.namespace, key.name),
        ObjectKey::Pod(key) => format!("Pod/{}/{}", key.namespace, key.name),
        ObjectKey::Node(name) => format!("Node/{name}"),
        ObjectKey::Tier(name) => format!("Tier/{name}"),
        ObjectKey::Policy(key) => match &key.namespace {
            Some(namespace) => format!("{}/{namespace}/{}", key.kind.as_str(), key.name),
            None => format!("{}/{}", key.kind.as_str(), key.name),
        },
        ObjectKey::NetworkSet(key) => match &key.namespace {
            Some(namespace) => format!("NetworkSet/{namespace}/{}", key.name),
            None => format!("GlobalNetworkSet/{}", key.name),
        },
        ObjectKey::Profile(name) => format!("Profile/{name}"),
        ObjectKey::EndpointSlice(key) => format!("EndpointSlice/{}/{}", key.namespace, key.name),
        ObjectKey::HostEndpoint(name) => format!("HostEndpoint/{name}"),
        ObjectKey::FelixConfiguration(name) => format!("FelixConfiguration/{name}"),
        ObjectKey::KubeControllersConfiguration(name) => format!("KubeControllersConfiguration/{name}"),
        ObjectKey::IpPool(name) => format!("IPPool/{name}"),
        ObjectKey::CalicoNode(name) => format!("CalicoNode/{name}"),
        ObjectKey::Installation(name) => format!("Installation/{name}"),
    }
}
