//! The whole way: a policy written to a real API server, followed by real agents, meets real packets between pods that the real CNI
//! plug-in joined.

#[path = "../../control/tests/support/apiserver.rs"]
mod apiserver;
mod cluster;
mod common;
#[path = "../../control/tests/support/crds.rs"]
mod crds;
#[path = "../../control/tests/support/rights.rs"]
mod rights;

use std::thread;
use std::time::{Duration, Instant};

use cluster::{Cluster, PATIENCE, PODS, POLICIES, PORT, Writer, admit, skipped};
use common::within;
use serde_json::{Value, json};

/// Without a datagram for so long the way is closed, also where a worker was off the CPU for a while. Times are taken of datagrams, so that
/// this is in none of them.
const SILENCE: Duration = Duration::from_millis(400);
/// The same where nothing is measured.
const CLOSED: Duration = Duration::from_secs(1);
/// How soon what is written must hold.
const SOON: Duration = Duration::from_secs(1);

fn source(selector: &str) -> Value {
    json!({ "spec": { "ingress": [{ "action": "Allow", "source": { "selector": selector } }] } })
}

/// How long after `written` something was enforced, by the last datagram that still arrived or the first that did again. The write began
/// at `before`; where it was enforced by then, something else was seen.
fn later(before: Instant, written: Instant, enforced: Instant) -> Duration {
    assert!(enforced > before, "{:?} before the write", before - enforced);
    enforced.saturating_duration_since(written)
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).saturating_sub(1)]
}

