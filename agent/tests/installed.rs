//! A cluster installed from `deploy/`: its definitions, and agents that have the rights of their own ServiceAccount and no other.

#[path = "../../control/tests/support/apiserver.rs"]
mod apiserver;
mod cluster;
mod common;
#[path = "../../control/tests/support/crds.rs"]
mod crds;
#[path = "../../control/tests/support/rights.rs"]
mod rights;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use apiserver::{ApiServer, Audited};
use cluster::{Cluster, NODES, skipped};
use common::within;
use margay_policy_engine::decode::split_documents;
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const CALICO: &str = "/apis/projectcalico.org/v3";
const ADMIN: &str = "/apis/policy.networking.k8s.io";

fn documents(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).expect("file");
    split_documents(&text, "").into_iter().map(|document| document.expect("an object").0).collect()
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// A verb on a resource of a group, in a namespace or in all (empty).
type Right = (String, String, String, String);

/// What `rules` of a role grant in `namespace` (empty: in all), one by one.
fn rights_of(rules: &Value, namespace: &str) -> BTreeSet<Right> {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().expect("a list").iter().map(|word| word.as_str().expect("text").to_owned()).collect()
    };
    let mut all = BTreeSet::new();
    for rule in rules.as_array().into_iter().flatten() {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    all.insert((verb, group.clone(), resource.clone(), namespace.to_owned()));
                }
            }
        }
    }
    all
}

/// What the roles of `file` grant, one by one.
fn granted(file: &str) -> BTreeSet<Right> {
    documents(&deploy().join(file))
        .iter()
        .flat_map(|object| {
            rights_of(&object["rules"], object["metadata"]["namespace"].as_str().unwrap_or_default())
        })
        .collect()
}

/// What the agents asked for so far, as rights: those that the server let through, or those that it refused.
fn asked_for(api: &ApiServer, is_allowed: bool, granted: &BTreeSet<Right>) -> BTreeSet<Right> {
    let audited = api.audited().into_iter().filter(|audited| audited.is_allowed == is_allowed);
    let as_right = |audited: Audited| {
        let Audited { verb, group, resource, namespace, .. } = audited;
        let everywhere = (verb, group, resource, String::new());
        // A right in the whole cluster is used in a namespace too.
        if granted.contains(&everywhere) {
            everywhere
        } else {
            (everywhere.0, everywhere.1, everywhere.2, namespace)
        }
    };
    audited.map(as_right).collect()
}

/// The roles of the agent, by where they are made.
fn roles() -> Vec<(String, Value)> {
    let place = |object: &Value| {
        let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
        let namespace = object["metadata"]["namespace"].as_str();
        let namespace = namespace.map(|namespace| format!("/namespaces/{namespace}")).unwrap_or_default();
        kind.contains("role").then(|| format!("{RBAC}{namespace}/{kind}s"))
    };
    let objects = documents(&deploy().join("margay.yaml"));
    objects.into_iter().filter_map(|object| Some((place(&object)?, object))).collect()
}

/// Puts the project's definitions in the place of those that know no fields, and makes the account with its roles.
fn install(api: &ApiServer) -> PathBuf {
    for file in fs::read_dir(deploy().join("crds")).expect("folder") {
        let definition = documents(&file.expect("file").path()).remove(0);
        let path = format!("{DEFINITIONS}/{}", definition["metadata"]["name"].as_str().expect("name"));
        api.patch(&path, &json!({ "spec": definition["spec"] }));
        let kept = api.get(&path);
        let conditions = kept["status"]["conditions"].as_array().expect("conditions").clone();
        assert!(
            !conditions.iter().any(|condition| condition["type"] == "NonStructuralSchema"),
            "{path}: {conditions:?}"
        );
        let [ours, theirs] = [&definition, &kept].map(|form| &form["spec"]["versions"][0]["schema"]);
        assert!(ours == theirs, "{path}: the server changed a part: {ours}\n{theirs}");
    }
    crds::install(api, &["policy.networking.k8s.io", "operator.tigera.io"]);
    for (path, role) in roles() {
        api.create(&path, &role);
    }
    api.service_account("kube-system", "margay")
}

fn condition(api: &ApiServer, path: &str, name: &str) -> Value {
    let object = api.get(path);
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == name).unwrap_or_default()
}

