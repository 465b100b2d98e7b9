//! Plans of whole clusters (policy model 25.4 to 25.7, 32.2, 32.4).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use margay_core::tunnel::PublicKey;
use margay_core::tunnel::plan::{EncryptionPlan, FamilyPlan};
use margay_policy_engine::model::Model;
use proptest::prelude::*;

use super::super::Family;
use super::super::keys::{Ring, in_base64};
use super::super::plan::{Finding, PeerIds, Planned, keys_of, plan};
use super::{ON, change, cluster, felix, ip, net, node, peers, pool, publish};

fn planned(model: &Model, rings: &BTreeMap<String, Ring>, name: &str) -> Planned {
    plan(model, name, rings.get(name), &mut PeerIds::default())
}

fn allowed(plan: &Option<FamilyPlan>, node: &str) -> Vec<String> {
    let peers = plan.iter().flat_map(|plan| &plan.peers);
    peers
        .filter(|peer| peer.node == node)
        .flat_map(|peer| peer.allowed.iter().map(ToString::to_string))
        .collect()
}

#[test]
fn pm_25_4_peers_are_the_nodes_with_a_key_and_an_address() {
    let (mut model, rings) = cluster(4);
    felix(
        &mut model,
        "default",
        &[ON[0], ON[1], ("wireguardListeningPort", "7000"), ("wireguardKeepAlive", "25s")],
    );
    change(&mut model, "n3", |node| drop(node.annotations.remove(Family::V4.key_annotation())));
    change(&mut model, "n4", |node| node.addresses.truncate(1));
    let planned = planned(&model, &rings, "n1");
    let v4 = planned.plan.v4.as_ref().unwrap();
    assert_eq!(peers(&planned.plan.v4), ["n2", "n4"]);
    assert_eq!(peers(&planned.plan.v6), ["n2", "n3"]);
    let peer = &v4.peers[0];
    assert_eq!(
        (v4.own.port, peer.endpoint),
        (7_000, "192.0.2.2:7000".parse().unwrap()),
        "ports are assumed equal"
    );
    assert_eq!(planned.plan.v6.as_ref().unwrap().own.port, 51_821);
    assert_eq!(
        (peer.keepalive, allowed(&planned.plan.v4, "n2")),
        (Some(25), vec!["10.244.2.0/24".to_owned()])
    );
    assert_eq!(peer.keys, [rings["n2"].v4.current.public()]);
    let without = Finding::NoKey { family: Family::V4, nodes: vec!["n3".into()], strict: false };
    assert!(planned.findings.contains(&without), "{:?}", planned.findings);
    assert_eq!(planned.interface, [ip("10.244.1.0"), ip("fd00:1::")]);
}

#[test]
fn pm_25_4_a_key_of_two_nodes_is_nobodys() {
    let (mut model, mut rings) = cluster(4);
    let key = in_base64(rings["n2"].v4.current.public());
    change(&mut model, "n3", |node| drop(node.annotations.insert(Family::V4.key_annotation().into(), key)));
    let found = planned(&model, &rings, "n1");
    assert_eq!(peers(&found.plan.v4), ["n4"]);
    assert_eq!(peers(&found.plan.v6), ["n2", "n3", "n4"]);
    let shared = Finding::SharedKey { family: Family::V4, nodes: vec!["n2".into(), "n3".into()] };
    assert!(found.findings.contains(&shared));
    assert_eq!(peers(&planned(&model, &rings, "n2").plan.v4), [""; 0], "nobody takes it for a peer either");
    // Also where the key is only announced.
    let (mut model, _) = cluster(4);
    let ring = rings.get_mut("n2").unwrap();
    publish(Arc::make_mut(model.nodes.get_mut("n2").unwrap()), ring);
    let key = in_base64(ring.v4.current.public());
    change(&mut model, "n3", |node| drop(node.annotations.insert(Family::V4.keys_annotation().into(), key)));
    assert_eq!(peers(&planned(&model, &rings, "n4").plan.v4), ["n1"]);
}

