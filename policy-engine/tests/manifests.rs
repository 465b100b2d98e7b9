//! Manifests all the way to verdicts: what decoding promises is what the tables and the oracle do (policy model 2.3, 7.1, 7.2, 7.6, 32.5).

mod support;

use margay_policy_engine::decode::{Decoded, decode};
use margay_policy_engine::engine::Engine;
use margay_policy_engine::model::{Model, Object};
use margay_policy_engine::oracle::{self, hits};
use support::{Allow, Deny, Egress, Ingress, Judge};

/// Pods `a/one` (10.0.0.1) and `b/two` (10.0.0.2), and whatever else is written.
const WORLD: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {team: red}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: b, labels: {team: blue}, annotations: {net.beta.kubernetes.io/network-policy: '{"ingress":{"isolation":"DefaultDeny"}}'}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: web.front, namespace: a, labels: {trust: high}}}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: a, uid: u1, labels: {app: one}}
spec: {nodeName: n, serviceAccountName: web.front}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: b, uid: u2, labels: {app: two}}
spec: {nodeName: n, containers: [{ports: [{name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Node
metadata: {name: n, labels: {zone: x}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
"#;

/// Reads everything; an invalid object takes part in its closed form.
fn world(manifests: &[&str]) -> Judge {
    let mut model = Model::with_builtins();
    for text in [&[WORLD], manifests].concat() {
        for decoded in decode(text, "world.yaml") {
            let object: Option<Object> = match decoded {
                Decoded::Valid { object, .. } => Some(object),
                Decoded::Invalid { fallback, .. } => fallback,
                other => panic!("{text}\n{other:?}"),
            };
            object.into_iter().for_each(|object| model.insert(object));
        }
    }
    Judge::new(Engine::with_all_pods_local(model))
}

const TCP80: &str = "tcp 10.0.0.1:40000 > 10.0.0.2:80";
const TCP8080: &str = "tcp 10.0.0.1:40000 > 10.0.0.2:8080";

fn cluster(name: &str, tier: &str, priority: u16, rules: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{tier: {tier}, priority: {priority}, subject: {{namespaces: {{}}}}, {rules}}}\n"
    )
}

const ALL: &str = "from: [{namespaces: {}}]";

fn gnp(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

#[test]
fn pm_7_1_a_namespace_allows_all_and_gives_its_labels() {
    let open = world(&[]);
    assert_eq!(
        open.verdict(Ingress, "b/two", TCP80),
        Allow,
        "the historic isolation annotation has no effect"
    );
    let select = |selector: &str| gnp("p", &format!("{{namespaceSelector: {selector}, types: [Ingress]}}"));
    for (selector, verdict) in [
        ("team == 'blue'", Deny),
        ("team == 'red'", Allow),
        ("projectcalico.org/name == 'b'", Deny),
        ("projectcalico.org/name == 'a'", Allow),
    ] {
        assert_eq!(world(&[&select(selector)]).verdict(Ingress, "b/two", TCP80), verdict, "{selector}");
    }
}

#[test]
fn pm_7_2_a_service_account_gives_its_labels_and_no_rules() {
    let select =
        |selector: &str| gnp("p", &format!("{{serviceAccountSelector: {selector}, types: [Egress]}}"));
    for (selector, verdict) in [
        ("trust == 'high'", Deny),
        ("trust == 'low'", Allow),
        ("projectcalico.org/name == 'web.front'", Deny),
        ("all()", Deny),
    ] {
        assert_eq!(world(&[&select(selector)]).verdict(Egress, "a/one", TCP80), verdict, "{selector}");
    }
    let names = gnp(
        "p",
        "{selector: app == 'two', ingress: [{action: Allow, source: {serviceAccounts: {names: [web.front]}}}]}",
    );
    assert_eq!(world(&[&names]).verdict(Ingress, "b/two", TCP80), Allow);
}

#[test]
fn pm_7_6_facts() {
    let deny_all = cluster("deny", "Admin", 100, &format!("ingress: [{{action: Deny, {ALL}}}]"));
    let accept = |priority| {
        let rule = format!(
            "ingress: [{{action: Accept, {ALL}, protocols: [{{tcp: {{destinationPort: {{number: 80}}}}}}]}}]"
        );
        cluster("accept", "Admin", priority, &rule)
    };
    let pass = cluster("pass", "Admin", 100, &format!("ingress: [{{action: Pass, {ALL}}}]"));
    let tier_deny = gnp("deny", "{namespaceSelector: all(), types: [Ingress]}");
    let verdict = |manifests: &[&str], packet: &str| world(manifests).verdict(Ingress, "b/two", packet);

    assert_eq!(verdict(&[&deny_all], TCP80), Deny, "Admin deny-all ingress");
    assert_eq!(verdict(&[&deny_all, &accept(50)], TCP80), Allow, "+ Admin accept before it");
    assert_eq!(verdict(&[&deny_all, &accept(50)], TCP8080), Deny);
    let baseline = cluster("base", "Baseline", 5, "egress: [{action: Deny, to: [{namespaces: {}}]}]");
    assert_eq!(world(&[&baseline]).verdict(Egress, "a/one", TCP80), Deny, "Baseline deny-all egress only");
    assert_eq!(verdict(&[&baseline], TCP80), Allow);
    assert_eq!(verdict(&[&pass, &tier_deny], TCP80), Deny, "Admin pass + default-tier deny");
    assert_eq!(verdict(&[&pass], TCP80), Allow, "Admin pass, nothing else: the namespace's profile");
    assert_eq!(verdict(&[&accept(100), &tier_deny], TCP80), Allow, "Admin accept + default-tier deny");
    let mixed =
        gnp("first", "{tier: kube-admin, order: 0.5, namespaceSelector: all(), ingress: [{action: Deny}]}");
    assert_eq!(verdict(&[&mixed, &accept(100)], TCP80), Deny, "a GNP of kube-admin interleaves by order");
    let kubernetes = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: b}\nspec: {podSelector: {}}\n";
    assert_eq!(verdict(&[&pass, kubernetes], TCP80), Deny, "Admin pass + Kubernetes policy without rules");
    let tier_pass = gnp("pass", "{selector: app == 'two', ingress: [{action: Pass}]}");
    let accept_last = cluster("last", "Baseline", 5, &format!("ingress: [{{action: Accept, {ALL}}}]"));
    let judge = world(&[&pass, &tier_pass, &accept_last]);
    assert_eq!(judge.verdict(Ingress, "b/two", TCP80), Allow);
    assert_eq!(
        judge.decided_by(Ingress, "b/two", TCP80),
        "kube-baseline/KubernetesClusterNetworkPolicy//last/0",
        "Admin pass; default-tier pass; Baseline accept"
    );
    let (model, locals, two) = (judge.engine.model(), judge.engine.locals(), support::name("b/two"));
    let told = oracle::evaluate(model, locals, Ingress, &two, &support::packet(TCP80)).unwrap();
    let hits: Vec<String> = hits::of_trace(&told.trace).iter().map(ToString::to_string).collect();
    assert_eq!(
        hits,
        ["0|kube-admin|kcnp:pass|pass|0", "1|default|gnp:pass|pass|0", "2|kube-baseline|kcnp:last|allow|0"],
        "the trace has three hits"
    );
}

#[test]
fn pm_7_6_named_port_and_failed_rules_end_to_end() {
    let named = cluster(
        "p",
        "Admin",
        1,
        &format!("ingress: [{{action: Deny, {ALL}, protocols: [{{destinationNamedPort: http}}]}}]"),
    );
    let judge = world(&[&named]);
    assert_eq!(judge.verdict(Ingress, "b/two", TCP8080), Deny);
    assert_eq!(judge.verdict(Ingress, "b/two", TCP80), Allow);
    for (action, verdict) in [("Accept", Allow), ("Deny", Deny), ("Pass", Deny)] {
        let failed = cluster("p", "Admin", 1, &format!("ingress: [{{action: {action}, from: [{{}}]}}]"));
        assert_eq!(world(&[&failed]).verdict(Ingress, "b/two", TCP80), verdict, "{action}");
    }
}

#[test]
fn pm_32_11_nodes_as_peers() {
    let nodes = |labels: &str| {
        cluster("p", "Admin", 1, &format!("egress: [{{action: Deny, to: [{{nodes: {labels}}}]}}]"))
    };
    let to_node = "tcp 10.0.0.1:40000 > 192.0.2.1:443";
    assert_eq!(world(&[&nodes("{}")]).verdict(Egress, "a/one", to_node), Deny);
    assert_eq!(world(&[&nodes("{matchLabels: {zone: x}}")]).verdict(Egress, "a/one", to_node), Deny);
    assert_eq!(world(&[&nodes("{matchLabels: {zone: y}}")]).verdict(Egress, "a/one", to_node), Allow);
    assert_eq!(world(&[&nodes("{}")]).verdict(Egress, "a/one", TCP80), Allow, "a pod is no node");
}

#[test]
fn pm_32_11_domains_are_inert_and_stay_closed() {
    let deny_rest = "{action: Deny, to: [{networks: [0.0.0.0/0]}]}";
    let domains = cluster(
        "p",
        "Admin",
        1,
        &format!("egress: [{{action: Accept, to: [{{domainNames: [example.com]}}]}}, {deny_rest}]"),
    );
    assert_eq!(world(&[&domains]).verdict(Egress, "a/one", "tcp 10.0.0.1:40000 > 203.0.113.1:443"), Deny);
}

#[test]
fn pm_2_3_the_tiers_of_the_earlier_kinds() {
    let admin = |priority: u16, rules: &str| {
        format!(
            "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {{name: p{priority}}}\nspec: {{priority: {priority}, subject: {{namespaces: {{}}}}, {rules}}}\n"
        )
    };
    let baseline = format!(
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: BaselineAdminNetworkPolicy\nmetadata: {{name: default}}\nspec: {{subject: {{namespaces: {{}}}}, ingress: [{{action: Deny, {ALL}}}]}}\n"
    );
    let port = "ports: [{portNumber: {protocol: TCP, port: 80}}]";
    let judge = world(&[&admin(7, &format!("ingress: [{{action: Allow, {ALL}, {port}}}]")), &baseline]);
    assert_eq!(
        judge.decided_by(Ingress, "b/two", TCP80),
        "adminnetworkpolicy/KubernetesAdminNetworkPolicy//p7/0"
    );
    assert_eq!(
        judge.decided_by(Ingress, "b/two", TCP8080),
        "baselineadminnetworkpolicy/KubernetesBaselineAdminNetworkPolicy//default/0"
    );
    let kubernetes = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: allow, namespace: b}\nspec: {podSelector: {}, ingress: [{}]}\n";
    assert_eq!(
        world(&[&baseline, kubernetes]).verdict(Ingress, "b/two", TCP8080),
        Allow,
        "a namespace overrides the baseline"
    );
    assert_eq!(world(&[&admin(1, "")]).verdict(Ingress, "b/two", TCP80), Allow, "the tier passes at its end");
}

#[test]
fn pm_32_5_a_tier_that_allows_at_its_end() {
    let tier = |action: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {{name: t}}\nspec: {{order: 5, defaultAction: {action}}}\n"
        )
    };
    let policy = gnp(
        "p",
        "{tier: t, selector: app == 'two', ingress: [{action: Deny, protocol: TCP, destination: {ports: [8080]}}]}",
    );
    let later = gnp("later", "{namespaceSelector: all(), types: [Ingress]}");
    for (action, verdict) in [("Allow", Allow), ("Pass", Deny), ("Deny", Deny)] {
        let judge = world(&[&tier(action), &policy, &later]);
        assert_eq!(judge.verdict(Ingress, "b/two", TCP80), verdict, "{action}");
        assert_eq!(judge.verdict(Ingress, "b/two", TCP8080), Deny, "{action}");
    }
}
