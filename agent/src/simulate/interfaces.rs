//! The interfaces that nodes are taken to have where no node is running to ask.
//!
//! Manifests say which interfaces host endpoints are for, and which addresses a node has, but not which interface has which address. What
//! is assumed for a node with host endpoints:
//!
//! ```text
//!   pods     the boundary to the pods, for the host endpoint *
//!   NAME     one for every interface that a host endpoint names, with the expectedIPs of that endpoint
//!   ADDRESS  one for every host endpoint without interfaceName, with those of its expectedIPs that no interface above has
//!   *        everything else, with the remaining addresses of the node
//! ```
//!
//! A remaining address is on the only interface of the middle rows that has none of its family, where there is exactly one such: a host
//! endpoint for eth0 without expectedIPs, on a node with one address, means that address. A node without host endpoints has none of these:
//! nobody would be asked. The reasons are in `docs/decisions/0011-host-endpoints.md`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use margay_policy_engine::engine::HostInterface;
use margay_policy_engine::model::{HostEndpoint, Model};
use margay_policy_engine::oracle;
use margay_policy_engine::packet::HostId;
use margay_policy_engine::walk::NodeRef;

/// Name of the interface that no host endpoint names; none can be called so.
const UPLINK: &str = "*";
/// What an answer calls the boundary between host and pods.
const PODS: &str = "pods";

/// Returns the assumed interfaces of every node that has a host endpoint, numbered from 1 in the order of nodes and names.
pub fn assumed(model: &Model) -> Vec<HostInterface> {
    let mut by_node: BTreeMap<&str, Vec<&HostEndpoint>> = BTreeMap::new();
    for endpoint in model.host_endpoints.values() {
        by_node.entry(&endpoint.node).or_default().push(endpoint);
    }
    let of_nodes = by_node.into_iter().flat_map(|(node, endpoints)| of_node(model, node, &endpoints));
    of_nodes.zip(1..).map(|(interface, number)| HostInterface { id: HostId(number), ..interface }).collect()
}

/// The interfaces of one node, not numbered yet. `endpoints` are in the order of their names.
fn of_node(model: &Model, node: &str, endpoints: &[&HostEndpoint]) -> Vec<HostInterface> {
    let mut specific: Vec<(String, Vec<IpAddr>)> = Vec::new();
    let mut owned: Vec<IpAddr> = Vec::new();
    for endpoint in endpoints.iter().filter(|endpoint| !matches!(endpoint.interface_name.as_str(), "" | "*"))
    {
        let place = specific.iter().position(|(name, _)| *name == endpoint.interface_name);
        let place = place.unwrap_or_else(|| {
            specific.push((endpoint.interface_name.clone(), Vec::new()));
            specific.len() - 1
        });
        take(&endpoint.expected_ips, &mut owned, &mut specific[place].1);
    }
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.interface_name.is_empty()) {
        let mut addresses = Vec::new();
        take(&endpoint.expected_ips, &mut owned, &mut addresses);
        if let Some(first) = addresses.first() {
            specific.push((first.to_string(), addresses));
        }
    }
    let mut rest = Vec::new();
    take(model.nodes.get(node).map_or(&[][..], |node| &node.addresses), &mut owned, &mut rest);
    let mut uplink = Vec::new();
    for is_ipv4 in [true, false] {
        let lacks = |(_, addresses): &(String, Vec<IpAddr>)| addresses.iter().all(|a| a.is_ipv4() != is_ipv4);
        let count = specific.iter().filter(|interface| lacks(interface)).count();
        let only = specific.iter_mut().find(|interface| lacks(interface)).filter(|_| count == 1);
        let holder = only.map_or(&mut uplink, |(_, addresses)| addresses);
        holder.extend(rest.iter().filter(|address| address.is_ipv4() == is_ipv4));
    }
    let interface = |name: &str, addresses: Vec<IpAddr>, is_pod_side| HostInterface {
        id: HostId(0),
        node: node.to_owned(),
        name: name.to_owned(),
        addresses,
        is_pod_side,
    };
    let mut interfaces = vec![interface("", Vec::new(), true)];
    interfaces.extend(specific.into_iter().map(|(name, addresses)| interface(&name, addresses, false)));
    interfaces.push(interface(UPLINK, uplink, false));
    interfaces
}