#[test]
fn policy_written_to_the_api_server_meets_real_packets() {
    if skipped("policy_written_to_the_api_server_meets_real_packets", &["nsenter"]) {
        return;
    }
    let mut cluster = Cluster::up_with("api", rights::grant);
    let server = cluster.run("node1", "server", &json!({ "app": "server" }), None);
    let near = cluster.run("node1", "near", &json!({ "app": "near" }), None);
    let far = cluster.run("node2", "far", &json!({ "app": "far" }), None);
    let _page = cluster.lab.serve(&server.netns, 80);
    for client in [&near, &far] {
        assert!(
            within(60, || cluster.lab.fetches(&client.netns, &server.address, 80)),
            "open before any policy: {client:?}"
        );
    }

    // A policy applied with kubectl, and deleted: real connections, and to the millisecond a stream.
    let stream = cluster.stream(&far, &server, PORT);
    stream.opened().expect("open at first");
    let before = Instant::now();
    let _ = cluster.api.kubectl(&["apply", "-f", "-"], Some(&admit("app == 'near'")));
    let applied = Instant::now();
    let closed = later(before, applied, stream.closed(SILENCE).expect("the policy closes"));
    assert!(closed < SOON, "{closed:?}");
    assert!(!cluster.lab.fetches(&far.netns, &server.address, 80));
    assert!(within(60, || cluster.lab.fetches(&near.netns, &server.address, 80)));
    let (before, mark) = (Instant::now(), stream.mark());
    let _ =
        cluster.api.kubectl(&["delete", "-n", "shop", "networkpolicies.projectcalico.org", "server"], None);
    let deleted = Instant::now();
    let opened = stream.opened_since(mark, PATIENCE).expect("the end of the policy opens");
    let opened = later(before, deleted, opened);
    assert!(opened < SOON, "{opened:?}");
    assert!(within(60, || cluster.lab.fetches(&far.netns, &server.address, 80)));
    println!(
        "MEASURED after kubectl apply ended: closed {closed:?} later; after kubectl delete ended: open {opened:?} later"
    );
    drop(stream);

    // What became of it is written to its status, with the rights that an agent is installed with.
    cluster.api.create(POLICIES, &admit("app == 'near'"));
    let accepted = || {
        let conditions = cluster.api.get(&format!("{POLICIES}/server"))["status"]["conditions"].to_string();
        conditions.contains("\"Accepted\"") && conditions.contains("\"Enforced\"")
    };
    assert!(within(60, accepted), "{}", cluster.api.get(&format!("{POLICIES}/server")));
    for node in cluster::NODES {
        let notes = || cluster.api.get(&format!("/api/v1/nodes/{node}"))["metadata"]["annotations"].clone();
        let is_ready = |notes: &Value| notes["margay/state"].to_string().starts_with("\"ready since 20");
        assert!(within(60, || is_ready(&notes())), "{}", notes());
        let workers = (notes()["margay/workers"].clone(), notes()["margay/uplinks"].to_string());
        assert!(workers.0 == "1" && workers.1.starts_with("\"eth0: "), "{workers:?}");
        let problems = cluster.lab.agent_status(node)["problems"].to_string();
        assert_eq!(problems, "[]", "{node}: no right is missing");
    }
    cluster.api.delete(&format!("{POLICIES}/server"));

    // From the write to the packet, one hundred times. By a connection that is open: the start of a kubectl takes longer than all that
    // is measured.
    cluster.api.create(POLICIES, &admit("app == 'nobody'"));
    let wire = cluster.lab.wire();
    let writer = Writer::start(&wire, cluster.api.admin_kubeconfig());
    let stream = cluster.stream(&far, &server, PORT);
    stream.closed(SILENCE).expect("closed at first");
    let path = format!("{POLICIES}/server");
    let (mut all, mut beyond, mut stalls) = (Vec::new(), Vec::new(), 0);
    for round in 0..100 {
        let (opens, mark) = (round % 2 == 0, stream.mark());
        let (before, answered) =
            writer.patch(&path, &source(if opens { "app == 'far'" } else { "app == 'nobody'" }));
        let enforced = if opens { stream.opened_since(mark, PATIENCE) } else { stream.closed(SILENCE) };
        let enforced = enforced.unwrap_or_else(|| panic!("round {round}: never enforced"));
        if enforced > before {
            all.push(enforced - before);
            beyond.push(enforced.saturating_duration_since(answered));
        } else {
            // Whoever sends or receives stood still from before the write until it was enforced: there is no time to tell.
            assert!(!opens, "round {round}: open {:?} before the write", before - enforced);
            stalls += 1;
        }
    }
    assert!(stalls <= 5, "nothing was on the way in {stalls} of 50 writes that close it");
    all.sort();
    beyond.sort();
    println!(
        "MEASURED from the start of an API write to the first packet judged by it, {} changes: p50 {:?}, p99 {:?}, worst {:?}; \
         after the answer: p50 {:?}, p99 {:?}",
        all.len(),
        percentile(&all, 50),
        percentile(&all, 99),
        all[all.len() - 1],
        percentile(&beyond, 50),
        percentile(&beyond, 99)
    );
    assert!(percentile(&all, 99) < SOON, "{all:?}");

    // Labels, by kubectl: of the pod, of its namespace, of its ServiceAccount.
    let _ = cluster.api.kubectl(&["create", "-n", "shop", "serviceaccount", "default"], None);
    let labels = [
        (
            ["-n", "shop", "pod", "far"],
            json!({ "spec": { "ingress": [{ "action": "Allow", "source": { "selector": "tint == 'red'" } }] } }),
        ),
        (
            ["-n", "shop", "namespace", "shop"],
            json!({ "spec": { "ingress": [{ "action": "Allow", "source": { "selector": null, "namespaceSelector": "tint == 'red'" } }] } }),
        ),
        (
            ["-n", "shop", "serviceaccount", "default"],
            json!({ "spec": { "ingress": [{ "action": "Allow", "source": { "serviceAccounts": { "selector": "tint == 'red'" } } }] } }),
        ),
    ];
    for (object, rule) in labels {
        let label = |change: &'static str| {
            let _ = cluster.api.kubectl(&[&["label"][..], &object, &[change]].concat(), None);
            Instant::now()
        };
        writer.patch(&path, &rule);
        stream.closed(SILENCE).expect("closed by the rule");
        let (before, mark, written) = (Instant::now(), stream.mark(), label("tint=red"));
        let opened = stream.opened_since(mark, PATIENCE);
        let opened = opened.unwrap_or_else(|| panic!("{object:?}: the label opens nothing"));
        assert!(later(before, written, opened) < SOON, "{object:?}");
        let (before, written) = (Instant::now(), label("tint-"));
        let closed = stream
            .closed(SILENCE)
            .unwrap_or_else(|| panic!("{object:?}: the end of the label closes nothing"));
        assert!(later(before, written, closed) < SOON, "{object:?}");
    }
    drop(stream);
    cluster.lab.books_balance();
}