#[test]
fn pm_25_1_a_node_that_is_told_to_be_without_is_no_peer_and_has_no_tunnel() {
    let (mut model, rings) = cluster(3);
    felix(&mut model, "node.n2", &[("wireguardEnabled", "false"), ("encryptionMode", "Strict")]);
    assert_eq!(peers(&planned(&model, &rings, "n1").plan.v4), ["n3"], "its annotation is on its way out");
    let own = planned(&model, &rings, "n2");
    assert!(own.plan.v4.is_none() && own.plan.v6.is_some());
    assert!(own.plan.required.iter().all(|(net, _)| net.addr().is_ipv6()), "what is off requires nothing");
    assert!(!own.findings.iter().any(|finding| matches!(finding, Finding::NoKey { .. })));
}

#[test]
fn a_node_cannot_take_the_addresses_of_another() {
    let (mut model, rings) = cluster(4);
    change(&mut model, "n3", |node| node.pod_cidrs.push(net("10.244.2.128/25")));
    change(&mut model, "n4", |node| {
        node.annotations.insert(Family::V4.address_annotation().into(), "10.244.1.7".into());
        node.annotations.insert(Family::V6.address_annotation().into(), "2001:db8::1".into());
    });
    let found = planned(&model, &rings, "n1");
    assert_eq!(allowed(&found.plan.v4, "n2"), [""; 0]);
    assert_eq!(allowed(&found.plan.v4, "n3"), ["10.244.3.0/24"]);
    assert_eq!(allowed(&found.plan.v4, "n4"), ["10.244.4.0/24"]);
    assert_eq!(allowed(&found.plan.v6, "n4"), ["fd00:4::/64"]);
    assert!(found.findings.contains(&Finding::Contested { net: net("10.244.2.0/24"), node: "n2".into() }));
    // An address that is nobody's may be a device's (policy model 25.4, tunnel addresses), if one node says so.
    change(&mut model, "n4", |node| {
        node.annotations.insert(Family::V4.address_annotation().into(), "10.9.9.9/32".into());
    });
    let of_n4 = |model: &Model| allowed(&planned(model, &rings, "n1").plan.v4, "n4");
    assert_eq!(of_n4(&model), ["10.244.4.0/24"], "what is outside the pools is no device's");
    pool(&mut model, "10.9.0.0/16", None);
    assert_eq!(of_n4(&model), ["10.9.9.9/32", "10.244.4.0/24"]);
    change(&mut model, "n2", |node| {
        node.annotations.insert(Family::V4.address_annotation().into(), "10.9.9.9".into());
    });
    assert_eq!(allowed(&planned(&model, &rings, "n1").plan.v4, "n4"), ["10.244.4.0/24"]);
}

#[test]
fn pm_32_2_pools_that_are_left_out_are_neither_sent_nor_expected_sealed() {
    let (mut model, rings) = cluster(3);
    pool(&mut model, "10.244.0.0/16", Some("WireGuard"));
    pool(&mut model, "10.244.2.64/26", Some("None"));
    let found = planned(&model, &rings, "n1");
    assert_eq!(allowed(&found.plan.v4, "n2"), ["10.244.2.0/26", "10.244.2.128/25"]);
    let selected: BTreeMap<IpNet, bool> = found.plan.selected.iter().copied().collect();
    assert!(selected[&net("10.244.0.0/16")]);
    assert!(!selected[&net("10.244.2.64/26")]);
    assert!(!selected[&net("192.0.2.1/32")], "our own packets, without host encryption");
    // A node that does not know of pools' words encrypts whatever its pods send.
    change(&mut model, "n2", |node| drop(node.annotations.remove(Family::V4.keys_annotation())));
    assert_eq!(allowed(&planned(&model, &rings, "n1").plan.v4, "n2"), ["10.244.2.0/24"]);
}

