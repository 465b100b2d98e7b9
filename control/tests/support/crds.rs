//! CRDs for the kinds of policy: those of `deploy/crds`, and for the groups that are Kubernetes' own names and scopes alone.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use margay_policy_engine::decode::split_documents;
use serde_json::{Value, json};

use super::apiserver::ApiServer;

const ADMIN: &str = "policy.networking.k8s.io";
/// Kinds of other people's groups.
const THEIRS: [(&str, &str, &str, &str); 4] = [
    (ADMIN, "v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies"),
    (ADMIN, "v1alpha1", "AdminNetworkPolicy", "adminnetworkpolicies"),
    (ADMIN, "v1alpha1", "BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies"),
    ("operator.tigera.io", "v1", "Installation", "installations"),
];

/// Returns the definitions that margay installs.
fn ours() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    let mut paths: Vec<_> =
        fs::read_dir(&folder).expect("deploy/crds").map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    let documents = paths.iter().flat_map(|path| {
        let text = fs::read_to_string(path).expect("a definition");
        split_documents(&text, &path.display().to_string())
    });
    documents.map(|document| document.expect("a document").0).collect()
}

/// Returns a definition without a schema.
fn open(group: &str, version: &str, kind: &str, plural: &str) -> Value {
    let anything = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            "annotations": { "api-approved.kubernetes.io": "unapproved, for a test" },
        },
        "spec": {
            "group": group, "scope": "Cluster",
            "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List") },
            "versions": [{
                "name": version, "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": anything, "status": anything } } },
                "subresources": { "status": {} },
            }],
        },
    })
}

/// Installs one of the definitions that an older Calico has.
pub fn install_old_calico(api: &ApiServer) {
    install_stored(api, &["globalnetworkpolicies"]);
}

/// Installs definitions as an older Calico has them, by their plural, and waits until they are served.
pub fn install_stored(api: &ApiServer, plurals: &[&str]) {
    let group = "crd.projectcalico.org";
    let ours = ours();
    for plural in plurals {
        let kind = ours.iter().find(|crd| crd["spec"]["names"]["plural"] == *plural);
        let kind = kind.and_then(|crd| crd["spec"]["names"]["kind"].as_str()).expect("a kind");
        let crd = open(group, "v1", kind, plural);
        api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crd);
    }
    for plural in plurals {
        let path = format!("/apis/{group}/v1/{plural}");
        while api.request("GET", &path, "application/json", None).0 != 200 {
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Has the server not offer our own kinds any more; what was written of them stays where it is.
pub fn withdraw(api: &ApiServer) {
    for mut crd in ours() {
        let name = crd["metadata"]["name"].as_str().expect("a name").to_owned();
        crd["spec"]["versions"][0]["served"] = json!(false);
        api.patch(
            &format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"),
            &json!({ "spec": { "versions": crd["spec"]["versions"] } }),
        );
    }
    while api.get("/apis").to_string().contains("\"projectcalico.org\"") {
        thread::sleep(Duration::from_millis(50));
    }
}

/// Installs the CRDs of `groups` and waits until they are served.
pub fn install(api: &ApiServer, groups: &[&str]) {
    let theirs = THEIRS.iter().map(|(group, version, kind, plural)| open(group, version, kind, plural));
    let wanted: Vec<Value> = ours()
        .into_iter()
        .chain(theirs)
        .filter(|crd| groups.contains(&crd["spec"]["group"].as_str().expect("a group")))
        .collect();
    for crd in &wanted {
        api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd);
    }
    for crd in &wanted {
        let text = |pointer: &str| crd.pointer(pointer).and_then(Value::as_str).expect("text");
        let (group, version) = (text("/spec/group"), text("/spec/versions/0/name"));
        let path = format!("/apis/{group}/{version}/{}", text("/spec/names/plural"));
        let served = (0..200).any(|_| {
            let ok = api.request("GET", &path, "application/json", None).0 == 200;
            if !ok {
                thread::sleep(Duration::from_millis(50));
            }
            ok
        });
        assert!(served, "{path} is not served");
    }
}
