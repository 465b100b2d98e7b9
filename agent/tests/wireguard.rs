//! Encryption between two nodes as an owner meets it: one switch, and keys, peers, MTU and sessions follow (policy model 25, 32.1 to 32.4).

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
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
    let wire = lab.mtu_beyond("node1");
    assert_eq!(wireguard(&lab, "node1")["pod_mtu"], wire - 80);
    let pod = "\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: shop}\nspec: {nodeName: node1, containers: [{name: main, image: none}]}\n";
    lab.apply("late.yaml", pod);
    let manifests = lab.directory.join("manifests");
    let output =
        lab.call("up", &["--nodes", "2", "--manifests", &manifests.to_string_lossy()]).output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(lab.mtu_beyond("shop/late"), wire - 80);

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

/// Bytes that a node sealed for the other, in both tunnels.
fn sealed(lab: &Lab, node: &str) -> u64 {
    peers(lab, node).iter().filter_map(|peer| peer["sent_bytes"].as_u64()).sum()
}

/// Has ten datagrams go from node1's address to node2's past every route, on the wire as they are; returns what node2 says about them.
fn in_clear(lab: &Lab) -> String {
    let ([own, _], [address, _]) = (lab.addresses("node1"), lab.addresses("node2"));
    let listed = lab.must("node1", &["ip", "-o", "-4", "addr", "show"]);
    let uplink = listed.lines().find(|line| line.contains(&format!(" {own}/"))).expect("the node's address");
    let uplink = uplink.split_whitespace().nth(1).expect("a device");
    let listen = format!(
        "import select, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('{address}', 9999))
print('listening', flush=True)
print('heard' if select.select([s], [], [], 3)[0] else 'nothing', flush=True)"
    );
    let mut listener = lab.start("node2", &["python3", "-c", &listen]);
    let mut output = BufReader::new(listener.output().expect("pipe"));
    let mut line = String::new();
    output.read_line(&mut line).expect("read");
    assert_eq!(line, "listening\n");
    let send = format!(
        "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'{uplink}')
for _ in range(10): s.sendto(b'clear', ('{address}', 9999))"
    );
    lab.must("node1", &["python3", "-c", &send]);
    let mut said = String::new();
    output.read_to_string(&mut said).expect("read");
    said
}

fn sessions(lab: &Lab, node: &str) -> usize {
    peers(lab, node).iter().filter(|peer| peer["handshake_seconds"].is_u64()).count()
}

