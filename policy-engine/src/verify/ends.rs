//! Who stands behind the words of a statement: pods, nodes, and intervals of addresses that are neither.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Peer, Pods, address, last_before, number};
use crate::engine::Engine;
use crate::model::{EndpointToHostAction, Model, NamespacedName, Pod, Settings};
use crate::oracle;
use crate::packet::{EndpointId, Verdict};
use crate::selector::Selector;
use crate::snapshot::Snapshot;

/// What an address is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A pod with a network of its own.
    Pod { key: NamespacedName, node: String, endpoint: EndpointId },
    /// A node.
    Node(String),
    /// Neither.
    Outside,
}

/// One address, which stands for others like it where it is no pod's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct End {
    pub place: Place,
    pub address: IpAddr,
}

impl End {
    /// The endpoint whose policy is asked.
    pub(super) fn endpoint(&self) -> Option<EndpointId> {
        match &self.place {
            Place::Pod { endpoint, .. } => Some(*endpoint),
            Place::Node(_) | Place::Outside => None,
        }
    }

    /// The node that it is or is on.
    pub(super) fn node(&self) -> Option<&str> {
        match &self.place {
            Place::Pod { node, .. } | Place::Node(node) => Some(node),
            Place::Outside => None,
        }
    }

    /// Whether a packet between the two never leaves the place.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.place == other.place && self.place != Place::Outside
    }
}

/// Every end there is.
#[derive(Debug)]
pub(super) struct Ends<'e> {
    model: &'e Model,
    /// Pods with a network of their own, by name; more than one address each.
    pods: BTreeMap<NamespacedName, Vec<End>>,
    nodes: BTreeMap<String, Vec<End>>,
    /// First and last address of every interval that no pod and no node has, by family.
    outside: Vec<(bool, u128, u128)>,
}

impl<'e> Ends<'e> {
    pub(super) fn new(engine: &'e Engine, snapshot: &Snapshot) -> Self {
        let model = engine.model();
        let mut pods: BTreeMap<NamespacedName, Vec<End>> = BTreeMap::new();
        let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
        for local in engine.locals().values() {
            let node = model.pods.get(&local.pod).and_then(|pod| pod.node.clone()).unwrap_or_default();
            let place = Place::Pod { key: local.pod.clone(), node, endpoint: local.id };
            taken.extend(&local.addresses);
            let ends = local.addresses.iter().map(|address| End { place: place.clone(), address: *address });
            pods.entry(local.pod.clone()).or_default().extend(ends);
        }
        let mut nodes: BTreeMap<String, Vec<End>> = BTreeMap::new();
        for node in model.nodes.values() {
            let place = Place::Node(node.name.clone());
            let ends = node.addresses.iter().filter(|address| !taken.contains(*address));
            let ends = ends.map(|address| End { place: place.clone(), address: *address }).collect();
            nodes.insert(node.name.clone(), ends);
        }
        taken.extend(model.nodes.values().flat_map(|node| &node.addresses));
        let outside = free_intervals(snapshot, &taken);
        Self { model, pods, nodes, outside }
    }

    /// Returns the ends that a peer stands for.
    pub(super) fn of(&self, peer: &Peer) -> Vec<End> {
        match peer {
            Peer::Pods(pods) => self.pods(pods),
            Peer::Net(net) => {
                let known = self.pods.values().chain(self.nodes.values()).flatten();
                let known = known.filter(|end| net.contains(&end.address)).cloned();
                known.chain(self.outside(Some(net))).collect()
            }
            Peer::Outside => self.outside(None),
            Peer::Nodes(None) => self.nodes.values().flatten().cloned().collect(),
            Peer::Nodes(Some(name)) => self.nodes.get(name).cloned().unwrap_or_default(),
        }
    }

    /// Returns every end but these. Of an interval of addresses the part is left that no end of `but` was made for.
    pub(super) fn all_but(&self, but: &[Peer]) -> Vec<End> {
        let excluded: BTreeSet<End> = but.iter().flat_map(|peer| self.of(peer)).collect();
        let known = self.pods.values().chain(self.nodes.values()).flatten();
        let mut ends: Vec<End> = known.filter(|end| !excluded.contains(end)).cloned().collect();
        if !but.contains(&Peer::Outside) {
            let nets: Vec<IpNet> = but
                .iter()
                .filter_map(|peer| match peer {
                    Peer::Net(net) => Some(*net),
                    _ => None,
                })
                .collect();
            let left = self.outside.iter().flat_map(|interval| without(*interval, &nets));
            ends.extend(left.map(outside));
        }
        ends
    }

    fn pods(&self, wanted: &Pods) -> Vec<End> {
        let chosen = self.model.pods.values().filter(|pod| !pod.finished && self.is_wanted(pod, wanted));
        chosen
            .flat_map(|pod| match (pod.host_network, &pod.node) {
                (false, _) => self.pods.get(&pod.key).cloned().unwrap_or_default(),
                (true, node) => {
                    node.as_ref().and_then(|node| self.nodes.get(node)).cloned().unwrap_or_default()
                }
            })
            .collect()
    }

