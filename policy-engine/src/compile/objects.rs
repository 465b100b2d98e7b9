//! What every labelled object contributes to the sets, remembered between publications.
//!
//! An object is looked at again when it or something that it inherits labels from changed; a set is asked about every object once,
//! when it appears. Both are the common small change: one pod, or one policy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::sets::{Membership, SetId, SetKey, Sets, set_of, triple};
use crate::model::{Labels, Model, NamedPort, NamespacedName, ObjectKey, Pod};
use crate::resolve::labels;
use crate::selector::{Restriction, Selector};

/// An object as the selectors see it.
#[derive(Debug)]
struct Known {
    witness: Witness,
    labels: Arc<Labels>,
    /// `None` until every set has been asked.
    membership: Option<Membership>,
}

/// The inputs of an object's labels and ports; kept alive, so that equal addresses mean equal values.
#[derive(Debug)]
struct Witness(Vec<Arc<dyn std::any::Any + Send + Sync>>);

impl PartialEq for Witness {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(|(a, b)| std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b)))
    }
}

/// Contributions of all labelled objects.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    known: BTreeMap<ObjectKey, Known>,
    /// Those that no set has been asked about yet.
    fresh: BTreeSet<ObjectKey>,
    /// The sets that every other entry of `known` has been asked about.
    asked: BTreeSet<SetId>,
}

