//! CRDs for the kinds of policy: names and scopes, with no schema beyond that.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::apiserver::ApiServer;

const KINDS: [(&str, &str, &str, &str, bool); 17] = [
    ("projectcalico.org", "v3", "NetworkPolicy", "networkpolicies", true),
    ("projectcalico.org", "v3", "GlobalNetworkPolicy", "globalnetworkpolicies", false),
    ("projectcalico.org", "v3", "StagedNetworkPolicy", "stagednetworkpolicies", true),
    ("projectcalico.org", "v3", "StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies", false),
    ("projectcalico.org", "v3", "StagedKubernetesNetworkPolicy", "stagedkubernetesnetworkpolicies", true),
    ("projectcalico.org", "v3", "Tier", "tiers", false),
    ("projectcalico.org", "v3", "NetworkSet", "networksets", true),
    ("projectcalico.org", "v3", "GlobalNetworkSet", "globalnetworksets", false),
    ("projectcalico.org", "v3", "HostEndpoint", "hostendpoints", false),
    ("projectcalico.org", "v3", "Profile", "profiles", false),
    ("projectcalico.org", "v3", "FelixConfiguration", "felixconfigurations", false),
    ("projectcalico.org", "v3", "KubeControllersConfiguration", "kubecontrollersconfigurations", false),
    ("projectcalico.org", "v3", "IPPool", "ippools", false),
    ("projectcalico.org", "v3", "Node", "nodes", false),
    ("policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies", false),
    ("policy.networking.k8s.io", "v1alpha1", "AdminNetworkPolicy", "adminnetworkpolicies", false),
    (
        "policy.networking.k8s.io",
        "v1alpha1",
        "BaselineAdminNetworkPolicy",
        "baselineadminnetworkpolicies",
        false,
    ),
];

/// Installs the CRDs of `groups` and waits until they are served.
pub fn install(api: &ApiServer, groups: &[&str]) {
    let wanted: Vec<_> = KINDS.iter().filter(|kind| groups.contains(&kind.0)).collect();
    for (group, version, kind, plural, namespaced) in &wanted {
        let open = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        let crd: Value = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{plural}.{group}"),
                "annotations": { "api-approved.kubernetes.io": "unapproved, for a test" },
            },
            "spec": {
                "group": group, "scope": if *namespaced { "Namespaced" } else { "Cluster" },
                "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List") },
                "versions": [{
                    "name": version, "served": true, "storage": true,
                    "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": open, "status": open } } },
                    "subresources": { "status": {} },
                }],
            },
        });
        api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crd);
    }
    for (group, version, _, plural, _) in &wanted {
        let path = format!("/apis/{group}/{version}/{plural}");
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
