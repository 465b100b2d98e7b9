//! Everything that gives addresses a meaning: pods, host endpoints, network sets, services, nodes, and the CIDR lists of rules.
//!
//! Each is a *source* with a number, an identity (what it belongs to) and prefixes; pods with equal labels and ports are one, their
//! *class*. A change of one object changes its own source. Look-up tables know sources, not identities: where only the identity
//! changed, they stay as they are.
//!
//! ```text
//!   object ─▶ labels ─▶ sets ─▶ identity of the source ─────────────────────────▶ meaning of its cells
//!          └▶ addresses ─────▶ holder of each address ─▶ store of prefixes ─▶ look-up tables ─▶ cells
//! ```
//!
//! A source other than a class that belongs to nothing is not in the store, so what no rule on this node asks for costs nothing there.

mod asking;

use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet, HashTable};
use ipnet::IpNet;
use roaring::RoaringBitmap;

use super::addresses::{Addresses, AnyPrefix, Changed, Store};
use super::cells::Cells;
use super::identities::{Identities, SetId};
use super::pods::{Pods, take_from};
use super::sets::Sets;
use super::universe::{Filing, LabelList, Universe};
use crate::engine::LocalEndpoint;
use crate::model::{
    EndpointSlice, HostEndpoint, Labels, Model, NamedPort, NamespacedName, NetworkSet, NetworkSetKey, Node,
    Pod,
};
use crate::packet::{EndpointId, IdentityId};
use crate::resolve::labels;

type Hasher = foldhash::fast::FixedState;

#[derive(Debug)]
enum Kind {
    Free,
    /// Pods with equal labels and ports, and how many they are.
    Class(Box<[NamedPort]>, u32),
    HostEndpoint(Arc<HostEndpoint>),
    NetworkSet(Arc<NetworkSet>),
    Slice(Arc<EndpointSlice>),
    Node(Arc<Node>),
    /// A list of CIDRs that some rule names.
    Nets(Vec<IpNet>),
}

impl Kind {
    fn ports(&self) -> &[NamedPort] {
        match self {
            Self::Class(ports, _) => ports,
            Self::HostEndpoint(endpoint) => &endpoint.ports,
            Self::Free | Self::NetworkSet(_) | Self::Slice(_) | Self::Node(_) | Self::Nets(_) => &[],
        }
    }

    fn for_each_prefix(&self, mut see: impl FnMut(AnyPrefix)) {
        match self {
            // Addresses of pods have holders; see `Sources::settle`.
            Self::Free | Self::Class(..) => {}
            Self::HostEndpoint(endpoint) => endpoint.expected_ips.iter().for_each(|ip| see((*ip).into())),
            Self::NetworkSet(set) => set.nets.iter().for_each(|net| see((*net).into())),
            Self::Slice(slice) => slice.addresses.iter().for_each(|ip| see((*ip).into())),
            Self::Node(node) => node.addresses.iter().for_each(|ip| see((*ip).into())),
            Self::Nets(nets) => nets.iter().for_each(|net| see((*net).into())),
        }
    }
}

#[derive(Debug)]
struct Source {
    kind: Kind,
    /// Empty for kinds that no label selector sees.
    labels: LabelList,
    identity: IdentityId,
}

/// Inputs of a pod's effective labels, by address, within one publication.
type LabelInputs = (usize, usize, usize);

/// All sources. See the module.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    universe: Universe,
    sources: Vec<Source>,
    free: Vec<u32>,
    /// Freed in this publication; a number that the store may still hold is not given out again.
    retired: Vec<u32>,
    pods: Pods,
    classes: HashTable<u32>,
    host_endpoints: HashMap<String, u32, Hasher>,
    network_sets: HashMap<NetworkSetKey, u32, Hasher>,
    slices: HashMap<NamespacedName, u32, Hasher>,
    nodes: HashMap<String, u32, Hasher>,
    nets: HashMap<SetId, u32, Hasher>,
    /// Sets that select by label.
    selecting: Filing<SetId>,
    /// Sets that select nodes.
    selecting_nodes: BTreeSet<SetId>,
    /// Sources that declare a port name.
    declaring: HashMap<String, RoaringBitmap, Hasher>,
    /// Slices of a Service.
    of_service: HashMap<NamespacedName, BTreeSet<u32>, Hasher>,
    /// Which class is in the store for an address.
    placed: HashMap<IpAddr, u32, Hasher>,
    store: Store,
    cells: Cells,
    identities: Identities,

    // Of one publication:
    label_lists: HashMap<LabelInputs, LabelList, Hasher>,
    /// Sources that every set has to be asked about.
    fresh: RoaringBitmap,
    /// Prefixes whose meaning may have changed.
    changed: Changed,
}

