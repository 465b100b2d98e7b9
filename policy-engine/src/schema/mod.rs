//! What an API server is told about the kinds that are ours to define: one CustomResourceDefinition each.
//!
//! ```text
//!  fields of a kind (kinds, rules, felix) ─▶ structural schema ─▶ CustomResourceDefinition ─▶ deploy/crds/*.yaml
//!                         ▲
//!  decode ── asks for ────┘  a test walks both: no field here that decode does not know, none there that is missing here
//! ```
//!
//! Two forms of every definition exist. The first has nothing that Kubernetes 1.20 does not know and applies on every version since. The
//! second adds rules in CEL, which servers from 1.25 on check when an object is written; see decision 0017.
//!
//! The kinds of `policy.networking.k8s.io` are defined by their own project and not here.

mod felix;
mod kinds;
mod rules;
mod shape;

use serde_json::{Value, json};

/// The group of every kind here.
pub const GROUP: &str = "projectcalico.org";

/// The version of every kind here.
pub const VERSION: &str = "v3";

/// A kind that is ours to define.
#[derive(Clone, Debug)]
pub struct Resource {
    /// `kind`.
    pub kind: &'static str,
    /// The name in URLs and in roles.
    pub plural: &'static str,
    /// Whether objects have a namespace.
    pub is_namespaced: bool,
    /// What `kubectl get` takes instead.
    pub short: &'static [&'static str],
    describes: &'static str,
    columns: &'static [Column],
    spec: fn() -> Value,
}

/// What `kubectl get` prints beside the name: title, type, path.
type Column = (&'static str, &'static str, &'static str);

const ORDER: Column = ("Order", "number", ".spec.order");
const TIER: Column = ("Tier", "string", ".spec.tier");

/// Every kind that is ours to define (policy model 1.1).
pub fn resources() -> [Resource; 14] {
    let resource = |kind, plural, is_namespaced, short, describes, columns, spec| Resource {
        kind,
        plural,
        is_namespaced,
        short,
        describes,
        columns,
        spec,
    };
    let policy: &[Column] = &[TIER, ORDER];
    [
        resource(
            "NetworkPolicy",
            "networkpolicies",
            true,
            &["cnp", "caliconetworkpolicy"],
            "Policy for the pods of one namespace.",
            policy,
            || kinds::network_policy(false),
        ),
        resource(
            "GlobalNetworkPolicy",
            "globalnetworkpolicies",
            false,
            &["gnp", "cgnp"],
            "Policy for pods of any namespace and for host endpoints.",
            policy,
            || kinds::global_network_policy(false),
        ),
        resource(
            "StagedNetworkPolicy",
            "stagednetworkpolicies",
            true,
            &["snp", "scnp"],
            "A NetworkPolicy that changes no verdict, to see what it would do.",
            policy,
            || kinds::network_policy(true),
        ),
        resource(
            "StagedGlobalNetworkPolicy",
            "stagedglobalnetworkpolicies",
            false,
            &["sgnp"],
            "A GlobalNetworkPolicy that changes no verdict, to see what it would do.",
            policy,
            || kinds::global_network_policy(true),
        ),
        resource(
            "StagedKubernetesNetworkPolicy",
            "stagedkubernetesnetworkpolicies",
            true,
            &["sknp"],
            "A Kubernetes NetworkPolicy that changes no verdict, to see what it would do.",
            &[],
            kinds::staged_kubernetes_network_policy,
        ),
        resource(
            "Tier",
            "tiers",
            false,
            &[],
            "An ordered group of policies.",
            &[ORDER, ("Default", "string", ".spec.defaultAction")],
            kinds::tier,
        ),
        resource(
            "NetworkSet",
            "networksets",
            true,
            &["netset"],
            "A labelled list of networks, for policies of its namespace.",
            &[],
            kinds::network_set,
        ),
        resource(
            "GlobalNetworkSet",
            "globalnetworksets",
            false,
            &["gns"],
            "A labelled list of networks.",
            &[],
            kinds::network_set,
        ),
        resource(
            "HostEndpoint",
            "hostendpoints",
            false,
            &["hep"],
            "An interface of a node as the target of policy.",
            &[("Node", "string", ".spec.node"), ("Interface", "string", ".spec.interfaceName")],
            kinds::host_endpoint,
        ),
        resource(
            "Profile",
            "profiles",
            false,
            &[],
            "Rules and labels of the endpoints that list it.",
            &[],
            kinds::profile,
        ),
        resource(
            "FelixConfiguration",
            "felixconfigurations",
            false,
            &[],
            "Settings of the agents: default for all nodes, node.NAME for one.",
            &[],
            felix::configuration,
        ),
        resource(
            "KubeControllersConfiguration",
            "kubecontrollersconfigurations",
            false,
            &[],
            "Settings of the controllers; automatic host endpoints.",
            &[],
            kinds::kube_controllers_configuration,
        ),
        resource(
            "IPPool",
            "ippools",
            false,
            &[],
            "A network that pods' addresses come from.",
            &[("CIDR", "string", ".spec.cidr")],
            kinds::ip_pool,
        ),
        resource(
            "Node",
            "nodes",
            false,
            &[],
            "Addresses of a node that its Kubernetes object does not have.",
            &[],
            kinds::calico_node,
        ),
    ]
}

/// Whether a definition has rules in CEL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// None: for every Kubernetes from 1.20 on.
    Without,
    /// With them: for Kubernetes 1.25 and newer.
    Cel,
}