#[test]
fn a_pod_with_the_address_of_an_earlier_one_never_gets_its_verdict_at_home_pm_d28() {
    if skipped("a_pod_with_the_address_of_an_earlier_one_never_gets_its_verdict_at_home_pm_d28", &["nsenter"])
    {
        return;
    }
    let mut cluster = Cluster::up_with("again", rights::grant);
    let abroad = cluster.run("node1", "abroad", &json!({ "app": "server" }), None);
    let home = cluster.run("node2", "home", &json!({ "app": "server" }), None);
    cluster.api.create(POLICIES, &admit("role == 'friend'"));
    let friend = cluster.run("node2", "friend", &json!({ "role": "friend" }), None);
    let stranger = cluster.run("node1", "stranger", &json!({ "role": "foe" }), None);
    {
        let refused = cluster.stream(&stranger, &abroad, PORT);
        refused.closed(SILENCE).expect("a stranger is refused");
    }
    for server in [&abroad, &home] {
        let stream = cluster.stream(&friend, server, PORT);
        assert!(stream.opened().is_some(), "the friend gets through to {server:?}");
    }
    // Times of Kubernetes have seconds; of two pods with one address the later counts.
    thread::sleep(Duration::from_millis(1_100));

    // The friend's interface goes, its object stays for a while, as it does with a kubelet; a foe gets the address.
    cluster.end("friend", &friend, true);
    let foe = cluster.join("node2", "foe", &json!({ "role": "foe" }), Some(&friend.address));
    assert_eq!(foe.address, friend.address, "this test is about one address");
    let (to_home, to_abroad) = (cluster.stream(&foe, &home, PORT), cluster.stream(&foe, &abroad, PORT));
    assert!(
        to_abroad.opened().is_some(),
        "the other node knows no better before the status of the new pod is written"
    );
    let wire = cluster.lab.wire();
    let writer = Writer::start(&wire, cluster.api.admin_kubeconfig());
    let asked = Instant::now();
    let (before, _) = writer.patch(&format!("{PODS}/foe/status"), &foe.status());
    let ended = to_abroad.closed(SILENCE).expect("the watch delivers");
    let window = later(asked, before, ended);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(to_home.arrived(), 0, "never on its own node");
    println!(
        "MEASURED on another node the earlier pod's verdict lasts {window:?} after the write of the new pod's status"
    );
    assert!(window < SOON, "{window:?}");
    drop((to_home, to_abroad));
    // The test looked in the right places: the foe made a friend gets through to both.
    cluster.api.delete(&format!("{PODS}/friend"));
    cluster.api.patch(&format!("{PODS}/foe"), &json!({ "metadata": { "labels": { "role": "friend" } } }));
    for server in [&home, &abroad] {
        let stream = cluster.stream(&foe, server, PORT);
        assert!(stream.opened().is_some(), "{server:?}");
    }
}

/// Makes, changes and deletes what belongs to a Service, and looks who may be reached.
#[test]
fn a_service_in_a_rule_is_its_slices_whatever_the_service_says_pm_10_6() {
    if skipped("a_service_in_a_rule_is_its_slices_whatever_the_service_says_pm_10_6", &["nsenter"]) {
        return;
    }
    let mut cluster = Cluster::up_with("slice", rights::grant);
    let client = cluster.run("node1", "client", &json!({ "app": "client" }), None);
    let server = cluster.run("node2", "server", &json!({ "app": "server" }), None);
    let stream = cluster.stream(&client, &server, PORT);
    assert!(stream.opened().is_some(), "open before any policy");
    let rule = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": { "name": "client" },
        "spec": {
            "selector": "app == 'client'", "types": ["Egress"],
            "egress": [{ "action": "Allow", "destination": { "services": { "name": "backend", "namespace": "shop" } } }],
        },
    });
    cluster.api.create(POLICIES, &rule);
    stream.closed(CLOSED).expect("no such Service: nobody is let through");

    // An ExternalName has no endpoints.
    let services = "/api/v1/namespaces/shop/services";
    let external = json!({ "metadata": { "name": "backend" }, "spec": { "type": "ExternalName", "externalName": "server.example" } });
    cluster.api.create(services, &external);
    // Kubernetes before 1.21 has the older version only, and 1.25 has it no more.
    let of_version =
        |version: &str| format!("/apis/discovery.k8s.io/{version}/namespaces/shop/endpointslices");
    let is_old = cluster.api.request("GET", &of_version("v1"), "application/json", None).0 == 404;
    let slices = of_version(if is_old { "v1beta1" } else { "v1" });
    let slice = |name: &str, kind: &str, address: &str, more: Value| {
        let mut labels = json!({ "kubernetes.io/service-name": "backend" });
        labels.as_object_mut().expect("labels").extend(more.as_object().expect("labels").clone());
        json!({
            "metadata": { "name": name, "labels": labels }, "addressType": kind,
            "endpoints": [{ "addresses": [address], "conditions": { "ready": false } }],
            "ports": [{ "name": "udp", "protocol": "UDP", "port": PORT }],
        })
    };
    cluster.api.create(&slices, &slice("names", "FQDN", "server.example", json!({})));
    stream.closed(CLOSED).expect("names are nobody's address");
    cluster.api.delete(&format!("{services}/backend"));

    // A slice whose Service does not exist, of a backend that is not ready.
    cluster.api.create(&slices, &slice("one", "IPv4", &server.address, json!({})));
    assert!(stream.opened().is_some(), "its endpoints are the Service's");
    // The Service comes, without a selector, its endpoints mirrored; and it goes before its slices.
    let plain = json!({ "metadata": { "name": "backend" }, "spec": { "ports": [{ "port": 80 }] } });
    cluster.api.create(services, &plain);
    let mirrored =
        json!({ "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io" });
    cluster.api.create(&slices, &slice("two", "IPv4", &server.address, mirrored));
    cluster.api.delete(&format!("{services}/backend"));
    cluster.api.delete(&format!("{slices}/one"));
    thread::sleep(CLOSED);
    assert!(stream.opened().is_some(), "the mirrored slice has the endpoint too");
    cluster.api.delete(&format!("{slices}/two"));
    stream.closed(CLOSED).expect("the last slice is gone");
}

