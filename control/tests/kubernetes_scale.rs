//! How much memory it takes to follow a big cluster: 50,000 pods and 10,000 policies in 300 MB.
//!
//! The cluster is made up on the way by a server in this process; the one who follows is another process, so that only its memory is
//! counted: the source, the Model, and the tables of a node with a hundred pods. It has no test harness because it runs itself.

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/fake.rs"]
mod fake;
#[path = "support/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fake::{Collection, Fake, Manner};
use margay_control::Source;
use margay_control::kubernetes::{Kubernetes, KubernetesConfig};
use margay_policy_engine::engine::{Change, Engine, LocalEndpoint};
use margay_policy_engine::model::NamespacedName;
use margay_policy_engine::packet::EndpointId;
use serde_json::{Value, json};

const PODS: usize = 50_000;
const NAMESPACES: usize = 500;
/// Of each of two kinds.
const POLICIES: usize = 5_000;
const NODES: usize = 500;
const EVENTS: usize = 20_000;
const LIMIT: u64 = 300 << 20;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("follow") {
        let (kubeconfig, store) = (arguments.next().expect("kubeconfig"), arguments.next().expect("store"));
        follow(Path::new(&kubeconfig), Path::new(&store));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning 1 test");
    let name = "fifty_thousand_pods_and_ten_thousand_policies_are_followed_in_300_mb";
    let outcome = measure();
    let (passed, word) = if outcome.is_ok() { (1, "ok") } else { (0, "FAILED") };
    println!("test {name} ... {word}");
    if let Err(reason) = &outcome {
        println!("\nfailures:\n\n---- {name} ----\n{reason}\n");
    }
    println!(
        "\ntest result: {word}. {passed} passed; {} failed; 0 ignored; 0 measured; 0 filtered out\n",
        1 - passed
    );
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn pod(n: usize, version: usize) -> Value {
    let (node, namespace, app) = (n % NODES, n % NAMESPACES, n % 20);
    let address = format!("10.{}.{}.{}", 100 + node / 250, node % 250, 2 + n / NODES);
    json!({
        "metadata": {
            "name": format!("app-{app}-7d9c6bd5f-{n:05}"), "generateName": format!("app-{app}-7d9c6bd5f-"),
            "namespace": format!("team-{namespace}"), "uid": format!("0f9a1c1e-0000-4000-8000-{n:012}"),
            "resourceVersion": version.to_string(), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app.kubernetes.io/name": format!("app-{app}"), "app.kubernetes.io/part-of": "shop", "pod-template-hash": "7d9c6bd5f",
                "version": format!("v{}", n % 3),
            },
            "annotations": { "kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z", "checksum/config": "0123456789abcdef".repeat(4) },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "app-7d9c6bd5f", "uid": "x", "controller": true }],
            "managedFields": (0..3).map(|manager| json!({
                "manager": format!("manager-{manager}"), "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
                "fieldsV1": { "f:metadata": { "f:labels": { "f:app": {} } }, "f:spec": { "f:containers": { "k:{\"name\":\"main\"}": { ".": {}, "f:image": {}, "f:resources": {} } } } },
            })).collect::<Vec<_>>(),
        },
        "spec": {
            "nodeName": format!("node-{node}"), "serviceAccountName": "default", "restartPolicy": "Always",
            "volumes": (0..4).map(|v| json!({ "name": format!("volume-{v}"), "configMap": { "name": "settings", "defaultMode": 420 } })).collect::<Vec<_>>(),
            "containers": (0..2).map(|c| json!({
                "name": format!("main-{c}"), "image": "registry.example.org/team/app:1.2.3",
                "ports": [{ "name": format!("http-{c}"), "containerPort": 8080 + c, "protocol": "TCP" }],
                "env": (0..12).map(|e| json!({ "name": format!("SETTING_{e}"), "value": "some value of some setting" })).collect::<Vec<_>>(),
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" } },
                "volumeMounts": (0..4).map(|v| json!({ "name": format!("volume-{v}"), "mountPath": format!("/etc/{v}") })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "tolerations": (0..4).map(|t| json!({ "key": format!("key-{t}"), "operator": "Exists", "effect": "NoExecute" })).collect::<Vec<_>>(),
        },
        "status": {
            "phase": "Running", "hostIP": "192.0.2.1", "podIP": address, "podIPs": [{ "ip": address }], "startTime": "2026-01-01T00:00:00Z",
            "conditions": (["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(|kind| json!({ "type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }))),
            "containerStatuses": (0..2).map(|c| json!({
                "name": format!("main-{c}"), "imageID": "registry.example.org/team/app@sha256:".to_owned() + &"0123456789abcdef".repeat(4),
                "containerID": "containerd://".to_owned() + &"0123456789abcdef".repeat(4), "ready": true, "restartCount": 0,
            })).collect::<Vec<_>>(),
        },
    })
}

