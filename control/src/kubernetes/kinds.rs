//! The kinds that are followed, and what is kept of their objects.
//!
//! A Pod as the API server tells it has some ten kilobytes; policy reads a few hundred bytes of it. [`Kept`] is what remains: it is
//! pruned while the answer is being read, object by object, so a page of five hundred Pods never stands in memory whole.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// One kind, by its place in [`KINDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct KindId(pub u8);

/// What is known about a kind before the server is asked.
#[derive(Debug)]
pub(super) struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Versions that are read, the preferred one first.
    pub versions: &'static [&'static str],
    /// Kind.
    pub kind: &'static str,
    /// Which fields are kept.
    keep: Keep,
    /// Objects have `status.conditions` that are ours to write.
    pub has_conditions: bool,
}

/// Which fields of an object are kept.
#[derive(Clone, Copy, Debug)]
enum Keep {
    /// `metadata` alone.
    Metadata,
    Pod,
    Node,
    EndpointSlice,
    /// Everything but `status`.
    Spec,
}

pub(super) const CALICO: &str = "projectcalico.org";
/// The group under which Calico stores the objects of [`CALICO`] as definitions, beside an API server of its own that serves these.
pub(super) const STORED: &str = "crd.projectcalico.org";
const STORED_VERSION: &str = "crd.projectcalico.org/v1";
/// Where Calico keeps what is an object's own `metadata` when it stores it: the labels of a NetworkSet, for one.
const STORED_METADATA: &str = "projectcalico.org/metadata";
const ADMIN: &str = "policy.networking.k8s.io";

const fn kind(
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    keep: Keep,
) -> Kind {
    Kind { group, versions, kind, keep, has_conditions: false }
}

/// A kind whose objects get conditions.
const fn judged(group: &'static str, versions: &'static [&'static str], name: &'static str) -> Kind {
    Kind { has_conditions: true, ..kind(group, versions, name, Keep::Spec) }
}

/// Every kind that is followed (policy model 1.1).
pub(super) const KINDS: [Kind; 24] = [
    kind("", &["v1"], "Namespace", Keep::Metadata),
    kind("", &["v1"], "ServiceAccount", Keep::Metadata),
    kind("", &["v1"], "Pod", Keep::Pod),
    kind("", &["v1"], "Node", Keep::Node),
    // Kubernetes before 1.21 has v1beta1 only, which says the same about addresses and ports.
    kind("discovery.k8s.io", &["v1", "v1beta1"], "EndpointSlice", Keep::EndpointSlice),
    kind("networking.k8s.io", &["v1"], "NetworkPolicy", Keep::Spec),
    judged(ADMIN, &["v1alpha2"], "ClusterNetworkPolicy"),
    judged(ADMIN, &["v1alpha1"], "AdminNetworkPolicy"),
    judged(ADMIN, &["v1alpha1"], "BaselineAdminNetworkPolicy"),
    judged(CALICO, &["v3"], "NetworkPolicy"),
    judged(CALICO, &["v3"], "GlobalNetworkPolicy"),
    judged(CALICO, &["v3"], "StagedNetworkPolicy"),
    judged(CALICO, &["v3"], "StagedGlobalNetworkPolicy"),
    judged(CALICO, &["v3"], "StagedKubernetesNetworkPolicy"),
    judged(CALICO, &["v3"], "Tier"),
    kind(CALICO, &["v3"], "NetworkSet", Keep::Spec),
    kind(CALICO, &["v3"], "GlobalNetworkSet", Keep::Spec),
    kind(CALICO, &["v3"], "HostEndpoint", Keep::Spec),
    kind(CALICO, &["v3"], "Profile", Keep::Spec),
    kind(CALICO, &["v3"], "FelixConfiguration", Keep::Spec),
    kind(CALICO, &["v3"], "KubeControllersConfiguration", Keep::Spec),
    kind(CALICO, &["v3"], "IPPool", Keep::Spec),
    kind(CALICO, &["v3"], "Node", Keep::Spec),
    kind("operator.tigera.io", &["v1"], "Installation", Keep::Spec),
];

/// Annotations of Pods that policy or the packet path reads (policy model 7.3, 26).
const POD_ANNOTATIONS: [&str; 6] = [
    "cni.projectcalico.org/",
    "qos.projectcalico.org/",
    "projectcalico.org/",
    "kubernetes.io/ingress-bandwidth",
    "kubernetes.io/egress-bandwidth",
    "vpc.amazonaws.com/pod-ips",
];

impl KindId {
    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..KINDS.len()).map(|index| Self(u8::try_from(index).expect("fewer than 256 kinds")))
    }

    /// Returns what is known about the kind.
    pub fn kind(self) -> &'static Kind {
        &KINDS[usize::from(self.0)]
    }

    /// Returns the kind of a kept document.
    #[cfg(test)]
    pub fn of_document(document: &Value) -> Option<Self> {
        let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        Self::all().find(|id| id.kind().kind == kind && id.kind().api_version() == version)
    }
}

