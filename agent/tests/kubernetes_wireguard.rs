//! Keys of nodes in a real API server: sealed in Secrets, published on Nodes, and everybody hears of what changes (policy model 25.2, 25.4,
//! 32.1).

#[path = "../../control/tests/support/apiserver.rs"]
mod apiserver;
mod cluster;
mod common;
#[path = "../../control/tests/support/crds.rs"]
mod crds;
#[path = "../../control/tests/support/rights.rs"]
mod rights;

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::{Cluster, NODES, skipped};
use common::within;
use serde_json::{Value, json};

const FELIX: &str = "/apis/projectcalico.org/v3/felixconfigurations";
const SECRETS: &str = "/api/v1/namespaces/calico-system/secrets";
const KEY: &str = "projectcalico.org/WireguardPublicKey";

fn key(cluster: &Cluster, node: &str) -> Option<String> {
    cluster.api.get(&format!("/api/v1/nodes/{node}"))["metadata"]["annotations"][KEY]
        .as_str()
        .map(str::to_owned)
}

fn peers(cluster: &Cluster, node: &str) -> Vec<Value> {
    let tunnels = cluster.lab.agent_status(node)["wireguard"]["tunnels"].clone();
    tunnels[0]["peers"].as_array().cloned().unwrap_or_default()
}

fn see_each_other(cluster: &Cluster) -> bool {
    NODES.iter().zip(NODES.iter().rev()).all(|(node, other)| {
        let [peer] = &peers(cluster, node)[..] else { return false };
        peer["public_keys"][0].as_str().map(str::to_owned) == key(cluster, other)
    })
}

/// Events about a node with that reason.
fn events(cluster: &Cluster, node: &str, reason: &str) -> Vec<Value> {
    let list =
        cluster.api.get("/api/v1/namespaces/default/events")["items"].as_array().cloned().unwrap_or_default();
    let is_it = |event: &Value| event["reason"] == reason && event["involvedObject"]["name"] == node;
    list.into_iter().filter(is_it).collect()
}

fn problems(cluster: &Cluster, node: &str) -> String {
    cluster.lab.agent_status(node)["problems"].to_string()
}

fn logs(cluster: &Cluster) -> String {
    NODES.map(|node| cluster.log(node).lines().rev().take(15).collect::<Vec<_>>().join("\n")).join("\n\n")
}

#[test]
fn pm_32_1_sealed_keys_published_halves_and_events() {
    if skipped("pm_32_1_sealed_keys_published_halves_and_events", &["nsenter", "curl"]) {
        return;
    }
    let mut cluster = Cluster::up_with("kwg", rights::grant);
    let near = cluster.run("node1", "near", &json!({}), None);
    let far = cluster.run("node2", "far", &json!({}), None);
    let felix = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": { "name": "default" },
        "spec": { "wireguardEnabled": true },
    });
    cluster.api.create(FELIX, &felix);

    // Without the right, nothing is encrypted and status names what to do.
    assert!(
        within(60, || problems(&cluster, "node1").contains("--only encryption")),
        "{}",
        problems(&cluster, "node1")
    );
    assert!(key(&cluster, "node1").is_none());
    rights::grant_encryption(&cluster.api);
    assert!(within(60, || see_each_other(&cluster)), "{}", logs(&cluster));
    assert!(within(60, || problems(&cluster, "node1") == "[]"), "{}", problems(&cluster, "node1"));

    // The Secret is sealed: of no use without the file on the node.
    let secret = cluster.api.get(&format!("{SECRETS}/wireguard-node1"));
    assert_eq!(secret["type"], "Opaque");
    let sealed = STANDARD.decode(secret["data"]["sealed"].as_str().expect("an entry")).expect("base64");
    assert!(!String::from_utf8_lossy(&sealed).contains("current") && sealed.len() > 150, "{}", sealed.len());
    assert_eq!(secret["data"].as_object().expect("entries").len(), 1);

    // And it works.
    assert!(within(60, || cluster.lab.pings(&near.netns, &far.address)), "{}", logs(&cluster));
    let has_session =
        || peers(&cluster, "node1").first().is_some_and(|peer| peer["handshake_seconds"].is_u64());
    assert!(within(60, has_session), "{:?}", peers(&cluster, "node1"));

    // What somebody edits or removes is put right (policy model 25.2).
    let first = key(&cluster, "node1");
    for edit in [json!("AAAA"), Value::Null] {
        cluster.api.patch("/api/v1/nodes/node1", &json!({ "metadata": { "annotations": { KEY: edit } } }));
        assert!(within(60, || key(&cluster, "node1") == first), "{}", logs(&cluster));
    }
    assert!(within(60, || see_each_other(&cluster)));

    // A restart keeps the key; another machine has another.
    cluster.stop_agent("node2");
    let second = key(&cluster, "node2");
    cluster.start_agent("node2");
    assert!(within(60, || cluster.is_ready("node2") && see_each_other(&cluster)), "{}", logs(&cluster));
    assert_eq!(key(&cluster, "node2"), second);
    assert!(events(&cluster, "node2", "WireGuardKeyChanged").is_empty());
    cluster.stop_agent("node2");
    let machine = cluster.lab.directory.join("labs").join(&cluster.lab.name).join("nodes/node2/machine.key");
    fs::remove_file(machine).expect("a machine key");
    cluster.start_agent("node2");
    let is_new =
        || key(&cluster, "node2").is_some() && key(&cluster, "node2") != second && see_each_other(&cluster);
    assert!(within(60, is_new), "{}", logs(&cluster));
    assert!(within(60, || events(&cluster, "node2", "WireGuardKeyChanged").len() == 1), "{}", logs(&cluster));
    assert!(problems(&cluster, "node1").contains("did not announce it"), "{}", problems(&cluster, "node1"));
    let told = problems(&cluster, "node2");
    assert!(told.contains("new keys were made because"), "{told}");
    assert!(within(60, || cluster.lab.pings(&near.netns, &far.address)), "{}", logs(&cluster));

    // A key of two nodes is nobody's (policy model 25.4).
    cluster.api.create(
        "/api/v1/nodes",
        &json!({ "metadata": { "name": "node3", "annotations": { KEY: key(&cluster, "node2") } } }),
    );
    assert!(within(60, || peers(&cluster, "node1").is_empty()), "{:?}", peers(&cluster, "node1"));
    for node in ["node2", "node3"] {
        assert!(
            within(60, || events(&cluster, node, "WireGuardKeyShared").len() == 1),
            "{node}: {}",
            logs(&cluster)
        );
    }
    assert!(within(60, || cluster.lab.pings(&near.netns, &far.address)), "in clear: {}", logs(&cluster));
    cluster.api.delete("/api/v1/nodes/node3");
    assert!(within(60, || see_each_other(&cluster)), "{}", logs(&cluster));

    // Off: the annotations go (policy model 25.9), the Secret stays for another time.
    cluster.api.patch(&format!("{FELIX}/default"), &json!({ "spec": { "wireguardEnabled": false } }));
    assert!(within(60, || NODES.iter().all(|node| key(&cluster, node).is_none())), "{}", logs(&cluster));
    assert!(within(60, || cluster.lab.pings(&near.netns, &far.address)), "{}", logs(&cluster));
    assert_eq!(cluster.api.get(&format!("{SECRETS}/wireguard-node1"))["type"], "Opaque");
}
