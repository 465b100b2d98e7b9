//! Which object a document is about: its kind by apiVersion and kind, its names, its version.
//!
//! A kind that we follow under a version or spelling that does not exist is an error, not somebody else's object: a policy that is
//! passed over in silence opens what it was written to close.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::FieldError;
use super::field::{Fields, Problems, nearest};
use super::scalar::{check_annotations, check_labels, is_dns_label, is_dns_subdomain};
use crate::model::{Labels, NamespacedName, PolicyKind};

/// The kinds that are followed, by how they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Namespace,
    ServiceAccount,
    Pod,
    Node,
    EndpointSlice,
    NetworkPolicy,
    StagedKubernetesNetworkPolicy,
    /// NetworkPolicy, GlobalNetworkPolicy and their staged forms of `projectcalico.org/v3`.
    Policy(PolicyKind),
    Tier,
    NetworkSet,
    GlobalNetworkSet,
    HostEndpoint,
    Profile,
    /// The three kinds of `policy.networking.k8s.io`.
    ClusterPolicy(PolicyKind),
    FelixConfiguration,
    KubeControllersConfiguration,
    IpPool,
    CalicoNode,
    Installation,
}

/// What to do with a document.
#[derive(Debug)]
pub(super) enum Route {
    Known(Kind),
    /// `apiVersion/kind` of something that is not followed.
    Ignored(String),
    Wrong(FieldError),
}

/// Group, version, kind text, kind. `projectcalico.org/v3` stands for `crd.projectcalico.org/v1` too.
const KINDS: [(&str, &str, &str, Kind); 24] = [
    ("", "v1", "Namespace", Kind::Namespace),
    ("", "v1", "ServiceAccount", Kind::ServiceAccount),
    ("", "v1", "Pod", Kind::Pod),
    ("", "v1", "Node", Kind::Node),
    ("discovery.k8s.io", "v1", "EndpointSlice", Kind::EndpointSlice),
    ("networking.k8s.io", "v1", "NetworkPolicy", Kind::NetworkPolicy),
    (CALICO, "v3", "NetworkPolicy", Kind::Policy(PolicyKind::NetworkPolicy)),
    (CALICO, "v3", "GlobalNetworkPolicy", Kind::Policy(PolicyKind::GlobalNetworkPolicy)),
    (CALICO, "v3", "StagedNetworkPolicy", Kind::Policy(PolicyKind::StagedNetworkPolicy)),
    (CALICO, "v3", "StagedGlobalNetworkPolicy", Kind::Policy(PolicyKind::StagedGlobalNetworkPolicy)),
    (CALICO, "v3", "StagedKubernetesNetworkPolicy", Kind::StagedKubernetesNetworkPolicy),
    (CALICO, "v3", "Tier", Kind::Tier),
    (CALICO, "v3", "NetworkSet", Kind::NetworkSet),
    (CALICO, "v3", "GlobalNetworkSet", Kind::GlobalNetworkSet),
    (CALICO, "v3", "HostEndpoint", Kind::HostEndpoint),
    (CALICO, "v3", "Profile", Kind::Profile),
    (CALICO, "v3", "FelixConfiguration", Kind::FelixConfiguration),
    (CALICO, "v3", "KubeControllersConfiguration", Kind::KubeControllersConfiguration),
    (CALICO, "v3", "IPPool", Kind::IpPool),
    (CALICO, "v3", "Node", Kind::CalicoNode),
    (OPERATOR, "v1", "Installation", Kind::Installation),
    (
        ADMIN,
        "v1alpha2",
        "ClusterNetworkPolicy",
        Kind::ClusterPolicy(PolicyKind::KubernetesClusterNetworkPolicy),
    ),
    (ADMIN, "v1alpha1", "AdminNetworkPolicy", Kind::ClusterPolicy(PolicyKind::KubernetesAdminNetworkPolicy)),
    (
        ADMIN,
        "v1alpha1",
        "BaselineAdminNetworkPolicy",
        Kind::ClusterPolicy(PolicyKind::KubernetesBaselineAdminNetworkPolicy),
    ),
];

const CALICO: &str = "projectcalico.org";
const OPERATOR: &str = "operator.tigera.io";
const CALICO_CRD: &str = "crd.projectcalico.org/v1";
const ADMIN: &str = "policy.networking.k8s.io";

