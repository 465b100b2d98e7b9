//! The rows of policy model 7.8.

use std::collections::BTreeMap;

use super::super::{CalicoNode, KubeControllersConfiguration, Node, Object};
use super::*;
use crate::selector::Selector;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn ips(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(|text| text.parse().unwrap()).collect()
}

fn node(name: &str, addresses: &str, internal: usize) -> Node {
    Node {
        name: name.to_owned(),
        labels: labels(&[("zone", "a"), ("role", "worker")]),
        addresses: ips(addresses),
        internal_addresses: internal,
        pod_cidrs: Vec::new(),
        annotations: BTreeMap::new(),
    }
}

fn template(name: &str) -> HostEndpointTemplate {
    HostEndpointTemplate { generate_name: name.to_owned(), ..HostEndpointTemplate::default() }
}

fn world(nodes: Vec<Node>, create_default: bool, templates: Vec<HostEndpointTemplate>) -> Model {
    let mut model = Model::with_builtins();
    for node in nodes {
        model.insert(Object::Node(node.into()));
    }
    let name = "default".to_owned();
    let configuration = KubeControllersConfiguration { name, auto_create: true, create_default, templates };
    model.insert(Object::KubeControllersConfiguration(configuration.into()));
    model
}

fn calico() -> CalicoNode {
    CalicoNode {
        name: "n".to_owned(),
        labels: Labels::new(),
        addresses: ips("10.0.0.1 10.244.0.1"),
        interfaces: vec![
            ("eth0".to_owned(), ips("10.0.0.1")),
            ("eth1".to_owned(), ips("192.0.2.7 fd00::7")),
            ("lo".to_owned(), ips("127.0.0.1")),
        ],
    }
}

#[test]
fn pm_7_8_nothing_unless_enabled() {
    let mut model = Model::with_builtins();
    model.insert(Object::Node(node("n", "10.0.0.1", 1).into()));
    assert!(automatic_host_endpoints(&model).is_empty());
    let off = KubeControllersConfiguration {
        name: "default".to_owned(),
        create_default: true,
        ..Default::default()
    };
    model.insert(Object::KubeControllersConfiguration(off.into()));
    assert!(automatic_host_endpoints(&model).is_empty(), "autoCreate is Disabled by default");
    let elsewhere = KubeControllersConfiguration {
        name: "x".to_owned(),
        auto_create: true,
        create_default: true,
        templates: Vec::new(),
    };
    model.insert(Object::KubeControllersConfiguration(elsewhere.into()));
    assert!(automatic_host_endpoints(&model).is_empty(), "only the object default counts");
}

#[test]
fn pm_7_8_default_endpoint() {
    let made = automatic_host_endpoints(&world(
        vec![node("n", "10.0.0.1 fd00::1 203.0.113.1", 2)],
        true,
        Vec::new(),
    ));
    let expected = HostEndpoint {
        name: "n-auto-hep".to_owned(),
        labels: labels(&[("zone", "a"), ("role", "worker"), (CREATED_BY, CONTROLLERS)]),
        node: "n".to_owned(),
        interface_name: "*".to_owned(),
        expected_ips: ips("10.0.0.1 fd00::1"),
        profiles: vec!["projectcalico-default-allow".to_owned()],
        ports: Vec::new(),
    };
    assert_eq!(made, [expected], "an ExternalIP is not expected");
    assert!(automatic_host_endpoints(&world(vec![node("n", "10.0.0.1", 1)], false, Vec::new())).is_empty());
}

#[test]
fn pm_7_8_expected_addresses_in_order_each_once_invalid_ones_skipped() {
    let mut host = node("n", "10.0.0.1 10.0.0.9", 2);
    for (key, value) in [
        ("IPv6WireguardInterfaceAddr", "fd00::b"),
        ("IPv4WireguardInterfaceAddr", "10.244.0.4"),
        ("IPv6VXLANTunnelAddr", "fd00::a"),
        ("IPv4VXLANTunnelAddr", "nonsense"),
        ("IPv4IPIPTunnelAddr", "10.244.0.2"),
        ("IPv6Address", "fd00::1/64"),
        ("IPv4Address", "10.0.0.1/24"),
        ("WireguardPublicKey", "abc"),
    ] {
        host.annotations.insert(format!("projectcalico.org/{key}"), value.to_owned());
    }
    let mut model = world(vec![host], true, Vec::new());
    let expected = ips("10.0.0.1 fd00::1 10.244.0.2 fd00::a 10.244.0.4 fd00::b 10.0.0.9");
    assert_eq!(automatic_host_endpoints(&model)[0].expected_ips, expected);
    model.insert(Object::CalicoNode(calico().into()));
    let expected = ips(
        "10.0.0.1 10.244.0.1 fd00::1 10.244.0.2 fd00::a 10.244.0.4 fd00::b 10.0.0.9 192.0.2.7 fd00::7 127.0.0.1",
    );
    assert_eq!(automatic_host_endpoints(&model)[0].expected_ips, expected, "listed interfaces come last");
}