#[test]
fn agents_do_all_they_do_with_the_rights_of_their_account() {
    if skipped("agents_do_all_they_do_with_the_rights_of_their_account", &["nsenter", "curl", "openssl"]) {
        return;
    }
    let mut cluster = Cluster::up_with("inst", install);
    let complaints = |cluster: &Cluster| {
        let status = |node: &str| cluster.lab.agent_status(node)["problems"].to_string();
        let told = status("node1") + &status("node2");
        ["forbidden", "right is missing", "cannot be written"]
            .iter()
            .any(|word| told.contains(word))
            .then_some(told)
    };

    // Each kind gets its conditions.
    let in_shop = |plural: &str| format!("{CALICO}/namespaces/shop/{plural}");
    let of_cluster = |plural: &str| format!("{CALICO}/{plural}");
    let allow =
        json!([{ "action": "Allow", "protocol": "TCP", "destination": { "ports": [80, "8000:8010"] } }]);
    let spec = json!({ "selector": "app == 'web'", "types": ["Ingress"], "ingress": allow });
    let admin = json!({
        "tier": "Admin", "priority": 10, "subject": { "namespaces": {} },
        "ingress": [{ "name": "a", "action": "Accept", "from": [{ "namespaces": {} }] }],
    });
    let older = json!({
        "priority": 10, "subject": { "namespaces": {} }, "ingress": [{ "name": "a", "action": "Allow", "from": [{ "namespaces": {} }] }],
    });
    let mut baseline = older.clone();
    baseline.as_object_mut().expect("a mapping").remove("priority");
    let objects = [
        (in_shop("networkpolicies"), "web", spec.clone()),
        (of_cluster("globalnetworkpolicies"), "web", spec.clone()),
        (in_shop("stagednetworkpolicies"), "web", spec.clone()),
        (of_cluster("stagedglobalnetworkpolicies"), "web", spec),
        (in_shop("stagedkubernetesnetworkpolicies"), "web", json!({ "podSelector": {} })),
        (of_cluster("tiers"), "security", json!({ "order": 5 })),
        (format!("{ADMIN}/v1alpha2/clusternetworkpolicies"), "web", admin),
        (format!("{ADMIN}/v1alpha1/adminnetworkpolicies"), "web", older),
        (format!("{ADMIN}/v1alpha1/baselineadminnetworkpolicies"), "default", baseline),
    ];
    for (path, name, spec) in &objects {
        cluster.api.create(path, &json_object(path, name, spec));
    }
    for (path, name, _) in &objects {
        let path = format!("{path}/{name}");
        let has = || {
            !condition(&cluster.api, &path, "Accepted").is_null()
                || !condition(&cluster.api, &path, "Ready").is_null()
        };
        assert!(within(60, has), "{path}: no condition\n{}", cluster.api.get(&path));
    }

    // A mistake that no schema sees is told in a condition and by an Event.
    let wrong = json_object(&in_shop("networkpolicies"), "wrong", &json!({ "selector": "app ==" }));
    cluster.api.create(&in_shop("networkpolicies"), &wrong);
    let path = format!("{}/wrong", in_shop("networkpolicies"));
    assert!(within(60, || condition(&cluster.api, &path, "Accepted")["status"] == "False"));
    let events = || cluster.api.get("/api/v1/namespaces/shop/events").to_string();
    assert!(within(60, || events().contains("wrong")), "{}", events());

    // Built-in tiers are there; one with a policy in it stays until that is gone.
    for tier in ["default", "kube-admin", "kube-baseline"] {
        let path = format!("{CALICO}/tiers/{tier}");
        assert!(
            within(60, || cluster.api.request("GET", &path, "application/json", None).0 == 200),
            "{tier}"
        );
    }
    let tier = format!("{CALICO}/tiers/security");
    let guarded = || cluster.api.get(&tier)["metadata"]["finalizers"].is_array();
    assert!(within(60, guarded), "the tier is not held: {}", cluster.api.get(&tier));
    let policies = of_cluster("globalnetworkpolicies");
    cluster.api.create(&policies, &json_object(&policies, "inside", &json!({ "tier": "security" })));
    let is_seen = || !condition(&cluster.api, &format!("{policies}/inside"), "Accepted").is_null();
    assert!(within(60, is_seen), "{}", cluster.api.get(&format!("{policies}/inside")));
    cluster.api.delete(&tier);
    let waits = || condition(&cluster.api, &tier, "Ready")["reason"] == "Terminating";
    assert!(within(60, waits), "a policy is in it: {}", cluster.api.get(&tier));
    cluster.api.delete(&format!("{policies}/inside"));
    let gone = || cluster.api.request("GET", &tier, "application/json", None).0 == 404;
    assert!(within(60, gone), "{}", cluster.api.get(&tier));

    assert_eq!(complaints(&cluster), None, "{}{}", cluster.log("node1"), cluster.log("node2"));
    let rights: BTreeSet<Right> =
        granted("margay.yaml").into_iter().chain(granted("encryption.yaml")).collect();
    assert_eq!(asked_for(&cluster.api, false, &rights), BTreeSet::new(), "something was refused");

    let mut taken = encrypt(&cluster);
    taken.extend(lose_a_built_in_tier(&cluster));
    taken.extend(miss_what_is_followed(&mut cluster));
    read_what_calico_stores(&mut cluster);

    // Every right was used, and no other. A server-side apply that makes an object is a patch in the record, and needs to create too:
    // what that is good for is shown above, where it was missing.
    // A watch is in the record once it ended.
    for node in NODES {
        cluster.stop_agent(node);
    }
    let used = || {
        let mut used = asked_for(&cluster.api, true, &rights);
        for (group, resource, namespace) in
            [("projectcalico.org", "tiers", ""), ("", "secrets", "calico-system")]
        {
            used.insert(("create".to_owned(), group.to_owned(), resource.to_owned(), namespace.to_owned()));
        }
        used
    };
    let _ = within(60, || rights.is_subset(&used()));
    let used = used();
    let unused: Vec<_> = rights.difference(&used).collect();
    let beyond: Vec<_> = used.difference(&rights).collect();
    assert!(unused.is_empty() && beyond.is_empty(), "never used: {unused:?}; not granted: {beyond:?}");

    // And what was refused meanwhile is what was taken away for it. The record has an apply that may not create as a refused patch.
    let excuses = |(verb, group, resource, namespace): Right| {
        let recorded = if verb == "create" { "patch".to_owned() } else { verb };
        (recorded, group, resource, namespace)
    };
    let taken: BTreeSet<Right> = taken.into_iter().map(excuses).collect();
    let refused = asked_for(&cluster.api, false, &rights);
    let others: Vec<_> = refused.difference(&taken).collect();
    assert!(others.is_empty(), "refused, though nobody took it away: {others:?}");
}

