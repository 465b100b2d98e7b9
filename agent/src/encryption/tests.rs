//! Clusters for tests: of plans, and of conductors that read of each other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use margay_core::tunnel::plan::FamilyPlan;
use margay_policy_engine::model::{FelixConfiguration, IpPool, Model, Node};

use super::Family;
use super::keys::{Ring, in_base64};

mod conductors;
mod plans;

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Node `n<number>` with addresses and pod networks of both families.
pub(super) fn node(number: u8) -> Node {
    Node {
        name: format!("n{number}"),
        addresses: vec![ip(&format!("192.0.2.{number}")), ip(&format!("2001:db8::{number}"))],
        internal_addresses: 2,
        pod_cidrs: vec![net(&format!("10.244.{number}.0/24")), net(&format!("fd00:{number}::/64"))],
        labels: Default::default(),
        annotations: Default::default(),
    }
}

pub(super) fn felix(model: &mut Model, name: &str, fields: &[(&str, &str)]) {
    let others = fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let written = FelixConfiguration { name: name.to_owned(), others, ..Default::default() };
    model.felix_configurations.insert(name.to_owned(), Arc::new(written));
}

pub(super) fn pool(model: &mut Model, cidr: &str, encryption: Option<&str>) {
    let others = encryption.map(|word| ("encryption".to_owned(), word.to_owned())).into_iter().collect();
    let name = cidr.replace(['/', ':'], "-");
    let pool = IpPool { name: name.clone(), cidr: net(cidr), nat_outgoing: false, disabled: false, others };
    model.ip_pools.insert(name, Arc::new(pool));
}

pub(super) const ON: [(&str, &str); 2] = [("wireguardEnabled", "true"), ("wireguardEnabledV6", "true")];

/// A cluster of nodes with keys that are published.
pub(super) fn cluster(nodes: u8) -> (Model, BTreeMap<String, Ring>) {
    let mut model = Model::default();
    felix(&mut model, "default", &ON);
    let mut rings = BTreeMap::new();
    for number in 1..=nodes {
        let (mut node, ring) = (node(number), Ring::make(0).unwrap());
        publish(&mut node, &ring);
        rings.insert(node.name.clone(), ring);
        model.nodes.insert(node.name.clone(), Arc::new(node));
    }
    (model, rings)
}

pub(super) fn publish(node: &mut Node, ring: &Ring) {
    for family in Family::ALL {
        let keys: Vec<String> = ring.of(family).all().map(|key| in_base64(key.public())).collect();
        node.annotations.insert(family.key_annotation().into(), keys[0].clone());
        node.annotations.insert(family.keys_annotation().into(), keys.join(","));
    }
}

pub(super) fn change(model: &mut Model, name: &str, change: impl FnOnce(&mut Node)) {
    change(Arc::make_mut(model.nodes.get_mut(name).unwrap()));
}

pub(super) fn peers(plan: &Option<FamilyPlan>) -> Vec<&str> {
    plan.iter().flat_map(|plan| plan.peers.iter().map(|peer| peer.node.as_str())).collect()
}
