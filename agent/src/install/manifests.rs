//! The objects that run margay in a cluster, as values.
//!
//! ```text
//!  DaemonSet margay ── init: cni-install (copies the binary to the host) ── agent (writes the conflist when it can serve ADD)
//!  uninstall, on every node ── conflist, programs, routes, the host port's pair: gone; pods stay closed until they are made anew
//! ```
//!
//! The agent's pod is privileged because XDP, network namespaces and `/proc/sys/net` of the node are its work; nothing else of the node's
//! file system is mounted than what is listed in [`mounts`]. It has no CPU limit, which would stop the packet path in the middle of a
//! burst, and no memory limit, because the kernel's share of packet memory counts differently from kernel to kernel.

use margay_policy_engine::schema;
use serde_json::{Value, json};

use super::rights::{self, Scope};
use super::settings::Settings;

/// Name of everything that has one.
pub const NAME: &str = "margay";
/// Sockets and, below it, the pinned programs of the agent.
pub const RUN: &str = "/run/margay";
/// What survives a reboot.
pub const STATE: &str = "/var/lib/margay";
/// Network namespaces, as container runtimes name them.
const NETNS: &str = "/var/run/netns";

fn labels(component: &str) -> Value {
    json!({ "app.kubernetes.io/name": NAME, "app.kubernetes.io/component": component })
}

fn meta(name: &str, namespace: Option<&str>, component: &str) -> Value {
    let mut meta = json!({ "name": name, "labels": labels(component) });
    if let Some(namespace) = namespace {
        meta["namespace"] = json!(namespace);
    }
    meta
}

/// Account, rights, agent: what a cluster needs beside the definitions.
pub fn agent(settings: &Settings) -> Vec<Value> {
    let mut objects = account(settings);
    objects.push(daemon_set(settings));
    objects
}

/// The agent's account and what it may ask.
pub fn account(settings: &Settings) -> Vec<Value> {
    const RBAC: &str = "rbac.authorization.k8s.io";
    let account = json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": meta(NAME, Some(&settings.namespace), "agent"),
    });
    let mut objects = vec![account];
    for (scope, kind, namespace) in [
        (Scope::Cluster, "ClusterRole", None),
        (Scope::OwnNamespace, "Role", Some(settings.namespace.as_str())),
    ] {
        objects.push(json!({
            "apiVersion": format!("{RBAC}/v1"),
            "kind": kind,
            "metadata": meta(NAME, namespace, "agent"),
            "rules": rights::rules(scope),
        }));
        objects.push(json!({
            "apiVersion": format!("{RBAC}/v1"),
            "kind": format!("{kind}Binding"),
            "metadata": meta(NAME, namespace, "agent"),
            "roleRef": { "apiGroup": RBAC, "kind": kind, "name": NAME },
            "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": settings.namespace }],
        }));
    }
    objects
}

/// What agents need to keep their keys as Secrets: rights in one namespace, and no others.
pub fn encryption(settings: &Settings) -> Vec<Value> {
    const KEYS: &str = "margay-keys";
    let namespace = Some(settings.key_namespace.as_str());
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": meta(KEYS, namespace, "agent"),
            "rules": rights::rules(Scope::Keys),
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": meta(KEYS, namespace, "agent"),
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": KEYS },
            "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": settings.namespace }],
        }),
    ]
}

/// Where the token of an agent says on which node it runs, from Kubernetes 1.30 on.
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";

const ADMISSION: &str = "admissionregistration.k8s.io/v1";

/// Rules of admission, checked by the API server itself: what no right and no schema can say.
pub fn admission(settings: &Settings) -> Vec<Value> {
    own_node(settings).into_iter().chain(built_in_tiers()).chain(ending_tiers()).collect()
}

/// A rule of admission and what puts it in force, for everybody or with `parameters`.
fn in_force(name: &str, spec: Value, parameters: Option<Value>) -> [Value; 2] {
    let mut binding = json!({ "policyName": name, "validationActions": ["Deny"] });
    if let Some(parameters) = parameters {
        binding["paramRef"] = parameters;
    }
    [("ValidatingAdmissionPolicy", spec), ("ValidatingAdmissionPolicyBinding", binding)].map(|(kind, spec)| {
        json!({ "apiVersion": ADMISSION, "kind": kind, "metadata": meta(name, None, "agent"), "spec": spec })
    })
}

