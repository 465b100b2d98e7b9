//! What an agent writes about its own Node, on a real API server.

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use apiserver::ApiServer;
use margay_control::kubernetes::Note;
use serde_json::{Value, json};
use world::World;

const NODES: &str = "/api/v1/nodes";

fn annotations(api: &ApiServer, node: &str) -> Value {
    let mut annotations = api.get(&format!("{NODES}/{node}"))["metadata"]["annotations"].take();
    if let Some(map) = annotations.as_object_mut() {
        map.retain(|key, _| !key.starts_with("kubectl."));
    }
    annotations
}

fn say(world: &World, owner: &'static str, notes: &[(&str, &str)]) {
    let notes = notes.iter().map(|(key, text)| {
        let note = match text.strip_prefix("state:") {
            Some(state) => Note::State(state.to_owned()),
            None => Note::Text((*text).to_owned()),
        };
        ((*key).to_owned(), note)
    });
    world.source.as_ref().unwrap().node_notes().say(owner, notes.collect::<BTreeMap<_, _>>());
}

#[test]
fn an_agent_annotates_its_own_node_on_change_only_and_each_owner_what_is_its_own() {
    if apiserver::skipped("an_agent_annotates_its_own_node_on_change_only_and_each_owner_what_is_its_own") {
        return;
    }
    let api = ApiServer::start();
    api.create(NODES, &json!({ "metadata": { "name": "n2" } }));
    let mut world = World::of(&api);
    say(&world, "margay-node", &[("margay/version", "1"), ("margay/state", "state:ready")]);

    // There is no such Node: an agent makes none.
    world.idle(Duration::from_secs(2));
    assert_eq!(api.request("GET", &format!("{NODES}/n1"), "application/json", None).0, 404);
    let theirs = json!({ "metadata": { "name": "n1", "annotations": { "theirs": "stays" } } });
    api.create(NODES, &theirs);
    world.wait_for("the annotations", |_| annotations(&api, "n1")["margay/version"] == "1");
    let first = annotations(&api, "n1");
    let since = first["margay/state"].as_str().unwrap();
    assert!(since.starts_with("ready since 20") && since.ends_with('Z'), "{since}");

    // Said again and again: nothing is sent.
    let (version, others) =
        (api.get(&format!("{NODES}/n1"))["metadata"]["resourceVersion"].clone(), world.requests().others);
    for _ in 0..10 {
        say(&world, "margay-node", &[("margay/version", "1"), ("margay/state", "state:ready")]);
        world.idle(Duration::from_millis(200));
    }
    assert_eq!(api.get(&format!("{NODES}/n1"))["metadata"]["resourceVersion"], version);
    // Discovery asks now and then, and the Lease is renewed.
    assert!(world.requests().others <= others + 4, "{others} before, {:?}", world.requests());

    // Another owner; each with a field manager of its own.
    say(&world, "margay-wireguard", &[("projectcalico.org/WireguardPublicKey", "k1")]);
    world.wait_for("the key", |_| annotations(&api, "n1")["projectcalico.org/WireguardPublicKey"] == "k1");
    let node = api.get(&format!("{NODES}/n1"));
    let managers: Vec<&str> = node["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["operation"] == "Apply")
        .filter_map(|entry| entry["manager"].as_str())
        .collect();
    assert_eq!(managers, ["margay-node", "margay-wireguard"]);

    // What somebody else changed or removed is put right.
    let spoiled = json!({ "metadata": { "annotations": {
        "projectcalico.org/WireguardPublicKey": "forged", "margay/version": null,
    } } });
    api.patch(&format!("{NODES}/n1"), &spoiled);
    world.wait_for("the repair", |_| {
        let now = annotations(&api, "n1");
        now["projectcalico.org/WireguardPublicKey"] == "k1" && now["margay/version"] == "1"
    });
    assert_eq!(annotations(&api, "n1")["margay/state"], since, "a state that goes on keeps its time");

    // What is said no more goes, what others wrote stays, and so after a restart.
    say(&world, "margay-wireguard", &[]);
    world.wait_for("its end", |_| annotations(&api, "n1")["projectcalico.org/WireguardPublicKey"].is_null());
    world.restart();
    world.wait_for("the picture", |world| world.complete && !world.stale);
    say(&world, "margay-node", &[("margay/state", "state:not ready")]);
    world.wait_for("what an earlier run left goes", |_| annotations(&api, "n1")["margay/version"].is_null());
    let last = annotations(&api, "n1");
    assert!(last["margay/state"].as_str().unwrap().starts_with("not ready since "), "{last}");
    assert_eq!((&last["theirs"], annotations(&api, "n2")), (&json!("stays"), Value::Null));

    // A Node that is made anew under the name has nothing of ours, and gets it.
    api.delete(&format!("{NODES}/n1"));
    world.idle(Duration::from_secs(1));
    api.create(NODES, &theirs);
    world.wait_for("the new Node's", |_| annotations(&api, "n1")["margay/state"].is_string());
    assert_eq!(world.problems, Vec::new());
}

#[test]
fn a_node_of_two_address_families_is_annotated_by_servers_that_cannot_apply_to_it() {
    if apiserver::skipped("a_node_of_two_address_families_is_annotated_by_servers_that_cannot_apply_to_it") {
        return;
    }
    let api = ApiServer::start();
    api.create(NODES, &json!({ "metadata": { "name": "n1" } }));
    // Before 1.30 these are two entries of one key.
    let addresses = [("InternalIP", "192.0.2.1"), ("InternalIP", "2001:db8::1")]
        .map(|(kind, address)| json!({ "type": kind, "address": address }));
    api.patch(&format!("{NODES}/n1/status"), &json!({ "status": { "addresses": addresses } }));
    let mut world = World::of(&api);
    say(&world, "margay-node", &[("margay/version", "1"), ("margay/state", "state:ready")]);
    world.wait_for("the annotations", |_| annotations(&api, "n1")["margay/version"] == "1");
    say(&world, "margay-node", &[("margay/state", "state:ready")]);
    world.wait_for("its end", |_| annotations(&api, "n1")["margay/version"].is_null());
    assert_eq!(world.problems, Vec::new());
}