/// What is said where an apply may not make what is not there.
const NO_CREATE: &str = "making it takes the right to create";

/// Keys of nodes; the right to make their Secret comes later than the others. Returns what was taken away.
fn encrypt(cluster: &Cluster) -> BTreeSet<Right> {
    rights::grant_encryption(&cluster.api);
    let role = format!("{RBAC}/namespaces/calico-system/roles/margay-keys");
    let rules = cluster.api.get(&role)["rules"].clone();
    let mut fewer = rules.clone();
    fewer[0]["verbs"] = json!(["get", "patch"]);
    cluster.api.patch(&role, &json!({ "rules": fewer }));
    let felix = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": { "name": "default" },
        "spec": { "wireguardEnabled": true },
    });
    cluster.api.create(&format!("{CALICO}/felixconfigurations"), &felix);
    let problems = |node: &str| cluster.lab.agent_status(node)["problems"].to_string();
    for node in NODES {
        let refused = || problems(node).contains(NO_CREATE);
        assert!(within(60, refused), "{}{}", problems(node), cluster.log(node));
    }
    cluster.api.patch(&role, &json!({ "rules": rules }));
    for node in NODES {
        let secret = format!("/api/v1/namespaces/calico-system/secrets/wireguard-{node}");
        let is_there = || cluster.api.request("GET", &secret, "application/json", None).0 == 200;
        assert!(within(90, is_there), "{}{}", problems(node), cluster.log(node));
    }
    &rights_of(&rules, "calico-system") - &rights_of(&fewer, "calico-system")
}