/// Built-in tiers are not deleted (policy model 22.1).
fn built_in_tiers() -> [Value; 2] {
    let spec = json!({
        "failurePolicy": "Fail",
        "matchConstraints": { "resourceRules": [{
            "apiGroups": [schema::GROUP], "apiVersions": [schema::VERSION], "operations": ["DELETE"], "resources": ["tiers"],
        }] },
        "validations": [{
            "expression": "!(oldObject.metadata.name in ['default', 'kube-admin', 'kube-baseline'])",
            "message": "built-in tiers stay: policies that name no tier, and those of Kubernetes, are in them",
        }],
    });
    in_force("margay-built-in-tiers", spec, None)
}

/// Nobody joins a tier whose deletion waits for its policies (policy model 22.1). The server asks this once for each tier. Built-in ones
/// are left out: somebody may have deleted one before it could not be, nothing takes that back, and policies without a tier have to go
/// somewhere. A server that cannot look tiers up lets policies through, since all that is lost is that the deletion waits longer.
fn ending_tiers() -> [Value; 2] {
    let tier = |object: &str| {
        format!(
            "has({object}.spec) && has({object}.spec.tier) && {object}.spec.tier != '' ? {object}.spec.tier : 'default'"
        )
    };
    let spec = json!({
        "failurePolicy": "Ignore",
        "paramKind": { "apiVersion": format!("{}/{}", schema::GROUP, schema::VERSION), "kind": "Tier" },
        "matchConstraints": { "resourceRules": [{
            "apiGroups": [schema::GROUP], "apiVersions": [schema::VERSION], "operations": ["CREATE", "UPDATE"],
            "resources": ["networkpolicies", "globalnetworkpolicies", "stagednetworkpolicies", "stagedglobalnetworkpolicies"],
        }] },
        "variables": [
            { "name": "tier", "expression": tier("object") },
            { "name": "before", "expression": format!("oldObject == null ? '' : ({})", tier("oldObject")) },
        ],
        "validations": [{
            "expression": "!has(params.metadata.deletionTimestamp) || params.metadata.name in ['default', 'kube-admin', 'kube-baseline'] || params.metadata.name != variables.tier || variables.before == variables.tier",
            "message": "the tier is being deleted and waits for its policies; name another tier",
        }],
    });
    in_force("margay-ending-tiers", spec, Some(json!({ "selector": {}, "parameterNotFoundAction": "Allow" })))
}

