//! Encryption between two nodes as an owner meets it: one switch, and keys, peers, MTU and sessions follow (policy model 25, 32.1 to 32.4).

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use common::{Lab, THREE_PODS, skipped, within};
use serde_json::Value;

const KEY: &str = "projectcalico.org/WireguardPublicKey";

fn felix(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

fn folder(lab: &Lab) -> PathBuf {
    lab.directory.join("labs").join(&lab.name)
}

/// Annotations that a node publishes in the datastore.
fn published(lab: &Lab, node: &str) -> Value {
    let text =
        fs::read_to_string(folder(lab).join(format!("overlay/wireguard-{node}.json"))).unwrap_or_default();
    let document: Value = serde_json::from_str(&text).unwrap_or_default();
    document["metadata"]["annotations"].clone()
}

fn wireguard(lab: &Lab, node: &str) -> Value {
    lab.agent_status(node)["wireguard"].clone()
}

/// The tunnels' other ends, of both families.
fn peers(lab: &Lab, node: &str) -> Vec<Value> {
    let tunnels = wireguard(lab, node)["tunnels"].as_array().cloned().unwrap_or_default();
    tunnels.iter().flat_map(|tunnel| tunnel["peers"].as_array().cloned().unwrap_or_default()).collect()
}

fn mtu(lab: &Lab, place: &str) -> u64 {
    let shown = lab.must(place, &["ip", "-o", "link", "show", "eth0"]);
    let mut words = shown.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    words.next().and_then(|word| word.parse().ok()).expect("an MTU")
}

#[test]
fn pm_25_one_switch_and_keys_peers_and_mtu_follow() {
    let name = "pm_25_one_switch_and_keys_peers_and_mtu_follow";
    if skipped(name, &["curl", "python3"]) {
        return;
    }
    let manifests = format!(
        "{THREE_PODS}---\n{}",
        felix("default", "{wireguardEnabled: true, wireguardEnabledV6: true}")
    );
    let lab = Lab::up("wk", &manifests);
    assert!(
        within(10, || peers(&lab, "node1").len() == 2 && peers(&lab, "node2").len() == 2),
        "{}",
        lab.diagnosis()
    );

    // Keys: a file of mode 0600, its public half in the datastore, read by the other node.
    let file = folder(&lab).join("nodes/node1/wireguard.keys");
    assert_eq!(fs::metadata(&file).expect("keys").permissions().mode() & 0o7777, 0o600);
    let keys = published(&lab, "node1");
    assert_eq!(peers(&lab, "node2")[0]["public_keys"][0], keys[KEY]);
    assert_eq!(peers(&lab, "node2")[1]["public_keys"][0], keys[format!("{KEY}V6")]);
    assert_eq!(keys["projectcalico.org/IPv4WireguardInterfaceAddr"], "10.244.1.0");

    // Pods made since then have what the wire leaves (policy model 25.1).
    let wire = mtu(&lab, "node1");
    assert_eq!(wireguard(&lab, "node1")["pod_mtu"], wire - 80);
    let pod = "\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: shop}\nspec: {nodeName: node1, containers: [{name: main, image: none}]}\n";
    lab.apply("late.yaml", pod);
    let manifests = lab.directory.join("manifests");
    let output =
        lab.call("up", &["--nodes", "2", "--manifests", &manifests.to_string_lossy()]).output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(mtu(&lab, "shop/late"), wire - 80);

    // Every way still works, also from a node to a pod of the other, which comes from the address that is published.
    let _servers = ["shop/web", "shop/far", "node2"].map(|place| lab.serve(place, 8000));
    for (from, to) in [
        ("shop/web", "shop/far"),
        ("node1", "shop/far"),
        ("shop/web", "node2"),
        ("node1", "node2"),
        ("shop/far", "shop/web"),
    ] {
        for address in lab.addresses(to) {
            assert!(
                within(5, || lab.fetches(from, &address, 8000)),
                "{from} to {to} at {address}{}",
                lab.diagnosis()
            );
        }
    }
    let route = lab.must("node1", &["ip", "route", "get", &lab.addresses("shop/far")[0]]);
    assert!(route.contains("src 10.244.1.0"), "{route}");

    // What somebody edits is put right.
    let overlay = folder(&lab).join("overlay/wireguard-node1.json");
    fs::write(
        &overlay,
        fs::read_to_string(&overlay).expect("overlay").replace(keys[KEY].as_str().expect("a key"), ""),
    )
    .expect("edit");
    assert!(within(10, || published(&lab, "node1") == keys), "{}", published(&lab, "node1"));

    // No private key anywhere that people look.
    let kept = fs::read_to_string(&file).expect("keys");
    let socket = folder(&lab).join("nodes/node1/run/admin.sock");
    let ask = |what: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_margay"))
            .args([what, "--socket"])
            .arg(&socket)
            .output()
            .expect("run");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (shown, status) = (ask("wireguard"), ask("status"));
    assert!(shown.contains("peer: node2") && status.contains("Encrypted: Permissive"), "{shown}{status}");
    let metrics = lab.must("node1", &["curl", "-s", "http://127.0.0.1:9100/metrics"]);
    assert!(metrics.contains("margay_wireguard_peers{family=\"IPv4\"} 1"), "{metrics}");
    let log = fs::read_to_string(folder(&lab).join("nodes/node1.log")).expect("log");
    for line in kept.lines() {
        let secret = line.rsplit(' ').next().expect("a key");
        for (place, text) in
            [("wireguard", &shown), ("status", &status), ("metrics", &metrics), ("log", &log)]
        {
            assert!(!text.contains(secret), "a private key is in {place}");
        }
        for node in ["node1", "node2"] {
            assert!(!published(&lab, node).to_string().contains(secret));
        }
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", lab.agent("node1"))).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");

    // A node opts out: its annotations go, and the other says that it speaks to it in clear (policy model 25.1, 25.9).
    lab.apply("optout.yaml", &felix("node.node2", "{wireguardEnabled: false, wireguardEnabledV6: false}"));
    assert!(within(10, || peers(&lab, "node1").is_empty()), "{:?}", peers(&lab, "node1"));
    assert!(within(10, || published(&lab, "node2")[KEY].is_null()), "{}", published(&lab, "node2"));
    let [address, _] = lab.addresses("shop/far");
    assert!(within(5, || lab.fetches("shop/web", &address, 8000)), "in clear{}", lab.diagnosis());
    lab.withdraw("optout.yaml");
    assert!(within(10, || peers(&lab, "node1").len() == 2));
    assert_eq!(published(&lab, "node1"), keys, "and the keys are as before");
}
