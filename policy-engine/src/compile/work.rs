//! What changed since the last publication, and what each change has a say in.

use std::collections::BTreeSet;

use crate::model::{Model, NamespacedName, NetworkSetKey, ObjectKey, PolicyKey};
use crate::packet::EndpointId;
use crate::resolve::labels::{NAMESPACE_PROFILE, SERVICE_ACCOUNT_PROFILE};

/// What changed since the last publication. Everything is touched before the first one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    /// Nothing was published yet.
    pub(crate) everything: bool,
    /// Objects that appeared, changed or went.
    pub(crate) objects: BTreeSet<ObjectKey>,
    /// Local endpoints that did.
    pub(crate) locals: BTreeSet<EndpointId>,
    /// Some interface of the host did.
    pub(crate) interfaces: bool,
}

impl Touched {
    /// Whether there is anything to do.
    pub(crate) fn is_empty(&self) -> bool {
        !self.everything && !self.interfaces && self.objects.is_empty() && self.locals.is_empty()
    }
}

/// What was touched, sorted by what it has a say in.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) pods: BTreeSet<NamespacedName>,
    /// Pods of a namespace that inherit other labels now: all, or those of a service account.
    pub(crate) inheriting: BTreeSet<(String, Option<String>)>,
    pub(crate) network_sets: BTreeSet<NetworkSetKey>,
    pub(crate) slices: BTreeSet<NamespacedName>,
    pub(crate) nodes: BTreeSet<String>,
    pub(crate) policies: BTreeSet<PolicyKey>,
    pub(crate) tiers: bool,
    /// Profiles that appeared, changed or went.
    pub(crate) profiles: BTreeSet<String>,
    /// Host endpoints, or their settings.
    pub(crate) hosts: bool,
    /// What host endpoints inherit labels from.
    pub(crate) inherited: bool,
}

impl Work {
    /// Sorts what was touched.
    pub(crate) fn sort(model: &Model, touched: &Touched) -> Self {
        let mut work = Self::default();
        if touched.everything {
            work.network_sets.extend(model.network_sets.keys().cloned());
            work.slices.extend(model.endpoint_slices.keys().cloned());
            work.nodes.extend(model.nodes.keys().cloned());
            (work.hosts, work.inherited) = (true, true);
            return work;
        }
        for key in &touched.objects {
            match key {
                ObjectKey::Pod(key) => work.pods.extend([key.clone()]),
                ObjectKey::Namespace(name) => {
                    work.inheriting.insert((name.clone(), None));
                    work.profiles.insert(format!("{NAMESPACE_PROFILE}{name}"));
                    let sets = model.network_sets.keys();
                    work.network_sets
                        .extend(sets.filter(|set| set.namespace.as_ref() == Some(name)).cloned());
                    (work.hosts, work.inherited) = (true, true);
                }
                ObjectKey::ServiceAccount(key) => {
                    work.inheriting.insert((key.namespace.clone(), Some(key.name.clone())));
                    work.profiles.insert(format!("{SERVICE_ACCOUNT_PROFILE}{}.{}", key.namespace, key.name));
                    (work.hosts, work.inherited) = (true, true);
                }
                ObjectKey::Profile(name) => {
                    work.profiles.insert(name.clone());
                    (work.hosts, work.inherited) = (true, true);
                }
                ObjectKey::Node(name) => work.nodes.extend([name.clone()]),
                ObjectKey::Tier(_) => work.tiers = true,
                ObjectKey::Policy(key) => work.policies.extend([key.clone()]),
                ObjectKey::NetworkSet(key) => work.network_sets.extend([key.clone()]),
                ObjectKey::EndpointSlice(key) => work.slices.extend([key.clone()]),
                ObjectKey::HostEndpoint(_) | ObjectKey::FelixConfiguration(_) => work.hosts = true,
                ObjectKey::KubeControllersConfiguration(_)
                | ObjectKey::CalicoNode(_)
                | ObjectKey::IpPool(_)
                | ObjectKey::Installation(_) => {}
            }
        }
        work
    }
}