#[test]
fn pm_25_6_pods_and_with_host_encryption_nodes_speak_sealed() {
    let name = "pm_25_6_pods_and_with_host_encryption_nodes_speak_sealed";
    if skipped(name, &["curl", "python3"]) {
        return;
    }
    let manifests = format!(
        "{THREE_PODS}---\n{}",
        felix("default", "{wireguardEnabled: true, wireguardEnabledV6: true}")
    );
    let lab = Lab::up("wh", &manifests);
    let _servers = ["shop/web", "shop/db", "shop/far", "node2"].map(|place| lab.serve(place, 8000));
    // Sessions are made for who has something to say.
    let speak = || lab.addresses("shop/far").iter().all(|address| lab.fetches("shop/web", address, 8000));
    let both = || speak() && sessions(&lab, "node1") == 2 && sessions(&lab, "node2") == 2;
    assert!(within(15, both), "{:?}{}", peers(&lab, "node1"), lab.diagnosis());
    // What is sealed, by who speaks to whom (policy model 25.6).
    let grows = |from: &str, to: &str| {
        let before = sealed(&lab, "node1");
        for address in lab.addresses(to) {
            assert!(
                within(5, || lab.fetches(from, &address, 8000)),
                "{from} to {to} at {address}{}",
                lab.diagnosis()
            );
        }
        sealed(&lab, "node1") > before
    };
    assert!(grows("shop/web", "shop/far"), "pod to pod");
    assert!(grows("node1", "shop/far"), "node to pod elsewhere");
    assert!(!grows("shop/web", "shop/db"), "pods of one node");
    assert!(!grows("shop/web", "node2"), "pod to another node");
    assert!(!grows("node1", "node2"), "node to node");
    assert_eq!(in_clear(&lab), "heard\n", "without host encryption nodes speak in clear by right");
    let flows = {
        let socket = folder(&lab).join("nodes/node1/run/admin.sock");
        let output = Command::new(env!("CARGO_BIN_EXE_margay"))
            .args(["flows", "--socket"])
            .arg(socket)
            .output()
            .expect("run");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let has = |words: [&str; 3]| flows.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(["shop/web", "shop/far", "both ways"]), "{flows}");
    assert!(has(["shop/web", "shop/db", " no "]) && !has(["shop/web", "shop/db", "both ways"]), "{flows}");

    let both = "{wireguardEnabled: true, wireguardEnabledV6: true, wireguardHostEncryptionEnabled: true}";
    lab.apply("pods.yaml", &format!("{THREE_PODS}---\n{}", felix("default", both)));
    let route = || lab.must("node1", &["ip", "route", "get", &lab.addresses("node2")[0]]);
    assert!(within(10, || route().contains("mgy0")), "{}", route());
    assert!(within(10, || grows("node1", "node2")), "node to node{}", lab.diagnosis());
    assert!(within(5, || grows("shop/web", "node2")), "pod to another node");
    assert!(grows("shop/web", "shop/far"));
    // Somebody on the wire who passes for the other node, in clear.
    let before = lab.drops("node2", "expected_encrypted");
    assert_eq!(in_clear(&lab), "nothing\n");
    assert!(lab.drops("node2", "expected_encrypted") >= before + 10, "{}", lab.diagnosis());
    assert!(lab.pings("node1", &lab.addresses("node2")[1]), "neighbours are found all the same");
    // An agent that ends lets its node speak as before; the others hear it once their sessions are over, or it is back.
    let agent = lab.agent("node1").to_string();
    assert!(Command::new("kill").arg(&agent).status().expect("kill").success());
    assert!(within(10, || lab.agent_is_gone("node1")));
    assert!(within(5, || !route().contains("mgy0")), "{}", route());
    let manifests = lab.directory.join("manifests");
    let output =
        lab.call("up", &["--nodes", "2", "--manifests", &manifests.to_string_lossy()]).output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(within(20, || route().contains("mgy0")), "{}", route());
    assert!(within(20, || grows("node1", "node2")), "node to node, after a restart{}", lab.diagnosis());
    assert!(within(5, || grows("shop/web", "shop/far")));
    lab.books_balance();
}

#[test]
fn pm_32_4_strict_refuses_by_name_what_cannot_be_sealed() {
    let name = "pm_32_4_strict_refuses_by_name_what_cannot_be_sealed";
    if skipped(name, &["curl", "python3"]) {
        return;
    }
    let pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pods}\nspec: {cidr: 10.244.0.0/16}\n";
    let strict =
        |more: &str| felix("default", &format!("{{wireguardEnabled: true, encryptionMode: Strict{more}}}"));
    let lab = Lab::up("ws", &format!("{THREE_PODS}---\n{pool}---\n{}", strict("")));
    let _servers = ["shop/far", "node2"].map(|place| lab.serve(place, 8000));
    let [far, _] = lab.addresses("shop/far");
    let [node2, _] = lab.addresses("node2");
    assert!(
        within(15, || lab.fetches("shop/web", &far, 8000) && sealed(&lab, "node1") > 0),
        "{}",
        lab.diagnosis()
    );
    // From the first second on: what came before the keys were known was refused, not sent in clear.
    let before = lab.drops("node1", "unencrypted");

    // The other node has no key any more.
    lab.apply("optout.yaml", &felix("node.node2", "{wireguardEnabled: false}"));
    assert!(within(10, || peers(&lab, "node1").is_empty()));
    assert!(!lab.fetches("shop/web", &far, 8000), "in clear");
    assert!(lab.drops("node1", "unencrypted") > before, "{}", lab.diagnosis());
    assert!(
        within(5, || lab.fetches("shop/web", &node2, 8000)),
        "nodes are reached all the same{}",
        lab.diagnosis()
    );

    // It may be spoken to in clear.
    lab.apply(
        "pods.yaml",
        &format!(
            "{THREE_PODS}---\n{pool}---\n{}",
            strict(", encryptionExemptNodes: kubernetes.io/hostname == 'node2'")
        ),
    );
    assert!(within(10, || lab.fetches("shop/web", &far, 8000)), "{}", lab.diagnosis());

    // Or the pool is none that is encrypted.
    lab.withdraw("optout.yaml");
    lab.apply(
        "pods.yaml",
        &format!(
            "{THREE_PODS}---\n{}---\n{}",
            pool.replace("}\n", ", encryption: None}\n")
                .replace("name: pods, encryption: None", "name: pods"),
            strict("")
        ),
    );
    assert!(
        within(10, || peers(&lab, "node1")
            .iter()
            .any(|peer| peer["allowed"].as_array().is_some_and(Vec::is_empty))),
        "{:?}",
        peers(&lab, "node1")
    );
    let before = sealed(&lab, "node1");
    assert!(within(10, || lab.fetches("shop/web", &far, 8000)), "{}", lab.diagnosis());
    assert_eq!(sealed(&lab, "node1"), before, "in clear, as it is said");
}