impl Objects {
    /// Brings the labels of a few pods up to date with the Model; nothing else may have changed.
    pub(crate) fn follow_pods<'a>(&mut self, model: &Model, pods: impl Iterator<Item = &'a NamespacedName>) {
        for key in pods {
            match model.pods.get(key) {
                Some(pod) => self.see_pod(model, pod),
                None => drop(self.known.remove(&ObjectKey::Pod(key.clone()))),
            }
        }
    }

    fn see_pod(&mut self, model: &Model, pod: &Arc<Pod>) {
        let mut inputs: Vec<Arc<dyn std::any::Any + Send + Sync>> = vec![pod.clone() as _];
        inputs.extend(model.namespaces.get(&pod.key.namespace).map(|o| o.clone() as _));
        if let Some(name) = &pod.service_account {
            let account = NamespacedName { namespace: pod.key.namespace.clone(), name: name.clone() };
            inputs.extend(model.service_accounts.get(&account).map(|o| o.clone() as _));
        }
        self.see(&ObjectKey::Pod(pod.key.clone()), Witness(inputs), || labels::of_pod(model, pod));
    }

    /// Brings all labels up to date with the Model.
    pub(crate) fn follow(&mut self, model: &Model) {
        let mut present: BTreeSet<ObjectKey> = BTreeSet::new();
        for pod in model.pods.values() {
            self.see_pod(model, pod);
            present.insert(ObjectKey::Pod(pod.key.clone()));
        }
        for endpoint in model.host_endpoints.values() {
            let key = ObjectKey::HostEndpoint(endpoint.name.clone());
            let mut inputs: Vec<Arc<dyn std::any::Any + Send + Sync>> = vec![endpoint.clone() as _];
            for profile in &endpoint.profiles {
                inputs.extend(model.profiles.get(profile).map(|o| o.clone() as _));
                let namespace = profile
                    .strip_prefix(labels::NAMESPACE_PROFILE)
                    .and_then(|name| model.namespaces.get(name));
                inputs.extend(namespace.map(|o| o.clone() as _));
                let account =
                    labels::service_account_of(profile).and_then(|name| model.service_accounts.get(&name));
                inputs.extend(account.map(|o| o.clone() as _));
            }
            self.see(&key, Witness(inputs), || labels::of_host_endpoint(model, endpoint));
            present.insert(key);
        }
        for set in model.network_sets.values() {
            let key = ObjectKey::NetworkSet(set.key.clone());
            let mut inputs: Vec<Arc<dyn std::any::Any + Send + Sync>> = vec![set.clone() as _];
            let namespace = set.key.namespace.as_ref().and_then(|name| model.namespaces.get(name));
            inputs.extend(namespace.map(|o| o.clone() as _));
            self.see(&key, Witness(inputs), || labels::of_network_set(model, set));
            present.insert(key);
        }
        self.known.retain(|key, _| present.contains(key));
    }

    fn see(&mut self, key: &ObjectKey, witness: Witness, labels: impl FnOnce() -> Labels) {
        if self.known.get(key).is_none_or(|known| known.witness != witness) {
            self.known.insert(key.clone(), Known { witness, labels: Arc::new(labels()), membership: None });
            self.fresh.insert(key.clone());
        }
    }

    /// Returns the effective labels of a pod.
    pub(crate) fn pod_labels(&self, pod: &Pod) -> Option<Arc<Labels>> {
        self.known.get(&ObjectKey::Pod(pod.key.clone())).map(|known| Arc::clone(&known.labels))
    }

    /// Asks every object about the sets that it has not been asked about, and forgets sets that are gone. Returns whether the sets are
    /// other ones than last time.
    pub(crate) fn ask(&mut self, model: &Model, sets: &Sets) -> bool {
        let wanted: BTreeSet<SetId> = sets.iter().map(|(_, set, _)| set).collect();
        let changed = self.asked != wanted;
        if changed {
            let added = sets.iter().filter(|(_, set, _)| !self.asked.contains(set));
            let added = Index::for_objects(self.known.len(), added);
            for (key, known) in &mut self.known {
                let Some(membership) = &mut known.membership else { continue };
                membership.sets.retain(|set| wanted.contains(set));
                membership.triples.retain(|triple| wanted.contains(&set_of(*triple)));
                added.ask(&known.labels, ports_of(model, key), membership);
            }
            self.asked = wanted;
        }
        let fresh = std::mem::take(&mut self.fresh);
        if fresh.is_empty() {
            return changed;
        }
        let all = Index::for_objects(fresh.len(), sets.iter());
        for key in fresh {
            if let Some(known) = self.known.get_mut(&key) {
                let membership = known.membership.insert(Membership::default());
                all.ask(&known.labels, ports_of(model, &key), membership);
            }
        }
        changed
    }

    /// Returns what a pod contributes to its addresses; nothing when no set has it.
    pub(crate) fn of_pod(&self, pod: &NamespacedName) -> Option<&Membership> {
        let known = self.known.get(&ObjectKey::Pod(pod.clone()))?;
        known.membership.as_ref().filter(|membership| !membership.sets.is_empty())
    }

    /// Returns what every prefix in the world means to the sets, pods aside.
    pub(crate) fn prefixes(&self, model: &Model, sets: &Sets) -> BTreeMap<IpNet, Membership> {
        let mut prefixes: BTreeMap<IpNet, Membership> = BTreeMap::new();
        let mut add = |net: IpNet, membership: &Membership| {
            if !membership.sets.is_empty() {
                prefixes.entry(net.trunc()).or_default().merge(membership);
            }
        };
        let contribution = |key: ObjectKey| self.known.get(&key).and_then(|known| known.membership.as_ref());
        for endpoint in model.host_endpoints.values() {
            if let Some(membership) = contribution(ObjectKey::HostEndpoint(endpoint.name.clone())) {
                endpoint.expected_ips.iter().for_each(|address| add(IpNet::from(*address), membership));
            }
        }
        for set in model.network_sets.values() {
            if let Some(membership) = contribution(ObjectKey::NetworkSet(set.key.clone())) {
                set.nets.iter().for_each(|net| add(*net, membership));
            }
        }
        for (key, set, _) in sets.iter() {
            if let SetKey::Nets(nets) = key {
                let membership = Membership { sets: vec![set], triples: Vec::new() };
                nets.iter().for_each(|net| add(*net, &membership));
            }
        }
        let mut services: BTreeMap<&NamespacedName, Vec<(SetId, bool)>> = BTreeMap::new();
        for (key, set, _) in sets.iter() {
            match key {
                SetKey::ServiceAddresses(service) => services.entry(service).or_default().push((set, false)),
                SetKey::Service(service) => services.entry(service).or_default().push((set, true)),
                SetKey::Selector(_) | SetKey::Nets(_) | SetKey::NamedPort(..) => {}
            }
        }
        if services.is_empty() {
            return prefixes;
        }
        for slice in model.endpoint_slices.values() {
            let service =
                NamespacedName { namespace: slice.key.namespace.clone(), name: slice.service.clone() };
            for (set, with_ports) in services.get(&service).into_iter().flatten() {
                let triples = if *with_ports { slice.ports.as_slice() } else { &[] };
                let triples: Vec<u64> =
                    triples.iter().map(|(protocol, port)| triple(*set, *protocol, *port)).collect();
                if *with_ports && triples.is_empty() {
                    continue;
                }
                let membership = Membership { sets: vec![*set], triples };
                slice.addresses.iter().for_each(|address| add(IpNet::from(*address), &membership));
            }
        }
        prefixes
    }
}

