//! Owns the Model, follows changes, publishes snapshots.
//!
//! [`Engine::apply`] only edits the Model; [`Engine::publish`] compiles what the Model is now. How it came to be what it is never shows:
//! events in another order, split, or repeated give the same decisions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashSet;

use crate::compile::compiler::Compiler;
use crate::compile::work::Touched;
use crate::model::{
    HostEndpoint, Labels, Model, NamespacedName, Object, ObjectKey, Pod, Policy, PolicyKey,
    automatic_host_endpoints,
};
use crate::packet::{EndpointId, HostId};
use crate::resolve::{owners, restrict};
use crate::snapshot::Snapshot;

/// One event. The order of events never shows in the result (conventions: "output depends on current state").
#[derive(Clone, Debug)]
pub enum Change {
    /// An object appeared or changed.
    Upsert(Object),
    /// An object is gone.
    Delete(ObjectKey),
    /// A pod got its interface on this node.
    Endpoint(LocalEndpoint),
    /// And lost it.
    EndpointGone(EndpointId),
    /// An interface of a host is up, or changed.
    Interface(HostInterface),
    /// And gone.
    InterfaceGone(HostId),
}

/// A workload endpoint that the CNI plug-in made on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Its name in the dataplane.
    pub id: EndpointId,
    /// The pod.
    pub pod: NamespacedName,
    /// `K8S_POD_UID` of the CNI call; empty when the runtime gave none. A Pod object with another uid is another pod (PM-D28).
    pub uid: String,
    /// Addresses of the CNI result: the only ones that count for a local pod (PM-D24).
    pub addresses: Vec<IpAddr>,
}

/// An interface of a host, to which host endpoints may apply (policy model 11.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInterface {
    /// Its name for the snapshot.
    pub id: HostId,
    /// The node.
    pub node: String,
    /// Interface name, such as `eth0`. For the host side of all pods' interfaces of the node together: empty.
    pub name: String,
    /// Addresses assigned to it.
    pub addresses: Vec<IpAddr>,
    /// The boundary between host and pods: only a `*` host endpoint applies, and only preDNAT and forward (policy model 11.7).
    pub is_pod_side: bool,
}

/// Owns the Model and compiles it.
#[derive(Debug)]
pub struct Engine {
    model: Model,
    locals: BTreeMap<EndpointId, LocalEndpoint>,
    interfaces: BTreeMap<HostId, HostInterface>,
    compiler: Compiler,
    touched: Touched,
    published: Arc<Snapshot>,
    label_sets: HashSet<Arc<Labels>, foldhash::fast::FixedState>,
    /// So many of them are worth looking for those that no pod has any more.
    label_sets_limit: usize,
    /// Host endpoints as they were written; those in the Model are the ones in force (policy model 7.8).
    written: BTreeMap<String, Arc<HostEndpoint>>,
    /// Policies as they were written, where `restrictNamespaceSelectors` makes a difference to them.
    unrestricted: BTreeMap<PolicyKey, Arc<Policy>>,
    /// Whether it is set.
    restricts: bool,
    /// Automatic host endpoints may be others.
    hosts_touched: bool,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// Returns an engine with an empty Model and nothing published.
    pub fn new() -> Self {
        Self::with_model(Model::with_builtins())
    }

    /// Returns an empty engine that reads what it is told as the node `name` has to (policy model 27).
    pub fn on_node(name: &str) -> Self {
        Self::with_model(Model { here: name.to_owned(), ..Model::with_builtins() })
    }

    /// Returns an engine that starts from `model`, with nothing published and no local endpoint.
    pub fn with_model(model: Model) -> Self {
        let mut engine = Self {
            written: model.host_endpoints.clone(),
            model,
            locals: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            compiler: Compiler::default(),
            touched: Touched { everything: true, ..Touched::default() },
            published: Arc::default(),
            label_sets: HashSet::default(),
            label_sets_limit: 1_024,
            unrestricted: BTreeMap::new(),
            restricts: false,
            hosts_touched: true,
        };
        let policies: Vec<Arc<Policy>> = engine.model.policies.values().cloned().collect();
        policies.into_iter().for_each(|policy| drop(engine.as_restricted(policy)));
        engine.follow_restriction();
        engine
    }