/// Kinds of followed groups that are nobody's mistake.
const OTHERS: [&str; 20] = [
    "Service",
    "Secret",
    "Event",
    "PodTemplate",
    "Ingress",
    "IngressClass",
    "NodeMetrics",
    "ServiceCIDR",
    "BGPConfiguration",
    "BGPFilter",
    "BGPPeer",
    "BlockAffinity",
    "CalicoNodeStatus",
    "ClusterInformation",
    "ExternalNetwork",
    "IPAMBlock",
    "IPAMConfig",
    "IPAMConfiguration",
    "IPAMHandle",
    "IPReservation",
];

/// Decides what `value` is.
pub(super) fn route(value: &Value) -> Route {
    let wrong =
        |field: &str, value: &Value, reason: String| Route::Wrong(FieldError::new(field, value, reason));
    if !value.is_object() {
        let reason = "a document is a mapping with apiVersion, kind, metadata and spec".to_owned();
        return wrong("", value, reason);
    }
    let field = |name: &str| value.get(name).cloned().unwrap_or_default();
    let (version_value, kind_value) = (field("apiVersion"), field("kind"));
    let Some(kind) = kind_value.as_str().filter(|kind| !kind.is_empty()) else {
        return wrong(
            "kind",
            &kind_value,
            "missing; write the kind of the object, such as NetworkPolicy".to_owned(),
        );
    };
    let Some(api_version) = version_value.as_str().filter(|version| !version.is_empty()) else {
        let reason = format!("missing; write the API version of {kind}, such as {}", usual_version(kind));
        return wrong("apiVersion", &version_value, reason);
    };
    let normal = if api_version == CALICO_CRD { "projectcalico.org/v3" } else { api_version };
    let (group, version) = normal.split_once('/').unwrap_or(("", normal));
    if let Some((.., found)) =
        KINDS.iter().find(|known| (known.0, known.1, known.2) == (group, version, kind))
    {
        return Route::Known(*found);
    }
    let same_kind = KINDS.iter().filter(|known| known.2 == kind).collect::<Vec<_>>();
    let ours = group == "extensions" || KINDS.iter().any(|known| known.0 == group);
    if ours && !same_kind.is_empty() {
        let versions = same_kind.iter().map(|known| full_version(known.0, known.1)).collect::<Vec<_>>();
        let reason = format!("{kind} does not exist in this version; write {}", versions.join(" or "));
        return wrong("apiVersion", &version_value, reason);
    }
    if same_kind.is_empty() && !OTHERS.contains(&kind) {
        let near: Vec<&str> = KINDS.iter().filter(|known| known.0 == group).map(|known| known.2).collect();
        let slip = |near: &&str| near.eq_ignore_ascii_case(kind) || near.len() >= 8;
        if let Some(near) = nearest(kind, &near).filter(slip) {
            return wrong("kind", &kind_value, format!("no such kind; did you mean {near}?"));
        }
    }
    Route::Ignored(format!("{api_version}/{kind}"))
}

fn usual_version(kind: &str) -> String {
    let versions: Vec<_> =
        KINDS.iter().filter(|known| known.2 == kind).map(|known| full_version(known.0, known.1)).collect();
    if versions.is_empty() { "networking.k8s.io/v1".to_owned() } else { versions.join(" or ") }
}

fn full_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

impl Kind {
    fn is_namespaced(self) -> bool {
        match self {
            Self::Namespace
            | Self::Node
            | Self::Tier
            | Self::GlobalNetworkSet
            | Self::HostEndpoint
            | Self::Profile
            | Self::ClusterPolicy(_)
            | Self::FelixConfiguration
            | Self::KubeControllersConfiguration
            | Self::IpPool
            | Self::CalicoNode
            | Self::Installation
            | Self::Policy(PolicyKind::GlobalNetworkPolicy | PolicyKind::StagedGlobalNetworkPolicy) => false,
            Self::ServiceAccount
            | Self::Pod
            | Self::EndpointSlice
            | Self::NetworkPolicy
            | Self::StagedKubernetesNetworkPolicy
            | Self::NetworkSet
            | Self::Policy(_) => true,
        }
    }

