//! Servers that the real one of the other tests is not: newer ones that stream lists, and ones whose answers are broken.

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/fake.rs"]
mod fake;
#[path = "support/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fake::{Collection, Fake, Manner};
use serde_json::{Value, json};
use world::{World, pod_key};

const PODS: &str = "/api/v1/pods";

fn pod(n: usize, label: &str, version: usize) -> Value {
    json!({
        "metadata": {
            "name": format!("p{n}"), "namespace": "shop", "uid": format!("u{n}"), "resourceVersion": version.to_string(),
            "labels": { "l": label },
        },
        "spec": { "nodeName": "n1", "containers": [] }, "status": { "phase": "Running" },
    })
}

fn server(minor: u32, streams: bool) -> Fake {
    let make = Arc::new(|n| pod(n, "first", n + 1));
    Fake::start(Manner {
        minor,
        streams,
        collections: BTreeMap::from([(PODS, Collection { count: 700, make })]),
    })
}

fn follow(fake: &Fake, folder: &std::path::Path) -> World {
    let mut world = World::new(fake.kubeconfig(folder));
    world.wait_for("the first picture", |world| world.complete && !world.stale);
    assert_eq!(world.model.pods.len(), 700);
    world
}

#[test]
fn lists_are_streamed_where_the_server_does_so_and_read_in_pages_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    for (minor, streams) in [(36, true), (36, false), (20, false)] {
        let fake = server(minor, streams);
        let mut world = follow(&fake, folder.path());
        let requests = fake.requests();
        let lists = requests.iter().filter(|target| target.starts_with("/api/v1/pods?limit")).count();
        assert_eq!(lists, if streams { 0 } else { 3 }, "1.{minor}, streams: {streams}: {requests:#?}");
        assert_eq!(requests.iter().any(|target| target.contains("sendInitialEvents")), minor == 36);

        // The stream goes on as a watch, and after a cut from where it was.
        fake.tell(PODS, &json!({ "type": "MODIFIED", "object": pod(3, "second", 1_000_001) }).to_string());
        world.wait_for("the change", |world| world.model.pods[&pod_key("p3")].labels["l"] == "second");
        fake.cut();
        world.wait_for("the next watch", |_| fake.watchers(PODS) > 0);
        let requests = fake.requests();
        let last = requests.iter().rfind(|target| target.starts_with("/api/v1/pods?watch")).unwrap();
        assert!(last.contains("resourceVersion=1000001") && !last.contains("sendInitialEvents"), "{last}");
        fake.tell(PODS, &json!({ "type": "DELETED", "object": pod(3, "second", 1_000_002) }).to_string());
        world.wait_for("the end", |world| world.model.pods.len() == 699);
    }
}

/// As 1.20 does in the first moment of its start: it refuses to say whether it is ready, then says that it is not, and names no CRD.
#[test]
fn a_server_that_has_just_begun_is_not_taken_for_one_without_policies() {
    let policy = |_| {
        json!({
            "metadata": { "name": "web", "namespace": "shop", "resourceVersion": "7" },
            "spec": { "selector": "all()", "types": ["Ingress"] },
        })
    };
    let path = "/apis/projectcalico.org/v3/networkpolicies";
    let fake = Fake::start(Manner {
        minor: 20,
        streams: false,
        collections: BTreeMap::from([(path, Collection { count: 1, make: Arc::new(policy) })]),
    });
    fake.begin_with(&[403, 500, 403, 500]);
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(fake.kubeconfig(folder.path()));
    world.wait_for("the first picture", |world| world.complete);
    assert_eq!((world.model.policies.len(), world.batches), (1, 1), "{:#?}", fake.requests());
    assert!(!world.stale && world.problems.is_empty(), "{:?}", world.problems);
}

#[test]
fn what_is_no_object_or_no_event_costs_a_list_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let fake = server(20, false);
    let mut world = follow(&fake, folder.path());
    // An object that makes no sense, between two that do.
    fake.tell(
        PODS,
        &json!({ "type": "MODIFIED", "object": { "metadata": { "resourceVersion": "1000001" } } })
            .to_string(),
    );
    fake.tell(PODS, &json!({ "type": "MODIFIED", "object": "what?" }).to_string());
    fake.tell(PODS, &json!({ "type": "UNHEARD-OF", "object": {} }).to_string());
    let mut broken = pod(1, "broken", 1_000_002);
    broken["status"]["podIPs"] = json!([{ "ip": "not an address" }]);
    fake.tell(PODS, &json!({ "type": "MODIFIED", "object": broken }).to_string());
    fake.tell(PODS, &json!({ "type": "MODIFIED", "object": pod(2, "second", 1_000_003) }).to_string());
    world.wait_for("the last of them", |world| world.model.pods[&pod_key("p2")].labels["l"] == "second");
    assert_eq!(world.model.pods[&pod_key("p1")].labels["l"], "first", "PM-D2: its last valid form");
    assert!(world.problem("Pod/shop/p1").is_some(), "{:?}", world.problems);
    assert_eq!(world.model.pods.len(), 700);

    // Half an event, and a line that is none: the kind is listed again.
    let lists = world.requests().lists;
    fake.tell(PODS, "<html>gateway timeout</html>");
    world.wait_for("a new list", |world| world.requests().lists >= lists + 3 && !world.stale);
    assert_eq!(world.model.pods.len(), 700);
    // An error that the server names: 410 in the stream.
    let lists = world.requests().lists;
    // The one that was left behind is still in the server's list: it is noticed when somebody writes to it.
    world.wait_for("the watch", |_| fake.watchers(PODS) > 1);
    let status =
        json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version" });
    fake.tell(PODS, &json!({ "type": "ERROR", "object": status }).to_string());
    world.wait_for("a new list", |world| world.requests().lists >= lists + 3);
    world.idle(Duration::from_secs(2));
    assert_eq!(world.requests().lists, lists + 3, "once");
    // The ledger tells the same: two lists after the first, what could not be read, and watches in place of those that ended.
    let traffic = world.traffic();
    assert_eq!(traffic.relists, BTreeMap::from([("pods".to_owned(), 2)]));
    assert_eq!((traffic.unreadable["pods"], traffic.unreadable["Pod"]), (1, 2), "{traffic:?}");
    assert!(traffic.watch_restarts["pods"] >= 2, "{traffic:?}");
    let codes: Vec<&str> = traffic.requests.keys().map(|asked| asked.code.as_str()).collect();
    assert!(codes.contains(&"2xx") && codes.contains(&"403"), "the stand-in lets nobody write: {traffic:?}");
}