fn network_policy(n: usize) -> Value {
    json!({
        "metadata": { "name": format!("policy-{n}"), "namespace": format!("team-{}", n % NAMESPACES), "resourceVersion": (n + 1).to_string() },
        "spec": {
            "podSelector": { "matchLabels": { "app.kubernetes.io/name": format!("app-{}", n % 20) } }, "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{ "podSelector": { "matchLabels": { "app.kubernetes.io/name": format!("app-{}", (n + 1) % 20) } } }, { "namespaceSelector": { "matchLabels": { "team": format!("t{}", n % 50) } } }],
                "ports": [{ "port": 8080, "protocol": "TCP" }],
            }],
        },
    })
}

fn calico_policy(n: usize) -> Value {
    json!({
        "metadata": { "name": format!("rule-{n}"), "namespace": format!("team-{}", n % NAMESPACES), "resourceVersion": (n + 1).to_string() },
        "spec": {
            "selector": format!("app.kubernetes.io/name == 'app-{}'", n % 20), "types": ["Egress"], "order": n % 100,
            "egress": [
                { "action": "Allow", "protocol": "UDP", "destination": { "ports": [53] } },
                { "action": "Allow", "protocol": "TCP", "destination": { "nets": [format!("10.200.{}.0/24", n % 250)], "ports": [443, "8000:8100"] } },
            ],
        },
    })
}

fn named(kind: &'static str) -> fake::Make {
    Arc::new(move |n| match kind {
        "node" => json!({
            "metadata": { "name": format!("node-{n}"), "resourceVersion": (n + 1).to_string(), "labels": { "kubernetes.io/os": "linux" } },
            "spec": { "podCIDRs": [format!("10.{}.{}.0/24", 100 + n / 250, n % 250)] },
            "status": { "addresses": [{ "type": "InternalIP", "address": format!("192.0.{}.{}", 2 + n / 250, 1 + n % 250) }] },
        }),
        _ => {
            json!({ "metadata": { "name": format!("team-{n}"), "resourceVersion": (n + 1).to_string(), "labels": { "team": format!("t{}", n % 50) } } })
        }
    })
}

