//! The tables of policy model 2 to 7, by section, and what must hold for every input.

mod cluster_policies;
mod configuration;
mod documents;
mod fields;
mod kubernetes;
mod scope;
mod validation;

use super::*;
use crate::model::{Labels, Pod, Policy, PortMatch, Unenforced};

fn one(text: &str) -> Decoded {
    let mut all = decode(text, "test.yaml");
    assert_eq!(all.len(), 1, "{text}\n{all:?}");
    all.remove(0)
}

fn errors(text: &str) -> Vec<FieldError> {
    match one(text) {
        Decoded::Valid { .. } => Vec::new(),
        Decoded::Invalid { errors, .. } | Decoded::Unreadable { errors, .. } => errors,
        Decoded::Ignored { kind, .. } => panic!("{kind} is passed over: {text}"),
    }
}

fn check(text: &str, accept: bool) {
    let errors = errors(text);
    assert_eq!(errors.is_empty(), accept, "{text}\n{errors:#?}");
}

fn policy(text: &str) -> std::sync::Arc<Policy> {
    match one(text) {
        Decoded::Valid { object: Object::Policy(policy), .. } => policy,
        other => panic!("{text}\n{other:#?}"),
    }
}

fn pod(text: &str) -> std::sync::Arc<Pod> {
    match one(text) {
        Decoded::Valid { object: Object::Pod(pod), .. } => pod,
        other => panic!("{text}\n{other:#?}"),
    }
}

fn calico(kind: &str, name: &str, spec: &str) -> String {
    let meta = if kind.contains("Global")
        || kind.contains("Configuration")
        || matches!(kind, "Tier" | "HostEndpoint" | "Profile" | "IPPool" | "Node")
    {
        ""
    } else {
        ", namespace: a"
    };
    format!(
        "apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {name}{meta}}}\nspec: {spec}\n"
    )
}

fn gnp(spec: &str) -> String {
    calico("GlobalNetworkPolicy", "p", spec)
}

fn np(spec: &str) -> String {
    calico("NetworkPolicy", "p", spec)
}

fn knp(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {spec}\n"
    )
}

fn selects(policy: &Policy, labels: &[(&str, &str)]) -> bool {
    let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    policy.selector.as_ref().is_some_and(|selector| selector.matches(&labels))
}

fn pod_text(meta: &str, spec: &str, status: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: a, {meta}}}\nspec: {spec}\nstatus: {status}\n"
    )
}

fn range(first: u16, last: u16) -> PortMatch {
    PortMatch::Range { first, last }
}