impl Resource {
    /// Returns the structural schema of the whole object.
    pub fn schema(&self, rules: Rules) -> Value {
        let condition = shape::required(
            shape::mapping(vec![
                ("type", "What it is about.", shape::text_up_to(316)),
                ("status", "Whether it is so.", shape::words(&["True", "False", "Unknown"])),
                ("reason", "Why, in one word.", shape::text_up_to(1024)),
                ("message", "Why, for people.", shape::text_up_to(32_768)),
                (
                    "observedGeneration",
                    "The form of the object it was said about.",
                    shape::integer(0, i64::MAX),
                ),
                ("lastTransitionTime", "Since when.", json!({ "type": "string", "format": "date-time" })),
            ]),
            &["type", "status"],
        );
        let mut conditions = shape::list(condition);
        conditions["x-kubernetes-list-type"] = json!("map");
        conditions["x-kubernetes-list-map-keys"] = json!(["type"]);
        let status = shape::mapping(vec![("conditions", "What became of it.", conditions)]);
        let mut schema = shape::mapping(vec![
            ("apiVersion", "", shape::text()),
            ("kind", "", shape::text()),
            ("metadata", "", json!({ "type": "object" })),
            ("spec", "What is wanted.", (self.spec)()),
            ("status", "What is said about it by those who read it.", status),
        ]);
        schema["description"] = json!(self.describes);
        if rules == Rules::Without {
            shape::without_rules(&mut schema);
        }
        schema
    }

    /// Returns the CustomResourceDefinition.
    pub fn definition(&self, rules: Rules) -> Value {
        let column = |(name, kind, path): &Column| json!({ "name": name, "type": kind, "jsonPath": path });
        let mut columns: Vec<Value> = self.columns.iter().map(column).collect();
        columns.push(json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }));
        let mut names = json!({
            "kind": self.kind,
            "listKind": format!("{}List", self.kind),
            "plural": self.plural,
            "singular": self.kind.to_ascii_lowercase(),
        });
        if !self.short.is_empty() {
            names["shortNames"] = json!(self.short);
        }
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{}.{GROUP}", self.plural),
                "labels": { "app.kubernetes.io/name": "margay", "app.kubernetes.io/component": "crds" },
            },
            "spec": {
                "group": GROUP,
                "names": names,
                "scope": if self.is_namespaced { "Namespaced" } else { "Cluster" },
                "versions": [{
                    "name": VERSION,
                    "served": true,
                    "storage": true,
                    "subresources": { "status": {} },
                    "additionalPrinterColumns": columns,
                    "schema": { "openAPIV3Schema": self.schema(rules) },
                }],
            },
        })
    }
}

/// The parameters of FelixConfiguration for people: name, and what may stand there.
pub fn felix_parameters() -> Vec<(&'static str, String)> {
    felix::documentation()
}