#[test]
fn pm_32_4_strict_covers_the_first_seconds_of_a_new_node_and_spares_who_is_exempt() {
    let (mut model, rings) = cluster(3);
    let strict = [ON[0], ("encryptionMode", "Strict"), ("encryptionExemptNodes", "has(legacy)")];
    felix(&mut model, "default", &strict);
    let found = planned(&model, &rings, "n1");
    assert!(found.findings.contains(&Finding::NoPools), "only Nodes say where pods are");
    assert_eq!(found.plan.required.len(), 3);
    pool(&mut model, "10.244.0.0/16", None);
    pool(&mut model, "10.245.0.0/16", Some("None"));
    change(&mut model, "n3", |node| drop(node.labels.insert("legacy".into(), String::new())));
    change(&mut model, "n2", |node| node.pod_cidrs.push(net("172.16.0.0/24")));
    let required = |name: &str, ring: bool| -> BTreeMap<String, bool> {
        let ring = rings.get(name).filter(|_| ring);
        let found = plan(&model, name, ring, &mut PeerIds::default()).plan;
        found.required.iter().map(|(net, word)| (net.to_string(), *word)).collect()
    };
    let wanted: BTreeMap<String, bool> = [
        ("10.244.0.0/16", true),
        ("10.245.0.0/16", false),
        ("10.244.3.0/24", false),
        ("172.16.0.0/24", true),
    ]
    .map(|(net, word)| (net.to_owned(), word))
    .into();
    assert_eq!(required("n1", true), wanted);
    assert_eq!(required("n1", false), wanted, "also before our keys are read");
    assert_eq!(required("n3", true), BTreeMap::new(), "an exempt node speaks to everybody in clear");
    change(&mut model, "n2", |node| node.annotations.clear());
    change(&mut model, "n3", |node| node.annotations.clear());
    let found = planned(&model, &rings, "n1");
    let without = Finding::NoKey { family: Family::V4, nodes: vec!["n2".into()], strict: true };
    assert!(found.findings.contains(&without), "{:?}", found.findings);
    let mut without_us = model.clone();
    without_us.nodes.remove("n1");
    assert_eq!(planned(&without_us, &rings, "n1").plan.required.len(), 4, "before our own Node is known");
    // Whoever is exempt and claims what is another's frees nobody else.
    change(&mut model, "n3", |node| node.pod_cidrs.push(net("10.244.2.0/23")));
    let freed: Vec<IpNet> = planned(&model, &rings, "n1")
        .plan
        .required
        .iter()
        .filter(|(_, word)| !word)
        .map(|(net, _)| *net)
        .collect();
    assert_eq!(freed, [net("10.244.3.0/24"), net("10.245.0.0/16")], "its own, and what no pool encrypts");
    felix(&mut model, "default", &ON);
    assert!(planned(&model, &rings, "n1").plan.required.is_empty(), "Permissive");
}

#[test]
fn pm_25_6_host_encryption_takes_both_ends_and_their_own_addresses() {
    let (mut model, rings) = cluster(4);
    felix(&mut model, "default", &[ON[0], ("wireguardHostEncryptionEnabled", "true")]);
    felix(&mut model, "node.n3", &[("wireguardHostEncryptionEnabled", "false")]);
    // Two that claim one address have neither.
    change(&mut model, "n4", |node| node.addresses.insert(0, ip("192.0.2.9")));
    change(&mut model, "n4", |node| node.internal_addresses = 3);
    change(&mut model, "n3", |node| node.addresses.push(ip("192.0.2.9")));
    let found = planned(&model, &rings, "n1");
    assert_eq!(allowed(&found.plan.v4, "n2"), ["10.244.2.0/24", "192.0.2.2/32"]);
    assert_eq!(allowed(&found.plan.v4, "n3"), ["10.244.3.0/24"]);
    assert_eq!(allowed(&found.plan.v4, "n4"), ["10.244.4.0/24", "192.0.2.4/32"]);
    assert_eq!(found.hosts, BTreeSet::from([ip("192.0.2.2"), ip("192.0.2.4")]));
    assert!(found.plan.selected.is_empty(), "our own addresses too");
}

