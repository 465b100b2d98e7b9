//! Real traffic over real AF_XDP with several workers a node: pods whose packets change hands, both families, both directions.

mod common;

use common::{Lab, skipped, within};
use serde_json::Value;

const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cache, namespace: shop, labels: {app: cache}}
spec: {nodeName: node1, containers: [{name: main, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop, labels: {app: far}}
spec: {nodeName: node2, containers: [{name: main, image: none}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}, {podSelector: {matchLabels: {app: far}}}]
";

const EVERYBODY: [&str; 6] = ["shop/web", "shop/db", "shop/cache", "shop/far", "node1", "node2"];

/// Everybody calls everybody by ping and by TCP with a page; the one pair that policy forbids gets nothing.
fn everybody_meets(mark: &str, workers: u16) {
    let name = format!("traffic with {workers} workers");
    if skipped(&name, &["curl", "python3"]) {
        return;
    }
    let lab = Lab::up_with(mark, PODS, &[&format!("--workers={workers}")]);
    let _servers = EVERYBODY.map(|place| lab.serve(place, 8000));
    let status = lab.agent_status("node1");
    assert_eq!(status["workers"].as_array().map(Vec::len), Some(usize::from(workers)), "{status:#}");
    let homes = |kind: &str| -> Vec<u64> {
        let ports = status["ports"].as_array().expect("ports").iter();
        ports.filter(|port| port["kind"] == kind).filter_map(|port| port["worker"].as_u64()).collect()
    };
    let mut used = homes("pod");
    used.sort_unstable();
    used.dedup();
    assert_eq!(
        used.len(),
        usize::from(workers.min(3)),
        "three pods spread over {workers} workers: {status:#}"
    );
    for from in EVERYBODY {
        for to in EVERYBODY.iter().filter(|to| **to != from) {
            for address in lab.addresses(to) {
                let what = || format!("{from} to {to} at {address}, {workers} workers{}", lab.diagnosis());
                // The node's own calls and node1's to its own pod are not policy's; node2 is a stranger to the rule.
                let forbidden = *to == "shop/db" && (from == "shop/cache" || from == "node2");
                if forbidden {
                    assert!(!lab.pings(from, &address), "ping that policy forbids, {}", what());
                    continue;
                }
                assert!(within(3, || lab.pings(from, &address)), "ping, {}", what());
                assert!(lab.fetches(from, &address, 8000), "curl, {}", what());
            }
        }
    }
    let handed = |status: &Value| status["counters"]["handed_over"].as_u64().expect("number");
    assert!(handed(&lab.agent_status("node1")) > 0, "packets change hands");
    lab.books_balance();
    all_packets_of_a_flow_are_told(&lab);
    // Nobody made a worker panic.
    for (what, answer) in [
        ("shop/web", "shop/web is not quarantined"),
        ("shop/far", "shop/far: no pod and no device of this node"),
    ] {
        let (code, words) = lab.release("node1", what);
        assert!(code == Some(2) && words.contains(answer), "{code:?} {words}");
    }
    let status = lab.agent_status("node1");
    assert!(status["workers"].as_array().expect("workers").iter().all(|worker| worker["panics"] == 0));
    assert!(status["ports"].as_array().expect("ports").iter().all(|port| port["quarantined"] == false));
}

/// Sends 300 datagrams, one after the other, and waits for each to come back; without an address it sends back what comes.
const ECHO: &str = "import socket, sys
mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mine.bind(('0.0.0.0', 7100))
if sys.argv[1:]:
    mine.settimeout(2)
    for n in range(300):
        mine.sendto(b'x', (sys.argv[1], 7100))
        mine.recv(9)
while not sys.argv[1:]:
    mine.sendto(*mine.recvfrom(9))
";

/// A flow between pods of two workers is told once, with all packets of both directions, though each worker has counted only one pod's.
fn all_packets_of_a_flow_are_told(lab: &Lab) {
    let address = lab.addresses("shop/db")[0].clone();
    let _echo = lab.start("shop/db", &["python3", "-c", ECHO]);
    let ask = || lab.exec("shop/web", &["python3", "-c", ECHO, &address]).status.success();
    assert!(within(5, ask), "{}", lab.diagnosis());
    let socket = lab.directory.join("labs").join(&lab.name).join("nodes/node1/run/admin.sock");
    let told = std::process::Command::new(env!("CARGO_BIN_EXE_margay"))
        .args(["flows", "-o", "json", "--pod", "shop/db", "--port", "7100", "--socket"])
        .arg(socket)
        .output()
        .expect("run");
    let told = String::from_utf8_lossy(&told.stdout);
    let flows: Vec<Value> =
        serde_json::Deserializer::from_str(&told).into_iter().map(|flow| flow.expect(&told)).collect();
    let [flow] = &flows[..] else { panic!("one flow: {told}") };
    let packets = |way: &str| flow[way].as_u64().expect("a number");
    let (forward, reverse) = (packets("forward_packets"), packets("reverse_packets"));
    // An attempt before echo was there may have sent one in vain.
    assert!(reverse >= 300 && (reverse..reverse + 5).contains(&forward), "{told}");
}

#[test]
fn everybody_meets_with_two_workers() {
    everybody_meets("v", 2);
}

#[test]
fn everybody_meets_with_three_workers() {
    everybody_meets("w", 3);
}