fn hash_of(labels: &LabelList, ports: &[NamedPort]) -> u64 {
    let ports: Vec<_> = ports.iter().map(|port| (&port.name, port.protocol, port.port)).collect();
    Hasher::default().hash_one((labels, ports))
}

impl Sources {
    pub(crate) fn universe(&mut self) -> &mut Universe {
        &mut self.universe
    }

    pub(crate) fn identities(&mut self) -> &mut Identities {
        &mut self.identities
    }

    fn add(&mut self, kind: Kind, labels: LabelList) -> u32 {
        let source = Source { kind, labels, identity: IdentityId(0) };
        match self.free.pop() {
            Some(number) => {
                self.sources[number as usize] = source;
                number
            }
            None => {
                self.sources.push(source);
                self.sources.len() as u32 - 1
            }
        }
    }

    fn drop_source(&mut self, number: u32) {
        self.take_out(number);
        self.sources[number as usize] =
            Source { kind: Kind::Free, labels: LabelList::default(), identity: IdentityId(0) };
        self.fresh.remove(number);
        self.retired.push(number);
    }

    /// Returns the labels of a pod, as policy sees them.
    pub(crate) fn pod_labels(&self, key: &NamespacedName) -> Option<&LabelList> {
        self.pods.class(key).map(|class| &self.sources[class as usize].labels)
    }

    /// Returns the labels of a host endpoint, as policy sees them.
    pub(crate) fn host_endpoint_labels(&self, name: &str) -> Option<&LabelList> {
        self.host_endpoints.get(name).map(|number| &self.sources[*number as usize].labels)
    }

    /// Returns the local endpoints that something happened to since the last call.
    pub(crate) fn take_stirred(&mut self) -> BTreeSet<EndpointId> {
        self.pods.take_stirred()
    }

    /// Whether annotations count where a pod's status has no address (PM-D24).
    pub(crate) fn trust_annotations(&mut self, trusts: bool) {
        self.pods.trust_annotations(trusts);
    }

    /// Takes in what a local endpoint is now.
    pub(crate) fn follow_local(&mut self, id: EndpointId, now: Option<&LocalEndpoint>) {
        self.pods.follow_local(id, now);
    }

    /// Takes in what a pod is now.
    pub(crate) fn follow_pod(&mut self, model: &Model, key: &NamespacedName) {
        let now = model.pods.get(key).map(|pod| {
            let labels = self.labels_of_pod(model, pod);
            (Arc::clone(pod), self.join_class(labels, &pod.ports))
        });
        if let Some(class) = self.pods.follow(key, now) {
            self.leave_class(class);
        }
    }

    /// Takes in labels that a pod inherits from something that changed.
    pub(crate) fn follow_inherited(&mut self, model: &Model, pod: &Arc<Pod>) {
        let labels = self.labels_of_pod(model, pod);
        if self.pod_labels(&pod.key).is_some_and(|known| *known != labels) {
            self.follow_pod(model, &pod.key);
        }
    }

    /// Returns the class of pods with these labels and ports; it has one more.
    fn join_class(&mut self, labels: LabelList, ports: &[NamedPort]) -> u32 {
        let hash = hash_of(&labels, ports);
        let is_it = |number: &u32| {
            let source = &self.sources[*number as usize];
            source.labels == labels && source.kind.ports() == ports
        };
        let known = self.classes.find(hash, is_it).copied();
        let number = known.unwrap_or_else(|| {
            let number = self.add(Kind::Class(ports.into(), 0), labels);
            let sources = &self.sources;
            self.classes.insert_unique(hash, number, |number| {
                let source = &sources[*number as usize];
                hash_of(&source.labels, source.kind.ports())
            });
            self.appear(number);
            number
        });
        if let Kind::Class(_, pods) = &mut self.sources[number as usize].kind {
            *pods += 1;
        }
        number
    }

    /// A class has one pod less; with the last one it goes.
    fn leave_class(&mut self, number: u32) {
        let source = &mut self.sources[number as usize];
        let Kind::Class(_, pods) = &mut source.kind else { return };
        *pods -= 1;
        if *pods > 0 {
            return;
        }
        let hash = hash_of(&source.labels, source.kind.ports());
        if let Ok(entry) = self.classes.find_entry(hash, |other| *other == number) {
            entry.remove();
        }
        self.disappear(number);
    }