impl Kind {
    /// Returns the `apiVersion` under which objects are judged, whatever version they were read in.
    pub fn api_version(&self) -> String {
        let version = self.versions[0];
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// Returns how people name the kind: `pods`-like plurals are the server's, this is for messages.
    pub fn title(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// Makes a document of an object as the server told it: what policy reads, under the version it is judged in.
    pub fn document(&self, object: Value) -> Kept {
        let Value::Object(mut object) = object else {
            return Kept { document: Value::Null, meta: Meta::default() };
        };
        let mut metadata = take_map(&mut object, "metadata");
        if object.get("apiVersion").is_some_and(|version| version == STORED_VERSION) {
            take_stored(&mut metadata);
        }
        let status = object.get("status").filter(|_| self.has_conditions);
        let mut meta = Meta::read(&metadata, status);
        metadata.retain(|field, _| {
            [
                "name",
                "namespace",
                "uid",
                "labels",
                "annotations",
                "creationTimestamp",
                "deletionTimestamp",
                "resourceVersion",
            ]
            .contains(&field.as_str())
        });
        let mut kept = Map::new();
        kept.insert("apiVersion".to_owned(), self.api_version().into());
        kept.insert("kind".to_owned(), self.kind.into());
        match self.keep {
            Keep::Metadata => keep_annotations(&mut metadata, &[]),
            Keep::Pod => {
                keep_annotations(&mut metadata, &POD_ANNOTATIONS);
                kept.insert("spec".to_owned(), pod_spec(take_map(&mut object, "spec")));
                let status = take_map(&mut object, "status");
                kept.insert("status".to_owned(), only(status, &["phase", "podIP", "podIPs", "startTime"]));
            }
            Keep::Node => {
                meta.annotations = texts(metadata.get("annotations"));
                keep_annotations(&mut metadata, &["projectcalico.org/", "margay/wireguard"]);
                kept.insert("spec".to_owned(), only(take_map(&mut object, "spec"), &["podCIDR", "podCIDRs"]));
                kept.insert("status".to_owned(), only(take_map(&mut object, "status"), &["addresses"]));
            }
            Keep::EndpointSlice => {
                keep_annotations(&mut metadata, &[]);
                for field in ["addressType", "ports"] {
                    kept.extend(object.remove_entry(field));
                }
                let endpoints = take_list(&mut object, "endpoints");
                let endpoints = endpoints.into_iter().map(|endpoint| only_of(endpoint, &["addresses"]));
                kept.insert("endpoints".to_owned(), endpoints.collect());
            }
            Keep::Spec => {
                if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
                    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
                }
                object.retain(|field, _| !["apiVersion", "kind", "status"].contains(&field.as_str()));
                kept.extend(object);
            }
        }
        kept.insert("metadata".to_owned(), Value::Object(metadata));
        Kept { document: Value::Object(kept), meta }
    }
}

fn take_map(object: &mut Map<String, Value>, field: &str) -> Map<String, Value> {
    match object.remove(field) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Puts labels and annotations where they belong that Calico stored in an annotation.
fn take_stored(metadata: &mut Map<String, Value>) {
    let mut annotations = take_map(metadata, "annotations");
    let stored = annotations.remove(STORED_METADATA);
    let stored = stored.as_ref().and_then(Value::as_str).and_then(|text| serde_json::from_str(text).ok());
    if let Some(Value::Object(mut stored)) = stored {
        let mut labels = take_map(metadata, "labels");
        labels.extend(take_map(&mut stored, "labels"));
        metadata.insert("labels".to_owned(), Value::Object(labels));
        annotations.extend(take_map(&mut stored, "annotations"));
    }
    metadata.insert("annotations".to_owned(), Value::Object(annotations));
}

fn take_list(object: &mut Map<String, Value>, field: &str) -> Vec<Value> {
    match object.remove(field) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn only(mut map: Map<String, Value>, fields: &[&str]) -> Value {
    map.retain(|field, _| fields.contains(&field.as_str()));
    Value::Object(map)
}

fn only_of(value: Value, fields: &[&str]) -> Value {
    match value {
        Value::Object(map) => only(map, fields),
        other => other,
    }
}

fn texts(map: Option<&Value>) -> BTreeMap<String, String> {
    let pairs = map.and_then(Value::as_object).into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn keep_annotations(metadata: &mut Map<String, Value>, prefixes: &[&str]) {
    if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
        annotations.retain(|key, _| prefixes.iter().any(|prefix| key.starts_with(prefix)));
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
}

fn pod_spec(mut spec: Map<String, Value>) -> Value {
    for list in ["containers", "initContainers"] {
        let containers =
            take_list(&mut spec, list).into_iter().map(|container| only_of(container, &["ports"]));
        let with_ports: Vec<Value> =
            containers.filter(|container| container.get("ports").is_some()).collect();
        if !with_ports.is_empty() {
            spec.insert(list.to_owned(), Value::Array(with_ports));
        }
    }
    only(spec, &["nodeName", "hostNetwork", "serviceAccountName", "containers", "initContainers"])
}

/// An object without what nobody here reads.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// The document as it is judged; null for what was no object.
    pub document: Value,
    /// What those who write status need beside it.
    pub meta: Meta,
}

/// What is not part of an object's meaning.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Meta {
    /// `metadata.generation`: grows with `spec`.
    pub generation: i64,
    /// `metadata.finalizers`.
    pub finalizers: Vec<String>,
    /// `metadata.deletionTimestamp` is set.
    pub is_deleting: bool,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `status.conditions`.
    pub conditions: Vec<Value>,
    /// All annotations; of Nodes only.
    pub annotations: BTreeMap<String, String>,
}

impl Meta {
    fn read(metadata: &Map<String, Value>, status: Option<&Value>) -> Self {
        let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let finalizers = metadata.get("finalizers").and_then(Value::as_array).into_iter().flatten();
        let conditions = status.and_then(|status| status.get("conditions")).and_then(Value::as_array);
        Self {
            generation: metadata.get("generation").and_then(Value::as_i64).unwrap_or_default(),
            finalizers: finalizers.filter_map(Value::as_str).map(str::to_owned).collect(),
            is_deleting: metadata.contains_key("deletionTimestamp"),
            uid: text("uid"),
            version: text("resourceVersion"),
            conditions: conditions.cloned().unwrap_or_default(),
            annotations: BTreeMap::new(),
        }
    }
}

/// Reads the items of a page, each pruned before the next is read.
pub(super) struct Items(pub Vec<Kept>);

impl Kind {
    /// Reads one page of a list. Errors: the text is no list.
    pub fn page(&self, text: &str) -> Result<Page, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        PageSeed(self).read(&mut deserializer)
    }
}

/// One page of a list.
pub(super) struct Page {
    /// Objects.
    pub items: Vec<Kept>,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.continue`; empty on the last page.
    pub more: String,
}

struct PageSeed<'a>(&'a Kind);

impl PageSeed<'_> {
    fn read<'de, D: Deserializer<'de>>(self, deserializer: D) -> Result<Page, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> serde::de::Visitor<'de> for PageSeed<'_> {
    type Value = Page;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("a list of Kubernetes objects")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Page, A::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct ListMeta {
            resource_version: String,
            #[serde(rename = "continue")]
            more: String,
        }
        let (mut items, mut metadata) = (Vec::new(), ListMeta::default());
        while let Some(field) = map.next_key::<String>()? {
            match field.as_str() {
                "metadata" => metadata = map.next_value()?,
                "items" => items = map.next_value_seed(ItemsSeed(self.0))?.0,
                _ => drop(map.next_value::<serde::de::IgnoredAny>()?),
            }
        }
        Ok(Page { items, version: metadata.resource_version, more: metadata.more })
    }
}

struct ItemsSeed<'a>(&'a Kind);

impl<'de> serde::de::DeserializeSeed<'de> for ItemsSeed<'_> {
    type Value = Items;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Items, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> serde::de::Visitor<'de> for ItemsSeed<'_> {
    type Value = Items;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("a list of objects")
    }

    // Servers write `"items": null` for an empty list.
    fn visit_unit<E>(self) -> Result<Items, E> {
        Ok(Items(Vec::new()))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Items, A::Error> {
        let mut items = Vec::new();
        while let Some(object) = list.next_element::<Value>()? {
            items.push(self.0.document(object));
        }
        Ok(Items(items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn id(kind: &str, group: &str) -> KindId {
        KindId::all().find(|id| id.kind().kind == kind && id.kind().group == group).unwrap()
    }

    #[test]
    fn a_pod_keeps_what_policy_reads_and_nothing_else() {
        let pod = json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "labels": { "app": "web" },
                "annotations": { "cni.projectcalico.org/podIP": "10.0.0.1/32", "example.org/long": "x" },
                "managedFields": [{ "manager": "kubelet" }], "ownerReferences": [{ "name": "rs" }],
            },
            "spec": {
                "nodeName": "n1", "serviceAccountName": "sa", "volumes": [{ "name": "v" }],
                "containers": [{ "name": "c", "image": "i", "ports": [{ "containerPort": 80, "name": "http" }] }, { "name": "d" }],
            },
            "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }], "containerStatuses": [{ "name": "c" }] },
        });
        let kept = id("Pod", "").kind().document(pod);
        assert_eq!(
            kept.document,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "labels": { "app": "web" },
                    "annotations": { "cni.projectcalico.org/podIP": "10.0.0.1/32" },
                },
                "spec": {
                    "nodeName": "n1", "serviceAccountName": "sa",
                    "containers": [{ "ports": [{ "containerPort": 80, "name": "http" }] }],
                },
                "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }] },
            })
        );
        assert_eq!((kept.meta.uid.as_str(), kept.meta.version.as_str()), ("u", "7"));
    }

    #[test]
    fn a_policy_keeps_its_spec_and_an_old_version_is_judged_as_the_new_one() {
        let policy = json!({
            "metadata": {
                "name": "p", "generation": 3, "finalizers": ["f"], "deletionTimestamp": "t",
                "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{…}", "why": "so" },
            },
            "spec": { "anything": [1] }, "status": { "conditions": [{ "type": "Accepted" }] },
        });
        let kept = id("Tier", CALICO).kind().document(policy);
        assert_eq!(kept.document["spec"], json!({ "anything": [1] }));
        assert_eq!(kept.document["metadata"]["annotations"], json!({ "why": "so" }));
        assert!(kept.document.get("status").is_none() && kept.meta.is_deleting);
        assert_eq!((kept.meta.generation, kept.meta.finalizers.len(), kept.meta.conditions.len()), (3, 1, 1));

        let slice = json!({ "apiVersion": "discovery.k8s.io/v1beta1", "metadata": { "name": "s" }, "endpoints": null });
        let kept = id("EndpointSlice", "discovery.k8s.io").kind().document(slice);
        assert_eq!(kept.document["apiVersion"], "discovery.k8s.io/v1");
        assert_eq!(KindId::of_document(&kept.document), Some(id("EndpointSlice", "discovery.k8s.io")));
    }

    #[test]
    fn an_object_as_calico_stores_it_has_its_labels_where_they_belong() {
        let stored = r#"{"labels":{"role":"office"},"annotations":{"why":"so"},"creationTimestamp":null}"#;
        let object = |version: &str| {
            json!({
                "apiVersion": version, "kind": "GlobalNetworkSet",
                "metadata": { "name": "s", "annotations": { "projectcalico.org/metadata": stored, "own": "x" } },
                "spec": { "nets": ["192.0.2.0/24"] },
            })
        };
        let kind = id("GlobalNetworkSet", CALICO).kind();
        let kept = kind.document(object("crd.projectcalico.org/v1")).document;
        assert_eq!(kept["apiVersion"], "projectcalico.org/v3");
        let metadata = &kept["metadata"];
        assert_eq!(metadata["labels"], json!({ "role": "office" }));
        assert_eq!(metadata["annotations"], json!({ "why": "so", "own": "x" }));
        // Elsewhere it is an annotation like any other.
        assert!(kind.document(object("projectcalico.org/v3")).document["metadata"].get("labels").is_none());
    }

    #[test]
    fn a_page_is_read_item_by_item_and_what_is_no_object_spoils_only_itself() {
        let text = r#"{"kind":"PodList","metadata":{"resourceVersion":"9","continue":"c"},"items":[{"metadata":{"name":"a"}},7]}"#;
        let page = id("Pod", "").kind().page(text).unwrap();
        assert_eq!((page.version.as_str(), page.more.as_str(), page.items.len()), ("9", "c", 2));
        assert_eq!(
            (page.items[0].document["metadata"]["name"].as_str(), &page.items[1].document),
            (Some("a"), &Value::Null)
        );
        assert!(id("Pod", "").kind().page(r#"{"metadata":{},"items":null}"#).unwrap().items.is_empty());
        assert!(id("Pod", "").kind().page("<html>").is_err());
    }
}
