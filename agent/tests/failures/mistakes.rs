//! Manifests with mistakes.

use std::thread;
use std::time::{Duration, Instant};

use crate::rig::Lab;

/// Each would open a closed pod if somebody made the best of it: which file, what it becomes, and what must be said about it.
pub const MISTAKES: [(&str, &str, &str, &str); 8] = [
    (
        "bad YAML",
        "closed.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: shop\nspec: [",
        "not YAML",
    ),
    (
        "bad selector",
        "guard.yaml",
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: guard}
spec: {selector: app == , types: [Ingress], ingress: [{action: Allow}]}",
        "selector",
    ),
    (
        "bad label selector",
        "closed.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: shop}
spec: {podSelector: {matchExpressions: [{key: app, operator: Inn, values: [x]}]}, policyTypes: [Ingress], ingress: [{}]}",
        "operator",
    ),
    (
        "misspelt peer",
        "closed.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelectors: {matchLabels: {app: other}}}]}]}",
        "from",
    ),
    (
        "wrong type",
        "guard.yaml",
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: guard}
spec: {selector: 17, types: Ingress, ingress: [{action: Allow}]}",
        "spec.",
    ),
    (
        "host bits in a CIDR",
        "guard.yaml",
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: guard}
spec: {selector: app == 'guarded', types: [Ingress], ingress: [{action: Allow, source: {nets: [10.244.1.7/8, '::1/0']}}]}",
        "nets",
    ),
    (
        "port out of range",
        "closed.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: shop}
spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress], ingress: [{ports: [{port: 70000}]}]}",
        "port",
    ),
    (
        "port out of range in a rule of Calico's",
        "guard.yaml",
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: guard}
spec:
  selector: app == 'guarded'
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, destination: {ports: ['1:70000']}}
  - {action: Allow}",
        "port",
    ),
];

/// Waits until both nodes report a problem of `file` that speaks of `word`, or none at all where `word` is `None`.
pub fn reported(lab: &Lab, what: &str, file: &str, word: Option<&str>) {
    let start = Instant::now();
    for node in ["node1", "node2"] {
        loop {
            let problems = lab.report(node)["problems"].clone();
            let list = problems.as_array().cloned().unwrap_or_default();
            let found = list.iter().find(|p| p["file"].as_str().is_some_and(|f| f.ends_with(file)));
            match (word, found) {
                (Some(word), Some(problem)) if problem.to_string().contains(word) => {
                    let text = |field: &str| problem[field].as_str().unwrap_or_default().to_owned();
                    assert!(!text("reason").is_empty(), "{what}: {problem}");
                    // A rule of Kubernetes' with an impossible port is left out, and the rest of its policy is in force (policy model 7.5).
                    assert!(
                        text("severity") != "warning" || what == "port out of range",
                        "{what}: {problem}"
                    );
                    if node == "node1" {
                        println!("{what}: {}:{} {} {}", file, problem["line"], text("field"), text("reason"));
                    }
                    break;
                }
                (None, None) if problems.is_array() => break,
                _ => {}
            }
            assert!(start.elapsed() < Duration::from_secs(10), "{what}: {node} reports {problems:#}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}
