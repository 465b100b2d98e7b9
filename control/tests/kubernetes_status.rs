//! What goes back to a real API server: conditions, Events and the life of tiers, from one agent of the cluster, and not in a loop.

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/crds.rs"]
mod crds;
#[path = "support/world.rs"]
mod world;

use std::time::{Duration, Instant};

use apiserver::ApiServer;
use serde_json::{Value, json};
use world::{CALICO, POLICIES, World, namespace, policy};

const TIERS: &str = "/apis/projectcalico.org/v3/tiers";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/margay-status";

fn condition(object: &Value, name: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == name).unwrap_or_default()
}

/// Waits for `is_so`, while the agents go on.
fn wait(worlds: &mut [&mut World], what: &str, patience: u64, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(patience), "{what} did not come");
        worlds.iter_mut().for_each(|world| world.take(Duration::from_millis(50)));
    }
}

fn start(api: &ApiServer) {
    crds::install(api, &[CALICO]);
    api.create("/api/v1/namespaces", &namespace("shop"));
    // There is no controller that would make it.
    let _ = api.request("POST", "/api/v1/namespaces", "application/json", Some(&namespace("kube-system")));
    for node in ["n1", "n2"] {
        api.create("/api/v1/nodes", &json!({ "metadata": { "name": node } }));
    }
}

#[test]
fn conditions_and_events_say_what_became_of_a_policy_and_come_from_one_agent() {
    if apiserver::skipped("conditions_and_events_say_what_became_of_a_policy_and_come_from_one_agent") {
        return;
    }
    let api = ApiServer::start();
    start(&api);
    let mut first = World::new_on("n1", api.admin_kubeconfig());
    let mut second = World::new_on("n2", api.admin_kubeconfig());
    for world in [&mut first, &mut second] {
        world.wait_for("the first picture", |world| world.complete && !world.stale);
    }
    api.create(POLICIES, &policy("web", "app == 'web'"));
    let path = format!("{POLICIES}/web");
    let mut both = [&mut first, &mut second];
    wait(&mut both, "acceptance", 60, || condition(&api.get(&path), "Accepted")["status"] == "True");
    let accepted = api.get(&path);
    assert_eq!(condition(&accepted, "Enforced")["status"], "True");

    // Nothing is written again that is there.
    let version = accepted["metadata"]["resourceVersion"].clone();
    let others = [both[0].requests().others, both[1].requests().others];
    let began = Instant::now();
    wait(&mut both, "time", 60, || began.elapsed() > Duration::from_secs(4));
    assert_eq!(api.get(&path)["metadata"]["resourceVersion"], version);
    for (world, before) in both.iter().zip(others) {
        assert!(world.requests().others <= before + 4, "{before} requests before, {:?}", world.requests());
    }

    // An object that is made anew under its name has nothing to do with the earlier one.
    api.delete(&path);
    api.create(POLICIES, &policy("web", "app == 'web'"));
    wait(&mut both, "acceptance again", 60, || condition(&api.get(&path), "Accepted")["status"] == "True");
    let since = condition(&api.get(&path), "Accepted")["lastTransitionTime"].clone();

    // A criterion that has no effect.
    let allow = json!({ "action": "Allow", "protocol": "TCP" });
    let by_method = json!({ "action": "Allow", "protocol": "TCP", "http": { "methods": ["GET"] } });
    api.patch(&path, &json!({ "spec": { "ingress": [by_method] } }));
    wait(&mut both, "the warning", 60, || condition(&api.get(&path), "Enforced")["reason"] == "NotEnforced");
    let warned = api.get(&path);
    assert!(
        condition(&warned, "Enforced")["message"].as_str().unwrap().contains("spec.ingress[0].http"),
        "{warned}"
    );
    assert_eq!(condition(&warned, "Accepted")["lastTransitionTime"], since, "it did not change");

    // An error: field, reason, what is in force instead; and an Event.
    api.patch(&path, &json!({ "spec": { "ingress": [allow], "selector": "app = 'web'" } }));
    wait(&mut both, "the refusal", 60, || condition(&api.get(&path), "Accepted")["reason"] == "Invalid");
    let refused = api.get(&path);
    let message = condition(&refused, "Accepted")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("spec.selector") && message.contains("last valid form"), "{message}");
    assert_eq!(condition(&refused, "Accepted")["observedGeneration"], refused["metadata"]["generation"]);
    let events = || api.get("/api/v1/namespaces/shop/events")["items"].as_array().unwrap().clone();
    wait(&mut both, "the Event", 60, || !events().is_empty());
    let all = events();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(
        (all[0]["reason"].as_str(), all[0]["involvedObject"]["uid"].as_str()),
        (Some("Invalid"), refused["metadata"]["uid"].as_str())
    );

    // Somebody else's condition stays somebody else's: ours are ours by field manager.
    let managers = refused["metadata"]["managedFields"].as_array().unwrap();
    assert!(
        managers.iter().any(|entry| entry["manager"] == "margay" && entry["operation"] == "Apply"),
        "{managers:?}"
    );

    // The one who writes goes; another takes over.
    let holder = api.get(LEASE)["spec"]["holderIdentity"].as_str().unwrap().to_owned();
    let stays = if holder == "n1" { 1 } else { 0 };
    both[1 - stays].source = None;
    api.patch(&path, &json!({ "spec": { "selector": "app == 'web'" } }));
    let began = Instant::now();
    wait(&mut both[stays..=stays], "the other's word", 80, || {
        condition(&api.get(&path), "Accepted")["status"] == "True"
    });
    println!("MEASURED status goes on {:?} after the agent that wrote it ended", began.elapsed());
    assert_ne!(api.get(LEASE)["spec"]["holderIdentity"], holder.as_str());
    assert_eq!(api.get(LEASE)["spec"]["leaseTransitions"], 1);
}