/// Returns which packets of a ping were not answered though a later one was, and how many it sent after the last that was: at its deadline
/// ping ends at once, and counts what is under way as lost.
fn unanswered(said: &str) -> (Vec<u64>, u64) {
    let number =
        |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u64>();
    let answered = said.lines().filter(|line| line.contains(" bytes from "));
    let answered = answered.filter_map(|line| number(line.split_once("icmp_seq=")?.1).ok());
    let answered: BTreeSet<u64> = answered.collect();
    let summary = said.lines().find(|line| line.contains(" packets transmitted"));
    let sent = summary.and_then(|line| number(line).ok()).expect("ping's summary");
    let last = answered.last().copied().expect("an answer");
    ((1..last).filter(|at| !answered.contains(at)).collect(), sent - last)
}

/// An announcement stands for a minute, so this takes one.
#[test]
fn pm_32_3_a_rotation_under_traffic_loses_nothing() {
    let name = "pm_32_3_a_rotation_under_traffic_loses_nothing";
    if skipped(name, &["curl", "python3"]) {
        return;
    }
    let felix = felix(
        "default",
        "{wireguardEnabled: true, encryptionMode: Strict, wireguardKeyRotationInterval: 20s}",
    );
    let lab = Lab::up("wr", &format!("{THREE_PODS}---\n{felix}"));
    let [far, _] = lab.addresses("shop/far");
    assert!(
        within(15, || lab.pings("shop/web", &far) && sessions(&lab, "node1") == 1),
        "{}",
        lab.diagnosis()
    );
    let before = ["node1", "node2"].map(|node| published(&lab, node)[KEY].clone());
    // One may have been begun with before it knew who begins: the two nodes read of each other one after the other.
    let strangers = || ["node1", "node2"].map(|node| lab.drops(node, "tunnel_unknown_peer"));
    let strangers_before = strangers();
    let said = lab.must("shop/web", &["ping", "-n", "-D", "-i", "0.02", "-w", "95", &far]);
    let after = ["node1", "node2"].map(|node| published(&lab, node)[KEY].clone());
    let (lost, under_way) = unanswered(&said);
    let summary = said.lines().find(|line| line.contains("packet loss")).unwrap_or_default();
    println!("MEASURED {summary}; lost: {lost:?}; {under_way} under way at the end");
    assert!(
        before[0] != after[0] && before[1] != after[1],
        "both nodes have another key: {before:?} {after:?}"
    );
    assert!(lost.is_empty(), "{lost:?}: {summary}{}", lab.diagnosis());
    assert!(under_way < 50, "nothing was answered in the last second: {summary}{}", lab.diagnosis());
    // Strict, so what was answered was sealed; and the key before is accepted still.
    let keys = wireguard(&lab, "node1")["tunnels"][0]["keys"].clone();
    assert_eq!((&keys[0]["public_key"], &keys[1]["state"]), (&after[0], &Value::from("previous")), "{keys}");
    assert_eq!(keys[1]["public_key"], before[0]);
    assert_eq!(strangers(), strangers_before);
    lab.books_balance();
}