#[test]
fn a_peers_number_stays_while_its_node_does() {
    let (mut model, rings) = cluster(4);
    let mut ids = PeerIds::default();
    let mut numbers = |model: &Model| -> BTreeMap<String, u32> {
        let found = plan(model, "n1", rings.get("n1"), &mut ids).plan;
        found.v4.unwrap().peers.iter().map(|peer| (peer.node.clone(), peer.id.0)).collect()
    };
    let before = numbers(&model);
    let gone = model.nodes.remove("n2").unwrap();
    let mut added = node(7);
    publish(&mut added, &rings["n2"]);
    model.nodes.insert("n7".into(), Arc::new(added));
    let after = numbers(&model);
    assert_eq!((after["n3"], after["n4"], after["n7"]), (before["n3"], before["n4"], before["n2"]));
    model.nodes.insert("n2".into(), Arc::new((*gone).clone()));
    let distinct: BTreeSet<u32> = numbers(&model).into_values().collect();
    assert!(distinct.is_empty() || distinct.len() == numbers(&model).len());
}

/// What may be odd about a node.
#[derive(Clone, Debug)]
enum Odd {
    NoKey(u8),
    KeyOf(u8, u8),
    Off(u8),
    Claims(u8, u8, u8),
    NoAddress(u8),
    Unaware(u8),
    Pool(u8, u8, bool),
}

fn odd() -> impl Strategy<Value = Odd> {
    let some = || 1u8..=5;
    prop_oneof![
        some().prop_map(Odd::NoKey),
        (some(), some()).prop_map(|(a, b)| Odd::KeyOf(a, b)),
        some().prop_map(Odd::Off),
        (some(), some(), 20u8..=28).prop_map(|(a, b, length)| Odd::Claims(a, b, length)),
        some().prop_map(Odd::NoAddress),
        some().prop_map(Odd::Unaware),
        (some(), 22u8..=28, any::<bool>()).prop_map(|(a, length, word)| Odd::Pool(a, length, word)),
    ]
}

fn make(odds: &[Odd], host: bool) -> (Model, BTreeMap<String, Ring>) {
    let (mut model, all) = cluster(5);
    let mut rings = all.clone();
    let host = if host { "true" } else { "false" };
    felix(
        &mut model,
        "default",
        &[ON[0], ("encryptionMode", "Strict"), ("wireguardHostEncryptionEnabled", host)],
    );
    for odd in odds {
        let name = |number: &u8| format!("n{number}");
        match odd {
            Odd::NoKey(a) => {
                rings.remove(&name(a));
                change(&mut model, &name(a), |node| node.annotations.clear());
            }
            Odd::KeyOf(a, b) => {
                let key = in_base64(all[&name(b)].v4.current.public());
                change(&mut model, &name(a), |node| {
                    node.annotations.insert(Family::V4.key_annotation().into(), key.clone());
                });
            }
            Odd::Off(a) => felix(&mut model, &format!("node.n{a}"), &[("wireguardEnabled", "false")]),
            Odd::Claims(a, b, length) => {
                let claimed = IpNet::new(ip(&format!("10.244.{b}.64")), *length).unwrap().trunc();
                change(&mut model, &name(a), |node| node.pod_cidrs.push(claimed));
            }
            Odd::NoAddress(a) => change(&mut model, &name(a), |node| node.addresses.clear()),
            Odd::Unaware(a) => change(&mut model, &name(a), |node| {
                node.annotations.remove(Family::V4.keys_annotation());
            }),
            Odd::Pool(a, length, word) => {
                let cidr = IpNet::new(ip(&format!("10.244.{a}.32")), *length).unwrap().trunc().to_string();
                pool(&mut model, &cidr, Some(if *word { "WireGuard" } else { "None" }));
            }
        }
    }
    (model, rings)
}

/// Whether `key` is a key of the node by its own ring: what it publishes may be somebody else's.
fn has(ring: &Ring, key: PublicKey) -> bool {
    ring.v4.all().any(|own| own.public() == key)
}

