//! Nodes that change addresses, go and come back: the others' ways to their pods follow the Node objects.
//!
//! In IPv4: an API server of Kubernetes 1.20 keeps one pod prefix of a Node, and forgets the second.

#[path = "../../control/tests/support/apiserver.rs"]
mod apiserver;
mod cluster;
mod common;
#[path = "../../control/tests/support/crds.rs"]
mod crds;

use apiserver::ApiServer;
use cluster::{Cluster, Joined, skipped};
use common::within;
use serde_json::json;

const NODE: &str = "/api/v1/nodes/node2";

/// Whether `to` answers `from`.
fn reaches(cluster: &Cluster, from: &Joined, to: &Joined) -> bool {
    cluster.lab.pings(&from.netns, &to.address)
}

#[test]
fn ways_to_pods_follow_the_nodes() {
    if skipped("ways_to_pods_follow_the_nodes", &["nsenter", "curl", "openssl"]) {
        return;
    }
    let mut cluster = Cluster::up_with("nod", ApiServer::admin_kubeconfig);
    let near = cluster.run("node1", "near", &json!({}), None);
    let far = cluster.run("node2", "far", &json!({}), None);
    assert!(within(10, || reaches(&cluster, &near, &far)), "{near:?} {far:?}{}", cluster.lab.diagnosis());

    // The node gets other addresses, of both families, and gives the old ones up.
    let netns = cluster.lab.netns("node2");
    let [v4, v6] = cluster.lab.addresses("node2");
    let (prefix, _) = v4.rsplit_once('.').expect("an address");
    let (v4_new, v6_new) =
        (format!("{prefix}.77"), format!("{}77", &v6[..=v6.rfind(':').expect("an address")]));
    let shown = cluster.lab.must("node2", &["ip", "-o", "addr", "show", "dev", "eth0"]);
    let with_length = |address: &str| {
        let word = shown.split_whitespace().find(|word| word.starts_with(&format!("{address}/")));
        word.expect("an address of eth0").to_owned()
    };
    // Or the second address would go with the first of its network.
    cluster.lab.must("node2", &["sysctl", "-w", "net.ipv4.conf.all.promote_secondaries=1"]);
    for (old, new) in [(&v4, &v4_new), (&v6, &v6_new)] {
        let length = with_length(old).rsplit_once('/').expect("a length").1.to_owned();
        let quiet = if new.contains(':') { " nodad" } else { "" };
        cluster.lab.ip(&netns, &format!("addr add {new}/{length} dev eth0{quiet}"));
    }
    let told = |v4: &str, v6: &str| {
        let list = json!([{ "type": "InternalIP", "address": v4 }, { "type": "InternalIP", "address": v6 }]);
        json!({ "status": { "addresses": list } })
    };
    cluster.api.patch(&format!("{NODE}/status"), &told(&v4_new, &v6_new));
    for old in [&v4, &v6] {
        cluster.lab.ip(&netns, &format!("addr del {} dev eth0", with_length(old)));
    }
    assert!(
        within(15, || reaches(&cluster, &near, &far)),
        "other addresses: {}{}",
        cluster.log("node1"),
        cluster.log("node2")
    );

    // The node leaves the cluster: its prefixes belong to nobody.
    let has_route = |cluster: &Cluster| cluster.lab.must("node1", &["ip", "route"]).contains("10.99.1.0/24");
    assert!(has_route(&cluster), "a way before");
    let mut object = cluster.api.get(NODE);
    cluster.api.delete(NODE);
    assert!(within(10, || !has_route(&cluster)), "{}", cluster.log("node1"));
    assert!(within(5, || !reaches(&cluster, &near, &far)));

    // And comes back, as a kubelet makes it anew.
    let status = object["status"].take();
    object["metadata"] = json!({ "name": "node2" });
    cluster.api.create("/api/v1/nodes", &object);
    cluster.api.patch(&format!("{NODE}/status"), &json!({ "status": { "addresses": status["addresses"] } }));
    assert!(
        within(15, || reaches(&cluster, &near, &far)),
        "back again: {}{}",
        cluster.log("node1"),
        cluster.log("node2")
    );
    assert!(reaches(&cluster, &far, &near));
}
