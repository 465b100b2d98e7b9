//! What the agent may ask of the API server, verb by verb: the one table that the ClusterRole, its documentation and the words about a
//! missing right are made from.

use margay_policy_engine::schema;
use serde_json::{Value, json};

/// Some verbs on some resources of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// API group; empty for the core.
    pub group: &'static str,
    /// Resources, as in URLs; with a subresource after a slash.
    pub resources: Vec<String>,
    /// Only objects of these names; any if empty.
    pub names: &'static [&'static str],
    /// Where it holds.
    pub scope: Scope,
    /// Verbs.
    pub verbs: &'static [&'static str],
    /// What the agent does with it.
    pub why: &'static str,
    /// What follows where it is missing.
    pub without: &'static str,
}

/// Where a right holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In the whole cluster.
    Cluster,
    /// In the agent's namespace only.
    OwnNamespace,
    /// In the namespace of the nodes' keys only, where encryption is asked for.
    Keys,
}

const FOLLOW: &[&str] = &["list", "watch"];

/// Kinds of ours that get conditions.
const JUDGED: [&str; 6] = [
    "NetworkPolicy",
    "GlobalNetworkPolicy",
    "StagedNetworkPolicy",
    "StagedGlobalNetworkPolicy",
    "StagedKubernetesNetworkPolicy",
    "Tier",
];

const ADMIN: &str = "policy.networking.k8s.io";
const ADMIN_KINDS: [&str; 3] =
    ["adminnetworkpolicies", "baselineadminnetworkpolicies", "clusternetworkpolicies"];

/// Every right that the agent uses.
pub fn rights() -> Vec<Right> {
    let cluster = |group, resources, verbs, why, without| Right {
        group,
        resources,
        names: &[],
        scope: Scope::Cluster,
        verbs,
        why,
        without,
    };
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let kinds = schema::resources();
    let of_status = |plural: &str| format!("{plural}/status");
    let judged =
        kinds.iter().filter(|kind| JUDGED.contains(&kind.kind)).map(|kind| of_status(kind.plural)).collect();
    // Profiles and Calico's Nodes are not stored as such.
    let is_stored = |kind: &&schema::Resource| !["Profile", "Node"].contains(&kind.kind);
    let stored = kinds.iter().filter(is_stored).map(|kind| kind.plural.to_owned()).collect();
    let unknown = "no picture is complete without them: the agent does not become ready";
    let silent = "policy is enforced all the same, and objects do not say what became of them";
    let conditions = "conditions: accepted, invalid with field and reason, not enforced";
    let lease = Right {
        group: "coordination.k8s.io",
        resources: named(&["leases"]),
        names: &["margay-status"],
        scope: Scope::OwnNamespace,
        verbs: &["get", "update"],
        why: "by it the agents agree which of them writes status",
        without: silent,
    };
    vec![
        cluster(
            "",
            named(&["namespaces", "nodes", "pods", "serviceaccounts"]),
            FOLLOW,
            "labels, addresses and ports that policies speak about",
            unknown,
        ),
        cluster(
            "discovery.k8s.io",
            named(&["endpointslices"]),
            FOLLOW,
            "members of Services in rules",
            unknown,
        ),
        cluster("networking.k8s.io", named(&["networkpolicies"]), FOLLOW, "policies", unknown),
        cluster(
            ADMIN,
            named(&ADMIN_KINDS),
            FOLLOW,
            "policies of the cluster's administrators, where their definitions are installed",
            unknown,
        ),
        cluster(
            schema::GROUP,
            kinds.iter().map(|kind| kind.plural.to_owned()).collect(),
            FOLLOW,
            "policies, tiers, sets, host endpoints, settings",
            unknown,
        ),
        cluster(
            "crd.projectcalico.org",
            stored,
            FOLLOW,
            "the same objects as Calico stores them, where the server has no projectcalico.org",
            unknown,
        ),
        cluster(schema::GROUP, judged, &["patch"], conditions, silent),
        cluster(
            ADMIN,
            ADMIN_KINDS.iter().map(|plural| of_status(plural)).collect(),
            &["patch"],
            conditions,
            silent,
        ),
        cluster(
            schema::GROUP,
            named(&["tiers"]),
            &["create", "patch"],
            "built-in tiers; a tier that is deleted stays until its last policy is gone",
            "built-in tiers work all the same, cannot be seen with kubectl, and a tier can be deleted under its policies",
        ),
        cluster(
            "",
            named(&["nodes"]),
            &["patch"],
            "annotations on the agent's own Node: version, workers, uplinks, state",
            "nodes do not say how margay stands on them",
        ),
        cluster(
            "",
            named(&["events"]),
            &["create"],
            "what the owner of an object should see",
            "it is in the agent's log only",
        ),
        Right { names: &[], verbs: &["create"], ..lease.clone() },
        lease,
        cluster(
            "operator.tigera.io",
            named(&["installations"]),
            FOLLOW,
            "the switch for encryption in an Installation, where Calico's operator has its definition",
            unknown,
        ),
        Right {
            group: "",
            resources: named(&["secrets"]),
            names: &[],
            scope: Scope::Keys,
            verbs: &["create", "get", "patch"],
            why: "the agent's own `wireguard-<node>`, sealed to its machine; only with `--only encryption`",
            without: "nothing is encrypted, and `margay status` says so",
        },
    ]
}

