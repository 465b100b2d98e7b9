//! Which pod an address belongs to: never two (PM-D24, policy model 10.3).
//!
//! The CNI result outranks every status, because it is what the interface really has; among statuses the pod that started
//! later wins, because an address is free at CNI DEL while the old Pod object lives on for seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::engine::LocalEndpoint;
use crate::model::{Model, NamespacedName, Pod};
use crate::packet::EndpointId;

/// Who owns an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A pod of the Model.
    Pod(NamespacedName),
    /// A local endpoint whose Pod object is not here (yet, or any more): the address belongs to nobody that a selector could name.
    Nobody,
}

/// Returns the owner of every pod address that `concerns` admits.
pub(crate) fn owners(
    model: &Model,
    locals: &BTreeMap<EndpointId, LocalEndpoint>,
    concerns: impl Fn(&IpAddr) -> bool,
) -> BTreeMap<IpAddr, Owner> {
    let local_pods: BTreeSet<&NamespacedName> = locals.values().map(|local| &local.pod).collect();
    let claims = claims(model, &concerns, |pod| pod.node.is_some() && !local_pods.contains(&pod.key));
    let mut owners: BTreeMap<IpAddr, Owner> =
        claims.into_iter().map(|(address, pod)| (address, Owner::Pod(pod.key.clone()))).collect();
    for local in locals.values() {
        for address in local.addresses.iter().filter(|address| concerns(address)) {
            let owner = pod_of(model, local).map_or(Owner::Nobody, |pod| Owner::Pod(pod.key.clone()));
            owners.insert(*address, owner);
        }
    }
    owners
}

/// Returns which of the pods that `counts` admits holds each address, by status alone. Pods without a network of their own hold none.
pub(crate) fn claims(
    model: &Model,
    concerns: impl Fn(&IpAddr) -> bool,
    counts: impl Fn(&Pod) -> bool,
) -> BTreeMap<IpAddr, &Arc<Pod>> {
    let of_nodes: BTreeSet<IpAddr> =
        model.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect();
    let mut claims: BTreeMap<IpAddr, &Arc<Pod>> = BTreeMap::new();
    for pod in model.pods.values().filter(|pod| !pod.host_network && !pod.finished) {
        for address in pod.addresses.iter().filter(|address| concerns(address)) {
            if !counts(pod) {
                continue;
            }
            if of_nodes.contains(address) || !in_pod_cidrs(model, pod, *address) {
                continue;
            }
            let holder = claims.entry(*address).or_insert(pod);
            if (&holder.started, &holder.key) < (&pod.started, &pod.key) {
                *holder = pod;
            }
        }
    }
    claims
}

/// Returns the pod behind a local endpoint. Another uid is another pod (PM-D28); an unknown uid on either side cannot contradict.
pub(crate) fn pod_of<'a>(model: &'a Model, local: &LocalEndpoint) -> Option<&'a Arc<Pod>> {
    let pod = model.pods.get(&local.pod)?;
    let same = local.uid.is_empty() || pod.uid.is_empty() || local.uid == pod.uid;
    (same && !pod.host_network && !pod.finished).then_some(pod)
}

/// Returns whether the Node of the pod may hand out `address`. A Node that is unknown or has no podCIDR of the family does not say.
fn in_pod_cidrs(model: &Model, pod: &Pod, address: IpAddr) -> bool {
    let Some(node) = pod.node.as_ref().and_then(|name| model.nodes.get(name)) else { return true };
    let mut of_family =
        node.pod_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == address.is_ipv4()).peekable();
    of_family.peek().is_none() || of_family.any(|cidr| cidr.contains(&address))
}
