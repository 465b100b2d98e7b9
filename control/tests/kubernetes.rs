//! A real API server as a source of truth: what is in force after objects come, change, break and go, also across restarts.

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/crds.rs"]
mod crds;
#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use apiserver::ApiServer;
use margay_control::Severity;
use margay_policy_engine::model::{Action, PolicyKey, PolicyKind};
use serde_json::json;
use world::{ADMIN, CALICO, PODS, POLICIES, World, namespace, pod, pod_key, policy, policy_key};

#[test]
fn every_kind_is_followed_from_the_first_list_on() {
    if apiserver::skipped("every_kind_is_followed_from_the_first_list_on") {
        return;
    }
    let api = ApiServer::start();
    crds::install(&api, &[CALICO, ADMIN]);
    api.create("/api/v1/namespaces", &namespace("shop"));
    api.create(PODS, &pod("web"));
    api.create(POLICIES, &policy("web", "app == 'web'"));
    api.create("/apis/projectcalico.org/v3/tiers", &json!({
        "apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": { "name": "security" }, "spec": { "order": 7 },
    }));
    api.create(
        "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies",
        &json!({
            "metadata": { "name": "closed" }, "spec": { "podSelector": {} },
        }),
    );
    let slice = json!({
        "metadata": { "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } }, "addressType": "IPv4",
        "endpoints": [{ "addresses": ["10.244.1.2"] }], "ports": [{ "port": 80 }],
    });
    // Kubernetes before 1.21 has the older version only, and 1.25 has it no more.
    let slices = |version: &str| format!("/apis/discovery.k8s.io/{version}/namespaces/shop/endpointslices");
    let is_old = api.request("GET", &slices("v1"), "application/json", None).0 == 404;
    api.create(&slices(if is_old { "v1beta1" } else { "v1" }), &slice);
    let mut world = World::of(&api);
    assert_eq!(world.batches, 1, "nothing is told before everything is known");
    assert!(world.problems.is_empty(), "{:?}", world.problems);
    let model = &world.model;
    assert_eq!(model.namespaces["shop"].labels["team"], "shop");
    let web = &model.pods[&pod_key("web")];
    assert_eq!((web.node.as_deref(), web.ports.len(), web.uid.is_empty()), (Some("n1"), 1, false));
    assert!(model.policies.contains_key(&policy_key("web")) && model.tiers.contains_key("security"));
    assert_eq!(model.policies.len(), 2);
    assert_eq!(model.endpoint_slices.len(), 1);

    // Changes arrive as they are made.
    api.patch(
        &format!("{PODS}/web/status"),
        &json!({ "status": { "podIPs": [{ "ip": "10.244.1.2" }], "podIP": "10.244.1.2" } }),
    );
    world.wait_for("the address", |world| world.model.pods[&pod_key("web")].addresses.len() == 1);
    api.patch("/api/v1/namespaces/shop", &json!({ "metadata": { "labels": { "team": "other" } } }));
    world.wait_for("the label", |world| world.model.namespaces["shop"].labels["team"] == "other");
    api.delete(&format!("{PODS}/web"));
    world.wait_for("the end of the pod", |world| world.model.pods.is_empty());
    api.delete(&format!("{POLICIES}/web"));
    world.wait_for("the end of the policy", |world| world.model.policies.len() == 1);
    assert!(!world.stale && world.complete);
}

#[test]
fn invalid_objects_keep_their_last_valid_form_across_a_restart_and_disturb_nobody() {
    if apiserver::skipped("invalid_objects_keep_their_last_valid_form_across_a_restart_and_disturb_nobody") {
        return;
    }
    let api = ApiServer::start();
    crds::install(&api, &[CALICO]);
    api.create("/api/v1/namespaces", &namespace("shop"));
    api.create(POLICIES, &policy("web", "app == 'web'"));
    let mut world = World::of(&api);
    let before = world.model.clone();

    api.patch(&format!("{POLICIES}/web"), &json!({ "spec": { "selector": "app = 'web'" } }));
    world.wait_for("the error", |world| world.problem("NetworkPolicy/shop/web").is_some());
    let problem = world.problem("NetworkPolicy/shop/web").unwrap();
    assert_eq!((problem.field.as_str(), problem.severity), ("spec.selector", Severity::Error));
    assert_eq!(world.model, before, "PM-D2: the last valid form");
    // Never valid: closed for its namespace (policy model 4.1).
    api.create(POLICIES, &policy("never", "((("));
    world.wait_for("the closed form", |world| world.model.policies.contains_key(&policy_key("never")));
    assert!(
        world.model.policies[&policy_key("never")].ingress.iter().all(|rule| rule.action == Action::Deny)
    );
    // Others go on.
    api.create(POLICIES, &policy("api", "app == 'api'"));
    world.wait_for("the other policy", |world| world.model.policies.contains_key(&policy_key("api")));

    let (model, problems) = (world.model.clone(), world.problems.clone());
    world.restart();
    world.wait_for("the picture again", |world| world.complete && !world.stale);
    assert_eq!(
        (&world.model, &world.problems),
        (&model, &problems),
        "given the same store, a restart changes nothing"
    );

    api.patch(&format!("{POLICIES}/web"), &json!({ "spec": { "selector": "app == 'web'" } }));
    api.delete(&format!("{POLICIES}/never"));
    world.wait_for("health", |world| world.problems.is_empty());
    assert!(!world.model.policies.contains_key(&policy_key("never")));
}

#[test]
fn a_cold_start_without_the_server_puts_the_last_picture_in_force_marked_stale_pm_d27() {
    if apiserver::skipped(
        "a_cold_start_without_the_server_puts_the_last_picture_in_force_marked_stale_pm_d27",
    ) {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let mut api = ApiServer::start();
    crds::install(&api, &[CALICO]);
    api.create("/api/v1/namespaces", &namespace("shop"));
    api.create(PODS, &pod("web"));
    api.create(POLICIES, &policy("web", "app == 'web'"));
    let mut world = World::of(&api);
    api.create(POLICIES, &policy("later", "app == 'web'"));
    world
        .wait_for("a change after the list", |world| world.model.policies.contains_key(&policy_key("later")));
    let model = world.model.clone();

    api.kill_server();
    world.wait_for("the loss", |world| world.stale);
    assert!(world.problem("cannot be reached").is_some());
    assert_eq!(world.model, model, "while the server is away the last state stays in force");
    world.restart();
    let waited = world.wait_for("the picture on disk", |world| world.complete);
    assert!(world.stale && world.model == model, "{:?}", world.problems);
    assert!(world.problem("last complete picture on disk").is_some());
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    for entry in std::fs::read_dir(world.store.path()).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    // What changed meanwhile is put right in one batch, deletions included.
    world.source = None;
    api.run_server();
    api.delete(&format!("{POLICIES}/web"));
    api.create(POLICIES, &policy("newer", "app == 'web'"));
    api.kill_server();
    world.restart();
    world.wait_for("the picture on disk", |world| world.complete);
    assert!(world.model == model);
    let batches = world.batches;
    api.run_server();
    world.wait_for("the server's picture", |world| !world.stale);
    assert_eq!(world.batches, batches + 1);
    assert!(!world.model.policies.contains_key(&policy_key("web")));
    assert!(world.model.policies.contains_key(&policy_key("newer")) && world.problems.is_empty());
}

#[test]
fn an_api_that_is_not_installed_is_waited_for() {
    if apiserver::skipped("an_api_that_is_not_installed_is_waited_for") {
        return;
    }
    let api = ApiServer::start();
    api.create("/api/v1/namespaces", &namespace("shop"));
    let mut world = World::of(&api);
    assert!(world.problems.is_empty(), "{:?}", world.problems);
    // What a Calico with an API server of its own stores is read as it is, without being written to, and that is said.
    crds::install_old_calico(&api);
    let stored = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy",
        "metadata": {
            "name": "default.gate", "annotations": { "projectcalico.org/metadata": "{\"annotations\":{\"why\":\"so\"}}" },
        },
        "spec": { "selector": "all()", "tier": "default", "types": ["Ingress"], "ingress": [{ "action": "Allow" }] },
    });
    let collection = "/apis/crd.projectcalico.org/v1/globalnetworkpolicies";
    api.create(collection, &stored);
    world.restart();
    world.wait_for("the warning", |world| world.complete && world.problem("crd.projectcalico.org").is_some());
    let gate =
        PolicyKey { kind: PolicyKind::GlobalNetworkPolicy, namespace: None, name: "default.gate".to_owned() };
    assert!(world.model.policies.contains_key(&gate), "{:?}", world.model.policies.keys());
    let version = api.get(&format!("{collection}/default.gate"))["metadata"]["resourceVersion"].clone();
    let before = world.requests();
    world.idle(Duration::from_secs(3));
    let after = world.requests();
    assert_eq!((after.lists, after.watches), (before.lists, before.watches), "nothing is asked in a loop");
    assert!(after.others <= before.others + 3, "{before:?} {after:?}");
    crds::install(&api, &[CALICO]);
    api.create(POLICIES, &policy("web", "app == 'web'"));
    let waited =
        world.wait_for("the new kind", |world| world.model.policies.contains_key(&policy_key("web")));
    assert!(waited < Duration::from_secs(50), "{waited:?}");
    // The definitions of v3 are new and have no such policy: what is stored stays in force until the agent starts anew.
    assert!(world.model.policies.contains_key(&gate));
    world.wait_for("the word", |world| world.problem("restart the agents").is_some());
    let now = api.get(&format!("{collection}/default.gate"))["metadata"]["resourceVersion"].clone();
    assert_eq!(now, version, "nothing is written to what is stored");
    world.restart();
    world.wait_for("the change-over", |world| world.complete && !world.stale);
    assert!(!world.model.policies.contains_key(&gate) && world.problem("crd.projectcalico.org").is_none());
}
