//! Automatic host endpoints are in force as long as the configuration and the node say so (policy model 7.8).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use margay_policy_engine::engine::{Change, Engine, HostInterface};
use margay_policy_engine::model::{KubeControllersConfiguration, Node, Object, ObjectKey};
use margay_policy_engine::packet::{Context, Direction, HostId, HostVerdict, PacketTuple};

fn node(name: &str, address: &str) -> Object {
    Object::Node(Arc::new(Node {
        name: name.to_owned(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        addresses: vec![address.parse().unwrap()],
        internal_addresses: 1,
        pod_cidrs: Vec::new(),
        annotations: BTreeMap::new(),
    }))
}

fn enabled(auto_create: bool) -> Object {
    Object::KubeControllersConfiguration(Arc::new(KubeControllersConfiguration {
        name: "default".to_owned(),
        auto_create,
        create_default: true,
        templates: Vec::new(),
    }))
}

#[test]
fn pm_7_8_automatic_host_endpoints_come_and_go_with_their_node() {
    let address: IpAddr = "192.0.2.1".parse().unwrap();
    let packet = PacketTuple {
        source: "203.0.113.7".parse().unwrap(),
        destination: address,
        protocol: 6,
        source_port: Some(40_000),
        destination_port: Some(80),
        icmp: None,
    };
    let mut engine = Engine::new();
    engine.apply(Change::Interface(HostInterface {
        id: HostId(1),
        node: "n1".to_owned(),
        name: "eth0".to_owned(),
        addresses: vec![address],
        is_pod_side: false,
    }));
    engine.apply(Change::Upsert(node("n1", "192.0.2.1")));
    let ask = |engine: &mut Engine| {
        let snapshot = engine.publish();
        let judgement = snapshot.judge_host(HostId(1), Context::Normal, Direction::Ingress, &packet);
        (snapshot.host_endpoint(HostId(1)).map(str::to_owned), judgement.map(|judgement| judgement.verdict))
    };
    assert_eq!(ask(&mut engine), (None, None), "nothing governs the interface");
    engine.apply(Change::Upsert(enabled(true)));
    let automatic = (Some("n1-auto-hep".to_owned()), Some(HostVerdict::Allow));
    assert_eq!(ask(&mut engine), automatic, "its profile allows everything");
    let generation = engine.publish().generation();
    engine.apply(Change::Upsert(node("n2", "192.0.2.2")));
    assert_eq!(ask(&mut engine), automatic);
    assert_eq!(engine.publish().generation(), generation, "another node is nothing to this one");
    engine.apply(Change::Delete(ObjectKey::Node("n1".to_owned())));
    assert_eq!(ask(&mut engine), (None, None), "gone with its node");
    engine.apply(Change::Upsert(node("n1", "192.0.2.1")));
    assert_eq!(ask(&mut engine), automatic);
    engine.apply(Change::Upsert(enabled(false)));
    assert_eq!(ask(&mut engine), (None, None), "gone with the switch");
}