#[test]
fn nodes_that_come_go_and_change_their_address_take_their_routes_with_them() {
    if skipped("nodes_that_come_go_and_change_their_address_take_their_routes_with_them", &["nsenter"]) {
        return;
    }
    let mut cluster = Cluster::up_with("routes", rights::grant);
    let here = cluster.run("node1", "here", &json!({ "app": "here" }), None);
    let there = cluster.run("node2", "there", &json!({ "app": "there" }), None);
    let remote = ["10.99.1.0/24", "fd99:0:0:1::/64"];
    let has_routes = |cluster: &Cluster| {
        let list = |family: &str| cluster.lab.must("node1", &["ip", family, "route", "show", "dev", "mgy0"]);
        let text = list("-4") + &list("-6");
        remote.map(|cidr| text.contains(cidr))
    };
    let reaches =
        |cluster: &Cluster| there.addresses.iter().all(|address| cluster.lab.pings(&here.netns, address));
    assert!(within(60, || reaches(&cluster)), "both families, by the podCIDRs of the Nodes");
    assert_eq!(has_routes(&cluster), [true, true]);

    let path = "/api/v1/nodes/node2";
    let node = cluster.api.get(path);
    cluster.api.delete(path);
    assert!(within(60, || has_routes(&cluster) == [false, false]), "{}", cluster.log("node1"));
    assert!(within(60, || !reaches(&cluster)));
    // It comes back, and is said to be elsewhere before it is where it is.
    cluster.api.create("/api/v1/nodes", &json!({ "metadata": { "name": "node2" }, "spec": node["spec"] }));
    let status = format!("{path}/status");
    let wrong = json!([{ "type": "InternalIP", "address": "198.18.0.77" }]);
    cluster.api.patch(&status, &json!({ "status": { "addresses": wrong } }));
    assert!(within(60, || has_routes(&cluster) == [true, true]));
    assert!(!reaches(&cluster), "nobody is at that address");
    cluster.api.patch(&status, &json!({ "status": { "addresses": node["status"]["addresses"] } }));
    assert!(within(60, || reaches(&cluster)), "{}", cluster.lab.diagnosis());
}

#[test]
fn a_missing_right_is_named_in_log_and_status_and_the_agent_waits_for_it() {
    if skipped("a_missing_right_is_named_in_log_and_status_and_the_agent_waits_for_it", &["nsenter"]) {
        return;
    }
    let mut cluster = Cluster::up_with("rights", rights::grant);
    let rules = rights::take_away(&cluster.api, "pods");
    cluster.stop_agent("node2");
    // A node that was never here has no picture to start from.
    cluster.forget_picture("node2");
    cluster.start_agent("node2");
    let sentence = "cannot list resource \\\"pods\\\" in API group";
    let told = |cluster: &Cluster| {
        cluster.has_socket("node2")
            && cluster.lab.agent_status("node2")["problems"].to_string().contains(sentence)
    };
    assert!(within(60, || told(&cluster)), "{}", cluster.log("node2"));
    let status = cluster.lab.agent_status("node2");
    assert_eq!((&status["ready"], &status["generation"]), (&json!(false), &json!(0)), "nothing is in force");
    assert!(status["problems"].to_string().contains("a right is missing"), "{status:#}");
    assert!(cluster.log("node2").contains("list of Pod: pods is forbidden"), "{}", cluster.log("node2"));
    let (code, _) = cluster.readyz("node2");
    assert_eq!(code, "503");

    cluster.api.patch(rights::CLUSTER_ROLE, &json!({ "rules": rules }));
    assert!(within(60, || cluster.is_ready("node2")), "{}", cluster.log("node2"));
    assert!(within(60, || !cluster.lab.agent_status("node2")["problems"]
        .to_string()
        .contains("a right is missing")));

    // What it may not write is named as well, and keeps it from nothing.
    cluster.api.delete("/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings/margay");
    assert!(within(60, || {
        let status = cluster.lab.agent_status("node2");
        let problems = status["problems"].to_string();
        status["ready"] == true
            && problems.contains("status cannot be written: a right is missing")
            && problems.contains("leases")
    }));
}
