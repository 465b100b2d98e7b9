//! Policy, pods and frames to measure with.
//!
//! Two pods under one long policy for the packet path; a cluster of many pods and policies for compilation.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use margay_core::topology::{Port, PortKind, TopologyBuilder};
use margay_core::{PortIndex, Topology};
use margay_policy_engine::engine::{Change, Engine, LocalEndpoint};
use margay_policy_engine::model::{
    Action, Entity, Namespace, NamespacedName, Node, Object, Order, Pod, Policy, PolicyFlags, PolicyKey,
    PolicyKind, PortMatch, Rule,
};
use margay_policy_engine::packet::EndpointId;
use margay_policy_engine::selector::Selector;
use margay_wire::{MacAddr, build, protocol};

/// Port of the pod that sends.
pub const A: PortIndex = PortIndex(0);
/// Port of the pod that receives.
pub const B: PortIndex = PortIndex(1);
/// Address of the pod behind [`A`].
pub const ADDRESS_A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// Address of the pod behind [`B`].
pub const ADDRESS_B: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
/// Node of every local pod of a cluster.
pub const HERE: &str = "node-0";

/// Returns an Ethernet address of ours.
pub fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

/// Returns the Ethernet address of the pod behind a port.
pub fn pod_mac(port: PortIndex) -> MacAddr {
    mac(0x80 + port.0 as u8)
}

/// Returns our own Ethernet address on a port.
pub fn port_mac(port: PortIndex) -> MacAddr {
    mac(0x10 + port.0 as u8)
}

/// Returns a pod with one label of its own.
pub fn pod(namespace: &str, name: &str, app: &str, node: &str, address: Ipv4Addr) -> Pod {
    let labels =
        [("app", app), ("projectcalico.org/namespace", namespace), ("projectcalico.org/orchestrator", "k8s")];
    Pod {
        key: NamespacedName { namespace: namespace.to_owned(), name: name.to_owned() },
        uid: String::new(),
        labels: Arc::new(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
        service_account: None,
        node: Some(node.to_owned()),
        host_network: false,
        finished: false,
        addresses: vec![address.into()],
        annotated_addresses: Vec::new(),
        ports: Vec::new(),
        started: String::new(),
        annotations: Default::default(),
    }
}

/// Returns a rule that allows a protocol between two peers.
pub fn allow(protocol: u8, source: Entity, destination: Entity) -> Rule {
    Rule { protocol: Some(protocol), source, destination, ..Rule::everything(Action::Allow) }
}

/// Returns the peer that is anybody on one port.
pub fn port(port: u16) -> Entity {
    Entity { ports: vec![PortMatch::Range { first: port, last: port }], ..Entity::default() }
}

/// Returns a global policy that governs what reaches the selected pods.
pub fn ingress(name: &str, order: f64, selector: &str, ingress: Vec<Rule>) -> Object {
    let key = PolicyKey { kind: PolicyKind::GlobalNetworkPolicy, namespace: None, name: name.to_owned() };
    policy(key, order, selector, ingress)
}

/// Returns a policy that lets pods of a namespace be reached from their own namespace only.
pub fn own_namespace_only(namespace: &str) -> Object {
    let key = PolicyKey {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some(namespace.to_owned()),
        name: "isolated".to_owned(),
    };
    let own = format!("projectcalico.org/namespace == '{namespace}'");
    let source = Entity { selector: Selector::parse(&own).ok(), ..Entity::default() };
    policy(key, 1.0, &own, vec![Rule { source, ..Rule::everything(Action::Allow) }])
}

fn policy(key: PolicyKey, order: f64, selector: &str, ingress: Vec<Rule>) -> Object {
    Object::Policy(Arc::new(Policy {
        key,
        tier: "default".to_owned(),
        order: Order(order),
        selector: Selector::parse(selector).ok(),
        governs_ingress: true,
        governs_egress: false,
        ingress,
        egress: Vec::new(),
        flags: PolicyFlags::default(),
        staged: None,
    }))
}

/// Returns the event of a namespace without labels.
pub fn namespace(name: &str) -> Change {
    Change::Upsert(Object::Namespace(Arc::new(Namespace {
        name: name.to_owned(),
        labels: Default::default(),
    })))
}

/// Returns the local endpoint of a pod.
pub fn local(id: u32, pod: &Pod) -> LocalEndpoint {
    LocalEndpoint {
        id: EndpointId(id),
        pod: pod.key.clone(),
        uid: String::new(),
        addresses: pod.addresses.clone(),
    }
}

/// Returns the policy on pod B: `rules` rules that do not match, and a last one that allows the traffic. `variant` changes the first.
pub fn long_policy(rules: usize, variant: u16) -> Object {
    let mut list: Vec<Rule> = (0..rules)
        .map(|n| allow(protocol::UDP, Entity::default(), port(20_000 + (n % 40_000) as u16)))
        .collect();
    if let Some(first) = list.first_mut() {
        first.destination = port(60_000 + variant % 1_000);
    }
    list.push(allow(protocol::UDP, Entity::default(), Entity::default()));
    ingress("bench", 1.0, "app == 'b'", list)
}

/// Returns two pods, the receiver under one policy of `rules` rules that do not match and a last one that allows the traffic.
pub fn two_pods(rules: usize) -> (Engine, Topology) {
    two_pods_among(rules, &[])
}

/// Returns [`two_pods`] with a further pod behind each of `others`, devices whose ports follow in order.
pub fn two_pods_among(rules: usize, others: &[String]) -> (Engine, Topology) {
    let mut engine = Engine::new();
    engine.apply(namespace("ns"));
    engine.apply(Change::Upsert(long_policy(rules, 0)));
    let mut builder = TopologyBuilder::default();
    let mut add = |index: PortIndex, name: &str, address: Ipv4Addr, ours: MacAddr, theirs: MacAddr| {
        let pod = pod("ns", name, name, "node", address);
        let endpoint = local(u32::from(index.0), &pod);
        engine.apply(Change::Upsert(Object::Pod(Arc::new(pod))));
        engine.apply(Change::Endpoint(endpoint.clone()));
        let kind = PortKind::Pod { endpoint: endpoint.id, pod_mac: theirs, addresses: vec![address.into()] };
        builder.ports.push(Port { index, name: name.to_owned(), kind, mac: ours, mtu: 1500 });
    };
    for (index, name, address) in [(A, "a", ADDRESS_A), (B, "b", ADDRESS_B)] {
        add(index, name, address, port_mac(index), pod_mac(index));
    }
    for (n, name) in others.iter().enumerate() {
        let (high, low) = ((n / 250) as u8, (n % 250) as u8);
        let [ours, theirs] = [1, 2].map(|side| MacAddr([2, 0, 0, side, high, low]));
        add(PortIndex(n as u16 + 2), name, Ipv4Addr::new(10, 3, high, low + 2), ours, theirs);
    }
    (engine, builder.build(1))
}

fn ports_of(flow: usize) -> (u16, u16) {
    (1024 + (flow % 60_000) as u16, 53 + (flow / 60_000) as u16)
}

/// Returns a 64-byte frame of a flow from pod A to pod B.
pub fn frame(flow: usize) -> Vec<u8> {
    let (sport, dport) = ports_of(flow);
    let macs = (pod_mac(A), port_mac(A));
    build::udp(macs, (IpAddr::V4(ADDRESS_A), sport), (IpAddr::V4(ADDRESS_B), dport), &[0; 22])
}

/// Returns the answer to [`frame`].
pub fn answer(flow: usize) -> Vec<u8> {
    let (sport, dport) = ports_of(flow);
    let macs = (pod_mac(B), port_mac(B));
    build::udp(macs, (IpAddr::V4(ADDRESS_B), dport), (IpAddr::V4(ADDRESS_A), sport), &[0; 22])
}

/// Apps of a cluster: labels that pods share.
pub const APPS: usize = 500;

/// Returns the address of a pod of [`cluster`]; 200 of them on a node.
pub fn cluster_address(pod: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 100 + (pod / 25_600) as u8, (pod / 200 % 128) as u8, (2 + pod % 200) as u8)
}