/// Returns the rules of the role for `scope`.
pub fn rules(scope: Scope) -> Vec<Value> {
    let rule = |right: &Right| {
        let mut rule =
            json!({ "apiGroups": [right.group], "resources": right.resources, "verbs": right.verbs });
        if !right.names.is_empty() {
            rule["resourceNames"] = json!(right.names);
        }
        rule
    };
    rights().iter().filter(|right| right.scope == scope).map(rule).collect()
}

/// Returns the table for people.
#[cfg(test)]
pub fn documentation() -> String {
    let mut text = String::from(
        "# Rights\n\nThe agent's ClusterRole `margay` and its Role of the same name. They have exactly the verbs that the agent uses; there is no right to read Secrets or ConfigMaps,\n\
         to delete anything, or to write Pods or policies. Encryption adds a Role in the namespace of keys, for Secrets there and nowhere else. RBAC cannot say \"its own Node\": an agent uses `patch` on Nodes for its own one and its annotations\n\
         alone, by server-side apply. A right that is missing is named in the agent's log and in `margay status`. A test holds this table against the API server's own record of what agents asked for: each right\n\
         is used, and nothing is asked for beside them.\n\n\
         | group | resources | verbs | for | without it |\n|---|---|---|---|---|\n",
    );
    for right in rights() {
        let group = if right.group.is_empty() { "core" } else { right.group };
        let mut resources = right.resources.join(", ");
        match right.scope {
            Scope::Cluster => {}
            Scope::OwnNamespace => resources.push_str(" of the agent's namespace"),
            Scope::Keys => resources.push_str(" of the namespace of keys"),
        }
        if !right.names.is_empty() {
            resources.push_str(&format!(", only {}", right.names.join(", ")));
        }
        let verbs = right.verbs.join(", ");
        text.push_str(&format!("| {group} | {resources} | {verbs} | {} | {} |\n", right.why, right.without));
    }
    text.push_str(
        "\nThe jobs that take margay off a node use no right at all: their pods have no token.\n\n\
         This page is generated from the code (`MARGAY_WRITE_DOCS=1 cargo test -p margay --bin margay install`).\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_right_is_given_twice_and_none_is_a_wildcard() {
        let mut seen = BTreeSet::new();
        for right in rights() {
            assert!(!right.resources.is_empty());
            for resource in &right.resources {
                for verb in right.verbs {
                    assert!(seen.insert((right.group, resource.clone(), *verb)), "{resource} {verb}");
                    assert!(!resource.contains('*') && *verb != "*");
                    assert!(
                        !["delete", "deletecollection", "impersonate", "escalate", "bind"].contains(verb)
                    );
                }
            }
        }
        assert!(!seen.iter().any(|(_, resource, _)| resource == "configmaps"));
        let secrets = rights().into_iter().filter(|right| right.resources.contains(&"secrets".to_owned()));
        for right in secrets {
            assert_eq!(right.scope, Scope::Keys, "in the namespace of keys and nowhere else");
            assert!(!right.verbs.contains(&"list") && !right.verbs.contains(&"watch"));
        }
        let status =
            rights().into_iter().flat_map(|right| right.resources).filter(|r| r.ends_with("/status"));
        assert_eq!(status.count(), JUDGED.len() + ADMIN_KINDS.len());
        let scopes = [Scope::Cluster, Scope::OwnNamespace, Scope::Keys];
        assert_eq!(scopes.map(|scope| rules(scope).len()).iter().sum::<usize>(), rights().len());
    }
}