fn measure() -> Result<(), String> {
    let collection = |count, make| Collection { count, make };
    let collections = BTreeMap::from([
        ("/api/v1/pods", collection(PODS, Arc::new(|n| pod(n, n + 1)) as fake::Make)),
        ("/api/v1/namespaces", collection(NAMESPACES, named("namespace"))),
        ("/api/v1/nodes", collection(NODES, named("node"))),
        ("/apis/networking.k8s.io/v1/networkpolicies", collection(POLICIES, Arc::new(network_policy))),
        ("/apis/projectcalico.org/v3/networkpolicies", collection(POLICIES, Arc::new(calico_policy))),
    ]);
    let mut worst = Ok(());
    for (minor, how) in [(20, "in pages"), (36, "streamed")] {
        let collections = collections
            .iter()
            .map(|(path, c)| (*path, Collection { count: c.count, make: Arc::clone(&c.make) }));
        let fake = Fake::start(Manner { minor, streams: minor >= 34, collections: collections.collect() });
        let folder = tempfile::tempdir().expect("folder");
        let child = Command::new(std::env::current_exe().expect("own path"))
            .arg("follow")
            .arg(fake.kubeconfig(folder.path()))
            .arg(folder.path().join("store"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start");
        let mut child = Ended(child);
        let mut lines = BufReader::new(child.0.stdout.take().expect("output")).lines();
        let mut next = |what: &str| {
            let line = lines.next().and_then(Result::ok).ok_or(format!("{what}: the follower ended"))?;
            println!("MEASURED {how}: {what}: {line}");
            let peak = line
                .split("peak ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next())
                .and_then(|n| n.parse::<u64>().ok());
            peak.ok_or(format!("{what}: {line}"))
        };
        let first = next("the first picture")?;
        for n in 0..EVENTS {
            let mut pod = pod(n % PODS, 1_000_001 + n);
            pod["metadata"]["labels"]["version"] = format!("w{}", n % 7).into();
            fake.tell("/api/v1/pods", &json!({ "type": "MODIFIED", "object": pod }).to_string());
        }
        let mut last = pod(0, 9_000_000);
        last["metadata"]["labels"]["last"] = "yes".into();
        fake.tell("/api/v1/pods", &json!({ "type": "MODIFIED", "object": last }).to_string());
        let second = next("and 20,000 changed pods")?;
        drop(child);
        if first.max(second) > LIMIT {
            worst = Err(format!("{how}: {} bytes, and {LIMIT} are the most", first.max(second)));
        }
    }
    worst
}

/// A process that ends with its measurement.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What an agent does with its source, with nothing around it.
fn follow(kubeconfig: &Path, store: &Path) {
    let began = Instant::now();
    let config = KubernetesConfig {
        kubeconfig: Some(kubeconfig.to_owned()),
        store: store.to_owned(),
        node: "node-0".to_owned(),
        namespace: "kube-system".to_owned(),
        key_namespace: "calico-system".to_owned(),
        seed: 1,
    };
    let mut source = Kubernetes::open(config).expect("source");
    let mut engine = Engine::new();
    for (id, n) in (1..).zip((0..PODS).step_by(NODES)) {
        let made = pod(n, 1);
        let text = |pointer: &str| made.pointer(pointer).and_then(Value::as_str).expect("text").to_owned();
        let address: IpAddr = text("/status/podIP").parse().expect("an address");
        engine.apply(Change::Endpoint(LocalEndpoint {
            id: EndpointId(id),
            pod: NamespacedName { namespace: text("/metadata/namespace"), name: text("/metadata/name") },
            uid: text("/metadata/uid"),
            addresses: vec![address],
        }));
    }
    let mut complete = false;
    loop {
        let Some(batch) = source.next(Duration::from_millis(200)).expect("a source") else { continue };
        let is_first = batch.complete && !std::mem::replace(&mut complete, batch.complete);
        batch.changes.into_iter().for_each(|change| engine.apply(change));
        if complete {
            let snapshot = engine.publish();
            let is_last = engine.model().pods.values().next().is_some_and(|_| {
                let first = pod(0, 1);
                let name = first["metadata"]["name"].as_str().expect("a name").to_owned();
                let key = NamespacedName { namespace: "team-0".to_owned(), name };
                engine.model().pods.get(&key).is_some_and(|pod| pod.labels.contains_key("last"))
            });
            if is_first || is_last {
                let model = engine.model();
                println!(
                    "peak {} bytes, now {} bytes, {:.1} s, {:.1} s of CPU; {} pods, {} policies, generation {}",
                    memory("VmHWM"),
                    memory("VmRSS"),
                    began.elapsed().as_secs_f64(),
                    cpu_seconds(),
                    model.pods.len(),
                    model.policies.len(),
                    snapshot.generation().0
                );
            }
            if is_last {
                return;
            }
        }
    }
}

fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with(field)).expect("a field");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("proc");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    #[allow(clippy::cast_precision_loss, reason = "a few seconds")]
    let seconds = ticks as f64 / 100.0;
    seconds
}