#[test]
fn pm_7_8_template_by_networks() {
    let external = HostEndpointTemplate {
        interface_cidrs: vec!["192.0.2.0/24".parse().unwrap(), "fd00::/16".parse().unwrap()],
        labels: labels(&[("zone", "edge"), ("kind", "external")]),
        ..template("ext")
    };
    let mut model =
        world(vec![node("n", "10.0.0.1", 1), node("plain", "10.0.0.2", 1)], false, vec![external]);
    model.insert(Object::CalicoNode(calico().into()));
    let made = automatic_host_endpoints(&model);
    assert_eq!(made.len(), 1, "a node without such an address has no such endpoint: {made:#?}");
    assert_eq!((made[0].name.as_str(), made[0].interface_name.as_str()), ("n-ext-auto-hep", ""));
    assert_eq!(made[0].expected_ips, ips("192.0.2.7 fd00::7"));
    let expected = [("zone", "edge"), ("kind", "external"), ("role", "worker"), (CREATED_BY, CONTROLLERS)];
    assert_eq!(made[0].labels, labels(&expected), "labels of the template win");
}

#[test]
fn pm_7_8_template_by_interface() {
    let pattern = HostEndpointTemplate {
        interface_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        interface_pattern: Some("^eth".to_owned()),
        ..template("nic")
    };
    let mut model = world(vec![node("n", "10.0.0.1", 1)], true, vec![pattern]);
    model.insert(Object::CalicoNode(calico().into()));
    let made = automatic_host_endpoints(&model);
    let shown: Vec<_> = made.iter().map(|made| (made.name.as_str(), made.interface_name.as_str())).collect();
    assert_eq!(
        shown,
        [("n-auto-hep", "*"), ("n-nic-eth0-auto-hep", "eth0"), ("n-nic-eth1-auto-hep", "eth1")]
    );
    assert_eq!(made[1].expected_ips, ips("10.244.0.1 10.0.0.1"));
    assert_eq!(made[2].expected_ips, ips("10.244.0.1 192.0.2.7 fd00::7"));
}

#[test]
fn pm_7_8_template_for_some_nodes() {
    let some = HostEndpointTemplate {
        interface_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
        node_selector: Some(Selector::parse("gpu == 'yes'").unwrap()),
        ..template("gpu")
    };
    let mut chosen = node("chosen", "10.0.0.2", 1);
    chosen.labels.insert("gpu".to_owned(), "yes".to_owned());
    let made = automatic_host_endpoints(&world(vec![node("n", "10.0.0.1", 1), chosen], false, vec![some]));
    assert_eq!(made.iter().map(|made| made.name.as_str()).collect::<Vec<_>>(), ["chosen-gpu-auto-hep"]);
}

#[test]
fn pm_7_8_over_long_names_are_hashed() {
    let longest = "n".repeat(253 - SUFFIX.len());
    let too_long = format!("{longest}n");
    let made = automatic_host_endpoints(&world(
        vec![node(&longest, "10.0.0.1", 1), node(&too_long, "10.0.0.2", 1)],
        true,
        Vec::new(),
    ));
    assert_eq!(made[0].name, format!("{longest}-auto-hep"));
    let hash = made[1].name.strip_suffix(SUFFIX).unwrap();
    assert!(
        hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase()),
        "{hash}"
    );
    assert_eq!(made[1].node, too_long);
}

#[test]
fn pm_7_8_what_was_written_by_hand_stands() {
    let mut model = world(vec![node("n", "10.0.0.1", 1)], true, Vec::new());
    let mut written = automatic_host_endpoints(&model).remove(0);
    model.insert(Object::HostEndpoint(written.clone().into()));
    assert_eq!(automatic_host_endpoints(&model).len(), 1, "one with the label is kept in sync");
    written.labels.remove(CREATED_BY);
    model.insert(Object::HostEndpoint(written.into()));
    assert!(automatic_host_endpoints(&model).is_empty());
}

#[test]
fn pm_7_8_node_or_switch_gone_and_nothing_remains() {
    let mut model = world(vec![node("n", "10.0.0.1", 1), node("m", "10.0.0.2", 1)], true, Vec::new());
    assert_eq!(automatic_host_endpoints(&model).len(), 2);
    model.nodes.remove("m");
    assert_eq!(automatic_host_endpoints(&model).len(), 1);
    model.kube_controllers.clear();
    assert!(automatic_host_endpoints(&model).is_empty());
}