/// A built-in tier that somebody deletes is made again, with the right to. Returns what was taken away.
fn lose_a_built_in_tier(cluster: &Cluster) -> BTreeSet<Right> {
    let rules = cluster.api.get(rights::CLUSTER_ROLE)["rules"].clone();
    let mut fewer = rules.clone();
    let creates = |rule: &&mut Value| rule["resources"] == json!(["tiers"]);
    fewer.as_array_mut().expect("rules").iter_mut().find(creates).expect("a rule")["verbs"] =
        json!(["patch"]);
    cluster.api.patch(rights::CLUSTER_ROLE, &json!({ "rules": fewer }));
    let tier = format!("{CALICO}/tiers/kube-baseline");
    let code = || cluster.api.request("GET", &tier, "application/json", None).0;
    cluster.api.delete(&tier);
    let problems = || NODES.map(|node| cluster.lab.agent_status(node)["problems"].to_string()).concat();
    let refused = |node: &str| {
        let list = cluster.lab.agent_status(node)["problems"].as_array().cloned().unwrap_or_default();
        list.iter()
            .map(Value::to_string)
            .any(|told| told.contains("kube-baseline") && told.contains(NO_CREATE))
    };
    assert!(within(90, || NODES.iter().any(|node| refused(node))), "{}", problems());
    assert_eq!(code(), 404);
    cluster.api.patch(rights::CLUSTER_ROLE, &json!({ "rules": rules }));
    assert!(within(90, || code() == 200), "{}", problems());
    &rights_of(&rules, "") - &rights_of(&fewer, "")
}

/// None of the rights to follow can be missing. Returns what was taken away.
fn miss_what_is_followed(cluster: &mut Cluster) -> BTreeSet<Right> {
    let mut taken = BTreeSet::new();
    let path = rights::CLUSTER_ROLE;
    let rules = cluster.api.get(path)["rules"].as_array().expect("rules").clone();
    for (index, rule) in
        rules.iter().enumerate().filter(|(_, rule)| rule["verbs"] == json!(["list", "watch"]))
    {
        // Asked for only where projectcalico.org is not served.
        if rule["apiGroups"] == json!(["crd.projectcalico.org"]) {
            continue;
        }
        cluster.stop_agent("node2");
        cluster.forget_picture("node2");
        let mut fewer = rules.clone();
        taken.extend(rights_of(&json!([fewer.remove(index)]), ""));
        cluster.api.patch(path, &json!({ "rules": fewer }));
        cluster.start_agent("node2");
        let missed = rule["resources"][0].as_str().expect("a resource").to_owned();
        let told = || {
            cluster.has_socket("node2")
                && cluster.lab.agent_status("node2")["problems"].to_string().contains(&missed)
        };
        assert!(within(60, told), "{rule} is not missed: {}", cluster.log("node2"));
        cluster.api.patch(path, &json!({ "rules": rules }));
        assert!(within(60, || cluster.is_ready("node2")), "{rule}: {}", cluster.log("node2"));
    }
    taken
}

/// Where the server has no `projectcalico.org`, the objects are read as Calico stores them.
fn read_what_calico_stores(cluster: &mut Cluster) {
    cluster.stop_agent("node2");
    cluster.forget_picture("node2");
    let stored: Vec<String> = granted("margay.yaml")
        .into_iter()
        .filter(|(verb, group, ..)| verb == "list" && group == "crd.projectcalico.org")
        .map(|(_, _, resource, _)| resource)
        .collect();
    crds::install_stored(&cluster.api, &stored.iter().map(String::as_str).collect::<Vec<_>>());
    crds::withdraw(&cluster.api);
    cluster.start_agent("node2");
    assert!(within(60, || cluster.is_ready("node2")), "{}", cluster.log("node2"));
    let told = || cluster.lab.agent_status("node2")["problems"].to_string().contains("as Calico stores them");
    assert!(within(60, told), "{}", cluster.log("node2"));
}

/// An object for the collection at `path`.
fn json_object(path: &str, name: &str, spec: &Value) -> Value {
    let words: Vec<&str> = path.trim_start_matches("/apis/").split('/').collect();
    let kind = match *words.last().expect("a plural") {
        "networkpolicies" => "NetworkPolicy",
        "globalnetworkpolicies" => "GlobalNetworkPolicy",
        "stagednetworkpolicies" => "StagedNetworkPolicy",
        "stagedglobalnetworkpolicies" => "StagedGlobalNetworkPolicy",
        "stagedkubernetesnetworkpolicies" => "StagedKubernetesNetworkPolicy",
        "tiers" => "Tier",
        "clusternetworkpolicies" => "ClusterNetworkPolicy",
        "adminnetworkpolicies" => "AdminNetworkPolicy",
        "baselineadminnetworkpolicies" => "BaselineAdminNetworkPolicy",
        other => panic!("{other}"),
    };
    json!({ "apiVersion": format!("{}/{}", words[0], words[1]), "kind": kind, "metadata": { "name": name }, "spec": spec })
}
