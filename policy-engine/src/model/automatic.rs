//! Automatic host endpoints (policy model 7.8): what a cluster's nodes come to when KubeControllersConfiguration asks for them.
//!
//! ```text
//!  Node, Calico Node ─▶ addresses, interfaces, labels ─┐
//!                                                      ├─▶ default: one per node, interface *
//!  KubeControllersConfiguration default ─▶ templates ──┴─▶ per template, or per template and matching interface
//! ```
//!
//! A function of the Model and nothing else: a node that goes takes its endpoints along, and turning `autoCreate` off removes them all.
//! A HostEndpoint of the same name that somebody wrote by hand stands, and nothing is made in its place. All of them list the profile
//! that allows everything, so they change nothing before a policy selects them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use regex::Regex;
use sha2::{Digest, Sha256};

use super::{HostEndpoint, HostEndpointTemplate, Labels, Model};

const CREATED_BY: &str = "projectcalico.org/created-by";
const CONTROLLERS: &str = "calico-kube-controllers";
const DEFAULT_ALLOW: &str = "projectcalico-default-allow";
const SUFFIX: &str = "-auto-hep";
const LONGEST_NAME: usize = 253;

/// Annotations of a Kubernetes Node that hold its addresses, in the order in which they are expected.
const ANNOTATIONS: [&str; 7] = [
    "projectcalico.org/IPv4Address",
    "projectcalico.org/IPv6Address",
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
];

/// Returns the automatic host endpoints of every node, ordered by node, then as the configuration lists them; none unless
/// KubeControllersConfiguration `default` enables them.
pub fn automatic_host_endpoints(model: &Model) -> Vec<HostEndpoint> {
    let Some(configuration) = model.kube_controllers.get("default").filter(|found| found.auto_create) else {
        return Vec::new();
    };
    let names: BTreeSet<&String> = model.nodes.keys().chain(model.calico_nodes.keys()).collect();
    let mut endpoints = Vec::new();
    for name in names {
        let node = Facts::of(model, name);
        if configuration.create_default {
            endpoints.push(node.endpoint(&[name], "*", node.addresses.clone(), &Labels::new()));
        }
        for template in &configuration.templates {
            node.by_template(template, &mut endpoints);
        }
    }
    let by_hand = |name: &String| {
        let written = model.host_endpoints.get(name);
        written.is_some_and(|found| found.labels.get(CREATED_BY).is_none_or(|by| by != CONTROLLERS))
    };
    endpoints.retain(|endpoint| !by_hand(&endpoint.name));
    endpoints
}

/// What is known about one node.
struct Facts<'m> {
    name: &'m str,
    labels: Labels,
    /// Each once, in the order of policy model 7.8.
    addresses: Vec<IpAddr>,
    interfaces: &'m [(String, Vec<IpAddr>)],
}

impl<'m> Facts<'m> {
    fn of(model: &'m Model, name: &'m str) -> Self {
        let (kubernetes, calico) = (model.nodes.get(name), model.calico_nodes.get(name));
        let mut labels = calico.map(|node| node.labels.clone()).unwrap_or_default();
        labels.extend(kubernetes.iter().flat_map(|node| node.labels.clone()));
        let interfaces = calico.map(|node| node.interfaces.as_slice()).unwrap_or_default();
        let mut addresses = Vec::new();
        add(&mut addresses, calico.iter().flat_map(|node| node.addresses.iter().copied()));
        if let Some(node) = kubernetes {
            let annotated = ANNOTATIONS.iter().filter_map(|key| address_of(node.annotations.get(*key)?));
            add(&mut addresses, annotated);
            add(&mut addresses, node.addresses.iter().copied().take(node.internal_addresses));
        }
        add(&mut addresses, interfaces.iter().flat_map(|(_, addresses)| addresses.iter().copied()));
        Self { name, labels, addresses, interfaces }
    }

    fn by_template(&self, template: &HostEndpointTemplate, endpoints: &mut Vec<HostEndpoint>) {
        if template.node_selector.as_ref().is_some_and(|selector| !selector.matches(&self.labels)) {
            return;
        }
        let inside = |address: &IpAddr| template.interface_cidrs.iter().any(|net| net.contains(address));
        let matching: Vec<IpAddr> = self.addresses.iter().copied().filter(inside).collect();
        let Some(pattern) = &template.interface_pattern else {
            // Without interface and addresses it would find nothing.
            if !matching.is_empty() {
                let name = [self.name, &template.generate_name];
                endpoints.push(self.endpoint(&name, "", matching, &template.labels));
            }
            return;
        };
        // It compiled when it was decoded.
        let Ok(pattern) = Regex::new(pattern) else { return };
        for (interface, addresses) in self.interfaces.iter().filter(|(name, _)| pattern.is_match(name)) {
            let mut expected = matching.clone();
            add(&mut expected, addresses.iter().copied());
            let name = [self.name, &template.generate_name, interface];
            endpoints.push(self.endpoint(&name, interface, expected, &template.labels));
        }
    }

    fn endpoint(
        &self,
        name: &[&str],
        interface: &str,
        expected_ips: Vec<IpAddr>,
        over: &Labels,
    ) -> HostEndpoint {
        let mut labels = self.labels.clone();
        labels.extend(over.clone());
        labels.insert(CREATED_BY.to_owned(), CONTROLLERS.to_owned());
        HostEndpoint {
            name: fitting(format!("{}{SUFFIX}", name.join("-"))),
            labels,
            node: self.name.to_owned(),
            interface_name: interface.to_owned(),
            expected_ips,
            profiles: vec![DEFAULT_ALLOW.to_owned()],
            ports: Vec::new(),
        }
    }
}

fn add(addresses: &mut Vec<IpAddr>, more: impl Iterator<Item = IpAddr>) {
    for address in more {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
}

/// Reads an address, or the address of `10.0.0.1/24`; `None` for anything else, which is passed over.
fn address_of(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()))
}

/// Returns `name`, or, where it is longer than a name may be, its SHA-256 in lower-case hexadecimal digits and the suffix.
fn fitting(name: String) -> String {
    if name.len() <= LONGEST_NAME {
        return name;
    }
    let digest: String = Sha256::digest(&name).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{digest}{SUFFIX}")
}

#[cfg(test)]
mod tests;
