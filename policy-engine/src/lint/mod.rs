//! What manifests probably do not mean: surprises of the policy model, and the mistakes that users make.
//!
//! ```text
//!  texts ─▶ Manifests (Model, Services, places) ─▶ lints ─▶ findings: object, field, what is wrong, how to mend it
//! ```
//!
//! A lint never guesses about what it cannot see: findings about reachability hold for every packet ([`cover`]), findings about who is
//! selected are made only where there are pods to select. [`catalogue`] lists every lint and is the source of the documentation.

pub mod catalogue;
mod cover;
mod hosts;
mod manifests;
mod peers;
mod policies;
mod reach;
mod services;

use serde::Serialize;

use crate::decode::Origin;
use crate::model::{ObjectKey, Policy};

pub use catalogue::{ALL, Lint, Severity, documentation};
pub use manifests::Manifests;

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// File, where known.
    pub file: String,
    /// 1-based line where the object begins.
    pub line: usize,
    /// Kind of the object; empty where it could not be read.
    pub kind: String,
    /// Namespace; empty for a global one.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Field, such as `spec.ingress[0].source`; empty for the whole object.
    pub field: String,
    /// The lint, by its id.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong here.
    pub message: String,
    /// How to mend it.
    pub mend: &'static str,
    /// Section of the policy model.
    pub section: &'static str,
}

/// Returns everything that is found, in the order of files and lines.
pub fn lint(manifests: &Manifests) -> Vec<Finding> {
    let mut found = Found { manifests, findings: manifests.findings() };
    policies::lint(&mut found);
    reach::lint(&mut found);
    peers::lint(&mut found);
    services::lint(&mut found);
    hosts::lint(&mut found);
    let mut findings = found.findings;
    findings.sort();
    findings.dedup();
    findings
}

/// Findings on their way together.
struct Found<'m> {
    manifests: &'m Manifests,
    findings: Vec<Finding>,
}

impl Found<'_> {
    fn about(&mut self, lint: &Lint, key: &ObjectKey, field: impl Into<String>, message: impl Into<String>) {
        let finding = Finding::new(lint, key, field.into(), message.into());
        let finding = match self.manifests.origins.get(key) {
            Some(origin) => finding.at(origin),
            None => finding,
        };
        self.findings.push(finding);
    }

    fn about_policy(
        &mut self,
        lint: &Lint,
        policy: &Policy,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.about(lint, &ObjectKey::Policy(policy.key.clone()), field, message);
    }
}

impl Finding {
    fn new(lint: &Lint, key: &ObjectKey, field: String, message: String) -> Self {
        let (kind, namespace, name) = parts(key);
        let name = name.to_owned();
        let (kind, namespace) = (kind.to_owned(), namespace.unwrap_or_default().to_owned());
        Self { kind, namespace, name, ..Self::without_object(lint, field, message) }
    }

    fn without_object(lint: &Lint, field: String, message: String) -> Self {
        Self {
            file: String::new(),
            line: 0,
            kind: String::new(),
            namespace: String::new(),
            name: String::new(),
            field,
            id: lint.id,
            severity: lint.severity,
            message,
            mend: lint.mend,
            section: lint.section,
        }
    }

    fn at(mut self, origin: &Origin) -> Self {
        self.file.clone_from(&origin.file);
        self.line = origin.line;
        self
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        };
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        writeln!(f, "{}:{}: {severity}[{}]", self.file, self.line, self.id)?;
        if !self.kind.is_empty() {
            write!(f, "  {} {}{slash}{}", self.kind, self.namespace, self.name)?;
            let field = if self.field.is_empty() { String::new() } else { format!(", {}", self.field) };
            writeln!(f, "{field}")?;
        }
        writeln!(f, "  {}", self.message)?;
        write!(f, "  {} (policy model {})", self.mend, self.section)
    }
}

/// Returns kind, namespace and name as a user writes them.
fn parts(key: &ObjectKey) -> (&str, Option<&str>, &str) {
    match key {
        ObjectKey::Namespace(name) => ("Namespace", None, name),
        ObjectKey::ServiceAccount(key) => ("ServiceAccount", Some(&key.namespace), &key.name),
        ObjectKey::Pod(key) => ("Pod", Some(&key.namespace), &key.name),
        ObjectKey::Node(name) => ("Node", None, name),
        ObjectKey::Tier(name) => ("Tier", None, name),
        ObjectKey::Policy(key) => (key.kind.as_str(), key.namespace.as_deref(), &key.name),
        ObjectKey::NetworkSet(key) => match &key.namespace {
            Some(namespace) => ("NetworkSet", Some(namespace), &key.name),
            None => ("GlobalNetworkSet", None, &key.name),
        },
        ObjectKey::Profile(name) => ("Profile", None, name),
        ObjectKey::EndpointSlice(key) => ("EndpointSlice", Some(&key.namespace), &key.name),
        ObjectKey::HostEndpoint(name) => ("HostEndpoint", None, name),
        ObjectKey::FelixConfiguration(name) => ("FelixConfiguration", None, name),
        ObjectKey::KubeControllersConfiguration(name) => ("KubeControllersConfiguration", None, name),
        ObjectKey::IpPool(name) => ("IPPool", None, name),
        ObjectKey::CalicoNode(name) => ("Node", None, name),
        ObjectKey::Installation(name) => ("Installation", None, name),
    }
}

/// Returns an object in words, such as `Pod shop/web`.
fn shown(key: &ObjectKey) -> String {
    match parts(key) {
        (kind, Some(namespace), name) => format!("{kind} {namespace}/{name}"),
        (kind, None, name) => format!("{kind} {name}"),
    }
}