fn ports_of<'a>(model: &'a Model, key: &ObjectKey) -> &'a [NamedPort] {
    match key {
        ObjectKey::Pod(key) => model.pods.get(key).map_or(&[], |pod| &pod.ports),
        ObjectKey::HostEndpoint(name) => {
            model.host_endpoints.get(name).map_or(&[], |endpoint| &endpoint.ports)
        }
        _ => &[],
    }
}

/// Sets that select by label, filed under one label that they need (policy model 5.8), so that an object meets few of them.
#[derive(Debug, Default)]
struct Index<'a> {
    entries: Vec<(&'a SetKey, SetId, Option<&'a Selector>)>,
    by_value: BTreeMap<String, BTreeMap<String, Vec<usize>>>,
    by_label: BTreeMap<String, Vec<usize>>,
    unrestricted: Vec<usize>,
}

impl<'a> Index<'a> {
    /// Filing the sets is worth it for more than a few objects only.
    fn for_objects(
        count: usize,
        sets: impl Iterator<Item = (&'a SetKey, SetId, Option<&'a Selector>)>,
    ) -> Self {
        let mut index = Self::default();
        for entry @ (key, _, selector) in sets {
            if !matches!(key, SetKey::Selector(_) | SetKey::NamedPort(..)) {
                continue;
            }
            let number = index.entries.len();
            index.entries.push(entry);
            if count > 4 {
                index.file(number, selector);
            } else {
                index.unrestricted.push(number);
            }
        }
        index
    }

    fn file(&mut self, number: usize, selector: Option<&Selector>) {
        let restrictions = selector.map(Selector::restrictions).unwrap_or_default();
        // Exact values are the most selective; the namespace is the least selective of those, being shared by many selectors.
        let shared = "projectcalico.org/namespace";
        let values = restrictions.iter().filter_map(|(label, restriction)| match restriction {
            Restriction::OneOf(values) => Some((label, values)),
            Restriction::Present | Restriction::Absent => None,
        });
        let orchestrator = "projectcalico.org/orchestrator";
        if let Some((label, values)) =
            values.min_by_key(|(label, _)| (*label == orchestrator, *label == shared))
        {
            let by_value = self.by_value.entry(label.clone()).or_default();
            values.iter().for_each(|value| by_value.entry(value.clone()).or_default().push(number));
            return;
        }
        match restrictions.iter().find(|(_, restriction)| matches!(restriction, Restriction::Present)) {
            Some((label, _)) => self.by_label.entry(label.clone()).or_default().push(number),
            None => self.unrestricted.push(number),
        }
    }

    fn ask(&self, labels: &Labels, ports: &[NamedPort], membership: &mut Membership) {
        if self.entries.is_empty() {
            return;
        }
        let filed = labels.iter().flat_map(|(label, value)| {
            let by_value = self.by_value.get(label).and_then(|values| values.get(value));
            by_value.into_iter().chain(self.by_label.get(label)).flatten()
        });
        for number in filed.chain(&self.unrestricted) {
            let (key, set, selector) = self.entries[*number];
            let selected = || selector.is_none_or(|selector| selector.matches(labels));
            Sets::contribution(key, set, selected, ports, membership);
        }
        membership.normalise();
    }
}