    fn is_wanted(&self, pod: &Pod, wanted: &Pods) -> bool {
        let is = |wanted: &Option<String>, have: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == have)
        };
        if !is(&wanted.namespace, Some(&pod.key.namespace))
            || !is(&wanted.name, Some(&pod.key.name))
            || !is(&wanted.service_account, pod.service_account.as_deref())
        {
            return false;
        }
        let is_called = |name: &String| {
            let labels = ["app", "app.kubernetes.io/name"].map(|key| pod.labels.get(key));
            pod.key.name == *name || labels.contains(&Some(name))
        };
        if !wanted.called.as_ref().is_none_or(is_called) {
            return false;
        }
        if wanted.selector.is_none() && wanted.namespace_selector.is_none() {
            return true;
        }
        let labels = oracle::effective_labels(self.model, pod);
        let of_namespace = wanted.namespace_selector.as_ref().map(|selector| selector.prefix("pcns."));
        let matches = |selector: &Option<Selector>| selector.as_ref().is_none_or(|s| s.matches(&labels));
        matches(&wanted.selector) && matches(&of_namespace)
    }

    fn outside(&self, net: Option<&IpNet>) -> Vec<End> {
        let clipped = self.outside.iter().filter_map(|(is_ipv4, first, last)| {
            let Some(net) = net else { return Some((*is_ipv4, *first, *last)) };
            if net.addr().is_ipv4() != *is_ipv4 {
                return None;
            }
            let first = (*first).max(number(net.network()));
            let last = (*last).min(number(net.broadcast()));
            (first <= last).then_some((*is_ipv4, first, last))
        });
        clipped.map(outside).collect()
    }

    /// Returns whether one of the two is the node that the other one, a pod, is on.
    pub(super) fn own_node(&self, source: &End, destination: &End) -> bool {
        match (&source.place, &destination.place) {
            (Place::Pod { node, .. }, Place::Node(name)) | (Place::Node(name), Place::Pod { node, .. }) => {
                node == name
            }
            _ => false,
        }
    }

    /// Returns what happens between a pod and its own node, beside the pod's egress policy.
    pub(super) fn own_node_verdict(&self, source: &End) -> Verdict {
        match &source.place {
            Place::Pod { node, .. } => {
                let settings = Settings::of_node(self.model, node);
                match settings.endpoint_to_host.unwrap_or_default() {
                    EndpointToHostAction::Drop => Verdict::Deny,
                    // The host's own firewall is no policy: nobody can rely on it here.
                    EndpointToHostAction::Accept | EndpointToHostAction::Return => Verdict::Allow,
                }
            }
            Place::Node(_) | Place::Outside => Verdict::Allow,
        }
    }

    pub(super) fn own_node_reason(&self, source: &End, denies: bool) -> String {
        let text = match (&source.place, denies) {
            (Place::Pod { .. }, true) => "defaultEndpointToHostAction drops what a pod sends to its own node",
            (Place::Pod { .. }, false) => {
                "defaultEndpointToHostAction lets pods send to their own node where their egress policy does"
            }
            (Place::Node(_) | Place::Outside, _) => "a node reaches its own pods whatever policy says",
        };
        text.to_owned()
    }
}

/// Addresses that documents use; people know them.
const KNOWN: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// Whether the address is a good example of those that are alike.
pub(super) fn is_known(address: &IpAddr) -> bool {
    KNOWN.contains(address)
}

/// Returns an address of the interval: a known one where it has one.
fn outside((is_ipv4, first, last): (bool, u128, u128)) -> End {
    let interval = address(first, is_ipv4)..=address(last, is_ipv4);
    let known = KNOWN.into_iter().find(|known| interval.contains(known));
    End { place: Place::Outside, address: known.unwrap_or(address(first, is_ipv4)) }
}

/// Cuts the intervals of identities at the addresses that are taken.
fn free_intervals(snapshot: &Snapshot, taken: &BTreeSet<IpAddr>) -> Vec<(bool, u128, u128)> {
    let classes = snapshot.address_classes();
    let mut free = Vec::new();
    for (at, (start, _)) in classes.iter().enumerate() {
        let is_ipv4 = start.is_ipv4();
        let last = last_before(classes.get(at + 1).map(|(next, _)| *next), is_ipv4);
        let mut first = Some(number(*start));
        for gone in taken.range(*start..=address(last, is_ipv4)) {
            let gone = number(*gone);
            if let Some(first) = first.filter(|first| *first < gone) {
                free.push((is_ipv4, first, gone - 1));
            }
            first = gone.checked_add(1);
        }
        if let Some(first) = first.filter(|first| *first <= last) {
            free.push((is_ipv4, first, last));
        }
    }
    free
}

/// Returns what is left of an interval without some CIDRs.
fn without(interval: (bool, u128, u128), nets: &[IpNet]) -> Vec<(bool, u128, u128)> {
    let is_ipv4 = interval.0;
    let mut left = vec![interval];
    for net in nets.iter().filter(|net| net.addr().is_ipv4() == is_ipv4) {
        let (from, to) = (number(net.network()), number(net.broadcast()));
        left = left
            .into_iter()
            .flat_map(|(_, first, last)| {
                let before = (first < from).then(|| (is_ipv4, first, last.min(from.saturating_sub(1))));
                let after = (last > to).then(|| (is_ipv4, first.max(to.saturating_add(1)), last));
                [before, after].into_iter().flatten()
            })
            .collect();
    }
    left
}