    /// Checks `name` by the table of policy model 4.2; gives what would be accepted otherwise.
    fn check_name(self, name: &str) -> Result<(), &'static str> {
        let one_dot = |name: &str| match name.split_once('.') {
            Some((tier, rest)) => is_dns_label(tier) && is_dns_label(rest),
            None => is_dns_label(name),
        };
        let converted = |name: &str| {
            ["knp.default.", "ossg.default."]
                .iter()
                .any(|prefix| name.strip_prefix(prefix).is_some_and(is_dns_subdomain))
        };
        let good = match self {
            Self::Namespace | Self::Tier => name.len() <= 63 && is_dns_label(name),
            Self::Policy(PolicyKind::NetworkPolicy | PolicyKind::StagedNetworkPolicy) => {
                name.len() <= 253 && (one_dot(name) || converted(name))
            }
            Self::Policy(_) => name.len() <= 253 && one_dot(name),
            _ => is_dns_subdomain(name),
        };
        match self {
            _ if good => Ok(()),
            Self::Namespace | Self::Tier => {
                Err("a name here is 1 to 63 of [a-z0-9-], beginning and ending with a letter or digit")
            }
            Self::Policy(_) => Err(
                "a name here is [a-z0-9-] with at most one dot, 253 characters, beginning and ending with a letter or digit",
            ),
            _ => Err(
                "a name here is [a-z0-9.-], at most 253 characters, each part beginning and ending with a letter or digit",
            ),
        }
    }
}

/// What `metadata` says.
#[derive(Debug)]
pub(super) struct Metadata {
    pub name: String,
    /// Of a namespaced kind; `default` when the manifest says nothing. Empty for the others.
    pub namespace: String,
    pub labels: Labels,
    pub annotations: Labels,
    pub uid: String,
    pub created: String,
    pub is_deleting: bool,
    resource_version: String,
}

impl Metadata {
    /// Reads `metadata`; `None` when the object has no name to be known by.
    pub(super) fn read(value: &Value, kind: Kind, problems: &mut Problems) -> Option<Self> {
        let mut fields = Fields::open("metadata".to_owned(), value.get("metadata"), problems);
        let name = fields.text("name", problems).unwrap_or_default().to_owned();
        if name.is_empty() {
            problems.refuse_text("metadata.name", "", "missing; an object needs a name");
            return None;
        }
        if let Err(reason) = kind.check_name(&name) {
            problems.refuse_text("metadata.name", &name, reason);
        }
        let mut namespace = String::new();
        if kind.is_namespaced() {
            namespace = fields
                .text("namespace", problems)
                .filter(|text| !text.is_empty())
                .unwrap_or("default")
                .to_owned();
            if !(is_dns_label(&namespace) && namespace.len() <= 63) {
                let reason = "not the name of a namespace: 1 to 63 of [a-z0-9-]";
                problems.refuse_text("metadata.namespace", &namespace, reason);
            }
        } else if let Some(written) = fields.text("namespace", problems).filter(|text| !text.is_empty()) {
            let reason = "ignored; objects of this kind are of the whole cluster, and this limits nothing";
            problems.warn("metadata.namespace", written, reason);
        }
        let labels = fields.text_map("labels", problems);
        check_labels("metadata.labels", &labels, problems);
        let annotations = fields.text_map("annotations", problems);
        check_annotations("metadata.annotations", &annotations, problems);
        let mut text = |name| fields.raw(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Self {
            name,
            namespace,
            labels,
            annotations,
            uid: text("uid"),
            created: text("creationTimestamp"),
            is_deleting: !text("deletionTimestamp").is_empty(),
            resource_version: text("resourceVersion"),
        })
    }

    /// Returns namespace and name.
    pub(super) fn key(&self) -> NamespacedName {
        NamespacedName { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// Returns the resourceVersion, else a hash of what `value` says, whatever the order of its keys.
    pub(super) fn version(&self, value: &Value) -> String {
        if !self.resource_version.is_empty() {
            return self.resource_version.clone();
        }
        let mut hash = Sha256::new();
        absorb(value, &mut hash);
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn absorb(value: &Value, hash: &mut Sha256) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_unstable();
            hash.update(b"{");
            for key in keys {
                absorb(&Value::String(key.clone()), hash);
                hash.update(b":");
                absorb(&map[key], hash);
                hash.update(b",");
            }
            hash.update(b"}");
        }
        Value::Array(items) => {
            hash.update(b"[");
            for item in items {
                absorb(item, hash);
                hash.update(b",");
            }
            hash.update(b"]");
        }
        scalar => hash.update(scalar.to_string()),
    }
}
