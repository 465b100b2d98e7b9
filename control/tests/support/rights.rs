//! The ServiceAccount that margay installs for its agents, with the rights of `deploy/margay.yaml` and no others.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::fs;
use std::path::{Path, PathBuf};

use margay_policy_engine::decode::split_documents;
use serde_json::{Value, json};

use super::apiserver::ApiServer;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Path of the agents' ClusterRole.
pub const CLUSTER_ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/margay";

/// Grants the agents' ServiceAccount what it is installed with; returns a kubeconfig with a token of it.
pub fn grant(api: &ApiServer) -> PathBuf {
    // No controller makes it here.
    let _ = api.request(
        "POST",
        "/api/v1/namespaces",
        "application/json",
        Some(&json!({ "metadata": { "name": "kube-system" } })),
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/margay.yaml");
    let text = fs::read_to_string(&path).expect("deploy/margay.yaml");
    let mut granted = 0;
    for document in split_documents(&text, "margay.yaml") {
        let object = document.expect("a document").0;
        let namespaced = "/namespaces/kube-system";
        let collection = match object["kind"].as_str().unwrap_or_default() {
            "ClusterRole" => format!("{RBAC}/clusterroles"),
            "ClusterRoleBinding" => format!("{RBAC}/clusterrolebindings"),
            "Role" => format!("{RBAC}{namespaced}/roles"),
            "RoleBinding" => format!("{RBAC}{namespaced}/rolebindings"),
            _ => continue,
        };
        api.create(&collection, &object);
        granted += 1;
    }
    assert!(granted >= 4, "deploy/margay.yaml has no roles and bindings");
    api.service_account("kube-system", "margay")
}

/// Takes a resource of the core group away from what the ClusterRole lets agents follow; returns the rules as they were.
pub fn take_away(api: &ApiServer, resource: &str) -> Value {
    let before = api.get(CLUSTER_ROLE)["rules"].clone();
    let mut rules = before.clone();
    for rule in rules.as_array_mut().expect("rules") {
        if let Some(resources) = rule["resources"].as_array_mut() {
            resources.retain(|name| name != resource);
        }
    }
    api.patch(CLUSTER_ROLE, &json!({ "rules": rules }));
    before
}

/// Grants what `deploy/encryption.yaml` does, in the namespace of keys, which it makes.
pub fn grant_encryption(api: &ApiServer) {
    api.create("/api/v1/namespaces", &json!({ "metadata": { "name": "calico-system" } }));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/encryption.yaml");
    let text = fs::read_to_string(&path).expect("deploy/encryption.yaml");
    for document in split_documents(&text, "encryption.yaml") {
        let object = document.expect("a document").0;
        let plural = if object["kind"] == "Role" { "roles" } else { "rolebindings" };
        api.create(&format!("{RBAC}/namespaces/calico-system/{plural}"), &object);
    }
}