    fn labels_of_pod(&mut self, model: &Model, pod: &Arc<Pod>) -> LabelList {
        fn place<T>(object: Option<&Arc<T>>) -> usize {
            object.map_or(0, |object| Arc::as_ptr(object).cast::<()>() as usize)
        }
        let account = pod.service_account.as_ref().and_then(|name| {
            let account = NamespacedName { namespace: pod.key.namespace.clone(), name: name.clone() };
            model.service_accounts.get(&account)
        });
        // Own labels hold the namespace's name, so equal inputs mean equal labels.
        let inputs =
            (place(Some(&pod.labels)), place(model.namespaces.get(&pod.key.namespace)), place(account));
        if let Some(list) = self.label_lists.get(&inputs) {
            return Arc::clone(list);
        }
        let list = self.universe.intern(&labels::of_pod(model, pod));
        self.label_lists.insert(inputs, Arc::clone(&list));
        list
    }

    /// A labelled source is there for the first time.
    fn appear(&mut self, number: u32) {
        let labels = Arc::clone(&self.sources[number as usize].labels);
        self.universe.insert(number, &labels);
        self.set_ports(number, true);
        self.fresh.insert(number);
    }

    /// And no longer.
    fn disappear(&mut self, number: u32) {
        self.set_ports(number, false);
        self.universe.remove(number, &Arc::clone(&self.sources[number as usize].labels));
        self.drop_source(number);
    }

    /// A labelled source is another one now.
    fn change(&mut self, number: u32, kind: Kind, labels: LabelList) {
        let source = &mut self.sources[number as usize];
        let same_ports = source.kind.ports() == kind.ports();
        let same_labels = source.labels == labels;
        if !same_ports {
            self.set_ports(number, false);
        }
        if !same_labels {
            let before = Arc::clone(&self.sources[number as usize].labels);
            self.universe.remove(number, &before);
            self.universe.insert(number, &labels);
        }
        let source = &mut self.sources[number as usize];
        source.kind = kind;
        source.labels = labels;
        if !same_ports {
            self.set_ports(number, true);
        }
        if !same_labels || !same_ports {
            self.fresh.insert(number);
        }
    }

    fn set_ports(&mut self, number: u32, declares: bool) {
        for port in self.sources[number as usize].kind.ports() {
            if declares {
                self.declaring.entry_ref(port.name.as_str()).or_default().insert(number);
            } else if let Some(sources) = self.declaring.get_mut(&port.name) {
                sources.remove(number);
                if sources.is_empty() {
                    self.declaring.remove(&port.name);
                }
            }
        }
    }

    /// Takes in what a host endpoint is now.
    pub(crate) fn follow_host_endpoint(
        &mut self,
        model: &Model,
        name: &str,
        now: Option<&Arc<HostEndpoint>>,
    ) {
        let before = self.host_endpoints.get(name).copied();
        let kind = now.map(|now| (Kind::HostEndpoint(Arc::clone(now)), labels::of_host_endpoint(model, now)));
        if let Some(number) = self.follow_labelled(before, kind) {
            self.host_endpoints.insert(name.to_owned(), number);
        } else {
            self.host_endpoints.remove(name);
        }
    }

    /// Takes in what a network set is now.
    pub(crate) fn follow_network_set(&mut self, model: &Model, key: &NetworkSetKey) {
        let before = self.network_sets.get(key).copied();
        let now = model.network_sets.get(key);
        let kind = now.map(|now| (Kind::NetworkSet(Arc::clone(now)), labels::of_network_set(model, now)));
        if let Some(number) = self.follow_labelled(before, kind) {
            self.network_sets.insert(key.clone(), number);
        } else {
            self.network_sets.remove(key);
        }
    }

    /// A labelled source whose prefixes are its own.
    fn follow_labelled(&mut self, before: Option<u32>, now: Option<(Kind, Labels)>) -> Option<u32> {
        let Some((kind, labels)) = now else {
            if let Some(number) = before {
                self.disappear(number);
            }
            return None;
        };
        let labels = self.universe.intern(&labels);
        match before {
            Some(number) => {
                self.take_out(number);
                self.change(number, kind, labels);
                self.put_in(number);
                Some(number)
            }
            None => {
                let number = self.add(kind, labels);
                self.appear(number);
                Some(number)
            }
        }
    }

    /// Takes in what an EndpointSlice is now.
    pub(crate) fn follow_slice(&mut self, model: &Model, sets: &Sets, key: &NamespacedName) {
        let before = self.slices.get(key).copied();
        if let Some(number) = before {
            if let Kind::Slice(slice) = &self.sources[number as usize].kind {
                let service = service_of(slice);
                take_from(&mut self.of_service, &service, &number);
            }
            self.slices.remove(key);
            self.drop_source(number);
        }
        if let Some(now) = model.endpoint_slices.get(key) {
            let number = self.add(Kind::Slice(Arc::clone(now)), LabelList::default());
            self.of_service.entry(service_of(now)).or_default().insert(number);
            self.slices.insert(key.clone(), number);
            self.ask_slice(sets, number);
        }
    }