#[test]
fn built_in_tiers_are_made_and_a_tier_does_not_go_before_its_policies_pm_22() {
    if apiserver::skipped("built_in_tiers_are_made_and_a_tier_does_not_go_before_its_policies_pm_22") {
        return;
    }
    let api = ApiServer::start();
    start(&api);
    let mut world = World::of(&api);
    let mut agents = [&mut world];
    let tier = |name: &str| api.request("GET", &format!("{TIERS}/{name}"), "application/json", None);
    for (name, order, action) in
        [("kube-admin", 1_000, "Pass"), ("default", 1_000_000, "Deny"), ("kube-baseline", 10_000_000, "Pass")]
    {
        wait(&mut agents, name, 60, || tier(name).0 == 200);
        let made = tier(name).1;
        assert_eq!(
            (made["spec"]["order"].as_f64(), made["spec"]["defaultAction"].as_str()),
            (Some(f64::from(order)), Some(action))
        );
    }
    api.create(TIERS, &json!({ "apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": { "name": "security" }, "spec": { "order": 5 } }));
    wait(&mut agents, "the finalizer", 60, || {
        tier("security").1["metadata"]["finalizers"] == json!(["projectcalico.org/tier-controller"])
    });
    assert_eq!(tier("security").1["spec"]["order"], 5, "what its author wrote stays");
    wait(&mut agents, "readiness", 60, || condition(&tier("security").1, "Ready")["status"] == "True");
    for name in ["security.one", "security.two"] {
        let mut policy = policy(name, "all()");
        policy["spec"]["tier"] = "security".into();
        api.create(POLICIES, &policy);
    }
    wait(&mut agents, "the policies", 60, || {
        condition(&api.get(&format!("{POLICIES}/security.two")), "Accepted")["status"] == "True"
    });
    api.delete(&format!("{TIERS}/security"));
    wait(&mut agents, "the wait", 60, || condition(&tier("security").1, "Ready")["reason"] == "Terminating");
    let message = condition(&tier("security").1, "Ready")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("2 NetworkPolicy"), "{message}");
    api.delete(&format!("{POLICIES}/security.one"));
    wait(&mut agents, "the count", 60, || {
        condition(&tier("security").1, "Ready")["message"].to_string().contains("1 NetworkPolicy")
    });
    api.delete(&format!("{POLICIES}/security.two"));
    wait(&mut agents, "the end", 60, || tier("security").0 == 404);
    // A built-in tier that somebody deletes is made again.
    api.delete(&format!("{TIERS}/kube-admin"));
    wait(&mut agents, "the built-in tier again", 60, || {
        let (code, tier) = tier("kube-admin");
        code == 200 && tier["metadata"]["deletionTimestamp"].is_null()
    });
}