/// Returns pod `n` of a cluster, with its app.
pub fn cluster_pod(n: usize, app: usize) -> Pod {
    let node = format!("node-{}", n / 200);
    pod(
        &format!("ns{}", n % 50),
        &format!("pod-{n}"),
        &format!("app{}", app % APPS),
        &node,
        cluster_address(n),
    )
}

/// Returns policy `n` of a cluster: on one app, from another app on a port, from a CIDR, and on a second port from anyone.
/// `variant` changes the last port.
pub fn cluster_policy(n: usize, variant: u16) -> Object {
    let from_app = Entity {
        selector: Selector::parse(&format!("app == 'app{}'", (n * 7 + 1) % APPS)).ok(),
        ..Entity::default()
    };
    let net = IpAddr::V4(Ipv4Addr::new(172, 16, (n % 256) as u8, 0));
    let from_net = Entity { nets: ipnet::IpNet::new(net, 24).into_iter().collect(), ..Entity::default() };
    let rules = vec![
        allow(protocol::TCP, from_app, port(8080)),
        allow(protocol::TCP, from_net, port(443)),
        allow(protocol::TCP, Entity::default(), port(10_000 + variant)),
    ];
    ingress(&format!("policy-{n}"), n as f64, &format!("app == 'app{}'", n % APPS), rules)
}

/// Returns an engine with `pods` pods, 200 a node, and `policies` policies; the first `here` pods are local endpoints.
pub fn cluster(pods: usize, policies: usize, here: usize) -> Engine {
    let mut engine = Engine::new();
    for n in 0..50 {
        engine.apply(namespace(&format!("ns{n}")));
    }
    for n in 0..pods.div_ceil(200) {
        let [a, b, c, _] = cluster_address(n * 200).octets();
        let cidr = ipnet::IpNet::new(Ipv4Addr::new(a, b, c, 0).into(), 24);
        engine.apply(Change::Upsert(Object::Node(Arc::new(Node {
            name: format!("node-{n}"),
            labels: Default::default(),
            addresses: vec![Ipv4Addr::new(192, 0, 2, (1 + n % 250) as u8).into()],
            internal_addresses: 1,
            pod_cidrs: cidr.into_iter().collect(),
            annotations: Default::default(),
        }))));
    }
    for n in 0..pods {
        let pod = cluster_pod(n, n);
        if n < here {
            engine.apply(Change::Endpoint(local(n as u32 + 1, &pod)));
        }
        engine.apply(Change::Upsert(Object::Pod(Arc::new(pod))));
    }
    for n in 0..policies {
        engine.apply(Change::Upsert(cluster_policy(n, 0)));
    }
    engine
}