/// Moves what nobody has yet from `wanted` to `into`.
fn take(wanted: &[IpAddr], owned: &mut Vec<IpAddr>, into: &mut Vec<IpAddr>) {
    for address in wanted {
        if !owned.contains(address) {
            owned.push(*address);
            into.push(*address);
        }
    }
}

/// The interfaces of all nodes, ready to be asked which of them a packet crosses.
#[derive(Debug, Default)]
pub struct Interfaces {
    nodes: HashMap<String, OfNode>,
    shown: HashMap<HostId, Shown>,
}

#[derive(Debug, Default)]
struct OfNode {
    pods: Option<HostId>,
    uplink: Option<HostId>,
    by_name: HashMap<String, HostId>,
    by_address: HashMap<IpAddr, HostId>,
    /// The interfaces with a host endpoint of their own.
    specific: Vec<HostId>,
}

/// What an answer says about an interface.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Node.
    pub node: String,
    /// Interface.
    pub interface: String,
    /// The host endpoint that governs it; empty when none does.
    pub host_endpoint: String,
}

/// A node on a packet's way, with the interfaces that count.
#[derive(Clone, Debug, PartialEq)]
pub struct Crossing {
    node: String,
    pods: Option<HostId>,
    wire: Option<HostId>,
}

impl Crossing {
    /// Returns it as the walk takes it.
    pub fn as_node(&self) -> NodeRef<'_> {
        NodeRef { name: &self.node, pods: self.pods, wire: self.wire }
    }
}

impl Interfaces {
    /// Learns interfaces, and which host endpoint of `model` governs each.
    pub fn new<'a>(model: &Model, interfaces: impl Iterator<Item = &'a HostInterface>) -> Self {
        let mut all = Self::default();
        for interface in interfaces {
            let endpoint = oracle::resolve_interface(model, interface);
            let host_endpoint = endpoint.map_or_else(String::new, |endpoint| endpoint.name.clone());
            let name = if interface.is_pod_side { PODS } else { &interface.name };
            let shown = Shown { node: interface.node.clone(), interface: name.to_owned(), host_endpoint };
            all.shown.insert(interface.id, shown);
            let node = all.nodes.entry(interface.node.clone()).or_default();
            if interface.is_pod_side {
                node.pods = Some(interface.id);
                continue;
            }
            node.by_name.insert(interface.name.clone(), interface.id);
            node.by_address.extend(interface.addresses.iter().map(|address| (*address, interface.id)));
            if endpoint.is_some_and(|endpoint| endpoint.interface_name != "*") {
                node.specific.push(interface.id);
            }
            if interface.name == UPLINK {
                node.uplink = Some(interface.id);
            }
        }
        all
    }

    /// Returns whether no node has any.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns what an answer says about an interface.
    pub fn shown(&self, interface: HostId) -> Option<&Shown> {
        self.shown.get(&interface)
    }

    /// Returns whether `node` has an interface called `name`.
    pub fn has(&self, node: &str, name: &str) -> bool {
        self.nodes.get(node).is_some_and(|node| node.by_name.contains_key(name))
    }

    /// Returns how a packet crosses `node`: by the interface that was asked for, else by the one that has the first of `concerned` that
    /// any has, else by the only one with a host endpoint of its own, else by the uplink.
    pub fn crossing(&self, node: &str, wanted: Wanted<'_>, concerned: &[IpAddr]) -> Crossing {
        let name = node.to_owned();
        let Some(node) = self.nodes.get(node) else { return Crossing { node: name, pods: None, wire: None } };
        let by_address = || concerned.iter().find_map(|address| node.by_address.get(address));
        let only = || node.specific.first().filter(|_| node.specific.len() == 1);
        let wire = match wanted {
            Wanted::Named(name) => node.by_name.get(name),
            Wanted::Uplink => node.uplink.as_ref(),
            Wanted::Anything => None,
        };
        let assumed = || by_address().or_else(only).or(node.uplink.as_ref());
        let wire = if wanted == Wanted::Uplink { wire } else { wire.or_else(assumed) };
        Crossing { node: name, pods: node.pods, wire: wire.copied() }
    }
}

/// Which interface a probe asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted<'a> {
    /// It does not say.
    Anything,
    /// One that some node on the way has; on the others it says nothing.
    Named(&'a str),
    /// One that has no host endpoint of its own anywhere on the way.
    Uplink,
}
