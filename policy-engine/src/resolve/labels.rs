//! Effective labels: an object's own, then what its profiles add where a key is still free (policy model 1.4).

use crate::model::{HostEndpoint, Labels, Model, NamespacedName, NetworkSet, Pod};

/// Prefix of the profile that a Namespace becomes (policy model 7.1).
pub(crate) const NAMESPACE_PROFILE: &str = "kns.";
/// Prefix of the profile that a ServiceAccount becomes (policy model 7.2).
pub(crate) const SERVICE_ACCOUNT_PROFILE: &str = "ksa.";
/// The profile that always exists and allows everything (policy model 2.7).
pub(crate) const ALLOW_PROFILE: &str = "projectcalico-default-allow";

/// Returns the profile names of a pod, in order (policy model 7.3).
pub(crate) fn pod_profiles(pod: &Pod) -> Vec<String> {
    let mut profiles = vec![format!("{NAMESPACE_PROFILE}{}", pod.key.namespace)];
    if let Some(account) = &pod.service_account {
        profiles.push(format!("{SERVICE_ACCOUNT_PROFILE}{}.{account}", pod.key.namespace));
    }
    profiles
}

/// Returns what policy sees of a pod.
pub(crate) fn of_pod(model: &Model, pod: &Pod) -> Labels {
    inherit(model, &pod.labels, &pod_profiles(pod))
}

/// Returns what policy sees of a host endpoint: only profiles that it lists count.
pub(crate) fn of_host_endpoint(model: &Model, endpoint: &HostEndpoint) -> Labels {
    inherit(model, &endpoint.labels, &endpoint.profiles)
}

/// Returns what policy sees of a network set: the namespaced kind inherits the labels of its namespace.
pub(crate) fn of_network_set(model: &Model, set: &NetworkSet) -> Labels {
    match &set.key.namespace {
        Some(namespace) => inherit(model, &set.labels, &[format!("{NAMESPACE_PROFILE}{namespace}")]),
        None => set.labels.clone(),
    }
}

fn inherit(model: &Model, own: &Labels, profiles: &[String]) -> Labels {
    let mut effective = own.clone();
    for profile in profiles {
        for_each_profile_label(model, profile, |key, value| {
            effective.entry(key).or_insert_with(|| value.to_owned());
        });
    }
    effective
}

fn for_each_profile_label(model: &Model, profile: &str, mut add: impl FnMut(String, &str)) {
    if let Some(name) = profile.strip_prefix(NAMESPACE_PROFILE) {
        if let Some(namespace) = model.namespaces.get(name) {
            add("pcns.projectcalico.org/name".to_owned(), name);
            for (key, value) in &namespace.labels {
                add(format!("pcns.{key}"), value);
            }
        }
    } else if let Some(account) = service_account_of(profile) {
        if let Some(account) = model.service_accounts.get(&account) {
            add("pcsa.projectcalico.org/name".to_owned(), &account.key.name);
            for (key, value) in &account.labels {
                add(format!("pcsa.{key}"), value);
            }
        }
    } else if let Some(profile) = model.profiles.get(profile) {
        for (key, value) in &profile.labels {
            add(key.clone(), value);
        }
    }
}

/// Reads `ksa.<namespace>.<name>`; a namespace has no dots, a service account's name may.
pub(crate) fn service_account_of(profile: &str) -> Option<NamespacedName> {
    let (namespace, name) = profile.strip_prefix(SERVICE_ACCOUNT_PROFILE)?.split_once('.')?;
    Some(NamespacedName { namespace: namespace.to_owned(), name: name.to_owned() })
}