fn speaks_for(plan: &EncryptionPlan, address: IpAddr) -> Vec<&str> {
    let peers = plan.v4.iter().flat_map(|plan| &plan.peers);
    peers
        .filter(|peer| peer.allowed.iter().any(|net| net.contains(&address)))
        .map(|peer| peer.node.as_str())
        .collect()
}

fn is_selected(plan: &EncryptionPlan, address: IpAddr) -> bool {
    let inside = plan.selected.iter().filter(|(net, _)| net.contains(&address));
    inside.max_by_key(|(net, _)| net.prefix_len()).is_none_or(|(_, word)| *word)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Two agents that see one cluster have plans that fit: what one seals, the other opens, and takes as the sender's.
    #[test]
    fn plans_of_two_nodes_fit_together(odds in proptest::collection::vec(odd(), 0..6), host in any::<bool>()) {
        let (model, rings) = make(&odds, host);
        let plans: BTreeMap<String, EncryptionPlan> =
            model.nodes.keys().map(|name| (name.clone(), planned(&model, &rings, name).plan)).collect();
        let mut addresses: Vec<IpAddr> = Vec::new();
        for number in 1..=5 {
            for last in [0, 1, 40, 70, 100, 140, 200, 255] {
                addresses.push(ip(&format!("10.244.{number}.{last}")));
            }
            addresses.push(ip(&format!("192.0.2.{number}")));
        }
        for (own, plan) in &plans {
            for address in &addresses {
                let owners = speaks_for(plan, *address);
                prop_assert!(owners.len() <= 1, "{own}: {address} belongs to {owners:?}");
            }
            let Some(v4) = &plan.v4 else { continue };
            // A node whose published key is not its own corrects that within a moment; until then nobody can speak to it.
            let says_the_truth = |name: &str| {
                let said = keys_of(&model.nodes[name], Family::V4).unwrap_or_default();
                rings.get(name).is_some_and(|ring| !said.is_empty() && said.iter().all(|key| has(ring, *key)))
            };
            for peer in &v4.peers {
                let is_true = says_the_truth(own) && says_the_truth(&peer.node);
                let Some(theirs) = &plans[&peer.node].v4 else {
                    prop_assert!(!is_true, "{} is a peer of {own} and has no tunnel: {odds:?}", peer.node);
                    continue;
                };
                let back = theirs.peers.iter().find(|back| back.node == *own);
                if !is_true {
                    continue;
                }
                prop_assert!(back.is_some(), "{own} has {} as a peer, and not the other way round: {odds:?}", peer.node);
                let back = back.unwrap();
                prop_assert!(back.keys.iter().all(|key| has(&rings[own], *key)));
                prop_assert_eq!(peer.endpoint.port(), theirs.own.port);
                // A packet of ours for one of its addresses: sealed only if it takes the source as ours.
                let knows = |name: &str| model.nodes[name].annotations.contains_key(Family::V4.keys_annotation());
                if !knows(own) || !knows(&peer.node) {
                    continue;
                }
                for source in addresses.iter().filter(|source| speaks_for(&plans[&peer.node], **source) == [own.as_str()]) {
                    prop_assert!(is_selected(plan, *source), "{source} of {own} would be sent in clear: {odds:?}");
                }
                let own_nets = &model.nodes[own].pod_cidrs;
                for source in addresses.iter().filter(|source| own_nets.iter().any(|net| net.contains(*source))) {
                    let is_taken = speaks_for(&plans[&peer.node], *source) == [own.as_str()];
                    let is_contested = model.nodes.values().any(|other| {
                        other.name != *own && other.pod_cidrs.iter().any(|net| own_nets.iter().any(|own| {
                            own.contains(source) && (net.contains(own) || own.contains(net))
                        }))
                    });
                    prop_assert!(is_taken || is_contested || !is_selected(plan, *source), "{source} of {own} is sealed and refused: {odds:?}");
                }
            }
        }
    }
}
