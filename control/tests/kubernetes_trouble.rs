//! A real API server that is slow, cut off, forgetful or strict: nothing is lost, nothing is asked in a loop, and the reason is named.

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/crds.rs"]
mod crds;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/world.rs"]
mod world;

use std::time::{Duration, Instant};

use apiserver::ApiServer;
use proxy::Proxy;
use serde_json::{Value, json};
use world::{CALICO, PODS, POLICIES, World, namespace, pod, policy, policy_key};

/// What a second agent knows that starts now, with nothing on its disk.
fn fresh(api: &ApiServer) -> World {
    World::of(api)
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_watch_that_is_cut_every_second_for_a_minute_loses_nothing_and_asks_little() {
    if apiserver::skipped("a_watch_that_is_cut_every_second_for_a_minute_loses_nothing_and_asks_little") {
        return;
    }
    let api = ApiServer::start();
    crds::install(&api, &[CALICO]);
    api.create("/api/v1/namespaces", &namespace("shop"));
    let proxy = Proxy::to(api.address());
    let mut world = World::new(api.admin_kubeconfig_at(proxy.address()));
    world.wait_for("the first picture", |world| world.complete && !world.stale);
    let kinds = world.requests().watches;
    let (before, files) = (world.requests(), open_files());
    let began = Instant::now();
    let (mut cuts, mut changes) = (0, 0);
    while began.elapsed() < Duration::from_secs(60) {
        if began.elapsed() > Duration::from_secs(cuts) {
            proxy.cut();
            cuts += 1;
        }
        if began.elapsed() > Duration::from_millis(250 * changes) {
            api.create(POLICIES, &policy(&format!("p{changes}"), "all()"));
            if changes % 3 == 2 {
                api.delete(&format!("{POLICIES}/p{}", changes - 1));
            }
            changes += 1;
        }
        world.take(Duration::from_millis(20));
    }
    let after = world.requests();
    let last = policy_key(&format!("p{}", changes - 1));
    let waited = world.wait_for("the last change", |world| world.model.policies.contains_key(&last));
    assert_eq!(world.model, fresh(&api).model, "{cuts} cuts and {changes} changes later");
    let (watches, lists) = (after.watches - before.watches, after.lists - before.lists);
    println!(
        "MEASURED {cuts} cuts of {kinds} watches in a minute, {changes} changes: {watches} watches opened, {lists} lists, {} others; \
         the last change arrived {waited:?} after the last cut's end; {files} files open before, {} after",
        after.others - before.others,
        open_files()
    );
    assert_eq!(lists, 0, "a cut watch goes on from where it was");
    assert!(watches <= cuts * kinds * 3 / 2, "{watches} watches for {cuts} cuts of {kinds}");
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    assert!(open_files() < files + 40, "connections are left behind: {files} before, {} after", open_files());
}

#[test]
fn history_that_the_server_forgot_is_listed_anew_once() {
    if apiserver::skipped("history_that_the_server_forgot_is_listed_anew_once") {
        return;
    }
    let mut api = ApiServer::start();
    crds::install(&api, &[CALICO]);
    api.create("/api/v1/namespaces", &namespace("shop"));
    for name in ["stays", "goes", "changes"] {
        api.create(POLICIES, &policy(name, "all()"));
    }
    let proxy = Proxy::to(api.address());
    let mut world = World::new(api.admin_kubeconfig_at(proxy.address()));
    world.wait_for("the first picture", |world| world.complete && !world.stale);
    let before = world.requests();

    proxy.refuse(true);
    world.wait_for("the loss", |world| world.stale);
    api.delete(&format!("{POLICIES}/goes"));
    api.patch(&format!("{POLICIES}/changes"), &json!({ "spec": { "selector": "app == 'x'" } }));
    api.create(POLICIES, &policy("comes", "all()"));
    api.kill_server();
    api.compact();
    api.run_server();
    world.idle(Duration::from_secs(1));
    assert!(world.model.policies.contains_key(&policy_key("goes")), "the last state stays in force");
    proxy.refuse(false);
    world.wait_for("the new state", |world| {
        !world.stale && world.model.policies.contains_key(&policy_key("comes"))
    });
    world.idle(Duration::from_secs(5));
    assert_eq!(world.model, fresh(&api).model);
    let lists = world.requests().lists - before.lists;
    println!(
        "MEASURED after a compaction: {lists} pages listed, {before:?} before, {:?} after",
        world.requests()
    );
    assert!(lists >= 1, "this test did not make the server forget");
    assert!(lists <= before.lists, "each kind is listed anew at most once");
}

#[test]
fn a_server_that_is_killed_for_a_minute_leaves_the_last_state_in_force_and_is_taken_up_at_once() {
    if apiserver::skipped(
        "a_server_that_is_killed_for_a_minute_leaves_the_last_state_in_force_and_is_taken_up_at_once",
    ) {
        return;
    }
    let mut api = ApiServer::start();
    crds::install(&api, &[CALICO]);
    api.create("/api/v1/namespaces", &namespace("shop"));
    api.create(POLICIES, &policy("web", "all()"));
    let mut world = World::of(&api);
    let (model, before) = (world.model.clone(), world.requests());
    api.kill_server();
    world.idle(Duration::from_secs(60));
    assert!(world.stale && world.model == model);
    let during = world.requests();
    api.run_server();
    api.create(POLICIES, &policy("api", "all()"));
    let waited =
        world.wait_for("the new policy", |world| world.model.policies.contains_key(&policy_key("api")));
    world.wait_for("all of it", |world| !world.stale);
    println!(
        "MEASURED a server killed for a minute: {} requests tried meanwhile; a change after its start was known {waited:?} after the write",
        during.watches + during.lists + during.others - before.watches - before.lists - before.others
    );
    // Half a minute at most between two tries of one kind, and one that gets through wakes the others.
    assert!(during.watches - before.watches <= before.watches * 12, "{before:?} {during:?}");
    assert!(waited < Duration::from_secs(90), "{waited:?}");
    assert_eq!(world.model, fresh(&api).model);
}

#[test]
fn a_right_that_is_missing_is_named_and_granting_it_mends_it() {
    if apiserver::skipped("a_right_that_is_missing_is_named_and_granting_it_mends_it") {
        return;
    }
    let api = ApiServer::start();
    crds::install(&api, &[CALICO]);
    api.create("/api/v1/namespaces", &namespace("shop"));
    api.create(POLICIES, &policy("web", "all()"));
    let kubeconfig = api.service_account("kube-system", "margay");
    let rule = |groups: &[&str], resources: &[&str]| json!({ "apiGroups": groups, "resources": resources, "verbs": ["list", "watch"] });
    let role = |resources: &[&str]| -> Value {
        json!({
            "metadata": { "name": "margay" },
            "rules": [
                rule(&[""], resources),
                rule(&["networking.k8s.io"], &["networkpolicies"]),
                rule(&["discovery.k8s.io"], &["endpointslices"]),
                rule(&[CALICO], &["*"]),
            ],
        })
    };
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    api.create(roles, &role(&["namespaces", "serviceaccounts", "nodes"]));
    api.create(
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        &json!({
            "metadata": { "name": "margay" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "margay" },
            "subjects": [{ "kind": "ServiceAccount", "namespace": "kube-system", "name": "margay" }],
        }),
    );
    let mut world = World::new(kubeconfig);
    world.wait_for("the reason", |world| world.problem("a right is missing").is_some());
    let text = world.problem("a right is missing").unwrap().to_string();
    assert!(
        text.contains("cannot list resource \"pods\"")
            && text.contains("system:serviceaccount:kube-system:margay"),
        "{text}"
    );
    world.idle(Duration::from_secs(2));
    assert!(!world.complete && world.batches == 0, "nothing is in force before the picture is complete");
    let path = format!("{roles}/margay");
    api.patch(&path, &role(&["namespaces", "serviceaccounts", "nodes", "pods"]));
    let waited = world.wait_for("the picture", |world| world.complete && !world.stale);
    assert!(waited < Duration::from_secs(60), "{waited:?}");
    assert!(world.problems.is_empty(), "{:?}", world.problems);

    // And one that is taken away later: what was told stays.
    api.patch(&path, &role(&["namespaces", "serviceaccounts", "nodes"]));
    let model = world.model.clone();
    world.idle(Duration::from_secs(1));
    assert_eq!(world.model, model);
}

#[test]
fn a_flood_of_pods_and_policies_ends_in_what_a_fresh_start_sees() {
    if apiserver::skipped("a_flood_of_pods_and_policies_ends_in_what_a_fresh_start_sees") {
        return;
    }
    let api = ApiServer::start();
    crds::install(&api, &[CALICO]);
    api.create("/api/v1/namespaces", &namespace("shop"));
    let mut world = World::of(&api);
    let (pods, policies) = (2_000, 1_000);
    let objects = (0..pods)
        .map(|n| (PODS.to_owned(), pod(&format!("pod-{n}"))))
        .chain(
            (0..policies)
                .map(|n| (POLICIES.to_owned(), policy(&format!("policy-{n}"), &format!("app == 'pod-{n}'")))),
        )
        .collect();
    let began = Instant::now();
    let written = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            api.flood(objects);
            Instant::now()
        });
        world.wait_for("everything", |world| {
            world.model.pods.len() == pods && world.model.policies.len() == policies
        });
        flood.join().unwrap()
    });
    let behind = Instant::now().saturating_duration_since(written);
    println!(
        "MEASURED {pods} pods and {policies} policies written in {:?}; the follower was {behind:?} behind the last answer",
        written - began
    );
    assert!(behind < Duration::from_secs(60), "{behind:?}");
    assert_eq!(world.model, fresh(&api).model);
    let model = world.model.clone();
    world.restart();
    world.wait_for("a restart's picture", |world| world.complete && !world.stale);
    assert_eq!(world.model, model, "and in what a restart with its store sees");
}