/// What RBAC cannot say: all agents share one account, and each may write its own Node and Secret alone (policy model 32.1).
fn own_node(settings: &Settings) -> [Value; 2] {
    let account = format!("system:serviceaccount:{}:{}", settings.namespace, NAME);
    let rule = |resources: &[&str]| json!({ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": resources });
    let validations = [
        (
            format!("'{NODE_CLAIM}' in request.userInfo.extra"),
            "the token does not say on which node the agent runs",
        ),
        (
            "request.resource.resource != 'nodes' || object.metadata.name == variables.node".to_owned(),
            "an agent writes the Node that it runs on, and no other",
        ),
        (
            "request.resource.resource != 'nodes' || (oldObject != null && object.spec == oldObject.spec && \
             has(object.metadata.labels) == has(oldObject.metadata.labels) && \
             (!has(object.metadata.labels) || object.metadata.labels == oldObject.metadata.labels))"
                .to_owned(),
            "an agent writes annotations of its Node, and nothing else of it",
        ),
        (
            "request.resource.resource != 'secrets' || object.metadata.name == 'wireguard-' + variables.node"
                .to_owned(),
            "an agent writes the Secret of the node that it runs on, and no other",
        ),
    ];
    let validations =
        validations.map(|(expression, message)| json!({ "expression": expression, "message": message }));
    let claim =
        format!("'{NODE_CLAIM}' in request.userInfo.extra ? request.userInfo.extra['{NODE_CLAIM}'][0] : ''");
    let spec = json!({
        "failurePolicy": "Fail",
        "matchConstraints": { "resourceRules": [rule(&["nodes", "nodes/status", "secrets"])] },
        "matchConditions": [{ "name": "agents", "expression": format!("request.userInfo.username == '{account}'") }],
        "variables": [{ "name": "node", "expression": claim }],
        "validations": validations,
    });
    in_force("margay-own-node", spec, None)
}

/// What the agent is started with.
pub fn agent_arguments(settings: &Settings) -> Vec<String> {
    let port = match &settings.metrics_port {
        Value::String(text) => text.clone(),
        number => number.to_string(),
    };
    let own = [
        "agent".to_owned(),
        "--node=$(NODE_NAME)".to_owned(),
        "--node-address=$(NODE_ADDRESS)".to_owned(),
        "--datastore=kubernetes".to_owned(),
        format!("--lease-namespace={}", settings.namespace),
        format!("--key-namespace={}", settings.key_namespace),
        format!("--uplink={}", settings.uplink),
        format!("--endpoint-to-host={}", settings.endpoint_to_host),
        format!("--run-dir={RUN}"),
        format!("--state-dir={STATE}"),
        format!("--cni-conf-dir={}", settings.cni_conf),
        format!("--cni-ipam={}", settings.ipam),
        format!("--admin-listen={}:{port}", settings.metrics_address),
    ];
    own.into_iter().chain(settings.agent_args.iter().cloned()).collect()
}

/// Returns a container's arguments as the kubelet of some node hands them over: with the values of their variables.
pub fn handed_over(arguments: &[String]) -> impl Iterator<Item = String> {
    let on_a_node =
        |text: &String| text.replace("$(NODE_NAME)", "node-a").replace("$(NODE_ADDRESS)", "192.0.2.10");
    arguments.iter().map(on_a_node)
}

/// Name, host path, path inside, propagation.
fn mounts(settings: &Settings) -> [(&'static str, String, &'static str); 5] {
    [
        // The agent mounts its bpffs below it, and that has to stay when the container goes: programs are pinned there.
        ("run", RUN.to_owned(), "Bidirectional"),
        ("state", STATE.to_owned(), "None"),
        ("netns", NETNS.to_owned(), "HostToContainer"),
        ("cni-bin", settings.cni_bin.clone(), "None"),
        ("cni-conf", settings.cni_conf.clone(), "None"),
    ]
}

fn volumes(settings: &Settings) -> (Value, Value) {
    let (mut volumes, mut inside) = (Vec::new(), Vec::new());
    for (name, path, propagation) in mounts(settings) {
        volumes.push(json!({ "name": name, "hostPath": { "path": path, "type": "DirectoryOrCreate" } }));
        let mut mount = json!({ "name": name, "mountPath": path });
        if propagation != "None" {
            mount["mountPropagation"] = json!(propagation);
        }
        inside.push(mount);
    }
    (json!(volumes), json!(inside))
}

/// What the pods of the agent and of the jobs that remove it share.
fn pod(settings: &Settings) -> Value {
    let (volumes, _) = volumes(settings);
    json!({
        "hostNetwork": true,
        "dnsPolicy": "Default",
        "priorityClassName": "system-node-critical",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "tolerations": [{ "operator": "Exists" }],
        "volumes": volumes,
    })
}

fn container(settings: &Settings, name: &str, arguments: &[String]) -> Value {
    let (_, mounts) = volumes(settings);
    json!({
        "name": name,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "args": arguments,
        "securityContext": { "privileged": true },
        "volumeMounts": mounts,
    })
}

fn daemon_set(settings: &Settings) -> Value {
    let probe = |path: &str| json!({ "httpGet": { "host": "127.0.0.1", "path": path, "port": settings.metrics_port } });
    let timed = |path: &str, period: u32, failures: u32| {
        let mut probe = probe(path);
        probe["periodSeconds"] = json!(period);
        probe["failureThreshold"] = json!(failures);
        probe["timeoutSeconds"] = json!(5);
        probe
    };
    let field =
        |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut agent = container(settings, "agent", &agent_arguments(settings));
    agent["env"] = json!([field("NODE_NAME", "spec.nodeName"), field("NODE_ADDRESS", "status.hostIP")]);
    agent["resources"] = json!({ "requests": { "memory": settings.memory, "cpu": settings.cpu } });
    agent["startupProbe"] = timed("/healthz", 2, 60);
    agent["livenessProbe"] = timed("/healthz", 10, 6);
    agent["readinessProbe"] = timed("/readyz", 5, 3);
    agent["ports"] =
        json!([{ "name": "metrics", "containerPort": settings.metrics_port, "protocol": "TCP" }]);
    let install = ["cni-install".to_owned(), format!("--to={}", settings.cni_bin)];
    let mut pod = pod(settings);
    pod["serviceAccountName"] = json!(NAME);
    pod["terminationGracePeriodSeconds"] = json!(10);
    pod["initContainers"] = json!([container(settings, "cni-install", &install)]);
    pod["containers"] = json!([agent]);
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": meta(NAME, Some(&settings.namespace), "agent"),
        "spec": {
            "selector": { "matchLabels": labels("agent") },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1 } },
            "template": { "metadata": { "labels": labels("agent") }, "spec": pod },
        },
    })
}