    /// Takes in what a Node is now.
    pub(crate) fn follow_node(&mut self, model: &Model, sets: &Sets, name: &str) {
        let now = model.nodes.get(name);
        let before = self.nodes.remove(name);
        let node = before.and_then(|number| match &self.sources[number as usize].kind {
            Kind::Node(node) => Some(&**node),
            _ => None,
        });
        self.pods.follow_node(name, node, now.map(|node| &**node));
        if let Some(number) = before {
            self.drop_source(number);
        }
        if let Some(now) = now {
            let number = self.add(Kind::Node(Arc::clone(now)), LabelList::default());
            self.nodes.insert(name.to_owned(), number);
            self.ask_node(sets, number);
        }
    }

    fn set_identity(&mut self, number: u32, identity: IdentityId) {
        let source = &self.sources[number as usize];
        if source.identity == identity {
            return;
        }
        let is_class = matches!(source.kind, Kind::Class(..));
        let (was_in, is_in) = (source.identity.0 != 0 && !is_class, identity.0 != 0 && !is_class);
        if was_in && !is_in {
            self.take_out(number);
        }
        self.sources[number as usize].identity = identity;
        if is_in && !was_in {
            self.put_in(number);
        }
        self.cells.stir(number);
    }

    fn take_out(&mut self, number: u32) {
        let Self { sources, changed, store, .. } = self;
        let source = &sources[number as usize];
        if source.identity.0 != 0 {
            source.kind.for_each_prefix(|prefix| {
                store.remove(prefix, number);
                changed.push(prefix);
            });
        }
    }

    fn put_in(&mut self, number: u32) {
        let Self { sources, changed, store, .. } = self;
        let source = &sources[number as usize];
        if source.identity.0 != 0 {
            // In order, which a large map takes several times faster.
            let (mut v4, mut v6) = (Vec::new(), Vec::new());
            source.kind.for_each_prefix(|prefix| match prefix {
                AnyPrefix::V4(prefix) => v4.push(prefix),
                AnyPrefix::V6(prefix) => v6.push(prefix),
            });
            v4.sort_unstable();
            v6.sort_unstable();
            let v6 = v6.into_iter().map(AnyPrefix::V6);
            for prefix in v4.into_iter().map(AnyPrefix::V4).chain(v6) {
                store.add(prefix, number);
                changed.push(prefix);
            }
        }
    }

    /// Finds the holder of every unsettled address, and puts its class in the store.
    pub(crate) fn settle(&mut self, model: &Model) {
        for address in self.pods.take_unsettled() {
            let holder = self.pods.holder(model, address);
            let placed = match holder {
                Some(class) => self.placed.insert(address, class),
                None => self.placed.remove(&address),
            };
            if holder == placed {
                continue;
            }
            if let Some(placed) = placed {
                self.store.remove(address.into(), placed);
            }
            if let Some(holder) = holder {
                self.store.add(address.into(), holder);
            }
            self.changed.push(address.into());
        }
    }

    /// Brings `addresses` up to date. Returns whether any address means something else now.
    pub(crate) fn refresh(&mut self, addresses: &mut Addresses) -> bool {
        let Self { store, sources, identities, cells, changed, .. } = self;
        let identity_of = |number: u32| sources[number as usize].identity;
        let is_other = addresses.refresh(std::mem::take(changed), store, cells, identity_of, identities);
        // Sources that went are in no table now.
        cells.retire(&self.retired);
        self.free.append(&mut self.retired);
        is_other
    }

    /// Whether [`Sources::refresh`] has something to do.
    pub(crate) fn is_stirred(&self) -> bool {
        !self.changed.is_empty() || self.cells.is_stirred() || !self.retired.is_empty()
    }

    /// Forgets cells that `addresses` do not have.
    pub(crate) fn tidy(&mut self, addresses: &Addresses) {
        if self.cells.is_crowded() {
            let mut used = HashSet::default();
            addresses.for_each_cell(|cell| used.extend([cell]));
            self.cells.retain(&used);
        }
    }

    /// Shows the identity of every source and of every cell.
    pub(crate) fn for_each_identity(&self, mut see: impl FnMut(IdentityId)) {
        self.sources.iter().for_each(|source| see(source.identity));
        self.cells.for_each_identity(see);
    }
}

fn service_of(slice: &EndpointSlice) -> NamespacedName {
    NamespacedName { namespace: slice.key.namespace.clone(), name: slice.service.clone() }
}
