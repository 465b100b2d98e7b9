//! What addresses belong to, and what selectors see of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::effective_labels;
use crate::engine::LocalEndpoint;
use crate::model::{Labels, Model, NamedPort, Namespace, NamespacedName, Pod, Profile, ServiceAccount};
use crate::packet::EndpointId;

/// Returns the profiles of a pod, in order (policy model 7.3).
pub(crate) fn profiles_of(pod: &Pod) -> Vec<String> {
    let mut names = vec![format!("kns.{}", pod.key.namespace)];
    names.extend(pod.service_account.iter().map(|account| format!("ksa.{}.{account}", pod.key.namespace)));
    names
}

/// Returns `own` with what the profiles contribute; own labels win, then earlier profiles (policy model 1.4).
pub(crate) fn labels_with_profiles(model: &Model, own: &Labels, profiles: &[String]) -> Labels {
    let mut labels = own.clone();
    for profile in profiles {
        let mut contributed = Labels::new();
        match parent_of(model, profile) {
            Some(Parent::Namespace(namespace)) => {
                contributed.extend(
                    namespace.labels.iter().map(|(key, value)| (format!("pcns.{key}"), value.clone())),
                );
                contributed.insert("pcns.projectcalico.org/name".to_owned(), namespace.name.clone());
            }
            Some(Parent::ServiceAccount(account)) => {
                contributed
                    .extend(account.labels.iter().map(|(key, value)| (format!("pcsa.{key}"), value.clone())));
                contributed.insert("pcsa.projectcalico.org/name".to_owned(), account.key.name.clone());
            }
            Some(Parent::Profile(profile)) => contributed.clone_from(&profile.labels),
            None => {}
        }
        for (key, value) in contributed {
            labels.entry(key).or_insert(value);
        }
    }
    labels
}

/// What a profile stands for.
pub(super) enum Parent<'a> {
    /// `kns.<name>` (policy model 7.1).
    Namespace(&'a Namespace),
    /// `ksa.<namespace>.<name>` (7.2).
    ServiceAccount(&'a ServiceAccount),
    /// One that was written.
    Profile(&'a Profile),
}

/// Returns what the profile of that name stands for; `None`: it does not exist.
pub(super) fn parent_of<'a>(model: &'a Model, profile: &str) -> Option<Parent<'a>> {
    let namespace = profile.strip_prefix("kns.").and_then(|name| model.namespaces.get(name));
    let account = || {
        // Names may hold dots, so every dot may be the one between namespace and name.
        let text = profile.strip_prefix("ksa.")?;
        let keys = text.match_indices('.').map(|(dot, _)| NamespacedName {
            namespace: text[..dot].to_owned(),
            name: text[dot + 1..].to_owned(),
        });
        keys.into_iter().find_map(|key| model.service_accounts.get(&key))
    };
    let written = || model.profiles.get(profile).map(|profile| Parent::Profile(profile));
    namespace
        .map(|namespace| Parent::Namespace(namespace))
        .or_else(|| account().map(|account| Parent::ServiceAccount(account)))
        .or_else(written)
}

/// Something with labels that an address belongs to.
pub(crate) struct Labelled<'a> {
    /// Such as `pod a/client`.
    pub(super) name: String,
    /// What selectors see.
    pub(super) labels: Labels,
    /// Named ports; network sets have none.
    pub(super) ports: &'a [NamedPort],
}

/// The Model, and the endpoints that the CNI plug-in made.
#[derive(Clone, Copy)]
pub(crate) struct World<'a> {
    /// Every object.
    pub(crate) model: &'a Model,
    /// Local pods; their addresses count more than what a status says (PM-D24).
    pub(crate) locals: &'a BTreeMap<EndpointId, LocalEndpoint>,
}

impl<'a> World<'a> {
    /// Returns the pod behind a local endpoint, when it is the same pod and has a network of its own.
    pub(crate) fn pod_of(self, local: &LocalEndpoint) -> Option<&'a Pod> {
        let pod = self.model.pods.get(&local.pod)?;
        if pod.host_network || pod.finished {
            return None;
        }
        if !local.uid.is_empty() && !pod.uid.is_empty() && local.uid != pod.uid {
            return None;
        }
        Some(pod)
    }

    /// Returns the pod with that address. PM-D24: the CNI result first, else the status of the pod that started last.
    pub(super) fn pod_at(self, address: IpAddr) -> Option<&'a Pod> {
        if let Some(local) = self.locals.values().rev().find(|local| local.addresses.contains(&address)) {
            return self.pod_of(local);
        }
        if self.model.nodes.values().any(|node| node.addresses.contains(&address)) {
            return None;
        }
        // Annotations count where they are trusted and the status says nothing.
        let trusted = self.model.settings_of_rules().trust_pod_ip_annotations;
        let says = |pod: &'a Pod| {
            if trusted && pod.addresses.is_empty() { &pod.annotated_addresses } else { &pod.addresses }
        };
        let mut best: Option<&Pod> = None;
        for pod in self.model.pods.values() {
            let is_local = self.locals.values().any(|local| local.pod == pod.key);
            let Some(node_name) = &pod.node else { continue };
            if is_local || pod.host_network || pod.finished || !says(pod).contains(&address) {
                continue;
            }
            if let Some(node) = self.model.nodes.get(node_name) {
                let cidrs: Vec<&IpNet> =
                    node.pod_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == address.is_ipv4()).collect();
                if !cidrs.is_empty() && !cidrs.iter().any(|cidr| cidr.contains(&address)) {
                    continue;
                }
            }
            let later = best.is_none_or(|best| {
                pod.started > best.started || (pod.started == best.started && pod.key > best.key)
            });
            if later {
                best = Some(pod);
            }
        }
        best
    }

    /// Returns everything with labels that the address belongs to.
    pub(super) fn objects_at(self, address: IpAddr) -> Vec<Labelled<'a>> {
        let mut objects = Vec::new();
        if let Some(pod) = self.pod_at(address) {
            objects.push(Labelled {
                name: format!("pod {}/{}", pod.key.namespace, pod.key.name),
                labels: effective_labels(self.model, pod),
                ports: &pod.ports,
            });
        }
        for endpoint in self.model.host_endpoints.values() {
            if endpoint.expected_ips.contains(&address) {
                objects.push(Labelled {
                    name: format!("host endpoint {}", endpoint.name),
                    labels: labels_with_profiles(self.model, &endpoint.labels, &endpoint.profiles),
                    ports: &endpoint.ports,
                });
            }
        }
        for set in self.model.network_sets.values() {
            if !set.nets.iter().any(|net| net.contains(&address)) {
                continue;
            }
            let (name, profiles) = match &set.key.namespace {
                Some(namespace) => {
                    (format!("network set {namespace}/{}", set.key.name), vec![format!("kns.{namespace}")])
                }
                None => (format!("network set {}", set.key.name), Vec::new()),
            };
            let labels = labels_with_profiles(self.model, &set.labels, &profiles);
            objects.push(Labelled { name, labels, ports: &[] });
        }
        objects
    }
}