fn uninstall_container(settings: &Settings) -> Value {
    let arguments = [
        "uninstall".to_owned(),
        format!("--cni-conf-dir={}", settings.cni_conf),
        format!("--cni-bin-dir={}", settings.cni_bin),
        format!("--run-dir={RUN}"),
        format!("--state-dir={STATE}"),
    ];
    container(settings, "uninstall", &arguments)
}

/// Takes margay off every node: the work is the init container's, and the pod is ready once it is done.
pub fn uninstall_everywhere(settings: &Settings) -> Value {
    let mut stay = container(settings, "done", &["uninstall".to_owned(), "--stay".to_owned()]);
    stay["securityContext"] = json!({ "privileged": false, "readOnlyRootFilesystem": true });
    if let Some(stay) = stay.as_object_mut() {
        stay.remove("volumeMounts");
    }
    let mut pod = pod(settings);
    pod["automountServiceAccountToken"] = json!(false);
    pod["terminationGracePeriodSeconds"] = json!(1);
    pod["initContainers"] = json!([uninstall_container(settings)]);
    pod["containers"] = json!([stay]);
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": meta("margay-uninstall", Some(&settings.namespace), "uninstall"),
        "spec": {
            "selector": { "matchLabels": labels("uninstall") },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "100%" } },
            "template": { "metadata": { "labels": labels("uninstall") }, "spec": pod },
        },
    })
}

/// The same as a Job for the chart, which waits for it: one pod a node, on as many nodes as were said.
pub fn uninstall_hook(settings: &Settings) -> Value {
    let mut pod = pod(settings);
    pod["automountServiceAccountToken"] = json!(false);
    pod["restartPolicy"] = json!("OnFailure");
    pod["containers"] = json!([uninstall_container(settings)]);
    pod["affinity"] = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
        { "labelSelector": { "matchLabels": labels("uninstall") }, "topologyKey": "kubernetes.io/hostname" },
    ] } });
    let mut meta = meta("margay-uninstall", Some(&settings.namespace), "uninstall");
    meta["annotations"] = json!({
        "helm.sh/hook": "post-delete",
        "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
    });
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta,
        "spec": {
            "completions": settings.nodes,
            "parallelism": settings.nodes,
            "backoffLimit": 6,
            "template": { "metadata": { "labels": labels("uninstall") }, "spec": pod },
        },
    })
}

/// Tells the Prometheus operator where the numbers are.
pub fn pod_monitor(settings: &Settings) -> Value {
    json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": meta(NAME, Some(&settings.namespace), "agent"),
        "spec": {
            "selector": { "matchLabels": labels("agent") },
            "podMetricsEndpoints": [{
                "port": "metrics",
                "path": "/metrics",
                "interval": "30s",
                "relabelings": [{ "sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node" }],
            }],
        },
    })
}

/// The dashboard as Grafana's sidecar wants it.
pub fn dashboard_map(settings: &Settings, dashboard: &str) -> Value {
    let mut meta = meta("margay-dashboard", Some(&settings.namespace), "dashboard");
    meta["labels"]["grafana_dashboard"] = json!("1");
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": { "margay.json": dashboard } })
}
