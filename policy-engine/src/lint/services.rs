//! Lints about Services and translation (policy model 10.6, 16).

use ipnet::IpNet;

use super::Found;
use super::catalogue::{CLIENT_ADDRESS_LOST, SERVICE_ADDRESS, SERVICE_WITHOUT_ENDPOINTS};
use super::manifests::{Manifests, RuleAt};
use crate::model::{ObjectKey, Policy};
use crate::packet::Direction;

pub(super) fn lint(found: &mut Found<'_>) {
    for rule in found.manifests.rules() {
        if rule.direction == Direction::Egress {
            service_address(found, rule);
        } else {
            hidden_clients(found, rule);
        }
        without_endpoints(found, rule);
    }
}

/// A network counts when nothing but Services is known to live in it: inside a range of Services, or around the address of one and of no
/// pod or node.
fn service_address(found: &mut Found<'_>, at: RuleAt<'_>) {
    let manifests = found.manifests;
    for (index, net) in at.rule.destination.nets.iter().enumerate() {
        let range = manifests.service_cidrs.iter().find(|range| range.contains(net));
        let service = manifests
            .services
            .iter()
            .find(|service| service.addresses.iter().any(|address| net.contains(address)));
        let message = match (range, service) {
            (_, Some(service)) if range.is_some() || !holds_others(manifests, net) => {
                format!("{net} holds the address of Service {}/{}", service.key.namespace, service.key.name)
            }
            (Some(range), _) => format!("{net} is within {range}, from which Services get their addresses"),
            _ => continue,
        };
        let field = format!("{}.destination.nets[{index}]", at.field());
        found.about_policy(&SERVICE_ADDRESS, at.policy, field, message);
    }
}

fn holds_others(manifests: &Manifests, net: &IpNet) -> bool {
    let known = manifests.known.iter().flat_map(|known| &known.addresses);
    let nodes = manifests.model.nodes.values().flat_map(|node| &node.addresses);
    net.prefix_len() == 0 || known.chain(nodes).any(|address| net.contains(address))
}

/// Rules of pods behind a Service that hides its clients, about addresses that no pod and no node has.
fn hidden_clients(found: &mut Found<'_>, at: RuleAt<'_>) {
    let manifests = found.manifests;
    let nets = &at.rule.source.nets;
    if nets.is_empty() || nets.iter().any(|net| holds_others(manifests, net)) || at.policy.staged.is_some() {
        return;
    }
    let hidden = manifests.services.iter().filter(|service| service.hides_clients);
    let service = hidden.into_iter().find(|service| {
        let selects = |labels: &crate::model::Labels| {
            !service.selector.is_empty()
                && service.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        selected_pods(manifests, at.policy)
            .any(|(namespace, labels)| *namespace == service.key.namespace && selects(labels))
    });
    if let Some(service) = service {
        let message = format!(
            "Service {}/{} brings clients from outside to pods of this policy under the address of a node",
            service.key.namespace, service.key.name
        );
        found.about_policy(&CLIENT_ADDRESS_LOST, at.policy, format!("{}.source.nets", at.field()), message);
    }
}

fn selected_pods<'m>(
    manifests: &'m Manifests,
    policy: &'m Policy,
) -> impl Iterator<Item = (&'m String, &'m crate::model::Labels)> {
    let selected = policy.selector.iter().flat_map(|selector| manifests.selected(selector));
    selected.filter_map(|known| match &known.key {
        ObjectKey::Pod(key) => Some((&key.namespace, &known.labels)),
        _ => None,
    })
}

/// Manifests without any EndpointSlice are not meant to be complete.
fn without_endpoints(found: &mut Found<'_>, at: RuleAt<'_>) {
    let slices = &found.manifests.model.endpoint_slices;
    if slices.is_empty() {
        return;
    }
    for (name, side) in at.sides() {
        let Some(service) = &side.service else { continue };
        let mut of_service = slices
            .values()
            .filter(|slice| slice.key.namespace == service.namespace && slice.service == service.name);
        if of_service.all(|slice| slice.addresses.is_empty()) {
            let message = format!("Service {}/{} has no endpoints", service.namespace, service.name);
            let field = format!("{}.{name}.services", at.field());
            found.about_policy(&SERVICE_WITHOUT_ENDPOINTS, at.policy, field, message);
        }
    }
}