    /// Returns an engine for which every pod that has a network of its own is local: the whole cluster as one node, for `simulate`.
    /// Ids follow the order of the pods' names; each pod has the addresses that its status may claim (PM-D24).
    pub fn with_all_pods_local(model: Model) -> Self {
        let trusts_annotations = model.settings_of_rules().trust_pod_ip_annotations;
        let mut addresses: BTreeMap<NamespacedName, Vec<IpAddr>> = BTreeMap::new();
        for (address, pod) in owners::holders(&model, trusts_annotations) {
            addresses.entry(pod.key.clone()).or_default().push(address);
        }
        let pods = model.pods.values().filter(|pod| !pod.host_network && !pod.finished);
        let locals = pods.zip(1..).map(|(pod, id)| {
            let addresses = addresses.remove(&pod.key).unwrap_or_default();
            let local =
                LocalEndpoint { id: EndpointId(id), pod: pod.key.clone(), uid: pod.uid.clone(), addresses };
            (local.id, local)
        });
        let locals = locals.collect();
        Self { locals, ..Self::with_model(model) }
    }

    /// Takes one change; nothing is published before [`Engine::publish`].
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Upsert(Object::HostEndpoint(endpoint)) => {
                self.hosts_touched = true;
                self.written.insert(endpoint.name.clone(), endpoint);
            }
            Change::Delete(ObjectKey::HostEndpoint(name)) => {
                self.hosts_touched = true;
                self.written.remove(&name);
            }
            Change::Upsert(object) => {
                let is_known = match &object {
                    Object::Policy(policy) if self.unrestricted.contains_key(&policy.key) => {
                        self.unrestricted.get(&policy.key) == Some(policy)
                    }
                    object => holds(&self.model, object),
                };
                if is_known {
                    return;
                }
                self.hosts_touched |= decides_automatic_hosts(&object.key());
                let object = match object {
                    Object::Pod(pod) => Object::Pod(self.with_shared_labels(pod)),
                    Object::Policy(policy) => Object::Policy(self.as_restricted(policy)),
                    other => other,
                };
                let key = object.key();
                self.model.insert(object);
                if matches!(key, ObjectKey::FelixConfiguration(_)) {
                    self.follow_restriction();
                }
                self.touch(|touched| touched.objects.extend([key]));
            }
            Change::Delete(key) => {
                self.hosts_touched |= decides_automatic_hosts(&key);
                self.model.remove(&key);
                match &key {
                    ObjectKey::Policy(key) => drop(self.unrestricted.remove(key)),
                    ObjectKey::FelixConfiguration(_) => self.follow_restriction(),
                    _ => {}
                }
                self.touch(|touched| touched.objects.extend([key]));
            }
            Change::Endpoint(local) => {
                self.touch(|touched| touched.locals.extend([local.id]));
                self.locals.insert(local.id, local);
            }
            Change::EndpointGone(id) => {
                self.touch(|touched| touched.locals.extend([id]));
                self.locals.remove(&id);
            }
            Change::Interface(interface) => {
                self.touch(|touched| touched.interfaces = true);
                self.interfaces.insert(interface.id, interface);
            }
            Change::InterfaceGone(id) => {
                self.touch(|touched| touched.interfaces = true);
                self.interfaces.remove(&id);
            }
        }
    }

    /// Puts the host endpoints in force into the Model: those written, and over them the automatic ones.
    fn follow_hosts(&mut self) {
        let before = std::mem::replace(&mut self.model.host_endpoints, self.written.clone());
        for endpoint in automatic_host_endpoints(&self.model) {
            let known = before.get(&endpoint.name).filter(|known| ***known == endpoint);
            let endpoint = known.map_or_else(|| Arc::new(endpoint), Arc::clone);
            self.model.host_endpoints.insert(endpoint.name.clone(), endpoint);
        }
        let now = &self.model.host_endpoints;
        let changed: Vec<String> = before
            .keys()
            .chain(now.keys())
            .filter(|name| before.get(*name) != now.get(*name))
            .cloned()
            .collect();
        self.touch(|touched| touched.objects.extend(changed.into_iter().map(ObjectKey::HostEndpoint)));
    }

    /// Before the first publication everything is looked at anyway.
    fn touch(&mut self, note: impl FnOnce(&mut Touched)) {
        if !self.touched.everything {
            note(&mut self.touched);
        }
    }

    /// Returns the policy as it is under the present setting, and keeps what was written where the setting makes a difference.
    fn as_restricted(&mut self, policy: Arc<Policy>) -> Arc<Policy> {
        match restrict::policy(&policy) {
            Some(restricted) => {
                self.unrestricted.insert(policy.key.clone(), Arc::clone(&policy));
                if self.restricts { restricted } else { policy }
            }
            None => {
                self.unrestricted.remove(&policy.key);
                policy
            }
        }
    }

    /// Puts the policies into the Model that hold under the present setting.
    fn follow_restriction(&mut self) {
        let restricts = self.model.settings_of_rules().restrict_namespace_selectors;
        if std::mem::replace(&mut self.restricts, restricts) == restricts {
            return;
        }
        for (key, written) in self.unrestricted.clone() {
            let policy = if restricts { restrict::policy(&written).unwrap_or(written) } else { written };
            self.model.policies.insert(key.clone(), policy);
            self.touch(|touched| touched.objects.extend([ObjectKey::Policy(key)]));
        }
    }

    /// Pods of one deployment have equal labels; one copy is enough for all of them.
    fn with_shared_labels(&mut self, mut pod: Arc<Pod>) -> Arc<Pod> {
        match self.label_sets.get(&pod.labels) {
            Some(known) if Arc::ptr_eq(known, &pod.labels) => {}
            Some(known) => Arc::make_mut(&mut pod).labels = Arc::clone(known),
            None => {
                if self.label_sets.len() >= self.label_sets_limit {
                    self.label_sets.retain(|labels| Arc::strong_count(labels) > 1);
                    // Twice as many may come before the next look, so that a look costs each of them little.
                    self.label_sets_limit = 2 * self.label_sets.len() + 1_024;
                }
                self.label_sets.insert(Arc::clone(&pod.labels));
            }
        }
        pod
    }

    /// Compiles what changed since the last call and returns the newest snapshot. The generation grows by one when a packet could notice
    /// a difference; else the last snapshot is returned again.
    pub fn publish(&mut self) -> Arc<Snapshot> {
        if std::mem::take(&mut self.hosts_touched) {
            self.follow_hosts();
        }
        let touched = std::mem::take(&mut self.touched);
        if !touched.is_empty() {
            let Self { model, locals, interfaces, compiler, published, .. } = self;
            *published = compiler.publish(model, locals, interfaces, &touched, published);
        }
        Arc::clone(&self.published)
    }

    /// Returns the Model as it stands; its host endpoints are those of the last publication.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns the local endpoints as they stand.
    pub fn locals(&self) -> &BTreeMap<EndpointId, LocalEndpoint> {
        &self.locals
    }

    /// Returns the interfaces of hosts as they stand.
    pub fn interfaces(&self) -> &BTreeMap<HostId, HostInterface> {
        &self.interfaces
    }

    /// Returns the local endpoint of a pod; of several, the newest.
    pub fn endpoint_of(&self, pod: &NamespacedName) -> Option<EndpointId> {
        self.locals.values().rev().find(|local| local.pod == *pod).map(|local| local.id)
    }
}

