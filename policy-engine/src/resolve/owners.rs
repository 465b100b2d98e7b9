//! Which pod holds an address by its status: never two (PM-D24, policy model 10.3).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::engine::LocalEndpoint;
use crate::model::{Model, Pod};

/// Returns the addresses that a pod claims: by its status, and where that has none and `trusts_annotations` by its annotations.
/// Pods without a network of their own claim none.
pub(crate) fn claimed(pod: &Pod, trusts_annotations: bool) -> &[IpAddr] {
    if pod.host_network || pod.finished {
        return &[];
    }
    if pod.addresses.is_empty() && trusts_annotations { &pod.annotated_addresses } else { &pod.addresses }
}

/// Returns whether `pod` outranks `other` for an address that both claim: it started later.
pub(crate) fn outranks(pod: &Pod, other: &Pod) -> bool {
    (&pod.started, &pod.key) > (&other.started, &other.key)
}

/// Returns which pod holds each address, by claims alone.
pub(crate) fn holders(model: &Model, trusts_annotations: bool) -> BTreeMap<IpAddr, &Arc<Pod>> {
    let of_nodes: BTreeSet<IpAddr> =
        model.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect();
    let mut holders: BTreeMap<IpAddr, &Arc<Pod>> = BTreeMap::new();
    for pod in model.pods.values() {
        for address in claimed(pod, trusts_annotations) {
            if of_nodes.contains(address) || !in_pod_cidrs(model, pod, *address) {
                continue;
            }
            let holder = holders.entry(*address).or_insert(pod);
            if outranks(pod, holder) {
                *holder = pod;
            }
        }
    }
    holders
}

/// Returns the pod behind a local endpoint. Another uid is another pod (PM-D28); an unknown uid on either side cannot contradict.
pub(crate) fn pod_of<'a>(model: &'a Model, local: &LocalEndpoint) -> Option<&'a Arc<Pod>> {
    let pod = model.pods.get(&local.pod)?;
    let same = local.uid.is_empty() || pod.uid.is_empty() || local.uid == pod.uid;
    (same && !pod.host_network && !pod.finished).then_some(pod)
}

/// Returns whether the Node of the pod may hand out `address`. A Node that is unknown or has no podCIDR of the family does not say.
pub(crate) fn in_pod_cidrs(model: &Model, pod: &Pod, address: IpAddr) -> bool {
    let Some(node) = pod.node.as_ref().and_then(|name| model.nodes.get(name)) else { return true };
    let mut of_family =
        node.pod_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == address.is_ipv4()).peekable();
    of_family.peek().is_none() || of_family.any(|cidr| cidr.contains(&address))
}
