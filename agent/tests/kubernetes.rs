//! The whole way: a policy written to a real API server, followed by real agents, meets real packets between pods that the real CNI
//! plug-in joined.

#[path = "../../control/tests/support/apiserver.rs"]
mod apiserver;
mod cluster;
mod common;
#[path = "../../control/tests/support/crds.rs"]
mod crds;

use std::thread;
use std::time::Duration;

use cluster::{Cluster, Writer};
use common::{skipped, within};
use serde_json::{Value, json};

const POLICIES: &str = "/apis/projectcalico.org/v3/namespaces/shop/networkpolicies";
const PORT: u16 = 7000;
/// Without a datagram for so long the way is closed: sixty are sent in that time.
const SILENCE: Duration = Duration::from_millis(60);

/// Who may reach pods with `app == 'server'`.
fn admit(selector: &str) -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": { "name": "server" },
        "spec": {
            "selector": "app == 'server'", "types": ["Ingress"],
            "ingress": [{ "action": "Allow", "source": { "selector": selector } }],
        },
    })
}

fn source(selector: &str) -> Value {
    json!({ "spec": { "ingress": [{ "action": "Allow", "source": { "selector": selector } }] } })
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).saturating_sub(1)]
}

#[test]
fn policy_written_to_the_api_server_meets_real_packets() {
    if skipped("policy_written_to_the_api_server_meets_real_packets", &["nsenter"]) {
        return;
    }
    let mut cluster = Cluster::up("api");
    let server = cluster.run("node1", "server", &json!({ "app": "server" }), None);
    let near = cluster.run("node1", "near", &json!({ "app": "near" }), None);
    let far = cluster.run("node2", "far", &json!({ "app": "far" }), None);
    let _page = cluster.lab.serve(&server.netns, 80);
    for client in [&near, &far] {
        assert!(
            within(5, || cluster.lab.fetches(&client.netns, &server.address, 80)),
            "open before any policy: {client:?}"
        );
    }

    // A policy, and its end.
    cluster.api.create(POLICIES, &admit("app == 'near'"));
    assert!(within(1, || !cluster.lab.fetches(&far.netns, &server.address, 80)));
    assert!(cluster.lab.fetches(&near.netns, &server.address, 80));
    cluster.api.delete(&format!("{POLICIES}/server"));
    assert!(within(1, || cluster.lab.fetches(&far.netns, &server.address, 80)));

    // From the write to the packet, one hundred times.
    cluster.api.create(POLICIES, &admit("app == 'nobody'"));
    let wire = cluster.lab.wire();
    let writer = Writer::start(&wire, cluster.api.admin_kubeconfig());
    let stream = cluster.stream(&far, &server, PORT);
    stream.closed(SILENCE).expect("closed at first");
    let path = format!("{POLICIES}/server");
    let (mut all, mut beyond) = (Vec::new(), Vec::new());
    for round in 0..100 {
        let (before, answered, enforced) = if round % 2 == 0 {
            let waiting = thread::scope(|scope| {
                let opened = scope.spawn(|| stream.opened());
                let (before, answered) = writer.patch(&path, &source("app == 'far'"));
                (before, answered, opened.join().expect("watcher"))
            });
            (waiting.0, waiting.1, waiting.2)
        } else {
            let (before, answered) = writer.patch(&path, &source("app == 'nobody'"));
            (before, answered, stream.closed(SILENCE))
        };
        let enforced = enforced.unwrap_or_else(|| panic!("round {round}: never enforced"));
        all.push(enforced.saturating_duration_since(before));
        beyond.push(enforced.saturating_duration_since(answered));
    }
    all.sort();
    beyond.sort();
    println!(
        "MEASURED from the start of an API write to the first packet judged by it, 100 changes: p50 {:?}, p99 {:?}, worst {:?}; \
         after the answer: p50 {:?}, p99 {:?}",
        percentile(&all, 50),
        percentile(&all, 99),
        all[all.len() - 1],
        percentile(&beyond, 50),
        percentile(&beyond, 99)
    );
    assert!(percentile(&all, 99) < Duration::from_secs(1), "{all:?}");

    // Labels: of the pod, of its namespace, of its ServiceAccount.
    cluster
        .api
        .create("/api/v1/namespaces/shop/serviceaccounts", &json!({ "metadata": { "name": "default" } }));
    let labels = [
        (
            "/api/v1/namespaces/shop/pods/far",
            json!({ "spec": { "ingress": [{ "action": "Allow", "source": { "selector": "tint == 'red'" } }] } }),
        ),
        (
            "/api/v1/namespaces/shop",
            json!({ "spec": { "ingress": [{ "action": "Allow", "source": { "selector": null, "namespaceSelector": "tint == 'red'" } }] } }),
        ),
        (
            "/api/v1/namespaces/shop/serviceaccounts/default",
            json!({ "spec": { "ingress": [{ "action": "Allow", "source": { "serviceAccounts": { "selector": "tint == 'red'" } } }] } }),
        ),
    ];
    for (object, rule) in labels {
        writer.patch(&path, &rule);
        stream.closed(SILENCE).expect("closed by the rule");
        thread::scope(|scope| {
            let opened = scope.spawn(|| stream.opened());
            let (before, _) = writer.patch(object, &json!({ "metadata": { "labels": { "tint": "red" } } }));
            let opened = opened
                .join()
                .expect("watcher")
                .unwrap_or_else(|| panic!("{object}: the label opens nothing"));
            assert!(opened - before < Duration::from_secs(1), "{object}");
        });
        let (before, _) = writer.patch(object, &json!({ "metadata": { "labels": { "tint": null } } }));
        let closed =
            stream.closed(SILENCE).unwrap_or_else(|| panic!("{object}: the end of the label closes nothing"));
        assert!(closed.saturating_duration_since(before) < Duration::from_secs(1), "{object}");
    }
    drop(stream);
    cluster.lab.books_balance();
}