/// Whether automatic host endpoints are made from the object.
fn decides_automatic_hosts(key: &ObjectKey) -> bool {
    matches!(key, ObjectKey::Node(_) | ObjectKey::CalicoNode(_) | ObjectKey::KubeControllersConfiguration(_))
}

/// Whether the Model has exactly this object already.
fn holds(model: &Model, object: &Object) -> bool {
    match object {
        Object::Namespace(o) => model.namespaces.get(&o.name) == Some(o),
        Object::ServiceAccount(o) => model.service_accounts.get(&o.key) == Some(o),
        Object::Pod(o) => model.pods.get(&o.key) == Some(o),
        Object::Node(o) => model.nodes.get(&o.name) == Some(o),
        Object::Tier(o) => model.tiers.get(&o.name) == Some(o),
        Object::Policy(o) => model.policies.get(&o.key) == Some(o),
        Object::NetworkSet(o) => model.network_sets.get(&o.key) == Some(o),
        Object::Profile(o) => model.profiles.get(&o.name) == Some(o),
        Object::EndpointSlice(o) => model.endpoint_slices.get(&o.key) == Some(o),
        Object::HostEndpoint(o) => model.host_endpoints.get(&o.name) == Some(o),
        Object::FelixConfiguration(o) => model.felix_configurations.get(&o.name) == Some(o),
        Object::KubeControllersConfiguration(o) => model.kube_controllers.get(&o.name) == Some(o),
        Object::IpPool(o) => model.ip_pools.get(&o.name) == Some(o),
        Object::CalicoNode(o) => model.calico_nodes.get(&o.name) == Some(o),
        Object::Installation(o) => model.installations.get(&o.name) == Some(o),
    }
}
